"""A real chassis over a real store in a temporary directory, and short ways to load and run the guests of tests/guests."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import trio

from ifbus.errors import BreakerTripped, NotFound, PermissionDenied, StaleToken
from ifbusd.bus.local import LocalBus
from ifbusd.chassis.blobs import MAX_CHUNK_BYTES
from ifbusd.chassis.model import ChassisConfig
from ifbusd.chassis.processes import Worker
from ifbusd.chassis.service import IFChassis
from ifbusd.identity import Caller, Peer
from ifbusd.later import Later
from ifbusd.operation import Operations, Tx
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore

GUESTS = Path(__file__).parents[2] / "guests"
OWNER_UID = 1000
STRANGER_UID = 1001


def caller(uid: int = OWNER_UID, *, is_operator: bool = False, key: str | None = None, body: bytes = b"") -> Caller:
    """A caller as the daemon's socket would make it."""
    peer = Peer(uid=uid, gid=uid, pid=1, is_operator=is_operator)
    return Caller(peer=peer, idempotency_key=key, body_hash=body)


class Directory:
    """Owners and claims as tables: swarms `a` to `d` are the owner's, `x` is the stranger's, task T-1 is held by `a` @ 7."""

    def require_owner(self, tx: Tx, caller: Caller, swarm_id: str) -> None:
        """See `interface.SwarmDirectory`."""
        owners = dict.fromkeys("abcd", OWNER_UID) | {"x": STRANGER_UID}
        if swarm_id not in owners:
            raise NotFound(f"no swarm {swarm_id}")
        if owners[swarm_id] != caller.uid:
            raise PermissionDenied(f"{swarm_id} is another's")

    def require_running(self, tx: Tx, swarm_id: str) -> None:
        """See `interface.SwarmDirectory`: a swarm is stopped while the store has a ``tripped/`` record of it."""
        if tx.get(f"tripped/{swarm_id}") is not None:
            raise BreakerTripped(f"{swarm_id} is stopped")

    def require_holder(self, tx: Tx, task_id: str, swarm_id: str, token: int) -> None:
        """See `interface.ClaimDirectory`."""
        if (task_id, swarm_id, token) != ("T-1", "a", 7):
            raise StaleToken("that claim has ended")


class Harness:
    """The chassis and what tests do with it all the time."""

    def __init__(self, chassis: IFChassis, store: EmbeddedStore, state_dir: Path) -> None:
        self.chassis = chassis
        self.store = store
        self.state_dir = state_dir

    async def upload(self, module: bytes, who: Caller | None = None) -> str:
        """Put a module's bytes; their SHA-256."""
        sha256 = hashlib.sha256(module).hexdigest()
        at = 0
        while True:
            chunk = module[at : at + MAX_CHUNK_BYTES]
            answer = await self.chassis.put_blob(who or caller(), sha256, at, chunk, len(module))
            at = answer["received_bytes"]
            if answer["complete"]:
                return sha256

    async def load(
        self, module: str | bytes, *, swarm: str = "a", who: Caller | None = None, **contract: Any
    ) -> dict[str, Any]:
        """Upload and load a module; a string names one of tests/guests. Keywords of limits go into the limits."""
        data = (GUESTS / f"{module}.wasm").read_bytes() if isinstance(module, str) else module
        limits = {name: contract.pop(name) for name in list(contract) if name in _LIMITS}
        sha256 = await self.upload(data, who)
        return await self.chassis.load_swarm(
            who or caller(), swarm, {"module_sha256": sha256, "limits": limits, **contract}
        )

    async def run(self, *args: float, swarm: str = "a", **options: Any) -> Any:
        """The output of a core module's execution."""
        return (await self.execute({"args": list(args)}, swarm=swarm, **options))["output"]

    async def execute(
        self, input: Any, *, swarm: str = "a", who: Caller | None = None, **options: Any
    ) -> dict[str, Any]:
        """The answer of an execution."""
        answer = await self.chassis.execute_task(who or caller(), swarm, input, **options)
        if isinstance(answer, Later):
            return cast("dict[str, Any]", await answer.finish())
        return answer

    def worker_pid(self, swarm: str = "a") -> int:
        """Process id of the swarm's only worker."""
        sandboxes = self.chassis._sandboxes.values()
        (pid,) = [s._ready.worker.pid for s in sandboxes if s.swarm_id == swarm and s._ready is not None]
        return pid

    async def spare(self) -> Worker:
        """The worker that is ready for the next sandbox, once there is one; there is after the first sandbox."""
        supervisor = self.chassis._supervisor
        await wait_for(lambda: supervisor._spare is not None)
        assert supervisor._spare is not None
        return supervisor._spare


_LIMITS = {"memory_bytes", "wall_ms", "cpu_percent", "calls_per_s", "output_bytes"}


@asynccontextmanager
async def running(state_dir: Path, config: ChassisConfig | None = None) -> AsyncIterator[Harness]:
    """Run store and chassis in a directory."""
    state_dir.mkdir(mode=0o700, exist_ok=True)
    store = EmbeddedStore(state_dir / "ifbusd.db", config=EmbeddedConfig(), now_ms=_wall_ms, boottime_ms=_boottime_ms)
    directory = Directory()
    chassis = IFChassis(
        config or ChassisConfig(),
        state_dir,
        store=store,
        operations=Operations(store, LocalBus(), now_ms=_wall_ms),
        swarms=directory,
        claims=directory,
        now_ms=_wall_ms,
    )
    async with trio.open_nursery() as outer:
        await outer.start(store.run)
        async with trio.open_nursery() as nursery:
            await nursery.start(chassis.run)
            yield Harness(chassis, store, state_dir)
            nursery.cancel_scope.cancel()
        outer.cancel_scope.cancel()


async def wait_for(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Return once `condition` holds; fail after a time that only a broken program needs."""
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.005)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _boottime_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
