"""A real daemon that the tests of one module share; each test makes its own tasks and swarms, with a capability of its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Iterator

import anyio
import attrs
import pytest

from ifbus.sync import Client
from ifbus.testing import Daemon, daemon

# Longer than anything here takes: only a test that fails waits for so long.
PATIENCE_S = 120.0
_NUMBERS = itertools.count(1)


@attrs.frozen(kw_only=True)
class World:
    """A daemon, a client that is nobody, and names that no other test has."""

    daemon: Daemon
    bus: Client
    swarm: str
    skill: str

    def add(self, title: str = "x", **more: object) -> str:
        """A task that only this test's swarms can do."""
        return self.bus.create_task(title, capabilities=[self.skill], **more).task_id  # type: ignore[arg-type]

    def state(self, task_id: str) -> str:
        """What state a task is in."""
        return self.bus.get_task(task_id).state

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when it holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def wait_for_state(self, task_id: str, state: str) -> None:
        """Return when a task is in that state."""
        self.wait_for(lambda: self.state(task_id) == state)


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    """The module's daemon."""
    with daemon() as running:
        yield running


def _world(running: Daemon) -> Iterator[World]:
    number = next(_NUMBERS)
    with Client(running.socket) as bus:
        yield World(daemon=running, bus=bus, swarm=f"swarm-{number}", skill=f"test:skill-{number}")


@pytest.fixture
def world(shared_daemon: Daemon) -> Iterator[World]:
    """The module's daemon, with this test's names."""
    yield from _world(shared_daemon)


@pytest.fixture
def own_world() -> Iterator[World]:
    """A daemon of the test's own, to stop and kill."""
    with daemon() as running:
        yield from _world(running)


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Runs a test's coroutine on one of the two."""

    def run(test: Callable[[], Awaitable[None]]) -> None:
        async def within_time() -> None:
            with anyio.fail_after(PATIENCE_S):
                await test()

        anyio.run(within_time, backend=request.param)

    return run
