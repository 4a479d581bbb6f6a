"""No code without a test that meets it: the promise behind the catalogue's remedies."""

from types import ModuleType

import pytest

from ifbus.catalogue import CATALOGUE
from tests.integration.cli import test_no_daemon, test_rare_remedies, test_remedies, test_tool

# Where codes are provoked: a test named after its code, which types the remedy and sees the error gone.
PROVOKED_IN: tuple[ModuleType, ...] = (test_remedies, test_rare_remedies, test_no_daemon, test_tool)

NOT_PROVOKED = {
    "internal": "a bug of ours that a test could provoke would be mended instead",
}

# Remedies that no test types, by code.
NOT_TYPED = {
    "cancelled": "whoever gave the request up wants nothing more of it",
    "daemon_dead_socket": "journalctl and systemctl are the host's; the daemon that is started by hand instead is typed",
    "daemon_not_running": "systemctl is the host's; `ifbusd --dev`, which stands beside it, is typed",
    "internal": "journalctl is the host's",
    "invalid_request": "no command sends such a message; the program that did must be mended",
    "socket_denied": "usermod changes this host's users; the test joins the group as a new login would",
    "version_mismatch": "systemctl is the host's, and the other version of the protocol does not exist yet",
}


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_code_is_provoked_or_excused(code: str) -> None:
    """Each code has a test of its name, or a reason why it cannot have one."""
    tests = [module for module in PROVOKED_IN if hasattr(module, f"test_{code}")]
    assert len(tests) == (0 if code in NOT_PROVOKED else 1)


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_foreign_remedy_is_excused(code: str) -> None:
    """A remedy of another program than ours is in the catalogue only with a reason why no test types it."""
    foreign = [remedy for remedy in CATALOGUE[code].remedies if remedy.split()[0] not in ("ifbus", "ifbusd", "id")]
    assert not foreign or code in NOT_TYPED


def test_excuses_are_of_codes_that_exist() -> None:
    """An excuse outlives its code by no day."""
    assert {*NOT_PROVOKED, *NOT_TYPED} <= set(CATALOGUE)
