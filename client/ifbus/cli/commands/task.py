"""`ifbus task add`, `ls`, `show` and `import`: the board. Claims are in `task_claim` and `task_holder`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ifbus.cli.command import Command, Data, DryRun, Invocation, Outcome, parse_json, read_text, span_type
from ifbus.cli.commands import TASK_FIELDS
from ifbus.cli.text import View, describe_bound, fields, one_line, plural, span, table
from ifbus.errors import AlreadyExists, InvalidParams, NotFound, Usage

if TYPE_CHECKING:
    from ifbus.board import TaskSpec

STATES = (
    "waiting",
    "scheduled",
    "ready",
    "claimed",
    "blocked",
    "paused",
    "completed",
    "failed",
    "dead",
    "cancelled",
    "expired",
)
_GUESSES = {
    "done": "completed", "open": "ready", "todo": "ready", "in_progress": "claimed", "canceled": "cancelled", "backoff": "scheduled",
}  # fmt: skip
_FINAL = ("completed", "failed", "dead", "cancelled", "expired")
# Thousands of tasks.
_MAX_BOARD_CHARS = 4 << 20


# --- add ---------------------------------------------------------------------------------------------


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("title", help="one line")
    parser.add_argument(
        "--need", metavar="CAP", action="append", help="what a swarm must be able to do, area:skill; again or A,B"
    )
    parser.add_argument(
        "--depends-on", metavar="ID", action="append", help="tasks that must be completed first; again or A,B"
    )
    parser.add_argument("--estimate-usd", metavar="USD", help="what it will probably cost; reserved when it is claimed")
    parser.add_argument("--id", help="its name; made up if not given")
    parser.add_argument("--description", metavar="TEXT")
    parser.add_argument("--payload", metavar="JSON", help="a map for the holder")
    parser.add_argument("--priority", type=int, metavar="N", help="higher goes first, -100 to 100")
    parser.add_argument("--filler", action="store_true", default=None, help="only while nothing better is ready")
    parser.add_argument(
        "--resource", metavar="NAME", action="append", help="what it needs for itself, such as gpu:0; again or A,B"
    )
    parser.add_argument("--milestone", metavar="'25 TEXT'", action="append", help="again for more")
    parser.add_argument("--start", metavar="WHEN", help="nobody gets it before: a span from now, or a time in ISO 8601")
    parser.add_argument("--deadline", metavar="WHEN", help="not ended by then it expires: a span from now, or a time")
    parser.add_argument("--lease", metavar="SPAN", type=span_type, help="lease of a claim that asks for none")
    parser.add_argument("--max-attempts", type=int, metavar="N", help="try again after failures, N attempts in all")
    parser.add_argument(
        "--backoff",
        metavar="JSON",
        help='rest between attempts: {"base_ms", "factor", "cap_ms", "jitter"}, any of them',
    )
    parser.add_argument("--unique", metavar="KEY", help="while an open task has this key, that one is the answer")
    parser.add_argument("--retention", metavar="SPAN", type=span_type, help="keep it so long once it has ended")
    parser.add_argument(
        "--on-dependency-failure",
        choices=("wait", "cancel", "run"),
        help="when one that it depends on ends without being completed",
    )
    parser.add_argument("--group", metavar="NAME", help="the queue that it belongs to, for shares and pauses")
    parser.add_argument("--concurrency-key", metavar="KEY", help="what tasks must share, such as repo:website")
    parser.add_argument("--concurrency-limit", type=int, metavar="N", help="so many of that key at a time (1)")
    parser.add_argument("--weight", type=int, metavar="N", help="its slots, and what it counts for its group (1)")


def _add(invocation: Invocation) -> Outcome:
    args = invocation.args
    return Outcome(
        invocation.change(
            "coordinator.create_task",
            {
                "title": args.title,
                "task_id": args.id,
                "description": args.description,
                "capabilities": split_list(args.need),
                "depends_on": split_list(args.depends_on),
                "filler": args.filler,
                "priority": args.priority,
                "estimate_usd": args.estimate_usd,
                "payload": parse_json(args.payload, "payload") if args.payload is not None else None,
                "resources": split_list(args.resource),
                "milestones": [_milestone(text) for text in args.milestone] if args.milestone else None,
                "not_before_at_ms": _moment(invocation, args.start, "start"),
                "deadline_at_ms": _moment(invocation, args.deadline, "deadline"),
                "lease_ms": args.lease,
                "max_attempts": args.max_attempts,
                "backoff": parse_json(args.backoff, "backoff") if args.backoff is not None else None,
                "unique_key": args.unique,
                "retention_ms": args.retention,
                "on_dependency_failure": args.on_dependency_failure,
                "group": args.group,
                "concurrency_key": args.concurrency_key,
                "concurrency_limit": args.concurrency_limit,
                "weight": args.weight,
            },
        )
    )


def _moment(invocation: Invocation, text: str | None, what: str) -> int | None:
    if text is None:
        return None
    from ifbus.cli.moments import parse_moment

    return parse_moment(text, invocation.view.now_ms, what)


def _milestone(text: str) -> list[Any]:
    percent, _, what = text.partition(" ")
    percent = percent.rstrip("%")
    if not (percent.isascii() and percent.isdigit() and what.strip()):
        raise InvalidParams(f"a milestone reads '25 client connects', got {text!r:.80}", data={"param": "milestone"})
    return [int(percent), what.strip()]


def split_list(values: list[str] | None) -> list[str] | None:
    """``["a,b", "c"]`` as ``["a", "b", "c"]``; None stays None: not given."""
    if values is None:
        return None
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def render_added(data: Data, view: View) -> list[str]:
    """``T-1 ready``."""
    task = data["task"]
    awaited = [*task.get("waits_for", ()), *task.get("busy_resources", ())]
    waits = f"waits for {', '.join(awaited)}" if awaited else ""
    there = "was there already" if task.get("existing") else ""
    start_at_ms = task.get("not_before_at_ms", 0)
    starts = f"starts in {span(start_at_ms - view.now_ms)}" if start_at_ms > view.now_ms else ""
    return fields([f"{task['task_id']} {view.state(task['state'])}", there, waits, starts], view)


# --- ls and show -------------------------------------------------------------------------------------


def _ls_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", metavar="A,B", help=f"only these: {','.join(STATES)}")
    parser.add_argument("--holder", metavar="SWARM", help="only what this swarm holds")
    parser.add_argument("--grep", metavar="WORD", help="only where id or title contains this")
    parser.add_argument("--consistent", action="store_true", help="with what other hosts have just done, too")


def _ls(invocation: Invocation) -> Outcome:
    args = invocation.args
    states = [_GUESSES.get(state, state) for state in split_list([args.state]) or []] if args.state else None
    for state in states or []:
        if state not in STATES:
            raise Usage(
                f"no state `{state:.40}`; states: {' '.join(STATES)}",
                data={"command": "task ls", "example": "ifbus task ls --state ready,claimed"},
            )
    answer = invocation.ask(
        "coordinator.list_tasks",
        states=states,
        holder=args.holder,
        grep=args.grep,
        after=args.after,
        limit=args.limit,
        consistent=args.consistent or None,
    )
    tasks = answer["tasks"]
    page = {"returned": len(tasks), "total": answer["total"], "next": answer["next"]}
    return Outcome({"tasks": tasks, "counts": answer["counts"]}, page)


def render_tasks(data: Data, view: View) -> list[str]:
    """The board as a table."""
    tasks = data["tasks"]
    if not tasks:
        total = sum(data["counts"].values())
        return [f"no task matches ({total} in all)" if total else 'no task yet: ifbus task add "Count the words"']
    return table(
        ("TASK", "STATE", "HELD BY", "PROGRESS", "SPENT", "TITLE"),
        [
            (
                task["task_id"],
                view.state(task["state"]),
                task.get("holder") or "-",
                _progress(task, view),
                task.get("spent_usd", "0.00"),
                one_line(task["title"], 100),
            )
            for task in tasks
        ],
        right=(4,),
    )


def _progress(task: Data, view: View) -> str:
    if not task.get("progress_at_ms"):
        return "-"
    age = f" ({view.ago(task['progress_at_ms'])})" if task["state"] == "claimed" else ""
    return f"{task.get('percent', 0)} %{age}"


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="TASK", help="T-7; a handle T-7@41 is fine too")
    parser.add_argument("--consistent", action="store_true", help="with what another host has just done, too")


def _show(invocation: Invocation) -> Outcome:
    task_id = invocation.args.subject.partition("@")[0]
    return Outcome(
        invocation.ask("coordinator.get_task", task_id=task_id, consistent=invocation.args.consistent or None)
    )


def render_task(data: Data, view: View) -> list[str]:
    """One task with all that it has, nothing that it lacks."""
    task = data["task"]
    held = (
        f"{'held by' if task['state'] == 'claimed' else 'last held by'} {task['holder']}" if task.get("holder") else ""
    )
    if task.get("claimed_at_ms"):
        ended_at_ms = task.get("ended_at_ms") or view.now_ms
        held += f" for {span(max(0, ended_at_ms - task['claimed_at_ms']))}"
    lines = fields(
        [
            f"{task['task_id']} {view.state(task['state'])}: {one_line(task['title'])}",
            f"{held}, fence {task['token']}" if held and task.get("token") else held,
            _progress(task, view).removeprefix("-"),
            f"spent {task.get('spent_usd', '0.00')} of estimated {task.get('estimate_usd', '0.00')} USD",
        ],
        view,
    )
    if task.get("clocks"):
        lines += [f"  {line}" for line in _clocks(task["clocks"], view)]
    for name, words in (("note", "note"), ("blocked_on", "blocked on"), ("next_action", "next")):
        if task.get(name):
            lines.append(f"  {words}: {one_line(task[name])}")
    if task.get("description"):
        lines += ["", *(f"  {one_line(line, 1000)}" for line in task["description"].splitlines()), ""]
    for name, values in (
        ("needs", task.get("capabilities")),
        ("waits for", task.get("waits_for")),
        ("depends on", task.get("depends_on")),
        ("resources", task.get("resources")),
        ("held by others", task.get("busy_resources")),
    ):
        if values:
            lines.append(f"  {name}: {', '.join(values)}")
    lines += [
        f"  {'x' if percent <= task.get('percent', 0) else '-'} {percent} % {one_line(str(text))}"
        for percent, text in task.get("milestones", ())
    ]
    for name in ("payload", "result"):
        if task.get(name) not in (None, {}):
            lines.append(f"  {name}: {_json(task[name])}")
    if task.get("error"):
        lines.append(f"  failed: {one_line(task['error'])} ({plural(task.get('attempts', 0), 'attempt')})")
    return lines + _life(task, view)


def _life(task: Data, view: View) -> list[str]:
    """When it starts and expires, how often it is tried, and what earlier holders left."""
    from ifbus.cli.commands.task_life import render_errors

    starts = max(task.get("not_before_at_ms", 0), task.get("retry_at_ms", 0))
    ahead = task["state"] == "scheduled" and starts > view.now_ms
    facts = [
        f"starts in {span(starts - view.now_ms)}" if ahead else "",
        _deadline(task, view),
        f"{task.get('failures', 0)} of {task['max_attempts']} attempts failed" if task.get("max_attempts") else "",
        f"{task['state']}: {one_line(task['reason'], 200)}" if task.get("reason") else "",
        f"when a dependency fails: {task['on_dependency_failure']}" if task.get("on_dependency_failure") else "",
        f"unique key {one_line(task['unique_key'])}" if task.get("unique_key") else "",
    ]
    return [
        *(f"  {fact}" for fact in facts if fact),
        *(f"  {line}" for line in render_errors(task, view)),
        *(
            f"  artefact {left['name']}: {left['bytes']} bytes, sha256 {left['sha256']}"
            for left in task.get("artefacts", ())
        ),
    ]


def _deadline(task: Data, view: View) -> str:
    deadline_at_ms = task.get("deadline_at_ms")
    if not deadline_at_ms or task["state"] in _FINAL:
        return ""
    left_ms = deadline_at_ms - view.now_ms
    return f"expires in {span(left_ms)}" if left_ms > 0 else "its deadline has passed"


def _clocks(clocks: Data, view: View) -> list[str]:
    """The three clocks of the claim: alive, beating, progressing."""
    bound = describe_bound(clocks.get("bound")) or "bound to nothing: its lease alone frees it"
    spent, limit = clocks["spent_usd"], clocks["runaway_above_usd"]
    return fields(
        [
            f"alive: {view.state('yes') if clocks['alive'] else 'unknown'}, {bound}",
            f"beat: {span(clocks['beat_ms'])} ago, lease ends in {span(clocks['lease_left_ms'])} unless renewed",
            f"progress: {span(clocks['progress_ms'])} ago, {spent} USD since then (alarm above {limit})",
        ],
        view,
    )


def _json(value: Any) -> str:
    import json

    return one_line(json.dumps(value, ensure_ascii=False, default=bytes.hex), 1000)


# --- import ------------------------------------------------------------------------------------------


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="BOARD", help="Markdown, or .toml, .yaml by its name; '-' for stdin")
    parser.add_argument("--format", choices=("markdown", "toml", "yaml"), help="whatever the name says")
    parser.add_argument("--usd-per-hour", metavar="USD", help="turn the board's hours into estimates in dollars")


def _import(invocation: Invocation) -> Outcome:
    from ifbus import tasklist

    path = invocation.args.subject
    specs = tasklist.parse(
        read_text(path, _MAX_BOARD_CHARS, invocation.command), invocation.args.format or tasklist.kind_of(path)
    )
    if not specs:
        raise Usage(
            f"{path:.200} has no task: in Markdown one begins with `#### **T-1: Title**`; TOML has a [[task]], YAML a list",
            data={"command": "task import", "example": "ifbus task import board.md"},
        )
    rate = invocation.args.usd_per_hour
    params = [{**spec.to_params(), **_estimate(spec.estimate_minutes, rate)} for spec in specs]
    if invocation.args.dry_run:
        raise DryRun("coordinator.create_task", {"tasks": [task["task_id"] for task in params]})
    _check_awaited(invocation, specs)
    created, existing = [], []
    key = invocation.args.key
    for task in params:
        # One key a task: under a single one the second task would be "another body".
        invocation.args.key = f"{key}.{task['task_id']}" if key else None
        try:
            invocation.change("coordinator.create_task", task)
        except AlreadyExists:
            existing.append(task["task_id"])
        else:
            created.append(task["task_id"])
    return Outcome({"created": created, "existing": existing})


def _check_awaited(invocation: Invocation, specs: list[TaskSpec]) -> None:
    """See to it that a name that nobody knows is refused before the first task is created."""
    from ifbus.board import awaited_elsewhere, bad_line

    for name, spec in awaited_elsewhere(specs).items():
        try:
            invocation.ask("coordinator.get_task", task_id=name)
        except NotFound as error:
            raise bad_line(
                spec.line, f"task {spec.task_id} waits for {name:.80}, which is neither on the board nor in the daemon"
            ) from error


def _estimate(minutes: int | None, usd_per_hour: str | None) -> Data:
    if minutes is None or usd_per_hour is None:
        return {}
    from ifbus.money import to_micro_usd, to_usd

    try:
        return {"estimate_usd": to_usd(to_micro_usd(usd_per_hour) * minutes // 60)}
    except ValueError as error:
        raise InvalidParams(f"--usd-per-hour: {error}", data={"param": "usd_per_hour"}) from error


def render_import(data: Data, _view: View) -> list[str]:
    """How many are new, how many were there."""
    there = f", {len(data['existing'])} there already" if data["existing"] else ""
    return [f"{plural(len(data['created']), 'task')} created{there}    next: ifbus task ls"]


COMMANDS = {
    "add": Command(
        words="task add",
        summary="Create a task; waiting swarms that qualify hear of it at once",
        examples=(
            'ifbus task add "Count the words" --need docs:writing --estimate-usd 0.05',
            'ifbus task add "Publish" --depends-on T-1,T-2',
            'ifbus task add "Tidy up" --filler --payload \'{"dir": "docs"}\'',
        ),
        arguments=_add_arguments,
        run=_add,
        render=render_added,
        kind="change",
        items="task",
        id_field="task_id",
    ),
    "ls": Command(
        words="task ls",
        summary="List tasks in order of creation",
        examples=("ifbus task ls --state ready,claimed", "ifbus task ls --holder docs-2", "ifbus task ls --grep words --json --fields id,state"),
        arguments=_ls_arguments,
        run=_ls,
        render=render_tasks,
        kind="list",
        items="tasks",
        id_field="task_id",
        columns=TASK_FIELDS,
    ),
    "show": Command(
        words="task show",
        summary="Show one task with all that it has",
        examples=("ifbus task show T-7", "ifbus task show T-7 --json", "ifbus task show T-7 --json --fields id,state,percent"),
        arguments=_show_arguments,
        run=_show,
        render=render_task,
        items="task",
        id_field="task_id",
        columns=TASK_FIELDS,
    ),
    "import": Command(
        words="task import",
        summary="Create the tasks of a board (Markdown, TOML, YAML); those that exist stay as they are",
        examples=("ifbus task import board.md", "ifbus task import board.md --usd-per-hour 0.50", "ifbus task import tasks.toml --dry-run"),
        arguments=_import_arguments,
        run=_import,
        render=render_import,
        kind="change",
    ),
}  # fmt: skip
