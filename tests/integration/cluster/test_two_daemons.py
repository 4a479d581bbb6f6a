"""Two daemons on one store, each with a board, bindings and a bus of its own: what only one of them may do is done once."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from ifbus.errors import StaleToken, Unavailable
from ifbusd.bus.base import Message
from ifbusd.codec import pack
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import TASKS, TaskRecord
from ifbusd.store.base import Put, Txn
from tests.integration.coordinator.world import LEASE_MS, Answer, Connection, World, open_world

DOLLAR = 1_000_000


class Pair(NamedTuple):
    """Two daemons; `a` has been there for longer."""

    a: World
    b: World


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    """Both running on one store."""
    async with open_world(tmp_path, host="a") as a, open_world(tmp_path, host="b", beside=a) as b:
        yield Pair(a, b)


async def until_recorded(world: World, op: str, count: int) -> None:
    """Return once so many of these operations are on record."""
    with trio.fail_after(3600):
        while len(await world.outcomes(op)) < count:
            await trio.sleep(0.1)


async def test_a_task_of_one_host_is_done_on_the_other(autojump_clock: MockClock, pair: Pair) -> None:
    """Who waits at one daemon gets what is created at the other, and completes it there."""
    await pair.b.swarm("worker")
    got: list[Answer] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            got.append(await pair.b.it.claim_next(pair.b.me, "worker", wait_ms=60_000))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        task_id = await pair.a.task()
    assert got[0]["claim"]["task_id"] == task_id
    await pair.b.it.complete_task(pair.b.me, task_id, "worker", got[0]["claim"]["token"], result=1)
    assert (await pair.a.show(task_id))["state"] == "completed"


async def test_a_race_over_hosts_has_one_winner(autojump_clock: MockClock, pair: Pair) -> None:
    """Of claims at both daemons at once one wins, and the others hear who did."""
    for world, name in ((pair.a, "at-a"), (pair.b, "at-b")):
        await world.swarm(name)
    for _ in range(50):
        task_id = await pair.a.task()
        answers: dict[str, Answer] = {}

        async def claim(world: World, name: str, task_id: str = task_id, answers: dict[str, Answer] = answers) -> None:
            answers[name] = await world.it.claim_task(world.me, task_id, name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim, pair.a, "at-a")
            nursery.start_soon(claim, pair.b, "at-b")
        [winner] = [name for name, answer in answers.items() if answer["claimed"]]
        [refusal] = [answer["refusal"] for answer in answers.values() if not answer["claimed"]]
        assert refusal["data"]["owner"] == winner


@pytest.mark.parametrize("through", ["a", "b"])
async def test_a_lost_claim_is_cleaned_up_once(autojump_clock: MockClock, pair: Pair, through: str) -> None:
    """Both daemons see that a lease has ended; one of them gives the money back, counts the attempt and puts it on record."""
    world: World = getattr(pair, through)
    await world.swarm("worker", budget=DOLLAR)
    task_id = await pair.a.task(estimate_usd=DOLLAR // 2)
    await world.token(task_id, "worker")
    assert (await pair.a.account("worker")).holds
    await until_recorded(pair.a, "expire_claim", 1)
    await trio.sleep(60)
    assert await pair.a.outcomes("expire_claim") == ["ok"]
    assert not (await pair.a.account("worker")).holds
    assert (await pair.a.show(task_id))["attempts"] == 1


async def test_claims_of_a_daemon_that_is_gone_are_cleaned_up_by_the_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """When the daemon dies that has been there for longest, another cleans up after the claims whose leases then end."""
    async with open_world(tmp_path, host="s") as store, open_world(tmp_path, host="t", beside=store) as t:
        async with open_world(tmp_path, host="a", beside=store) as a:
            await a.swarm("worker", budget=DOLLAR)
            task_id = await a.task(estimate_usd=DOLLAR // 2)
            await a.token(task_id, "worker")
        await until_recorded(t, "expire_claim", 1)
        assert not (await t.account("worker")).holds
        assert (await t.show(task_id))["state"] == "ready"
        await t.swarm("heir")
        await t.token(task_id, "heir")


async def test_an_alarm_is_raised_once(autojump_clock: MockClock, pair: Pair) -> None:
    """A swarm that falls silent is reported once, though every daemon could see it, and at both it is heard."""
    heard: dict[str, list[Message]] = {"a": [], "b": []}
    for name, world in pair._asdict().items():
        world.bus.subscribe("escalations", lambda _, message, name=name: heard[name].append(message))
    await pair.b.swarm("worker")
    await trio.sleep(LEASE_MS / 1000 * 0.9)
    assert await pair.a.outcomes("raise_silent") == ["ok"]
    assert [[message["kind"] for message in heard[name]] for name in "ab"] == [["silent"], ["silent"]]


async def test_a_swarm_goes_on_through_another_daemon(autojump_clock: MockClock, pair: Pair) -> None:
    """With its resume token a swarm registers at another daemon and keeps session, claim and fencing token."""
    first = await pair.a.swarm("worker")
    task_id = await pair.a.task()
    token = await pair.a.token(task_id, "worker")
    again = await pair.b.swarm("worker", resume=first["resume_token"])
    assert again["resumed"]
    assert [claim["token"] for claim in again["claims"]] == [token]
    for _ in range(4):
        await trio.sleep(LEASE_MS / 2000)
        renewed = await pair.b.it.renew_session(pair.b.me, "worker", first["resume_token"])
        assert renewed["claims"] == [f"{task_id}@{token}"]
    await pair.b.it.report_progress(pair.b.me, task_id, "worker", token, 50)
    await pair.b.it.complete_task(pair.b.me, task_id, "worker", token, result=1)
    assert await pair.a.outcomes("expire_claim") == []


async def test_a_swarm_that_registers_anew_elsewhere_loses_its_claims(autojump_clock: MockClock, pair: Pair) -> None:
    """Without the token it is a new incarnation, at whatever daemon: what the old one held is free, and its token is stale."""
    await pair.a.swarm("worker")
    task_id = await pair.a.task()
    token = await pair.a.token(task_id, "worker")
    await pair.b.swarm("worker")
    with pytest.raises(StaleToken):
        await pair.a.it.complete_task(pair.a.me, task_id, "worker", token, result=1)
    assert (await pair.a.show(task_id))["state"] == "ready"
    await pair.b.token(task_id, "worker")


async def test_what_is_bound_stays_with_the_daemon_that_watches(autojump_clock: MockClock, pair: Pair) -> None:
    """A binding of one daemon is neither freed nor forgotten by another's start; the other says that it is watched."""
    connection = Connection()
    caller = pair.a.caller(session=connection)
    registered = await pair.a.it.register_swarm(caller, "worker", bind="connection")
    task_id = await pair.a.task()
    token = await pair.a.token(task_id, "worker")
    assert registered["bound"]["watched"]
    async with open_world(pair.a.path, host="c", beside=pair.a) as c:
        renewed = await c.it.renew_session(c.me, "worker", registered["resume_token"])
        assert renewed["bound"]["watched"]
        assert renewed["claims"] == [f"{task_id}@{token}"]
        connection.close()
        task = await c.until_state(task_id, "ready")
        assert task["attempts"] == 1
    assert await pair.a.outcomes("expire_claim") == ["ok"]


