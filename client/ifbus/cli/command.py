"""What a command is: words, arguments, a question to the daemon, and how its answer reads.

`Invocation` is all that a command's code gets: parsed arguments, who it acts for, and a connection made at the first call.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, cast

from ifbus.cli import grammar
from ifbus.cli.text import View
from ifbus.errors import HandleRequired, InvalidParams, Usage

if TYPE_CHECKING:
    from ifbus.cli.call import Link

Data = dict[str, Any]

_HELP_COLUMNS = 100

# A remedy repeats what was typed up to this length: a refusal has a ceiling.
_LONGEST_LINE = 120

# Of JSON that is read from a file: many times what a message takes, and no burden to read.
MAX_JSON_CHARS = 1 << 20

_NEGATIVE = re.compile(r"-\.?\d")

# Longest suffix first: "250ms" ends in "s" too.
_SPAN_UNITS = (("ms", 1), ("min", 60_000), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000))


class Outcome(NamedTuple):
    """What a command found.

    Attributes:
        data: The ``data`` of the envelope; always a map, of the same shape for none, one and many.
        page: ``{"returned", "total", "next"}`` of a list.
        exit: Exit code, 0 unless a check found something.
    """

    data: Data
    page: Data | None = None
    exit: int = 0


class Command(NamedTuple):
    """One command as data.

    Attributes:
        words: How it is typed, without ``ifbus``.
        summary: One line for the help, without a full stop.
        examples: What `--help` opens with.
        run: Asks the daemon.
        arguments: Adds its own arguments to a parser.
        render: The answer's data as lines for people; pure.
        kind: ``change`` takes ``--key`` and ``--dry-run``, ``list`` takes ``--limit`` and ``--after``.
        waits: Takes ``--wait``.
        acts: Takes ``--swarm``, whom it acts for.
        items: Key of ``data`` whose map or list of maps ``--fields`` and ``-q`` are about.
        id_field: Field of those that names one.
        columns: Fields that those have, for ``--fields``.
    """

    words: str
    summary: str
    examples: tuple[str, ...]
    run: Callable[[Invocation], Outcome]
    arguments: Callable[[argparse.ArgumentParser], object] = lambda _: None
    render: Callable[[Data, View], list[str]] = lambda _data, _view: []
    kind: Literal["read", "change", "list"] = "read"
    waits: bool = False
    acts: bool = False
    items: str = ""
    id_field: str = ""
    columns: tuple[str, ...] = ()


class DryRun(Exception):
    """A change that `--dry-run` kept from being sent."""

    def __init__(self, method: str, params: Data) -> None:
        super().__init__(method)
        self.data: Data = {"dry_run": True, "method": method, "params": params}


class _HelpFormatter(argparse.HelpFormatter):
    # argparse makes one for each argument that is added; without a width each asks for the terminal's, for which it
    # imports shutil: 3 ms of a command that shows no help.
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_HELP_COLUMNS)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `Usage` with the nearest option and an example instead of ending the process."""

    examples: tuple[str, ...] = ()
    takes_program = False

    def _get_formatter(self) -> argparse.HelpFormatter:
        return _HelpFormatter(self.prog)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the call."""
        words = self.prog.removeprefix("ifbus ")
        found = self.examples[0] if self.examples else grammar.example(tuple(words.split()))
        raise Usage(f"`{words}`: {message:.300}", data={"command": words, "example": found})

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments of `argv`.

        Raises:
            Usage: They do not fit; SystemExit after `--help`.
        """
        # What begins like a negative number is a value, never an option, so that "-5s" is called no span.
        self._negative_number_matcher = _NEGATIVE
        args, unknown = self.parse_known_args(argv)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            flag = unknown[0].split("=")[0]
            close = grammar.nearest_option(flag, options) if flag.startswith("--") else None
            self.error(f"no `{unknown[0]:.64}` here" + (f"; nearest: `{close}`" if close else ""))
        return args

    def format_help(self) -> str:
        """Three examples first: most readers need nothing else."""
        lines = "".join(f"  {line}\n" for line in self.examples)
        if self.takes_program:  # which argparse never gets to see
            self.usage = f"{super().format_usage().removeprefix('usage: ').rstrip()} -- COMMAND"
        return f"{lines}\n{super().format_help()}" if lines else super().format_help()


