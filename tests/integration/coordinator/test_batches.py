"""Many tasks in one commit, and what the end of one means for those that depend on it."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ifbus.errors import AlreadyExists, InvalidParams, LimitExceeded, NotFound, NotReady
from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import STRANGER, Answer, World, open_world

HOUR_MS = 3_600_000


def named(task_id: str, *depends_on: str, **more: Any) -> Answer:
    """One task of a batch."""
    return {"title": f"Do {task_id}", "task_id": task_id, "depends_on": list(depends_on), **more}


async def until_states(world: World, states: dict[str, str]) -> None:
    """Wait until all these tasks are in these states."""
    for name, state in states.items():
        await world.until_state(name, state)


# --- creating ----------------------------------------------------------------------------------------


async def test_a_batch_is_one_commit_in_any_order(world: World) -> None:
    """Tasks that stand before what they depend on: all are there at one revision, each in its state."""
    answer = await world.it.create_tasks(
        world.me, [named("c", "b", "a"), named("b", "a"), named("a"), {"title": "free"}]
    )
    assert [(task["task_id"], task["state"]) for task in answer["tasks"]] == [
        ("c", "waiting"),
        ("b", "waiting"),
        ("a", "ready"),
        ("T-4", "ready"),
    ]
    revisions = {item.mod_revision for item in (await world.store.range("tasks/")).items}
    assert revisions == {answer["receipt"]["revision"]}
    assert (await world.it.list_tasks(world.me))["counts"] == {"waiting": 2, "ready": 2}
    assert (await world.record())[-1]["detail"] == {"tasks": ["c", "b", "a", "T-4"]}


async def test_a_circle_is_refused_and_written_out(world: World) -> None:
    """In the message and in the figures; nothing of the batch is created."""
    with pytest.raises(InvalidParams) as circle:
        await world.it.create_tasks(world.me, [named("x"), named("a", "c"), named("b", "a", "x"), named("c", "b")])
    cycle = circle.value.data["cycle"]
    assert cycle[0] == cycle[-1]
    assert {*cycle} == {"a", "b", "c"}
    assert " -> ".join(cycle) in circle.value.message
    assert circle.value.would_change
    with pytest.raises(InvalidParams) as itself:
        await world.it.create_task(world.me, "x", task_id="a", depends_on=["a"])
    assert itself.value.data["cycle"] == ["a", "a"]
    assert (await world.it.list_tasks(world.me))["total"] == 0


async def test_a_batch_is_created_as_a_whole_or_not_at_all(world: World) -> None:
    """One bad task, a taken name, an unknown dependency, too many: nothing is there, and the bad one is named."""
    await world.task("taken")
    for tasks, error in (
        ([named("a"), {"title": ""}], InvalidParams),
        ([named("a"), {"titel": "x"}], InvalidParams),
        ([named("a"), named("taken")], AlreadyExists),
        ([named("a"), named("a")], AlreadyExists),
        ([named("a"), named("b", "nowhere")], NotFound),
        ([named(f"t{n}") for n in range(51)], InvalidParams),
        ([], InvalidParams),
    ):
        with pytest.raises(error) as refused:
            await world.it.create_tasks(world.me, tasks)
        if error is InvalidParams and 0 < len(tasks) < 51:
            assert refused.value.data["index"] == 1
    many = [f"d-{n}" for n in range(75)]
    for start in range(0, 75, 25):
        await world.it.create_tasks(world.me, [named(name) for name in many[start : start + 25]])
    with pytest.raises(LimitExceeded):
        await world.it.create_tasks(world.me, [named(f"v{n}", *many, "taken") for n in range(50)])
    listed = await world.it.list_tasks(world.me, limit=200)
    assert not [task for task in listed["tasks"] if task["task_id"] in ("a", "b")]


async def test_a_unique_key_within_a_batch_stands_for_the_first(world: World) -> None:
    """Who depends on a task that another one stands for depends on that."""
    await world.task("first", unique_key="k")
    answer = await world.it.create_tasks(world.me, [named("again", unique_key="k"), named("after", "again")])
    assert [task["task_id"] for task in answer["tasks"]] == ["first", "after"]
    assert answer["tasks"][0]["existing"]
    assert (await world.show("after"))["depends_on"] == ["first"]


async def test_a_unique_key_within_a_batch_alone_is_one_task(world: World) -> None:
    """Two of a batch ask for the same: the first one is created, and stands for the second."""
    answer = await world.it.create_tasks(
        world.me, [named("a", unique_key="k"), named("b", unique_key="k"), named("c", "b", "a")]
    )
    assert [(task["task_id"], "existing" in task) for task in answer["tasks"]] == [
        ("a", False),
        ("a", True),
        ("c", False),
    ]
    assert (await world.show("c"))["depends_on"] == ["a"]


async def test_a_circle_by_a_unique_key_is_refused(world: World) -> None:
    """One that stands for what it waits for would wait for itself; nothing of the batch is created."""
    for tasks in (
        [named("a", "b", unique_key="k"), named("b", unique_key="k")],
        [named("a", "c", unique_key="k"), named("b", unique_key="k"), named("c", "b")],
    ):
        with pytest.raises(InvalidParams) as circle:
            await world.it.create_tasks(world.me, tasks)
        assert circle.value.data["cycle"]
    assert (await world.it.list_tasks(world.me))["total"] == 0


# --- completing --------------------------------------------------------------------------------------


async def test_each_of_a_batch_is_completed_or_refused_by_itself(world: World) -> None:
    """One commit; a stale token, another's claim and a result that is too long refuse only their own."""
    await world.swarm("docs", budget=1_000)
    await world.swarm("other")
    await world.it.create_tasks(world.me, [named(name, estimate_usd=0) for name in "abcd"] + [named("e", "a", "b")])
    tokens = {name: await world.token(name, "docs") for name in "abc"}
    tokens["d"] = await world.token("d", "other")
    await world.it.release_task(world.me, "c", "docs", tokens["c"])
    items = [{"task_id": name, "token": tokens[name], "result": name} for name in "abcd"]
    answer = await world.it.complete_tasks(world.me, "docs", items)
    assert [(one["task_id"], one["ok"]) for one in answer["outcomes"]] == [
        ("a", True), ("b", True), ("c", False), ("d", False),
    ]  # fmt: skip
    assert [one["error"]["code"] for one in answer["outcomes"] if not one["ok"]] == ["stale_token", "not_owner"]
    assert (answer["completed"], answer["unblocked"]) == (2, ["e"])
    stored = {item.key: item.mod_revision for item in (await world.store.range("tasks/")).items}
    assert stored["tasks/a"] == stored["tasks/b"] == answer["receipt"]["revision"]
    assert ((await world.show("a"))["result"], (await world.show("d"))["state"]) == ("a", "claimed")
    entry = (await world.record())[-1]
    assert entry["detail"] == {
        "swarm": "docs",
        "completed": ["a", "b"],
        "refused": {"c": "stale_token", "d": "not_owner"},
    }
    again = await world.it.complete_tasks(world.me, "docs", items[:2])
    assert again["completed"] == 2


