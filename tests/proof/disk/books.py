"""What the callers know: kept from their own requests and the answers, and compared with what a daemon says after a crash.

Each operation that changed something has a number in the witness log (its receipt). A daemon whose log ends at number n must
show the effects of the operations up to n, all of them and no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import attrs

from tests.proof.disk.recording import Said
from tests.proof.disk.wire import Wire

_PAGE = 50


@attrs.define
class Books:
    """The state of the office by its callers' own accounts. The mutable state is all of it."""

    tasks: dict[str, dict[str, Any]] = attrs.Factory(dict)
    incarnations: Counter[str] = attrs.Factory(Counter)
    spent: dict[str, Decimal] = attrs.Factory(dict)
    limits: dict[str, Decimal] = attrs.Factory(dict)
    tripped: set[str] = attrs.Factory(set)
    blockers: dict[str, str | None] = attrs.Factory(dict)
    letters: dict[str, Counter[str]] = attrs.Factory(dict)
    modules: dict[str, str] = attrs.Factory(dict)

    @classmethod
    def after(cls, said: Sequence[Said], seq: int) -> Books:
        """After the operations up to this number."""
        books = cls()
        for one in sorted(operations(said), key=lambda one: int(one.result["receipt"]["seq"])):
            if one.result["receipt"]["seq"] <= seq:
                books._enter(one.method, one.params[0], one.result)
        return books

    def _enter(self, method: str, asked: dict[str, Any], answer: dict[str, Any]) -> None:
        match method:
            case "coordinator.register_swarm":
                self._register(asked["swarm_id"], asked, answer)
            case "coordinator.create_task":
                self.tasks[asked["task_id"]] = {"state": "ready", "depends_on": asked.get("depends_on", [])}
            case "coordinator.claim_task":
                claim = answer["claim"]
                self._set(asked["task_id"], state="claimed", holder=claim["swarm_id"], token=claim["token"], percent=0)
                self._withdraw(asked["task_id"])
            case "coordinator.report_progress":
                self._set(asked["task_id"], percent=asked["percent"])
            case "coordinator.complete_task":
                self._set(asked["task_id"], state="completed", result=asked.get("result"))
            case "coordinator.fail_task":
                self._set(asked["task_id"], state="failed")
                if asked.get("retry"):
                    self._free(asked["task_id"])
            case "coordinator.release_task":
                self._free(asked["task_id"])
            case "coordinator.push_task_to_swarm":
                self.letters[asked["swarm_id"]][f"task {asked['task_id']}"] += 1
            case "coordinator.broadcast":
                for swarm in set(self.letters) - {asked["sender"]}:
                    self.letters[swarm]["broadcast"] += 1
            case "coordinator.acknowledge":
                self.letters[asked["swarm_id"]].clear()
            case "coordinator.detect_blocker":
                self._block(asked["info"], answer["blocker"])
            case "coordinator.resolve_blocker":
                self._unblock(answer["blocker"])
            case "governor.track_cost" | "governor.settle_cost":
                swarm = asked["swarm_id"]
                self.spent[swarm] += Decimal(asked["cost_usd"])
                if answer["tripped"]:
                    self.tripped.add(swarm)
            case "governor.set_budget":
                self.limits[asked["swarm_id"]] = Decimal(asked["limit_usd"])
            case "governor.trip_circuit_breaker":
                self.tripped.add(asked["swarm_id"])
            case "governor.reset_circuit_breaker":
                self.tripped.discard(asked["swarm_id"])
            case "chassis.load_swarm":
                self.modules[asked["swarm_id"]] = asked["contract"]["module_sha256"]
            case "governor.reserve_cost" | "chassis.execute_task":
                pass  # shown nowhere but in figures that time changes
            case _:
                raise ValueError(f"the books know nothing of {method}")

    def _register(self, swarm: str, asked: dict[str, Any], answer: dict[str, Any]) -> None:
        self.incarnations[swarm] += 1
        assert answer["incarnation"] == self.incarnations[swarm]
        self.letters.setdefault(swarm, Counter())
        self.spent.setdefault(swarm, Decimal(0))
        if "budget_usd" in asked:
            self.limits[swarm] = Decimal(asked["budget_usd"])
        for task, known in self.tasks.items():
            if known["state"] == "claimed" and known["holder"] == swarm:  # an earlier incarnation's claims are free
                self._free(task)

    def _set(self, task: str, **values: Any) -> None:
        self.tasks[task].update(values)

    def _free(self, task: str, *, state: str = "ready") -> None:
        self._set(task, state=state, holder=None, token=None)

    def _withdraw(self, task: str) -> None:
        for letters in self.letters.values():
            del letters[f"task {task}"]

    def _block(self, info: dict[str, Any], blocker: dict[str, Any]) -> None:
        self.blockers[blocker["blocker_id"]] = info.get("task_id")
        if "task_id" in info:
            self._free(info["task_id"], state="blocked")
        self.letters["boss"]["blocker"] += 1
        for helper in blocker["helpers"]:
            self.letters[helper]["help"] += 1

    def _unblock(self, blocker: dict[str, Any]) -> None:
        task = self.blockers.pop(blocker["blocker_id"])
        if task is not None:
            self._free(task)
        self.letters[blocker["swarm_id"]]["notice"] += 1

    def shown(self) -> dict[str, Any]:
        """As `shown_by` gives it."""
        return {
            "tasks": {task: self._shown_task(known) for task, known in self.tasks.items()},
            "incarnations": dict(self.incarnations),
            "spent": self.spent,
            "limits": {swarm: self.limits.get(swarm) for swarm in self.incarnations},
            "tripped": self.tripped,
            "blockers": set(self.blockers),
            "letters": {swarm: +letters for swarm, letters in self.letters.items()},
            "ledger": sum(self.spent.values(), Decimal(0)),
        }

    def _shown_task(self, known: dict[str, Any]) -> dict[str, Any]:
        is_waiting = any(self.tasks[task]["state"] != "completed" for task in known["depends_on"])
        return {
            "state": "waiting" if known["state"] == "ready" and is_waiting else known["state"],
            **{name: known.get(name) for name in ("holder", "token", "result")},
        }


