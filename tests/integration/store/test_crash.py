"""SIGKILL at any moment loses nothing that was acknowledged (promise 2)."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifbusd.store.base import Store
from ifbusd.store.chain import GENESIS, entry_hash
from ifbusd.store.config import EmbeddedConfig
from ifbusd.store.embedded import EmbeddedStore
from tests.conformance.backends import boottime_ms, running, wall_ms

KILLS = 20
ROOT = Path(__file__).parents[3]


def write_and_kill(directory: Path, first: int, kill_after: int) -> list[int]:
    """Run the writing process and kill it once it has said this much; what it had said by then."""
    command = [sys.executable, "-m", "tests.integration.store.writer_process", str(directory), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(kill_after)]
        process.kill()
        said += process.stdout.readlines()
    assert process.returncode == -9
    return [int(line) for line in said if line.endswith(b"\n")]


async def all_keys(store: Store) -> set[int]:
    """The numbers written, each checked to be whole."""
    found, after = set(), ""
    while True:
        page = await store.range("k/", after=after)
        for item in page.items:
            assert item.value == item.key[2:].encode() * 50
            found.add(int(item.key[2:]))
        if not page.has_more:
            return found
        after = page.items[-1].key


async def check_log(store: Store, numbers: set[int]) -> None:
    """The chain is whole, and has one record for every write."""
    previous, seq, revision, recorded = GENESIS, 0, 0, set()
    while entries := await store.read_log(after_seq=seq):
        for entry in entries:
            assert entry.seq == seq + 1
            assert entry.revision > revision
            assert entry.hash == entry_hash(previous, *entry[:4])
            previous, seq, revision = entry.hash, entry.seq, entry.revision
            assert int(entry.record) not in recorded
            recorded.add(int(entry.record))
    assert recorded == numbers
    assert await store.log_head() == (seq, previous)
    assert revision == store.revision


@pytest.mark.slow
@settings(max_examples=1, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moments=st.lists(st.integers(1, 300), min_size=KILLS, max_size=KILLS))
def test_nothing_acknowledged_is_lost(tmp_path: Path, moments: list[int]) -> None:
    """After each of many kills, under eight writers, all acknowledged writes and their records are there, whole."""
    import trio

    acknowledged: set[int] = set()
    first = 0

    async def verify() -> int:
        store = EmbeddedStore(tmp_path / "ifbusd.db", config=EmbeddedConfig(), now_ms=wall_ms, boottime_ms=boottime_ms)
        async with running(store):
            found = await all_keys(store)
            assert acknowledged <= found
            await check_log(store, found)
            return max(found) // 8 * 8 + 8

    for moment in moments:
        acknowledged |= set(write_and_kill(tmp_path, first, moment))
        first = trio.run(verify)