# --- dependants --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["fail", "dead", "cancel", "expire"])
async def test_each_dependant_takes_the_end_as_it_has_chosen(world: World, end: str, autojump_clock: object) -> None:
    """However the task ends without being completed: one waits on, one is cancelled, one runs."""
    await world.swarm("docs", lease_ms=24 * HOUR_MS)
    options: Answer = {"dead": {"max_attempts": 1}, "expire": {"deadline_at_ms": world.it._now_ms() + 1_000}}.get(
        end, {}
    )
    await world.it.create_tasks(
        world.me,
        [
            named("a", **options),
            named("waits", "a"),
            named("goes", "a", on_dependency_failure="cancel"),
            named("follows", "goes", on_dependency_failure="cancel"),
            named("runs", "a", on_dependency_failure="run"),
        ],
    )
    if end in ("fail", "dead"):
        await world.it.fail_task(world.me, "a", "docs", await world.token("a", "docs"), "broke")
    elif end == "cancel":
        await world.it.cancel_task(world.me, "a")
    await until_states(world, {"goes": "cancelled", "follows": "cancelled", "runs": "ready", "waits": "waiting"})
    state = (await world.show("a"))["state"]
    assert (await world.show("goes"))["reason"] == f"a is {state}"
    assert (await world.show("follows"))["reason"] == "goes is cancelled"
    with pytest.raises(NotReady):
        await world.it.claim_task(world.me, "waits", "docs")
    # Requeued: what ran without it and is not claimed yet waits again; completed, it releases all that wait.
    await world.it.requeue_task(world.me, "a")
    await until_states(world, {"runs": "waiting", "goes": "cancelled"})
    done = await world.it.complete_task(world.me, "a", "docs", await world.token("a", "docs"))
    assert done["unblocked"] == ["runs", "waits"]


