"""What a holder does with its claim: `ifbus task progress`, `complete`, `fail`, `release`, `blocked`. All take the handle.

And `unblock`, by which whoever can help ends what `blocked` began.
"""

from __future__ import annotations

import argparse
from typing import Any

from ifbus.cli.command import MAX_JSON_CHARS, Command, Data, Invocation, Outcome, parse_handle, parse_json, read_text
from ifbus.cli.exits import DONE, exit_code
from ifbus.cli.text import View, fields, one_line, span
from ifbus.errors import NotFound, Usage

BLOCKER_PREFIX = "B-"


def _handle_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="HANDLE", help="the claim, T-7@41")


def _act(invocation: Invocation, method: str, **params: Any) -> Data:
    task_id, token = parse_handle(invocation.args.subject, invocation.command)
    base = {"task_id": task_id, "swarm_id": invocation.require_swarm(), "token": token}
    return invocation.change(method, {**base, **params})


# --- progress ----------------------------------------------------------------------------------------


def _progress_arguments(parser: argparse.ArgumentParser) -> None:
    _handle_argument(parser)
    parser.add_argument("percent", type=int, help="0 to 100")
    parser.add_argument("note", nargs="?", help="what was done")
    parser.add_argument("--blocked-on", metavar="TEXT", help="what it waits for, for all to see; '' takes it back")
    parser.add_argument("--next", dest="next_action", metavar="TEXT", help="what comes next; '' takes it back")
    parser.add_argument(
        "--artefact",
        metavar="PATH",
        action="append",
        help="leave name, size and SHA-256 of this file to the next holder",
    )


def _progress(invocation: Invocation) -> Outcome:
    args = invocation.args
    artefacts = [_artefact(path) for path in args.artefact] if args.artefact else None
    return Outcome(
        _act(
            invocation,
            "coordinator.report_progress",
            percent=args.percent,
            note=args.note,
            artefacts=artefacts,
            blocked_on=args.blocked_on,
            next_action=args.next_action,
        )
    )


def _artefact(path: str) -> Data:
    import hashlib
    import os

    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"name": os.path.basename(path), "sha256": digest, "bytes": os.fstat(file.fileno()).st_size}
    except OSError as error:
        raise Usage(
            f"cannot read {path}: {error.strerror}",
            data={"command": "task progress", "example": "ifbus task progress T-7@41 50 --artefact report.md"},
        ) from error


def render_progress(data: Data, view: View) -> list[str]:
    """How far it is now, and until when the claim holds."""
    task = data["task"]
    note = f": {one_line(task['note'], 200)}" if task.get("note") else ""
    return fields(
        [f"{task['task_id']} at {task.get('percent', 0)} %{note}", f"lease renewed for {span(data['lease_ms'])}"], view
    )


# --- complete, fail, release -------------------------------------------------------------------------


def _complete_arguments(parser: argparse.ArgumentParser) -> None:
    _handle_argument(parser)
    parser.add_argument("more", metavar="HANDLE", nargs="*", help="up to 50 in one commit, each with the same result")
    parser.add_argument("--result", metavar="JSON", help="what came of it, at most 32 KiB; '-' reads stdin")


def _complete(invocation: Invocation) -> Outcome:
    text = invocation.args.result
    if text == "-":
        text = read_text("-", MAX_JSON_CHARS, invocation.command)
    result = parse_json(text, "result") if text is not None else None
    if not invocation.args.more:
        return Outcome(_act(invocation, "coordinator.complete_task", result=result))
    handles = [parse_handle(text, invocation.command) for text in (invocation.args.subject, *invocation.args.more)]
    tasks = [{"task_id": task_id, "token": token, "result": result} for task_id, token in handles]
    params = {"swarm_id": invocation.require_swarm(), "tasks": tasks}
    data = invocation.change("coordinator.complete_tasks", params)
    refused = [one["error"]["code"] for one in data["outcomes"] if not one["ok"]]
    return Outcome(data, exit=exit_code(refused[0]) if refused else DONE)


def _fail_arguments(parser: argparse.ArgumentParser) -> None:
    _handle_argument(parser)
    parser.add_argument("error", metavar="WHY")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--retry", action="store_true", default=None, help="offer the task again while it has attempts left"
    )
    again.add_argument(
        "--final", action="store_false", dest="retry", help="no other attempt would go better: end it now"
    )


def _fail(invocation: Invocation) -> Outcome:
    args = invocation.args
    return Outcome(_act(invocation, "coordinator.fail_task", error=args.error, retry=args.retry))


def _release_arguments(parser: argparse.ArgumentParser) -> None:
    _handle_argument(parser)
    parser.add_argument("note", nargs="?", help="what the next one should know")