def make_parser(command: Command) -> Parser:
    """The parser of one command, with the options that all of its kind have."""
    parser = Parser(prog=f"ifbus {command.words}", description=command.summary, allow_abbrev=False)
    parser.examples = command.examples
    parser.takes_program = command.words == "run"
    command.arguments(parser)
    for action in parser._get_positional_actions():
        if action.metavar is None and action.choices is None:
            action.metavar = action.dest.upper()
    add_common(parser, command)
    return parser


def add_common(parser: argparse.ArgumentParser, command: Command) -> None:
    """The options that commands of this kind share."""
    if command.acts:
        parser.add_argument("--swarm", metavar="NAME", help="act for this swarm (else IFBUS_SWARM)")
    if command.waits:
        parser.add_argument(
            "--wait", metavar="SPAN", type=span_type, default=0, help="wait this long, such as 30s or 10m"
        )
    if command.kind == "change":
        parser.add_argument("--key", help="idempotency key: with the same one, twice has the effect of once")
        parser.add_argument("--dry-run", action="store_true", help="show what would be sent, send nothing")
    if command.kind == "list":
        parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most N, 1 to 200 (50)")
        parser.add_argument("--after", metavar="ID", help="go on after this one")
    if command.columns:
        parser.add_argument("--fields", metavar="A,B", help="only these fields")
    if command.items:
        parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
    parser.add_argument("--json", action="store_true", help="one JSON document in one line")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    parser.add_argument("--socket", metavar="PATH", help="the daemon's socket (else IFBUS_SOCKET)")


class Invocation:
    """One command being carried out. The mutable state is the connection; it is made at the first call."""

    def __init__(self, command: Command, args: argparse.Namespace, view: View, argv: Sequence[str] = ()) -> None:
        self.command = command
        self.args = args
        self.view = view
        self._argv = argv
        self._link: Link | None = None

    @property
    def swarm(self) -> str | None:
        """The swarm that this caller acts for, if it said so: a flag wins over the environment."""
        return getattr(self.args, "swarm", None) or os.environ.get("IFBUS_SWARM") or None

    @property
    def swarm_flag(self) -> str:
        """`` --swarm NAME`` if the command itself said so, to be repeated in what is typed next; else ``""``."""
        given = getattr(self.args, "swarm", None)
        if not given:
            return ""
        import shlex

        return f" --swarm {shlex.quote(given)}"

    @property
    def typed(self) -> str:
        """The command as it was typed, without ``ifbus`` and a key, to be typed again; a long one is cut, and says so."""
        import shlex

        words: list[str] = []
        for word in self._argv:
            if words[-1:] == ["--key"]:
                words.pop()
            elif not word.startswith("--key="):
                words.append(word)
        line = f"{self.command.words} {shlex.join(words)}".strip()
        return line if len(line) <= _LONGEST_LINE and line.isprintable() else f"{self.command.words} ..."

    @property
    def link(self) -> Link:
        """The connection to the daemon.

        Raises:
            NoDaemon: There is none; the class says which of the four causes it is.
        """
        if self._link is None:
            from ifbus.cli.call import Link

            self._link = Link.open(getattr(self.args, "socket", None), swarm=self.swarm)
        return self._link

    @property
    def attention(self) -> list[Data]:
        """What the daemon wanted to be noticed so far."""
        return self._link.attention if self._link is not None else []

    def require_swarm(self) -> str:
        """The swarm to act for.

        Raises:
            Usage: The caller did not say; nothing is guessed.
        """
        if self.swarm is None:
            example = self.command.examples[0]
            if "--swarm" not in example:
                example += " --swarm NAME"
            raise Usage(
                f"`{self.command.words}` acts for a swarm: say which",
                data={"command": self.command.words, "example": example},
            )
        return self.swarm

    def ask(self, method: str, **params: Any) -> Data:
        """The daemon's answer to a question; None values are left out.

        Raises:
            IfbusError: The daemon's error, or there is no daemon.
        """
        return cast("Data", self.link.call(method, _given(params)))

    def ask_page(self, method: str, **params: Any) -> Outcome:
        """The page of a list that ``--after`` and ``--limit`` name, under the command's `items`. Raises as `ask`."""
        answer = self.ask(method, **params, after=self.args.after, limit=self.args.limit)
        found = answer[self.command.items]
        page = {"returned": len(found), "total": answer.get("total"), "next": answer["next"]}
        return Outcome({self.command.items: found}, page)

    def change(self, method: str, params: Data, *, wait_ms: int = 0, secret: Data | None = None) -> Data:
        """The daemon's answer to a change, sent under ``--key`` or a key of its own so that it may be tried again.

        Args:
            params: None values are left out.
            wait_ms: How long the daemon may wait before it answers.
            secret: More parameters, which ``--dry-run`` does not show.

        Raises:
            DryRun: ``--dry-run`` was given.
            IfbusError: The daemon's error, or there is no daemon.
        """
        given = _given(params)
        if self.args.dry_run:
            raise DryRun(method, given)
        key = self.args.key or f"cli-{os.urandom(12).hex()}"
        return cast("Data", self.link.call(method, {**given, **_given(secret or {})}, wait_ms=wait_ms, key=key))

    def close(self) -> None:
        """End the connection."""
        if self._link is not None:
            self._link.close()


