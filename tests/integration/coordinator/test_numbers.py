"""Task numbers that several daemons give out, on a real store."""

from __future__ import annotations

from pathlib import Path

import trio

from ifbusd.coordinator.numbers import Numbers
from tests.conformance.backends import embedded


async def test_who_takes_many_hardly_ever_asks_the_store(tmp_path: Path) -> None:
    """The numbers follow one another, and blocks grow: a thousand take ten commits."""
    async with embedded(tmp_path) as backend:
        numbers = Numbers(backend.store)
        before = backend.store.revision
        assert [n for _ in range(1_000) for n in await numbers.take(1)] == list(range(1, 1_001))
        assert backend.store.revision - before == 11


async def test_no_number_is_given_out_twice(tmp_path: Path) -> None:
    """Several who take at the same time, one or many, each from a Numbers of its own as on several hosts."""
    async with embedded(tmp_path) as backend:
        taken: list[int] = []

        async def take(numbers: Numbers, count: int) -> None:
            for _ in range(20):
                taken.extend(await numbers.take(count))

        async with trio.open_nursery() as nursery:
            for numbers in (Numbers(backend.store), Numbers(backend.store), Numbers(backend.store)):
                for count in (1, 1, 7):
                    nursery.start_soon(take, numbers, count)
        assert len(taken) == len(set(taken)) == 3 * 20 * 9
