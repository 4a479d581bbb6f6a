"""`python under_filter.py UNIT COMMAND...`: become COMMAND under the unit's own SystemCallFilter, as systemd would do it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

from seccompy import Action, Filter, syscall_nr


def allowed_calls(unit: Path) -> set[str]:
    """The system calls that the unit's filter lines leave: first what is allowed, then without what follows a ``~``."""
    calls: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit.read_text(), re.MULTILINE):
        named = {call for name in line.removeprefix("~").split() for call in _members(name)}
        calls = calls - named if line.startswith("~") else calls | named
    return calls


def _members(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], check=True, capture_output=True, text=True
    ).stdout
    # The name itself, a comment, then one member a line.
    words = [line.strip() for line in listed.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {call for word in words for call in _members(word)}


def main(unit: str, *command: str) -> None:
    """Lock on and become the command."""
    rules = Filter(default=Action.ERRNO | errno.EPERM)
    for name in sorted(allowed_calls(Path(unit))):
        try:
            syscall_nr(name)
        except ValueError:
            continue  # of another architecture
        rules.allow(name)
    rules.load()
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
