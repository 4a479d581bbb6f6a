"""Questions to swarms and people: durable, waited for, ended with what they are asked for; waits that close a cycle are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ifbus.errors import (
    InvalidParams,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    ResourceBusy,
    StaleToken,
    WouldDeadlock,
)
from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import STRANGER, World, open_world

OPERATOR = 0


async def ask(world: World, swarm_id: str, to: str, **more: Any) -> str:
    """The id of a new question."""
    answer = await world.it.ask(world.me, swarm_id, to, "where is it?", **more)
    reply_id: str = answer["reply_id"]
    return reply_id


async def edges(world: World, about: str = "") -> set[tuple[str, str, str]]:
    """Who waits for what, and why."""
    found = (await world.it.waits(world.me, about=about))["edges"]
    return {(edge["from"], edge["to"], edge["why"]) for edge in found}


async def open_questions(world: World) -> list[str]:
    """Their ids."""
    return [question["reply_id"] for question in (await world.it.list_questions(world.me))["questions"]]


async def test_a_question_is_a_letter_and_its_answer_too(world: World) -> None:
    """Who is asked finds it in its inbox; who asked is woken by the answer, finds it in its own inbox, and can ask for it again."""
    await world.swarm("docs")
    await world.swarm("helper", uid=STRANGER)
    got: list[Any] = []

    async def wait() -> None:
        got.append(await world.it.ask(world.me, "docs", "helper", "where is it?", wait_ms=600_000))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            [letter] = (await world.it.read_inbox(world.caller(STRANGER), "helper"))["messages"]
            assert (letter["kind"], letter["urgent"], letter["body"]["question"]) == ("question", True, "where is it?")
            assert await edges(world) == {("swarm:docs", "swarm:helper", "reply")}
            reply_id = letter["body"]["reply_id"]
            await world.it.reply(world.caller(STRANGER), reply_id, {"path": "docs/a.md"})
    [answer] = got
    assert (answer["reply_id"], answer["answered"], answer["answer"]) == (reply_id, True, {"path": "docs/a.md"})
    [letter] = await world.inbox("docs")
    assert (letter["kind"], letter["body"]["answer"]) == ("reply", {"path": "docs/a.md"})
    assert (await world.it.await_reply(world.me, "docs", reply_id))["answer"] == {"path": "docs/a.md"}
    assert await edges(world) == set()


async def test_only_who_is_asked_replies(world: World) -> None:
    """Another user, the asker among them, is refused, and so is an operator where a swarm is asked; a second answer finds no question."""
    await world.swarm("docs")
    await world.swarm("helper", uid=STRANGER)
    reply_id = await ask(world, "docs", "helper")
    for caller in (world.me, world.caller(3000), world.caller(OPERATOR)):
        with pytest.raises(PermissionDenied):
            await world.it.reply(caller, reply_id, 1)
    assert await open_questions(world) == [reply_id]
    await world.it.reply(world.caller(STRANGER), reply_id, 1)
    with pytest.raises(NotFound):
        await world.it.reply(world.caller(STRANGER), reply_id, 2)
    await world.swarm("other")
    with pytest.raises(NotFound):  # another swarm of the same user is not told
        await world.it.await_reply(world.me, "other", reply_id)
    assert (await world.it.await_reply(world.me, "docs", reply_id))["answer"] == 1


async def test_a_person_approves(world: World) -> None:
    """Operators hear of it, only they decide, and it is an open escalation until then."""
    told: list[Any] = []
    world.bus.subscribe("escalations", lambda _, message: told.append((message["kind"], message["reply_id"])))
    await world.swarm("docs")
    reply_id = await ask(world, "docs", "person")
    escalations = (await world.governor.list_escalations(world.me))["escalations"]
    assert [(one["kind"], one["reply_id"]) for one in escalations] == [("approval", reply_id)]
    with pytest.raises(PermissionDenied) as denied:
        await world.it.reply(world.me, reply_id, {"approved": True})
    assert denied.value.would_change
    await world.it.reply(world.caller(OPERATOR), reply_id, {"approved": False, "note": "too dear"})
    assert (await world.it.await_reply(world.me, "docs", reply_id))["answer"]["approved"] is False
    assert told == [("approval", reply_id), ("approval_ended", reply_id)]
    assert (await world.governor.list_escalations(world.me))["escalations"] == []


async def test_a_restart_loses_no_question_and_no_answer(tmp_path: Path) -> None:
    """Asked before it, answered after it; the answer survives another one."""
    async with open_world(tmp_path) as world:
        await world.swarm("docs")
        await world.swarm("helper")
        await world.task("T-1")
        token = await world.token("T-1", "docs")
        reply_id = await ask(world, "docs", "helper", task_id="T-1", token=token)
        approval = await ask(world, "docs", "person")
    async with open_world(tmp_path) as world:
        assert await edges(world) >= {("task:T-1", "swarm:helper", "reply"), ("swarm:docs", "person", "approval")}
        await world.it.reply(world.me, reply_id, "here")
        assert await open_questions(world) == [approval]
    async with open_world(tmp_path) as world:
        answer = await world.it.await_reply(world.me, "docs", reply_id, wait_ms=600_000)
        assert answer["answer"] == "here"


async def test_a_question_ends_with_its_claim(world: World) -> None:
    """In the same commit, with its answer if it has one; it is asked with a current token only."""
    await world.swarm("docs")
    await world.swarm("helper")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    answered = await ask(world, "docs", "helper", task_id="T-1", token=token)
    await world.it.reply(world.me, answered, 1)
    reply_id = await ask(world, "docs", "helper", task_id="T-1", token=token)
    await world.it.release_task(world.me, "T-1", "docs", token)
    assert await open_questions(world) == []
    for gone in (answered, reply_id):
        with pytest.raises(NotFound):
            await world.it.await_reply(world.me, "docs", gone)
    with pytest.raises(NotFound):
        await world.it.reply(world.me, reply_id, 1)
    with pytest.raises(StaleToken):
        await ask(world, "docs", "helper", task_id="T-1", token=token)


async def test_a_claim_has_so_many_questions(world: World) -> None:
    """Answers make no room, and what is refused says so; the swarm itself may still ask."""
    await world.swarm("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    for _ in range(16):
        reply_id = await ask(world, "docs", "person", task_id="T-1", token=token)
        await world.it.reply(world.caller(OPERATOR), reply_id, 1)
    with pytest.raises(LimitExceeded, match="cannot ask for T-1: ends_with is 32 of 32") as refused:
        await ask(world, "docs", "person", task_id="T-1", token=token)
    for error in (refused.value, await _refusal(world, token)):
        assert "a question counts until the claim ends" in error.would_change[0]["what"]
    await ask(world, "docs", "person")


async def _refusal(world: World, token: int) -> LimitExceeded:
    with pytest.raises(LimitExceeded, match=f"cannot acquire for T-1@{token}: ends_with is 32 of 32") as refused:
        await world.it.acquire_resources(world.me, "docs", ["gpu:0"], task_id="T-1", token=token)
    return refused.value


async def test_a_question_ends_with_its_session(world: World, autojump_clock: MockClock) -> None:
    """Who waits for it hears of that."""
    await world.swarm("docs")
    await world.swarm("helper", lease_ms=3_600_000)
    with pytest.raises(NotFound):
        await world.it.ask(world.me, "docs", "helper", "where?", wait_ms=600_000)
    assert await open_questions(world) == []
    assert autojump_clock.current_time() < 600


async def test_two_who_ask_each_other_are_told(world: World) -> None:
    """The second is refused with the cycle named, and nothing is written; after the first is answered it may ask."""
    await world.swarm("a")
    await world.swarm("b")
    await world.task("T-1")
    await world.task("T-2")
    first, second = await world.token("T-1", "a"), await world.token("T-2", "b")
    reply_id = await ask(world, "a", "b", task_id="T-1", token=first)
    before = await world.stored()
    with pytest.raises(WouldDeadlock) as refused:
        await ask(world, "b", "a", task_id="T-2", token=second)
    assert refused.value.data["cycle"] == ["task:T-2", "swarm:a", "task:T-1", "swarm:b", "task:T-2"]
    assert "T-2 waits for a reply of a, which works on T-1" in refused.value.message
    assert refused.value.would_change
    assert await world.stored() == before
    await world.it.reply(world.me, reply_id, 1)
    await ask(world, "b", "a", task_id="T-2", token=second)


async def test_waiting_for_resources_in_a_circle_is_refused(world: World) -> None:
    """Each holds what the other one waits for: the second is told at once, lets go, and the first has what it waited for."""
    await world.swarm("a")
    await world.swarm("b")
    mine = (await world.it.acquire_resources(world.me, "a", ["gpu:0"]))["fences"]
    theirs = (await world.it.acquire_resources(world.me, "b", ["gpu:1"]))["fences"]
    got: list[str] = []

    async def wait() -> None:
        got.extend((await world.it.acquire_resources(world.me, "a", ["gpu:1"], wait_ms=600_000))["fences"])

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while ("swarm:a", "resource:gpu:1", "resource") not in await edges(world):
                await trio.lowlevel.checkpoint()
            with pytest.raises(WouldDeadlock) as refused:
                await world.it.acquire_resources(world.me, "b", ["gpu:0"], wait_ms=600_000)
            assert refused.value.data["cycle"][0] == "swarm:b"
            with pytest.raises(ResourceBusy):  # who does not wait is only told that it is busy
                await world.it.acquire_resources(world.me, "b", ["gpu:0"])
            await world.it.release_resources(world.me, "b", theirs)
    assert got == ["gpu:1"]
    assert mine
    assert await edges(world) == set()


async def test_what_closes_a_cycle_by_being_taken_is_refused(world: World) -> None:
    """`b` waits for `a`, which would take what `b` waits for."""
    await world.swarm("a")
    await world.swarm("b")
    await world.swarm("c")
    held = (await world.it.acquire_resources(world.me, "c", ["gpu:0"]))["fences"]
    await ask(world, "a", "b")
    refused: list[WouldDeadlock] = []

    async def wait() -> None:
        await world.it.acquire_resources(world.me, "b", ["gpu:0"], wait_ms=600_000)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            while ("swarm:b", "resource:gpu:0", "resource") not in await edges(world):
                await trio.lowlevel.checkpoint()

            # Freed, and wanted by `a` before `b` has looked: whoever comes first, `a` must not have it while it waits for `b`.
            async def snatch() -> None:
                try:
                    await world.it.acquire_resources(world.me, "a", ["gpu:0"])
                except WouldDeadlock as error:
                    refused.append(error)
                except ResourceBusy:
                    pass

            await world.it.release_resources(world.me, "c", held)
            nursery.start_soon(snatch)
    locks = (await world.it.list_resources(world.me))["resources"]
    assert [lock["swarm_id"] for lock in locks] == ["b"]


@pytest.mark.parametrize("size", [2, 3, 8])
async def test_of_a_circle_asked_at_once_one_is_refused(world: World, size: int) -> None:
    """Each swarm asks the next one, all at the same time: exactly one closes the circle and hears of it."""
    names = [f"s-{number}" for number in range(size)]
    for name in names:
        await world.swarm(name)
    refused: list[WouldDeadlock] = []

    async def one(number: int) -> None:
        try:
            await ask(world, names[number], names[(number + 1) % size])
        except WouldDeadlock as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for number in range(size):
            nursery.start_soon(one, number)
    [error] = refused
    assert len(error.data["cycle"]) == size + 1
    assert len(await edges(world)) == size - 1


async def test_the_graph_shows_dependencies_and_held_resources(world: World) -> None:
    """What waits for somebody is shown with all that waits behind it, and where help would free the most."""
    await world.swarm("docs")
    await world.swarm("gpu")
    await world.task("T-1")
    await world.task("T-2", depends_on=["T-1"])
    await world.task("T-3", depends_on=["T-2"])
    await world.task("T-4", resources=["gpu:0"])
    await world.it.acquire_resources(world.me, "gpu", ["gpu:0"])
    token = await world.token("T-1", "docs")
    reply_id = await ask(world, "docs", "person", task_id="T-1", token=token)
    assert await edges(world) == {
        ("task:T-1", "person", "approval"),
        ("task:T-2", "task:T-1", "dependency"),
        ("task:T-3", "task:T-2", "dependency"),
        ("task:T-4", "resource:gpu:0", "resource"),
        ("resource:gpu:0", "swarm:gpu", "held"),
    }
    assert await edges(world, "T-4") == {
        ("task:T-4", "resource:gpu:0", "resource"),
        ("resource:gpu:0", "swarm:gpu", "held"),
    }
    answer = await world.it.waits(world.me)
    assert answer["help"]["edge"]["id"] == reply_id
    assert answer["help"]["frees"] == ["T-1", "T-2", "T-3"]
    assert (await world.it.waits(world.me, limit=2))["has_more"]


async def test_who_holds_a_task_waits_for_no_dependency(world: World) -> None:
    """It ran without one that had failed; that this one is open again is no wait of its holder, and closes no circle."""
    await world.swarm("docs")
    await world.swarm("gpu")
    await world.task("T-1", resources=["gpu:0"])
    await world.task("T-2", depends_on=["T-1"], on_dependency_failure="run")
    await world.it.cancel_task(world.me, "T-1")
    token = await world.token("T-2", "docs")
    await world.it.requeue_task(world.me, "T-1")
    await world.it.acquire_resources(world.me, "docs", ["gpu:0"], task_id="T-2", token=token)
    assert await edges(world, "T-1") == {
        ("task:T-1", "resource:gpu:0", "resource"),
        ("resource:gpu:0", "task:T-2", "held"),
    }


async def test_help_is_called_where_it_frees_the_most(world: World) -> None:
    """The swarm that owes an answer gets a letter; where a person does, operators hear of it; who waits for nobody is refused."""
    told: list[str] = []
    world.bus.subscribe("escalations", lambda _, message: told.append(message["kind"]))
    await world.swarm("docs")
    await world.swarm("helper")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    with pytest.raises(InvalidRequest):
        await world.it.request_help(world.me, "docs")
    reply_id = await ask(world, "docs", "helper", task_id="T-1", token=token)
    answer = await world.it.request_help(world.me, "docs")
    assert (answer["asked"], answer["frees"], answer["edge"]["id"]) == ("helper", ["T-1"], reply_id)
    assert [letter["kind"] for letter in await world.inbox("helper")] == ["question", "help"]
    await world.it.reply(world.me, reply_id, 1)
    await ask(world, "docs", "person", task_id="T-1", token=token)
    assert (await world.it.request_help(world.me, "docs"))["asked"] == "person"
    assert told == ["approval", "help"]


async def test_help_is_asked_for_where_two_answers_are_awaited(world: World) -> None:
    """A task that waits for two frees nobody by one of them: the one that has kept it waiting for longer hears of it first."""
    for name in ("docs", "one", "two"):
        await world.swarm(name)
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    first = await ask(world, "docs", "one", task_id="T-1", token=token)
    await ask(world, "docs", "two", task_id="T-1", token=token)
    answer = await world.it.request_help(world.me, "docs")
    assert (answer["asked"], answer["frees"], answer["holds_up"]) == ("one", [], 1)
    assert (await world.inbox("one"))[-1]["body"]["reason"] == "1 task waits for this"
    await world.it.reply(world.me, first, 1)
    answer = await world.it.request_help(world.me, "docs")
    assert (answer["asked"], answer["frees"], answer["holds_up"]) == ("two", ["T-1"], 1)


async def test_questions_are_bounded(tmp_path: Path) -> None:
    """Of one user so many are open; of one swarm so many answers are kept."""
    async with open_world(tmp_path, config=CoordinatorConfig(questions_per_uid=2, inbox_messages=500)) as world:
        await world.swarm("docs")
        await world.swarm("helper")
        first, second = await ask(world, "docs", "helper"), await ask(world, "docs", "helper")
        with pytest.raises(LimitExceeded):
            await ask(world, "docs", "helper")
        await world.it.reply(world.me, first, 1)
        await ask(world, "docs", "helper")
        await world.it.reply(world.me, second, 2)
        for _ in range(64):
            await world.it.reply(world.me, await ask(world, "docs", "helper"), 1)
        with pytest.raises(NotFound):
            await world.it.await_reply(world.me, "docs", first)
        assert len([key for key in await world.stored() if key.startswith("answers/")]) == 64


async def test_a_question_outside_a_session_ends_by_itself(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It is open for as long as is configured."""
    async with open_world(tmp_path, config=CoordinatorConfig(question_ms=20_000)) as world:
        await world.profile("docs")
        await world.swarm("helper")
        reply_id = await ask(world, "docs", "helper")
        assert await open_questions(world) == [reply_id]
        await trio.sleep(21)
        assert await open_questions(world) == []
    assert autojump_clock.current_time() < 60


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"to": "docs"}, "docs would ask itself"),
        ({"to": "a/b"}, "to is 1 to 64"),
        ({"question": ""}, "^a question has words$"),
        ({"question": "x" * 5000}, "question"),
        ({"task_id": "T-1"}, "^task_id and token go together$"),
        ({"wait_ms": -1}, "wait_ms must be"),
    ],
)
async def test_what_is_no_question_is_refused(world: World, params: dict[str, Any], said: str) -> None:
    """To itself, to nobody's name, without words, too long, with half a claim: each is told what is wrong with it."""
    await world.swarm("docs")
    with pytest.raises(InvalidParams, match=said):
        await world.it.ask(world.me, "docs", **{"to": "helper", "question": "?", **params})


