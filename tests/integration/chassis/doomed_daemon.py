"""A daemon for `test_processes`: runs a chassis with spinning sandboxes until it is killed; prints their processes."""

import sys
from pathlib import Path

import trio

from ifbus.errors import IfbusError
from tests.integration.chassis.harness import Harness, running


async def spin(chassis: Harness, swarm: str) -> None:
    """Execute what never ends."""
    try:
        await chassis.run(swarm=swarm)
    except IfbusError as error:
        print(error, file=sys.stderr)


async def main(state_dir: Path) -> None:
    """Load, spin, and say so."""
    async with running(state_dir) as chassis, trio.open_nursery() as nursery:
        for swarm in "abc":
            await chassis.load("core", swarm=swarm, export="spin", wall_ms=60_000)
        await chassis.load("core", swarm="d", export="add")
        pids = [chassis.worker_pid(swarm) for swarm in "abcd"]
        for swarm in "abc":
            nursery.start_soon(spin, chassis, swarm)
        await trio.sleep(0.2)
        spare = await chassis.spare()
        print(chassis.chassis._supervisor.zygote_pid, spare.pid, *pids, flush=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
