"""Fixtures of the proofs: a seed that can be given again, and a place for the result."""

import pytest

from tests.proof.records import Proof
from tests.proof.sizes import seed_of_run


@pytest.fixture
def seed() -> int:
    """Where this test's random choices come from: `IFBUS_SEED`, or a new one; printed, so that a failure shows it."""
    chosen = seed_of_run()
    print(f"IFBUS_SEED={chosen}")
    return chosen


@pytest.fixture(scope="session")
def _taken() -> dict[str, str]:
    """The tests that have recorded something in this run, by the file name of the record."""
    return {}


@pytest.fixture
def proof(request: pytest.FixtureRequest, _taken: dict[str, str]) -> Proof:
    """Takes the result of this test: `proof.cases(promise=1, name="stale token", ran=200, violations=0, seed=seed)`."""
    return Proof(request.node.nodeid, _taken)
