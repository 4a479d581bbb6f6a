"""One running chassis per test that asks for it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.chassis.harness import Harness, running


@pytest.fixture
async def chassis(tmp_path: Path) -> AsyncIterator[Harness]:
    """A chassis with the default policy and an empty state directory."""
    async with running(tmp_path / "state") as harness:
        yield harness
