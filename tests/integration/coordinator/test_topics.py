"""Broadcasts by expression and by topic: durable, each once and in order, also over reconnects and a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from ifbus.errors import InvalidParams, LimitExceeded, NotKept
from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import Connection, World, open_world


async def say(world: World, number: int, **more: object) -> int:
    """Broadcast a number on the topic ``news``; how many got it."""
    answer = await world.it.broadcast(world.me, "news", {"n": number}, **more)  # type: ignore[arg-type]
    delivered: int = answer["broadcast"]["delivered_to"]
    return delivered


async def heard(world: World, swarm_id: str) -> list[int]:
    """What lies in an inbox."""
    return [letter["body"]["n"] for letter in await world.inbox(swarm_id)]


async def test_an_expression_says_who_is_meant(world: World) -> None:
    """All, any, not and areas, beside the plain list of capabilities; what cannot be read is refused with its place."""
    await world.swarm("py", "code:python", "infra:net")
    await world.swarm("docs", "docs:writing", "code:python")
    await world.swarm("gpu", "code:python", "infra:net", "gpu:cuda")
    for number, (expression, meant) in enumerate(
        [
            ("all(code:python, any(infra:*, docs:writing), not(gpu:*))", {"py", "docs"}),
            ("infra:*", {"py", "gpu"}),
            ("not(code:python)", set()),
        ]
    ):
        assert await say(world, number, expression=expression) == len(meant)
        assert {name for name in ("py", "docs", "gpu") if number in await heard(world, name)} == meant
    assert await say(world, 7, expression="code:*", capabilities=["docs:writing"]) == 1
    with pytest.raises(InvalidParams) as refused:
        await say(world, 8, expression="all(code:python")
    assert refused.value.data["at"] == 15


async def test_subscribers_hear_of_a_topic(world: World) -> None:
    """Those that subscribed, twice is once, and nobody else; after the end only others."""
    for name in ("one", "two", "three"):
        await world.swarm(name)
    for name in ("one", "two", "two"):
        await world.it.subscribe_topic(world.me, name, "news")
    await world.it.subscribe_topic(world.me, "three", "other")
    assert (await world.it.list_topics(world.me, "two"))["topics"] == ["news"]
    assert await say(world, 1, subscribers=True) == 2
    await world.it.unsubscribe_topic(world.me, "one", "news")
    await world.it.unsubscribe_topic(world.me, "one", "news")
    assert await say(world, 2, subscribers=True) == 1
    assert (await heard(world, "one"), await heard(world, "two"), await heard(world, "three")) == ([1], [1, 2], [])


async def test_a_topic_is_heard_once_and_in_order(tmp_path: Path) -> None:
    """Over connections that come and go and a restart, each goes on after the last one seen: nothing is missing, twice or out of order."""
    told: list[int] = []
    seen = 0
    number = 0

    async def listen(world: World) -> Connection:
        connection = Connection()
        await world.it.subscribe_inbox(world.caller(session=connection), "one", after_seq=seen)
        return connection

    def take(connection: Connection) -> int:
        letters = connection.of("inbox")
        told.extend(letter["body"]["n"] for letter in letters)
        return max((letter["seq"] for letter in letters), default=seen)

    for _ in range(2):
        async with open_world(tmp_path) as world:
            await world.swarm("one")
            await world.swarm("two")
            await world.it.subscribe_topic(world.me, "one", "news")
            for _ in range(4):
                connection = await listen(world)
                for _ in range(3):
                    number += 1
                    assert await say(world, number, subscribers=True) == 1
                await world.it.board.catch_up()
                seen = take(connection)
                connection.close()
                number += 1
                await say(world, number, subscribers=True)  # while nobody listens
    async with open_world(tmp_path) as world:
        connection = await listen(world)
        seen = take(connection)
        assert told == list(range(1, number + 1))
        assert len(connection.of("inbox")) == 1


async def test_topics_are_bounded(tmp_path: Path) -> None:
    """One swarm subscribes to so many, of names that can be topics."""
    async with open_world(tmp_path, config=CoordinatorConfig(topics_per_swarm=2)) as world:
        await world.swarm("one")
        for topic in ("a", "b", "a"):
            await world.it.subscribe_topic(world.me, "one", topic)
        with pytest.raises(LimitExceeded):
            await world.it.subscribe_topic(world.me, "one", "c")
        with pytest.raises(InvalidParams):
            await world.it.subscribe_topic(world.me, "one", "a/b")
        await world.it.unsubscribe_topic(world.me, "one", "a")
        with trio.fail_after(60):
            await world.it.subscribe_topic(world.me, "one", "c")


async def test_subscriptions_survive_a_restart(tmp_path: Path) -> None:
    """Who subscribed before it hears afterwards, without a session."""
    async with open_world(tmp_path) as world:
        await world.swarm("one")
        await world.it.subscribe_topic(world.me, "one", "news")
    async with open_world(tmp_path) as world:
        assert await say(world, 1, subscribers=True) == 1
        assert await heard(world, "one") == [1]


async def test_the_board_is_heard_once_and_in_order(world: World) -> None:
    """Over connections that come and go, with many at work and some given up, every change of every task is told once, in order."""
    told: list[tuple[str, str]] = []
    seen = (await world.it.subscribe_board(world.caller(session=Connection())))["seq"]
    for name in ("a", "b", "c"):
        await world.swarm(name)

    async def work(task_id: str, swarm_id: str) -> None:
        await world.task(task_id)
        token = await world.token(task_id, swarm_id)
        await world.it.report_progress(world.me, task_id, swarm_id, token, 50)
        await world.it.complete_task(world.me, task_id, swarm_id, token)

    for turn in range(4):
        connection = Connection()
        await world.it.subscribe_board(world.caller(session=connection), after_seq=seen)
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(work, f"T-{turn}{name}", name)
        await world.it.board.catch_up()
        messages = connection.of("board")
        told += [(message["task_id"], message["event"]) for message in messages]
        seqs = [message["seq"] for message in messages]
        assert seqs == sorted(set(seqs))
        assert seqs[0] > seen
        seen = seqs[-1]
        connection.close()
        with trio.CancelScope() as scope:  # given up while it is being committed: told all the same
            scope.cancel()
            await world.it.create_task(world.me, "given up", task_id=f"G-{turn}")
        await work(f"N-{turn}", "a")  # while nobody listens
    last = Connection()
    await world.it.board.catch_up()
    await world.it.subscribe_board(world.caller(session=last), after_seq=seen)
    told += [(message["task_id"], message["event"]) for message in last.of("board")]
    life = ["created", "claimed", "progress", "completed"]
    for turn in range(4):
        for name in (f"T-{turn}a", f"T-{turn}b", f"T-{turn}c", f"N-{turn}"):
            assert [event for task_id, event in told if task_id == name] == life
        there = f"tasks/G-{turn}" in await world.stored()
        assert [event for task_id, event in told if task_id == f"G-{turn}"] == (["created"] if there else [])


async def test_the_board_goes_on_after_a_restart_or_says_why_not(tmp_path: Path) -> None:
    """Nothing happened meanwhile: it goes on. Something did that nobody here has seen: refused, with what is kept."""
    async with open_world(tmp_path) as world:
        connection = Connection()
        await world.it.subscribe_board(world.caller(session=connection))
        await world.task("T-1")
        await world.it.board.catch_up()
        first = connection.of("board")[-1]["seq"]
        await world.task("T-2")
        await world.it.board.catch_up()
        last = connection.of("board")[-1]["seq"]
    async with open_world(tmp_path) as world:
        connection = Connection()
        await world.it.subscribe_board(world.caller(session=connection), after_seq=last)
        await world.task("T-3")
        await world.it.board.catch_up()
        assert [message["task_id"] for message in connection.of("board")] == ["T-3"]
        with pytest.raises(NotKept) as refused:
            await world.it.subscribe_board(world.caller(session=Connection()), after_seq=first)
        assert refused.value.data["oldest_seq"] == last
        assert (await world.outcomes("subscribe_board")) == ["not_kept"]


async def test_the_board_keeps_so_much(tmp_path: Path) -> None:
    """Further back it is refused; what is kept comes, more than is sent at once too."""
    async with open_world(tmp_path, config=CoordinatorConfig(board_history=40)) as world:
        connection = Connection()
        start = (await world.it.subscribe_board(world.caller(session=connection)))["seq"]
        for number in range(60):
            await world.task(f"T-{number}")
        await world.it.board.catch_up()
        seqs = [message["seq"] for message in connection.of("board")]
        with pytest.raises(NotKept):
            await world.it.subscribe_board(world.caller(session=Connection()), after_seq=start)
        late = Connection()
        answer = await world.it.subscribe_board(world.caller(session=late), after_seq=seqs[19])
        assert [message["seq"] for message in late.of("board")] == seqs[20:]
        assert answer["replayed"] == 40


async def test_the_board_of_another_daemon_has_the_same_numbers(tmp_path: Path) -> None:
    """Who comes back through another daemon goes on there: each event once, in order."""
    async with open_world(tmp_path, host="a") as one, open_world(tmp_path, host="b", beside=one) as other:
        here, there = Connection(), Connection()
        for world, connection in ((one, here), (other, there)):
            await world.it.subscribe_board(world.caller(session=connection))
        for number in range(6):
            await (one if number % 2 else other).task(f"T-{number}")
        await one.it.board.catch_up()
        await other.it.board.catch_up()
        assert here.of("board") == there.of("board")
        seqs = [message["seq"] for message in here.of("board")]
        back = Connection()
        await other.it.subscribe_board(other.caller(session=back), after_seq=seqs[2])
        assert [message["task_id"] for message in back.of("board")] == ["T-3", "T-4", "T-5"]
