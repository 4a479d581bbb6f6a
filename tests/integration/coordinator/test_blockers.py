"""Blockers: heard by those who decide and those who can help; the task waits if it was given back."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ifbus.errors import InvalidParams, LimitExceeded, NotFound, NotReady, PermissionDenied
from ifbus.models import BlockerAlert
from ifbusd.coordinator.blockers import _LETTERS
from ifbusd.coordinator.model import CoordinatorConfig
from ifbusd.governor.model import Policy
from tests.integration.coordinator.world import STRANGER, World, open_world


async def test_a_blocker_is_heard(world: World) -> None:
    """Orchestrators get a letter, the best qualified swarms a call for help, operators an escalation; the claim goes on."""
    told = []
    world.bus.subscribe("escalations", lambda _, message: told.append(message["kind"]))
    await world.swarm("boss", orchestrator=True)
    await world.swarm("gpu", "gpu:cuda")
    await world.swarm("docs", budget=1_000)
    await world.task("T-1", estimate_usd=10)
    token = await world.token("T-1", "docs")
    answer = await world.it.detect_blocker(
        world.me,
        "docs",
        {"reason": "no GPU", "task_id": "T-1", "token": token, "severity": "high", "needs": ["gpu:cuda"]},
    )
    alert = BlockerAlert.from_wire(answer["blocker"])
    assert (alert.swarm_id, alert.task_id, alert.token, alert.helpers) == ("docs", "T-1", token, ("gpu",))
    assert [(letter["kind"], letter["urgent"]) for letter in await world.inbox("boss")] == [("blocker", True)]
    assert [(letter["kind"], letter["sender"]) for letter in await world.inbox("gpu")] == [("help", "docs")]
    assert told == ["blocker"]
    assert (await world.it.list_blockers(world.me))["blockers"] == [answer["blocker"]]
    assert (await world.show("T-1"))["state"] == "claimed"
    await world.it.complete_task(world.me, "T-1", "docs", token)


async def test_a_task_given_back_waits_for_its_blocker(world: World) -> None:
    """Released with the report, it is blocked, its money is back; resolved, it is ready and whoever waits gets it."""
    await world.swarm("docs", budget=1_000)
    await world.task("T-1", estimate_usd=10)
    token = await world.token("T-1", "docs", lease_ms=3_600_000)
    await world.it.report_progress(world.me, "T-1", "docs", token, 30)
    answer = await world.it.detect_blocker(
        world.me, "docs", {"reason": "no key", "task_id": "T-1", "token": token, "release": True}
    )
    blocker_id = answer["blocker"]["blocker_id"]
    task = await world.show("T-1")
    assert (task["state"], task["blocker_id"], task["percent"], task["note"]) == ("blocked", blocker_id, 30, "no key")
    assert (await world.account("docs")).reserved == 0
    with pytest.raises(NotReady) as blocked:
        await world.it.claim_task(world.me, "T-1", "docs")
    assert blocked.value.data["blocker_id"] == blocker_id
    assert blocked.value.would_change
    with pytest.raises(NotReady):
        await world.it.push_task_to_swarm(world.me, "T-1", "docs")
    assert not (await world.it.claim_next(world.me, "docs"))["claimed"]
    await world.it.resolve_blocker(world.me, blocker_id, swarm_id="docs", note="here it is")
    task = await world.show("T-1")
    assert (task["state"], task["note"]) == ("ready", "here it is")
    assert (await world.inbox("docs"))[0]["body"]["resolved"] is True
    assert (await world.it.list_blockers(world.me))["blockers"] == []
    await world.token("T-1", "docs")


async def test_resolving_is_for_those_concerned(world: World) -> None:
    """A stranger is refused with who may, an orchestrator among them; a helper, the user and an operator may, once."""
    await world.swarm("docs")
    await world.swarm("gpu", "gpu:cuda", uid=2001)
    await world.swarm("boss", uid=2002, orchestrator=True)
    await world.swarm("own-boss", orchestrator=True)
    for caller, swarm_id in ((world.caller(2001), "gpu"), (world.me, "own-boss"), (world.caller(0), "")):
        answer = await world.it.detect_blocker(world.me, "docs", {"reason": "stuck", "needs": ["gpu:cuda"]})
        blocker_id = answer["blocker"]["blocker_id"]
        with pytest.raises(PermissionDenied) as refused:
            await world.it.resolve_blocker(world.caller(STRANGER), blocker_id)
        assert set(refused.value.data["may"]) == {"docs", "gpu"}
        with pytest.raises(PermissionDenied):  # anybody can call itself an orchestrator
            await world.it.resolve_blocker(world.caller(2002), blocker_id, swarm_id="boss")
        with pytest.raises(PermissionDenied):
            await world.it.resolve_blocker(world.caller(STRANGER), blocker_id, swarm_id="gpu")
        await world.it.resolve_blocker(caller, blocker_id, swarm_id=swarm_id)
        with pytest.raises(NotFound):
            await world.it.resolve_blocker(caller, blocker_id, swarm_id=swarm_id)


@pytest.mark.parametrize("blocker_id", ["", "x" * 1000, "B-1/../x", "\0"])
async def test_what_cannot_be_a_blocker_is_refused(world: World, blocker_id: str) -> None:
    """A name that no blocker has, however long, never becomes a key of the store."""
    with pytest.raises(InvalidParams):
        await world.it.resolve_blocker(world.me, blocker_id)


async def test_a_blocker_of_a_task_that_moved_on_changes_nothing_of_it(world: World) -> None:
    """Resolved after its task was completed, the task stays as it is."""
    await world.swarm("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    answer = await world.it.detect_blocker(world.me, "docs", {"reason": "stuck", "task_id": "T-1", "token": token})
    await world.it.complete_task(world.me, "T-1", "docs", token, result=1)
    before = await world.show("T-1")
    await world.it.resolve_blocker(world.me, answer["blocker"]["blocker_id"], swarm_id="docs", note="late")
    assert await world.show("T-1") == before


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"reason": ""},
        {"reason": 1},
        {"reason": "x", "severity": "huge"},
        {"reason": "x", "needs": "gpu:cuda"},
        {"reason": "x", "needs": ["gpu"]},
        {"reason": "x", "token": True},
        {"reason": "x", "release": 1},
        {"reason": "x", "token": 5},
        {"reason": "x", "release": True},
        {"reason": "x", "unknown": 1},
        {"reason": "x" * 5000},
        {"reason": "x", "task_id": "../T-1", "token": 1},
    ],
)
async def test_a_report_that_makes_no_sense_is_refused(world: World, info: dict[str, object]) -> None:
    """The refusal names the field."""
    await world.swarm("docs")
    with pytest.raises(InvalidParams):
        await world.it.detect_blocker(world.me, "docs", info)
    assert world.it.statistics().blockers == 0


async def test_blockers_are_bounded_however_many_listen(tmp_path: object) -> None:
    """Open blockers have a limit with figures, and many orchestrators or full inboxes do not keep a report from being made."""
    config = CoordinatorConfig(blockers=3, inbox_messages=2)
    async with open_world(tmp_path, config=config) as world:  # type: ignore[arg-type]
        for n in range(_LETTERS + 10):
            await world.swarm(f"boss{n:03d}", orchestrator=True)
        await world.swarm("docs")
        full: list[str] = []
        for n in range(3):
            answer = await world.it.detect_blocker(world.me, "docs", {"reason": f"r{n}"})
            full = answer["full_inboxes"]
        assert len(full) == _LETTERS
        with pytest.raises(LimitExceeded) as refused:
            await world.it.detect_blocker(world.me, "docs", {"reason": "one more"})
        assert refused.value.data.items() >= {"limit": "blockers", "used": 3, "allowed": 3}.items()
        assert refused.value.would_change
        assert (await world.outcomes("detect_blocker"))[-1] == "limit_exceeded"


async def test_a_blocker_is_reported_however_many_are_to_hear_of_it(tmp_path: Path) -> None:
    """The call for help and the word to orchestrators fit into one commit; those that are to help are heard first."""
    async with open_world(tmp_path, policy=Policy(max_swarms_per_task=100)) as world:
        for n in range(_LETTERS - 10):
            await world.profile(f"helper{n:03d}", "gpu:cuda")
            await world.swarm(f"boss{n:03d}", orchestrator=True)
        await world.swarm("docs")
        answer = await world.it.detect_blocker(world.me, "docs", {"reason": "no GPU", "needs": ["gpu:cuda"]})
        assert len(answer["blocker"]["helpers"]) == _LETTERS - 10
        assert [await world.inbox(name) for name in answer["blocker"]["helpers"]].count([]) == 0
        assert world.it.statistics().letters == _LETTERS


def escalations_told(world: World) -> list[tuple[str, str]]:
    """What operators of this daemon hear from now on: kind and blocker."""
    told: list[tuple[str, str]] = []
    world.bus.subscribe("escalations", lambda _, message: told.append((message["kind"], message["blocker_id"])))
    return told


async def report(world: World, swarm_id: str = "docs", **info: object) -> str:
    """The id of a new blocker."""
    answer = await world.it.detect_blocker(world.me, swarm_id, {"reason": "stuck", **info})
    blocker_id: str = answer["blocker"]["blocker_id"]
    return blocker_id


async def test_what_nobody_resolves_is_brought_before_people(tmp_path: Path, autojump_clock: MockClock) -> None:
    """After the time of its severity, once; what was resolved in time is not."""
    config = CoordinatorConfig(escalate_low_ms=50_000, escalate_medium_ms=20_000, escalate_high_ms=5_000)
    async with open_world(tmp_path, config=config) as world:
        await world.swarm("docs", lease_ms=3_600_000)
        told = escalations_told(world)
        now, high, medium, resolved, low = [
            await report(world, severity=severity) for severity in ("critical", "high", "medium", "medium", "low")
        ]
        await trio.sleep(1)
        assert [blocker_id for kind, blocker_id in told if kind == "blocker_escalated"] == [now]
        await trio.sleep(5)
        await world.it.resolve_blocker(world.me, resolved)
        await trio.sleep(60)
        escalated = [blocker_id for kind, blocker_id in told if kind == "blocker_escalated"]
        assert escalated == [now, high, medium, low]
        listed = (await world.it.list_blockers(world.me))["blockers"]
        assert all(blocker["escalated_at_ms"] for blocker in listed)
        assert await world.outcomes("escalate_blocker") == ["ok"] * 4


async def test_an_escalation_survives_a_restart(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Due while nobody was there, it comes right after the start; told before it, it is not told again."""
    config = CoordinatorConfig(escalate_high_ms=5_000, escalate_low_ms=20_000)
    async with open_world(tmp_path, config=config) as world:
        await world.swarm("docs", lease_ms=3_600_000)
        first = await report(world, severity="high")
        second = await report(world, severity="low")
        await trio.sleep(10)
        assert await world.outcomes("escalate_blocker") == ["ok"]
    await trio.sleep(60)
    async with open_world(tmp_path, config=config) as world:
        with trio.fail_after(5):
            while len(await world.outcomes("escalate_blocker")) < 2:
                await trio.sleep(0.01)
        await trio.sleep(120)
        targets = [entry["target"] for entry in await world.record() if entry["op"] == "coordinator.escalate_blocker"]
        assert targets == [first, second]


