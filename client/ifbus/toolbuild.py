"""`ifbus tool build`: a Python file with a function ``run(input: dict) -> dict`` becomes a component that the chassis executes.

The component exports one function, JSON text in and JSON text or an error text out::

    package ifbus:tool@1.0.0;
    world tool { export run: func(input: string) -> result<string, string>; }

Components of any other language that export the same are as good. Needs ``pip install 'ifbus[tool]'``; works offline.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import attrs

from ifbus.errors import InvalidParams, Usage

WIT: Final = """\
package ifbus:tool@1.0.0;

/// What `ifbus tool build` makes and the chassis runs.
world tool {
  /// Both sides are JSON text; the error is one sentence.
  export run: func(input: string) -> result<string, string>;
}
"""

FUNCTION: Final = "run"
# What the chassis' configuration calls the compile profile that such a component needs.
PROFILE: Final = "python-component"

_SHIM_NAME: Final = "ifbus_tool_shim"
# A component has no files at run time: what is not imported while it is built cannot be imported later. These are what the
# standard library itself imports late, in functions that tools call: Counter.most_common, strptime, text encodings.
_SHIM: Final = """\
import sys

sys.dont_write_bytecode = True  # nothing of ours stays beside the source
import heapq, json, locale, traceback, unicodedata
import _strptime
import encodings.ascii, encodings.cp1252, encodings.idna, encodings.latin_1, encodings.utf_8_sig, encodings.utf_16

import wit_world
from componentize_py_types import Err

import {module} as tool


class WitWorld(wit_world.WitWorld):
    def run(self, input: str) -> str:
        try:
            return json.dumps(tool.run(json.loads(input)), allow_nan=False)
        except Exception as error:
            raise Err(f"{{type(error).__name__}}: {{error}}")
"""

# A build takes about 6 s; one that takes this long hangs in the tool's own top-level code.
_BUILD_TIMEOUT_S: Final = 300
_REASON_LINES: Final = 12


class ToolBuildFailed(InvalidParams):
    """The tool's source cannot become a component; the message says why and `data["log"]` has the builder's last lines."""


@attrs.frozen(kw_only=True)
class BuiltTool:
    """A component on disk.

    Attributes:
        path: The component.
        sha256: Its content address, for `chassis.put_blob` and `chassis.load_swarm`.
        size_bytes: Its length, some 18 MB.
        function: The export to load it with.
        build_ms: Time that building took.
    """

    path: Path
    sha256: str
    size_bytes: int
    function: str
    build_ms: int


def build(source: Path, output: Path) -> BuiltTool:
    """Turn the Python file `source`, with a function ``run(input: dict) -> dict``, into the component `output`.

    ``run`` may take and give any other JSON value, too; an exception becomes the execution's error. All imports belong at the top of the
    file. Modules beside the file can be imported.

    Raises:
        ToolBuildFailed: No such file, no such function, or the builder refuses it.
        Usage: componentize-py is not installed, with what to type.
    """
    source, output = Path(source), Path(output)
    _check(source)
    if importlib.util.find_spec("componentize_py") is None:
        raise Usage(
            "cannot build a tool: componentize-py is not installed",
            would_change=[{"by": "self", "what": "install the builder", "call": "pip install 'ifbus[tool]'"}],
        )
    began = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ifbus-tool-") as directory:
        built = _componentize(source, Path(directory))
        data = built.read_bytes()
        # In one step: a reader never sees half a component.
        fresh = output.with_name(f".{output.name}.{os.getpid()}")
        fresh.write_bytes(data)
        fresh.replace(output)
    return BuiltTool(
        path=output,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        function=FUNCTION,
        build_ms=int((time.monotonic() - began) * 1000),
    )


def _check(source: Path) -> None:
    try:
        tree = ast.parse(source.read_bytes(), filename=str(source))
    except OSError as error:
        raise ToolBuildFailed(f"cannot build {source}: {error.strerror}", data={"param": "source"}) from error
    except (SyntaxError, ValueError) as error:
        raise ToolBuildFailed(f"cannot build {source}: {error}", data={"param": "source"}) from error
    if not source.stem.isidentifier():
        raise ToolBuildFailed(
            f"cannot build {source}: a Python file is imported by its name, and {source.stem!r} is no identifier",
            data={"param": "source"},
        )
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == FUNCTION]
    if not functions:
        if any(isinstance(node, ast.AsyncFunctionDef) and node.name == FUNCTION for node in tree.body):
            reason = f"its {FUNCTION} is async, and a tool has no event loop"
        else:
            reason = f"it defines no function {FUNCTION}(input: dict) -> dict"
        raise ToolBuildFailed(f"cannot build {source}: {reason}", data={"param": "source", "function": FUNCTION})
    arguments = functions[-1].args
    required = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    needs_keyword = any(default is None for default in arguments.kw_defaults)
    takes_one = bool(arguments.posonlyargs or arguments.args or arguments.vararg)
    if required > 1 or needs_keyword or not takes_one:
        raise ToolBuildFailed(
            f"cannot build {source}: {FUNCTION} must take one argument, the input", data={"param": "source"}
        )


def _componentize(source: Path, directory: Path) -> Path:
    (directory / "tool.wit").write_text(WIT)
    (directory / f"{_SHIM_NAME}.py").write_text(_SHIM.format(module=source.stem))
    built = directory / "tool.wasm"
    # A process of its own: the builder runs the tool's top-level code and prints as it likes.
    command = [
        *(sys.executable, "-c", "import sys, componentize_py; sys.exit(componentize_py.script())"),
        *("-d", str(directory / "tool.wit"), "-w", "tool"),
        *("componentize", "-p", str(directory), "-p", str(source.parent.resolve()), "-o", str(built), _SHIM_NAME),
    ]
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BUILD_TIMEOUT_S,
            # Its bindings and byte code must not end up beside the source.
            cwd=directory,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "RUST_BACKTRACE": "0"},
        )
    except subprocess.TimeoutExpired as error:
        raise ToolBuildFailed(
            f"cannot build {source}: not done after {_BUILD_TIMEOUT_S} s; does it loop when it is imported?"
        ) from error
    if run.returncode != 0 or not built.exists():
        lines = [line for line in (run.stderr or run.stdout).splitlines() if line.strip()]
        raise ToolBuildFailed(
            f"cannot build {source}: {_reason(lines)}", data={"log": "\n".join(lines[-_REASON_LINES:])}
        )
    return built


def _reason(lines: list[str]) -> str:
    """The line that a person would look for: the last exception that the tool's own code raised, or the last line."""
    for line in reversed(lines):
        kind, _, _ = line.strip().partition(":")
        if kind.endswith(("Error", "Exception", "Exit")) and kind.isidentifier():
            return line.strip()
    return lines[-1].strip() if lines else "the builder said nothing"
