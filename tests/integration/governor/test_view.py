"""The governor's view of the registry keeps up with the store, whatever its watch does."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar, Never

import pytest

from ifbus.errors import IfbusError, Unavailable
from ifbusd.governor import view
from ifbusd.store.base import Compacted, Put, Txn, Watch, WatchEvent
from ifbusd.store.embedded import EmbeddedStore
from tests.integration.governor.world import World, open_world


class FaultyWatch:
    """A real watch that loses every third batch with an error, or tells an old batch again after each new one."""

    def __init__(self, watch: Watch, error: type[IfbusError] | None) -> None:
        self._watch = watch
        self._error = error
        self._told: list[list[WatchEvent]] = []
        self._again = False

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> list[WatchEvent]:
        if self._again:
            self._again = False
            return self._told[0]
        batch = await self._watch.__anext__()
        self._told.append(batch)
        if self._error is None:
            self._again = True
        elif len(self._told) % 3 == 0:
            raise self._error("the watch has lost its place")
        return batch

    async def feed(self, apply: Callable[[list[WatchEvent]], None]) -> Never:
        while True:
            apply(await self.__anext__())


class FaultyStore(EmbeddedStore):
    """The embedded store with faulty watches."""

    error: ClassVar[type[IfbusError] | None] = None

    def watch(  # type: ignore[override]
        self, prefix: str, *, start_revision: int | None = None
    ) -> AbstractAsyncContextManager[Watch]:
        @asynccontextmanager
        async def open_watch() -> AsyncIterator[Watch]:
            async with EmbeddedStore.watch(self, prefix, start_revision=start_revision) as watch:
                yield FaultyWatch(watch, self.error)

        return open_watch()


@pytest.mark.parametrize("error", [Compacted, Unavailable, None])
async def test_a_view_gets_over_what_its_watch_lost_or_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[IfbusError] | None
) -> None:
    """A lost batch costs a new reading, an old batch told again is ignored: when a change answers, the view has it."""
    monkeypatch.setattr(FaultyStore, "error", error)
    monkeypatch.setattr(view, "RETRY_S", 0.0)
    async with open_world(tmp_path, kind=FaultyStore) as world:
        for number in range(20):
            await world.register("first", f"round:r{number}")
            await world.register(f"s-{number}", "code:python")
            assert world.governor.capabilities_of("first") == {f"round:r{number}"}
            assert len(world.governor.swarms_with(frozenset({"code:python"}))) == number + 1


async def test_a_record_that_cannot_be_read_hides_only_itself(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Foreign or damaged records are reported and left out of the view; the view goes on."""
    for value in (b"\xc1", b"\x90", b"\x80", b"\x01"):
        await world.store.txn(Txn(then=[Put("swarms/odd", value), Put("accounts/odd", value)]))
    await world.register("good", "code:python")
    assert world.governor.rank(frozenset({"code:python"}), limit=5) == ["good"]
    assert world.governor.statistics()["ignored"] == 8
    assert "cannot be read and is ignored" in caplog.text


async def test_a_view_is_complete_when_the_governor_starts(tmp_path: Path) -> None:
    """After a restart the first question sees every swarm that was registered before."""
    async with open_world(tmp_path) as world:
        await world.register("builder", "code:python")
    async with open_world(tmp_path) as world:
        assert world.governor.rank(frozenset({"code:python"}), limit=5) == ["builder"]
