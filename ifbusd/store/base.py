"""The store's interface: the small part of etcd v3 that ifbusd needs (DESIGN 4).

Keys are short strings with ``/`` between parts, values are bytes. Every successful transaction that writes has the next
*revision*, a number that only grows; all its writes share it. On etcd transactions that touch different keys may go out together
and then share one: a revision orders the changes of a key, it does not name one change. `embedded` implements this over SQLite,
`etcd` maps it one to one; one conformance suite in ``tests/conformance`` runs on both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple, Never, Protocol

from ifbus.errors import IfbusError

# Of an event that is no key's.
TOLD: Final = "told/"


class KeyValue(NamedTuple):
    """A key as it stands: created and last written at these revisions, gone when `lease` ends (0: not leased)."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


class Compare(NamedTuple):
    """True if the key was last written at `mod_revision`; 0 means that it does not exist."""

    key: str
    mod_revision: int


class Put(NamedTuple):
    """Write the key; it vanishes when `lease` ends, unless that is 0.

    Attributes:
        is_new: There is no such key, as the writer knows: the store need not look.
    """

    key: str
    value: bytes
    lease: int = 0
    is_new: bool = False


class Delete(NamedTuple):
    """Remove the key; no error if it is absent."""

    key: str


class Get(NamedTuple):
    """Read the key as the transaction sees it: in `then`, after the writes that stand before it in the list."""

    key: str


Op = Put | Delete | Get


class Txn(NamedTuple):
    """If all `compares` hold, do `then`, else `otherwise`; all or nothing.

    Attributes:
        record: One witness entry, committed with `then` and only with it (a lost compare is tried again by the caller and
            is no operation yet); None for none. A transaction with only a record is allowed and uses up no revision.
        told: Handed to watches of everything with the changes, and not stored; a store that other hosts share passes it over.
        decided: Called once this is decided and before it is durable, by a store that shows what is on its way (embedded). Says whether it
            has woken anybody: who writes at once is in the same commit. Must not raise.
        ends: It ends something, such as a claim: where the storage is full, a store that keeps space back gives it to these.
        deletes_suffice: Where the storage is full, a store that keeps no space back may do the deletes of `then` without its puts.
    """

    compares: Sequence[Compare] = ()
    then: Sequence[Op] = ()
    otherwise: Sequence[Op] = ()
    record: bytes | None = None
    ends: bool = False
    told: Sequence[Any] = ()
    deletes_suffice: bool = False
    decided: Callable[[], bool] | None = None


class LogHead(NamedTuple):
    """Where the witness log ended after an entry: its number (from 1) and the chain's SHA-256 up to it."""

    seq: int
    hash: bytes


class TxnResult(NamedTuple):
    """What a transaction did.

    Attributes:
        succeeded: Which branch was taken.
        revision: The store's revision after it (its own, if it wrote).
        values: One per `Get` of the taken branch, in order.
        head: The witness log after its record; where the log follows the store (etcd), as it was on the disk when this was done, without
            the record, and None while it is empty. None without a record or with a lost compare.
        is_partial: Only the deletes were done, and the record is in this host's log alone (`Txn.deletes_suffice`).
    """

    succeeded: bool
    revision: int
    values: tuple[KeyValue | None, ...] = ()
    head: LogHead | None = None
    is_partial: bool = False


class Page(NamedTuple):
    """A part of a range, in key order; `revision` says as of when, `has_more` that the range goes on after it."""

    revision: int
    items: list[KeyValue]
    has_more: bool


class WatchEvent(NamedTuple):
    """A key changed: `value` is None when it was deleted or its lease ended.

    Attributes:
        told: What the commit's transaction had for watches alone (`Txn.told`); then `key` is `TOLD`, and none has changed.
    """

    key: str
    value: KeyValue | None
    revision: int
    told: Sequence[Any] = ()


class LogEntry(NamedTuple):
    """One entry of the witness log as stored: `hash` covers the entry before it (`ifbusd.store.chain`)."""

    seq: int
    revision: int
    at_ms: int
    record: bytes
    hash: bytes


