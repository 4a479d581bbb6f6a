"""A real daemon for the tests of one module; each test makes its own tasks and swarms."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ifbus.testing import daemon
from tests.integration.cli.shell import Shell


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    """Types commands at a daemon that the module's tests share."""
    with daemon() as running:
        yield Shell(running.socket)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other users may enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="ifbus-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


_NUMBERS = itertools.count(1)


@pytest.fixture
def new_swarm(shell: Shell) -> Callable[..., Shell]:
    """Registers a swarm that no other test has; a shell that acts for it."""

    def register(*words: str, can: str = "docs:writing") -> Shell:
        name = f"swarm-{next(_NUMBERS)}"
        ran = shell("swarm", "register", name, "--can", can, *words)
        assert ran.exit == 0, ran
        return shell.as_swarm(name)

    return register


@pytest.fixture
def me(new_swarm: Callable[..., Shell]) -> Shell:
    """A swarm with a dollar that can write documentation."""
    return new_swarm("--budget-usd", "1")