def operations(said: Sequence[Said]) -> list[Said]:
    """The answers of what was done, each once: no refusal, no question, no repetition."""
    return [
        one
        for one in said
        if one.error is None
        and isinstance(one.result, dict)
        and "seq" in one.result.get("receipt", {})
        and not one.result["receipt"].get("replayed")
        and one.result.get("claimed") is not False
    ]


def shown_by(wire: Wire) -> dict[str, Any]:
    """What a daemon says of everything that the books have."""
    swarms = wire.ask("governor.list_swarms", limit=_PAGE)["swarms"]
    names = [swarm["swarm_id"] for swarm in swarms]
    reports = [wire.ask("governor.get_budget_report", swarm_id=name)["reports"][0] for name in names]
    ids = [task["task_id"] for task in wire.ask("coordinator.list_tasks", limit=_PAGE)["tasks"]]
    tasks = [wire.ask("coordinator.get_task", task_id=task)["task"] for task in ids]
    breakers = wire.ask("governor.list_breakers", tripped_only=True)["breakers"]
    blockers = wire.ask("coordinator.list_blockers")["blockers"]
    ledger = wire.ask("optimise.report", by="swarm")
    return {
        "tasks": {
            task["task_id"]: {
                "state": task["state"],
                **{name: task.get(name) for name in ("holder", "token", "result")},
            }
            for task in tasks
        },
        "incarnations": {swarm["swarm_id"]: swarm["incarnation"] for swarm in swarms},
        "spent": {report["swarm_id"]: Decimal(report["spent_usd"]) for report in reports},
        "limits": {report["swarm_id"]: _dollars(report.get("limit_usd")) for report in reports},
        "tripped": {breaker["swarm_id"] for breaker in breakers},
        "blockers": {blocker["blocker_id"] for blocker in blockers},
        "letters": {name: _letters(wire, name) for name in names},
        "ledger": Decimal(ledger["total_usd"]),
    }


def differences(expected: dict[str, Any], shown: dict[str, Any]) -> list[str]:
    """What a daemon shows otherwise than the books have it, an entry each."""
    found = []
    for section, entries in expected.items():
        if not isinstance(entries, dict):
            entries, others = {"": entries}, {"": shown[section]}
        else:
            others = shown[section]
        found += [
            f"{section} {name}: expected {entries.get(name)}, shown {others.get(name)}"
            for name in sorted({*entries, *others})
            if entries.get(name) != others.get(name)
        ]
    return found


def _dollars(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _letters(wire: Wire, swarm: str) -> Counter[str]:
    messages = wire.ask("coordinator.read_inbox", swarm_id=swarm, limit=_PAGE)["messages"]
    return Counter(f"task {m['body']['task_id']}" if m["kind"] == "task" else m["kind"] for m in messages)


def repeat(wire: Wire, one: Said) -> dict[str, Any]:
    """Ask for an operation again, with its key and its body."""
    answer: dict[str, Any] = wire.ask(one.method, **one.params[0])
    return answer
