"""One swarm of the play: a process that uses only the client library, as any swarm would."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from ifbus.demo.cast import BLOCKER_NEEDS, Part, part
from ifbus.demo.report import now_ns, report
from ifbus.errors import BreakerTripped, IfbusError, NotFound, NotReady
from ifbus.models import ResourceLimits
from ifbus.sync import Claim, Client, Swarm

WORDCOUNT: Final = Path(__file__).with_name("wordcount.wasm")
_TOOL_WAIT_S: Final = 40.0
_WAIT_S: Final = 0.05
# Executions per task and module.
_RUNS: Final = 4


class Player:
    """The swarm's work. Its mutable state: whether it met its blocker, which modules it ran, whether the curtain was called."""

    def __init__(self, bus: Client, swarm: Swarm, role: Part) -> None:
        self._bus = bus
        self._swarm = swarm
        self._role = role
        self._met_blocker = False
        self._ran: set[Path] = set()
        self._pushed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.curtain = threading.Event()

    def read_letters(self) -> None:
        """Read the inbox as it fills, until the curtain is called."""
        for letter in self._swarm.inbox():
            if letter.kind == "task":
                report("arrived", task=letter.body["task_id"], ns=now_ns())
                self._pushed.put(letter.body["task_id"])
            elif letter.kind == "help":
                self._help(letter.body)
            elif letter.kind == "broadcast" and letter.body.get("topic") == "curtain":
                break
        self.curtain.set()
        self._swarm.drain()
        self._pushed.put("")

    def take_what_is_pushed(self) -> None:
        """Claim the tasks that come by mail, one after the other, if nobody was faster."""
        while task_id := self._pushed.get():
            started_ns = now_ns()
            try:
                claim = self._swarm.claim(task_id, dict)
            except NotReady:
                continue
            if isinstance(claim, Claim):
                report("claimed", us=(now_ns() - started_ns) / 1000)
                with claim:
                    self._work(claim)

    def take_what_fits(self) -> None:
        """The worker loop: the daemon gives the best ready task, waiting on our behalf while there is none."""
        while not self.curtain.is_set():
            try:
                for task in self._swarm.tasks(dict):
                    with task:
                        self._work(task)
                return
            except BreakerTripped as tripped:
                self._wait_for_reset(tripped)

    def _help(self, blocker: dict[str, Any]) -> None:
        """Somebody is stuck and we can help."""
        time.sleep(self._role.think_s)
        try:
            self._bus.resolve_blocker(
                blocker["blocker_id"], swarm_id=self._role.name, note="the route is open, try again"
            )
        except NotFound:
            return  # another helper was faster
        report("helped", f"resolves the blocker on {blocker.get('task_id')}")

    def _work(self, task: Claim[Any]) -> None:
        report("took", f"takes {task.handle} {task.task.title}")
        if task.task_id == self._role.blocked_on and not self._met_blocker:
            self._met_blocker = True
            started_ns = now_ns()
            task.blocked("cannot reach the registry that the runtime comes from", needs=list(BLOCKER_NEEDS))
            report("alarm", f"is blocked on {task.task_id}", task=task.task_id, ns=started_ns)
            return
        for percent, text in task.task.milestones:
            time.sleep(self._role.think_s)
            if percent < 100:
                task.progress(percent, text)
                report("progress", task=task.task_id)
        counted = self._execute(task)
        with task.spend("llm", estimate_usd=task.task.estimate_usd) as cost:
            spent = cost.settle(usd=self._role.llm_usd, model="demo")
        if spent.tripped:
            task.release("out of budget: somebody else, please")
            report("broke", f"is out of money ({spent.report.spent_usd} USD spent) and gives {task.task_id} back")
            return
        task.complete({"deliverable": task.task.payload.get("deliverable", ""), **counted})
        report("completed", f"completes {task.task_id}", task=task.task_id)

    def _execute(self, task: Claim[Any]) -> dict[str, Any]:
        """Count the words of the milestones in a sandbox: a WASI program, and for fillers the Python tool as well."""
        text = " ".join(text for _, text in task.task.milestones)
        counted: dict[str, Any] = {}
        for _ in range(_RUNS):
            counted = self._timed("WASI program", task, WORDCOUNT, text, ResourceLimits(wall_ms=5_000), "default")
        tool = os.environ.get("IFBUS_DEMO_TOOL")
        if tool and task.task.filler:
            deadline_s = time.monotonic() + _TOOL_WAIT_S
            while not os.path.exists(tool) and time.monotonic() < deadline_s:
                time.sleep(_WAIT_S)
            limits = ResourceLimits(wall_ms=10_000, memory_bytes=256 << 20)
            for _ in range(_RUNS):
                counted |= self._timed("Python component", task, Path(tool), text, limits, "python-component")
        return {"words": counted.get("words")}

    def _timed(
        self, kind: str, task: Claim[Any], module: Path, text: str, limits: ResourceLimits, profile: str
    ) -> dict[str, Any]:
        started_ns = now_ns()
        done = task.execute(module, input={"text": text}, limits=limits, profile=profile)
        us = (now_ns() - started_ns) / 1000
        report("executed", kind=f"{kind}, warm" if module in self._ran else f"{kind}, first (compiled)", us=us)
        self._ran.add(module)
        output: dict[str, Any] = done.output
        return output

    def _wait_for_reset(self, tripped: BreakerTripped) -> None:
        report("stopped", tripped.message)
        while not self.curtain.wait(_WAIT_S):
            if self._bus.get_swarm(self._role.name).breaker == "closed":
                report("back", "goes on after the reset")
                return


def main(name: str) -> None:
    """Register, work until the curtain is called, leave."""
    role = part(name)
    with (
        Client() as bus,
        bus.register(
            name,
            capabilities=list(role.capabilities),
            cost_per_hour_usd=role.cost_per_hour_usd,
            budget_usd=role.budget_usd,
            model="demo",
        ) as swarm,
    ):
        report("ready")
        player = Player(bus, swarm, role)
        reader = threading.Thread(target=player.read_letters, name="reads letters")
        reader.start()
        if role.is_pushed:
            player.take_what_is_pushed()
        else:
            player.take_what_fits()
        reader.join()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except IfbusError as error:
        report("problem", f"{error.code}: {error.message}")
        raise SystemExit(1) from None