def _release(invocation: Invocation) -> Outcome:
    return Outcome(_act(invocation, "coordinator.release_task", note=invocation.args.note))


def render_ended(verdict: str, data: Data, view: View, *, then: str = "") -> list[str]:
    """What became of the task, what it cost, what comes `then`, what it made ready, and the receipt."""
    task, receipt = data["task"], data.get("receipt") or {}
    started, ended = task.get("claimed_at_ms"), task.get("ended_at_ms") or view.now_ms
    took = f" in {span(max(0, ended - started))}" if started else ""
    again = " (already so)" if receipt.get("replayed") else ""
    facts = [
        f"{task['task_id']} {verdict}{took} for {data.get('spent_usd', '0.00')} USD, {data.get('released_usd', '0.00')} back in the budget{again}",
        then,
        f"now ready: {', '.join(data['unblocked'])}" if data.get("unblocked") else "",
        "etcd is full: money and note follow when there is room" if receipt.get("partial") else "",
    ]
    if receipt.get("head"):
        mark = f"{receipt['seq']}:{receipt['head'][:8]}"
        facts.append(f"receipt {mark} (ifbus witness verify --receipt {mark})")
    return fields(facts, view)


def _render_completed(data: Data, view: View) -> list[str]:
    if "outcomes" in data:
        return _render_batch(data, view)
    return render_ended("completed", data, view)


def _render_batch(data: Data, view: View) -> list[str]:
    lines = [
        f"{one['task_id']} completed for {one['spent_usd']} USD, {one['released_usd']} back in the budget"
        if one["ok"]
        else f"{one['task_id']}@{one['token']} refused: {one['error']['code']}    {one_line(one['error']['message'], 200)}"
        for one in data["outcomes"]
    ]
    return [*lines, f"  now ready: {', '.join(data['unblocked'])}"] if data.get("unblocked") else lines


def _render_failed(data: Data, view: View) -> list[str]:
    task = data["task"]
    if task["state"] in ("failed", "dead"):
        return render_ended("failed" if task["state"] == "failed" else "failed for the last time: dead", data, view)
    rest_ms = task.get("retry_at_ms", 0) - view.now_ms
    return render_ended("failed", data, view, then=f"offered again{f' in {span(rest_ms)}' if rest_ms > 0 else ''}")


def _render_released(data: Data, view: View) -> list[str]:
    return render_ended("released", data, view, then=f"{data['task']['state']} again")


# --- blocked -----------------------------------------------------------------------------------------


def _blocked_arguments(parser: argparse.ArgumentParser) -> None:
    _handle_argument(parser)
    parser.add_argument("reason", metavar="WHY")
    parser.add_argument("--need", metavar="CAP", action="append", help="who could help, area:skill; again or A,B")
    parser.add_argument("--severity", choices=("low", "medium", "high", "critical"))
    parser.add_argument("--release", action="store_true", default=None, help="give the claim back until it is resolved")


def _blocked(invocation: Invocation) -> Outcome:
    args = invocation.args
    task_id, token = parse_handle(args.subject, invocation.command)
    if not args.reason.strip():
        raise Usage("`task blocked`: say why", data={"example": invocation.command.examples[0]})
    info = {
        "reason": args.reason,
        "task_id": task_id,
        "token": token,
        "severity": args.severity,
        "needs": [part.strip() for value in args.need or () for part in value.split(",")] or None,
        "release": args.release,
    }
    given = {name: value for name, value in info.items() if value is not None}
    return Outcome(
        invocation.change("coordinator.detect_blocker", {"swarm_id": invocation.require_swarm(), "info": given})
    )


def render_blocked(data: Data, view: View) -> list[str]:
    """Who was told and who was asked to help."""
    blocker = data["blocker"]
    helpers = blocker.get("helpers") or []
    name = blocker["blocker_id"]
    return [
        *fields(
            [
                f"{blocker.get('task_id') or blocker['swarm_id']} blocked: {one_line(blocker['reason'], 200)}",
                f"blocker {name}, orchestrators told",
                f"asked to help: {', '.join(helpers)}" if helpers else "nobody else qualifies to help",
            ],
            view,
        ),
        f"  when it is resolved: ifbus task unblock {name} --note TEXT",
    ]


# --- unblock -----------------------------------------------------------------------------------------


def _unblock_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="TASK|BLOCKER", help="T-7, or the blocker's id B-...")
    parser.add_argument("--note", metavar="TEXT", help="what the next holder and the reporter should know")


