"""A task's times and ends: scheduled start, deadline, retries, dead letters, cancelling, unique keys, retention."""

from pathlib import Path

import pytest
import trio

from ifbus.errors import InvalidParams, NotFound, NotReady, PermissionDenied, StaleToken
from ifbusd.codec import unpack
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import STRANGER, Answer, Connection, World, open_world, wall_ms

HOUR_MS = 3_600_000


async def heard(connection: Connection) -> list[Answer]:
    """All items of attention that came."""
    return [item for items in connection.of("attention") for item in items]


# --- scheduled start ---------------------------------------------------------------------------------


async def test_a_scheduled_task_is_offered_when_its_start_is_reached(world: World, autojump_clock: object) -> None:
    """Until then it is scheduled and refused with the figures; who waits for it gets it at that moment, not before."""
    await world.swarm("docs", lease_ms=24 * HOUR_MS)
    start = wall_ms() + 60_000
    await world.task("T-1", not_before_at_ms=start)
    assert (await world.show("T-1"))["state"] == "scheduled"
    with pytest.raises(NotReady) as early:
        await world.it.claim_task(world.me, "T-1", "docs")
    assert early.value.data.items() >= {"state": "scheduled", "start_at_ms": start}.items()
    assert early.value.would_change
    assert not (await world.it.claim_next(world.me, "docs"))["claimed"]
    answer = await world.it.claim_next(world.me, "docs", wait_ms=120_000)
    assert answer["claim"]["task_id"] == "T-1"
    assert wall_ms() >= start
    await world.it.complete_task(world.me, "T-1", "docs", answer["claim"]["token"])


async def test_a_scheduled_start_survives_a_restart(tmp_path: Path, autojump_clock: object) -> None:
    """After the daemon's restart it is still scheduled, and offered when it is reached."""
    async with open_world(tmp_path) as world:
        start = wall_ms() + 60_000
        await world.task("T-1", not_before_at_ms=start)
    async with open_world(tmp_path) as world:
        await world.swarm("docs", lease_ms=24 * HOUR_MS)
        assert (await world.show("T-1"))["state"] == "scheduled"
        assert (await world.it.claim_next(world.me, "docs", wait_ms=120_000))["claimed"]
        assert wall_ms() >= start


# --- deadline ----------------------------------------------------------------------------------------


async def test_a_deadline_expires_an_open_task_and_voids_its_claim(world: World, autojump_clock: object) -> None:
    """Claimed or not, it is expired at its deadline; the holder hears it and finds its token stale, with the reason."""
    connection = Connection()
    await world.swarm("docs", lease_ms=24 * HOUR_MS, budget=100)
    world.bus.subscribe("attention.docs", lambda _, item: connection.notify("attention", [[item]]))
    deadline = wall_ms() + 30_000
    await world.task("T-1", deadline_at_ms=deadline, estimate_usd=10)
    await world.task("T-2", deadline_at_ms=deadline)
    token = await world.token("T-1", "docs")
    for name in ("T-1", "T-2"):
        ended = await world.until_state(name, "expired")
        assert wall_ms() >= deadline
    assert ended["reason"]
    with pytest.raises(StaleToken) as late:
        await world.it.complete_task(world.me, "T-1", "docs", token)
    assert late.value.data["reason"] == "expired"
    assert [(item["kind"], item["handle"]) for item in await heard(connection)] == [("expired", f"T-1@{token}")]
    assert [letter["body"]["kind"] for letter in await world.inbox("docs")] == ["expired"]
    assert (await world.it.attention(world.me, "docs"))[0]["kind"] == "expired"
    assert (await world.account("docs")).reserved == 0
    await world.until_state("T-2", "expired")
    with pytest.raises(NotReady):
        await world.it.claim_task(world.me, "T-2", "docs", wait_ms=60_000)
    assert await world.outcomes("expire_task") == ["ok", "ok"]


