"""The orchestrator: pushes ready tasks to the best swarm that waits for pushes, and hears of every blocker."""

from __future__ import annotations

import threading

from ifbus.demo.cast import CAST, ORCHESTRATOR
from ifbus.demo.report import now_ns, report
from ifbus.errors import NotReady, Refused
from ifbus.sync import Client

_PUSHED = frozenset(part.name for part in CAST if part.is_pushed)


def main() -> None:
    """Work until the curtain is called."""
    with Client() as bus, bus.register(ORCHESTRATOR, orchestrator=True) as swarm:
        changes = bus.subscribe_board()
        pusher = threading.Thread(target=_push_what_is_ready, args=(bus, changes), name="pushes")
        pusher.start()
        report("ready")
        try:
            for letter in swarm.inbox():
                if letter.kind == "blocker" and not letter.body.get("resolved"):
                    helpers = ", ".join(letter.body.get("helpers", ())) or "nobody"
                    text = f"hears of a blocker on {letter.body.get('task_id')}; asked to help: {helpers}"
                    report("heard", text, task=letter.body.get("task_id"), ns=now_ns())
                elif letter.kind == "broadcast" and letter.body.get("topic") == "curtain":
                    return
        finally:
            changes.close()
            pusher.join()


def _push_what_is_ready(bus: Client, changes: object) -> None:
    pushed: set[str] = set()
    _push(bus, pushed)
    for _ in changes:  # type: ignore[attr-defined]
        _push(bus, pushed)


def _push(bus: Client, pushed: set[str]) -> None:
    for task in bus.list_tasks(states=["ready"], limit=200).tasks:
        if task.task_id in pushed:
            continue
        found = bus.find_qualified_swarm(list(task.capabilities))
        if found.best is None or found.best.swarm_id not in _PUSHED:
            continue
        started_ns = now_ns()
        try:
            bus.push_task_to_swarm(task.task_id, found.best.swarm_id)
        except NotReady:
            continue  # somebody was faster
        except Refused as refusal:
            report("refused", f"cannot push {task.task_id}: {refusal.message}")
            continue
        pushed.add(task.task_id)
        text = f"pushes {task.task_id} to {found.best.swarm_id} (overlap {found.best.overlap:.2f})"
        report("pushed", text, task=task.task_id, ns=started_ns)


if __name__ == "__main__":
    main()
