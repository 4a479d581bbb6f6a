"""Checks the database file of a stopped daemon, whatever state it is in: every damage is a finding, none a crash.

The file is copied and the copy is examined, because opening it would already recover what a crash left in the write-ahead log.
Three nets, each finding what the others cannot: the chain (which entry was changed), the checksum of each page (a flipped bit
even where no entry lies), and SQLite's own check of the structure.
"""

from __future__ import annotations

import fcntl
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import apsw
import apsw.sqlite_extra

from ifbus.errors import NotFound, Unavailable
from ifbusd.store import journal
from ifbusd.store.base import LogEntry
from ifbusd.store.chain import entry_hash
from ifbusd.store.wal import FRAME_HEADER_BYTES, HEADER_BYTES, describe_damage
from ifbusd.witness import rules

# SQLite locks bytes from here on, whatever the size of the file.
_LOCK_START: Final = 0x40000000
_LOCK_BYTES: Final = 512
_FLOCK: Final = struct.Struct("hhlli")  # l_type, l_whence, l_start, l_len, l_pid
_HEADER_BYTES: Final = 100
_SMALLEST_PAGE: Final = 512
_LARGEST_PAGE: Final = 65536  # written as 1
_ENTRIES: Final = "select seq, revision, at_ms, record, hash from log where seq > ? order by seq"


def verify_file(path: Path, *, receipt: str = "") -> dict[str, Any]:
    """Check the store's database at `path` from end to end, without changing it; blocks, about 1 s for 100 MiB.

    Never call it in the daemon's own process: closing the file would drop the daemon's lock on it.

    Args:
        receipt: ``seq:hash`` to compare the record with, or nothing.

    Returns:
        As `IFWitness.verify`, with ``"file"``; a problem of the file as a whole has no ``seq``.

    Raises:
        not_found: There is no such file.
        unavailable: A daemon has it open; `data["pid"]` says which.
        invalid_params: The receipt cannot be read.
    """
    audit = rules.Audit(entry_hash, rules.parse_receipt(receipt))
    _require_stopped(path)
    with tempfile.TemporaryDirectory(prefix="ifbus-verify-") as directory:
        copy = Path(directory) / path.name
        shutil.copyfile(path, copy)
        log = path.with_name(f"{path.name}-wal")
        if log.exists():
            shutil.copyfile(log, copy.with_name(log.name))
        _examine(copy, path.name, audit)
    return {"file": str(path), **audit.report().to_wire()}


def _require_stopped(path: Path) -> None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFound(f"cannot verify {path}: there is no such file", data={"path": str(path)}) from None
    with file:
        query = _FLOCK.pack(fcntl.F_WRLCK, 0, _LOCK_START, _LOCK_BYTES, 0)
        held, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_GETLK, query))
    if held != fcntl.F_UNLCK:
        raise Unavailable(
            f"cannot verify {path}: the process {pid} has it open; ask the daemon itself (ifbus witness verify), or stop it",
            data={"pid": pid, "path": str(path)},
            would_change=[{"by": "self", "what": "ask the running daemon", "call": "ifbus witness verify"}],
        )


def _examine(copy: Path, name: str, audit: rules.Audit) -> None:
    # Without the checksumming VFS: it would refuse to read just the pages that we want to know more about.
    connection = apsw.Connection(str(copy), vfs="unix")
    try:
        connection.execute("pragma cell_size_check = on")
        connection.execute("pragma trusted_schema = off")
        suspects = list(_bad_pages(copy))
        newer: set[int] = set()
        try:
            newer = _merge_log(connection, copy, audit)
        except (apsw.Error, UnicodeDecodeError) as error:
            audit.add_problem(None, f"{name} cannot be read as a database: {error}")
        # A crash may have torn a page while it was copied out of the log; there it is whole, by the log's own checksums.
        bad_pages = [page for page in suspects if page not in newer]
        _read_entries(connection, audit)
        _read_journal(connection, name, audit)
        tables = _tables_of_pages(connection) if bad_pages else {}
        for page in bad_pages:
            table = tables.get(page, "an unknown table")
            audit.add_problem(None, f"page {page} of {name} ({table}) does not match its checksum")
        _check_structure(connection, name, audit)
    finally:
        connection.close()


