"""The journal: where a small commit costs one page, until the tables take many such commits together (ADR 0021).

Each row of a claim stands on another page, of a table or an index, and a commit writes each of these pages whole. So a commit
of few rows writes all of them packed, as one *entry*, into one row that has a page to itself, and is durable with it. When the
slots are used up the tables take all entries in one transaction (*folding*), what was written several times only once; `folded`
in the table `state` says how far they have come. All of it is the same file and the same write-ahead log, and each
transaction is synced before the next one begins, so nothing rests on a guarantee that is not SQLite's own.
"""

from __future__ import annotations

from typing import Any, Final

import apsw
import msgpack

from ifbusd.store.base import KeyValue, LogEntry
from ifbusd.store.changes import Changes

# More entries fold at less cost each; these take some 0.5 ms, for which everybody waits.
SLOTS: Final = 32
# The same for entries of several transactions each.
_MAX_ROWS: Final = 128
# What leaves a page of 4 KiB to one row, without another for the rest of it.
_MAX_ENTRY_BYTES: Final = 4000

# Made with its largest content each row gets a page of its own, which it keeps when it is written over.
SCHEMA: Final = f"""
create table journal (slot integer primary key, number integer not null, entry blob not null) strict;
with recursive slots (slot) as (values (0) union all select slot + 1 from slots where slot < {SLOTS - 1})
insert into journal select slot, 0, zeroblob({_MAX_ENTRY_BYTES}) from slots;
"""
_APPEND: Final = "update journal set number = ?, entry = ? where slot = ?"
_WAITING: Final = "select number, folded, entry from journal join state on number > folded order by number"
_FOLDED: Final = "update state set folded = ?"


class Journal:
    """The journal of an open store. The mutable state is what waits in it, and the number of the newest entry.

    Writing is in two steps: in the transaction, and when that has been committed. One that is rolled back changes nothing here.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        """Of a database in whose journal nothing waits (`fold_all`)."""
        self._connection = connection
        self._number: int = connection.execute("select folded from state").get
        self._used = 0
        self.waiting = Changes()

    def __len__(self) -> int:
        """Entries that wait."""
        return self._used

    @property
    def is_full(self) -> bool:
        """Whether it is time to fold."""
        return self._used == SLOTS or self.waiting.rows >= _MAX_ROWS

    def pack(self, changes: Changes) -> bytes | None:
        """The entry for these, or None if they are to be folded at once."""
        if self.is_full or changes.size_bytes > _MAX_ENTRY_BYTES or changes.rows > _MAX_ROWS:
            return None
        entry = msgpack.packb((changes.revision, changes.writes, changes.log, changes.granted, changes.ended))
        return entry if len(entry) <= _MAX_ENTRY_BYTES else None

    def append(self, entry: bytes) -> None:
        """Write an entry, in the transaction that is open."""
        self._connection.execute(_APPEND, (self._number + 1, entry, self._used))

    def appended(self, changes: Changes) -> None:
        """These are on the disk, as the newest entry."""
        self._number += 1
        self._used += 1
        self.waiting.add(changes)

    def fold(self, changes: Changes) -> Changes:
        """Have the tables take all that waits and then these, in the transaction that is open; what they take."""
        if not self._used:
            changes.write(self._connection)
            return changes
        whole = Changes()
        whole.add(self.waiting)
        whole.add(changes)
        whole.write(self._connection)
        self._connection.execute(_FOLDED, (self._number,))
        return whole

    def folded(self) -> None:
        """The tables have taken everything, on the disk."""
        self._used = 0
        self.waiting = Changes()


def read(connection: apsw.Connection) -> list[Changes]:
    """What waits in the journal of a database that a store left, in order.

    Raises:
        apsw.Error: It cannot be read.
    """
    rows: list[Any] = connection.execute(_WAITING).fetchall()
    if [number - folded for number, folded, _ in rows] != list(range(1, len(rows) + 1)):
        raise apsw.CorruptError("entries of the journal are missing")
    try:
        return [_unpack(entry) for _, _, entry in rows]
    except (ValueError, TypeError) as error:
        raise apsw.CorruptError(f"an entry of the journal cannot be read: {error}") from error


def _unpack(entry: bytes) -> Changes:
    revision, writes, log, granted, ended = msgpack.unpackb(entry, use_list=False)
    return Changes(
        revision,
        {key: None if found is None else KeyValue(*found) for key, found in writes.items()},
        [LogEntry(*found) for found in log],
        list(granted),
        list(ended),
    )


def fold_all(connection: apsw.Connection) -> None:
    """Have the tables take what waits in the journal, as it is on the disk: where no store is at work on it.

    Raises:
        apsw.Error: It cannot be read, or there is no space; nothing was changed.
    """
    waiting = read(connection)
    if not waiting:
        return
    whole = Changes()
    for changes in waiting:
        whole.add(changes)
    with connection:
        whole.write(connection)
        connection.execute("update state set folded = folded + ?", (len(waiting),))