def make_view(color: str, *, swarm: str | None = None) -> View:
    """How to show things here: width and colour of the terminal, if stdout is one."""
    is_terminal = os.isatty(1)
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return View(
        now_ms=int(time.time() * 1000),
        width=os.get_terminal_size(1).columns or 80 if is_terminal else None,
        color=color == "always" or (color == "auto" and is_terminal and not plain),
        swarm=swarm,
    )


def parse_handle(text: str, command: Command, option: str = "") -> tuple[str, int]:
    """Task and fencing token of a claim handle ``T-7@41``.

    Args:
        option: Behind which it was given, if it is not what the command is about.

    Raises:
        HandleRequired: It is a task id alone.
        Usage: It is neither.
    """
    task_id, at, token = text.rpartition("@")
    if not at:
        raise HandleRequired(
            f"`{command.words}` needs the claim handle (as T-7@41, from the answer of the claim), got {text:.80}",
            data={"task_id": text, "command": f"{command.words} {option}".rstrip()},
        )
    if not (task_id and token.isascii() and token.isdigit() and 0 < len(token) < 20):
        raise Usage(
            f"a claim handle reads TASK@FENCE, such as T-7@41, got {text:.80}",
            data={"command": command.words, "example": command.examples[0]},
        )
    return task_id, int(token)


def parse_span(text: str) -> int:
    """Milliseconds for ``30s``, ``10m``, ``2h``, ``1d``, ``250ms`` or a bare number of seconds.

    Raises:
        ValueError: It is none of these.
    """
    number, factor = text, 1000
    for suffix, unit_ms in _SPAN_UNITS:
        if text.endswith(suffix):
            number, factor = text.removesuffix(suffix).strip(), unit_ms
            break
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise ValueError(f"a span reads 30s, 10m, 2h or 1d, got {text!r:.40}")
    return int(number) * factor


def read_text(path: str, max_chars: int, command: Command) -> str:
    """What stands in a file, or comes from stdin if `path` is ``-``.

    Raises:
        Usage: It cannot be read, is no UTF-8, or has more than `max_chars`.
    """
    import sys

    usage = {"command": command.words, "example": command.examples[0]}
    try:
        if path == "-":
            text = sys.stdin.read(max_chars + 1) if sys.stdin is not None else ""
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read(max_chars + 1)
    except (OSError, ValueError) as error:  # no UTF-8; a path with a NUL
        raise Usage(f"cannot read {path:.200}: {getattr(error, 'strerror', None) or error}", data=usage) from error
    if len(text) > max_chars:
        raise Usage(f"cannot read {path:.200}: it has more than {max_chars} characters", data=usage)
    return text


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON argument.

    Raises:
        InvalidParams: It is no JSON, or holds NaN or a number that becomes Infinity, which JSON could not give back.
    """
    import json

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    def finite(digits: str) -> float:
        number = float(digits)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"{digits:.40} is too large")
        return number

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except RecursionError as error:
        raise InvalidParams(f"{what} is nested too deep", data={"param": what}) from error
    except ValueError as error:
        raise InvalidParams(
            f"{what} is JSON, such as '{{\"words\": 3}}': {error}", data={"param": what, "got": text[:80]}
        ) from error


def span_type(text: str) -> int:
    """`parse_span` as an argument's type."""
    try:
        return parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _given(params: Data) -> Data:
    return {name: value for name, value in params.items() if value is not None}
