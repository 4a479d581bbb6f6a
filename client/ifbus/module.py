"""WebAssembly modules on their way to the chassis: what they are, and the upload in chunks."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final, Literal, NamedTuple

from ifbus import calls
from ifbus.errors import InvalidModule, InvalidParams
from ifbus.steps import Steps, ask

Kind = Literal["core", "command", "component"]
Source = str | os.PathLike[str] | bytes

CHUNK_BYTES: Final = 48 << 10  # the most that `chassis.put_blob` takes
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CORE: Final = b"\0asm\x01\0\0\0"
_COMPONENT: Final = b"\0asm\x0d\0\x01\0"
_EXPORT_SECTION: Final = 7


class Module(NamedTuple):
    """A module by content: `data` is None where only its address is known."""

    sha256: str
    data: bytes | None


def read(source: Source) -> Module:
    """The module of a path, of bytes, or of a SHA-256 (64 hex digits) that was uploaded before.

    Raises:
        InvalidModule: There is no such file, or it cannot be read.
    """
    if isinstance(source, str) and _SHA256.fullmatch(source):
        return Module(source, None)
    if not isinstance(source, bytes):
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise InvalidModule(f"cannot read the module {error.filename}: {error.strerror}") from error
    return Module(hashlib.sha256(source).hexdigest(), source)


def kind_of(data: bytes | None) -> Kind:
    """What a module is, by its header and, for a core module, by whether it exports ``_start``.

    Raises:
        InvalidModule: It begins like no WebAssembly.
        InvalidParams: Only its address is known.
    """
    if data is None:
        raise InvalidParams("say which kind the module is (core, command, component): only its SHA-256 is known")
    if data.startswith(_COMPONENT):
        return "component"
    if not data.startswith(_CORE):
        raise InvalidModule("cannot run it: it begins like no WebAssembly module or component")
    try:
        return "command" if "_start" in _exports(data) else "core"
    except IndexError:
        raise InvalidModule("cannot read the module: it ends inside a section") from None


def _exports(data: bytes) -> set[str]:
    position = len(_CORE)
    while position < len(data):
        section = data[position]
        size, position = _leb128(data, position + 1)
        if section != _EXPORT_SECTION:
            position += size
            continue
        count, position = _leb128(data, position)
        names = set()
        for _ in range(count):
            length, position = _leb128(data, position)
            names.add(data[position : position + length].decode(errors="replace"))
            _, position = _leb128(data, position + length + 1)  # past the export's kind, its index
        return names
    return set()


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def upload(module: Module) -> Steps[str]:
    """Upload a module unless the daemon has it; its SHA-256. An upload that was cut short goes on where it stopped.

    Raises:
        LimitExceeded: More bytes or files than a user may keep.
        InvalidParams: Only its address is known.
    """
    data = module.data
    if data is None:
        raise InvalidParams(f"cannot upload {module.sha256}: only its address is known")
    offset = 0
    while True:
        chunk = data[offset : offset + CHUNK_BYTES]
        progress = yield from ask(calls.put_blob(module.sha256, offset, chunk, len(data)))
        if progress.complete:
            return module.sha256
        offset = progress.received_bytes