async def test_a_completion_after_the_deadline_is_refused(world: World, autojump_clock: object) -> None:
    """From its deadline on nobody completes the task, whether or not that it has expired is on record yet."""
    await world.swarm("docs", lease_ms=24 * HOUR_MS)
    await world.task("T-1", deadline_at_ms=wall_ms() + 10_000)
    token = await world.token("T-1", "docs")
    refused: list[StaleToken] = []

    async def complete_at_the_deadline() -> None:
        await trio.sleep(10)
        with pytest.raises(StaleToken) as late:
            await world.it.complete_task(world.me, "T-1", "docs", token)
        refused.append(late.value)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(complete_at_the_deadline)
    assert {error.data["reason"] for error in refused} == {"expired"}
    assert (await world.until_state("T-1", "expired")).get("result") is None


async def test_a_deadline_passed_while_the_daemon_was_away(tmp_path: Path, autojump_clock: object) -> None:
    """What expired meanwhile is expired right after the start."""
    async with open_world(tmp_path) as world:
        await world.task("T-1", deadline_at_ms=wall_ms() + 10_000)
    await trio.sleep(20)
    async with open_world(tmp_path) as world:
        assert (await world.show("T-1"))["state"] == "expired"
        await world.until_state("T-1", "expired")
        with trio.fail_after(60):
            while await world.outcomes("expire_task") != ["ok"]:
                await trio.sleep(0.05)


# --- attempts ----------------------------------------------------------------------------------------


async def test_a_task_is_tried_again_after_its_backoff_until_it_is_dead(world: World, autojump_clock: object) -> None:
    """Failures and a lost lease count; between them it rests; then it is a dead letter with the errors of all attempts."""
    await world.profile("docs")
    await world.task("T-1", max_attempts=3, backoff={"base_ms": 1_000, "factor": 10, "jitter": 0})
    first = await world.it.fail_task(world.me, "T-1", "docs", await world.token("T-1", "docs"), "no such file")
    assert (first["task"]["state"], first["task"]["failures"]) == ("scheduled", 1)
    retry_at = first["task"]["retry_at_ms"]
    token = (await world.it.claim_next(world.me, "docs", wait_ms=60_000, lease_ms=500))["claim"]["token"]
    assert wall_ms() >= retry_at
    lost = await world.until_state("T-1", "scheduled")
    assert lost["failures"] == 2
    answer = await world.it.claim_next(world.me, "docs", wait_ms=60_000)
    assert wall_ms() >= lost["retry_at_ms"] >= retry_at + 10_000
    pack = answer["claim"]["handover"]
    assert [error["reason"] for error in pack["errors"]] == ["failed", "lease_ended"]
    assert pack["last"] == {"swarm_id": "docs", "token": token, "reason": "lease_ended"}
    last = await world.it.fail_task(world.me, "T-1", "docs", answer["claim"]["token"], "still none")
    assert last["task"]["state"] == "dead"
    dead = await world.it.list_dead_letters(world.me)
    assert (dead["total"], dead["next"]) == (1, None)
    assert [(error["reason"], error["error"]) for error in dead["tasks"][0]["errors"]] == [
        ("failed", "no such file"),
        ("lease_ended", ""),
        ("failed", "still none"),
    ]
    with pytest.raises(NotReady):
        await world.it.claim_task(world.me, "T-1", "docs")


async def test_whoever_waits_for_a_task_does_not_pass_its_last_attempt(world: World, autojump_clock: object) -> None:
    """Swarms that wait get a task whose lease runs out again and again exactly as often as it may be tried."""
    for n in range(4):
        await world.profile(f"docs-{n}")
    await world.task("T-1", max_attempts=3, backoff={"base_ms": 0})
    won: list[int] = []

    async def take(swarm_id: str) -> None:
        while True:
            answer = await world.it.claim_next(world.me, swarm_id, wait_ms=600_000, lease_ms=500)
            if answer["claimed"]:
                won.append(answer["claim"]["token"])

    async with trio.open_nursery() as nursery:
        for n in range(4):
            nursery.start_soon(take, f"docs-{n}")
        await world.until_state("T-1", "dead")
        nursery.cancel_scope.cancel()
    assert len(won) == 3
    assert len((await world.show("T-1"))["errors"]) == 3


