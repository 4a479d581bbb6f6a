"""What the service manager hears."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ifbusd.sdnotify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify")
    shown, address = (name, name) if request.param == "path" else (f"@{name}", f"\0{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        yield shown, listener


def test_messages_reach_the_manager(manager: tuple[str, socket.socket]) -> None:
    """Ready, status, alive and stopping arrive in this order at a path and at an abstract socket."""
    name, listener = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": name})
    notifier.ready("listening on /s")
    notifier.status("busy")
    notifier.alive()
    notifier.stopping()
    received = [listener.recv(1000).decode().splitlines() for _ in range(4)]
    assert received == [
        ["READY=1", "STATUS=listening on /s", f"MAINPID={os.getpid()}"],
        ["STATUS=busy"],
        ["WATCHDOG=1"],
        ["STOPPING=1", "STATUS=stopping"],
    ]


def test_variables_are_taken_over() -> None:
    """No child process inherits the right to speak for the daemon."""
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    assert Notifier.from_environ(environ).watchdog_interval_s() == pytest.approx(10 / 3)
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "/x"},
        {"WATCHDOG_USEC": "10"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"},
    ],
)
def test_no_watchdog_without_a_manager_that_expects_it(environ: dict[str, str]) -> None:
    """A period without a socket, for another process or that is no number is none."""
    assert Notifier.from_environ(dict(environ)).watchdog_interval_s() is None


def test_a_failure_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manager that went away is reported, but not at each beat."""
    notifier = Notifier(str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING):
        notifier.alive()
        notifier.alive()
    assert [entry.message for entry in caplog.records] == ["cannot notify the service manager"]


def test_without_a_manager_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    """In the foreground the notifier is silent."""
    Notifier(None).ready("listening")
    assert not caplog.records
