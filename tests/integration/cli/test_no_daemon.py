"""The four causes of "no daemon": each is told apart, and its remedy works."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ifbus.testing import daemon
from tests.integration.cli.shell import BIN, IFBUS, Ran, Shell
from tests.integration.systemd.running import IFBUSD, PATIENCE_S, running, wait_until_listening

pytestmark = pytest.mark.slow

# connect gives EPERM, everything else passes: what a sandbox around an agent does.
BLOCKED = """
import errno, os, sys
from seccompy import Action, Filter
rules = Filter(default=Action.ALLOW)
rules.errno("connect", errno.EPERM)
rules.load()
os.execv(sys.argv[1], sys.argv[1:])
"""


def _fails(ran: Ran, code: str) -> str:
    assert (ran.exit, ran.out) == (9, ""), ran
    assert ran.err.startswith(f"{code}: "), ran
    assert len(ran.err.splitlines()) == 1
    return ran.err


def test_daemon_not_running(tmp_path: Path) -> None:
    """Nothing at the places where a socket could be; starting a daemon there is the remedy."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    path = runtime / "ifbusd" / "ifbusd.sock"
    shell = Shell(path)
    environ = {"IFBUS_SOCKET": "", "XDG_RUNTIME_DIR": str(runtime)}
    said = _fails(shell("task", "ls", env=environ), "daemon_not_running")
    assert str(path) in said
    assert "/run/ifbusd/ifbusd.sock" in said
    remedy = said.split("try: ")[1].split(" | ")[-1].strip()
    assert remedy == "ifbusd --dev"
    with running([BIN / remedy.split()[0], *remedy.split()[1:]], shell.environ(environ)):
        wait_until_listening(path)
        assert shell("task", "ls", env=environ).exit == 0


def test_daemon_dead_socket(tmp_path: Path) -> None:
    """A socket that a killed daemon left is told apart from none; a new daemon takes it over."""
    path = tmp_path / "ifbusd.sock"
    shell = Shell(path)
    with running([IFBUSD, "--dev", "--socket", path]) as daemon:
        wait_until_listening(path)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    said = _fails(shell("task", "ls"), "daemon_dead_socket")
    assert str(path) in said
    remedy = said.split("try: ")[1].split()
    assert remedy == ["ifbusd", "--dev", "--socket", str(path)]
    with running([IFBUSD, *remedy[1:]]):
        deadline = time.monotonic() + PATIENCE_S
        while (ran := shell("task", "ls")).exit == 9:
            assert time.monotonic() < deadline, ran
        assert ran.exit == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to call as another user")
def test_socket_denied(open_directory: Path) -> None:
    """Who is not in the socket's group reads that, and gets in as a member."""
    path = open_directory / "ifbusd.sock"
    shell = Shell(path)

    with running([IFBUSD, "--dev", "--socket", path]):
        wait_until_listening(path)
        os.chown(path, 0, 4343)
        os.chmod(path, 0o660)
        said = _fails(shell.as_user(4242, [], "task", "ls"), "socket_denied")
        assert "uid 4242" in said
        assert "not in group 4343" in said
        assert "usermod -aG 4343" in said
        # What `usermod` and a new login come to.
        assert shell.as_user(4242, [4343], "task", "ls").exit == 0


def test_socket_blocked() -> None:
    """A sandbox that forbids connect is not reported as a missing daemon; outside of it the command works."""
    with daemon() as there:
        shell = Shell(there.socket)
        done = subprocess.run(
            [sys.executable, "-c", BLOCKED, str(IFBUS), "task", "ls"],
            env=shell.environ(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said = _fails(Ran(done.returncode, done.stdout, done.stderr), "socket_blocked")
        assert "daemon may be well" in said
        remedy = said.split("try: ")[1].strip()
        assert remedy == "ifbus run --fd --swarm NAME -- COMMAND"
        words = remedy.replace("NAME", "shut-in").replace("COMMAND", "").split()[1:]
        twice = 'ifbus task add "from inside" && ifbus task ls'
        inside = shell(*words, sys.executable, "-c", BLOCKED, "/bin/sh", "-c", twice)
        assert inside.exit == 0, inside
        assert inside.out.count("from inside") == 1


def test_json_tells_the_cause_too(tmp_path: Path) -> None:
    """A program reads the same cause as a code, with what would change it."""
    path = tmp_path / "none.sock"
    ran = Shell(path)("task", "ls", "--json")
    assert ran.exit == 9
    assert ran.error["code"] == "daemon_not_running"
    assert any(change.get("call") == f"ifbusd --dev --socket {path}" for change in ran.error["would_change"])


def test_a_path_that_is_no_socket_is_said(tmp_path: Path) -> None:
    """A file at the path is no ifbusd, and the answer does not claim otherwise."""
    file = tmp_path / "file"
    file.touch()
    assert "is no socket" in _fails(Shell(file)("status"), "daemon_dead_socket")


def test_no_daemon(tmp_path: Path) -> None:
    """What is none of the four causes keeps the kernel's own words: here a socket of another type."""
    path = tmp_path / "datagram.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert os.strerror(errno.EPROTOTYPE) in _fails(Shell(path)("status"), "no_daemon")


def test_protocol_error(tmp_path: Path) -> None:
    """A stranger's server at the path is told apart from ifbusd; with the right path the command works."""
    path = tmp_path / "stranger.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = subprocess.Popen(
            [IFBUS, "status"], env=Shell(path).environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"\xc1")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("protocol_error: ")
    remedy = err.split("try: ")[1].strip()
    with daemon() as there:
        assert Shell(there.socket).type(remedy).exit == 0
