"""Tasks as such: creating, listing, explaining; what the record has of it all."""

import pytest
import trio

from ifbus.errors import AlreadyExists, InvalidParams, LimitExceeded, NotFound
from ifbus.models import Task
from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import STRANGER, World, open_world


async def test_a_created_task_reads_as_given(world: World) -> None:
    """Every field comes back; the model reads it."""
    answer = await world.it.create_task(
        world.me,
        "Write it",
        description="all of it",
        capabilities=["docs:writing", "docs:writing", "a:b"],
        filler=True,
        priority=7,
        estimate_usd=1_250_000,  # type: ignore[arg-type]
        payload={"k": [1, None, "x"]},
        milestones=[[50, "half"]],
    )
    assert (await world.show("T-1")) == answer["task"]
    task = Task.from_wire(answer["task"])
    assert (task.task_id, task.state, task.capabilities) == ("T-1", "ready", ("a:b", "docs:writing"))
    assert (str(task.estimate_usd), task.payload, task.priority, task.filler) == (
        "1.25",
        {"k": [1, None, "x"]},
        7,
        True,
    )


async def test_ids_are_made_up_beside_given_ones(world: World) -> None:
    """Numbers go on, and skip names that somebody gave."""
    assert [await world.task(name) for name in (None, "T-3", None, None)] == ["T-1", "T-3", "T-4", "T-5"]
    with pytest.raises(AlreadyExists) as twice:
        await world.task("T-3")
    assert twice.value.would_change
    with pytest.raises(NotFound) as missing:
        await world.task("T-9", depends_on=["T-1", "T-99"])
    assert missing.value.data["task_id"] == "T-99"
    assert await world.outcomes("create_task") == ["ok"] * 4 + ["already_exists", "not_found"]


async def test_tasks_created_at_once_have_names_of_their_own(world: World) -> None:
    """50 at the same time: 50 ids, in order on the board."""
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(world.task)
    listed = await world.it.list_tasks(world.me, limit=200)
    assert [task["task_id"] for task in listed["tasks"]] == [f"T-{n}" for n in range(1, 51)]


async def test_as_many_dependencies_as_allowed_can_be_claimed(world: World) -> None:
    """A task with 100 dependencies fits into one transaction, with an idempotency key too."""
    await world.swarm("docs", budget=1_000)
    names = [await world.task() for _ in range(100)]
    await world.task("last", depends_on=names, estimate_usd=1)
    for name in names:
        await world.it.complete_task(world.me, name, "docs", await world.token(name, "docs"))
    caller = world.caller(key="k", body="claim")
    assert (await world.it.claim_task(caller, "last", "docs"))["claimed"]


async def test_only_open_tasks_count_against_the_limit(tmp_path: object) -> None:
    """The refusal has the figures; what is final makes room."""
    async with open_world(tmp_path, config=CoordinatorConfig(open_tasks=2)) as world:  # type: ignore[arg-type]
        await world.swarm("docs")
        await world.task("T-1")
        await world.task("T-2")
        with pytest.raises(LimitExceeded) as full:
            await world.task("T-3")
        assert full.value.data.items() >= {"limit": "open_tasks", "used": 2, "allowed": 2}.items()
        assert full.value.would_change
        await world.it.complete_task(world.me, "T-1", "docs", await world.token("T-1", "docs"))
        await world.task("T-3")


