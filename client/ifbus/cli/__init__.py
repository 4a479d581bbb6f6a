"""The `ifbus` command.

    grammar.py  which commands there are, and what somebody meant who typed another
    command.py  what a command is: arguments, question, answer    commands/   one module a noun, imported when typed
    call.py     one blocking connection                           output.py   answer, envelope, refusals
    exits.py    the exit-code table                               text.py     spans, tables, colour

Nothing here imports click, rich, asyncio, anyio, trio or attrs: a one-shot command takes at most 60 ms (UX 2).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ifbus.cli import grammar
from ifbus.errors import IfbusError, Internal, NotFound

if TYPE_CHECKING:
    from ifbus.cli.command import Command, Data, Invocation, Outcome

# Options that may stand before the noun; the ones with a value take it along.
_EARLY_FLAGS = ("--json", "-q", "--quiet")
_EARLY_VALUES = ("--color", "--socket", "--swarm")


def main(argv: Sequence[str] | None = None) -> int:
    """Carry one command out; the result is the process's exit code (`ifbus.cli.exits`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    _make_writable()
    try:
        return _dispatch(words)
    except _NotWritten as error:
        from ifbus.cli.exits import THE_MOMENT

        _talk([f"unavailable: cannot write the answer: {error}; what was asked for is done, or was refused"])
        return THE_MOMENT
    except KeyboardInterrupt:
        from ifbus.cli.exits import INTERRUPTED

        return INTERRUPTED