def _merge_log(connection: apsw.Connection, copy: Path, audit: rules.Audit) -> set[int]:
    """Put what the write-ahead log holds into the copied database; the pages concerned. Says if some of the log was left over."""
    log = copy.with_name(f"{copy.name}-wal")
    data = log.read_bytes() if log.exists() else b""
    connection.execute("select count(*) from sqlite_schema").fetchall()  # makes SQLite read the log
    used, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
    if used < 0 or len(data) < HEADER_BYTES:
        return set()
    frame_bytes = FRAME_HEADER_BYTES + int.from_bytes(data[8:12], "big")
    after_used = HEADER_BYTES + used * frame_bytes
    damage = describe_damage(data, used)
    if damage is not None:
        audit.add_problem(None, f"{log.name}: {damage}")
    # A frame of the log's present round that was not used: its commit was not completed, or a bit in it was flipped.
    elif data[after_used + 8 : after_used + 16] == data[16:24]:
        audit.add_note(
            None, f"{log.name} ends early, at frame {used + 1}: a crash cut a commit off, or the log was damaged there"
        )
    return {int.from_bytes(data[at : at + 4], "big") for at in range(HEADER_BYTES, after_used, frame_bytes)}


def _bad_pages(copy: Path) -> Iterator[int]:
    # `verify_checksum` comes with the checksumming VFS; a connection of its own knows nothing of the damaged file.
    checker = apsw.Connection(":memory:")
    apsw.sqlite_extra.load(checker, "cksumvfs")
    with copy.open("rb") as file, closing(checker):
        page_bytes = int.from_bytes(file.read(_HEADER_BYTES)[16:18], "big")
        page_bytes = _LARGEST_PAGE if page_bytes == 1 else page_bytes
        if page_bytes < _SMALLEST_PAGE or page_bytes & (page_bytes - 1):
            yield 1  # the size itself is damaged, and it stands in the first page
            return
        file.seek(0)
        number = 0
        while page := file.read(page_bytes):
            number += 1
            if len(page) < page_bytes or not checker.execute("select verify_checksum(?)", (page,)).get:
                yield number


def _tables_of_pages(connection: apsw.Connection) -> dict[int, str]:
    try:
        return {int(page): str(name) for page, name in connection.execute("select pageno, name from dbstat")}
    except (apsw.Error, UnicodeDecodeError):
        return {}  # the structure is damaged too; `_check_structure` says how


def _read_entries(connection: apsw.Connection, audit: rules.Audit) -> None:
    try:
        for row in connection.execute(_ENTRIES, (audit.position.seq,)):
            audit.feed([LogEntry._make(row)])
    except (apsw.Error, UnicodeDecodeError) as error:
        seq = audit.position.seq + 1
        audit.add_problem(seq, f"the record cannot be read from entry {seq} on: {error}")


def _read_journal(connection: apsw.Connection, name: str, audit: rules.Audit) -> None:
    """What was committed and is not in the tables yet."""
    try:
        if connection.execute("select count(*) from sqlite_schema where name = 'journal'").get:  # older files have none
            for changes in journal.read(connection):
                audit.feed(changes.log)
    except (apsw.Error, UnicodeDecodeError) as error:
        audit.add_problem(None, f"{name}: the journal cannot be read: {error}")


def _check_structure(connection: apsw.Connection, name: str, audit: rules.Audit) -> None:
    try:
        for (found,) in connection.execute("pragma integrity_check"):
            if found != "ok":
                audit.add_problem(None, f"{name}: {found}")
    except (apsw.Error, UnicodeDecodeError) as error:
        audit.add_problem(None, f"{name}: the structure cannot be checked: {error}")
