"""Inboxes: durable before anybody is told, each letter once and in order, withdrawn when it is moot."""

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ifbus.errors import (
    BreakerTripped,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    NotQualified,
    NotReady,
    PermissionDenied,
)
from ifbus.models import InboxMessage
from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import STRANGER, Connection, World, open_world


async def test_a_push_lands_in_the_inbox_and_is_heard(world: World) -> None:
    """It is a letter with a number, told to whoever listens, and the answer says how many did."""
    await world.swarm("docs", "docs:writing")
    await world.task("T-1", "docs:writing")
    connection = Connection()
    await world.it.subscribe_inbox(world.caller(session=connection), "docs")
    answer = await world.it.push_task_to_swarm(world.me, "T-1", "docs")
    assert (answer["seq"], answer["delivered"]) == (answer["receipt"]["revision"], 1)
    [letter] = await world.inbox("docs")
    message = InboxMessage.from_wire(letter)
    assert (message.seq, message.kind, message.body["task_id"]) == (answer["seq"], "task", "T-1")
    assert connection.of("inbox") == [{**letter, "swarm_id": "docs"}]
    assert (await world.show("T-1"))["route"] == "docs"


async def test_a_stranger_takes_no_letter_away(world: World) -> None:
    """What lies in another user's inbox is pushed elsewhere by that user, the task's creator and operators only."""
    await world.swarm("docs")
    await world.swarm("thief", uid=STRANGER)
    await world.task("T-1")
    await world.it.push_task_to_swarm(world.me, "T-1", "docs")
    with pytest.raises(PermissionDenied):
        await world.it.push_task_to_swarm(world.caller(STRANGER), "T-1", "thief")
    assert len(await world.inbox("docs")) == 1
    await world.it.push_task_to_swarm(world.caller(0), "T-1", "thief")
    assert await world.inbox("docs") == []


async def test_a_push_is_withdrawn_when_somebody_claims_the_task(world: World) -> None:
    """The letter goes with the claim's commit, whoever claims; the same holds when it is pushed to somebody else."""
    for name in ("docs", "fast", "late"):
        await world.swarm(name)
    await world.task("T-1")
    await world.it.push_task_to_swarm(world.me, "T-1", "docs")
    await world.it.push_task_to_swarm(world.me, "T-1", "late")
    assert await world.inbox("docs") == []
    assert len(await world.inbox("late")) == 1
    token = await world.token("T-1", "fast")
    assert await world.inbox("late") == []
    assert "route" not in await world.show("T-1")
    await world.it.release_task(world.me, "T-1", "fast", token)
    assert (await world.it.push_task_to_swarm(world.me, "T-1", "late"))["seq"] == (await world.inbox("late"))[0]["seq"]


async def test_pushing_twice_is_one_letter(world: World) -> None:
    """The second push answers the first letter's number and tells nobody."""
    await world.swarm("docs")
    await world.task("T-1")
    connection = Connection()
    await world.it.subscribe_inbox(world.caller(session=connection), "docs")
    first = await world.it.push_task_to_swarm(world.me, "T-1", "docs")
    second = await world.it.push_task_to_swarm(world.me, "T-1", "docs")
    assert second["seq"] == first["seq"]
    assert len(await world.inbox("docs")) == len(connection.of("inbox")) == 1


async def test_a_push_that_cannot_be_claimed_is_refused(world: World) -> None:
    """Unknown, held, waiting, not qualified, stopped, full: each with its code and a remedy, on record; no letter."""
    await world.swarm("docs", "docs:writing")
    await world.swarm("holder")
    await world.swarm("stopped")
    await world.governor.trip_circuit_breaker(world.caller(0), "stopped", "enough")
    await world.task("held")
    await world.task("waits", depends_on=["held"])
    await world.task("gpu", "gpu:cuda")
    await world.task("free")
    await world.token("held", "holder")
    for task_id, swarm_id, refusal in (
        ("T-99", "docs", NotFound),
        ("free", "nobody", NotFound),
        ("held", "docs", NotReady),
        ("waits", "docs", NotReady),
        ("gpu", "docs", NotQualified),
        ("free", "stopped", BreakerTripped),
    ):
        with pytest.raises(refusal) as refused:
            await world.it.push_task_to_swarm(world.me, task_id, swarm_id)
        assert refused.value.would_change, refusal
    assert "ok" not in await world.outcomes("push_task_to_swarm")
    assert len(await world.outcomes("push_task_to_swarm")) == 6
    assert world.it.statistics().letters == 0


