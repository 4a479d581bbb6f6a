"""Settings and fixtures for every test; the real servers start once per run, when a test first asks."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.servers import run_etcd, run_nats

# A deadline per example would be a timed assertion: it fails on a busy machine, not on a wrong program.
settings.register_profile("ifbusd", deadline=None, print_blob=True)
settings.load_profile("ifbusd")


@pytest.fixture(scope="session")
def etcd_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a real etcd that all tests of the run share: use keys of your own."""
    with run_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server.address


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real NATS server that all tests of the run share: use subjects of your own."""
    with run_nats(tmp_path_factory.mktemp("nats")) as server:
        yield f"nats://{server.address}"