async def test_a_session_bound_anew_elsewhere_is_freed_from_there(autojump_clock: MockClock, pair: Pair) -> None:
    """Bound through another daemon, a session no longer ends with what it was bound to before, but with what it is bound to now."""
    before, now = Connection(), Connection()
    registered = await pair.a.it.register_swarm(pair.a.caller(session=before), "worker", bind="connection")
    task_id = await pair.a.task()
    token = await pair.a.token(task_id, "worker")
    resume = registered["resume_token"]
    await pair.b.it.bind_session(pair.b.caller(session=now), "worker", resume, "connection")
    before.close()
    renewed = await pair.b.it.renew_session(pair.b.me, "worker", resume)
    assert renewed["claims"] == [f"{task_id}@{token}"]
    now.close()
    await pair.a.until_state(task_id, "ready")


async def test_a_binding_whose_daemon_is_gone_lives_on_its_lease(tmp_path: Path, autojump_clock: MockClock) -> None:
    """With the daemon that watched it gone, a session says that nobody watches it, and is freed when its lease ends."""
    async with open_world(tmp_path, host="s") as store:
        async with open_world(tmp_path, host="a", beside=store) as a:
            caller = a.caller(session=Connection())
            registered = await a.it.register_swarm(caller, "worker", bind="connection")
            task_id = await a.task()
            await a.token(task_id, "worker")
        await trio.sleep(15)
        renewed = await store.it.renew_session(store.me, "worker", registered["resume_token"])
        assert not renewed["bound"]["watched"]
        assert (await store.show(task_id))["state"] == "claimed"
        await store.until_state(task_id, "ready")


async def test_a_start_frees_nothing_that_others_hold(autojump_clock: MockClock, pair: Pair) -> None:
    """A daemon that starts while others work gives back no hold and revokes no lease of theirs."""
    tokens = {}
    for n in range(20):
        name = f"worker-{n}"
        await pair.a.swarm(name, budget=DOLLAR)
        task_id = await pair.a.task(estimate_usd=1000)
        tokens[task_id] = (name, await pair.a.token(task_id, name))
    async with open_world(pair.a.path, host="c", beside=pair.a) as c:
        await c.it.board.catch_up()
        for task_id, (name, token) in tokens.items():
            assert (await c.account(name)).holds
            await c.it.complete_task(c.me, task_id, name, token, result=1)
    assert await pair.a.outcomes("expire_claim") == []


