"""How to make the daemon say no: one way for each place in its code where it does.

Each is a function of a `World` that gives the error; where its `would_change` can be followed, it is a generator that yields the
error and then whether following turned the answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import msgpack

from tests.integration.chassis.test_compiling import BOMBS
from tests.proof.actor import Actor
from tests.proof.opened import Opened, opened
from tests.proof.plain import Answer, Plain, packed

Wire = dict[str, Any]
GUESTS = Path(__file__).parents[1] / "guests"
OPERATOR, STRANGER = 54_010, 54_011
_NUMBERS = itertools.count(1)

ROOMY = """
[rpc]
unfinished_ms = 200

[governor]
max_self_budget_usd = "100"
"""
TIGHT = """
[rpc]
in_flight = 1
slot_wait_ms = 0
swarms_per_connection = 2
connections_per_uid = 8

[coordinator]
open_tasks = 20
inbox_messages = 1
blockers_per_uid = 1
bindings_per_uid = 0
leases_per_uid = 40

[governor]
max_holds = 3
max_swarms_per_uid = 60

[chassis]
blob_bytes_per_uid = 1048576
max_modules = 1
max_workers_per_uid = 1
queue_length = 1
profiles = { default = { everybody = true, cpu_s = 1, wall_s = 3, data_bytes = 100663296 }, narrow = {} }
"""
SLOW = """
[rpc]
requests_per_s = 100
burst_requests = 100
"""


def error_of(answer: Answer) -> Wire:
    """The error of an answer; losing a race is none on the wire, but has the same map."""
    error = answer.error or answer.result.get("refusal")
    assert error is not None, answer
    return dict(error)


@attrs.define(kw_only=True)
class World:
    """A daemon, a user without any role, an operator, and another user."""

    daemon: Opened
    client: Plain
    operator: Actor
    stranger: Actor

    def ask(self, method: str, **params: Any) -> Wire:
        """The error of a request that must be refused."""
        return error_of(self.client.ask(method, **params))

    def call(self, method: str, **params: Any) -> Any:
        """The result of a request that must succeed."""
        return self.client.call(method, **params)

    def swarm(self, who: Any = None, **profile: Any) -> str:
        """A new swarm; the connection that registered it does not stay."""
        name = f"s-{next(_NUMBERS)}"
        with self.another() as client:
            (who or client).call("coordinator.register_swarm", swarm_id=name, **profile)
        return name

    def task(self, **fields: Any) -> str:
        """A new task."""
        return str(self.call("coordinator.create_task", **{"title": "a task", **fields})["task"]["task_id"])

    def claim(self, **fields: Any) -> Wire:
        """A claim of a new swarm on a new task, as parameters."""
        swarm_id, task_id = self.swarm(), self.task(**fields)
        answer = self.call("coordinator.claim_task", task_id=task_id, swarm_id=swarm_id)
        return {"task_id": task_id, "swarm_id": swarm_id, "token": answer["claim"]["token"]}

    @contextlib.contextmanager
    def another(self) -> Iterator[Plain]:
        """A second connection of the same user."""
        with Plain.at(self.daemon.socket) as client:
            yield client

    def closed(self, data: bytes) -> Wire:
        """Why the daemon ends a connection that sends these bytes."""
        with self.another() as client:
            client.sock.sendall(data)
            with contextlib.suppress(EOFError, ConnectionError):
                client.answer(0)
            return dict(client.heard[-1][1][0])

    def blob(self, data: bytes) -> str:
        """An uploaded module."""
        sha256 = hashlib.sha256(data).hexdigest()
        for at in range(0, len(data), 48 << 10):
            chunk = data[at : at + (48 << 10)]
            self.call("chassis.put_blob", sha256=sha256, offset=at, data=chunk, total_bytes=len(data))
        return sha256

    def loading(self, module: bytes | str = "core", **contract: Any) -> Wire:
        """The parameters of a `load_swarm` for a new swarm."""
        data = (GUESTS / f"{module}.wasm").read_bytes() if isinstance(module, str) else module
        return {"swarm_id": self.swarm(), "contract": {"module_sha256": self.blob(data), **contract}}

    def executing(self, export: str, *args: float, **limits: int) -> Wire:
        """The parameters of an execution of a loaded export of the core guest."""
        loading = self.loading(export=export, limits=limits)
        self.call("chassis.load_swarm", **loading)
        return {"swarm_id": loading["swarm_id"], "input": {"args": list(args)}}


@contextlib.contextmanager
def world(more: str) -> Iterator[World]:
    """A daemon with these limits, and people."""
    with (
        opened(more, uids=[OPERATOR]) as daemon,
        Plain.at(daemon.socket) as client,
        Actor(daemon.socket, f"user:{OPERATOR}:{OPERATOR}", "connect") as operator,
        Actor(daemon.socket, f"user:{STRANGER}:{STRANGER}", "connect") as stranger,
    ):
        yield World(daemon=daemon, client=client, operator=operator, stranger=stranger)


# A `Wire`, or a generator of one and of whether following it turned the answer.
Told = Any
Case = Callable[[World], Told]
CASES: list[Case] = []
TIGHT_CASES: list[Case] = []
SLOW_CASES: list[Case] = []


def case(function: Case) -> Case:
    """One way, on the roomy daemon."""
    CASES.append(function)
    return function


def tight(function: Case) -> Case:
    """One way, on the daemon with small limits."""
    TIGHT_CASES.append(function)
    return function


def slow(function: Case) -> Case:
    """One way, on the daemon that answers few requests a second."""
    SLOW_CASES.append(function)
    return function


# --- the wire ------------------------------------------------------------------------------------------


@case
def no_request(w: World) -> Told:
    with w.another() as client:
        client.sock.sendall(msgpack.packb([0, 7, "daemon.ping"]))
        return error_of(client.answer(7))


@case
def one_id_twice(w: World) -> Told:
    swarm_id = w.swarm(capabilities=["nobody:asks"])
    with w.another() as client:
        wait = packed(7, "coordinator.claim_next", [{"swarm_id": swarm_id, "wait_ms": 60_000}])
        client.sock.sendall(wait + packed(7, "daemon.ping", []))
        return error_of(client.answer(7))


@case
def unknown_method(w: World) -> Told:
    error = w.ask("daemon.pong")
    yield error
    yield w.client.ask(error["data"]["nearest"]).code == "ok"


@case
def unknown_parameter(w: World) -> Told:
    return w.ask("daemon.hello", swram="x")


@case
def too_many_parameters(w: World) -> Told:
    with w.another() as client:
        client.sock.sendall(packed(7, "daemon.ping", [1, 2]))
        return error_of(client.answer(7))


@case
def missing_parameter(w: World) -> Told:
    return w.ask("coordinator.get_task")


@case
def wrong_type(w: World) -> Told:
    return w.ask("coordinator.get_task", task_id=7)


@case
def wrong_timeout(w: World) -> Told:
    return w.ask("daemon.hello", **{"$": {"timeout_ms": -1}})


@case
def version_mismatch(w: World) -> Told:
    return w.ask("daemon.hello", protocol=[99])


@case
def needs_an_operator(w: World) -> Told:
    swarm_id = w.swarm()
    yield w.ask("governor.set_budget", swarm_id=swarm_id, limit_usd="5")
    yield w.operator.ask("governor.set_budget", swarm_id=swarm_id, limit_usd="5").code == "ok"


@case
def deadline_exceeded(w: World) -> Told:
    swarm_id = w.swarm(capabilities=["nobody:asks"])
    return w.ask("coordinator.claim_next", swarm_id=swarm_id, wait_ms=60_000, **{"$": {"timeout_ms": 5}})


@case
def cancelled(w: World) -> Told:
    swarm_id = w.swarm(capabilities=["nobody:asks"])
    with w.another() as client:
        client.sock.sendall(packed(7, "coordinator.claim_next", [{"swarm_id": swarm_id, "wait_ms": 60_000}]))
        client.sock.sendall(msgpack.packb([2, "$/cancel", [7]]))
        return error_of(client.answer(7))


@case
def no_messagepack(w: World) -> Told:
    return w.closed(b"\xc1")


@case
def no_messages(w: World) -> Told:
    return w.closed(b"\x01" * 17)


@case
def unfinished(w: World) -> Told:
    return w.closed(b"\x94\x00")


@tight
def too_many_in_flight(w: World) -> Told:
    swarm_id = w.swarm(capabilities=["nobody:asks"])
    with w.another() as client:
        wait = {"swarm_id": swarm_id, "wait_ms": 60_000}
        client.sock.sendall(b"".join(packed(number, "coordinator.claim_next", [wait]) for number in (7, 8)))
        return error_of(client.answer(8))


@tight
def too_many_connections(w: World) -> Told:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(w.another()) for _ in range(8)]
        with contextlib.suppress(EOFError, ConnectionError):
            clients[-1].answer(0)
        yield clients[-1].heard[-1][1][0]
    while True:  # until it has seen them go
        with w.another() as client, contextlib.suppress(EOFError, ConnectionError):
            yield client.ask("daemon.ping").code == "ok"


@tight
def too_many_swarms_on_one_connection(w: World) -> Told:
    names = [w.swarm() for _ in range(3)]
    with w.another() as client, w.another() as other:
        for name in names[:2]:
            client.call("daemon.hello", swarm=name)
        yield error_of(client.ask("daemon.hello", swarm=names[2]))
        yield other.ask("daemon.hello", swarm=names[2]).code == "ok"


# --- tasks and claims ----------------------------------------------------------------------------------


@case
def no_task(w: World) -> Told:
    yield w.ask("coordinator.get_task", task_id="T-nobody")
    w.task(task_id="T-nobody")
    yield w.client.ask("coordinator.get_task", task_id="T-nobody").code == "ok"


@case
def bad_name(w: World) -> Told:
    return w.ask("coordinator.claim_task", task_id="a b", swarm_id="x")


@case
def bad_capability(w: World) -> Told:
    return w.ask("coordinator.create_task", title="x", capabilities=["Nothing"])


@case
def too_many_capabilities(w: World) -> Told:
    return w.ask("coordinator.create_task", title="x", capabilities=[f"a:b{n}" for n in range(65)])


@case
def bad_title(w: World) -> Told:
    return w.ask("coordinator.create_task", title="")


@case
def too_long_a_task(w: World) -> Told:
    error = w.ask("coordinator.create_task", title="x", description="x" * 16_000, payload={"a": "x" * 32_000})
    yield error
    yield w.client.ask("coordinator.create_task", title="x", description="x", payload={"a": "x" * 32_000}).code == "ok"


@case
def too_long_a_result(w: World) -> Told:
    claim = w.claim()
    error = w.ask("coordinator.complete_task", **claim, result="x" * 40_000)
    yield error
    yield w.client.ask("coordinator.complete_task", **claim, result="x" * (error["data"]["allowed"] - 5)).code == "ok"


@case
def bad_state(w: World) -> Told:
    return w.ask("coordinator.list_tasks", states=["lost"])


@case
def already_exists(w: World) -> Told:
    yield w.ask("coordinator.create_task", title="x", task_id=w.task())
    yield w.client.ask("coordinator.create_task", title="x", task_id=f"other-{next(_NUMBERS)}").code == "ok"


@case
def already_claimed(w: World) -> Told:
    claim, other = w.claim(), w.swarm()
    yield w.ask("coordinator.claim_task", task_id=claim["task_id"], swarm_id=other)
    w.call("coordinator.release_task", **claim)
    yield w.call("coordinator.claim_task", task_id=claim["task_id"], swarm_id=other)["claimed"]


@case
def ended_task(w: World) -> Told:
    claim = w.claim()
    w.call("coordinator.complete_task", **claim)
    yield w.ask("coordinator.claim_task", task_id=claim["task_id"], swarm_id=claim["swarm_id"])
    w.task()
    yield w.call("coordinator.claim_next", swarm_id=claim["swarm_id"])["claimed"]


@case
def blocked_task(w: World) -> Told:
    claim = w.claim()
    info = {"reason": "stuck", "task_id": claim["task_id"], "token": claim["token"], "release": True}
    blocker = w.call("coordinator.detect_blocker", swarm_id=claim["swarm_id"], info=info)["blocker"]
    ask = {"task_id": claim["task_id"], "swarm_id": claim["swarm_id"]}
    error = w.ask("coordinator.claim_task", **ask)
    yield error
    assert error["data"]["blocker_id"] == blocker["blocker_id"]
    w.call("coordinator.resolve_blocker", blocker_id=error["data"]["blocker_id"])
    yield w.call("coordinator.claim_task", **ask)["claimed"]


@case
def waiting_task(w: World) -> Told:
    first, swarm_id = w.task(), w.swarm()
    second = w.task(depends_on=[first])
    error = w.ask("coordinator.claim_task", task_id=second, swarm_id=swarm_id)
    yield error
    for task_id in error["data"]["waits_for"]:
        claim = w.call("coordinator.claim_task", task_id=task_id, swarm_id=swarm_id)["claim"]
        w.call("coordinator.complete_task", task_id=task_id, swarm_id=swarm_id, token=claim["token"])
    yield w.call("coordinator.claim_task", task_id=second, swarm_id=swarm_id)["claimed"]


@case
def paused_task(w: World) -> Told:
    ask = {"task_id": w.task(), "swarm_id": w.swarm()}
    w.call("coordinator.pause", kind="task", name=ask["task_id"], reason="wait for the release")
    error = w.ask("coordinator.claim_task", **ask)
    yield error
    w.call("coordinator.resume", kind=error["data"]["paused"], name=error["data"]["name"])
    yield w.call("coordinator.claim_task", **ask)["claimed"]


@case
def resuming_what_an_operator_paused(w: World) -> Told:
    what = {"kind": "task", "name": w.task()}
    w.operator.call("coordinator.pause", **what)
    yield w.ask("coordinator.resume", **what)
    yield w.operator.ask("coordinator.resume", **what).code == "ok"


@case
def pausing_a_group(w: World) -> Told:
    what = {"kind": "group", "name": f"g-{next(_NUMBERS)}"}
    yield w.ask("coordinator.pause", **what)
    yield w.operator.ask("coordinator.pause", **what).code == "ok"


@case
def pausing_another_users_task(w: World) -> Told:
    what = {"kind": "task", "name": w.task()}
    yield error_of(w.stranger.ask("coordinator.pause", **what))
    yield w.operator.ask("coordinator.pause", **what).code == "ok"


@case
def pausing_an_ended_task(w: World) -> Told:
    claim = w.claim()
    w.call("coordinator.complete_task", **claim)
    yield w.ask("coordinator.pause", kind="task", name=claim["task_id"])
    yield w.client.ask("coordinator.pause", kind="task", name=w.task()).code == "ok"


@case
def bad_group_weight(w: World) -> Told:
    return error_of(w.operator.ask("coordinator.set_group_weight", group="g", weight=1001))


@case
def bad_concurrency_key(w: World) -> Told:
    return w.ask("coordinator.create_task", title="x", concurrency_key="a b")


@case
def bad_weight(w: World) -> Told:
    return w.ask("coordinator.create_task", title="x", weight=0)


@case
def bad_slots(w: World) -> Told:
    return w.ask("coordinator.register_swarm", swarm_id=f"s-{next(_NUMBERS)}", slots=0)


@case
def full_slots(w: World) -> Told:
    swarm_id = w.swarm(slots=3)
    held = {"task_id": w.task(weight=2), "swarm_id": swarm_id}
    token = w.call("coordinator.claim_task", **held)["claim"]["token"]
    ask = {"task_id": w.task(weight=2), "swarm_id": swarm_id}
    yield w.ask("coordinator.claim_task", **ask)
    w.call("coordinator.complete_task", **held, token=token)
    yield w.call("coordinator.claim_task", **ask)["claimed"]


@case
def full_key(w: World) -> Told:
    holder = w.claim(concurrency_key="repo:a")
    ask = {"task_id": w.task(concurrency_key="repo:a"), "swarm_id": w.swarm()}
    yield w.ask("coordinator.claim_task", **ask)
    w.call("coordinator.release_task", **holder)
    yield w.call("coordinator.claim_task", **ask)["claimed"]


@case
def pushing_what_is_held(w: World) -> Told:
    claim = w.claim()
    push = {"task_id": claim["task_id"], "swarm_id": w.swarm()}
    yield w.ask("coordinator.push_task_to_swarm", **push)
    w.call("coordinator.release_task", **claim)
    yield w.client.ask("coordinator.push_task_to_swarm", **push).code == "ok"


@case
def nothing_is_ready(w: World) -> Told:
    swarm_id = w.swarm(capabilities=["rare:skill"])
    while (answer := w.client.ask("coordinator.claim_next", swarm_id=swarm_id)).result["claimed"]:
        pass  # what other cases have left
    yield error_of(answer)
    w.task(capabilities=["rare:skill"])
    yield w.call("coordinator.claim_next", swarm_id=swarm_id, wait_ms=30_000)["claimed"]


@case
def claim_that_has_ended(w: World) -> Told:
    claim = w.claim()
    w.call("coordinator.release_task", **claim)
    yield w.ask("coordinator.report_progress", **claim, percent=5)
    again = w.call("coordinator.claim_task", task_id=claim["task_id"], swarm_id=claim["swarm_id"])["claim"]
    yield w.client.ask("coordinator.report_progress", **claim | {"token": again["token"]}, percent=5).code == "ok"


@case
def claim_that_is_anothers_now(w: World) -> Told:
    claim, other = w.claim(), w.swarm()
    w.call("coordinator.release_task", **claim)
    w.call("coordinator.claim_task", task_id=claim["task_id"], swarm_id=other)
    return w.ask("coordinator.complete_task", **claim)


@case
def not_owner(w: World) -> Told:
    claim = w.claim()
    return w.ask("coordinator.complete_task", **claim | {"swarm_id": w.swarm()})


@case
def session_that_has_ended(w: World) -> Told:
    swarm_id = w.swarm()
    yield w.ask("coordinator.renew_session", swarm_id=swarm_id, resume_token="forged")
    token = w.call("coordinator.register_swarm", swarm_id=swarm_id)["resume_token"]
    yield w.client.ask("coordinator.renew_session", swarm_id=swarm_id, resume_token=token).code == "ok"


@case
def idempotency_conflict(w: World) -> Told:
    about = {"$": {"idempotency_key": f"k-{next(_NUMBERS)}"}}
    w.call("coordinator.create_task", title="one", **about)
    yield w.ask("coordinator.create_task", title="another", **about)
    about = {"$": {"idempotency_key": f"k-{next(_NUMBERS)}"}}
    yield w.client.ask("coordinator.create_task", title="another", **about).code == "ok"


# --- what claims are bound to ---------------------------------------------------------------------------


@case
def binding_to_what_was_not_handed_over(w: World) -> Told:
    return w.ask("coordinator.claim_task", task_id=w.task(), swarm_id=w.swarm(), bind="handed")


@case
def binding_to_no_pid(w: World) -> Told:
    claim = {"task_id": w.task(), "swarm_id": w.swarm()}
    yield w.ask("coordinator.claim_task", **claim, bind="pid:x")
    yield w.call("coordinator.claim_task", **claim, bind="process")["claimed"]


@case
def binding_a_session_to_a_session(w: World) -> Told:
    return w.ask("coordinator.register_swarm", swarm_id="bound", bind="session")


@case
def binding_a_claim_apart_from_its_session(w: World) -> Told:
    claim = w.claim()
    yield w.ask("coordinator.bind_claim", **claim, bind="process")
    session = w.call("coordinator.register_swarm", swarm_id=claim["swarm_id"])
    bind = {"swarm_id": claim["swarm_id"], "resume_token": session["resume_token"], "bind": "process"}
    yield w.client.ask("coordinator.bind_session", **bind).code == "ok"


@case
def binding_to_anothers_process(w: World) -> Told:
    claim = {"task_id": w.task(), "swarm_id": w.swarm(w.stranger)}
    yield error_of(w.stranger.ask("coordinator.claim_task", **claim, bind=f"pid:{os.getpid()}"))
    yield w.stranger.call("coordinator.claim_task", **claim, bind="lease")["claimed"]


@case
def binding_to_a_process_that_has_ended(w: World) -> Told:
    swarm_id = w.swarm(w.stranger)
    with Actor(w.daemon.socket, f"passed:{STRANGER}:{STRANGER}", f"user:{STRANGER}:{STRANGER}") as heir:
        claim = {"task_id": w.task(), "swarm_id": swarm_id}
        yield error_of(heir.ask("coordinator.claim_task", **claim, bind="process"))
        yield heir.call("coordinator.claim_task", **claim, bind="lease")["claimed"]


@tight
def too_many_bindings(w: World) -> Told:
    claim = {"task_id": w.task(), "swarm_id": w.swarm()}
    yield w.ask("coordinator.claim_task", **claim, bind="process")
    yield w.call("coordinator.claim_task", **claim, bind="lease")["claimed"]


# --- blockers and letters ------------------------------------------------------------------------------


@case
def no_blocker(w: World) -> Told:
    return w.ask("coordinator.resolve_blocker", blocker_id="b-nobody")


@case
def blocker_of_another(w: World) -> Told:
    swarm_id = w.swarm(w.stranger)
    blocker = w.stranger.call("coordinator.detect_blocker", swarm_id=swarm_id, info={"reason": "stuck"})["blocker"]
    yield w.ask("coordinator.resolve_blocker", blocker_id=blocker["blocker_id"])
    yield w.operator.ask("coordinator.resolve_blocker", blocker_id=blocker["blocker_id"]).code == "ok"


@case
def circle_of_questions(w: World) -> Told:
    one, other = w.swarm(), w.swarm()
    reply_id = w.call("coordinator.ask", swarm_id=one, to=other, question="?")["reply_id"]
    yield w.ask("coordinator.ask", swarm_id=other, to=one, question="?")
    w.call("coordinator.reply", reply_id=reply_id, answer=1)
    yield w.client.ask("coordinator.ask", swarm_id=other, to=one, question="?").code == "ok"


@case
def question_without_words(w: World) -> Told:
    return w.ask("coordinator.ask", swarm_id="a", to="b", question="")


@case
def question_to_itself(w: World) -> Told:
    return w.ask("coordinator.ask", swarm_id="a", to="a", question="?")


@case
def question_for_half_a_claim(w: World) -> Told:
    return w.ask("coordinator.ask", swarm_id="a", to="b", question="?", task_id="T-1")


@case
def question_to_nobody(w: World) -> Told:
    return w.ask("coordinator.ask", swarm_id=w.swarm(), to="nobody-at-all", question="?")


@case
def answer_to_no_question(w: World) -> Told:
    return w.ask("coordinator.reply", reply_id="Q-none", answer=1)


@case
def approval_by_no_operator(w: World) -> Told:
    reply_id = w.call("coordinator.ask", swarm_id=w.swarm(), to="person", question="?")["reply_id"]
    yield w.ask("coordinator.reply", reply_id=reply_id, answer={"approved": True})
    yield w.operator.ask("coordinator.reply", reply_id=reply_id, answer={"approved": True}).code == "ok"


@case
def help_for_nothing(w: World) -> Told:
    return w.ask("coordinator.request_help", swarm_id=w.swarm())


@case
def before_its_start(w: World) -> Told:
    swarm_id = w.swarm()
    for wait_ms in (500, 5_000, 50_000):  # a busy machine may be late for the first
        task_id = w.task(not_before_at_ms=int(time.time() * 1000) + wait_ms)
        if (answer := w.client.ask("coordinator.claim_task", task_id=task_id, swarm_id=swarm_id)).error is not None:
            break
    yield error_of(answer)
    yield w.call("coordinator.claim_task", task_id=task_id, swarm_id=swarm_id, wait_ms=60_000)["claimed"]


@case
def end_of_anothers_task(w: World) -> Told:
    task_id = w.stranger.call("coordinator.create_task", title="x")["task"]["task_id"]
    yield w.ask("coordinator.cancel_task", task_id=task_id)
    yield w.operator.ask("coordinator.cancel_task", task_id=task_id).code == "ok"


@case
def requeue_of_an_open_task(w: World) -> Told:
    return w.ask("coordinator.requeue_task", task_id=w.task())


@case
def requeue_before_its_dependency(w: World) -> Told:
    first = w.task()
    second = w.task(depends_on=[first], on_dependency_failure="cancel")
    w.call("coordinator.cancel_task", task_id=first)
    while w.call("coordinator.get_task", task_id=second)["task"]["state"] != "cancelled":
        pass
    yield w.ask("coordinator.requeue_task", task_id=second)
    w.call("coordinator.requeue_task", task_id=first)
    yield w.client.ask("coordinator.requeue_task", task_id=second).code == "ok"


@case
def requeue_while_another_has_its_unique_key(w: World) -> Told:
    first = w.task(unique_key="once")
    w.call("coordinator.cancel_task", task_id=first)
    second = w.task(unique_key="once")
    yield w.ask("coordinator.requeue_task", task_id=first)
    w.call("coordinator.cancel_task", task_id=second)
    yield w.client.ask("coordinator.requeue_task", task_id=first).code == "ok"


@case
def concurrency_limit_of_nothing(w: World) -> Told:
    return w.ask("coordinator.create_task", title="x", concurrency_limit=2)


@case
def task_that_waits_for_itself(w: World) -> Told:
    return w.ask("coordinator.create_task", title="x", task_id="T-itself", depends_on=["T-itself"])


@case
def bad_backoff(w: World) -> Told:
    return w.ask("coordinator.create_task", title="x", backoff={"base": 1})


@case
def bad_expression(w: World) -> Told:
    return w.ask("coordinator.broadcast", topic="x", body={}, expression="all(docs:a")


@case
def too_long_an_expression(w: World) -> Told:
    return w.ask("coordinator.broadcast", topic="x", body={}, expression="a" * 2_000)


@case
def events_that_are_not_kept(w: World) -> Told:
    yield w.ask("coordinator.subscribe_board", after_seq=1)
    with w.another() as client:
        yield client.ask("coordinator.subscribe_board").code == "ok"


@case
def resource_busy(w: World) -> Told:
    holder, other, name = w.swarm(), w.swarm(), f"x:{next(_NUMBERS)}"
    fences = w.call("coordinator.acquire_resources", swarm_id=holder, resources=[name])["fences"]
    yield w.ask("coordinator.acquire_resources", swarm_id=other, resources=[name])
    w.call("coordinator.release_resources", swarm_id=holder, resources=fences)
    yield w.client.ask("coordinator.acquire_resources", swarm_id=other, resources=[name]).code == "ok"


@case
def resource_that_a_claim_holds(w: World) -> Told:
    name = f"x:{next(_NUMBERS)}"
    claim, task_id, other = w.claim(resources=[name]), w.task(resources=[name]), w.swarm()
    yield w.ask("coordinator.claim_task", task_id=task_id, swarm_id=other)
    w.call("coordinator.complete_task", **claim)
    yield w.call("coordinator.claim_task", task_id=task_id, swarm_id=other)["claimed"]


@case
def hold_that_has_ended(w: World) -> Told:
    swarm_id, name = w.swarm(), f"x:{next(_NUMBERS)}"
    yield w.ask("coordinator.release_resources", swarm_id=swarm_id, resources={name: 1})
    fences = w.call("coordinator.acquire_resources", swarm_id=swarm_id, resources=[name])["fences"]
    yield w.client.ask("coordinator.release_resources", swarm_id=swarm_id, resources=fences).code == "ok"


@case
def hold_that_is_anothers(w: World) -> Told:
    fences = w.call("coordinator.acquire_resources", swarm_id=w.swarm(), resources=[f"x:{next(_NUMBERS)}"])["fences"]
    return w.ask("coordinator.release_resources", swarm_id=w.swarm(), resources=fences)


@case
def bad_resource(w: World) -> Told:
    return w.ask("coordinator.create_task", title="x", resources=["gpu"])


@case
def too_many_resources(w: World) -> Told:
    return w.ask("coordinator.acquire_resources", swarm_id="x", resources=[f"x:{number}" for number in range(17)])


@case
def no_resource(w: World) -> Told:
    return w.ask("coordinator.acquire_resources", swarm_id="x", resources=[])


@case
def no_fence(w: World) -> Told:
    return w.ask("coordinator.release_resources", swarm_id="x", resources={})


@case
def resource_for_half_a_claim(w: World) -> Told:
    return w.ask("coordinator.acquire_resources", swarm_id="x", resources=["x:0"], task_id="T-1")


@case
def blocker_with_an_unknown_figure(w: World) -> Told:
    return w.ask("coordinator.detect_blocker", swarm_id=w.swarm(), info={"reason": "x", "color": 1})


@case
def blocker_with_a_wrong_figure(w: World) -> Told:
    return w.ask("coordinator.detect_blocker", swarm_id=w.swarm(), info={"reason": "x", "release": "yes"})


@case
def blocker_with_half_a_claim(w: World) -> Told:
    return w.ask("coordinator.detect_blocker", swarm_id=w.swarm(), info={"reason": "x", "release": True})


@case
def blocker_without_a_reason(w: World) -> Told:
    return w.ask("coordinator.detect_blocker", swarm_id=w.swarm(), info={})


@case
def too_long_a_letter(w: World) -> Told:
    yield w.ask("coordinator.broadcast", topic="x", body={"a": "x" * 20_000})
    yield w.client.ask("coordinator.broadcast", topic="x", body={"a": "x" * 15_000}).code == "ok"


# --- money and breakers --------------------------------------------------------------------------------


@case
def no_swarm(w: World) -> Told:
    yield w.ask("coordinator.claim_next", swarm_id="nobody")
    w.call("coordinator.register_swarm", swarm_id="nobody")
    yield w.client.ask("coordinator.claim_next", swarm_id="nobody").code == "ok"


@case
def swarm_of_another(w: World) -> Told:
    return w.ask("coordinator.claim_next", swarm_id=w.swarm(w.stranger))


@case
def budget_beyond_the_bound(w: World) -> Told:
    error = w.ask("coordinator.register_swarm", swarm_id="greedy", budget_usd="1000")
    yield error
    budget = error["data"]["bound_usd"]
    yield w.client.ask("coordinator.register_swarm", swarm_id="greedy", budget_usd=budget).code == "ok"


@case
def not_qualified(w: World) -> Told:
    claim = {
        "task_id": w.task(capabilities=["docs:writing", "docs:reading"]),
        "swarm_id": w.swarm(capabilities=["a:b"]),
    }
    error = w.ask("coordinator.claim_task", **claim)
    yield error
    words = error["data"]["would_change"][0]["call"].split()
    assert words[:4] == ["ifbus", "swarm", "register", claim["swarm_id"]]
    w.call("coordinator.register_swarm", swarm_id=words[3], capabilities=words[5].split(","))
    yield w.call("coordinator.claim_task", **claim)["claimed"]


@case
def budget_exceeded(w: World) -> Told:
    claim = {"task_id": w.task(estimate_usd="5"), "swarm_id": w.swarm(budget_usd="1")}
    error = w.ask("coordinator.claim_task", **claim)
    yield error
    call = next(change["call"] for change in error["data"]["would_change"] if change["by"] == "operator")
    w.operator.call("governor.set_budget", swarm_id=claim["swarm_id"], limit_usd=call.split()[-1])
    yield w.call("coordinator.claim_task", **claim)["claimed"]


@case
def breaker_tripped(w: World) -> Told:
    claim = {"task_id": w.task(), "swarm_id": w.swarm()}
    w.operator.call("governor.trip_circuit_breaker", swarm_id=claim["swarm_id"], reason="enough")
    error = w.ask("coordinator.claim_task", **claim)
    yield error
    assert error["data"]["would_change"][0]["call"].startswith(f"ifbus breaker reset {claim['swarm_id']} --reason")
    w.operator.call("governor.reset_circuit_breaker", swarm_id=claim["swarm_id"], reason="go on")
    yield w.call("coordinator.claim_task", **claim)["claimed"]


@case
def too_long_a_model(w: World) -> Told:
    return w.ask("coordinator.register_swarm", swarm_id="x", model="x" * 10_000)


@case
def unknown_count(w: World) -> Told:
    return w.ask("governor.track_cost", swarm_id=w.swarm(), operation="llm", cost_usd="1", usage={"words": 1})


@case
def wrong_count(w: World) -> Told:
    return w.ask("governor.track_cost", swarm_id=w.swarm(), operation="llm", cost_usd="1", usage={"input_tokens": -1})


@case
def cost_of_half_a_claim(w: World) -> Told:
    return w.ask("governor.track_cost", swarm_id=w.swarm(), operation="llm", cost_usd="1", token=41)


@case
def too_many_matches(w: World) -> Told:
    return w.ask("governor.find_qualified_swarm", capabilities=[], limit=51)


@case
def cost_without_token(w: World) -> Told:
    return w.ask("governor.track_cost", swarm_id=w.swarm(), operation="llm", cost_usd="1", task_id=w.task())


@case
def negative_amount(w: World) -> Told:
    return w.ask("governor.track_cost", swarm_id=w.swarm(), operation="llm", cost_usd="-1")


@case
def no_reservation(w: World) -> Told:
    return w.ask("governor.settle_cost", swarm_id=w.swarm(), reservation_id="r-nobody", cost_usd="1")


@tight
def too_many_reservations(w: World) -> Told:
    claim = w.claim()
    reserve = {**claim, "operation": "llm", "estimate_usd": "0.01"}
    made = list[str]()
    while (answer := w.client.ask("governor.reserve_cost", **reserve)).error is None:
        made.append(answer.result["reservation_id"])
    yield error_of(answer)
    w.call("governor.settle_cost", swarm_id=claim["swarm_id"], reservation_id=made[0], cost_usd="0")
    yield w.client.ask("governor.reserve_cost", **reserve).code == "ok"


# --- record and reports --------------------------------------------------------------------------------


@case
def too_many_entries(w: World) -> Told:
    return w.ask("witness.query", limit=1_000)


@case
def before_the_first_entry(w: World) -> Told:
    return w.ask("witness.query", after_seq=-1)


@case
def no_receipt(w: World) -> Told:
    return w.ask("witness.verify", receipt="x")


@case
def too_many_rows(w: World) -> Told:
    return w.ask("optimise.report", limit=1_000)


def _two_at_once(w: World, method: str) -> Wire:
    while True:
        with w.another() as client:
            client.sock.sendall(b"".join(packed(number, method, []) for number in range(40)))
            answers = [client.answer(number) for number in range(40)]
        for answer in answers:
            if answer.error is not None:
                return error_of(answer)
        for _ in range(200):
            w.task()


@case
def two_verifications(w: World) -> Told:
    yield _two_at_once(w, "witness.verify")
    yield w.client.ask("witness.verify").code == "ok"


@case
def two_reports(w: World) -> Told:
    swarm_id = w.swarm()
    for _ in range(300):
        w.call("governor.track_cost", swarm_id=swarm_id, operation="llm", cost_usd="0.01")
    yield _two_at_once(w, "optimise.report")
    yield w.client.ask("optimise.report").code == "ok"


# --- sandboxes -----------------------------------------------------------------------------------------


@case
def blob_out_of_its_bounds(w: World) -> Told:
    return w.ask("chassis.put_blob", sha256="x", offset=0, data=b"x", total_bytes=1)


@case
def blob_with_another_hash(w: World) -> Told:
    return w.ask("chassis.put_blob", sha256="0" * 64, offset=0, data=b"x", total_bytes=1)


@case
def module_that_is_not_uploaded(w: World) -> Told:
    contract = {"module_sha256": "1" * 64}
    return w.ask("chassis.load_swarm", swarm_id=w.swarm(), contract=contract)


@tight
def too_large_a_module(w: World) -> Told:
    return w.ask("chassis.put_blob", sha256="2" * 64, offset=0, data=b"x", total_bytes=2 << 20)


@case
def contract_that_cannot_be_read(w: World) -> Told:
    return w.ask("chassis.load_swarm", swarm_id=w.swarm(), contract={"module_sha256": "x"})


@case
def contract_with_a_long_text(w: World) -> Told:
    return w.ask("chassis.load_swarm", **w.loading(version="x" * 10_000))


@case
def limit_beyond_the_policy(w: World) -> Told:
    loading = w.loading(export="add", limits={"wall_ms": 10**9})
    error = w.ask("chassis.load_swarm", **loading)
    yield error
    loading["contract"]["limits"]["wall_ms"] = error["data"]["allowed"]
    yield w.client.ask("chassis.load_swarm", **loading).code == "ok"


@case
def limit_below_a_page(w: World) -> Told:
    return w.ask("chassis.load_swarm", **w.loading(limits={"memory_bytes": 1}))


@case
def no_profile(w: World) -> Told:
    return w.ask("chassis.load_swarm", **w.loading(profile="vast"))


@case
def profile_of_others(w: World) -> Told:
    return w.ask("chassis.load_swarm", **w.loading(profile="python-component"))


@case
def no_webassembly(w: World) -> Told:
    return w.ask("chassis.load_swarm", **w.loading(b"no module"))


@case
def module_of_the_other_kind(w: World) -> Told:
    loading = w.loading(kind="component")
    yield w.ask("chassis.load_swarm", **loading)
    loading["contract"] |= {"kind": "core", "export": "add"}
    yield w.client.ask("chassis.load_swarm", **loading).code == "ok"


@case
def unknown_webassembly(w: World) -> Told:
    return w.ask("chassis.load_swarm", **w.loading(b"\0asm\x09\0\0\0"))


@case
def module_without_the_export(w: World) -> Told:
    return w.ask("chassis.load_swarm", **w.loading(export="nobody"))


@case
def broken_module(w: World) -> Told:
    return w.ask("chassis.load_swarm", **w.loading(b"\0asm\x01\0\0\0garbage"))


@case
def no_module_is_loaded(w: World) -> Told:
    swarm_id = w.swarm()
    return w.ask("chassis.execute_task", swarm_id=swarm_id, input={})


@case
def execution_with_half_a_claim(w: World) -> Told:
    return w.ask("chassis.execute_task", swarm_id=w.swarm(), input={}, task_id="T-1")


@case
def input_that_is_no_json(w: World) -> Told:
    return w.ask("chassis.execute_task", swarm_id=w.swarm(), input=b"x")


@case
def input_that_does_not_fit(w: World) -> Told:
    return w.ask("chassis.execute_task", **w.executing("add", 1))


@case
def guest_that_traps(w: World) -> Told:
    execution = w.executing("divide", 0)
    yield w.ask("chassis.execute_task", **execution)
    yield w.client.ask("chassis.execute_task", **execution | {"input": {"args": [1]}}).code == "ok"


@case
def guest_without_time(w: World) -> Told:
    return w.ask("chassis.execute_task", **w.executing("spin", wall_ms=50))


@tight
def too_many_modules(w: World) -> Told:
    loading = w.loading(export="add")
    w.call("chassis.load_swarm", **loading)
    other = (GUESTS / "kernels.wasm").read_bytes()
    contract = {"module_sha256": w.blob(other), "export": "sort"}
    yield w.ask("chassis.load_swarm", swarm_id=loading["swarm_id"], contract=contract)
    w.call("chassis.unload_swarm", swarm_id=loading["swarm_id"])
    yield w.client.ask("chassis.load_swarm", swarm_id=loading["swarm_id"], contract=contract).code == "ok"


@case
def too_many_calls(w: World) -> Told:
    execution = w.executing("add", 1, 2, calls_per_s=1)
    w.call("chassis.execute_task", **execution)
    answer = w.client.ask("chassis.execute_task", **execution)
    return error_of(answer)


@case
def guest_whose_number_is_none(w: World) -> Told:
    execution = w.executing("root", -1)
    yield w.ask("chassis.execute_task", **execution)
    yield w.client.ask("chassis.execute_task", **execution | {"input": {"args": [4]}}).code == "ok"


@case
def guest_without_memory(w: World) -> Told:
    execution = w.executing("devour", memory_bytes=1 << 20)
    return w.ask("chassis.execute_task", **execution)


@case
def total_that_is_too_large(w: World) -> Told:
    swarm_id = w.swarm()
    cost = {"swarm_id": swarm_id, "operation": "llm", "cost_usd": "1000000000000"}
    while (answer := w.client.ask("governor.track_cost", **cost)).error is None:
        pass  # nine of them are exact
    return error_of(answer)


@tight
def compile_bomb(w: World) -> Told:
    return w.ask("chassis.load_swarm", **w.loading(BOMBS["nested blocks"]()))


def _spinning(w: World, execution: Wire, count: int) -> Iterator[Plain]:
    """Connections that each wait for such an execution."""
    for _ in range(count):
        client = Plain.at(w.daemon.socket)
        client.sock.sendall(packed(7, "chassis.execute_task", [execution]))
        yield client


@tight
def sandbox_with_a_queue(w: World) -> Told:
    clients = list(_spinning(w, w.executing("spin", wall_ms=300), 4))
    answers = [client.answer(7) for client in clients]
    for client in clients:
        client.sock.close()
    yield next(error_of(answer) for answer in answers if answer.code == "overloaded")
    yield w.client.ask("chassis.execute_task", **w.executing("add", 1, 2)).code == "ok"


@tight
def all_workers_busy(w: World) -> Told:
    other, spin, answer = w.executing("add", 1, 2), w.executing("spin", wall_ms=300), Answer(None, {})
    while answer.error is None:  # until it comes while the other one runs
        (client,) = _spinning(w, spin, 1)
        while answer.error is None and not select.select([client.sock], [], [], 0)[0]:
            answer = w.client.ask("chassis.execute_task", **other)
        client.answer(7)
        client.sock.close()
    yield error_of(answer)
    yield w.client.ask("chassis.execute_task", **other).code == "ok"


@tight
def too_many_blockers(w: World) -> Told:
    report = {"swarm_id": w.swarm(), "info": {"reason": "stuck"}}
    blocker = w.call("coordinator.detect_blocker", **report)["blocker"]
    yield w.ask("coordinator.detect_blocker", **report)
    w.call("coordinator.resolve_blocker", blocker_id=blocker["blocker_id"])
    yield w.client.ask("coordinator.detect_blocker", **report).code == "ok"


@tight
def full_inbox(w: World) -> Told:
    swarm_id = w.swarm()
    first, second = (w.client.call("coordinator.create_task", title="x")["task"]["task_id"] for _ in range(2))
    w.call("coordinator.push_task_to_swarm", task_id=first, swarm_id=swarm_id)
    yield w.ask("coordinator.push_task_to_swarm", task_id=second, swarm_id=swarm_id)
    w.call("coordinator.claim_task", task_id=first, swarm_id=swarm_id)
    yield w.client.ask("coordinator.push_task_to_swarm", task_id=second, swarm_id=swarm_id).code == "ok"


@tight
def too_many_open_tasks(w: World) -> Told:
    made = list[str]()
    while (answer := w.client.ask("coordinator.create_task", title="x")).error is None:
        made.append(answer.result["task"]["task_id"])
    yield error_of(answer)
    swarm_id = w.swarm()
    claim = w.call("coordinator.claim_task", task_id=made[0], swarm_id=swarm_id)["claim"]
    w.call("coordinator.complete_task", task_id=made[0], swarm_id=swarm_id, token=claim["token"])
    yield w.client.ask("coordinator.create_task", title="x").code == "ok"


@tight
def too_many_sessions(w: World) -> Told:
    sessions = list[Wire]()
    while True:
        name = f"session-{next(_NUMBERS)}"
        with w.another() as client:
            answer = client.ask("coordinator.register_swarm", swarm_id=name)
        if answer.error is not None:
            break
        sessions.append({"swarm_id": name, "resume_token": answer.result["resume_token"]})
    yield error_of(answer)
    for session in sessions:
        w.call("coordinator.end_session", **session)
    with w.another() as client:
        yield client.ask("coordinator.register_swarm", swarm_id=name).code == "ok"


@tight
def too_many_swarms(w: World) -> Told:
    name, made = "", list[str]()
    while True:
        name = f"profile-{next(_NUMBERS)}"
        answer = w.client.ask("governor.register_profile", swarm_id=name, capabilities=[])
        if answer.error is not None:
            break
        made.append(name)
    yield error_of(answer)
    yield w.client.ask("governor.register_profile", swarm_id=made[0], capabilities=[]).code == "ok"


@slow
def too_many_requests(w: World) -> Told:
    with w.another() as client:
        client.sock.sendall(b"".join(packed(number, "daemon.ping", []) for number in range(300)))
        answers = [client.answer(number) for number in range(300)]
    return next(error_of(answer) for answer in answers if answer.error is not None)


@case
def stopping(w: World) -> Told:
    """The last one: it ends the daemon."""
    with w.another() as client, w.another() as late:
        client.call("coordinator.register_swarm", swarm_id="last", capabilities=["nobody:asks"])
        late.call("daemon.ping")
        client.sock.sendall(packed(7, "coordinator.claim_next", [{"swarm_id": "last", "wait_ms": 1_000}]))
        w.daemon.process.terminate()
        while (answer := late.ask("daemon.ping")).error is None:
            pass  # until it has heard
        return error_of(answer)
