"""Modules on their way to the chassis: found by content, read once, told apart by their bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from ifbus import module
from ifbus.answers import BlobProgress
from ifbus.errors import InvalidModule, InvalidParams
from ifbus.request import Call
from ifbus.steps import drive

GUESTS = Path(__file__).parents[2] / "guests"
_CORE = b"\0asm\x01\0\0\0"


@pytest.mark.parametrize(("name", "kind"), [("wordcount.wasm", "command"), ("core.wasm", "core")])
def test_a_module_is_told_by_its_bytes(name: str, kind: str) -> None:
    """A module that exports ``_start`` is a command, another one a core module."""
    data = (GUESTS / name).read_bytes()
    assert module.kind_of(data) == kind
    assert module.find(data).sha256 == module.find(GUESTS / name).sha256 == hashlib.sha256(data).hexdigest()


def test_a_component_is_told_by_its_header() -> None:
    """The layer in the header makes the difference."""
    assert module.kind_of(b"\0asm\x0d\0\x01\0") == "component"


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    """The second look costs a `stat`; another content or another file of that name is seen."""
    path = tmp_path / "m.wasm"
    path.write_bytes(_CORE)
    first = module.find(path)
    assert first.data == _CORE
    again = module.find(path)
    assert again.data is None
    assert again.read() == _CORE
    assert again.sha256 == first.sha256
    other = tmp_path / "n.wasm"
    other.write_bytes(_CORE + b"\0\x01\0")
    os.replace(other, path)
    assert module.find(path).sha256 != first.sha256


def test_an_address_is_taken_at_its_word() -> None:
    """A SHA-256 names a module that was uploaded before; it has no bytes to upload and no kind of its own."""
    found = module.find("ab" * 32)
    assert not found.has_data
    with pytest.raises(InvalidParams, match="only its address"):
        next(module.upload(found))
    with pytest.raises(InvalidParams, match="which kind"):
        module.unknown_kind()


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\0asm\x02\0\0\0", _CORE + b"\x07\x05\x01"])
def test_what_is_no_module_is_refused(data: bytes) -> None:
    """Bytes that begin or end like no WebAssembly are refused here."""
    with pytest.raises(InvalidModule):
        module.kind_of(data)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The error says which file."""
    with pytest.raises(InvalidModule, match=r"nowhere\.wasm"):
        module.find(tmp_path / "nowhere.wasm")


def test_an_upload_goes_on_where_the_daemon_is() -> None:
    """Chunks follow what the daemon says that it has, until it has all."""
    data = _CORE + bytes(100_000)
    steps = module.upload(module.Module("ab" * 32, "core", data))
    offsets: list[Any] = []

    def answer(call: Call[Any]) -> BlobProgress:
        assert isinstance(call.params, dict)
        offsets.append(call.params["offset"])
        reached = call.params["offset"] + len(call.params["data"])
        return BlobProgress(received_bytes=reached, complete=reached == len(data))

    assert drive(steps, answer) == "ab" * 32
    assert offsets == [0, module.CHUNK_BYTES, 2 * module.CHUNK_BYTES]
