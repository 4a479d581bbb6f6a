"""`ifbus tool build`: a Python function becomes a WebAssembly component. Needs no daemon."""

from __future__ import annotations

import argparse
import os

from ifbus.cli.command import Command, Data, Invocation, Outcome
from ifbus.cli.text import View, fields
from ifbus.errors import Unavailable, Usage


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a Python file that defines run(...)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write it; default: the source's name with .wasm"
    )


def _build(invocation: Invocation) -> Outcome:
    source = invocation.args.source
    output = invocation.args.output or os.path.splitext(source)[0] + ".wasm"
    if not os.path.isfile(source):
        raise Usage(f"no file {source}", data={"command": "tool build", "example": "ifbus tool build my_tool.py"})
    try:
        from ifbus.toolbuild import build
    except ImportError as error:
        raise Unavailable(
            f"`tool build` needs componentize-py: {error}",
            would_change=[{"by": "self", "what": "install it", "call": "pip install 'ifbus[tool]'"}],
        ) from error
    build(source, output)
    with open(output, "rb") as file:
        import hashlib

        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Outcome({"source": source, "output": output, "bytes": os.path.getsize(output), "sha256": digest})


def render_built(data: Data, view: View) -> list[str]:
    """Where it is, how large, and by which name the chassis will know it."""
    return fields([f"{data['output']} built", f"{data['bytes'] / 1_000_000:.1f} MB", f"sha256 {data['sha256']}"], view)


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
