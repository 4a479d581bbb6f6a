"""Nonsense of every kind: one clear sentence, the right exit code, nothing changed, and never a trace of our code."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ifbus.sync import Client
from tests.integration.cli.shell import IFBUS, Shell

NOT_UTF8 = os.fsdecode(b"\xff\xfe")
TOO_LARGE = "9" * 25

WRONG = {
    "a number beyond 64 bits": ("lock", "ls", "--limit", TOO_LARGE),
    "a weight beyond 64 bits": ("group", "weight", "nightly", TOO_LARGE),
    "a priority beyond 64 bits": ("task", "add", "x", "--priority", TOO_LARGE),
    "an id of other bytes": ("task", "cancel", NOT_UTF8),
    "a title of other bytes": ("task", "add", NOT_UTF8),
    "a question of other bytes": ("inbox", "ask", "person", NOT_UTF8, "--swarm", "me"),
    "a word of other bytes": ("pause", NOT_UTF8),
    "no kind to pause": ("pause", "T-1"),
    "a choice without end": ("cost", "report", "--by", "x" * 100_000),
    "a negative wait": ("lock", "acquire", "gpu:0", "--swarm", "me", "--wait", "-5s"),
    "a negative grace": ("drain", "--grace", "-1s"),
    "a wait of months": ("lock", "acquire", "gpu:0", "--swarm", "me", "--wait", "99d"),
    "a lease of nothing": ("lock", "acquire", "gpu:0", "--swarm", "me", "--lease", "0"),
    "two ends for one lock": ("lock", "acquire", "gpu:0", "--swarm", "me", "--lease", "1m", "--task", "T-1@1"),
    "two fences for one name": ("lock", "release", "gpu:0@1", "gpu:0@2", "--swarm", "me"),
    "a drain that is over, with a grace": ("drain", "--off", "--grace", "5m"),
    "two swarms for one status": ("swarm", "status", "me", "--swarm", "you"),
    "a limit of nothing": ("task", "add", "x", "--concurrency-limit", "3"),
    "a lease of nothing for a claim": ("task", "next", "--swarm", "me", "--lease", "0"),
    "to be tried again, and never": ("task", "fail", "T-1@1", "why", "--retry", "--final", "--swarm", "me"),
    "no field": ("task", "ls", "--fields", ",,"),
    "a list that is none": ("task", "batch", "-"),
    "a board that is none": ("task", "import", "-"),
    "a letter for no capability": ("inbox", "send", "builds", "hi", "--can", ""),
    "a letter for no expression": ("inbox", "send", "builds", "hi", "--fits", ""),
    "an option that the demo lacks": ("demo", "--nonsense"),
    "a socket's path without end": ("task", "ls", "--socket", "x" * 100_000),
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_told_so(shell: Shell, words: tuple[str, ...]) -> None:
    """In one sentence, in text and as JSON."""
    said = shell(*words)
    assert said.exit == 2, said
    assert said.out == ""
    assert "Traceback" not in said.err
    assert len(said.err) < 1500
    error = shell(*words, "--json").error
    assert error["code"] in ("usage", "invalid_params")
    assert len(error["message"]) < 700


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 50_000, "nested too deep"),
        ('[{"title": "x", "payload": {"n": 1e999}}]', "too large"),
        ('[{"title": "\\ud800"}]', "no UTF-8"),
        (f'[{{"title": "x", "priority": {TOO_LARGE}}}]', "64 bits"),
        ("", "tasks is JSON"),
    ],
)
def test_a_batch_that_cannot_be_sent_is_refused(shell: Shell, text: str, says: str) -> None:
    """What JSON can say and a message cannot, is refused before it is sent."""
    said = shell("task", "batch", "-", stdin=text)
    assert said.exit == 2
    assert says in said.err
    assert "Traceback" not in said.err


def test_a_refusal_names_what_was_refused_once_and_shortly(shell: Shell) -> None:
    """Several names as they were typed; one without end is cut."""
    assert shell("swarm", "register", "holder", "--can", "a:b").exit == 0
    assert shell("swarm", "register", "other", "--can", "a:b").exit == 0
    assert shell("lock", "acquire", "gpu:7", "gpu:8", "--swarm", "holder").exit == 0
    said = shell("lock", "acquire", "gpu:7", "gpu:8", "--swarm", "other")
    assert said.exit == 3
    assert said.err.startswith("refused gpu:7 gpu:8: resource_busy")
    assert len(shell("task", "cancel", "x" * 100_000).err) < 1000


def test_a_negative_span_is_called_no_span(shell: Shell) -> None:
    """Not taken for an option that lacks its value."""
    said = shell("cost", "report", "--since", "-1d")
    assert "a time reads today, 2h (ago) or 2026-03-01, got -1d" in said.err
    assert "a span reads 30s" in shell("drain", "--grace", "-1s").err


def test_waiting_around_nothing_is_said_so(shell: Shell) -> None:
    """Whoever misspelt a node is told how one reads."""
    said = shell("waits", "T-99")
    assert said.exit == 0
    assert said.out.startswith("nobody waits around T-99: a node reads T-7")
    assert shell("waits").out == "nobody waits for anybody\n"


def test_a_handle_is_asked_for_where_it_belongs(shell: Shell) -> None:
    """The remedy is the command that was typed, with the option that lacked it."""
    said = shell("lock", "acquire", "gpu:0", "--task", "T-1", "--swarm", "me")
    assert said.exit == 2
    assert "try: ifbus lock acquire --task T-1@FENCE" in said.err


def test_what_json_lacks_is_shown_as_json(shell: Shell) -> None:
    """Infinity in a payload, which a library may send, is null."""
    with Client(shell.socket_path) as bus:
        task = bus.create_task("x", payload={"far": float("inf"), "list": [float("nan")], "near": 1.5})
    assert shell("task", "show", task.task_id, "--json").data["task"]["payload"] == {
        "far": None,
        "list": [None],
        "near": 1.5,
    }


@pytest.mark.parametrize("words", [("task", "ls"), ("waits", "--json"), ("nope", "--json"), ("completion", "bash")])
def test_a_full_disk_is_no_bug_of_ours(shell: Shell, words: tuple[str, ...]) -> None:
    """Nobody can read the answer, so the exit code is not that of one; stderr says why."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [IFBUS, *words], stdout=full, stderr=subprocess.PIPE, env=shell.environ(), text=True, check=False
        )
    assert done.returncode == 10
    assert done.stderr.startswith("unavailable: cannot write the answer: No space left on device")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code"), [(("task", "ls"), 0), (("nope", "--json"), 2), (("task", "show", "T-99", "--json"), 4)]
)
def test_a_reader_that_has_gone_changes_no_exit_code(shell: Shell, words: tuple[str, ...], code: int) -> None:
    """A closed pipe, or no stdout at all: silence, and the same code."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [IFBUS, *words], stdout=writes, stderr=subprocess.PIPE, env=shell.environ(), text=True, check=False
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (code, "")
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", IFBUS, *words], capture_output=True, env=shell.environ(), text=True, check=False
    )
    assert (closed.returncode, closed.stderr) == (code, "")
