"""The world that most tests of the governor begin with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.governor.world import World, open_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A governor with the default policy and nobody registered."""
    async with open_world(tmp_path) as opened:
        yield opened
