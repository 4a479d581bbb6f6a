"""A process that writes to an embedded store until it is killed, and says on its output what was acknowledged.

Called with the state directory and the number of its first write. Each line is a number whose write has returned.
"""

import os
import sys
from pathlib import Path

import trio

from ifbusd.store.base import Put, Txn
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.dirlock import lock_directory
from ifbusd.store.embedded import EmbeddedStore
from tests.conformance.backends import boottime_ms, wall_ms

WRITERS = 8


async def main(directory: Path, first: int) -> None:
    """Write with several tasks at once, so that batches have several transactions."""
    # A short write-ahead log: kills meet checkpoints too.
    config = EmbeddedConfig(checkpoint_wal_bytes=64 * 1024)
    store = EmbeddedStore(directory / "ifbusd.db", config=config, now_ms=wall_ms, boottime_ms=boottime_ms)

    async def write_for_ever(number: int) -> None:
        while True:
            name = b"%d" % number
            txn = Txn(then=[Put(f"k/{number}", name * 50), Put(f"last/{number % WRITERS}", name)], record=name)
            await store.txn(txn)
            os.write(1, name + b"\n")
            number += WRITERS

    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        for number in range(first, first + WRITERS):
            nursery.start_soon(write_for_ever, number)


if __name__ == "__main__":
    with lock_directory(Path(sys.argv[1])):
        trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
