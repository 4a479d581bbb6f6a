"""After a crash, a full disk, or a board that fell behind: nothing is held for nobody, and nobody waits for ever."""

from pathlib import Path
from typing import Any

import apsw
import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import StaleToken, Unavailable
from ifbusd.codec import pack
from ifbusd.coordinator.model import TASKS, SessionRecord, TaskRecord
from ifbusd.identity import Caller
from ifbusd.operation import Tx
from ifbusd.store.base import Delete, Put, Txn
from tests.integration.coordinator.world import Connection, World, open_world

HOUR_MS = 3_600_000


async def test_everything_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    """Tasks, claims with their tokens, results, sessions, blockers: the board read anew shows what was answered."""
    async with open_world(tmp_path) as world:
        session = await world.swarm("docs", "docs:writing", budget=1_000)
        await world.task("T-1", "docs:writing", estimate_usd=10)
        await world.task("T-2")
        await world.task("T-3", depends_on=["T-2"])
        await world.task("T-4")
        token = await world.token("T-1", "docs")
        await world.it.report_progress(world.me, "T-1", "docs", token, 40)
        await world.it.complete_task(world.me, "T-2", "docs", await world.token("T-2", "docs"), result=1)
        failing = await world.token("T-4", "docs")
        await world.it.detect_blocker(
            world.me, "docs", {"reason": "x", "task_id": "T-4", "token": failing, "release": True}
        )
        before = [await world.show(f"T-{n}") for n in range(1, 5)]
        blockers = await world.it.list_blockers(world.me)
        assert [blocker["task_id"] for blocker in blockers["blockers"]] == ["T-4"]
    async with open_world(tmp_path) as world:
        for n, task in enumerate(before, start=1):
            now = await world.show(f"T-{n}")
            for name in ("lease_left_ms", "clocks"):  # these go on
                now.pop(name, None)
                task.pop(name, None)
            assert now == task
        assert await world.it.list_blockers(world.me) == blockers
        assert (await world.account("docs")).reserved == 10
        resumed = await world.swarm("docs", resume=session["resume_token"])
        assert [(claim["task_id"], claim["token"]) for claim in resumed["claims"]] == [("T-1", token)]
        await world.it.complete_task(world.me, "T-1", "docs", token)
        assert (await world.it.claim_next(world.me, "docs"))["claim"]["task_id"] == "T-3"
        assert await world.task() == "T-5"


async def test_what_was_answered_is_on_the_disk(tmp_path: Path) -> None:
    """The files as they are at each answer, opened elsewhere, have what was answered: a power cut loses nothing of it."""

    def cut(name: str) -> Path:
        copy = tmp_path / name
        copy.mkdir()
        for file in (tmp_path / "live").iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        return copy

    (tmp_path / "live").mkdir()
    async with open_world(tmp_path / "live") as world:
        await world.swarm("docs", lease_ms=HOUR_MS)
        registered = cut("registered")
        await world.task("T-1")
        created = cut("created")
        pushed_seq = (await world.it.push_task_to_swarm(world.me, "T-1", "docs"))["seq"]
        pushed = cut("pushed")
        token = await world.token("T-1", "docs")
        claimed = cut("claimed")
        await world.it.report_progress(world.me, "T-1", "docs", token, 40)
        reported = cut("reported")
        await world.it.complete_task(world.me, "T-1", "docs", token, result="done")
        completed = cut("completed")
        seq = (await world.store.log_head()).seq
    async with open_world(registered) as world:
        assert world.it.statistics().sessions == 1
    async with open_world(created) as world:
        assert (await world.show("T-1"))["state"] == "ready"
    async with open_world(pushed) as world:
        assert [letter["seq"] for letter in await world.inbox("docs")] == [pushed_seq]
    async with open_world(claimed) as world:
        task = await world.show("T-1")
        assert (task["holder"], task["token"]) == ("docs", token)
        assert await world.inbox("docs") == []
        await world.it.complete_task(world.me, "T-1", "docs", token)
    async with open_world(reported) as world:
        assert (await world.show("T-1"))["percent"] == 40
    async with open_world(completed) as world:
        assert (await world.show("T-1"))["result"] == "done"
        assert (await world.store.log_head()).seq == seq


