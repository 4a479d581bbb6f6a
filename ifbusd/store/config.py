"""Settings of the store, each with its unit and the reason for its default; those of etcd are in `etcd/config.py`."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs.validators import ge, in_

from ifbusd.store.etcd.config import EtcdConfig


@attrs.frozen(kw_only=True)
class EmbeddedConfig:
    """How the embedded store commits, and the bounds on what it keeps in memory.

    Attributes:
        flush: Where a commit waits for the disk: in the loop (`inline`: fastest on a fast disk, but everybody waits), in
            a thread (0.1 ms more each, nobody but the store's callers waits), or by measurement (`auto`; ADR 0001).
        inline_limit_us: `auto` commits in the loop while that takes no longer than this. 1 ms is the round trip that
            the daemon promises to calls that need no disk.
        checkpoint_wal_bytes: The write-ahead log is copied into the database when it is larger: larger means fewer but
            longer pauses of the store (some 4 ms for 4 MiB) and a slower recovery.
        reserve_bytes: Space that is kept back in a file beside the database. When the storage is full it is given up to
            what ends something (releases, completions, expiries, breaker trips), while all else is refused until there
            is room for it again. The default takes a full write-ahead log and some ten thousand releases.
        cache_bytes: Pages that SQLite keeps in memory.
        max_batch_txns: Transactions that one commit takes; more wait for the next. Bounds what one failed commit hits.
        max_batch_bytes: The same for the sum of their values and records.
        history_events: Changes kept for watchers; one that is further behind gets `Compacted`.
        history_bytes: The same for the sum of their values.
        max_leases: Leases alive at once; more are refused (`Overloaded`). Each is about 300 bytes.
        lease_tick_ms: How often leases are looked at. They end this much late at most, and at most twice this much time
            counts per look, however long the daemon was held up (ADR 0003).
    """

    flush: Literal["auto", "inline", "thread"] = attrs.field(
        default="auto", validator=in_(("auto", "inline", "thread"))
    )
    inline_limit_us: int = attrs.field(default=1000, validator=ge(1))
    checkpoint_wal_bytes: int = attrs.field(default=4 * 1024 * 1024, validator=ge(64 * 1024))
    reserve_bytes: int = attrs.field(default=8 * 1024 * 1024, validator=ge(64 * 1024))
    cache_bytes: int = attrs.field(default=8 * 1024 * 1024, validator=ge(256 * 1024))
    max_batch_txns: int = attrs.field(default=1024, validator=ge(1))
    max_batch_bytes: int = attrs.field(default=4 * 1024 * 1024, validator=ge(1))
    history_events: int = attrs.field(default=8192, validator=ge(1))
    history_bytes: int = attrs.field(default=4 * 1024 * 1024, validator=ge(1))
    max_leases: int = attrs.field(default=65536, validator=ge(1))
    lease_tick_ms: int = attrs.field(default=100, validator=ge(1))


@attrs.frozen(kw_only=True)
class StoreConfig(EmbeddedConfig):
    """Where everything is kept. Apart from `backend`, this section is about the embedded store; etcd has the next one.

    Attributes:
        backend: `embedded` is a file on this host, for this host; `etcd` is a cluster's, for all hosts that use it. A state
            directory serves one of them.
        etcd: Where etcd is, and how to talk to it.
    """

    backend: Literal["embedded", "etcd"] = attrs.field(default="embedded", validator=in_(("embedded", "etcd")))
    etcd: EtcdConfig = attrs.field(factory=EtcdConfig)
