"""Holders of claims as processes of their own: each claims in the way it is told, and then ends as it is told.

``python -m tests.proof.binding_actor SOCKET`` reads one case a line, ``BINDING TASK LEASE_MS``, and forks a holder for it (forking is what
makes hundreds of cases cheap). The holder answers with one line, ``PID TOKEN``. Then it does what the signal says: SIGUSR1 exits,
SIGUSR2 becomes another program, SIGHUP forks and leaves its child behind.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import Any, Never

from tests.proof.plain import Plain

SWARM = "holder"
# A holder whose test has died must not stay.
_LIFETIME_S = 120


def _claim(bus: Plain, task_id: str, lease_ms: int, bind: str) -> int:
    answer = bus.ask("coordinator.claim_task", task_id=task_id, swarm_id=SWARM, lease_ms=lease_ms, bind=bind)
    assert answer.error is None, answer
    token: int = answer.result["claim"]["token"]
    return token


def _tell(pid: int, token: int) -> None:
    os.write(1, f"{pid} {token}\n".encode())


def _stay() -> Never:
    """Do what the signals say until one ends us."""
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
    signal.signal(signal.SIGUSR2, lambda *_: os.execvp("sleep", ["sleep", str(_LIFETIME_S)]))
    signal.signal(signal.SIGHUP, lambda *_: os.fork() and os._exit(0))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ends_at = time.monotonic() + _LIFETIME_S
    while time.monotonic() < ends_at:
        time.sleep(1)
    os._exit(1)


def _by_itself(path: str, task_id: str, lease_ms: int, bind: str) -> Never:
    bus = Plain.at(path)
    os.set_inheritable(bus.sock.fileno(), True)  # what it becomes by `exec` keeps the connection
    _tell(os.getpid(), _claim(bus, task_id, lease_ms, bind))
    _stay()


def _by_a_command(path: str, task_id: str, lease_ms: int) -> Never:
    """A command claims for its parent and ends."""
    owner = os.getpid()
    read, write = os.pipe()
    command = os.fork()
    if not command:
        with Plain.at(path) as bus:
            os.write(write, str(_claim(bus, task_id, lease_ms, f"pid:{owner}")).encode())
        os._exit(0)
    os.waitpid(command, 0)
    os.close(write)
    _tell(owner, int(os.read(read, 32)))
    _stay()


def _by_a_supervisor(path: str, task_id: str, lease_ms: int) -> Never:
    """A supervisor claims for its child, and hands that over by descriptor."""
    worker = os.fork()
    if not worker:
        _stay()
    pidfd = os.pidfd_open(worker)
    with Plain.at(path) as bus:
        assert bus.ask("daemon.expect_process").result is True
        socket.send_fds(bus.sock, [b"\x93\x02\xa9$/process\x90"], [pidfd])
        token = _claim(bus, task_id, lease_ms, "handed")
    _tell(worker, token)
    os.waitpid(worker, 0)
    os._exit(0)


def _in_a_session(path: str, task_id: str, lease_ms: int) -> Never:
    bus = Plain.at(path)
    name = f"of-{task_id}"
    assert bus.ask("coordinator.register_swarm", swarm_id=name, lease_ms=lease_ms, bind="process").error is None
    answer = bus.ask("coordinator.claim_task", task_id=task_id, swarm_id=name)
    _tell(os.getpid(), answer.result["claim"]["token"])
    _stay()


def main(path: str) -> None:
    """Fork a holder for each line."""
    # Blocked until a holder is ready for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP})
    holders: dict[str, Any] = {
        "process": lambda *case: _by_itself(*case, "process"),
        "connection": lambda *case: _by_itself(*case, "connection"),
        "lease": lambda *case: _by_itself(*case, "lease"),
        "ancestor": _by_a_command,
        "handed": _by_a_supervisor,
        "session": _in_a_session,
    }
    for line in sys.stdin:
        binding, task_id, lease_ms = line.split()
        if not os.fork():
            try:
                holders[binding](path, task_id, int(lease_ms))
            finally:
                os._exit(1)  # nobody returns, and whoever fails must not go on as its parent
        while True:  # those that have ended meanwhile; the others stay zombies until the next case
            try:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                break


if __name__ == "__main__":
    main(sys.argv[1])
