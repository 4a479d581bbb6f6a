"""Modules as they come in: in order, under the right hash, within quotas, per user."""

import hashlib
from pathlib import Path

import pytest

from ifbus.errors import InvalidModule, InvalidParams, LimitExceeded, NotFound
from ifbusd.chassis.blobs import MAX_CHUNK_BYTES, Blobs, Upload

DATA = bytes(range(256)) * 300  # two chunks
SHA = hashlib.sha256(DATA).hexdigest()


def _blobs(directory: Path, *, per_uid: int = 1 << 20, in_all: int = 1 << 21) -> Blobs:
    blobs = Blobs(directory / "blobs", bytes_per_uid=per_uid, bytes_in_all=in_all)
    blobs.prepare()
    return blobs


def _put(blobs: Blobs, data: bytes, uid: int = 1) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    for at in range(0, len(data), MAX_CHUNK_BYTES):
        upload = blobs.put(uid, sha256, at, data[at : at + MAX_CHUNK_BYTES], len(data))
    assert upload.complete
    return sha256


def test_chunks_become_a_module(tmp_path: Path) -> None:
    """In order they make the module, which can be opened once the last one is there."""
    blobs = _blobs(tmp_path)
    first = blobs.put(1, SHA, 0, DATA[:MAX_CHUNK_BYTES], len(DATA))
    assert first == Upload(received_bytes=MAX_CHUNK_BYTES, complete=False)
    with pytest.raises(NotFound):
        blobs.head(1, SHA)
    last = blobs.put(1, SHA, MAX_CHUNK_BYTES, DATA[MAX_CHUNK_BYTES:], len(DATA))
    assert last == Upload(received_bytes=len(DATA), complete=True)
    with open(blobs.open(1, SHA), "rb") as file:
        assert file.read() == DATA
    assert blobs.head(1, SHA) == (DATA[:8], len(DATA))


def test_chunk_out_of_order_changes_nothing(tmp_path: Path) -> None:
    """A repeated or early chunk is answered with where to go on, so a client can resume."""
    blobs = _blobs(tmp_path)
    early = blobs.put(1, SHA, MAX_CHUNK_BYTES, DATA[MAX_CHUNK_BYTES:], len(DATA))
    assert early == Upload(received_bytes=0, complete=False)
    blobs.put(1, SHA, 0, DATA[:1000], len(DATA))
    assert blobs.put(1, SHA, 0, DATA[:1000], len(DATA)).received_bytes == 1000
    assert _put(_blobs(tmp_path / "x"), DATA) == SHA


def test_whole_module_again_is_complete_at_once(tmp_path: Path) -> None:
    """A module that is there needs no second upload."""
    blobs = _blobs(tmp_path)
    _put(blobs, DATA)
    assert blobs.put(1, SHA, 0, DATA[:10], len(DATA)).complete


def test_wrong_hash_starts_again(tmp_path: Path) -> None:
    """Bytes under another name are dropped as a whole."""
    blobs = _blobs(tmp_path)
    with pytest.raises(InvalidModule):
        blobs.put(1, SHA, 0, b"x" * 100, 100)
    assert _put(blobs, DATA) == SHA


def test_users_do_not_see_each_others_modules(tmp_path: Path) -> None:
    """Naming the hash of somebody else's module opens nothing."""
    blobs = _blobs(tmp_path)
    _put(blobs, DATA, uid=1)
    with pytest.raises(NotFound) as caught:
        blobs.open(2, SHA)
    assert caught.value.would_change[0]["call"] == "chassis.put_blob"


def test_quota_counts_unfinished_uploads(tmp_path: Path) -> None:
    """A thousand begun uploads fill the quota like one finished one, and another user's stays untouched."""
    blobs = _blobs(tmp_path, per_uid=100_000)
    blobs.put(1, "a" * 64, 0, b"x" * 40_000, 90_000)
    with pytest.raises(LimitExceeded) as caught:
        blobs.put(1, "b" * 64, 0, b"x" * 40_000, 90_000)
    assert caught.value.data["limit"] == "blob_bytes_per_uid"
    blobs.put(2, "b" * 64, 0, b"x" * 40_000, 90_000)


def test_growing_uploads_cannot_pass_the_quota_together(tmp_path: Path) -> None:
    """Uploads that each fitted when they began are stopped when together they do not."""
    blobs = _blobs(tmp_path, per_uid=100_000)
    for name in "ab":
        blobs.put(1, name * 64, 0, b"x", 60_000)
    blobs.put(1, "a" * 64, 1, b"x" * 40_000, 60_000)
    with pytest.raises(LimitExceeded):
        blobs.put(1, "b" * 64, 1, b"x" * 40_000, 60_000)


def test_bounds_on_the_host_and_on_files(tmp_path: Path) -> None:
    """All users together have a bound, and tiny files do not get around the one on bytes."""
    blobs = _blobs(tmp_path, per_uid=100_000, in_all=150_000)
    blobs.put(1, "a" * 64, 0, b"x" * 40_000, 90_000)
    blobs.put(1, "a" * 64, 40_000, b"x" * 40_000, 90_000)
    with pytest.raises(LimitExceeded) as caught:
        blobs.put(2, "a" * 64, 0, b"x" * 10_000, 90_000)
    assert caught.value.data["limit"] == "blob_bytes"
    many = _blobs(tmp_path / "many")
    for number in range(256):
        many.put(1, f"{number:064x}", 0, b"x", 2)
    with pytest.raises(LimitExceeded) as caught:
        many.put(1, "f" * 64, 0, b"x", 2)
    assert caught.value.data["limit"] == "blob_files_per_uid"


def test_room_is_made_of_modules_that_nobody_uses(tmp_path: Path) -> None:
    """Oldest first, and never one that is loaded."""
    blobs = _blobs(tmp_path)
    old, used, new = (_put(blobs, bytes([number]) * 1000) for number in range(3))
    assert blobs.make_room(1, 1000, {used, new})
    with pytest.raises(NotFound):
        blobs.open(1, old)
    assert not blobs.make_room(1, 1000, {used, new})
    assert blobs.head(1, used)[1] == 1000


def test_restart_drops_unfinished_uploads(tmp_path: Path) -> None:
    """What a crash left half way is gone, what was complete is there."""
    _put(_blobs(tmp_path), DATA)
    _blobs(tmp_path).put(1, "c" * 64, 0, b"x", 2)
    blobs = _blobs(tmp_path)
    assert blobs.put(1, "c" * 64, 1, b"x", 2).received_bytes == 0
    assert blobs.head(1, SHA)[1] == len(DATA)


@pytest.mark.parametrize(
    ("sha256", "offset", "data", "total"),
    [
        ("../../../../etc/passwd", 0, b"x", 1),
        ("A" * 64, 0, b"x", 1),
        ("a" * 64, -1, b"x", 10),
        ("a" * 64, 10, b"x", 10),
        ("a" * 64, 0, b"", 10),
        ("a" * 64, 0, b"x" * (MAX_CHUNK_BYTES + 1), 1 << 20),
        ("a" * 64, 0, b"x", 0),
        ("a" * 64 + "\n", 0, b"x", 1),
    ],
)
def test_figures_that_do_not_fit_are_refused(tmp_path: Path, sha256: str, offset: int, data: bytes, total: int) -> None:
    """No name leads out of the directory, no chunk out of the module."""
    with pytest.raises(InvalidParams):
        _blobs(tmp_path).put(1, sha256, offset, data, total)
