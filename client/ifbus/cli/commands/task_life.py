"""`ifbus task batch`, `cancel`, `dead` and `requeue`: many at once; ends that no holder asked for, and the way back."""

from __future__ import annotations

import argparse

from ifbus.cli.command import MAX_JSON_CHARS, Command, Data, Invocation, Outcome, parse_json, read_text
from ifbus.cli.commands import TASK_FIELDS
from ifbus.cli.commands.task import render_added
from ifbus.cli.text import View, fields, one_line, plural


def _task_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="TASK", help="T-7")
    parser.add_argument("--reason", metavar="TEXT", help="goes on record, and to whoever holds it")


# --- batch -------------------------------------------------------------------------------------------


def _batch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject", metavar="FILE", help="a JSON list of maps, each as coordinator.create_task takes it; '-' for stdin"
    )


def _batch(invocation: Invocation) -> Outcome:
    tasks = parse_json(read_text(invocation.args.subject, MAX_JSON_CHARS, invocation.command), "tasks")
    return Outcome(invocation.change("coordinator.create_tasks", {"tasks": tasks}))


def render_batch(data: Data, view: View) -> list[str]:
    """One line a task, as `task add` says it."""
    return [line for task in data["tasks"] for line in render_added({"task": task}, view)]


# --- cancel ------------------------------------------------------------------------------------------


def _cancel(invocation: Invocation) -> Outcome:
    args = invocation.args
    params = {"task_id": args.subject.partition("@")[0], "reason": args.reason}
    return Outcome(invocation.change("coordinator.cancel_task", params))


def render_cancelled(data: Data, view: View) -> list[str]:
    """What became of it, and whom it was taken from."""
    task = data["task"]
    held = f"{task['holder']} was told to stop" if task.get("holder") and task.get("token") else ""
    return fields([f"{task['task_id']} {view.state(task['state'])}", held], view)


# --- dead letters ------------------------------------------------------------------------------------


def _dead(invocation: Invocation) -> Outcome:
    return invocation.ask_page("coordinator.list_dead_letters")


def render_dead(data: Data, view: View) -> list[str]:
    """Each with what went wrong, attempt by attempt."""
    if not data["tasks"]:
        return ["no dead task"]
    lines = []
    for task in data["tasks"]:
        failures = plural(task.get("failures", 0), "failed attempt")
        lines.append(f"{task['task_id']} {view.state(task['state'])} after {failures}: {one_line(task['title'], 100)}")
        lines += [f"  {line}" for line in render_errors(task, view)]
    return [*lines, f"  again: ifbus task requeue {data['tasks'][0]['task_id']}"]


def render_errors(task: Data, view: View) -> list[str]:
    """One line an attempt that failed or was lost."""
    return [
        f"attempt {error['attempt']} by {error['swarm_id'] or '?'} {view.ago(error['at_ms'])}: {error['reason']}"
        f"{': ' + one_line(error['error'], 200) if error.get('error') else ''}"
        for error in task.get("errors", ())
    ]


# --- requeue -----------------------------------------------------------------------------------------


def _requeue_arguments(parser: argparse.ArgumentParser) -> None:
    _task_arguments(parser)
    parser.add_argument("--deadline", metavar="WHEN", help="a new deadline: a span from now, or a time in ISO 8601")


def _requeue(invocation: Invocation) -> Outcome:
    from ifbus.cli.moments import parse_moment

    args = invocation.args
    deadline = None if args.deadline is None else parse_moment(args.deadline, invocation.view.now_ms, "deadline")
    params = {"task_id": args.subject.partition("@")[0], "reason": args.reason, "deadline_at_ms": deadline}
    return Outcome(invocation.change("coordinator.requeue_task", params))


def render_requeued(data: Data, view: View) -> list[str]:
    """``T-7 ready``."""
    task = data["task"]
    waits = f"waits for {', '.join(task['waits_for'])}" if task.get("waits_for") else ""
    return fields([f"{task['task_id']} {view.state(task['state'])} again", waits], view)


COMMANDS = {
    "batch": Command(
        words="task batch",
        summary="Create up to 50 tasks in one commit or none of them; they may depend on one another",
        examples=("ifbus task batch tasks.json", "ifbus task batch tasks.json --json", "plan | ifbus task batch -"),
        arguments=_batch_arguments,
        run=_batch,
        render=render_batch,
        kind="change",
        items="tasks",
        id_field="task_id",
        columns=TASK_FIELDS,
    ),
    "cancel": Command(
        words="task cancel",
        summary="End an open task without a result: for its creator and operators",
        examples=("ifbus task cancel T-7", 'ifbus task cancel T-7 --reason "not wanted any more"', "ifbus task cancel T-7 --json"),
        arguments=_task_arguments,
        run=_cancel,
        render=render_cancelled,
        kind="change",
        items="task",
        id_field="task_id",
        columns=TASK_FIELDS,
    ),
    "dead": Command(
        words="task dead",
        summary="List the tasks whose attempts are used up, with the errors of each",
        examples=("ifbus task dead", "ifbus task dead --limit 200 -q", "ifbus task dead --json --fields id,failures"),
        run=_dead,
        render=render_dead,
        kind="list",
        items="tasks",
        id_field="task_id",
        columns=TASK_FIELDS,
    ),
    "requeue": Command(
        words="task requeue",
        summary="Open a dead, failed, cancelled or expired task again: for its creator and operators",
        examples=("ifbus task requeue T-7", 'ifbus task requeue T-7 --reason "the disk is mended"', "ifbus task requeue T-7 --deadline 2h"),
        arguments=_requeue_arguments,
        run=_requeue,
        render=render_requeued,
        kind="change",
        items="task",
        id_field="task_id",
        columns=TASK_FIELDS,
    ),
}  # fmt: skip
