"""What another host wrote and nobody can read is left out: it neither ends the daemon nor keeps anything from the others (THREATS T6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from ifbusd.codec import pack
from ifbusd.coordinator.model import BlockerRecord, ClaimRecord, MessageRecord, SessionRecord, TaskRecord
from ifbusd.governor.model import Account, Hold, Profile
from ifbusd.store.base import Put, Txn
from tests.integration.coordinator.world import World, open_world, wall_ms

CLAIM = ClaimRecord(swarm_id="odd", incarnation=1, uid=1, lease_ms=30_000, claimed_at_ms=1, own_lease=True).to_map()
SESSION = SessionRecord(incarnation=1, uid=1, lease_ms=30_000, token_hash=b"").to_map()
PROFILE = Profile(swarm_id="odd", uid=1, gid=1).to_stored()
ACCOUNT = Account(limit=5, holds={"odd": Hold("odd", 5, "claim")}).to_stored()
ODD: list[tuple[str, Any]] = [
    ("tasks/odd", {**TaskRecord(n=1, title="x").to_map(), "state": "completed", "ended_at_ms": []}),
    ("tasks/odd", {**TaskRecord(n=1, title="x").to_map(), "capabilities": [5]}),
    ("claims/odd", {**CLAIM, "swarm_id": ["x"]}),
    ("claims/odd", {**CLAIM, "incarnation": "x"}),
    ("claims/odd", {**CLAIM, "lease_ms": None}),
    ("claims/odd", {**CLAIM, "evidence_micro_usd": "x"}),
    ("claims/odd", {**CLAIM, "bound": {"kind": "process", "id": 5}}),
    ("sessions/odd", {**SESSION, "lease_ms": {}}),
    ("inbox/other/odd", {**MessageRecord(kind="task", body={}).to_map(), "at_ms": "x"}),
    ("blockers/odd", {**BlockerRecord(swarm_id="odd", reason="x", uid=1).to_map(), "due_at_ms": b"x"}),
    ("begun/odd/x", 1),
    ("held/odd", {"resource": 5, "swarm_id": 5}),
    ("swarms/odd", {"uid": 1}),
    ("swarms/odd", {**PROFILE, "pause": {"until_at_ms": "x"}}),
    ("accounts/other", {}),
    ("accounts/odd", {**ACCOUNT, "holds": {"odd": [[], 5, "claim"]}}),
    ("tripped/odd", [1]),
]


@pytest.mark.parametrize(("key", "value"), ODD)
async def test_a_record_that_cannot_be_read_keeps_nobody_from_anything(
    autojump_clock: MockClock, tmp_path: Path, key: str, value: Any
) -> None:
    """Written while the daemon runs, and found by the next one at its start."""

    async def go_on(world: World, name: str) -> None:
        await world.swarm(name, lease_ms=1_000)
        await world.task(name, deadline_at_ms=wall_ms() + 60_000)
        await world.token(name, name)
        await world.it.drain_host(world.caller(0), grace_ms=0)
        await world.it.drain_host(world.caller(0), off=True)
        await world.governor.list_swarms(world.me)
        await world.governor.list_breakers(world.me, tripped_only=True)
        await world.it.list_tasks(world.me)
        await world.until_state(name, "expired")

    async with open_world(tmp_path) as world:
        await world.swarm("other", lease_ms=24 * 3_600_000)
        await world.swarm("odd", lease_ms=24 * 3_600_000)
        lease = await world.store.grant(24 * 3_600_000) if key.startswith("claims/") else 0
        await world.store.txn(Txn(then=[Put(key, pack(value), lease)]))
        await trio.sleep(5)
        await go_on(world, "first")
    async with open_world(tmp_path) as world:
        await go_on(world, "second")