async def test_two_daemons_escalate_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Both see that it is due; it is told and recorded once."""
    config = CoordinatorConfig(escalate_high_ms=5_000)
    async with (
        open_world(tmp_path, config=config, host="a") as one,
        open_world(tmp_path, config=config, host="b", beside=one) as other,
    ):
        await one.swarm("docs", lease_ms=3_600_000)
        for number in range(20):
            await report(one if number % 2 else other, severity="high")
        await trio.sleep(60)
        assert await one.outcomes("escalate_blocker") == ["ok"] * 20


async def test_a_task_has_so_many_helpers_at_a_time(tmp_path: Path) -> None:
    """However many blockers are reported at once for one task, the policy's number of swarms is called, each once; resolving makes room."""
    async with open_world(tmp_path, policy=Policy(max_swarms_per_task=4)) as world:
        await world.swarm("docs")
        for number in range(12):
            await world.swarm(f"gpu-{number}", "gpu:cuda")
        await world.task("T-1")
        await world.task("T-2")
        token, other = await world.token("T-1", "docs"), await world.token("T-2", "docs")
        blockers: list[str] = []

        async def one(task_id: str, token: int) -> None:
            blockers.append(await report(world, task_id=task_id, token=token, needs=["gpu:cuda"]))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(one, "T-1", token)
            nursery.start_soon(one, "T-2", other)

        async def helpers_of(task_id: str) -> list[str]:
            listed = (await world.it.list_blockers(world.me))["blockers"]
            return [name for blocker in listed if blocker["task_id"] == task_id for name in blocker["helpers"]]

        helpers = await helpers_of("T-1")
        assert len(helpers) == len(set(helpers)) == 4
        assert len(await helpers_of("T-2")) == 4
        for blocker_id in blockers:
            await world.it.resolve_blocker(world.me, blocker_id)
        assert not [key for key in await world.stored() if key.startswith("helpers/")]
        await one("T-1", token)
        assert len(await helpers_of("T-1")) == 4