async def test_nobody_is_asked_who_is_not_there(world: World) -> None:
    """An unknown swarm, an answer that is too long, a reply id that cannot be one."""
    await world.swarm("docs")
    await world.swarm("helper")
    with pytest.raises(NotFound):
        await ask(world, "docs", "nobody")
    reply_id = await ask(world, "docs", "helper")
    with pytest.raises(LimitExceeded):
        await world.it.reply(world.me, reply_id, "x" * 20_000)
    with pytest.raises(InvalidParams):
        await world.it.reply(world.me, "Q-../x", 1)


async def test_asking_again_with_one_key_asks_once(world: World) -> None:
    """The retried request waits for the answer to the first one."""
    await world.swarm("docs")
    await world.swarm("helper")
    caller = world.caller(key="k-1", body="same")
    first = await world.it.ask(caller, "docs", "helper", "where?")
    await world.it.reply(world.me, first["reply_id"], "here")
    again = await world.it.ask(caller, "docs", "helper", "where?", wait_ms=600_000)
    assert (again["reply_id"], again["answer"], again["receipt"]["replayed"]) == (first["reply_id"], "here", True)
    assert len(await world.inbox("helper")) == 1


async def test_a_swarm_with_many_answers_can_ask_again(world: World) -> None:
    """Answers that came after the last question are more than one transaction may drop; they go a part at a time."""
    await world.swarm("docs")
    asked = [await ask(world, "docs", "person") for _ in range(200)]
    for reply_id in asked:
        await world.it.reply(world.caller(OPERATOR), reply_id, "go on")
    for left in (136, 72, 63):
        await ask(world, "docs", "person")
        answers = {key.removeprefix("answers/") for key in await world.stored() if key.startswith("answers/")}
        assert answers == set(asked[-left:])
