"""The database file of the embedded store: its tables, and opening it so that a commit is durable and damage is seen.

Settings and why (ADR 0002): one connection with an exclusive lock, taken before WAL mode, so that there is no shared
memory file and nobody else writes; `synchronous=FULL`, the only one that loses nothing acknowledged; no memory mapping,
because a failing disk would then be a SIGBUS; checkpoints only when the store asks. A checksum on every page (SQLite's
`cksumvfs`) turns a flipped bit into an error instead of a wrong answer.
"""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any, Final

import apsw
import apsw.sqlite_extra

from ifbus.errors import IfbusError
from ifbusd.store import journal
from ifbusd.store.chain import GENESIS, entry_hash
from ifbusd.store.fsync import sync_names
from ifbusd.store.wal import describe_damage, whole_frames

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION: Final = 2
_APPLICATION_ID: Final = int.from_bytes(b"ifbu", "big")
# The checksum's place at the end of each page.
_CHECKSUM_BYTES: Final = 8
# A full structure check reads everything: 0.7 ms per MiB. Above this size pages are checked as they are read.
_QUICK_CHECK_BYTES: Final = 32 * 1024 * 1024

_SCHEMA: Final = f"""
-- Rows stand in the order in which keys were created and are changed in place, so that a commit touches few pages however
-- the keys are spread; the index on the key is small (ADR 0002 has the figures).
create table kv (
    id integer primary key,
    key text not null unique,
    value blob not null,
    create_revision integer not null,
    mod_revision integer not null,
    lease integer not null
) strict;
create index kv_by_lease on kv (lease) where lease != 0;
create table lease (id integer primary key, ttl_ms integer not null) strict;
create table log (
    seq integer primary key,
    revision integer not null,
    at_ms integer not null,
    record blob not null,
    hash blob not null
) strict;
-- One row: the newest revision (the end of the log may know a newer one), how often the store was opened (the upper half of lease
-- ids), and the newest entry of the journal that is in the tables.
create table state (
    id integer primary key check (id = 1),
    revision integer not null,
    starts integer not null,
    folded integer not null default 0
) strict;
insert into state (id, revision, starts) values (1, 0, 0);
{journal.SCHEMA}
"""
_FROM_VERSION_1: Final = f"""
alter table state add column folded integer not null default 0;
{journal.SCHEMA}
"""


class StoreFailed(IfbusError):
    """The database cannot be used, or no longer be trusted: the daemon says so and stops."""


