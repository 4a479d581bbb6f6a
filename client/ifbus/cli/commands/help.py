"""`ifbus help`: all commands, one command, or one error code; offline."""

from __future__ import annotations

import argparse

from ifbus.catalogue import CATALOGUE, remedies
from ifbus.cli import grammar, load
from ifbus.cli.command import Command, Data, Invocation, Outcome, make_parser
from ifbus.cli.exits import MEANING, exit_code
from ifbus.cli.text import View
from ifbus.errors import NotFound


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="CODE|COMMAND", nargs="*")
    parser.add_argument("--version", action="store_true", help="the version of this command")


def _help(invocation: Invocation) -> Outcome:
    topic = invocation.args.topic
    if invocation.args.version:
        from importlib.metadata import version

        return Outcome({"topic": "version", "lines": [f"ifbus {version('ifbus')}"]})
    if not topic:
        from ifbus.cli.reference import overview

        return Outcome({"topic": "", "lines": overview()})
    if len(topic) == 1 and topic[0] in CATALOGUE:
        return Outcome({"topic": topic[0], "lines": _about_code(topic[0])})
    return Outcome({"topic": " ".join(topic), "lines": _about_command(topic)})


def _about_code(code: str) -> list[str]:
    entry = CATALOGUE[code]
    status = exit_code(code)
    return [
        f"{code}: {entry.sentence}",
        f"  {entry.meaning}",
        f"  exit {status}: {MEANING[status]}",
        *(f"  try: {remedy}" for remedy in remedies(code, {})),
    ]


def _about_command(topic: list[str]) -> list[str]:
    noun = topic[0]
    if len(topic) == 1 and grammar.NOUNS.get(noun):
        commands = [load((noun, verb)) for verb in grammar.NOUNS[noun]]
        width = max(len(command.words) for command in commands)
        return [f"ifbus {command.words:<{width}}  {command.summary}" for command in commands]
    if len(topic) == 1 and noun not in grammar.NOUNS:
        close = grammar.nearest(noun, [*grammar.NOUNS, *CATALOGUE])
        raise NotFound(
            f"no command and no error code `{noun:.64}`" + (f"; nearest: `ifbus help {close}`" if close else ""),
            data={"example": f"ifbus help {close or 'already_claimed'}"},
        )
    words, _ = grammar.resolve(topic)
    if words == ("demo",):
        return ["ifbus demo  Play the whole story on a daemon of its own"]
    return make_parser(load(words)).format_help().splitlines()


def render_help(data: Data, _view: View) -> list[str]:
    """The text as it is."""
    return list(data["lines"])


COMMANDS = {
    "": Command(
        words="help",
        summary="Explain a command or an error code, offline",
        examples=("ifbus help", "ifbus help already_claimed", "ifbus help task claim"),
        arguments=_arguments,
        run=_help,
        render=render_help,
    ),
}
