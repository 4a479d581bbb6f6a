"""WebAssembly modules on their way to the chassis: what they are, and the upload in chunks."""

from __future__ import annotations

import os
from typing import Final, Literal, NamedTuple

from ifbus import calls
from ifbus.errors import InvalidModule, InvalidParams
from ifbus.models import SHA256
from ifbus.steps import Steps, ask

Kind = Literal["core", "command", "component"]
Source = str | os.PathLike[str] | bytes

CHUNK_BYTES: Final = 48 << 10  # the most that `chassis.put_blob` takes
_CORE: Final = b"\0asm\x01\0\0\0"
_COMPONENT: Final = b"\0asm\x0d\0\x01\0"
_EXPORT_SECTION: Final = 7


# Modules of files that were read before are known by what `stat` says of the file: 18 MB take 40 ms to read and hash.
_MAX_KNOWN: Final = 64
_known: dict[str, tuple[tuple[int, ...], Module]] = {}


class Module(NamedTuple):
    """A module by content.

    Attributes:
        kind: What it is, None where only its address is known.
        data: Its bytes, where they are at hand.
        path: Where they can be read.
    """

    sha256: str
    kind: Kind | None = None
    data: bytes | None = None
    path: str | None = None

    @property
    def has_data(self) -> bool:
        """Whether `read` gives its bytes."""
        return self.data is not None or self.path is not None

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            InvalidParams: Only its address is known.
            InvalidModule: The file cannot be read any more.
        """
        if self.data is not None:
            return self.data
        if self.path is None:
            raise InvalidParams(f"cannot upload {self.sha256}: only its address is known")
        return _read(self.path)


def find(source: Source | Module) -> Module:
    """The module of a path, of bytes, or of a SHA-256 (64 hex digits) that was uploaded before.

    A file is read and hashed once, and again when `stat` shows a change.

    Raises:
        InvalidModule: There is no such file, it cannot be read, or it begins like no WebAssembly.
    """
    if isinstance(source, Module):
        return source
    if isinstance(source, bytes):
        return Module(_sha256(source), kind_of(source), source)
    if isinstance(source, str) and SHA256.fullmatch(source):
        return Module(source)
    path = os.path.abspath(source)
    try:
        seen = os.stat(path)
    except OSError as error:
        raise _unreadable(error) from error
    state = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    known = _known.get(path)
    if known is not None and known[0] == state:
        return known[1]
    data = _read(path)
    module = Module(_sha256(data), kind_of(data), data, path)
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    _known[path] = state, module._replace(data=None)
    return module


def is_at_hand(source: Source | Module) -> bool:
    """Whether `find` will not have to read a file for it, nor hash long bytes."""
    return isinstance(source, Module) or (isinstance(source, str) and bool(SHA256.fullmatch(source)))


def _sha256(data: bytes) -> str:
    import hashlib  # here: it loads OpenSSL, which most programs that use a client do without

    return hashlib.sha256(data).hexdigest()


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> InvalidModule:
    return InvalidModule(f"cannot read the module {error.filename}: {error.strerror}")


def unknown_kind() -> Kind:
    """Raises InvalidParams: somebody has to say what a module is of which only the address is known."""
    raise InvalidParams(
        "say which kind the module is (core, command, component): only its SHA-256 is known", data={"param": "kind"}
    )


def kind_of(data: bytes) -> Kind:
    """What a module is, by its header and, for a core module, by whether it exports ``_start``.

    Raises:
        InvalidModule: It begins like no WebAssembly.
    """
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
        InvalidModule: The file has changed meanwhile, or cannot be read any more.
    """
    data = module.read()
    offset = 0
    while True:
        chunk = data[offset : offset + CHUNK_BYTES]
        progress = yield from ask(calls.put_blob(module.sha256, offset, chunk, len(data)))
        if progress.complete:
            return module.sha256
        offset = progress.received_bytes