def _unblock(invocation: Invocation) -> Outcome:
    args = invocation.args
    answer = invocation.change(
        "coordinator.resolve_blocker",
        {"blocker_id": _blocker_of(invocation, args.subject), "swarm_id": invocation.swarm, "note": args.note},
    )
    task_id = answer["blocker"].get("task_id")
    task = invocation.ask("coordinator.get_task", task_id=task_id)["task"] if task_id else None
    return Outcome({"blocker": answer["blocker"], "task": task, "receipt": answer["receipt"]})


def _blocker_of(invocation: Invocation, subject: str) -> str:
    """The blocker that is meant by its own id or by its task's.

    Raises:
        Usage: The task has several.
        NotFound: It has none, or there is no such task.
    """
    task_id = subject.partition("@")[0]
    blockers = invocation.ask("coordinator.list_blockers")["blockers"]
    found = [str(blocker["blocker_id"]) for blocker in blockers if blocker.get("task_id") == task_id]
    if len(found) > 1:
        raise Usage(
            f"{task_id} has {len(found)} open blockers, say which: {', '.join(found)}",
            data={"command": "task unblock", "example": f"ifbus task unblock {found[0]}"},
        )
    if found:
        return found[0]
    if any(blocker["blocker_id"] == subject for blocker in blockers) or subject.startswith(BLOCKER_PREFIX):
        return subject
    # The list ends somewhere; a task that waits for its blocker names it itself.
    task = invocation.ask("coordinator.get_task", task_id=task_id)["task"]
    if task.get("blocker_id"):
        return str(task["blocker_id"])
    raise NotFound(
        f"{task_id} is {task['state']}: nothing blocks it",
        data={"task_id": task_id, "state": task["state"]},
        would_change=[{"by": "self", "what": "see what is open", "call": "ifbus status"}],
    )


def render_unblocked(data: Data, view: View) -> list[str]:
    """What goes on again and who hears of it."""
    blocker, task = data["blocker"], data["task"]
    again = f"{task['task_id']} {view.state(task['state'])}" if task else f"{blocker['swarm_id']} unblocked"
    return fields([again, f"blocker {blocker['blocker_id']} resolved", f"{blocker['swarm_id']} told"], view)


COMMANDS = {
    "progress": Command(
        words="task progress",
        summary="Say how far the work is; renews the claim's lease",
        examples=('ifbus task progress T-7@41 50 "half"', "ifbus task progress T-7@41 75 --next 'run the tests'", "ifbus task progress T-7@41 100 --json"),
        arguments=_progress_arguments,
        run=_progress,
        render=render_progress,
        kind="change",
        acts=True,
    ),
    "complete": Command(
        words="task complete",
        summary="End the claim and the task with a result; dependants become ready",
        examples=(
            "ifbus task complete T-7@41 --result '{\"words\": 3}'",
            "ifbus task complete T-7@41 T-8@42",
            "count | ifbus task complete T-7@41 --result -",
        ),
        arguments=_complete_arguments,
        run=_complete,
        render=_render_completed,
        kind="change",
        acts=True,
    ),
    "fail": Command(
        words="task fail",
        summary="End the claim with a failure; counts against the swarm's breaker",
        examples=('ifbus task fail T-7@41 "no such file"', 'ifbus task fail T-7@41 "timed out" --retry', 'ifbus task fail T-7@41 "why" --json'),
        arguments=_fail_arguments,
        run=_fail,
        render=_render_failed,
        kind="change",
        acts=True,
    ),
    "release": Command(
        words="task release",
        summary="Give the claim back without a verdict; the task is ready for others at once",
        examples=("ifbus task release T-7@41", 'ifbus task release T-7@41 "half is in branch t-7"', "ifbus task release T-7@41 --json"),
        arguments=_release_arguments,
        run=_release,
        render=_render_released,
        kind="change",
        acts=True,
    ),
    "blocked": Command(
        words="task blocked",
        summary="Say that the work cannot go on: orchestrators hear it, the best helpers are asked",
        examples=(
            'ifbus task blocked T-7@41 "which port?"',
            'ifbus task blocked T-7@41 "needs a review" --need docs:writing --severity high',
            'ifbus task blocked T-7@41 "waits for the lab" --release',
        ),
        arguments=_blocked_arguments,
        run=_blocked,
        render=render_blocked,
        kind="change",
        acts=True,
    ),
    "unblock": Command(
        words="task unblock",
        summary="Resolve a blocker: for its reporter, its helpers, orchestrators and operators",
        examples=(
            'ifbus task unblock T-7 --note "port 8080"',
            'ifbus task unblock B-0198c2f41ab5e3d2a17 --note "see docs/ports.md"',
            "ifbus task unblock T-7 --json",
        ),
        arguments=_unblock_arguments,
        run=_unblock,
        render=render_unblocked,
        kind="change",
        acts=True,
    ),
}  # fmt: skip