async def test_an_attempt_lost_in_a_crash_counts(tmp_path: Path, autojump_clock: object) -> None:
    """A claim that ended while no daemon ran counts once when one is back."""
    async with open_world(tmp_path) as world:
        await world.profile("docs")
        await world.task("T-1", max_attempts=1)
        await world.token("T-1", "docs", lease_ms=60_000)
        held = await world.store.get("claims/T-1")
        assert held is not None
        await world.store.revoke(held.lease)
    async with open_world(tmp_path) as world:
        dead = await world.until_state("T-1", "dead")
        assert (dead["failures"], dead["attempts"]) == (1, 1)


async def test_without_retry_rules_the_first_failure_is_final(world: World) -> None:
    """As before: failed; with ``retry`` it is offered again at once; ``retry=False`` ends one that has attempts left."""
    await world.swarm("docs")
    await world.task("T-1")
    again = await world.it.fail_task(world.me, "T-1", "docs", await world.token("T-1", "docs"), "e", retry=True)
    assert again["task"]["state"] == "ready"
    ended = await world.it.fail_task(world.me, "T-1", "docs", await world.token("T-1", "docs"), "e")
    assert ended["task"]["state"] == "failed"
    await world.task("T-2", max_attempts=5)
    final = await world.it.fail_task(world.me, "T-2", "docs", await world.token("T-2", "docs"), "e", retry=False)
    assert final["task"]["state"] == "dead"


async def test_giving_back_is_no_failed_attempt(world: World) -> None:
    """A release costs no attempt, and its note reaches the next owner."""
    await world.swarm("docs")
    await world.task("T-1", max_attempts=1)
    await world.it.release_task(world.me, "T-1", "docs", await world.token("T-1", "docs"), note="half is in branch t-1")
    answer = await world.it.claim_task(world.me, "T-1", "docs")
    pack = answer["claim"]["handover"]
    assert (pack["note"], pack["last"]["reason"]) == ("half is in branch t-1", "released")
    assert "failures" not in answer["claim"]["task"]


# --- requeue -----------------------------------------------------------------------------------------


async def test_a_dead_task_is_requeued_by_its_creator_or_an_operator(world: World) -> None:
    """Nobody else may; its attempts count anew, its errors stay, and the record has who did it and why."""
    await world.swarm("docs")
    await world.task("T-1", max_attempts=1)
    await world.it.fail_task(world.me, "T-1", "docs", await world.token("T-1", "docs"), "broke")
    with pytest.raises(PermissionDenied):
        await world.it.requeue_task(world.caller(STRANGER), "T-1")
    answer = await world.it.requeue_task(world.caller(0), "T-1", reason="the disk is mended")
    assert answer["task"]["state"] == "ready"
    assert (await world.it.list_dead_letters(world.me))["tasks"] == []
    assert [error["error"] for error in (await world.show("T-1"))["errors"]] == ["broke"]
    entry = (await world.record())[-1]
    assert (entry["op"], entry["uid"], entry["detail"]) == (
        "coordinator.requeue_task",
        0,
        {"state": "dead", "reason": "the disk is mended"},
    )
    with pytest.raises(NotReady):
        await world.it.requeue_task(world.me, "T-1")
    await world.it.complete_task(world.me, "T-1", "docs", await world.token("T-1", "docs"))
    with pytest.raises(NotReady):
        await world.it.requeue_task(world.me, "T-1")


async def test_dead_letters_are_paged(world: World) -> None:
    """In order of their death, page by page."""
    await world.swarm("docs")
    for n in (3, 1, 2):
        await world.task(f"T-{n}", max_attempts=1)
        await world.it.fail_task(world.me, f"T-{n}", "docs", await world.token(f"T-{n}", "docs"), "broke")
    await world.it.requeue_task(world.me, "T-1")
    first = await world.it.list_dead_letters(world.me, limit=1)
    rest = await world.it.list_dead_letters(world.me, limit=5, after=first["next"])
    assert [task["task_id"] for task in first["tasks"] + rest["tasks"]] == ["T-3", "T-2"]
    assert rest["next"] is None
    with pytest.raises(NotFound):
        await world.it.list_dead_letters(world.me, after="T-1")


