"""The socket that a service manager passes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ifbus.errors import ConfigInvalid
from ifbusd.activation import inherited_listener


def environ(**changes: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "ifbusd.socket", **changes}


def test_a_listening_socket_is_taken_over(tmp_path: Path) -> None:
    """The descriptor becomes ours, is not inherited further, and the variables are gone."""
    passed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    passed.bind(str(tmp_path / "s"))
    passed.listen()
    os.set_inheritable(passed.fileno(), True)
    variables = environ()
    listener = inherited_listener(variables, first_fd=passed.detach())
    assert listener is not None
    with listener:
        assert listener.getsockname() == str(tmp_path / "s")
        assert not listener.get_inheritable()
    assert variables == {}


@pytest.mark.parametrize("changes", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": "0"}, {"LISTEN_FDS": ""}])
def test_what_was_passed_to_another_process_is_not_ours(changes: dict[str, str]) -> None:
    """Variables that a parent left behind mean nothing; they are removed all the same."""
    variables = environ(**changes)
    assert inherited_listener(variables) is None
    assert variables == {}


def test_several_sockets_are_refused() -> None:
    """Which of them would be ours cannot be guessed."""
    with pytest.raises(ConfigInvalid, match="expected 1, got LISTEN_FDS='2'"):
        inherited_listener(environ(LISTEN_FDS="2"))


@pytest.mark.parametrize(
    ("family", "kind"),
    [(socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_STREAM)],
    ids=["datagram", "not listening", "internet"],
)
def test_a_socket_of_another_kind_is_refused(family: socket.AddressFamily, kind: socket.SocketKind) -> None:
    """Only a listening Unix stream socket carries the kernel's word about the peer."""
    with pytest.raises(ConfigInvalid, match="listening Unix stream socket"):
        inherited_listener(environ(), first_fd=socket.socket(family, kind).detach())


def test_a_descriptor_that_is_not_open_is_refused() -> None:
    """A wrong promise of the manager is named."""
    with pytest.raises(ConfigInvalid, match="descriptor 9999"):
        inherited_listener(environ(), first_fd=9999)