async def test_a_retry_at_another_daemon_has_the_effect_of_one(autojump_clock: MockClock, pair: Pair) -> None:
    """The same idempotency key with the same body is answered by another daemon as by the first."""
    first = await pair.a.it.create_task(pair.a.caller(key="k", body="x"), "Do it")
    again = await pair.b.it.create_task(pair.b.caller(key="k", body="x"), "Do it")
    assert again["task"]["task_id"] == first["task"]["task_id"]
    assert again["receipt"]["replayed"]
    assert again["receipt"]["revision"] == first["receipt"]["revision"]


async def test_a_blocker_is_heard_at_the_orchestrators_daemon(autojump_clock: MockClock, pair: Pair) -> None:
    """A blocker that is reported at one daemon reaches the orchestrator's inbox and the escalations at the other."""
    heard: list[Message] = []
    pair.b.bus.subscribe("escalations", lambda _, message: heard.append(message))
    await pair.b.swarm("chief", orchestrator=True)
    await pair.a.swarm("worker")
    await pair.a.it.detect_blocker(pair.a.me, "worker", {"reason": "no key"})
    assert [letter["kind"] for letter in await pair.b.inbox("chief")] == ["blocker"]
    with trio.fail_after(math.inf):
        while not heard:
            await trio.sleep(0.01)
    assert heard[0]["kind"] == "blocker"


async def test_tasks_are_numbered_once_for_all_daemons(pair: Pair) -> None:
    """Many tasks created at both daemons at once have names of their own, also beside one that somebody named so."""
    await pair.a.task("T-7")
    names: list[str] = []

    async def create(world: World) -> None:
        names.append(await world.task())

    async with trio.open_nursery() as nursery:
        for _ in range(60):
            nursery.start_soon(create, pair.a)
            nursery.start_soon(create, pair.b)
    assert len(set(names)) == 120
    assert "T-7" not in names
    listed = await pair.b.it.list_tasks(pair.b.me, limit=200)
    assert {task["task_id"] for task in listed["tasks"]} == {"T-7", *names}


async def test_nobody_waits_for_ever_where_the_watch_stalls(
    autojump_clock: MockClock, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is newest cannot be read while the store does not tell it, which is said; what was written is answered as done."""
    await pair.b.task("seen")
    ahead = pair.b.store.told_revision + 1_000
    with monkeypatch.context() as patch, trio.fail_after(600):
        patch.setattr(type(pair.b.store), "told_revision", property(lambda _: ahead))
        with pytest.raises(Unavailable) as caught:
            await pair.b.it.list_tasks(pair.b.me)
        assert caught.value.data["reason"] == "store_unreachable"
        assert caught.value.retry_after_ms > 0
        assert await pair.b.task("written") == "written"
    assert (await pair.a.show("written"))["state"] == "ready"
    assert len((await pair.b.it.list_tasks(pair.b.me))["tasks"]) == 2


async def test_a_question_is_asked_though_the_watch_stalls(
    autojump_clock: MockClock, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store does not tell looks like a question that has ended: it is answered as asked, and found once it is told."""
    await pair.b.swarm("docs", lease_ms=3_600_000)
    await pair.b.swarm("helper", lease_ms=3_600_000)
    with monkeypatch.context() as patch:
        board = pair.b.it.board
        patch.setattr(board, "_take_in", lambda *_: None)
        patch.setattr(board, "_advance", lambda _: None)
        asked = await pair.b.it.ask(pair.b.me, "docs", "helper", "why?", wait_ms=60_000)
    assert not asked["answered"]
    await pair.a.it.reply(pair.a.me, asked["reply_id"], 42)
    assert (await pair.a.it.await_reply(pair.a.me, "docs", asked["reply_id"]))["answer"] == 42


async def test_a_start_does_not_wait_until_nothing_is_lost(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A daemon that finds the attempt of a lost claim while other claims are lost all the time serves soon, and so does the next."""
    async with open_world(tmp_path, host="a") as a, trio.open_nursery() as nursery:
        await a.swarm("worker")

        async def lose() -> None:
            await a.profile("forgetful")
            while True:
                task_id = await a.task()
                await a.token(task_id, "forgetful", lease_ms=LEASE_MS)
                await trio.sleep(0.5)

        nursery.start_soon(lose)
        await until_recorded(a, "expire_claim", 3)
        left = await a.task(max_attempts=3)
        stored = await a.store.get(TASKS + left)
        assert stored is not None
        task = life.begin_attempt(TaskRecord.from_bytes(stored.value), "worker")
        await a.store.txn(Txn(then=[Put(TASKS + left, pack(task.to_map()))]))
        with trio.fail_after(60):
            async with open_world(tmp_path, host="b", beside=a) as b:
                assert (await b.show(left))["task_id"] == left
        nursery.cancel_scope.cancel()
