"""Promise 7: no local user acts for another's swarm. Every method, for whose swarm, by which caller, on real daemons."""

from __future__ import annotations

import grp
import itertools
import os
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from ifbusd.rpc.methods import ROWS, Role
from tests.proof.actor import Actor
from tests.proof.identity_policy import CALLERS, DENIED, NO_BLOCKER, NO_MODULE, NO_QUESTION, NO_SWARM, NO_TASK, POLICY
from tests.proof.opened import opened
from tests.proof.plain import Answer
from tests.proof.records import Proof
from tests.proof.sizes import size

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be other users")

# No host has these users; the operators' group must have a name, so it is one that is there.
_GROUP = next((group for group in grp.getgrall() if group.gr_gid > 0), None)
USERS = {
    "victim": 54_001,
    "stranger": 54_002,
    "operator": 54_003,
    "victims_group": 54_101,
    "other_group": 54_102,
    "operators": 0 if _GROUP is None else _GROUP.gr_gid,
}
WHOSE = ("mine", "another", "nobody")
_NUMBERS = itertools.count(1)

CONFIG = """
[rpc]
swarms_per_connection = 4096
"""


@attrs.frozen(kw_only=True)
class World:
    """One daemon and the user whose swarms are another's to all others."""

    socket: Path
    victim: Actor

    def task(self) -> str:
        """A new task that anybody may claim."""
        task_id: str = self.victim.call("coordinator.create_task", title="a task")["task"]["task_id"]
        return task_id


@attrs.frozen(kw_only=True)
class Situation:
    """A swarm, and who can act for it to prepare what the question is about.

    Attributes:
        owner: Its user; None for a name that nobody registered.
    """

    world: World
    swarm_id: str
    owner: Actor | None
    resume_token: str = "none"

    def claim(self) -> dict[str, Any]:
        """A task that the swarm holds, as parameters; with a token that was never given if there is no swarm."""
        task_id = self.world.task()
        if self.owner is None:
            return {"task_id": task_id, "token": 1, "swarm_id": self.swarm_id}
        answer = self.owner.call("coordinator.claim_task", task_id=task_id, swarm_id=self.swarm_id)
        return {"task_id": task_id, "token": answer["claim"]["token"], "swarm_id": self.swarm_id}

    def task(self, *, is_cancelled: bool = False) -> str:
        """A task that the swarm's user has created."""
        if self.owner is None:
            return "none"
        task_id: str = self.owner.call("coordinator.create_task", title="a task")["task"]["task_id"]
        if is_cancelled:
            self.owner.call("coordinator.cancel_task", task_id=task_id)
        return task_id

    def reservation(self) -> str:
        """Money that the swarm has set aside."""
        if self.owner is None:
            return "none"
        claim = self.claim()
        answer = self.owner.call("governor.reserve_cost", operation="llm", estimate_usd="0.01", **claim)
        return str(answer["reservation_id"])

    def resource(self) -> dict[str, int]:
        """A resource that the swarm holds, with its fence."""
        name = f"x:{next(_NUMBERS)}"
        if self.owner is None:
            return {name: 1}
        answer = self.owner.call("coordinator.acquire_resources", swarm_id=self.swarm_id, resources=[name])
        fences: dict[str, int] = answer["fences"]
        return fences

    def asked(self) -> str:
        """A question that the swarm has asked a person."""
        if self.owner is None:
            return "none"
        answer = self.owner.call("coordinator.ask", swarm_id=self.swarm_id, to="person", question="may I?")
        return str(answer["reply_id"])

    def question(self) -> str:
        """A question that the swarm is asked by another one of its user."""
        if self.owner is None:
            return "none"
        asker = f"asker-{next(_NUMBERS)}"
        self.owner.call("coordinator.register_swarm", swarm_id=asker)
        answer = self.owner.call("coordinator.ask", swarm_id=asker, to=self.swarm_id, question="where?")
        return str(answer["reply_id"])

    def stuck(self) -> dict[str, Any]:
        """A task of the swarm waits for a person."""
        if self.owner is not None:
            claim = self.claim()
            self.owner.call("coordinator.ask", to="person", question="may I?", **claim)
        return {}

    def blocker(self) -> str:
        """A blocker that the swarm has reported."""
        if self.owner is None:
            return "none"
        answer = self.owner.call("coordinator.detect_blocker", swarm_id=self.swarm_id, info={"reason": "stuck"})
        return str(answer["blocker"]["blocker_id"])


