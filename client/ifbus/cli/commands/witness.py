"""`ifbus witness`: what happened, and whether anybody has touched the record since."""

from __future__ import annotations

import argparse
from pathlib import Path

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.exits import DONE, FOUND_SOMETHING
from ifbus.cli.text import View, cell, fields, one_line, plural, table
from ifbus.errors import NotFound, Usage

# The daemon's store within its state directory; keep in step with ifbusd.daemon.DATABASE.
_DATABASE = "ifbusd.db"

ENTRY_FIELDS = ("seq", "revision", "at_ms", "op", "uid", "pid", "target", "outcome", "detail", "trace", "hash")


def _query_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", metavar="METHOD", help="only this method, or all of a component (coordinator)")
    parser.add_argument("--target", metavar="ID", help="only entries about this task or swarm")
    parser.add_argument("--outcome", metavar="CODE", help="ok, or an error code")


def _query(invocation: Invocation) -> Outcome:
    args = invocation.args
    after = args.after
    if after is not None and not (after.isascii() and after.isdigit()):
        raise Usage(
            f"an entry's number is a whole number, got {after:.40}", data={"example": "ifbus witness query --after 812"}
        )
    answer = invocation.ask(
        "witness.query",
        after_seq=None if after is None else int(after),
        limit=args.limit,
        op=args.op,
        target=args.target,
        outcome=args.outcome,
        # Without a place to go on from, the end of the record is what people want to see.
        newest_first=True if after is None else None,
    )
    entries = answer["entries"] if after is not None else answer["entries"][::-1]
    following = answer["next"] if after is not None else None
    return Outcome(
        {"entries": entries, "head": answer["head"]},
        {"returned": len(entries), "total": None, "next": following},
    )


def render_entries(data: Data, view: View) -> list[str]:
    """Entries in their order, the newest last."""
    head = f"{data['head']['seq']} entries in all, head {data['head']['hash'][:16]}"
    if not data["entries"]:
        return [f"no entry matches    {head}"]
    rows = [
        (
            str(entry["seq"]),
            view.ago(entry["at_ms"]),
            entry["op"],
            entry.get("target") or "-",
            view.state("ok") if entry["outcome"] == "ok" else entry["outcome"],
            str(entry.get("uid", "-")),
            one_line(cell(entry.get("detail")), 80),
        )
        for entry in data["entries"]
    ]
    return [*table(("SEQ", "AGE", "OPERATION", "TARGET", "OUTCOME", "UID", "DETAIL"), rows, right=(0,)), head]


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--receipt", metavar="SEQ:HASH", help="a receipt that you kept: finds truncation and old copies too"
    )
    parser.add_argument("--state", metavar="DIR", help="check the files of a stopped daemon")


def _verify(invocation: Invocation) -> Outcome:
    args = invocation.args
    answer = (
        _verify_offline(args.state, args.receipt)
        if args.state
        else invocation.ask("witness.verify", receipt=args.receipt)
    )
    return Outcome(answer, exit=DONE if answer["ok"] else FOUND_SOMETHING)


def _verify_offline(state: str, receipt: str | None) -> Data:
    from importlib import import_module

    path = Path(state)
    if path.is_dir():
        path /= _DATABASE
    try:
        # By name: the client never depends on the daemon, but where both are installed this needs no second tool.
        verify_file = import_module("ifbusd.witness.offline").verify_file
    except ImportError as error:
        raise Usage(
            f"cannot read the files of a daemon: its package is not installed ({error})",
            would_change=[{"by": "self", "what": "install it", "call": "pip install 'ifbus[daemon]'"}],
        ) from error
    try:
        answer: Data = verify_file(path, receipt=receipt or "")
    except NotFound as error:
        error.data["example"] = "ifbus witness verify --state /var/lib/ifbusd"
        raise
    return answer


def render_verdict(data: Data, view: View) -> list[str]:
    """``witness verify: ok``, or where the record was touched; then what this check cannot know."""
    head = data["head"]
    verdict = view.state("ok") if data["ok"] else view.state("no").replace("no", "FAILED")
    lines = fields(
        [
            f"witness verify: {verdict}",
            plural(data["entries"], "entry").replace("entrys", "entries"),
            f"head {head['seq']}:{head['hash'][:16]}",
        ],
        view,
    )
    for problem in data["problems"]:
        where = f"entry {problem['seq']}" if problem.get("seq") is not None else "file"
        lines.append(f"  {where}: {one_line(problem['what'])}")
    if data.get("more_problems"):
        lines.append(f"  and {plural(data['more_problems'], 'more problem')}")
    return lines + [f"  cannot know: {one_line(sentence)}" for sentence in data["cannot_know"]]


COMMANDS = {
    "query": Command(
        words="witness query",
        summary="Show what happened: the newest entries, or from --after on",
        examples=("ifbus witness query --target T-7", "ifbus witness query --outcome stale_token", "ifbus witness query --after 812 --limit 200 --json"),
        arguments=_query_arguments,
        run=_query,
        render=render_entries,
        kind="list",
        items="entries",
        id_field="seq",
        columns=ENTRY_FIELDS,
    ),
    "verify": Command(
        words="witness verify",
        summary="Recompute the whole record; exit 8 if anybody touched it",
        examples=("ifbus witness verify", "ifbus witness verify --receipt 6:9f3ac1d0", "ifbus witness verify --state /var/lib/ifbusd"),
        arguments=_verify_arguments,
        run=_verify,
        render=render_verdict,
    ),
}  # fmt: skip
