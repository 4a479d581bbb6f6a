"""The errors that no ordinary command meets: a daemon that is full, stopped or ending, guests, foreign programs, a lost lease."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from ifbus.testing import daemon
from tests.integration.cli.shell import PATIENCE_S, Ran, Shell
from tests.integration.cli.withheld import withholding_the_second_answer
from tests.integration.systemd.running import IFBUSD, Caller

pytestmark = pytest.mark.slow
GUESTS = Path(__file__).parents[2] / "guests"

# A worker of the client library, whose daemon stops answering while it works.
LOSES_ITS_LEASE = """
import os, signal, sys, time, ifbus
with ifbus.Client() as bus, bus.register(os.environ["IFBUS_SWARM"], lease_ms=3000) as swarm:
    claim = swarm.claim(sys.argv[1])
    os.kill(int(sys.argv[2]), signal.SIGSTOP)
    try:
        while True:
            claim.check()
            time.sleep(0.05)
    except ifbus.LeaseLost as error:
        print(error.code)
    finally:
        os.kill(int(sys.argv[2]), signal.SIGCONT)
"""

# Asks the daemon to stop and goes on as another program once it has begun to.
STOPS_THE_DAEMON = """
import os, signal, socket, sys
os.kill(int(sys.argv[1]), signal.SIGTERM)
while True:
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(os.environ["IFBUS_SOCKET"]):
            break
os.execvp(sys.argv[2], sys.argv[2:])
"""


def _refused(ran: Ran, code: str, exit_status: int) -> str:
    """What was said; the failure is of this kind and stdout is empty."""
    assert (ran.exit, ran.out) == (exit_status, ""), ran
    assert code in ran.err.split("    ")[0], ran
    return ran.err


def _remedy(said: str) -> str:
    """The one command that the message names."""
    (remedy,) = re.findall(r"ifbus [a-z]+[^|\n`]*", said)
    return str(remedy).strip()


def _ask(path: Path, *messages: list[Any]) -> list[Any]:
    """The answer to the first of some raw messages."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(path))
        answers = msgpack.Unpacker(raw=False)
        for message in messages:
            connection.sendall(msgpack.packb(message))
        while True:
            for answer in answers:
                if answer[:2] == [1, messages[0][1]]:
                    return list(answer)
            data = connection.recv(65536)
            assert data, "the daemon closed the connection"
            answers.feed(data)


# --- foreign programs --------------------------------------------------------------------------------


def test_version_mismatch(shell: Shell) -> None:
    """A client of another age hears both sides' versions and which daemon it is."""
    _, _, error, _ = _ask(shell.socket_path, [0, 1, "daemon.hello", [{"protocol": [99], "client": "from the future"}]])
    assert (error["code"], error["data"]["client_protocol"]) == ("version_mismatch", [99])
    assert "speaks protocol 99" in error["message"]


def test_invalid_request(shell: Shell) -> None:
    """MessagePack that is no request is answered, and the connection goes on."""
    _, _, error, _ = _ask(shell.socket_path, [0, 1, 5, []])
    assert error["code"] == "invalid_request"
    assert shell("help", "invalid_request").exit == 0


def test_cancelled(shell: Shell) -> None:
    """A request that its caller gives up is answered as that."""
    shell("swarm", "register", "fickle", "--can", "never:asked")
    waiting = [0, 1, "coordinator.claim_next", [{"swarm_id": "fickle", "wait_ms": 60_000}]]
    _, _, error, _ = _ask(shell.socket_path, waiting, [2, "$/cancel", [1]])
    assert error["code"] == "cancelled"


# --- configuration -----------------------------------------------------------------------------------


