"""An honest swarm: claims a task, reports, pays, ends it one way or the other, looks it up; and times every call.

It gives one task back and claims it again, many times, before it completes it and creates the next: the daemon remembers
each task that there ever was, and what that takes is no leak.
"""

import time
from collections import Counter
from typing import Any, Self

from ifbus.errors import IfbusError
from ifbus.sync import Client

_MAX_TOLD = 10
_TURNS_A_TASK = 500
# Latencies are kept to this: fine enough for a ratio of some milliseconds, and an hour of them stays small.
_RESOLUTION_US = 5


class Honest:
    """One swarm with a connection; whatever does not go as promised is a failure."""

    # Between two tasks: it is there to be served, not to fill the daemon up.
    PAUSE_S = 0.02

    def __init__(self, path: str, number: int, seed: int) -> None:
        self._swarm_id = f"honest-{number}"
        self._skill = f"mixed:honest-{number}"
        self._bus = Client(path)
        self._operations = 0
        self._failures: list[str] = []
        self._failed = 0
        self._phases: list[Counter[int]] = [Counter()]
        self._token = 0
        self._turns = 0
        self._task_id = ""
        self._swarm = self._bus.register(self._swarm_id, capabilities=[self._skill], budget_usd="1000000")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._swarm.close()
        self._bus.close()

    def begin_phase(self) -> None:
        """Time separately from now on."""
        self._phases.append(Counter())

    def turn(self) -> None:
        """One claim from its beginning to its end, by the plain calls of the wire."""
        try:
            self._hold_a_task()
        except (IfbusError, AssertionError) as error:
            self._failed += 1
            if len(self._failures) < _MAX_TOLD:
                self._failures.append(f"{type(error).__name__}: {error}")
            self._task_id = ""

    def _hold_a_task(self) -> None:
        me = self._swarm_id
        assert self._call("daemon.ping") == "pong", "no pong"
        if not self._task_id:
            created = self._call(
                "coordinator.create_task", title="mixed", capabilities=[self._skill], estimate_usd="0.01"
            )
            self._task_id = created["task"]["task_id"]
        task_id = self._task_id
        answer = self._call("coordinator.claim_task", task_id=task_id, swarm_id=me)
        assert answer["claimed"], f"{task_id} was not to be had: {answer}"
        token = answer["claim"]["token"]
        assert token > self._token, f"token {token} after {self._token}"
        self._token = token
        held = {"task_id": task_id, "swarm_id": me, "token": token}
        self._call("coordinator.report_progress", **held, percent=50)
        self._call("governor.track_cost", **held, operation="llm", cost_usd="0.000001")
        self._turns += 1
        expected: tuple[str, Any] = ("ready", None)
        if self._turns % _TURNS_A_TASK:
            self._call("coordinator.release_task", **held)
        else:
            self._call("coordinator.complete_task", **held, result={"token": token})
            expected = ("completed", {"token": token})
            self._task_id = ""
        task = self._call("coordinator.get_task", task_id=task_id)["task"]
        assert (task["state"], task.get("result")) == expected, f"{task_id} reads {task}"

    def _call(self, method: str, **params: Any) -> Any:
        began_ns = time.perf_counter_ns()
        answer = self._bus.call(method, **params)
        took_us = (time.perf_counter_ns() - began_ns) // 1000
        self._phases[-1][took_us // _RESOLUTION_US * _RESOLUTION_US] += 1
        self._operations += 1
        return answer

    def result(self) -> dict[str, Any]:
        """What it did: operations, failures, and for each phase how many calls took so many microseconds."""
        return {
            "operations": self._operations,
            "failed": self._failed,
            "failures": self._failures,
            "latencies_us": [dict(phase) for phase in self._phases],
        }