def open_database(path: Path, *, cache_bytes: int, wal_limit_bytes: int) -> apsw.Connection:
    """An exclusive connection to the store's database, made if absent; blocks while it recovers what a crash left.

    Raises:
        StoreFailed: It is in use, damaged, no database of ours, or of a newer version; the message names the file.
        DiskFailed: Its name could not be made durable.
    """
    try:
        # SQLite gives the log the same mode. Nobody but the daemon reads what swarms wrote.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        register_checksums()
        connection = apsw.Connection(str(path), vfs="cksmvfs")
    except (OSError, apsw.Error) as error:
        raise StoreFailed(f"cannot open {path}: {error}") from error
    try:
        _configure(connection, cache_bytes=cache_bytes, wal_limit_bytes=wal_limit_bytes)
        _check_log(connection, path)
        _prepare_schema(connection, path)
        journal.fold_all(connection)
        _check(connection, path)
        # SQLite does this for files that it makes, and does not look at the answer.
        sync_names(path.parent)
    except apsw.BusyError as error:
        connection.close()
        raise StoreFailed(f"cannot open {path}: another process has it open") from error
    except apsw.Error as error:
        connection.close()
        if isinstance(error, apsw.CorruptError):
            # A log that was copied back and is cut off by damage does not fit what it was copied into.
            _require_whole_log(path)
        raise StoreFailed(f"cannot open {path}: {describe(error)}{_next_step(error, path)}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def describe(error: apsw.Error) -> str:
    """What an SQLite error means for the one who runs the daemon."""
    code = getattr(error, "extendedresult", 0)
    if code == apsw.SQLITE_IOERR_DATA:
        return "the database is damaged: a page does not match its checksum"
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return f"the database is damaged: {error}"
    name = apsw.mapping_extended_result_codes.get(code)
    return f"{error} ({name})" if name else str(error)


def _next_step(error: apsw.Error, path: Path) -> str:
    is_damage = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA or isinstance(
        error, apsw.CorruptError | apsw.NotADBError
    )
    return _see_what_is_damaged(path) if is_damage else ""


def _see_what_is_damaged(path: Path) -> str:
    return f"; what of it: ifbus witness verify --state {shlex.quote(str(path.parent))}"


def register_checksums() -> None:
    """Load the VFS that checksums pages: upon SQLite's default VFS, for the life of the process; later calls do nothing."""
    loader = apsw.Connection(":memory:")
    try:
        apsw.sqlite_extra.load(loader, "cksumvfs")
    except (LookupError, apsw.sqlite_extra.NotAvailable) as error:
        raise StoreFailed("cannot checksum pages: this build of apsw lacks cksumvfs, install its wheel") from error
    finally:
        loader.close()


def _configure(connection: apsw.Connection, *, cache_bytes: int, wal_limit_bytes: int) -> None:
    # Closing writes nothing by itself: after a failed fsync that would be the one thing not to do.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.reserve_bytes(None, _CHECKSUM_BYTES)  # decides for a new file, changes nothing in an old one
    for setting in (
        "locking_mode = exclusive",
        "journal_mode = wal",
        "synchronous = full",
        "mmap_size = 0",
        "wal_autocheckpoint = 0",
        f"cache_size = {-(cache_bytes // 1024)}",
        f"journal_size_limit = {wal_limit_bytes}",
        "cell_size_check = on",
        "trusted_schema = off",
    ):
        connection.execute(f"pragma {setting}").fetchall()


def _check_log(connection: apsw.Connection, path: Path) -> None:
    """Before anything is written: damage in the write-ahead log looks to SQLite like its end, and what follows would be lost."""
    connection.execute("select count(*) from sqlite_schema").fetchall()  # makes SQLite read the log
    used, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
    _require_whole_log(path, used)


def _require_whole_log(path: Path, used: int | None = None) -> None:
    log = path.with_name(f"{path.name}-wal")
    data = log.read_bytes() if log.exists() else b""
    damage = describe_damage(data, whole_frames(data) if used is None else used)
    if damage is not None:
        raise StoreFailed(f"cannot open {log}: it is damaged ({damage}){_see_what_is_damaged(path)}")


def _prepare_schema(connection: apsw.Connection, path: Path) -> None:
    version = connection.execute("pragma user_version").get
    application = connection.execute("pragma application_id").get
    if not connection.execute("select count(*) from sqlite_schema").get and not version:
        with connection:
            connection.execute(_SCHEMA)
            connection.execute(f"pragma application_id = {_APPLICATION_ID}")
            connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
    elif application != _APPLICATION_ID:
        raise StoreFailed(f"cannot open {path}: it is a database, but not one of ifbusd")
    elif version == 1:
        with connection:
            connection.execute(_FROM_VERSION_1)
            connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
    elif version != SCHEMA_VERSION:
        raise StoreFailed(
            f"cannot open {path}: its format is version {version}, this ifbusd knows {SCHEMA_VERSION};"
            " start the ifbusd that wrote it"
        )


def _check(connection: apsw.Connection, path: Path) -> None:
    """The whole structure if that is quick, and in any case the end of the witness log against its chain."""
    if path.stat().st_size <= _QUICK_CHECK_BYTES:
        found = connection.execute("pragma quick_check(1)").get
        if found != "ok":
            raise StoreFailed(f"cannot open {path}: the database is damaged ({found}){_see_what_is_damaged(path)}")
    if connection.execute("select count(*) from state").get != 1:
        raise StoreFailed(f"cannot open {path}: the database is damaged (no state row){_see_what_is_damaged(path)}")
    last: list[Any] = connection.execute("select * from log order by seq desc limit 2").fetchall()
    if last:
        seq, revision, at_ms, record, digest = last[0]
        previous = last[1][4] if len(last) > 1 else GENESIS
        whole = seq == 1 or (len(last) > 1 and last[1][0] == seq - 1)
        if not whole or entry_hash(previous, seq, revision, at_ms, record) != digest:
            raise StoreFailed(
                f"cannot open {path}: entry {seq} of the witness log does not match its chain{_see_what_is_damaged(path)}"
            )