async def test_a_blocker_outlives_its_task(world: World, autojump_clock: object) -> None:
    """Its task has ended and was removed: it can be resolved all the same."""
    await world.swarm("docs", lease_ms=24 * 3_600_000)
    await world.task("T-1", retention_ms=0)
    token = await world.token("T-1", "docs")
    answer = await world.it.detect_blocker(world.me, "docs", {"reason": "stuck", "task_id": "T-1", "token": token})
    await world.it.complete_task(world.me, "T-1", "docs", token)
    with trio.fail_after(600):
        while "tasks/T-1" in await world.stored():
            await trio.sleep(1)
    await world.it.resolve_blocker(world.me, answer["blocker"]["blocker_id"])
    assert (await world.it.list_blockers(world.me))["blockers"] == []


async def test_a_task_that_ended_while_blocked_is_not_unblocked(world: World) -> None:
    """Cancelled, it waits for nothing any more: resolving its blocker changes nothing of it, and tells the board nothing."""
    await world.swarm("docs")
    await world.task("T-1")
    blocker_id = await report(world, task_id="T-1", token=await world.token("T-1", "docs"), release=True)
    await world.it.cancel_task(world.me, "T-1")
    ended = await world.show("T-1")
    assert "blocker_id" not in ended
    newest = world.it.board.history.newest
    await world.it.resolve_blocker(world.me, blocker_id, note="here is the key")
    assert await world.show("T-1") == ended
    assert list(world.it.board.history.after(newest)) == []