async def test_holds_left_by_a_crash_are_given_back_at_the_start(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The lease ended, then the daemon died before its clean-up: the next start gives the money back, once, on record."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", budget=1_000, lease_ms=HOUR_MS)
        await world.task("T-1", estimate_usd=10)
        await world.task("T-2", estimate_usd=20)
        lost = await world.token("T-1", "docs")
        kept = await world.token("T-2", "docs", lease_ms=HOUR_MS)
        await world.governor.track_cost(world.me, "docs", "llm", 3, task_id="T-1", token=lost)  # type: ignore[arg-type]
    crash_between(tmp_path / "ifbusd.db", "claims/T-1")
    for _ in range(2):
        async with open_world(tmp_path) as world:
            account = await world.account("docs")
            assert (account.reserved, account.spent) == (20, 3)
            task = await world.show("T-1")
            assert (task["state"], task["spent_usd"], task["attempts"]) == ("ready", "0.000003", 1)
            [entry] = [entry for entry in await world.record() if entry["op"] == "coordinator.expire_claim"]
            assert entry["detail"]["released_usd"] == "0.000007"
            assert await world.it.reconcile() == 0
            with pytest.raises(StaleToken):
                await world.it.complete_task(world.me, "T-1", "docs", lost)
            await world.it.report_progress(world.me, "T-2", "docs", kept, 1)


async def test_a_hold_whose_task_was_removed_is_given_back(world: World) -> None:
    """The task was ended and removed before anybody came to its lost claim: the money is free again, on record, once."""
    await world.swarm("docs", budget=1_000)
    await world.task("T-1", estimate_usd=10)
    await world.token("T-1", "docs")
    await world.store.txn(Txn(then=[Delete("claims/T-1"), Delete("tasks/T-1")]))
    await world.it.reconcile()
    assert (await world.account("docs")).reserved == 0
    assert await world.it.reconcile() == 0
    [entry] = [entry for entry in await world.record() if entry["op"] == "coordinator.expire_claim"]
    assert (entry["outcome"], entry["detail"]["released_usd"]) == ("ok", "0.00001")


async def test_claims_that_a_crash_left_to_a_former_incarnation_are_freed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The new session was on the disk, the end of the old one's lease was not: the next start frees what the old one held."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", budget=1_000, lease_ms=HOUR_MS)
        await world.task("T-1", estimate_usd=10)
        await world.token("T-1", "docs")
        stored = await world.store.get("sessions/docs")
        assert stored is not None
        session = SessionRecord.from_bytes(stored.value)
        lease = await world.store.grant(HOUR_MS)
        newer = pack(session.evolve(incarnation=session.incarnation + 1).to_map())
        await world.store.txn(Txn(then=[Put("sessions/docs", newer, lease)]))
        assert (await world.show("T-1"))["state"] == "claimed"
    async with open_world(tmp_path) as world:
        while (await world.show("T-1"))["state"] == "claimed":
            await trio.sleep(0.01)
        while (await world.account("docs")).reserved:
            await trio.sleep(0.01)


def crash_between(database: Path, claim: str) -> None:
    """Leave the file as a crash does between the end of a lease and what follows from it."""
    connection = apsw.Connection(str(database), vfs="cksmvfs")
    connection.execute("delete from kv where key = ?", (claim,))
    connection.close()


async def test_a_lost_claim_is_given_back_though_others_held_the_task_since(world: World) -> None:
    """Whatever happened to the task before the clean-up came to it, each swarm's hold is given back once and nothing of others is touched."""
    await world.swarm("slow", budget=1_000, lease_ms=HOUR_MS)
    await world.swarm("fast", budget=1_000, lease_ms=HOUR_MS)
    await world.task("T-1", estimate_usd=10)
    old = await world.token("T-1", "slow", lease_ms=HOUR_MS)
    held = await world.store.get("claims/T-1")
    assert held is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.store.revoke, held.lease)
        answer = await world.it.claim_task(world.me, "T-1", "fast", wait_ms=60_000)
    task = answer["claim"]
    result = await world.it.complete_task(world.me, "T-1", "fast", task["token"], result="mine")
    while (await world.account("slow")).holds:
        await trio.sleep(0.01)
    again = await world.it.complete_task(world.me, "T-1", "fast", task["token"])
    assert again["task"]["result"] == result["task"]["result"] == "mine"
    assert old < task["token"]
    assert (await world.account("fast")).reserved == 0


async def fill_up(world: World) -> None:
    """Let the next commit fail for want of space, by SQLite's own limit on the file."""
    pages = world.store._connection.execute("pragma page_count").get
    world.store._connection.execute(f"pragma max_page_count = {pages}").fetchall()


