"""One fixture builds the world. A test in which time passes also asks for pytest-trio's `autojump_clock`: no thread takes part here."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import CodeType

import pytest

from tests.integration.coordinator.world import World, open_world

ON_ETCD = pytest.param("etcd", marks=pytest.mark.slow)


# With a server behind the store a test can neither make time pass nor know when nothing moves any more.
NEEDS_ONE_HOST = frozenset({"wait_all_tasks_blocked", "checkpoint", "_apply"})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Everything that a real etcd can keep up with runs on one, too."""
    if "world" in metafunc.fixturenames:
        is_timed = {"autojump_clock", "mock_clock"} & set(metafunc.fixturenames)
        on_etcd = [] if is_timed or NEEDS_ONE_HOST & names_in(metafunc.function.__code__) else [ON_ETCD]
        metafunc.parametrize("world", ["embedded", *on_etcd], indirect=True)


def names_in(code: CodeType) -> set[str]:
    """What a function and those inside it call by name."""
    inner = (names_in(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


@pytest.fixture
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A fresh coordinator."""
    etcd = request.getfixturevalue("etcd_endpoint") if request.param == "etcd" else ""
    async with open_world(tmp_path, etcd=etcd) as opened:
        yield opened
