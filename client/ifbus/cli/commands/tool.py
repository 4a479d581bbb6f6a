"""`ifbus tool build`: a Python function becomes a WebAssembly component. Needs no daemon."""

from __future__ import annotations

import argparse

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View, fields, span
from ifbus.errors import Usage


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a Python file that defines run(input: dict) -> dict")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write it; default: the source's name with .wasm"
    )


def _build(invocation: Invocation) -> Outcome:
    from pathlib import Path

    from ifbus.toolbuild import PROFILE, build

    source = Path(invocation.args.source)
    if not source.is_file():
        raise Usage(f"no file {source}", data={"command": "tool build", "example": "ifbus tool build my_tool.py"})
    built = build(source, Path(invocation.args.output or source.with_suffix(".wasm")))
    return Outcome(
        {
            "source": str(source),
            "output": str(built.path),
            "bytes": built.size_bytes,
            "sha256": built.sha256,
            "function": built.function,
            "build_ms": built.build_ms,
            "profile": PROFILE,
        }
    )


def _call(data: Data) -> str:
    import json

    return f'task.execute({json.dumps(data["output"])}, input={{...}}, profile="{data["profile"]}")'


def render_built(data: Data, view: View) -> list[str]:
    """Where it is, how large, by which name the chassis will know it, and how a worker runs it."""
    built = [f"{data['output']} built in {span(data['build_ms'])}", f"{data['bytes'] / 1_000_000:.1f} MB"]
    return [
        *fields([*built, f"sha256 {data['sha256']}"], view),
        f"  next, in a worker: {_call(data)}",
    ]


COMMANDS = {
    "build": Command(
        words="tool build",
        summary="Turn a Python function into a WebAssembly component; works offline, about 6 s",
        examples=("ifbus tool build my_tool.py", "ifbus tool build my_tool.py -o build/my_tool.wasm", "ifbus tool build my_tool.py --json"),
        arguments=_build_arguments,
        run=_build,
        render=render_built,
    ),
}  # fmt: skip