async def test_after_a_failed_commit_nobody_waits_for_what_was_never_told(tmp_path: Path) -> None:
    """A commit that failed for want of space uses up revisions; reads, waits and claims go on without another write."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", lease_ms=HOUR_MS)
        await world.task("T-1")
        await fill_up(world)
        small = Put(TASKS + "T-1", (await world.stored())[TASKS + "T-1"])
        # The first one fits and waits for its commit; it goes with the second one's failure.
        world.store._apply(Txn(then=[small]))
        with pytest.raises(Unavailable) as full:
            await world.store.txn(Txn(then=[Put("big", bytes(500_000))]))
        assert full.value.data["reason"] == "storage_full"
        assert world.store.revision > world.store.told_revision
        with trio.fail_after(10):
            listed = await world.it.list_tasks(world.me, limit=200)
            assert world.it.board.tasks.keys() == {task["task_id"] for task in listed["tasks"]}
            assert (await world.show("T-1"))["state"] == "ready"
            assert await world.inbox("docs") == []
            assert (await world.it.list_blockers(world.me))["blockers"] == []
        world.store._connection.execute("pragma max_page_count = 1073741823").fetchall()
        with trio.fail_after(10):
            assert (await world.it.claim_next(world.me, "docs", wait_ms=60_000))["claimed"]


async def test_keyed_requests_go_on_after_a_failed_commit(tmp_path: Path) -> None:
    """The lease of the idempotency records went with the commit that failed; the next request takes a new one."""
    async with open_world(tmp_path) as world:
        await fill_up(world)
        with pytest.raises(Unavailable):
            await world.it.create_task(
                world.caller(key="k1", body="b"), "T", description="x" * 16_000, payload={"x": "x" * 24_000}
            )
        await world.store.range("")  # returns when no thread works on the connection
        world.store._connection.execute("pragma max_page_count = 1073741823").fetchall()
        caller = world.caller(key="k1", body="b")
        first = await world.it.create_task(caller, "T")
        assert (await world.it.create_task(caller, "T"))["task"] == first["task"]


async def test_a_board_that_fell_behind_reads_everything_anew(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Too slow again and again: states, letters and lost claims are right again, listeners and waiters miss nothing."""
    async with open_world(tmp_path, is_forgetful=True) as world:
        await world.swarm("docs", budget=1_000, lease_ms=HOUR_MS)
        await world.swarm("other", lease_ms=HOUR_MS)
        connection = Connection()
        await world.it.subscribe_inbox(world.caller(session=connection), "docs")
        for n in range(30):
            await world.task(f"T-{n}", estimate_usd=1)
        tokens = [await world.token(f"T-{n}", "docs", lease_ms=HOUR_MS) for n in range(5)]
        waits = range(5)

        async def lose(n: int) -> None:
            held = await world.store.get(f"claims/T-{n}")
            assert held is not None
            await world.store.revoke(held.lease)

        async with trio.open_nursery() as nursery:
            for n in waits:
                nursery.start_soon(lose, n)
            for n in range(5, 30):
                nursery.start_soon(world.it.push_task_to_swarm, world.me, f"T-{n}", "docs")
            for n in range(30):
                nursery.start_soon(world.it.broadcast, world.me, "news", {"n": n})
        with trio.fail_after(600):
            while (await world.account("docs")).holds:
                await trio.sleep(0.05)
        assert sorted(await world.outcomes("expire_claim")) == ["ok"] * 5
        letters = await world.inbox("docs")
        assert len(letters) == 55
        assert [letter["seq"] for letter in connection.of("inbox")] == [letter["seq"] for letter in letters]
        assert {(await world.show(f"T-{n}"))["state"] for n in range(30)} == {"ready"}
        for token, n in zip(tokens, waits, strict=True):
            with pytest.raises(StaleToken):
                await world.it.report_progress(world.me, f"T-{n}", "docs", token, 1)
        assert world.store.forgot > 3  # type: ignore[attr-defined]