async def test_a_full_inbox_refuses_a_push_and_is_left_out_of_a_broadcast(tmp_path: Any) -> None:
    """Nothing is dropped, the sender knows, the others still hear; after acknowledging there is room again."""
    async with open_world(tmp_path, config=CoordinatorConfig(inbox_messages=2)) as world:
        await world.swarm("docs")
        await world.swarm("other")
        await world.task("T-1")
        for n in range(2):
            await world.it.broadcast(world.me, "news", {"n": n})
        await world.it.acknowledge(world.me, "other", 10**9)
        with pytest.raises(LimitExceeded) as full:
            await world.it.push_task_to_swarm(world.me, "T-1", "docs")
        assert full.value.data.items() >= {"limit": "inbox_messages", "used": 2, "allowed": 2}.items()
        assert full.value.would_change
        answer = await world.it.broadcast(world.me, "news", {"n": 2})
        assert (answer["full"], answer["full_inboxes"], answer["broadcast"]["delivered_to"]) == (1, ["docs"], 1)
        assert [letter["body"]["n"] for letter in await world.inbox("docs")] == [0, 1]
        await world.it.acknowledge(world.me, "docs", 10**9)
        await world.it.push_task_to_swarm(world.me, "T-1", "docs")


async def test_letters_survive_a_restart(tmp_path: Any) -> None:
    """A swarm that was away gets what was pushed, after the daemon was opened again on the same files."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs")
        await world.task("T-1")
        pushed = await world.it.push_task_to_swarm(world.me, "T-1", "docs")
        await world.it.broadcast(world.me, "news", {"n": 1})
    async with open_world(tmp_path) as world:
        letters = await world.inbox("docs")
        assert [letter["kind"] for letter in letters] == ["task", "broadcast"]
        assert letters[0]["seq"] == pushed["seq"]
        connection = Connection()
        answer = await world.it.subscribe_inbox(world.caller(session=connection), "docs", after_seq=pushed["seq"])
        assert answer["replayed"] == 1
        assert [letter["kind"] for letter in connection.of("inbox")] == ["broadcast"]


async def test_subscribing_misses_and_repeats_nothing(world: World) -> None:
    """Whenever it falls among pushes that are under way, each letter is told once, in order of its number."""
    await world.swarm("docs")
    for n in range(30):
        await world.task(f"T-{n}")
    connections = [Connection() for _ in range(10)]
    async with trio.open_nursery() as nursery:
        for n in range(30):
            nursery.start_soon(world.it.push_task_to_swarm, world.me, f"T-{n}", "docs")
            if n % 3 == 0:
                await trio.lowlevel.checkpoint()
                nursery.start_soon(world.it.subscribe_inbox, world.caller(session=connections[n // 3]), "docs")
    everything = [letter["seq"] for letter in await world.inbox("docs")]
    assert len(everything) == 30
    for connection in connections:
        assert [letter["seq"] for letter in connection.of("inbox")] == everything


async def test_a_sender_that_is_cancelled_has_sent_or_not(world: World) -> None:
    """Whatever the moment of the cancellation: what is in the inbox was told, and nothing else."""
    await world.swarm("docs")
    connection = Connection()
    await world.it.subscribe_inbox(world.caller(session=connection), "docs")
    sent = 0
    for n in range(12):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.it.broadcast, world.me, "news", {"n": n})
                for _ in range(n):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        await wait_all_tasks_blocked()
        letters = await world.inbox("docs")
        sent = len(letters)
        assert [letter["seq"] for letter in connection.of("inbox")] == [letter["seq"] for letter in letters]
    assert sent


async def test_a_connection_subscribes_once(world: World) -> None:
    """Subscribing again on one connection replaces the subscription; its end takes it away, also when it ended before."""
    await world.swarm("docs")
    connection, ended = Connection(), Connection()
    for _ in range(5):
        await world.it.subscribe_inbox(world.caller(session=connection), "docs")
        await world.it.subscribe_board(world.caller(session=connection))
    ended.close()
    await world.it.subscribe_inbox(world.caller(session=ended), "docs")
    await world.it.subscribe_board(world.caller(session=ended))
    await world.it.broadcast(world.me, "news", {})
    await world.task("T-1")
    await world.it.board.catch_up()
    assert len(connection.of("inbox")) == len(connection.of("board")) == 1
    connection.close()
    await world.it.broadcast(world.me, "news", {})
    await world.task("T-2")
    await world.it.board.catch_up()
    assert len(connection.of("inbox")) == len(connection.of("board")) == 1
    assert world.bus.statistics()["sinks"] == 0
    assert world.it.board.mail.listeners("docs") == 0
    with pytest.raises(InvalidRequest):
        await world.it.subscribe_inbox(world.me, "docs")


async def test_a_broadcast_reaches_those_who_can(world: World) -> None:
    """Every registered swarm that has all capabilities, but not the sender."""
    await world.swarm("a", "x:1", "y:2")
    await world.swarm("b", "x:1")
    await world.swarm("c", "x:1", "y:2", "z:3")
    answer = await world.it.broadcast(world.me, "help", {"n": 1}, capabilities=["x:1", "y:2"], sender="c")
    assert answer["broadcast"]["delivered_to"] == 1
    [letter] = await world.inbox("a")
    assert (letter["kind"], letter["sender"], letter["body"]) == ("broadcast", "c", {"topic": "help", "n": 1})
    assert await world.inbox("b") == await world.inbox("c") == []
    with pytest.raises(LimitExceeded) as too_long:
        await world.it.broadcast(world.me, "help", {"x": "x" * 17_000})
    assert too_long.value.would_change


async def test_a_large_broadcast_is_sent_once_even_when_retried(world: World) -> None:
    """250 swarms get it in several transactions; a retry with the same key sends nobody a second letter, also with newcomers."""
    for n in range(250):
        await world.profile(f"s{n:03d}")
    caller = world.caller(key="k", body="news")
    answer = await world.it.broadcast(caller, "news", {})
    assert (answer["broadcast"]["delivered_to"], answer["full"]) == (250, 0)
    await world.profile("a-newcomer")
    again = await world.it.broadcast(caller, "news", {})
    assert again["broadcast"]["delivered_to"] == 250
    assert world.it.statistics().letters == 250


async def test_the_key_of_a_part_is_nobodys_key(world: World) -> None:
    """Whoever numbers the keys of requests does not meet those of the parts of a large one."""
    for n in range(150):
        await world.profile(f"s{n:03d}")
    await world.it.broadcast(world.caller(key="k", body="first"), "news", {})
    for n in range(3):
        answer = await world.it.broadcast(world.caller(key=f"k#{n}", body=f"next {n}"), "news", {"n": n})
        assert answer["broadcast"]["delivered_to"] == 150


async def test_acknowledging_drops_what_was_read(world: World) -> None:
    """Everything up to a number but pushed tasks, however much; and nothing of what came later."""
    await world.swarm("docs")
    await world.task("T-1")
    await world.it.push_task_to_swarm(world.me, "T-1", "docs")
    for n in range(230):
        await world.it.broadcast(world.me, "news", {"n": n})
    letters = (await world.it.read_inbox(world.me, "docs", limit=200))["messages"]
    assert (await world.it.read_inbox(world.me, "docs", limit=200))["has_more"]
    last = letters[-1]["seq"]
    caller = world.caller(key="k", body="ack")
    assert (await world.it.acknowledge(caller, "docs", last))["dropped"] == 199
    assert (await world.it.acknowledge(caller, "docs", last))["dropped"] == 199  # the retry: the first answer
    left = await world.inbox("docs")
    assert [letter["kind"] for letter in left] == ["task"] + ["broadcast"] * 31
    assert [letter["body"]["n"] for letter in left[1:]] == list(range(199, 230))
    page = await world.it.read_inbox(world.me, "docs", after_seq=left[1]["seq"], limit=10)
    assert [letter["body"]["n"] for letter in page["messages"]] == list(range(200, 210))


async def test_the_board_tells_what_happens(world: World) -> None:
    """A connection hears of each change of a task."""
    await world.swarm("docs")
    connection = Connection()
    await world.it.subscribe_board(world.caller(session=connection))
    await world.task("T-1")
    await world.it.push_task_to_swarm(world.me, "T-1", "docs")
    token = await world.token("T-1", "docs")
    await world.it.report_progress(world.me, "T-1", "docs", token, 30)
    await world.it.complete_task(world.me, "T-1", "docs", token)
    await world.it.board.catch_up()
    assert [event["event"] for event in connection.of("board")] == [
        "created", "pushed", "claimed", "progress", "completed",
    ]  # fmt: skip
