"""A shell for tests: types `ifbus` commands as real processes at a real daemon."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import referencing

import ifbus.schemas

BIN = Path(sys.executable).parent
IFBUS = BIN / "ifbus"
# What a busy machine may need at most; nothing waits this long when all is well.
PATIENCE_S = 180.0

# Everything is loaded before the user changes.
_AS_USER = """
import os, sys, grp, pwd, json, locale, difflib, shlex, traceback
import ifbus.cli.call, ifbus.cli.output, ifbus.cli.reference
list(ifbus.cli.reference.all_commands())
os.setgroups([int(group) for group in sys.argv[2].split(",") if group])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
sys.exit(ifbus.cli.main(sys.argv[3:]))
"""

_SCHEMAS = {
    path.name: json.loads(path.read_text(encoding="utf-8"))
    for path in Path(ifbus.schemas.__file__).parent.glob("*.json")
}
_REGISTRY: referencing.Registry[Any] = referencing.Registry().with_resources(
    (name, referencing.Resource.from_contents(schema)) for name, schema in _SCHEMAS.items()
)


def validate(value: Any, schema: str) -> None:
    """Raise if the value does not fit the committed schema of this name."""
    jsonschema.Draft202012Validator(_SCHEMAS[f"{schema}.json"], registry=_REGISTRY).validate(value)


class Ran(NamedTuple):
    """What one command left: its exit code and what it wrote."""

    exit: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one line of --json, checked against the envelope's schema; stderr must be empty then."""
        assert self.err == ""
        assert self.out.count("\n") == 1
        document: dict[str, Any] = json.loads(self.out)
        validate(document, "envelope")
        return document

    @property
    def data(self) -> dict[str, Any]:
        """The data of a success."""
        assert self.document["ok"], self.out
        data: dict[str, Any] = self.document["data"]
        return data

    @property
    def error(self) -> dict[str, Any]:
        """The error of a failure."""
        assert not self.document["ok"], self.out
        error: dict[str, Any] = self.document["error"]
        return error


class Shell:
    """Types commands at one daemon, perhaps as one swarm."""

    def __init__(self, socket_path: Path, *, swarm: str | None = None) -> None:
        self.socket_path = socket_path
        self.swarm = swarm

    def environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a command: nothing of ours but the socket and the swarm."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IFBUS_")}
        path = f"{BIN}{os.pathsep}{kept.get('PATH', '')}"
        swarm = {"IFBUS_SWARM": self.swarm} if self.swarm else {}
        return {**kept, "PATH": path, "IFBUS_SOCKET": str(self.socket_path), **swarm, **(extra or {})}

    def __call__(self, *words: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Ran:
        """Type ``ifbus WORDS``."""
        done = subprocess.run(
            [IFBUS, *words],
            input=stdin,
            env=self.environ(env),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def as_user(self, uid: int, groups: list[int], *words: str) -> Ran:
        """Type ``ifbus WORDS`` as another user; needs root. The user need not be able to read this installation."""
        program = [sys.executable, "-c", _AS_USER, str(uid), ",".join(map(str, groups)), *words]
        done = subprocess.run(
            program, env=self.environ(), cwd="/", capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def type(self, line: str) -> Ran:
        """Type a whole line as a message shows it: ``ifbus task next``."""
        words = shlex.split(line)
        assert words[0] == "ifbus"
        return self(*words[1:])

    def as_swarm(self, name: str) -> Shell:
        """The same daemon for another swarm."""
        return Shell(self.socket_path, swarm=name)

    def new_task(self, *words: str) -> str:
        """A new task's id."""
        return self("task", "add", "-q", *words).out.strip()

    def claim(self, task_id: str) -> str:
        """The handle of a claim that must succeed."""
        ran = self("task", "claim", task_id, "-q")
        assert ran.exit == 0, ran
        return ran.out.strip()
