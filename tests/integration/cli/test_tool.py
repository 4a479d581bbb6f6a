"""`ifbus tool build` as somebody new to it meets it: from a file of a few lines to an answer out of a sandbox."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ifbus.cli.commands.tool import render_built
from ifbus.cli.text import View
from tests.integration.cli.shell import PATIENCE_S, Shell, validate

pytestmark = pytest.mark.slow

TOOL = """
def run(input):
    words = input["text"].split()
    return {"words": len(words), "longest": max(words, key=len)}
"""

# What the documentation shows: a worker that lets its tool do the work.
WORKER = """
import sys, ifbus
with ifbus.Client() as bus, bus.register("counter", capabilities=["docs:counting"]) as swarm:
    with swarm.claim(sys.argv[1]) as task:
        run = eval(sys.argv[2], {"task": task})
        task.complete(run.output)
"""


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("my_tool.py", "def start(input): return input", "it defines no function run(input: dict) -> dict"),
        ("my_tool.py", "async def run(input): return input", "its run is async"),
        ("my_tool.py", "def run(a, b): return a", "run must take one argument"),
        ("my_tool.py", "def run(input) return input", "line 1"),
        ("my-tool.py", "def run(input): return input", "'my-tool' is no identifier"),
        ("my_tool.py", "import no_such_module\ndef run(input): return input", "no_such_module"),
    ],
)
def test_what_is_no_tool_is_said_in_one_line(shell: Shell, tmp_path: Path, name: str, source: str, said: str) -> None:
    """A source that cannot become a tool is refused with the reason and without a trace of the builder."""
    (tmp_path / name).write_text(source, encoding="utf-8")
    ran = shell("tool", "build", str(tmp_path / name))
    assert (ran.exit, ran.out) == (2, "")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.encode()) <= 500
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_invalid_module(new_swarm: Callable[..., Shell], tmp_path: Path) -> None:
    """Python is no WebAssembly: the chassis refuses it, `tool build` makes it a module, and a claim executes it."""
    me = new_swarm("--budget-usd", "1", can="docs:counting").as_swarm("counter")
    source = tmp_path / "my_tool.py"
    source.write_text(TOOL, encoding="utf-8")
    task_id = me("task", "add", "Count", "--payload", '{"text": "one three five"}', "-q").out.strip()

    def work(call: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-c", WORKER, task_id, call.replace("{...}", "task.spec")]
        return subprocess.run(
            program, env=me.environ(), cwd=tmp_path, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
        )

    refused = work(f'task.execute("{source}", input={{...}})')
    assert "ifbus.errors.InvalidModule: " in refused.stderr, refused
    assert me("task", "show", task_id, "--json").data["task"]["state"] == "failed"
    remedy = me("help", "invalid_module").out.split("try: ")[1].strip()
    built = me.type(f"{remedy.replace('SOURCE', str(source))} --json").data
    validate(built, "tool_build")
    module = source.with_suffix(".wasm")
    assert built["output"] == str(module)
    assert hashlib.sha256(module.read_bytes()).hexdigest() == built["sha256"]
    call = render_built(built, View(now_ms=0))[-1].split("in a worker: ")[1]
    assert call == f'task.execute("{module}", input={{...}}, profile="python-component")'
    task_id = me("task", "add", "Count", "--payload", '{"text": "one"}', "-q").out.strip()
    too_long = work(call.replace(', profile="python-component"', ""))
    assert "profile 'default' allows 1048576; 'python-component' would take it" in too_long.stderr
    task_id = me("task", "add", "Count again", "--payload", '{"text": "one three five"}', "-q").out.strip()
    done = work(call)
    assert done.returncode == 0, done
    result = me("task", "show", task_id, "--json").data["task"]["result"]
    assert result == {"words": 3, "longest": "three"}, json.dumps(result)
