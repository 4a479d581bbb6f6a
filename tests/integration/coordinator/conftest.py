"""One fixture builds the world. A test in which time passes also asks for pytest-trio's `autojump_clock`: no thread takes part here."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.coordinator.world import World, open_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A fresh coordinator."""
    async with open_world(tmp_path) as opened:
        yield opened