# --- cancel ------------------------------------------------------------------------------------------


async def test_a_cancelled_holder_hears_it_and_can_do_nothing_more(world: World) -> None:
    """Attention and a letter say so; its late completion is refused with the reason; its money is back."""
    connection = Connection()
    await world.swarm("docs", budget=100)
    world.bus.subscribe("attention.docs", lambda _, item: connection.notify("attention", [[item]]))
    await world.task("T-1", estimate_usd=10)
    token = await world.token("T-1", "docs")
    with pytest.raises(PermissionDenied):
        await world.it.cancel_task(world.caller(STRANGER), "T-1")
    answer = await world.it.cancel_task(world.me, "T-1", reason="not wanted any more")
    assert (answer["task"]["state"], answer["released_usd"]) == ("cancelled", "0.00001")
    assert [item["kind"] for item in await heard(connection)] == ["cancelled"]
    [letter] = await world.inbox("docs")
    assert letter["urgent"]
    assert letter["body"].items() >= {"task_id": "T-1", "token": token, "reason": "not wanted any more"}.items()
    for act in (
        world.it.complete_task(world.me, "T-1", "docs", token, result=1),
        world.it.report_progress(world.me, "T-1", "docs", token, 50),
        world.it.renew_claim(world.me, "T-1", "docs", token),
    ):
        with pytest.raises(StaleToken) as late:
            await act
        assert late.value.data.items() >= {"reason": "cancelled", "why": "not wanted any more"}.items()
    assert (await world.show("T-1")).get("result") is None
    assert (await world.it.cancel_task(world.me, "T-1"))["task"]["state"] == "cancelled"
    assert (await world.it.requeue_task(world.me, "T-1"))["task"]["state"] == "ready"


async def test_a_task_is_cancelled_in_every_open_state(world: World) -> None:
    """Waiting, scheduled, ready, pushed, blocked: it is final and offered to nobody; a final one stays as it is."""
    await world.swarm("docs")
    await world.task("T-1")
    await world.task("T-2", depends_on=["T-1"])
    await world.task("T-3", not_before_at_ms=wall_ms() + HOUR_MS)
    await world.task("T-4")
    await world.it.push_task_to_swarm(world.me, "T-4", "docs")
    await world.task("T-5")
    token = await world.token("T-5", "docs")
    await world.it.detect_blocker(
        world.me, "docs", {"reason": "stuck", "task_id": "T-5", "token": token, "release": True}
    )
    for name in ("T-2", "T-3", "T-4", "T-5", "T-1"):
        assert (await world.it.cancel_task(world.me, name))["task"]["state"] == "cancelled"
    assert [letter["kind"] for letter in await world.inbox("docs")] == []
    assert not (await world.it.claim_next(world.me, "docs"))["claimed"]
    assert (await world.it.list_tasks(world.me))["counts"] == {"cancelled": 5}
    await world.task("T-6")
    await world.it.complete_task(world.me, "T-6", "docs", await world.token("T-6", "docs"))
    with pytest.raises(NotReady):
        await world.it.cancel_task(world.me, "T-6")


# --- lease, unique key -------------------------------------------------------------------------------


async def test_a_task_brings_its_own_lease(world: World) -> None:
    """A claim that asks for none gets it, also within a session; one that asks has its own; it stays within the limits."""
    await world.swarm("docs")
    await world.task("T-1", lease_ms=5_000)
    answer = await world.it.claim_task(world.me, "T-1", "docs")
    assert answer["claim"]["lease_ms"] == 5_000
    await world.task("T-2", lease_ms=5_000)
    assert (await world.it.claim_task(world.me, "T-2", "docs", lease_ms=7_000))["claim"]["lease_ms"] == 7_000
    with pytest.raises(InvalidParams):
        await world.task("T-3", lease_ms=1)