NO_SHA256 = "0" * 64
CONTRACT = {"module_sha256": NO_SHA256, "kind": "core"}


def _swarm(situation: Situation) -> dict[str, Any]:
    return {"swarm_id": situation.swarm_id}


def _batch(situation: Situation) -> dict[str, Any]:
    claim = situation.claim()
    return {"swarm_id": claim.pop("swarm_id"), "tasks": [claim]}


def _something_to_claim(situation: Situation) -> dict[str, Any]:
    situation.world.task()
    return _swarm(situation)


def _nothing(_: Situation) -> dict[str, Any]:
    return {}


def _session(situation: Situation) -> dict[str, Any]:
    return {"swarm_id": situation.swarm_id, "resume_token": situation.resume_token}


# How each method is asked so that only the caller's identity can be in the way: an attacker knows every token.
QUESTIONS: dict[str, Callable[[Situation], dict[str, Any]]] = {
    "daemon.hello": lambda it: {"swarm": it.swarm_id},
    "daemon.ping": _nothing,
    "daemon.expect_process": _nothing,
    "daemon.status": _nothing,
    "daemon.describe": _nothing,
    "coordinator.create_task": lambda it: {"title": "a task"},
    "coordinator.create_tasks": lambda it: {"tasks": [{"title": "a task"}]},
    "coordinator.complete_tasks": _batch,
    "coordinator.cancel_task": lambda it: {"task_id": it.task()},
    "coordinator.requeue_task": lambda it: {"task_id": it.task(is_cancelled=True)},
    "coordinator.list_dead_letters": _nothing,
    "coordinator.get_task": lambda it: {"task_id": it.world.task()},
    "coordinator.list_tasks": lambda it: {"holder": it.swarm_id},
    "coordinator.claim_task": lambda it: {"task_id": it.world.task(), **_swarm(it)},
    "coordinator.claim_next": _something_to_claim,
    "coordinator.renew_claim": lambda it: it.claim(),
    "coordinator.bind_claim": lambda it: {**it.claim(), "bind": "session"},
    "coordinator.report_progress": lambda it: {**it.claim(), "percent": 50},
    "coordinator.complete_task": lambda it: {**it.claim(), "result": 1},
    "coordinator.fail_task": lambda it: {**it.claim(), "error": "no"},
    "coordinator.release_task": lambda it: it.claim(),
    "coordinator.acquire_resources": lambda it: {**_swarm(it), "resources": [f"x:{next(_NUMBERS)}"]},
    "coordinator.release_resources": lambda it: {**_swarm(it), "resources": it.resource()},
    "coordinator.list_resources": _nothing,
    "coordinator.ask": lambda it: {**_swarm(it), "to": "person", "question": "may I?"},
    "coordinator.await_reply": lambda it: {**_swarm(it), "reply_id": it.asked()},
    "coordinator.reply": lambda it: {"reply_id": it.question(), "answer": 1},
    "coordinator.list_questions": _nothing,
    "coordinator.waits": _nothing,
    "coordinator.request_help": lambda it: {**_swarm(it), **it.stuck()},
    "coordinator.register_swarm": _swarm,
    "coordinator.renew_session": _session,
    "coordinator.bind_session": lambda it: {**_session(it), "bind": "lease"},
    "coordinator.end_session": _session,
    "coordinator.push_task_to_swarm": lambda it: {"task_id": it.world.task(), **_swarm(it)},
    "coordinator.broadcast": lambda it: {"topic": "news", "body": {}, "sender": it.swarm_id},
    "coordinator.swarm_status": _swarm,
    "coordinator.subscribe_topic": lambda it: {**_swarm(it), "topic": "news"},
    "coordinator.unsubscribe_topic": lambda it: {**_swarm(it), "topic": "news"},
    "coordinator.list_topics": _swarm,
    "coordinator.detect_blocker": lambda it: {"info": {"reason": "stuck"}, **_swarm(it)},
    "coordinator.resolve_blocker": lambda it: {"blocker_id": it.blocker()},
    "coordinator.list_blockers": _nothing,
    "coordinator.read_inbox": _swarm,
    "coordinator.subscribe_inbox": _swarm,
    "coordinator.acknowledge": lambda it: {"seq": 0, **_swarm(it)},
    "coordinator.subscribe_board": _nothing,
    "coordinator.explain_claim": lambda it: {"task_id": it.world.task(), **_swarm(it)},
    "coordinator.pause": lambda it: {"kind": "swarm", "name": it.swarm_id},
    "coordinator.resume": lambda it: {"kind": "swarm", "name": it.swarm_id},
    "coordinator.drain_swarm": _swarm,
    "coordinator.drain_host": lambda _: {"off": True},
    "coordinator.set_group_weight": lambda _: {"group": "night", "weight": 1},
    "coordinator.list_groups": _nothing,
    "governor.register_profile": lambda it: {"capabilities": [], **_swarm(it)},
    "governor.get_swarm": _swarm,
    "governor.list_swarms": _nothing,
    "governor.find_qualified_swarm": lambda it: {"capabilities": ["docs:writing"]},
    "governor.track_cost": lambda it: {"operation": "llm", "cost_usd": "0.01", **_swarm(it)},
    "governor.reserve_cost": lambda it: {**it.claim(), "operation": "llm", "estimate_usd": "0.01"},
    "governor.settle_cost": lambda it: {"reservation_id": it.reservation(), "cost_usd": "0.01", **_swarm(it)},
    "governor.get_budget_report": _swarm,
    "governor.set_budget": lambda it: {"limit_usd": "5", **_swarm(it)},
    "governor.trip_circuit_breaker": lambda it: {"reason": "enough", **_swarm(it)},
    "governor.reset_circuit_breaker": lambda it: {"reason": "go on", **_swarm(it)},
    "governor.list_breakers": _nothing,
    "governor.subscribe_escalations": _nothing,
    "governor.list_escalations": _nothing,
    "chassis.put_blob": lambda it: {"sha256": "5" * 64, "offset": 0, "data": b"x", "total_bytes": 2},
    "chassis.load_swarm": lambda it: {"contract": CONTRACT, **_swarm(it)},
    "chassis.execute_task": lambda it: {"input": 1, **_swarm(it)},
    "chassis.unload_swarm": _swarm,
    "chassis.list_sandboxes": _nothing,
    "witness.query": _nothing,
    "witness.verify": _nothing,
    "witness.head": _nothing,
    "optimise.report": _nothing,
}