def test_config_invalid(tmp_path: Path) -> None:
    """An unknown key is named with its line and the nearest one; with that one the check passes."""
    config = tmp_path / "ifbusd.toml"
    config.write_text("[coordinator]\nlease_ttl_ms = 20000\n", encoding="utf-8")
    check = [str(IFBUSD), "--check-config", "--config", str(config)]
    wrong = subprocess.run(check, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert wrong.returncode == 2, wrong
    said = wrong.stdout + wrong.stderr
    assert "line 2" in said
    assert "lease_ttl_ms" in said
    assert "lease_ms" in said
    config.write_text("[coordinator]\nlease_ms = 20000\n", encoding="utf-8")
    assert subprocess.run(check, capture_output=True, timeout=PATIENCE_S, check=False).returncode == 0


# --- the moment --------------------------------------------------------------------------------------


def test_overloaded(tmp_path: Path) -> None:
    """Beyond a quota the command says what is full; once there is room it goes through."""
    config = tmp_path / "tiny.toml"
    config.write_text("[rpc]\nconnections_per_uid = 1\n", encoding="utf-8")
    with daemon(config=config) as there:
        shell = Shell(there.socket)
        with Caller(there.socket) as other:
            other.call("daemon.ping")
            said = _refused(shell("task", "add", "squeezed in"), "overloaded", 10)
        assert "1 of 1" in said
        assert shell.type(_remedy(said)).exit == 0


def test_unavailable(tmp_path: Path) -> None:
    """A daemon that is stopping takes nothing new; with the same key the command goes through at the next one."""
    config = tmp_path / "patient.toml"
    config.write_text("[daemon]\ngrace_ms = 60000\n", encoding="utf-8")
    state = tmp_path / "state"
    with daemon(config=config, state_dir=state) as there:
        shell = Shell(there.socket)
        shell("swarm", "register", "patient", "--can", "never:asked")
        with socket.socket(socket.AF_UNIX) as waiting, Caller(there.socket) as other:
            # Something under way keeps the daemon in its grace.
            waiting.connect(str(there.socket))
            waiting.sendall(
                msgpack.packb([0, 1, "coordinator.claim_next", [{"swarm_id": "patient", "wait_ms": 60_000}]])
            )
            while other.call("daemon.status")["coordinator"]["waiting"] == 0:
                pass
            # Its socket is closed to newcomers by then, so the command uses a connection that was there before.
            program = [sys.executable, "-c", STOPS_THE_DAEMON, str(there.pid), "ifbus", "task", "add", "in between"]
            ran = shell("run", "--fd", "--swarm", "inside", "--", *program)
            assert ran.exit == 10, ran
            assert "unavailable: " in ran.err
    with daemon(state_dir=state) as there:
        shell = Shell(there.socket)
        said = ran.err[ran.err.index("unavailable: ") :]
        assert shell.type(_remedy(said.splitlines()[1])).exit == 0
        assert shell("task", "ls", "--grep", "in between", "-q").out.count("\n") == 1


def test_deadline_exceeded(tmp_path: Path) -> None:
    """A daemon that hangs is told apart from none; what it did before it hung is found by the key that the message names."""
    with daemon() as there:
        shell = Shell(there.socket)
        os.kill(there.pid, signal.SIGSTOP)
        said = _refused(shell("task", "ls"), "deadline_exceeded", 10)
        os.kill(there.pid, signal.SIGCONT)
        assert shell.type(_remedy(said)).exit == 0
        with withholding_the_second_answer(there.socket, tmp_path / "slow.sock", hangs_up=False) as slow:
            said = _refused(Shell(slow)("task", "add", "made once"), "deadline_exceeded", 10)
        assert shell.type(f"{_remedy(said)} --json").data["receipt"]["replayed"] is True


def test_lease_lost(me: Shell) -> None:
    """A holder that cannot renew is told to stop; the remedy finds what there is to do now."""
    with daemon() as there:
        mine = Shell(there.socket, swarm="shaky")
        mine("swarm", "register", "shaky", "--can", "docs:writing")
        task_id = mine.new_task("held in vain", "--need", "docs:writing")
        program = [sys.executable, "-c", LOSES_ITS_LEASE, task_id, str(there.pid)]
        done = subprocess.run(
            program, env=mine.environ(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.stdout == "lease_lost\n", done
        assert mine("task", "next", "--wait", "30s").out.startswith(f"{task_id}@")


# --- guests ------------------------------------------------------------------------------------------


def _upload(path: Path, data: bytes) -> str:
    """Put a module's bytes into the daemon; its address."""
    sha256 = hashlib.sha256(data).hexdigest()
    with Caller(path) as caller:
        caller.call("chassis.put_blob", sha256=sha256, offset=0, data=data, total_bytes=len(data))
    return sha256


def _load(shell: Shell, swarm: Shell, sha256: str, **contract: Any) -> Ran:
    params = {"swarm_id": swarm.swarm, "contract": {"module_sha256": sha256, "kind": "core", **contract}}
    return shell("rpc", "chassis.load_swarm", json.dumps(params), "--wait", "170s")


def _execute(shell: Shell, swarm: Shell, *args: int) -> Ran:
    return shell("rpc", "chassis.execute_task", json.dumps({"swarm_id": swarm.swarm, "input": {"args": args}}))


def test_guest_failed(me: Shell, shell: Shell) -> None:
    """A guest's own failure says what it was; mended, here by another export, it works."""
    sha256 = _upload(shell.socket_path, (GUESTS / "core.wasm").read_bytes())
    assert _load(shell, me, sha256, export="divide").exit == 0
    said = _refused(_execute(shell, me, 0), "guest_failed", 3)
    assert "division by zero" in said
    assert _execute(shell, me, 1).exit == 0


def test_limit_exceeded(me: Shell, shell: Shell) -> None:
    """A guest that is stopped hears by which limit; within it the same module works."""
    sha256 = _upload(shell.socket_path, (GUESTS / "core.wasm").read_bytes())
    assert _load(shell, me, sha256, export="spin", limits={"wall_ms": 100}).exit == 0
    said = _refused(_execute(shell, me), "limit_exceeded", 3)
    assert "100 ms" in said
    assert _load(shell, me, sha256, export="nothing", limits={"wall_ms": 2_000}).exit == 0
    assert _execute(shell, me).exit == 0


def test_compile_limit(tmp_path: Path) -> None:
    """A module that is too much for its profile is refused; the larger profile of the policy takes it."""
    data = _many_functions(60_000)
    config = tmp_path / "profiles.toml"
    config.write_text(
        "[chassis.profiles.default]\neverybody = true\nmodule_bytes = 8388608\ncpu_s = 1\nwall_s = 1\n"
        "[chassis.profiles.large]\neverybody = true\nmodule_bytes = 8388608\ncpu_s = 60\nwall_s = 170\n",
        encoding="utf-8",
    )
    with daemon(config=config) as there:
        shell = Shell(there.socket)
        shell("swarm", "register", "heavy", "--can", "a:b")
        me = shell.as_swarm("heavy")
        sha256 = hashlib.sha256(data).hexdigest()
        with Caller(there.socket) as caller:
            for at in range(0, len(data), 48 << 10):
                chunk = data[at : at + (48 << 10)]
                caller.call("chassis.put_blob", sha256=sha256, offset=at, data=chunk, total_bytes=len(data))
        said = _refused(_load(shell, me, sha256), "compile_limit", 3)
        assert "ifbus" not in said
        assert _load(shell, me, sha256, profile="large").exit == 0


def _many_functions(number: int) -> bytes:
    """A valid module with so many functions of some arithmetic each."""

    def leb(value: int) -> bytes:
        out = bytearray()
        while True:
            byte, value = value & 0x7F, value >> 7
            out.append(byte | (0x80 if value else 0))
            if not value:
                return bytes(out)

    def section(kind: int, content: bytes) -> bytes:
        return bytes([kind]) + leb(len(content)) + content

    code = b"\x00" + b"\x20\x00\x41\x07\x6c\x20\x00\x6a" + b"\x41\x03\x6c\x20\x00\x73" * 12 + b"\x0b"
    body = leb(len(code)) + code
    return (
        b"\0asm\x01\0\0\0"
        + section(1, b"\x01\x60\x01\x7f\x01\x7f")
        + section(3, leb(number) + b"\0" * number)
        + section(7, b"\x01\x03run\x00\x00")
        + section(10, leb(number) + body * number)
    )
