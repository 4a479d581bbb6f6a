"""A day in a small office: every kind of durable work that the daemon does, in an order that never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.proof.disk.wire import Refused, Wire

GUEST = Path(__file__).parents[2] / "guests" / "core.wasm"
_LEASE_MS = 3_600_000
_CHUNK = 2048


class Office:
    """The callers of one daemon, over its restarts. The mutable state is their connection and what they hold."""

    def __init__(self) -> None:
        self._wire: Wire | None = None
        self._keys = 0
        self.tokens: dict[str, int] = {}
        self.answers = 0

    def connect(self, path: Path) -> None:
        """Talk to a daemon that has just started."""
        self.close()
        self._wire = Wire(path)

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._wire is not None:
            self._wire.close()

    def ask(self, method: str, **params: Any) -> Any:
        """The answer to a request with an idempotency key of its own."""
        (answer,) = self.ask_together((method, params))
        if isinstance(answer, Refused):
            raise answer
        return answer

    def ask_together(self, *requests: tuple[str, dict[str, Any]]) -> list[Any]:
        """The answers to requests sent in one piece: they share commits."""
        assert self._wire is not None
        answers = self._wire.ask_together([(method, self._with_key(params)) for method, params in requests])
        self.answers += len(answers)
        return answers

    def _with_key(self, params: dict[str, Any]) -> dict[str, Any]:
        if "$" in params:
            return params
        self._keys += 1
        return {**params, "$": {"idempotency_key": f"office-{self._keys}"}}

    def claim(self, task: str, swarm: str) -> dict[str, Any]:
        """Claim a task; its fence as parameters of what follows."""
        self.tokens[task] = self.ask("coordinator.claim_task", task_id=task, swarm_id=swarm)["claim"]["token"]
        return self.fence(task, swarm)

    def fence(self, task: str, swarm: str) -> dict[str, Any]:
        """What an act of a task's holder carries."""
        return {"task_id": task, "swarm_id": swarm, "token": self.tokens[task]}


def morning(office: Office) -> None:
    """Swarms, tasks, claims, money, letters, and a module."""
    ask = office.ask
    for swarm, skills in (("builder", ["code:py", "code:c"]), ("tester", ["test:unit"]), ("spender", ["code:py"])):
        ask("coordinator.register_swarm", swarm_id=swarm, capabilities=skills, budget_usd="5.00", lease_ms=_LEASE_MS)
    ask("coordinator.register_swarm", swarm_id="boss", orchestrator=True, lease_ms=_LEASE_MS)
    ask("coordinator.subscribe_inbox", swarm_id="tester")
    office.ask_together(
        *(
            ("coordinator.create_task", {"title": f"Part {n}", "task_id": f"P-{n}", "estimate_usd": "0.10"})
            for n in range(12)
        )
    )
    ask(
        "coordinator.create_task",
        title="Whole",
        task_id="W",
        depends_on=["P-0", "P-1"],
        payload={"text": "x" * 6000},
    )
    first = office.claim("P-0", "builder")
    ask("coordinator.report_progress", **first, percent=50, note="half")
    _spend(office, "builder", 3, **{name: first[name] for name in ("task_id", "token")})
    ask("coordinator.complete_task", **first, result={"lines": 120})
    second = office.claim("P-1", "builder")
    reserved = ask("governor.reserve_cost", operation="llm", estimate_usd="0.25", **second)
    ask(
        "governor.settle_cost",
        swarm_id="builder",
        reservation_id=reserved["reservation_id"],
        cost_usd="0.023456",
    )
    assert not ask("coordinator.claim_task", task_id="P-1", swarm_id="spender")["claimed"]
    ask("coordinator.complete_task", **second)
    third = office.claim("P-2", "tester")
    ask("coordinator.fail_task", **third, error="no luck", retry=True)
    _refused(lambda: ask("coordinator.complete_task", **third), "stale_token")
    fourth = office.claim("P-3", "tester")
    ask("coordinator.fail_task", **fourth, error="no luck at all")
    fifth = office.claim("P-4", "tester")
    ask("coordinator.release_task", **fifth)
    for task in ("P-5", "P-6"):
        ask("coordinator.push_task_to_swarm", task_id=task, swarm_id="tester")
    office.claim("P-5", "builder")  # withdraws the letter
    heard = ask("coordinator.broadcast", topic="news", body={"text": "y" * 300}, sender="boss")
    assert heard["broadcast"]["delivered_to"] == 3
    inbox = ask("coordinator.read_inbox", swarm_id="builder")["messages"]
    ask("coordinator.acknowledge", swarm_id="builder", seq=inbox[-1]["seq"])
    _module(office)