async def test_one_open_task_has_a_unique_key(world: World) -> None:
    """64 at once create one task; the others get it, marked; after its end the key is free; another user has keys of its own."""
    answers: list[Answer] = []

    async def create() -> None:
        answers.append((await world.it.create_task(world.me, "Once", unique_key="nightly"))["task"])

    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(create)
    assert {task["task_id"] for task in answers} == {"T-1"}
    assert sum("existing" not in task for task in answers) == 1
    other = await world.it.create_task(world.caller(STRANGER), "Once", unique_key="nightly")
    assert other["task"]["task_id"] == "T-2"
    await world.it.cancel_task(world.me, "T-1")
    again = await world.it.create_task(world.me, "Once", unique_key="nightly")
    assert again["task"]["task_id"] == "T-3"


async def test_a_requeued_task_takes_its_unique_key_again(world: World) -> None:
    """Not while another open one has it, which the refusal names; then creating one with it gives the requeued one."""
    for name in ("first", "second"):
        await world.task(name, unique_key="nightly")
        await world.it.cancel_task(world.me, name)
    await world.task("third", unique_key="nightly")
    with pytest.raises(NotReady, match="third") as taken:
        await world.it.requeue_task(world.me, "first")
    assert taken.value.data.items() >= {"task_id": "first", "unique_key": "nightly", "existing": "third"}.items()
    assert taken.value.would_change
    assert (await world.show("first"))["state"] == "cancelled"
    await world.it.cancel_task(world.me, "third")
    await world.it.requeue_task(world.me, "first")
    again = await world.it.create_task(world.me, "Once", unique_key="nightly")
    assert (again["task"]["task_id"], again["task"]["existing"]) == ("first", True)
    with pytest.raises(NotReady):
        await world.it.requeue_task(world.me, "second")


async def test_who_cannot_requeue_hears_the_state(world: World) -> None:
    """An open task is refused by the state that everybody sees."""
    await world.task("first")
    await world.task("second", depends_on=["first"])
    for name, state in (("first", "ready"), ("second", "waiting")):
        with pytest.raises(NotReady, match=f"it is {state};"):
            await world.it.requeue_task(world.me, name)


async def test_a_requeued_task_keeps_what_it_waits_for(world: World) -> None:
    """What has failed is awaited from then on, as by a new task: whoever is about to remove it sees that in the store."""
    await world.swarm("docs")
    await world.task("failed")
    await world.task("waits", depends_on=["failed"])
    await world.it.fail_task(world.me, "failed", "docs", await world.token("failed", "docs"), "broke")
    assert "awaited_at_ms" not in unpack((await world.stored())["tasks/failed"]).get("history", {})
    await world.it.cancel_task(world.me, "waits")
    await world.it.requeue_task(world.me, "waits")
    assert unpack((await world.stored())["tasks/failed"])["history"]["awaited_at_ms"]
    assert (await world.show("waits"))["waits_for"] == ["failed"]


# --- retention ---------------------------------------------------------------------------------------


async def test_a_final_task_is_removed_after_its_retention(world: World, autojump_clock: object) -> None:
    """From the store and from the board, together with its unique key; open tasks stay however old they are."""
    await world.swarm("docs", lease_ms=24 * HOUR_MS)
    await world.task("T-1", retention_ms=60_000, unique_key="k")
    await world.task("T-2", retention_ms=0)
    await world.it.complete_task(world.me, "T-1", "docs", await world.token("T-1", "docs"), result="r")
    assert (await world.show("T-1"))["result"] == "r"
    with trio.fail_after(600):
        while "tasks/T-1" in await world.stored():
            await trio.sleep(1)
    await world.it.board.catch_up()
    assert set(world.it.board.tasks) == {"T-2"}
    assert not [key for key in await world.stored() if key.startswith("unique/")]
    with pytest.raises(NotFound):
        await world.show("T-1")
    assert (await world.it.list_tasks(world.me))["counts"] == {"ready": 1}