def outcome(answer: Answer) -> str:
    """What stands in the policy for this answer."""
    if answer.error is None or answer.code != "not_found":
        return answer.code
    data = answer.error["data"]
    named = {
        "module_sha256": NO_MODULE,
        "blocker_id": NO_BLOCKER,
        "reply_id": NO_QUESTION,
        "swarm_id": NO_SWARM,
        "task_id": NO_TASK,
    }
    return next((what for name, what in named.items() if name in data), str(answer.error))


@pytest.fixture(scope="module")
def worlds() -> Iterator[dict[str, World]]:
    """The daemon whose operators are a user and a group, and the one whose operator is root."""
    victim = "user:{victim}:{victims_group}:{victims_group}".format(**USERS)
    with (
        opened(CONFIG, uids=[USERS["operator"]], groups=[_GROUP.gr_name] if _GROUP else []) as one,
        opened(CONFIG, uids=[0]) as other,
        Actor(one.socket, victim, "connect") as on_one,
        Actor(other.socket, victim, "connect") as on_other,
    ):
        yield {
            "named": World(socket=one.socket, victim=on_one),
            "root": World(socket=other.socket, victim=on_other),
        }


def test_every_method_has_a_policy() -> None:
    """A method without a row in the policy, or that no question asks, fails here; a row outlives its method by no day."""
    assert POLICY.keys() == QUESTIONS.keys() == {row.name for row in ROWS}


def test_the_policy_and_the_method_table_agree_on_operators() -> None:
    """A method is an operator's in the table exactly where the policy denies it to everybody else, whoever's swarm it is."""
    for row in ROWS:
        cells = {POLICY[row.name].cell(whose, is_operator=False) for whose in WHOSE} - {None}
        assert (row.role is Role.OPERATOR) == (cells == {DENIED}), row.name


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("name", CALLERS)
def test_every_cell_equals_the_policy(worlds: dict[str, World], proof: Proof, name: str) -> None:
    """What this caller gets of every method, for a swarm of its own, of another user and of nobody, is what is written."""
    identity = CALLERS[name]
    world = worlds[identity.operators]
    try:
        caller = Actor(world.socket, *(step.format(**USERS) for step in identity.steps))
    except PermissionError as error:
        pytest.skip(f"{error}")
    wrong, ran = [], 0
    with caller:
        for method, row in POLICY.items():
            for whose in WHOSE:
                as_whose = "mine" if whose == "another" and identity.is_victim else whose
                expected = row.cell(as_whose, is_operator=identity.is_operator)
                if row.another is None and whose != "mine":
                    continue
                situation = _situation(world, caller, whose)
                answer = caller.ask(method, **QUESTIONS[method](situation))
                ran += 1
                if outcome(answer) != expected:
                    wrong.append((method, whose, expected, answer))
    print(*wrong, sep="\n")
    proof.cases(promise=7, name=f"identity: {name}", ran=ran, violations=len(wrong))


