"""What client processes did and heard, recorded so that a SIGKILL at any moment loses nothing of it.

Each client appends to a file of its own: a line before it asks, another when it was answered. An operation without
the second line is *unknown*: it may have been done at any time since, and so it stays open to the end of the history.
Counting it as failed would hide a lost write, counting it as done would invent one.
"""

from __future__ import annotations

import enum
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

import attrs

from ifbus.errors import ConnectionFailed, IfbusError, Momentary

# Several operations fit into it.
_TAIL_BYTES: Final = 64 << 10


class Outcome(enum.StrEnum):
    """The three ways in which an operation can end."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class Operation:
    """One operation as its client saw it. Times are CLOCK_MONOTONIC, which all processes of a host share."""

    client: str
    kind: str
    about: dict[str, Any]
    """What was asked."""
    start_ns: int
    end_ns: int | None = None
    """When the answer was there; None for an unknown one."""
    outcome: Outcome = Outcome.UNKNOWN
    answer: dict[str, Any] = attrs.field(factory=dict)
    """The answer, or the refusal as ``{"code", "message", "data"}``."""


class Recorder:
    """A client's side of its history. The mutable state is the file, and how many operations stand in it."""

    def __init__(self, path: Path, client: str) -> None:
        """`path` is this process's own; a client that comes back after a kill takes another one."""
        # Unbuffered: what was written belongs to the kernel and outlives us.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._client = client
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def ask(self, kind: str, call: Callable[[], dict[str, Any]], **about: Any) -> Operation:
        """Do one operation and record it; what came of it. Raises nothing that a daemon can answer."""
        self._number += 1
        start_ns = time.monotonic_ns()
        self._append([self._number, self._client, kind, about, start_ns])
        try:
            outcome, answer = Outcome.OK, call()
        except (Momentary, ConnectionFailed):
            outcome, answer = Outcome.UNKNOWN, {}
        except IfbusError as refusal:
            outcome, answer = Outcome.REFUSED, refusal.to_wire()
        end_ns = time.monotonic_ns()
        if outcome is not Outcome.UNKNOWN:
            self._append([self._number, end_ns, outcome, answer])
        return Operation(
            client=self._client,
            kind=kind,
            about=about,
            start_ns=start_ns,
            end_ns=None if outcome is Outcome.UNKNOWN else end_ns,
            outcome=outcome,
            answer=answer,
        )

    def _append(self, line: list[Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")


def read(path: Path) -> list[Operation]:
    """The operations that one process recorded, in its order; a line that a kill cut short was never written."""
    begun: dict[int, Operation] = {}
    for line in _whole_lines(path):
        match json.loads(line):
            case [number, client, kind, about, start_ns]:
                begun[number] = Operation(client=client, kind=kind, about=about, start_ns=start_ns)
            case [number, end_ns, outcome, answer]:
                begun[number] = attrs.evolve(begun[number], end_ns=end_ns, outcome=Outcome(outcome), answer=answer)
    return list(begun.values())


def read_all(directory: Path) -> list[Operation]:
    """The operations of all recorders in a directory, by the time at which they began."""
    operations = [operation for path in directory.glob("*.history") for operation in read(path)]
    return sorted(operations, key=lambda operation: operation.start_ns)


def last_receipt(path: Path) -> dict[str, Any] | None:
    """The receipt of the newest operation of a file that has one, looked for from its end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().split(b"\n")[1:-1]
    for line in reversed(lines):
        match json.loads(line):
            case [_, _, _, {"receipt": receipt}]:
                return dict(receipt)
    return None


def _whole_lines(path: Path) -> Iterator[str]:
    with path.open() as file:
        yield from (line for line in file if line.endswith("\n"))
