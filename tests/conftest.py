"""Fixtures for every test: the real servers, started once per run by the first test that asks."""

from collections.abc import Iterator

import pytest

from tests.servers import run_etcd, run_nats


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