def _situation(world: World, caller: Actor, whose: str) -> Situation:
    swarm_id = f"swarm-{next(_NUMBERS)}"
    owner = {"mine": caller, "another": world.victim, "nobody": None}[whose]
    if owner is None:
        return Situation(world=world, swarm_id=swarm_id, owner=None)
    answer = owner.call("coordinator.register_swarm", swarm_id=swarm_id)
    return Situation(world=world, swarm_id=swarm_id, owner=owner, resume_token=answer["resume_token"])


@needs_root
@pytest.mark.slow
def test_a_refused_caller_changes_nothing(worlds: dict[str, World], proof: Proof) -> None:
    """After a stranger has tried everything on a swarm, its profile, money, breaker, claims and inbox are as they were."""
    world = worlds["named"]
    situation = _situation(world, world.victim, "another")
    world.victim.call("coordinator.push_task_to_swarm", task_id=world.task(), swarm_id=situation.swarm_id)
    attempts = [(name, QUESTIONS[name](situation)) for name, row in POLICY.items() if row.another == DENIED]
    before = _state(situation)
    with Actor(world.socket, *(step.format(**USERS) for step in CALLERS["other uid"].steps)) as stranger:
        taken = [(name, params) for name, params in attempts if stranger.ask(name, **params).error is None]
    print(*taken, sep="\n")
    proof.cases(promise=7, name="a stranger's attempts", ran=len(attempts), violations=len(taken))
    assert _state(situation) == before


def _state(situation: Situation) -> list[Any]:
    """All that anybody could want to change of a swarm, as its owner sees it."""
    assert situation.owner is not None
    ask, swarm = situation.owner.call, _swarm(situation)
    claims = ask("coordinator.renew_session", **_session(situation))["claims"]
    tasks = [ask("coordinator.get_task", task_id=handle.split("@")[0])["task"] for handle in claims]
    return [
        claims,
        ask("governor.get_swarm", **swarm),
        ask("governor.get_budget_report", **swarm),
        ask("coordinator.read_inbox", **swarm),
        [{**task, "lease_left_ms": "passes", "clocks": "go"} for task in tasks],
        [one for one in ask("coordinator.list_blockers")["blockers"] if one["swarm_id"] == situation.swarm_id],
    ]


@needs_root
@pytest.mark.slow
def test_no_resume_token_but_the_right_one_is_taken(worlds: dict[str, World], proof: Proof, seed: int) -> None:
    """A session is renewed, resumed and ended by its own token only: not by one forged, cut, grown, replaced, or another's."""
    chance = random.Random(seed)
    victim = worlds["named"].victim
    mine, others = (_situation(worlds["named"], victim, "another") for _ in range(2))
    replaced = mine.resume_token
    current = victim.call("coordinator.register_swarm", **_swarm(mine))["resume_token"]
    tokens = [others.resume_token, replaced, "", current[:-1], current + "A", current.swapcase(), f" {current}"]
    while len(tokens) < size(300, 5_000, 500_000):
        forged = list(current)
        forged[chance.randrange(len(forged))] = chance.choice(string.ascii_letters)
        tokens.append("".join(forged) if "".join(forged) != current else "forged")
    accepted = [
        (method, token)
        for token in tokens
        for method in ("coordinator.renew_session", "coordinator.end_session")
        if victim.ask(method, swarm_id=mine.swarm_id, resume_token=token).code != "stale_token"
    ]
    assert victim.call("coordinator.renew_session", swarm_id=mine.swarm_id, resume_token=current)["lease_ms"] > 0
    for token in tokens[:7]:  # a registration is never refused for it, and begins anew
        answer = victim.call("coordinator.register_swarm", swarm_id=mine.swarm_id, resume_token=token)
        if answer["resumed"]:
            accepted.append(("coordinator.register_swarm", token))
    print(*accepted, sep="\n")
    proof.cases(promise=7, name="resume tokens", ran=2 * len(tokens) + 7, violations=len(accepted), seed=seed)