def afternoon(office: Office) -> None:
    """After a crash: stopped swarms, blockers, repeated requests, many at once, and an end in order."""
    ask = office.ask
    sixth = office.fence("P-5", "builder")  # held since the morning
    ask("coordinator.report_progress", **sixth, percent=80)
    ask("governor.track_cost", swarm_id="spender", operation="llm", cost_usd="4.999999")
    spent = ask("governor.track_cost", swarm_id="spender", operation="llm", cost_usd="0.000002")
    assert spent["tripped"]
    _refused(lambda: ask("coordinator.claim_task", task_id="P-7", swarm_id="spender"), "breaker_tripped")
    ask("governor.trip_circuit_breaker", swarm_id="tester", reason="by hand")
    ask("governor.reset_circuit_breaker", swarm_id="tester", reason="looked at it")
    ask("governor.set_budget", swarm_id="builder", limit_usd="9.50")
    info = {"reason": "no key", "severity": "high", "needs": ["test:unit"], "release": True}
    blocker = ask(
        "coordinator.detect_blocker",
        swarm_id="builder",
        info={**info, "task_id": "P-5", "token": sixth["token"]},
    )["blocker"]
    ask("coordinator.detect_blocker", swarm_id="tester", info={"reason": "tired"})
    ask("coordinator.resolve_blocker", blocker_id=blocker["blocker_id"], note="found it")
    again = {"title": "Once", "task_id": "O", "$": {"idempotency_key": "the same"}}
    one, two = ask("coordinator.create_task", **again), ask("coordinator.create_task", **again)
    assert (one["receipt"]["seq"], two["receipt"]["replayed"]) == (two["receipt"]["seq"], True)
    claims = office.ask_together(
        *(("coordinator.claim_task", {"task_id": f"P-{n}", "swarm_id": "builder"}) for n in (7, 8, 9)),
        # Of two who ask for the same one wins.
        *(("coordinator.claim_task", {"task_id": "P-10", "swarm_id": swarm}) for swarm in ("builder", "boss")),
        ("governor.track_cost", {"swarm_id": "tester", "operation": "search", "cost_usd": "0.01"}),
        ("witness.head", {}),
        ("coordinator.create_task", {"title": "Late", "task_id": "L", "payload": {"text": "z" * 9000}}),
    )
    assert [answer["claimed"] for answer in claims[:5]].count(False) == 1
    for answer in claims[:3]:
        office.tokens[answer["claim"]["task_id"]] = answer["claim"]["token"]
    office.ask_together(
        *(("coordinator.complete_task", office.fence(f"P-{n}", "builder")) for n in (7, 8)),
        *(("governor.track_cost", _cost("builder", n)) for n in range(6)),
    )
    assert ask("chassis.execute_task", swarm_id="builder", input={"args": [2, 3]})["output"] == 5
    ask("coordinator.register_swarm", swarm_id="tester", lease_ms=_LEASE_MS)  # another incarnation


def _spend(office: Office, swarm: str, times: int, **fence: Any) -> None:
    for number in range(times):
        office.ask("governor.track_cost", **_cost(swarm, number), **fence)


def _cost(swarm: str, number: int) -> dict[str, Any]:
    return {"swarm_id": swarm, "operation": "llm", "cost_usd": f"0.00{number + 1:04}", "model": "m"}


def _module(office: Office) -> None:
    module = GUEST.read_bytes()
    sha256 = hashlib.sha256(module).hexdigest()
    for at in range(0, len(module), _CHUNK):
        chunk = module[at : at + _CHUNK]
        answer = office.ask("chassis.put_blob", sha256=sha256, offset=at, data=chunk, total_bytes=len(module))
    assert answer["complete"]
    contract = {"module_sha256": sha256, "kind": "core", "export": "add"}
    office.ask("chassis.load_swarm", swarm_id="builder", contract=contract)
    assert office.ask("chassis.execute_task", swarm_id="builder", input={"args": [40, 2]})["output"] == 42


def _refused(act: Callable[[], object], code: str) -> None:
    try:
        act()
    except Refused as refused:
        code_given = refused.code
    else:
        code_given = ""
    assert code_given == code
