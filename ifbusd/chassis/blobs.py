"""Modules as they came: one file per user and SHA-256, written in chunks, complete only when the hash is right.

Per user, so that nobody learns or runs what somebody else uploaded by naming its hash, and quotas are plain sums. Blocking
file functions: the service calls them in a thread, one at a time.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Final

import attrs

from ifbus.errors import InvalidModule, InvalidParams, LimitExceeded, NotFound
from ifbusd.store.fsync import sync_file, sync_names

MAX_CHUNK_BYTES: Final = 48 << 10

# Bytes alone would allow a million tiny files.
_FILES_PER_UID: Final = 256

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = ".part"


@attrs.frozen(kw_only=True)
class Upload:
    """How far an upload is: the next chunk starts at `received_bytes`."""

    received_bytes: int
    complete: bool


class Blobs:
    """The directory ``blobs/``. Its mutable state is the file system alone."""

    def __init__(self, directory: Path, *, bytes_per_uid: int, bytes_in_all: int) -> None:
        self._directory = directory
        self._bytes_per_uid = bytes_per_uid
        self._bytes_in_all = bytes_in_all

    def prepare(self) -> None:
        """Make the directory and drop uploads that the last daemon did not see the end of."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_names(self._directory.parent)
        for part in self._directory.glob(f"*/*{_PART}"):
            part.unlink()

    def put(self, uid: int, sha256: str, offset: int, data: bytes, total_bytes: int) -> Upload:
        """Add a chunk; durable when it was the last.

        Args:
            offset: Where the chunk belongs. A chunk that was stored already, or is ahead, changes nothing: the answer says
                where to go on.
            total_bytes: Of the whole module, the same in each chunk.

        Raises:
            InvalidParams: Figures that do not fit together.
            InvalidModule: The last chunk is there and the hash is another. The upload starts again.
            LimitExceeded: The user's quota, or the host's.
            OSError: There is no space; the upload starts again.
            DiskFailed: Whether the upload is durable is unknown, and the daemon must not go on.
        """
        _check(sha256, offset, data, total_bytes)
        final = self._path(uid, sha256)
        if final.exists():
            self._make_durable(final)  # whoever put it there may not have got that far
            return Upload(received_bytes=total_bytes, complete=True)
        part = final.with_suffix(_PART)
        received = part.stat().st_size if part.exists() else 0
        if offset != received:
            return Upload(received_bytes=received, complete=False)
        self._check_room(uid, total_bytes - received)
        try:
            with open(part, "ab", opener=_private) as file:
                file.write(data)
                file.flush()
                received += len(data)
                if received < total_bytes:
                    return Upload(received_bytes=received, complete=False)
                sync_file(file.fileno(), part)
        except OSError:
            part.unlink(missing_ok=True)  # nobody knows how much of the chunk is in it
            raise
        self._finish(part, final, sha256)
        return Upload(received_bytes=received, complete=True)

    def open(self, uid: int, sha256: str) -> int:
        """A read-only descriptor of a complete module, owned by the caller.

        Raises:
            NotFound: The user has not uploaded it, or the disk has damaged it; then it is gone, to be uploaded again.
        """
        path = self._path(uid, sha256)
        try:
            file = open(path, "rb", opener=_no_link)  # noqa: SIM115 - closed by the `with` below
        except FileNotFoundError as error:
            raise _not_found(sha256, f"uid {uid} has not uploaded it") from error
        with file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                path.unlink(missing_ok=True)
                raise _not_found(sha256, f"{path} was damaged on the disk and is removed")
            file.seek(0)
            return os.dup(file.fileno())

    def head(self, uid: int, sha256: str) -> tuple[bytes, int]:
        """The first eight bytes and the length of a complete module. Raises as `open`."""
        with open(self.open(uid, sha256), "rb") as file:
            return file.read(8), os.fstat(file.fileno()).st_size

    def make_room(self, uid: int, total_bytes: int, keep: Container[str]) -> bool:
        """Remove a user's complete modules, oldest first, but none of `keep`, until `total_bytes` fit; whether any went."""
        mine = self._directory / str(uid)
        spare = sorted(
            (path for path in mine.iterdir() if path.suffix != _PART and path.name not in keep),
            key=lambda path: path.stat().st_mtime_ns,
        )
        freed = 0
        for path in spare:
            if freed >= total_bytes:
                break
            freed += path.stat().st_size
            path.unlink()
        return freed > 0

    def _finish(self, part: Path, final: Path, sha256: str) -> None:
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise InvalidModule(
                f"cannot store module {sha256[:12]}: what came has SHA-256 {found[:12]}",
                data={"module_sha256": sha256, "found": found},
            )
        part.rename(final)
        self._make_durable(final)

    def _make_durable(self, final: Path) -> None:
        # The user's directory may be as new as the file, and a name is durable only where it stands.
        sync_names(final.parent)
        sync_names(self._directory)

    def _check_room(self, uid: int, missing_bytes: int) -> None:
        mine = self._directory / str(uid)
        mine.mkdir(mode=0o700, exist_ok=True)
        in_all = sum(_bytes_in(directory) for directory in self._directory.iterdir())
        for limit, have, more, allowed in (
            ("blob_bytes_per_uid", _bytes_in(mine), missing_bytes, self._bytes_per_uid),
            ("blob_bytes", in_all, missing_bytes, self._bytes_in_all),
            ("blob_files_per_uid", len(list(mine.iterdir())), 1, _FILES_PER_UID),
        ):
            if have + more > allowed:
                raise LimitExceeded(
                    f"cannot store a chunk: {have} of {limit} = {allowed} are in use, {more} more are needed",
                    data={"limit": limit, "used": have + more, "allowed": allowed},
                    would_change=[{"by": "self", "what": "unload modules", "call": "chassis.unload_swarm"}],
                )

    def _path(self, uid: int, sha256: str) -> Path:
        return self._directory / str(uid) / sha256


def _check(sha256: str, offset: int, data: bytes, total_bytes: int) -> None:
    wrong = (
        ("sha256", not _SHA256.fullmatch(sha256), "64 lower-case hex digits"),
        ("data", not 0 < len(data) <= MAX_CHUNK_BYTES, f"1 to {MAX_CHUNK_BYTES} bytes"),
        ("total_bytes", total_bytes <= 0, "the module's length"),
        ("offset", not 0 <= offset <= total_bytes - len(data), "within the module"),
    )
    for param, is_wrong, expected in wrong:
        if is_wrong:
            raise InvalidParams(f"cannot store a chunk: {param} is not {expected}", data={"param": param})


def _not_found(sha256: str, reason: str) -> NotFound:
    return NotFound(
        f"cannot find module {sha256[:12]}: {reason}",
        data={"module_sha256": sha256},
        would_change=[{"by": "self", "what": "upload it first", "call": "chassis.put_blob"}],
    )


def _bytes_in(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
