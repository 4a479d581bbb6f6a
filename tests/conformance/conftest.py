"""The store under test, once per backend."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ifbusd.store.base import Store
from tests.conformance.backends import BACKENDS, Backend, etcd


@pytest.fixture(params=[*BACKENDS, pytest.param("etcd", marks=pytest.mark.slow)])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    """A running store; tests use keys of their own and only compare revisions with revisions."""
    if request.param == "etcd":
        opened = etcd(tmp_path, request.getfixturevalue("etcd_endpoint"))
    else:
        opened = BACKENDS[request.param](tmp_path)
    async with opened as running_backend:
        yield running_backend


@pytest.fixture
def store(backend: Backend) -> Store:
    """The backend's store."""
    return backend.store