async def removed(world: World, task_id: str) -> None:
    """Return once a finished task is gone."""
    with trio.fail_after(600):
        while f"tasks/{task_id}" in await world.stored():
            await trio.sleep(1)


async def test_a_requeued_task_does_not_wait_for_what_was_removed(world: World, autojump_clock: object) -> None:
    """What it depends on was completed, and is gone: it is ready, and offered."""
    await world.swarm("docs", lease_ms=24 * 3_600_000)
    await world.task("T-1", retention_ms=0)
    await world.task("T-2", depends_on=["T-1"])
    await world.it.complete_task(world.me, "T-1", "docs", await world.token("T-1", "docs"))
    await removed(world, "T-1")
    await world.it.cancel_task(world.me, "T-2")
    await world.it.requeue_task(world.me, "T-2")
    assert (await world.show("T-2"))["state"] == "ready"
    assert (await world.it.claim_next(world.me, "docs"))["claim"]["task_id"] == "T-2"


async def test_a_name_that_is_used_again_is_another_task(tmp_path: Path, autojump_clock: object) -> None:
    """Who waited for the first one of that name does not wait for the second, nor end with it; so no circle comes about."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", lease_ms=24 * 3_600_000)
        await world.task("a", retention_ms=0)
        for name, on_failure in (("b", "wait"), ("c", "cancel"), ("z", "wait")):
            await world.task(name, depends_on=["a"], on_dependency_failure=on_failure)
        await world.it.complete_task(world.me, "a", "docs", await world.token("a", "docs"))
        await removed(world, "a")
        await world.task("a", depends_on=["b"])
        await world.it.cancel_task(world.me, "z")
        await world.it.requeue_task(world.me, "z")
    for _ in range(2):
        async with open_world(tmp_path) as world:
            states = {name: (await world.show(name))["state"] for name in "abcz"}
            assert states == {"a": "waiting", "b": "ready", "c": "ready", "z": "ready"}
    async with open_world(tmp_path) as world:
        await world.it.cancel_task(world.me, "a")
        await trio.sleep(10)
        assert (await world.show("c"))["state"] == "ready"
        for name in "bcz":
            await world.token(name, "docs")


async def test_a_clock_that_leaps_removes_nothing(tmp_path: Path, autojump_clock: object) -> None:
    """Finished tasks are kept for as long as they should be, by the time that passes; the deadline of another one has come."""
    skew_ms = 0
    async with open_world(tmp_path, wall=lambda: wall_ms() + skew_ms) as world:
        await world.task("T-1", retention_ms=60_000)
        await world.task("T-2", deadline_at_ms=wall_ms() + 3_600_000)
        await world.it.cancel_task(world.me, "T-1")
        skew_ms = 30 * 24 * 3_600_000
        await world.until_state("T-2", "expired")
        await trio.sleep(50)
        assert (await world.show("T-1"))["state"] == "cancelled"
        with trio.fail_after(15):
            while "tasks/T-1" in await world.stored():
                await trio.sleep(1)


async def test_more_final_tasks_than_are_kept_go_first_in_first_out(tmp_path: Path, autojump_clock: object) -> None:
    """The number is a bound; open ones do not count."""
    async with open_world(tmp_path, config=CoordinatorConfig(retained_tasks=3)) as world:
        await world.swarm("docs", lease_ms=24 * HOUR_MS)
        for n in range(1, 9):
            await world.task(f"T-{n}")
            if n < 8:
                await world.it.complete_task(world.me, f"T-{n}", "docs", await world.token(f"T-{n}", "docs"))
            await trio.sleep(0.01)
        with trio.fail_after(600):
            while len(world.it.board.tasks) > 4:
                await trio.sleep(0.1)
        await trio.sleep(10)
        assert sorted(world.it.board.tasks) == ["T-5", "T-6", "T-7", "T-8"]


async def test_what_cannot_be_removed_keeps_nothing_else(tmp_path: Path, autojump_clock: object) -> None:
    """More are final than are to be kept, and the oldest of them is waited for: the next ones go, and nobody tries in a circle."""
    async with open_world(tmp_path, config=CoordinatorConfig(retained_tasks=2)) as world:
        await world.swarm("docs", lease_ms=24 * HOUR_MS)
        await world.task("failed")
        await world.it.fail_task(world.me, "failed", "docs", await world.token("failed", "docs"), "broke")
        await world.task("waits", depends_on=["failed"])
        for n in range(4):
            await world.task(f"T-{n}")
            await world.it.complete_task(world.me, f"T-{n}", "docs", await world.token(f"T-{n}", "docs"))
            await trio.sleep(0.01)
        with trio.fail_after(600):
            while len(world.it.board.tasks) > 3:
                await trio.sleep(0.1)
        await trio.sleep(30)
        assert set(world.it.board.tasks) == {"failed", "waits", "T-3"}


async def test_a_task_that_waits_for_a_removed_one_goes_on(world: World, autojump_clock: object) -> None:
    """A completed dependency that was removed counts as completed, also after a restart."""
    await world.swarm("docs", lease_ms=24 * HOUR_MS)
    await world.task("T-1", retention_ms=1_000)
    await world.task("T-2")
    await world.task("T-3", depends_on=["T-1", "T-2"])
    await world.it.complete_task(world.me, "T-1", "docs", await world.token("T-1", "docs"))
    with trio.fail_after(600):
        while "T-1" in world.it.board.tasks:
            await trio.sleep(0.1)
    end = await world.it.complete_task(world.me, "T-2", "docs", await world.token("T-2", "docs"))
    assert end["unblocked"] == ["T-3"]
    await world.token("T-3", "docs")


async def test_a_failed_task_stays_while_others_wait_for_it(tmp_path: Path, autojump_clock: object) -> None:
    """Removing it would release them; once they are gone, it goes too."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", lease_ms=24 * HOUR_MS)
        await world.task("T-1", retention_ms=1_000)
        await world.task("T-2", depends_on=["T-1"])
        await world.it.fail_task(world.me, "T-1", "docs", await world.token("T-1", "docs"), "broke")
        await trio.sleep(300)
        assert (await world.show("T-2"))["state"] == "waiting"
    async with open_world(tmp_path) as world:
        await trio.sleep(300)
        assert (await world.show("T-2"))["waits_for"] == ["T-1"]
        await world.it.cancel_task(world.me, "T-2")
        with trio.fail_after(600):
            while "T-1" in world.it.board.tasks:
                await trio.sleep(1)


