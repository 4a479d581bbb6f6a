"""Makes the completion scripts: ``python -m ifbus.completion.generate`` (needs shtab, a build tool; a test holds them fresh).

Words and options are static; ids come from the running daemon through `ifbus __complete`, which is silent without one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from ifbus.cli.commands.completion import FOLDER, SHELLS
from ifbus.cli.reference import full_parser

# What an argument's metavar says about the words that fit there.
_IDS = {"TASK": "task", "SWARM": "swarm", "NAME": "swarm", "CODE|COMMAND": "code", "TASK|BLOCKER": "blocker"}
_FILES = ("BOARD", "SOURCE", "FILE", "PATH")


def generate(shell: str) -> str:
    """The script of one shell."""
    parser = full_parser()
    for action in _actions(parser):
        complete = _complete(action)
        if complete is not None:
            action.complete = complete  # type: ignore[attr-defined]
    # No trailing blanks: the scripts are committed.
    script = shtab.complete(parser, shell=shell)
    return "\n".join(line.rstrip() for line in script.splitlines()).rstrip() + "\n"


def _complete(action: argparse.Action) -> shtab.CompleteType | None:
    if action.metavar in _FILES:
        return shtab.FILE
    if action.metavar == "DIR":
        return shtab.DIRECTORY
    kind = "task" if action.dest == "depends_on" else _IDS.get(str(action.metavar))
    if kind is None:
        return None
    command = f"ifbus __complete {kind} 2>/dev/null"
    found = dict(shtab.cmd(command))
    # shtab would run the command when the script is loaded; a function runs it at each TAB.
    function = f"_ifbus_ids_{kind}"
    found["zsh"] = function
    found["preamble"] = {**_preamble(found), "zsh": f'{function}() {{ compadd -- ${{(f)"$({command})"}} }}'}
    return found


def _preamble(found: shtab.CompleteType) -> dict[str, str]:
    preamble = found.get("preamble", {})
    return dict(preamble) if isinstance(preamble, dict) else {}


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
        else:
            yield action


def write(folder: Path) -> None:
    """Write the scripts of all shells."""
    folder.mkdir(exist_ok=True)
    for shell, name in SHELLS.items():
        (folder / name).write_text(generate(shell), encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER)
