"""One fixture builds the world."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio.testing

from tests.integration.coordinator.world import World, open_world


@pytest.fixture
async def world(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> AsyncIterator[World]:
    """A fresh coordinator under an autojump clock."""
    async with open_world(tmp_path) as opened:
        yield opened