async def test_an_open_task_is_never_removed(world: World) -> None:
    """Whatever the board takes it for, the store decides: what was requeued in the last moment stays."""
    await world.task("T-1", retention_ms=0)
    await world.task("T-2", retention_ms=0)
    await world.it._remove(["T-1", "T-2"])
    assert {"tasks/T-1", "tasks/T-2"} <= (await world.stored()).keys()
    assert await world.outcomes("remove_tasks") == []


# --- parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"not_before_at_ms": -1},
        {"deadline_at_ms": 1},
        {"not_before_at_ms": 4_000_000_000_000},
        {"max_attempts": 101},
        {"backoff": {"base": 1}},
        {"backoff": {"factor": 0.5}},
        {"backoff": {"jitter": 2}},
        {"backoff": {"base_ms": 1.5}},
        {"unique_key": "k" * 129},
        {"unique_key": "a\nb"},
        {"retention_ms": -1},
    ],
)
async def test_options_out_of_their_range_are_refused(world: World, options: Answer) -> None:
    """The parameter is named."""
    with pytest.raises(InvalidParams) as wrong:
        await world.task("T-1", **options)
    assert wrong.value.data["param"] == next(iter(options))


def test_every_state_is_in_the_table() -> None:
    """Each open state can be left and each state be reached."""
    reached = {target for targets in life.TABLE.values() for target in targets}
    assert reached >= set(life.STATES)
    assert {source for source, _ in life.TABLE} >= set(life.STATES)