class LeaseNotFound(IfbusError):
    """The lease has ended or never was; its keys are gone. Never leaves the daemon: services turn it into `stale_token`."""


class NotAtHand(Exception):
    """A key whose value this process does not know at once; leaves no store: whoever peeks asks again with `get`."""


class Compacted(IfbusError):
    """The watch asks for revisions that are no longer kept: read everything, then watch from there."""


class Watch(Protocol):
    """A running watch: an async iterator over batches of events, one batch per commit, in order of revision."""

    def __aiter__(self) -> Watch:
        """Itself."""
        ...

    async def __anext__(self) -> list[WatchEvent]:
        """The next batch; events of one revision are never split.

        Raises:
            Compacted: The watcher was too slow for the bounded history, or started too far back. Read all, watch anew.
            Unavailable: The store has stopped, or does not answer.
        """
        ...

    async def feed(self, apply: Callable[[list[WatchEvent]], None]) -> Never:
        """Have each batch given to `apply`, a plain function, until cancelled: instead of iterating, for who only keeps a view.

        Raises:
            Compacted, Unavailable: As `__anext__`.
        """
        ...


class Store(Protocol):
    """Reads see everything that was committed or is about to be; writes are durable when the call returns.

    All methods raise `ifbus.errors.Unavailable` when the store does not answer. A transaction that raised may have been
    committed (unknown, FACTS 3): read back before another try. Cancelling a call leaves the same uncertainty.
    """

    @property
    def revision(self) -> int:
        """The newest revision that this side knows."""
        ...

    @property
    def told_revision(self) -> int:
        """The newest revision that watches have told or are about to tell, without another write.

        `revision` may be ahead of it: by what is being committed, or for good when that could not be.
        """
        ...

    async def get(self, key: str) -> KeyValue | None:
        """The key as it stands, None if absent. May be ahead of what is durable: see `barrier`."""
        ...

    def peek(self, key: str) -> KeyValue | None:
        """As `get`, at once, or not at all.

        Raises:
            NotAtHand: Only `get` can tell.
        """
        ...

    async def range(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        """The keys that start with `prefix` and sort after `after` (a full key, ``""`` for the first), in key order."""
        ...

    async def txn(self, txn: Txn) -> TxnResult:
        """Do a transaction; durable on return (embedded: fsync'ed in a group; etcd: committed)."""
        ...

    async def barrier(self) -> None:
        """Return once everything that this task has read so far is durable; at once if nothing is under way.

        A reply that tells what `get` saw is held back by it, so that nobody acts on what a power cut could undo.
        """
        ...

    def tell(self) -> None:
        """Have feeds told of what is durable now, not in a moment: for news that others wait for more than its author for his answer."""
        ...

    async def sync(self) -> None:
        """Return once this side has seen everything that was committed before the call, by whomever (embedded: `barrier`).

        What is read afterwards is as new as if the store itself had been asked.
        """
        ...

    def watch(self, prefix: str, *, start_revision: int | None = None) -> AbstractAsyncContextManager[Watch]:
        """Watch the keys that start with `prefix`, from `start_revision` on, or from now. Only durable changes are told."""
        ...

    async def grant(self, ttl_ms: int, *, ends: bool = False) -> int:
        """A new lease id; the lease ends `ttl_ms` after its last renewal, counting only time the store observed.

        Args:
            ends: For a transaction that ends something (`Txn.ends`).
        """
        ...

    async def keep_alive(self, lease: int) -> int:
        """Renew the lease; its full time in ms.

        Raises:
            LeaseNotFound: It has ended.
        """
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease now; its keys vanish in one revision. No error if it has ended already."""
        ...

    async def lease_left_ms(self, lease: int) -> int | None:
        """Time until the lease ends unless renewed, None if it has ended."""
        ...

    async def log_head(self) -> LogHead:
        """Where the witness log ends; number 0 and 32 zero bytes when it is empty."""
        ...

    async def read_log(self, *, after_seq: int = 0, limit: int = 1000) -> list[LogEntry]:
        """Witness entries after number `after_seq`, in order."""
        ...
