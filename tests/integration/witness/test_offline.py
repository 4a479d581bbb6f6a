"""The database file of a stopped daemon, flipped, cut and replaced: every damage is found, none crashes, none is invented."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from ifbus.errors import NotFound, Unavailable
from ifbusd.witness.offline import verify_file
from tests.integration.witness.records import DATABASE, open_recorded

# Coprime to page and record sizes, so that the flips wander through every kind of byte.
STEP = 89
ENTRIES = 120


@pytest.fixture
async def stopped(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A database that was closed in order, and its last receipt."""
    async with open_recorded(tmp_path) as recorded:
        await recorded.record(ENTRIES // 2)
        receipt = await recorded.record(ENTRIES // 2, refused=True)
    return tmp_path / DATABASE, receipt


def log_pages(path: Path) -> list[int]:
    connection = apsw.Connection(str(path), vfs="unix", flags=apsw.SQLITE_OPEN_READONLY)
    pages = [int(page) for (page,) in connection.execute("select pageno from dbstat where name = 'log'")]
    connection.close()
    return pages


async def test_an_untouched_file_is_verified(stopped: tuple[Path, dict[str, Any]]) -> None:
    """A file that nobody touched has no problem, and verifying changes not one byte beside or in it."""
    path, receipt = stopped
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    answer = verify_file(path, receipt=f"{receipt['seq']}:{receipt['head'][:8]}")
    assert (answer["ok"], answer["problems"], answer["notes"]) == (True, [], [])
    assert answer["head"] == {"seq": ENTRIES, "hash": receipt["head"]}
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


@pytest.mark.slow
async def test_every_flipped_byte_of_the_log_is_found(stopped: tuple[Path, dict[str, Any]]) -> None:
    """A byte flipped anywhere in the log table's pages is found, and where it lies in an entry that entry is named."""
    path, _ = stopped
    whole = path.read_bytes()
    pages = log_pages(path)
    assert len(pages) >= 4
    offsets = [offset for page in pages for offset in range((page - 1) * 4096, page * 4096, STEP)]
    missed, named = [], 0
    for offset in offsets:
        flipped = bytearray(whole)
        flipped[offset] ^= 0x01 if offset % 2 else 0x80
        path.write_bytes(flipped)
        answer = verify_file(path)
        if answer["ok"] or not answer["problems"]:
            missed.append(offset)
        named += any(problem["seq"] for problem in answer["problems"])
    print(f"{len(offsets)} flips, {named} in entries")
    assert missed == []
    assert named > len(offsets) // 2


@pytest.mark.slow
async def test_every_flipped_byte_of_the_rest_is_found(stopped: tuple[Path, dict[str, Any]]) -> None:
    """Header, schema, keys and values are covered by the checksums of their pages; a finding names file and page."""
    path, _ = stopped
    whole = path.read_bytes()
    skip = set(log_pages(path))
    missed = []
    offsets = [*range(100), *(at for at in range(0, len(whole), 97) if at // 4096 + 1 not in skip)]
    for offset in offsets:
        flipped = bytearray(whole)
        flipped[offset] ^= 0x10
        path.write_bytes(flipped)
        answer = verify_file(path)
        if answer["ok"] or not any(DATABASE in problem["what"] for problem in answer["problems"]):
            missed.append(offset)
    assert missed == []


@pytest.mark.parametrize("size", [0, 50, 100, 4096, 5000, 3 * 4096])
async def test_a_cut_file_is_a_finding(stopped: tuple[Path, dict[str, Any]], size: int) -> None:
    """A file that was cut anywhere is told as damaged or as cut off, never a crash and never fine."""
    path, receipt = stopped
    path.write_bytes(path.read_bytes()[:size])
    answer = verify_file(path, receipt=f"{receipt['seq']}:{receipt['head']}")
    assert not answer["ok"]


async def test_something_else_is_a_finding(tmp_path: Path) -> None:
    """A file that is no database, or another program's, is told; one that is not there is refused."""
    path = tmp_path / DATABASE
    with pytest.raises(NotFound):
        verify_file(path)
    path.write_bytes(b"not a database at all " * 1000)
    assert not verify_file(path)["ok"]
    path.unlink()
    other = apsw.Connection(str(path))
    other.execute("create table recipe (text)")
    other.close()
    assert "no such table: log" in str(verify_file(path)["problems"])


async def test_what_only_the_write_ahead_log_holds_is_read(tmp_path: Path) -> None:
    """After a crash the newest entries are in the write-ahead log alone: they are verified too."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    async with open_recorded(tmp_path) as recorded:
        receipt = await recorded.record(30)
        for name in (DATABASE, f"{DATABASE}-wal"):
            shutil.copyfile(tmp_path / name, crashed / name)
    answer = verify_file(crashed / DATABASE, receipt=f"{receipt['seq']}:{receipt['head']}")
    assert (answer["ok"], answer["entries"], answer["notes"]) == (True, 30, [])
    log = crashed / f"{DATABASE}-wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    damaged = verify_file(crashed / DATABASE, receipt=f"{receipt['seq']}:{receipt['head']}")
    assert damaged["problems"][0]["what"].startswith(f"{DATABASE}-wal: frame ")
    assert "the record ends at" in damaged["problems"][-1]["what"]


async def test_a_page_that_a_crash_tore_is_no_false_alarm(stopped: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A crash while pages are copied out of the write-ahead log tears them in the file; in the log they are whole."""
    path, _ = stopped
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    async with open_recorded(path.parent) as recorded:
        receipt = await recorded.record(30)
        for name in (DATABASE, f"{DATABASE}-wal"):
            shutil.copyfile(path.parent / name, crashed / name)
    log = (crashed / f"{DATABASE}-wal").read_bytes()
    data = bytearray((crashed / DATABASE).read_bytes())
    torn = {int.from_bytes(log[at : at + 4], "big") for at in range(32, len(log), 24 + 4096)}
    for page in torn:
        data[page * 4096 - 2000 : page * 4096] = bytes(len(data[page * 4096 - 2000 : page * 4096]))
    (crashed / DATABASE).write_bytes(data)
    answer = verify_file(crashed / DATABASE, receipt=f"{receipt['seq']}:{receipt['head']}")
    assert (answer["ok"], answer["problems"], answer["entries"]) == (True, [], ENTRIES + 30)


async def test_a_consistent_forgery_of_the_file_is_found_by_a_receipt(stopped: tuple[Path, dict[str, Any]]) -> None:
    """Entries removed at the end with SQLite's own means leave no trace in the file: only the receipt shows it."""
    path, receipt = stopped
    forger = apsw.Connection(str(path), vfs="cksmvfs")
    forger.execute("delete from log where seq > 100")
    forger.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    forger.close()
    alone = verify_file(path)
    assert alone["ok"]
    assert "cut off at the end" in alone["cannot_know"][0]
    answer = verify_file(path, receipt=f"{receipt['seq']}:{receipt['head'][:8]}")
    assert [problem["seq"] for problem in answer["problems"]] == [ENTRIES]


HOLD = """
import sys, time, trio
from pathlib import Path
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore
async def main():
    store = EmbeddedStore(Path(sys.argv[1]), config=EmbeddedConfig(), now_ms=lambda: 1, boottime_ms=lambda: 1)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        print("running", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()
trio.run(main)
"""


@pytest.mark.slow
def test_the_file_of_a_running_daemon_is_left_alone(tmp_path: Path) -> None:
    """While a daemon has the file open it is not read, and the refusal names the process and what to do instead."""
    path = tmp_path / DATABASE
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdin is not None
        assert daemon.stdout.readline() == b"running\n"
        with pytest.raises(Unavailable) as refused:
            verify_file(path)
        daemon.stdin.close()
        assert daemon.wait(30) == 0
    assert refused.value.data["pid"] == daemon.pid
    assert verify_file(path)["ok"]
