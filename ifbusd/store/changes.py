"""What a commit writes to the tables of the embedded store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from ifbusd.store.base import KeyValue, LogEntry

if TYPE_CHECKING:
    import apsw

# In place where the key exists: the row, but neither its place nor the index on the key changes.
_PUT: Final = (
    "insert into kv (key, value, create_revision, mod_revision, lease) values (?, ?, ?, ?, ?) on conflict (key) do update"
    " set value = excluded.value, create_revision = excluded.create_revision, mod_revision = excluded.mod_revision,"
    " lease = excluded.lease"
)
_DELETE: Final = "delete from kv where key = ?"
_GRANT: Final = "insert into lease (id, ttl_ms) values (?, ?)"
_END: Final = "delete from lease where id = ?"
_APPEND: Final = "insert into log (seq, revision, at_ms, record, hash) values (?, ?, ?, ?, ?)"


@attrs.define(eq=False)
class Changes:
    """Of one transaction or of many in a row: the last value of each key counts.

    Attributes:
        revision: The newest.
        writes: By key; None deletes it.
        granted: Leases, with their time in ms. `ended`: leases that are over.
        size_bytes: Of the values and records that were given.
    """

    revision: int = 0
    writes: dict[str, KeyValue | None] = attrs.Factory(dict)
    log: list[LogEntry] = attrs.Factory(list)
    granted: list[tuple[int, int]] = attrs.Factory(list)
    ended: list[tuple[int]] = attrs.Factory(list)
    size_bytes: int = 0

    @property
    def rows(self) -> int:
        """How many there are to write, about."""
        return len(self.writes) + len(self.log) + len(self.granted) + len(self.ended)

    def add(self, later: Changes) -> None:
        """Have what came after these too."""
        self.revision = later.revision
        self.writes.update(later.writes)
        self.log += later.log
        self.granted += later.granted
        self.ended += later.ended
        self.size_bytes += later.size_bytes

    def write(self, connection: apsw.Connection) -> None:
        """Hand them over to SQLite, in the transaction that is open."""
        many = connection.executemany
        written = [found for found in self.writes.values() if found is not None]
        if written:
            many(_PUT, written)
        if len(written) < len(self.writes):
            many(_DELETE, [(key,) for key, found in self.writes.items() if found is None])
        if self.log:
            many(_APPEND, self.log)
        if self.granted:
            many(_GRANT, self.granted)
        if self.ended:
            many(_END, self.ended)
        if not self.log or self.log[-1].revision < self.revision:  # else the log says it: a page less to write
            connection.execute("update state set revision = ?", (self.revision,))
