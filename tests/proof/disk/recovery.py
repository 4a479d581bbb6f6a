"""What must hold of a directory that a crash left: it opens, what clients were told is there, and nothing that never was.

The code that opens it is the daemon's own: the lock, the store, the uploads, the key and the code cache, as a start does.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from ifbus.errors import IfbusError
from ifbusd.chassis.blobs import Blobs
from ifbusd.chassis.cache import CodeCache, load_or_make_key
from ifbusd.codec import unpack
from ifbusd.daemon import DATABASE
from ifbusd.store.base import LogEntry
from ifbusd.store.chain import GENESIS, entry_hash
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.dirlock import lock_directory
from ifbusd.store.embedded import EmbeddedStore
from tests.conformance.backends import boottime_ms, running, wall_ms
from tests.proof.disk.recording import Said
from tests.proof.powerloss import Image, place

_PAGE = 1000


class Broken(Exception):
    """What of the promise does not hold, in a sentence."""


@attrs.frozen(kw_only=True)
class Told:
    """What clients had been told by some point of a run, as far as it has to be durable.

    Attributes:
        heads: Number and hash of entries of the witness log, from receipts and heads, each with the event that said it.
        blobs: User and SHA-256 of complete uploads, the same.
    """

    heads: Sequence[tuple[int, int, str]]
    blobs: Sequence[tuple[int, int, str]]

    @classmethod
    def by(cls, said: Sequence[Said], *, uid: int) -> Told:
        """Everything in a conversation."""
        heads, blobs = [], []
        for one in said:
            answer = one.result if one.error is None else one.error["data"]
            if not isinstance(answer, dict):
                continue
            receipt = answer.get("receipt") or {}
            if "seq" in receipt:
                heads.append((one.at, receipt["seq"], receipt["head"]))
            if one.method == "witness.head":
                heads.append((one.at, answer["seq"], answer["hash"]))
            if one.method == "chassis.put_blob" and answer.get("complete"):
                blobs.append((one.at, uid, one.params[0]["sha256"]))
        return cls(heads=heads, blobs=blobs)


@attrs.frozen(kw_only=True)
class Contents:
    """What a store holds: its revision, a digest of all keys, and its log."""

    revision: int
    digest: bytes
    log: list[LogEntry]


class Checker:
    """Opens one crash's disk after the other, and compares. The mutable state: which contents belong to which revision."""

    def __init__(self, told: Told, directory: Path) -> None:
        """`directory` takes the disks, one at a time; best where an fsync costs nothing."""
        self._told = told
        self._directory = directory
        self._known: dict[int, bytes] = {}
        self._log: list[LogEntry] = []

    @property
    def revisions(self) -> int:
        """How many different states of the store were met."""
        return len(self._known)

    async def begin(self, final: Image) -> None:
        """Take the log at the end of the run as the whole truth: at every crash it is a beginning of this."""
        self._log = (await self._open(final)).log

    async def check(self, image: Image, at: int) -> Contents:
        """Recover the disk and compare it with what had been said up to the event `at`.

        Raises:
            Broken: The promise does not hold.
        """
        found = await self._open(image, at)
        log = found.log
        if log != self._log[: len(log)]:
            raise Broken("the log is not a beginning of what the daemon wrote")
        for told_at, seq, head in self._told.heads:
            if told_at <= at and (len(log) < seq or log[seq - 1].hash.hex() != head):
                raise Broken(f"entry {seq} was acknowledged and is lost: the log ends at {len(log)}")
        known = self._known.setdefault(found.revision, found.digest)
        if known != found.digest:
            raise Broken(f"revision {found.revision} has other contents than at another crash")
        return found

    async def _open(self, image: Image, at: int = -1) -> Contents:
        with tempfile.TemporaryDirectory(dir=self._directory, ignore_cleanup_errors=True) as name:
            directory = Path(name) / "state"
            place(image, directory)
            try:
                with lock_directory(directory):
                    contents = await contents_of(directory)
                    self._open_chassis_files(directory, at)
            except (IfbusError, OSError, ValueError) as error:
                raise Broken(f"it does not open: {error}") from error
            return contents

    def _open_chassis_files(self, directory: Path, at: int) -> None:
        blobs = Blobs(directory / "blobs", bytes_per_uid=1 << 30, bytes_in_all=1 << 30)
        blobs.prepare()
        key = load_or_make_key(directory / "cache.key")
        CodeCache(directory / "code", key, max_bytes=1 << 30).prepare()
        for told_at, uid, sha256 in self._told.blobs:
            if told_at <= at:
                with open(blobs.open(uid, sha256), "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                        raise Broken(f"upload {sha256[:12]} was acknowledged and is damaged")


async def contents_of(directory: Path) -> Contents:
    """Open the store in a directory, read all of it, and check that log and keys agree.

    Raises:
        IfbusError: It does not open.
        Broken: It contradicts itself.
    """
    store = EmbeddedStore(directory / DATABASE, config=EmbeddedConfig(), now_ms=wall_ms, boottime_ms=boottime_ms)
    digest = hashlib.blake2b()
    changed: set[int] = set()
    log: list[LogEntry] = []
    async with running(store):
        revision = store.revision
        after, has_more = "", True
        while has_more:
            page = await store.range("", after=after, limit=_PAGE)
            for item in page.items:
                digest.update(repr(item).encode())
                changed.add(item.mod_revision)
            has_more = page.has_more
            after = page.items[-1].key if page.items else ""
        while entries := await store.read_log(after_seq=len(log), limit=_PAGE):
            log += entries
        head = await store.log_head()
    _check_chain(log)
    if (head.seq, head.hash) != ((log[-1].seq, log[-1].hash) if log else (0, GENESIS)):
        raise Broken(f"the head is said to be {head.seq}, the log ends at {len(log)}")
    _check_agreement(changed, log, revision)
    return Contents(revision=revision, digest=digest.digest(), log=log)


def _check_chain(log: Sequence[LogEntry]) -> None:
    previous, revision = GENESIS, 0
    for seq, entry in enumerate(log, 1):
        if entry.seq != seq or entry.hash != entry_hash(previous, *entry[:4]) or entry.revision < revision:
            raise Broken(f"entry {seq} does not continue the chain")
        previous, revision = entry.hash, entry.revision


def _check_agreement(changed: set[int], log: Sequence[LogEntry], revision: int) -> None:
    """No key without its entry; no entry of something done without a key: each request left its idempotency key at least."""
    done = {entry.revision for entry in log if unpack(entry.record)["outcome"] == "ok"}
    if alone := changed - done:
        raise Broken(f"revisions {sorted(alone)} changed keys and have no entry")
    if missing := done - changed:
        raise Broken(f"entries of revisions {sorted(missing)} say that keys were changed, and none has it")
    if max(changed | done, default=0) > revision:
        raise Broken(f"the store says that it is at revision {revision}, and holds a later one")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Where disks for one moment go, gone at the end: memory, if there is a place for that, because an fsync is free there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="ifbus-disks-", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)
