"""`ifbus completion`: prints the script that teaches a shell to complete `ifbus`. Made at build time, read here."""

from __future__ import annotations

import argparse
from pathlib import Path

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View

SHELLS = {"bash": "ifbus.bash", "zsh": "_ifbus", "fish": "ifbus.fish"}
FOLDER = Path(__file__).parents[2] / "completion"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SHELLS))


def _completion(invocation: Invocation) -> Outcome:
    shell = invocation.args.shell
    return Outcome({"shell": shell, "script": (FOLDER / SHELLS[shell]).read_text(encoding="utf-8")})


def render_script(data: Data, _view: View) -> list[str]:
    """The script as it is."""
    return [data["script"].rstrip("\n")]


COMMANDS = {
    "": Command(
        words="completion",
        summary="Print the completion script of a shell",
        examples=("source <(ifbus completion bash)", "ifbus completion zsh > ~/.zfunc/_ifbus", "ifbus completion fish | source"),
        arguments=_arguments,
        run=_completion,
        render=render_script,
    ),
}  # fmt: skip