def _make_writable() -> None:
    """See to it that whatever we say can be said: nobody may listen, and a terminal may lack a character."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us (`>&-`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # which in JSON is an escape, too


def load(words: tuple[str, ...]) -> Command:
    """The command's definition; imports its noun's module and nothing else."""
    from importlib import import_module

    commands: dict[str, Command] = import_module(f"ifbus.cli.commands.{grammar.module_of(words)}").COMMANDS
    return commands[words[-1] if len(words) > 1 else ""]


def _dispatch(argv: list[str]) -> int:
    wants_json = "--json" in argv[: argv.index("--") if "--" in argv else len(argv)]
    try:
        words, rest = grammar.resolve(_late(argv))
    except IfbusError as error:
        return _report_error(error, wants_json)
    if words == ("demo",):
        # The one command that shows a programme instead of an answer; it reads its own arguments.
        from ifbus.demo import main as demo

        try:
            return demo(rest)
        except IfbusError as error:
            return _report_error(error, wants_json)
        except SystemExit:
            return 0  # --help has printed itself
    command = load(words)
    return _carry_out(command, rest, wants_json)


def _carry_out(command: Command, rest: list[str], wants_json: bool) -> int:
    from ifbus.cli.command import DryRun, Invocation, Outcome, make_parser, make_view

    try:
        if command.words == "run":
            # What follows "--" is another program's command line, none of ours.
            rest, program = _split_at_dashes(rest)
            args = make_parser(command).parse(rest)
            args.program = program
        else:
            args = make_parser(command).parse(rest)
    except IfbusError as error:
        return _report_error(error, wants_json)
    except SystemExit:
        return 0  # --help has printed itself
    invocation = Invocation(command, args, make_view(args.color), rest)
    view = invocation.view._replace(swarm=invocation.swarm, swarm_flag=invocation.swarm_flag)
    invocation = Invocation(command, args, view, rest)
    try:
        outcome = command.run(invocation)
        _report(invocation, outcome)
        return outcome.exit
    except DryRun as dry:
        _report(invocation, Outcome(dry.data))
        return 0
    except IfbusError as error:
        return _report_error(error, wants_json, invocation)
    except _NotWritten:
        raise
    except Exception as error:
        # The boundary: whatever is wrong with us, the caller gets the usual answer and we get to know where it was.
        return _report_error(_bug(error, wants_json), wants_json, invocation)
    finally:
        invocation.close()


def _bug(error: Exception, wants_json: bool) -> IfbusError:
    import traceback

    trace = "".join(traceback.format_exception(error))
    bug_id = f"c-{os.urandom(4).hex()}"
    if not wants_json:
        _talk([trace.rstrip()])
    return Internal(
        f"a bug of this command: {type(error).__name__}: {error}",
        data={"id": bug_id, **({"traceback": trace} if wants_json else {})},
    )


def _report(invocation: Invocation, outcome: Outcome) -> None:
    from ifbus.cli import output

    args, command = invocation.args, invocation.command
    is_dry = bool(outcome.data.get("dry_run"))
    wanted = getattr(args, "fields", None)
    if wanted and not is_dry:
        outcome = outcome._replace(data=output.select_fields(command, outcome.data, wanted))
    if args.json:
        _print([output.to_json(output.envelope_of(outcome, invocation.attention))])
        return
    attention = output.render_attention(output.noteworthy(invocation.attention, subject_of(invocation)))
    if is_dry:
        lines = [f"would send {outcome.data['method']} {output.to_json(outcome.data['params'])}; nothing was sent"]
    elif wanted or getattr(args, "quiet", False):
        # Made for a program, which would take a line with "!" for an id.
        _print(output.render_fields(command, outcome.data) if wanted else output.render_ids(command, outcome.data))
        _talk(attention + (output.render_page(outcome.page, command.items) if outcome.page else []))
        return
    else:
        lines = command.render(outcome.data, invocation.view)
    if outcome.page is not None:
        lines = [*lines, *output.render_page(outcome.page, command.items)]
    _print([*lines, *attention])


def _report_error(error: IfbusError, wants_json: bool, invocation: Invocation | None = None) -> int:
    from ifbus.cli import output
    from ifbus.cli.exits import exit_code

    attention: list[Data] = [] if invocation is None else invocation.attention
    if invocation is not None:
        error.data.setdefault("command", invocation.command.words)
        error.data.setdefault("typed", invocation.typed)
        output.repeat_swarm(error, invocation.view.swarm_flag)
        if isinstance(error, NotFound) and invocation.swarm:
            error.data.setdefault("swarm_id", invocation.swarm)
    document = output.envelope_of_error(error, attention)
    waited = invocation is not None and (
        invocation.command.words == "task next" or bool(getattr(invocation.args, "wait", 0))
    )
    if wants_json:
        _print([output.to_json(document)])
    else:
        from ifbus.cli.command import make_view

        view = invocation.view if invocation is not None else make_view("auto")
        subject = subject_of(invocation) if invocation is not None else ""
        heard = output.noteworthy(attention, subject)
        _talk([*output.render_error(error, view, subject=subject), *output.render_attention(heard)])
    return exit_code(document["error"]["code"], waited=waited)


def subject_of(invocation: Invocation) -> str:
    """What the command is about, as it was typed: a task, a handle, names; ``""`` if nothing in particular."""
    subject = getattr(invocation.args, "subject", None) or ""
    words = subject if isinstance(subject, list) else [str(subject)]
    return " ".join([*words, *getattr(invocation.args, "more", ())])


def _late(argv: list[str]) -> list[str]:
    """The same words with options that stand before the noun moved behind it; ``--version`` and ``--help`` become commands."""
    early: list[str] = []
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag in ("-h", "--help"):
            return ["help", *early]
        if flag in ("-V", "--version"):
            return ["help", "--version", *early]
        if flag in _EARLY_VALUES and rest:
            early += [flag, rest.pop(0)]
        elif flag in _EARLY_FLAGS or flag.split("=")[0] in _EARLY_VALUES:
            early.append(flag)
        else:
            return [flag, *rest]
    if early and "--" in rest:
        at = rest.index("--")
        return [*rest[:at], *early, *rest[at:]]
    return [*rest, *early]


def _split_at_dashes(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


class _NotWritten(Exception):
    """Stdout takes no more, such as a full disk."""


def _print(lines: list[str]) -> None:
    try:
        if lines:
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()
    except OSError as error:
        # What is left unwritten, Python would complain about when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):  # who reads us has seen enough (`| head`)
            raise _NotWritten(error.strerror) from error


def _talk(lines: list[str]) -> None:
    try:
        if lines:
            sys.stderr.write("\n".join(lines) + "\n")
            sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody is left to be told