async def test_who_waits_in_the_daemon_hears_of_a_released_dependant(world: World) -> None:
    """By the completion itself, without another call."""
    await world.swarm("docs")
    await world.swarm("other")
    await world.it.create_tasks(world.me, [named("b", "a"), named("a")])
    token = await world.token("a", "docs")
    got: list[Answer] = []

    async def wait() -> None:
        got.append(await world.it.claim_next(world.me, "other", wait_ms=60_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await world.it.complete_task(world.me, "a", "docs", token)
    assert got[0]["claim"]["task_id"] == "b"


async def test_a_cascade_goes_on_after_a_crash(tmp_path: Path) -> None:
    """A daemon that ends in the middle of it, again and again: at last all are cancelled, each once on record."""
    names = [f"t-{n}" for n in range(40)]
    async with open_world(tmp_path) as world:
        await world.task("root")
        chain = [named(names[0], "root", on_dependency_failure="cancel")] + [
            named(name, before, on_dependency_failure="cancel") for before, name in itertools.pairwise(names)
        ]
        await world.it.create_tasks(world.me, chain)
        await world.it.cancel_task(world.me, "root")
    chance = random.Random(7)
    rounds = 0
    cancelled = 0
    while cancelled < len(names):
        rounds += 1
        assert rounds < 200
        async with open_world(tmp_path) as world:
            goal = min(len(names), cancelled + chance.randint(1, 6))
            with trio.fail_after(60):
                while world.it.board.counts.get("cancelled", 0) - 1 < goal:
                    await trio.lowlevel.checkpoint()
            cancelled = world.it.board.counts["cancelled"] - 1
    async with open_world(tmp_path) as world:
        assert (await world.it.list_tasks(world.me))["counts"] == {"cancelled": 41}
        ended = [entry["target"] for entry in await world.record() if entry["op"] == "coordinator.cancel_task"]
        assert sorted(ended) == sorted([*names, "root"])
    assert rounds > 3


async def test_a_requeue_within_a_cascade_ends_it_there(world: World) -> None:
    """A dependant that has not been cancelled yet stays, because its end is decided by what its dependency is then."""
    await world.it.create_tasks(world.me, [named("a"), named("b", "a", on_dependency_failure="cancel")])
    await world.it.cancel_task(world.me, "a")
    await world.until_state("b", "cancelled")
    with pytest.raises(NotReady) as early:
        await world.it.requeue_task(world.me, "b")
    assert early.value.data["waits_for"] == ["a"]
    await world.it.requeue_task(world.me, "a")
    assert (await world.it.requeue_task(world.me, "b"))["task"]["state"] == "waiting"


async def test_a_task_that_depends_on_what_failed_before(world: World) -> None:
    """Created later, it takes the end as it has chosen, too."""
    await world.task("a")
    await world.it.cancel_task(world.me, "a")
    await world.task("runs", depends_on=["a"], on_dependency_failure="run")
    await world.task("goes", depends_on=["a"], on_dependency_failure="cancel")
    await world.task("waits", depends_on=["a"])
    await until_states(world, {"runs": "ready", "goes": "cancelled", "waits": "waiting"})


async def test_a_dependant_created_late_keeps_a_failed_task(tmp_path: Path, autojump_clock: object) -> None:
    """Whoever depends on a task that is just about to be removed is not released by that."""
    async with open_world(tmp_path, config=CoordinatorConfig(retention_ms=1_000)) as world:
        for n in range(20):
            await world.task(f"a-{n}")
            await world.it.cancel_task(world.me, f"a-{n}")
        late: list[str] = []

        async def depend(n: int) -> None:
            await trio.sleep(1.0 + n / 1000)
            try:
                late.append(await world.task(f"b-{n}", depends_on=[f"a-{n}"]))
            except NotFound:
                return

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(depend, n)
        await trio.sleep(600)
        for name in late:
            assert (await world.show(name))["state"] == "waiting"
        assert not (await world.it.board.catch_up() or await world.it.list_tasks(world.me, states=["ready"]))["tasks"]


async def test_only_the_creator_cancels(world: World) -> None:
    """A cascade is the daemon's own, whoever created what depends on it."""
    await world.task("a")
    await world.it.create_task(
        world.caller(STRANGER), "x", task_id="b", depends_on=["a"], on_dependency_failure="cancel"
    )
    await world.it.cancel_task(world.me, "a")
    await world.until_state("b", "cancelled")
    entry = next(
        entry for entry in await world.record() if entry["target"] == "b" and entry["op"].endswith("cancel_task")
    )
    assert (entry["uid"], entry["detail"]["dependency"]) == (-1, "a")
