"""The three kinds of guest, from uploaded bytes to answers."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from ifbus.errors import GuestFailed, InvalidModule, InvalidParams
from tests.integration.chassis.harness import GUESTS, Harness, caller


async def test_core_function_takes_and_gives_numbers(chassis: Harness) -> None:
    """An exported function is called with JSON numbers and answers with one."""
    await chassis.load("core", export="add")
    assert await chassis.run(2, 40) == 42
    assert await chassis.run(-1, 0xFFFF_FFFF) == -2  # an i32 may be given signed or unsigned


async def test_second_execution_finds_the_worker_warm(chassis: Harness) -> None:
    """Loading starts the worker, so even the first execution is warm and tells what it cost."""
    await chassis.load("core", export="fib")
    answer = await chassis.execute({"args": [90]})
    assert answer["output"] == 2880067194370816120
    assert answer["sandbox"] == "warm"
    assert answer["memory_bytes"] == 65536
    assert answer["wall_us"] > 0
    assert "seq" in answer["receipt"]


@pytest.mark.parametrize(
    ("export", "args", "output"),
    [("half", [3], 1.5), ("pair", [7], [7, 7]), ("nothing", [], None), ("once", [], 105), ("grow", [2], 1)],
)
async def test_core_results_of_each_shape(chassis: Harness, export: str, args: list[float], output: Any) -> None:
    """Floats, several results and none come back as JSON; each execution has a fresh memory."""
    await chassis.load("core", export=export)
    for _ in range(3):
        assert await chassis.run(*args) == output


@pytest.mark.parametrize(
    "input",
    [{"args": [1]}, {"args": [1, "2"]}, {"args": [1, True]}, {"args": [1, 1 << 32]}, {"args": [1, 0.5]}, [1, 2]],
)
async def test_arguments_that_do_not_fit_are_refused(chassis: Harness, input: Any) -> None:
    """Too few numbers, no numbers and numbers out of range are the caller's mistake, not the guest's."""
    await chassis.load("core", export="add")
    with pytest.raises(InvalidParams):
        await chassis.execute(input)
    assert await chassis.run(1, 1) == 2


async def test_result_that_is_no_number_is_a_failure(chassis: Harness) -> None:
    """NaN has no JSON: the execution fails instead of answering with something else."""
    await chassis.load("core", export="root")
    with pytest.raises(GuestFailed, match="no finite number"):
        await chassis.run(-1.0)


async def test_command_reads_and_writes_json(chassis: Harness) -> None:
    """A WASI command gets its input on standard input and answers on standard output."""
    await chassis.load("wordcount", kind="command")
    for text, words in (("one two  three", 3), ("", 0), ("é à, tea", 1)):
        answer = await chassis.execute({"text": text})
        assert answer["output"]["words"] == words
    assert answer["output"] == {"words": 1, "letters": 3, "longest": "tea"}


async def test_command_that_fails_says_why(chassis: Harness) -> None:
    """A non-zero exit status is a failure of the guest, with the start of what it wrote to standard error."""
    await chassis.load("wordcount", kind="command")
    with pytest.raises(GuestFailed, match="exit status 1") as failed:
        await chassis.execute({"nothing": 1})
    assert failed.value.data["stderr"] == 'wordcount: no "text" in the input\n'


@pytest.mark.parametrize(
    ("wanted", "why"),
    [("no json", "no JSON"), ("deep", "nested too deeply|no JSON"), ("number", "64 bits"), ("not a number", "no JSON")],
)
async def test_output_that_no_answer_can_carry_is_a_failure(chassis: Harness, wanted: str, why: str) -> None:
    """What is no JSON, or JSON that the wire refuses, ends the execution and nothing else."""
    await chassis.load("probe", kind="command")
    with pytest.raises(GuestFailed, match=why):
        await chassis.execute({"try": wanted})
    assert (await chassis.execute({"try": "clock"}))["output"]["clock"] is True


def _module(wat: str) -> bytes:
    return bytes(wasmtime.wat2wasm(wat))


@pytest.mark.parametrize(
    ("module", "contract", "why"),
    [
        (b"\0asm\1\0\0\0\xff\xff", {}, "cannot load the module"),
        (b"#!/bin/sh\necho no\n", {}, "does not begin as WebAssembly"),
        (b"\0asm\2\0\0\0", {}, "unknown WebAssembly version"),
        (b"\0asm\x0d\0\1\0", {}, "it is a component"),
        (_module("(module)"), {"kind": "component"}, "it is a core module"),
        (_module("(module)"), {}, "exports no function 'run'"),
        (_module('(module (memory (export "run") 1))'), {}, "exports no function 'run'"),
        (_module('(module (import "env" "open" (func)) (func (export "run")))'), {}, "may import nothing"),
        (
            _module('(module (import "env" "open" (func)) (func (export "_start")))'),
            {"kind": "command"},
            "may import wasi_snapshot_preview1 only",
        ),
        (
            _module(
                '(module (import "wasi_snapshot_preview1" "fd_write" (func (param i64))) (func (export "_start")))'
            ),
            {"kind": "command"},
            "incompatible import type",
        ),
        (_module('(module (func (export "_start") (param i32)))'), {"kind": "command"}, "takes and gives nothing"),
        (_module('(module (func (export "run") (param externref)))'), {}, "cannot load|something else than numbers"),
        (_module('(module (memory 1 1 shared) (func (export "run")))'), {}, "threads"),
        (_module('(module (memory i64 1) (func (export "run")))'), {}, "memory64"),
    ],
)
async def test_module_that_does_not_fit_is_refused_at_load(
    chassis: Harness, module: bytes, contract: dict[str, Any], why: str
) -> None:
    """A malformed module, another kind, a missing export or an import that we do not offer is named when it is loaded."""
    with pytest.raises(InvalidModule, match=why):
        await chassis.load(module, **contract)
    await chassis.load("core", export="add")
    assert await chassis.run(1, 2) == 3


async def test_module_is_loaded_under_its_own_bytes_only(chassis: Harness) -> None:
    """Bytes whose hash is another than announced are refused, and can be sent again."""
    module = (GUESTS / "core.wasm").read_bytes()
    sha256 = hashlib.sha256(module).hexdigest()
    with pytest.raises(InvalidModule, match="what came has SHA-256"):
        await chassis.chassis.put_blob(caller(), sha256, 0, bytes(len(module)), len(module))
    assert await chassis.upload(module) == sha256


def test_committed_guests_are_what_their_sources_say() -> None:
    """The WAT guests in the tree are built from the sources beside them."""
    for source in Path(GUESTS).glob("*.wat"):
        assert source.with_suffix(".wasm").read_bytes() == bytes(wasmtime.wat2wasm(source.read_text())), source.name