async def test_lists_are_filtered_and_paged(world: World) -> None:
    """By state, holder and word, page by page, with totals and counts."""
    await world.swarm("docs")
    for n in range(1, 8):
        await world.task(f"T-{n}", depends_on=["T-1"] if n == 7 else None)
    await world.token("T-2", "docs")
    await world.it.complete_task(world.me, "T-3", "docs", await world.token("T-3", "docs"))

    async def ids(**by: object) -> list[str]:
        return [task["task_id"] for task in (await world.it.list_tasks(world.me, **by))["tasks"]]  # type: ignore[arg-type]

    assert await ids(states=["claimed"]) == await ids(holder="docs") == ["T-2"]
    assert await ids(states=["waiting", "completed"]) == ["T-3", "T-7"]
    assert await ids(grep="do t-5") == ["T-5"]
    first = await world.it.list_tasks(world.me, states=["ready"], limit=3)
    assert (first["total"], first["next"]) == (4, "T-5")
    assert first["counts"] == {"ready": 4, "claimed": 1, "completed": 1, "waiting": 1}
    rest = await world.it.list_tasks(world.me, states=["ready"], limit=3, after=first["next"])
    assert ([task["task_id"] for task in rest["tasks"]], rest["next"]) == (["T-6"], None)
    for wrong in ({"states": ["done"]}, {"limit": 0}, {"limit": 201}):
        with pytest.raises(InvalidParams):
            await ids(**wrong)
    with pytest.raises(NotFound):
        await ids(after="T-99")


async def test_an_explanation_shows_every_check(world: World) -> None:
    """All checks in order with their figures, nothing changed; a claim then does what it said."""
    await world.swarm("docs", "docs:writing", budget=100)
    await world.swarm("gpu", "gpu:cuda")
    await world.task("T-1")
    await world.task("T-2", "gpu:cuda", depends_on=["T-1"], estimate_usd=101)
    before = await world.stored()
    entries = len(await world.record())
    explained = await world.it.explain_claim(world.me, "T-2", "docs")
    assert [(check["check"], check["ok"]) for check in explained["checks"]] == [
        ("owner", True), ("free", True), ("ready", False), ("open", True), ("breaker", True), ("match", False), ("budget", False),
    ]  # fmt: skip
    assert explained["would_succeed"] is False
    assert explained["best"] == {"swarm_id": "gpu", "overlap": 1.0}
    for check in explained["checks"]:
        assert check["ok"] or check["would_change"], check
    assert (await world.stored(), len(await world.record())) == (before, entries)
    assert (await world.it.explain_claim(world.me, "T-1", "docs"))["would_succeed"] is True
    foreign = await world.it.explain_claim(world.caller(STRANGER), "T-1", "docs")
    assert [check["check"] for check in foreign["checks"] if not check["ok"]] == ["owner"]
    await world.token("T-1", "docs")
    taken = await world.it.explain_claim(world.me, "T-1", "gpu")
    assert taken["checks"][1]["data"]["owner"] == "docs"
    for odd in ("x" * 3_000, "a/b"):
        with pytest.raises(InvalidParams):
            await world.it.explain_claim(world.me, "T-1", odd)


async def test_every_change_is_on_record(world: World) -> None:
    """A life of a task, entry by entry, with who did it."""
    session = await world.swarm("docs")
    await world.task("T-1")
    await world.it.push_task_to_swarm(world.me, "T-1", "docs")
    token = await world.token("T-1", "docs")
    await world.it.report_progress(world.me, "T-1", "docs", token, 30)
    blocker = await world.it.detect_blocker(
        world.me, "docs", {"reason": "stuck", "task_id": "T-1", "token": token, "release": True}
    )
    await world.it.resolve_blocker(world.me, blocker["blocker"]["blocker_id"])
    token = await world.token("T-1", "docs")
    await world.it.fail_task(world.me, "T-1", "docs", token, "broke", retry=True)
    token = await world.token("T-1", "docs")
    await world.it.complete_task(world.me, "T-1", "docs", token)
    await world.it.broadcast(world.me, "news", {})
    await world.it.acknowledge(world.me, "docs", 10**9)
    await world.it.end_session(world.me, "docs", session["resume_token"])
    record = await world.record()
    assert [entry["op"].removeprefix("coordinator.") for entry in record] == [
        "register_swarm", "create_task", "push_task_to_swarm", "claim_task", "report_progress", "detect_blocker",
        "resolve_blocker", "claim_task", "fail_task", "claim_task", "complete_task", "broadcast", "acknowledge",
        "end_session",
    ]  # fmt: skip
    assert {(entry["outcome"], entry["uid"], entry["pid"]) for entry in record} == {("ok", 1000, 4711)}