async def test_a_claim_lost_while_the_board_reads_is_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Money is held for it and the board does not show it: whoever compares the two waits until the board knows why."""
    async with open_world(tmp_path, is_forgetful=True) as world:
        await world.swarm("docs", budget=1_000)
        for n in range(3):
            await world.task(f"T-{n}", estimate_usd=1)
        await world.token("T-0", "docs", lease_ms=HOUR_MS)
        held = await world.store.get("claims/T-0")
        assert held is not None
        list_holds = world.governor.list_holds

        async def list_slowly() -> list[tuple[str, str]]:
            holds = await list_holds()
            await world.store.revoke(held.lease)
            with trio.fail_after(60):
                while world.it.board.holder_of("T-0"):  # until everything is being read anew
                    await world.it.broadcast(world.me, "news", {})
            return holds

        monkeypatch.setattr(world.governor, "list_holds", list_slowly)
        await world.it.reconcile()
        with trio.fail_after(60):
            while world.it.board.lost or (await world.account("docs")).holds:
                await trio.sleep(0.01)
        assert await world.outcomes("expire_claim") == ["ok"]
        assert (await world.show("T-0"))["attempts"] == 1


async def test_a_waiter_survives_a_board_read_anew(tmp_path: Path) -> None:
    """A task that became ready in the gap is offered to who waits."""
    async with open_world(tmp_path, is_forgetful=True) as world:
        await world.swarm("docs", "docs:writing")
        answers: list[Any] = []

        async def wait() -> None:
            answers.append(await world.it.claim_next(world.me, "docs", wait_ms=60_000))

        async def write(n: int) -> None:
            needs = ["docs:writing"] if n == 7 else ["gpu:cuda"]
            record = TaskRecord(n=n, title="t", capabilities=needs)
            await world.store.txn(Txn(then=[Put(f"{TASKS}T-{n}", pack(record.to_map()))]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            for n in range(40):
                nursery.start_soon(write, n)
                await trio.lowlevel.checkpoint()
        assert answers[0]["claim"]["task_id"] == "T-7"
        await world.it.board.catch_up()
        assert len(world.it.board.tasks) == 40
        assert world.store.forgot  # type: ignore[attr-defined]


_UNREADABLE = (
    b"",
    b"\xc1",
    b"\xff\xff",
    pack(1),
    pack([]),
    pack({}),
    pack({"n": 1, "title": "x", "depends_on": 5}),
    pack("x"),
)
_KINDS = (
    *(
        "tasks",
        "claims",
        "sessions",
        "inbox",
        "blockers",
        "locks",
        "held",
        "questions",
        "approvals",
        "answers",
        "waits",
    ),
    *("topics", "groups", "swarms", "accounts", "alarms"),
)


async def test_what_nobody_can_read_stops_nobody(world: World) -> None:
    """Whatever a broken host writes, under whatever key, is left out, now and when everything is read; the others work on."""
    keys = [f"{kind}/{name}{n}" for kind in _KINDS for name in ("x", "x/y") for n in range(len(_UNREADABLE))]
    for start in range(0, len(keys), 100):
        part = keys[start : start + 100]
        await world.store.txn(Txn(then=[Put(key, _UNREADABLE[int(key[-1])]) for key in part]))
    for _ in range(2):
        await world.swarm("docs")
        name = await world.task()
        await world.it.complete_task(world.me, name, "docs", await world.token(name, "docs"))
        await world.it.reconcile()
        await world.it._look_at_clocks()
        await world.it.board._load()
        world.it.board._settle(world.store.revision, 0)
    for start in range(0, len(keys), 100):
        await world.store.txn(Txn(then=[Delete(key) for key in keys[start : start + 100]]))
    await world.task("last")
    assert (await world.show("last"))["state"] == "ready"


@pytest.mark.parametrize("key", ["claims/T-1", "tasks/T-1"])
async def test_what_nobody_can_read_keeps_no_daemon_from_starting(tmp_path: Path, key: str) -> None:
    """Where money is held for a claim whose record a broken host has overwritten, that is left as it is; the others work on."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs", budget=1_000)
        await world.task("T-1", estimate_usd=10)
        await world.token("T-1", "docs")
        await world.store.txn(Txn(then=[Delete("claims/T-1")]))
        await world.store.txn(Txn(then=[Put(key, b"\xc1")]))
    async with open_world(tmp_path) as world:
        await world.swarm("other")
        name = await world.task()
        await world.it.complete_task(world.me, name, "other", await world.token(name, "other"))


async def test_a_blocker_that_nobody_can_read_any_more_stops_nobody(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Overwritten by a broken host before its time has come, it is not brought before people; the next one is."""
    async with open_world(tmp_path) as world:
        told: list[str] = []
        world.bus.subscribe("escalations", lambda _, message: told.append(message["kind"]))
        await world.swarm("docs", lease_ms=HOUR_MS)
        answer = await world.it.detect_blocker(world.me, "docs", {"reason": "stuck", "severity": "high"})
        await world.store.txn(Txn(then=[Put(f"blockers/{answer['blocker']['blocker_id']}", b"\xc1")]))
        await world.it.detect_blocker(world.me, "docs", {"reason": "stuck", "severity": "high"})
        with trio.fail_after(HOUR_MS / 1000):
            while "blocker_escalated" not in told:
                await trio.sleep(1)


async def test_a_task_may_change_under_a_decision(world: World) -> None:
    """Written by another daemon between the read and the commit, the decision is made again on what is there now."""
    await world.swarm("docs")
    await world.task("T-1")
    stored = await world.store.get(TASKS + "T-1")
    assert stored is not None
    decided = 0
    require_owner = world.governor.require_owner

    def meddle(tx: Tx, caller: Caller, swarm_id: str) -> None:
        nonlocal decided
        decided += 1
        tx.get_stored(TASKS + "T-1")
        require_owner(tx, caller, swarm_id)
        if decided == 1:
            task = attrs.evolve(TaskRecord.from_bytes(stored.value), note="from elsewhere")
            world.store._apply(Txn(then=[Put(TASKS + "T-1", pack(task.to_map()))]))  # type: ignore[attr-defined]

    world.governor.require_owner = meddle  # type: ignore[method-assign]
    answer = await world.it.claim_task(world.me, "T-1", "docs")
    assert (answer["claim"]["task"]["note"], decided) == ("from elsewhere", 2)
