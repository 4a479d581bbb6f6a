"""Compiled code on disk: found by what it was compiled from and for, and never used without a valid MAC.

Deserialising foreign bytes is code execution, so the bytes are copied into a memfd while the MAC is computed over them, the
memfd is sealed, and that memfd is what workers map: nothing can change between the check and the use. Blocking functions:
call them in a thread.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

import attrs

from ifbus.errors import ConfigInvalid
from ifbusd.store.fsync import sync_file

_MAGIC: Final = b"ifbuscode1\0\0\0\0\0\0"
_MAC_BYTES: Final = 32
_COPY_BYTES: Final = 1 << 20
_KEY_BYTES: Final = 32

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Tampered(Exception):
    """A cache file whose MAC is wrong: bit rot, or somebody. It has been removed."""


@attrs.frozen(kw_only=True)
class CodeKey:
    """What compiled code was made from and for: module, kind, engine with settings and machine."""

    module_sha256: str
    kind: str
    engine: str

    def name(self) -> str:
        """The cache file's name."""
        # core modules and commands compile to the same code
        form = "component" if self.kind == "component" else "module"
        return hashlib.sha256(f"{self.module_sha256}\0{form}\0{self.engine}".encode()).hexdigest()


def new_code_file() -> int:
    """An empty memfd for a compiler to write into."""
    return os.memfd_create("code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def load_or_make_key(path: Path) -> bytes:
    """The MAC key at `path`, made at the first start. Read it after the zygote was started.

    Raises:
        ConfigInvalid: The file is no key, or others may read it.
        DiskFailed: A new key could not be made durable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            sync_file(file.fileno(), fresh)
        fresh.rename(path)
        return load_or_make_key(path)
    with open(descriptor, "rb") as file:
        key = file.read(_KEY_BYTES + 1)
        mode = os.fstat(file.fileno()).st_mode
    if len(key) != _KEY_BYTES or mode & 0o077:
        raise ConfigInvalid(
            f"cannot use {path}: it must hold {_KEY_BYTES} bytes and be readable by its owner only (mode {mode & 0o777:o});"
            f" remove it and {path.with_name('code')}: modules are compiled anew",
            data={"path": str(path)},
        )
    return key


class CodeCache:
    """The directory ``code/``, bounded, least recently used first out. Its mutable state is the file system alone."""

    def __init__(self, directory: Path, key: bytes, *, max_bytes: int) -> None:
        self._directory = directory
        self._key = key
        self._max_bytes = max_bytes

    def prepare(self) -> None:
        """Make the directory and drop what a crash left half written."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._directory.glob("*.new"):
            path.unlink()

    def load(self, key: CodeKey) -> int | None:
        """A sealed memfd with the verified code, owned by the caller; None if there is none.

        Raises:
            Tampered: The file was there and was not what we wrote; it is gone now.
            OSError: It cannot be read just now, such as for want of a descriptor; it stays.
        """
        path = self._path(key)
        try:
            file = open(path, "rb", opener=_no_link)  # noqa: SIM115 - closed by the `with` below
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link: nothing that we put there
                raise
            path.unlink(missing_ok=True)
            raise Tampered(f"{path.name}: {error.strerror}") from error
        with file:
            memory = new_code_file()
            try:
                magic, mac = file.read(len(_MAGIC)), file.read(_MAC_BYTES)
                found = self._mac(key)
                while chunk := file.read(_COPY_BYTES):
                    found.update(chunk)
                    _write_all(memory, chunk)
                if magic != _MAGIC or not hmac.compare_digest(mac, found.digest()):
                    path.unlink(missing_ok=True)
                    raise Tampered(f"{path.name}: wrong MAC")
                seal(memory)
                os.utime(file.fileno())  # not by its name: another thread may just have made room by removing it
            except BaseException:
                os.close(memory)
                raise
        return memory

    def store(self, key: CodeKey, memory: int) -> None:
        """Keep the code of a sealed memfd. Not durable on purpose: what a crash tears fails its MAC and is made again.

        Raises:
            OSError: There is no space for it.
        """
        fresh = self._path(key).with_suffix(".new")
        try:
            self._write(key, memory, fresh)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        fresh.rename(self._path(key))
        self._prune(keep=self._path(key))

    def _write(self, key: CodeKey, memory: int, fresh: Path) -> None:
        found = self._mac(key)
        size = os.fstat(memory).st_size
        with open(fresh, "wb", opener=_private) as file:
            file.write(_MAGIC + bytes(_MAC_BYTES))
            at = 0
            while at < size:
                chunk = os.pread(memory, _COPY_BYTES, at)
                found.update(chunk)
                file.write(chunk)
                at += len(chunk)
            file.seek(len(_MAGIC))
            file.write(found.digest())

    def drop(self, key: CodeKey) -> None:
        """Forget code that turned out to be of no use here."""
        self._path(key).unlink(missing_ok=True)

    def _mac(self, key: CodeKey) -> hmac.HMAC:
        # The name is part of it: a file moved in another's place is tampered with, too.
        return hmac.new(self._key, _MAGIC + key.name().encode(), "sha256")

    def _path(self, key: CodeKey) -> Path:
        return self._directory / f"{key.name()}.code"

    def _prune(self, keep: Path) -> None:
        files = sorted(self._directory.glob("*.code"), key=lambda path: path.lstat().st_mtime_ns)
        total = sum(path.lstat().st_size for path in files)
        for path in files:
            if total <= self._max_bytes:
                return
            if path != keep:
                total -= path.lstat().st_size
                path.unlink()


def seal(memory: int) -> None:
    """Make a memfd's content final for everybody, us included."""
    os.fchmod(memory, 0o444)  # a worker under its own uid opens it by its /proc name
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
