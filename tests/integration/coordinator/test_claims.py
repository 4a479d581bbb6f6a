"""Claims against the real store: one owner, the fence, what ends a claim, and what a refusal says."""

import pytest
import trio

from ifbus.errors import NotReady, StaleToken
from tests.integration.coordinator.world import World


async def test_a_claim_gives_a_token_and_the_task(world: World) -> None:
    """A claim answers with task, lease, reservation and the revision that fences it."""
    await world.swarm("docs", "docs:writing", budget=1_000_000)
    await world.task("T-1", "docs:writing", estimate_usd=50_000)
    answer = await world.it.claim_task(world.me, "T-1", "docs")
    claim = answer["claim"]
    assert answer["claimed"] is True
    assert claim["token"] == answer["receipt"]["revision"] == claim["task"]["token"]
    assert (claim["reserved_usd"], claim["lease_ms"], claim["bound_to"]) == ("0.05", 30_000, "session")
    assert (await world.show("T-1"))["holder"] == "docs"
    assert (await world.account("docs")).reserved == 50_000
