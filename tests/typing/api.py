"""What a type checker must make of the library; checked by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any, assert_type

import attrs

import ifbus
from ifbus.answers import ClaimEnd, CostEntry


@attrs.frozen
class Spec:
    """A holder's type."""

    prompt: str


def blocking(bus: ifbus.Client) -> None:
    """The blocking client."""
    assert_type(bus.create_task("x", estimate_usd="0.05"), ifbus.Task)
    assert_type(bus.claim_task("T-1", "me", timeout=1.0), ifbus.TaskClaim | ifbus.Refusal)
    assert_type(bus.get_budget_report(), tuple[ifbus.BudgetReport, ...])
    assert_type(bus.subscribe_inbox("me"), ifbus.Subscription[ifbus.InboxMessage])
    with bus.register("me", budget_usd=Decimal("5.00")) as swarm:
        assert_type(swarm, ifbus.Swarm)
        assert_type(swarm.tasks(), Iterator[ifbus.Claim[dict[str, Any]]])
        for task in swarm.tasks(Spec):
            with task:
                assert_type(task.spec, Spec)
                assert_type(task.progress(25), ifbus.Task)
                with task.spend("llm", estimate_usd="0.12") as cost:
                    assert_type(cost, ifbus.Spending)
                    assert_type(cost.settle(usd="0.09"), CostEntry)
                assert_type(task.execute("m.wasm", limits=ifbus.Limits(wall_ms=1)), ifbus.Execution)
                assert_type(task.complete(), ClaimEnd)
        claim = swarm.claim("T-1", Spec)
        if claim:
            assert_type(claim.spec, Spec)
        assert_type(swarm.take_up(Spec), tuple[ifbus.Claim[Spec], ...])


async def awaiting() -> None:
    """The asynchronous client: the same, awaited."""
    async with ifbus.AsyncClient() as bus, bus.register("me") as swarm:
        assert_type(await bus.create_task("x", estimate_usd=1), ifbus.Task)
        assert_type(await bus.subscribe_inbox("me"), ifbus.AsyncSubscription[ifbus.InboxMessage])
        assert_type(swarm, ifbus.AsyncSwarm)
        assert_type(swarm.inbox(), AsyncIterator[ifbus.InboxMessage])
        async for task in swarm.tasks(Spec, max_in_flight=4):
            async with task:
                assert_type(task.spec, Spec)
                async with task.spend("llm", estimate_usd="0.12") as cost:
                    assert_type(await cost.settle(model="small", usage={"input_tokens": 1}), CostEntry)
                assert_type(await task.complete({"words": 3}), ClaimEnd)
        assert_type(await bus.register("me"), ifbus.AsyncSwarm)


def mistakes(bus: ifbus.Client) -> None:
    """What must not pass: each ignore is needed, or mypy complains."""
    bus.create_task(1)  # type: ignore[arg-type]
    bus.create_task("x", estimate_usd=0.05)  # type: ignore[arg-type]
    bus.create_task("x", idempotency=1)  # type: ignore[call-arg]
    bus.get_task("T-1").title = "y"  # type: ignore[misc]
    ifbus.Task(task_id="T-1", title=1)  # type: ignore[arg-type]
