"""The real daemon under a service manager, from its socket, and in the foreground."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from ifbus.connect import candidates
from tests.integration.systemd.running import IFBUSD, PATIENCE_S, Caller, Manager, running, stop, wait_until_listening

ROOT = Path(__file__).parents[3]
NOBODY = 65534
# The one capability is for an installation below root's home.
AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *(
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=-all,+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    ),
]

pytestmark = pytest.mark.slow


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: pytest's own is too long for a socket's address."""
    with tempfile.TemporaryDirectory(prefix="ifbusd-test-") as name:
        yield Path(name)


@pytest.fixture
def manager(place: Path) -> Iterator[Manager]:
    manager = Manager(place / "notify")
    yield manager
    manager.close()


def dev(place: Path) -> list[str | Path]:
    return [IFBUSD, "--dev", "--state", place / "state", "--socket", place / "s"]


def ping(path: Path) -> None:
    with Caller(path) as caller:
        caller.call("daemon.ping")


def test_ready_is_said_when_the_socket_answers(place: Path, manager: Manager) -> None:
    """Whoever is started after READY=1 gets an answer at once."""
    with running(dev(place), {**os.environ, **manager.environ}):
        manager.wait_for("READY=1")
        ping(place / "s")


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_stops_it_cleanly(place: Path, manager: Manager, by: signal.Signals) -> None:
    """STOPPING=1, exit status 0, no socket left, nothing on standard error."""
    with running(dev(place), {**os.environ, **manager.environ}) as process:
        manager.wait_for("READY=1")
        status, _, err = stop(process, by)
        assert (status, err) == (0, "")
        manager.wait_for("STOPPING=1")
        assert not (place / "s").exists()
        assert (place / "state").exists()


def test_it_drains_before_it_stops_if_configured(place: Path, manager: Manager) -> None:
    """The manager is asked for time; nothing new is given out; the last claim's end ends it, long before the grace does."""
    config = place / "ifbusd.toml"
    config.write_text("[daemon]\nsocket_group = ''\ndrain_ms = 3600000\n[coordinator]\nclock_tick_ms = 20\n")
    command = [IFBUSD, "--config", config, "--state", place / "state", "--socket", place / "s"]
    with running(command, {**os.environ, **manager.environ}) as process:
        manager.wait_for("READY=1")
        with Caller(place / "s") as caller:
            caller.call("coordinator.register_swarm", swarm_id="docs", lease_ms=3_600_000)
            for name in ("T-1", "T-2"):
                caller.call("coordinator.create_task", title=name, task_id=name)
            claim = caller.call("coordinator.claim_task", task_id="T-1", swarm_id="docs")["claim"]
            process.send_signal(signal.SIGTERM)
            said = manager.wait_for("STATUS=draining")
            assert {"STOPPING=1", "EXTEND_TIMEOUT_USEC=3605040000"} <= set(said)
            while not caller.call("daemon.status")["coordinator"]["draining"]:
                pass
            refused = caller.call("coordinator.claim_next", swarm_id="docs")
            assert refused["refusal"]["code"] == "paused"
            caller.call("coordinator.complete_task", task_id="T-1", swarm_id="docs", token=claim["token"])
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0


def test_the_watchdog_is_fed(place: Path, manager: Manager) -> None:
    """While store and loop are well, WATCHDOG=1 comes again and again."""
    with running(dev(place), {**os.environ, **manager.environ, "WATCHDOG_USEC": "300000"}):
        manager.wait_for("READY=1")
        for _ in range(3):
            manager.wait_for("WATCHDOG=1")


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
def test_it_serves_the_socket_that_the_manager_opened(place: Path, manager: Manager) -> None:
    """The first connection starts the daemon and is answered; the socket's file stays when the daemon ends."""
    activate = ["systemd-socket-activate", f"--listen={place / 's'}", "--setenv=NOTIFY_SOCKET"]
    command = [
        *activate,
        IFBUSD,
        "--config",
        ROOT / "config" / "ifbusd.toml",
        "--state",
        place / "state",
        "--socket",
        place / "never",
    ]
    with running(command, {**os.environ, **manager.environ}) as process:
        wait_until_listening(place / "s")  # by a connection, which is what starts it
        ping(place / "s")
        manager.wait_for("READY=1")
        assert not (place / "never").exists()
        status, _, err = stop(process)
        assert status == 0, err
        assert (place / "s").exists()
        # systemd-socket-activate has its own words before; then a healthy daemon logs its start and stop.
        logged = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
        assert [line["message"] for line in logged] == ["ready", "stopped"]
        assert logged[0]["state_dir"] == str(place / "state")


def test_the_first_screen(place: Path) -> None:
    """One line says that it is ready and what to type next, one where everything is; then it is silent."""
    with running(dev(place)) as process:
        assert process.stdout is not None
        ready, where = process.stdout.readline(), process.stdout.readline()
        assert ready.startswith("ifbusd ")
        assert "Ctrl-C stops it" in ready
        assert "ifbus demo" in ready
        assert f"socket {place / 's'} (export IFBUS_SOCKET={place / 's'})" in where
        assert f"state {place / 'state'}" in where
        assert "sandbox " in where
        assert "landlock" in where
        ping(place / "s")
        assert stop(process) == (0, "", "")


def test_a_foreground_daemon_leaves_nothing(place: Path) -> None:
    """Without --state, its state goes when it ends; its socket is where `ifbus` looks first."""
    runtime_dir, temporary = place / "run", place / "tmp"
    runtime_dir.mkdir(mode=0o700)
    temporary.mkdir()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(runtime_dir), "TMPDIR": str(temporary)}
    with running([IFBUSD, "--dev"], environ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert "(ifbus finds it)     state temporary (keep it: --state DIR)" in process.stdout.readline()
        path = runtime_dir / "ifbusd" / "ifbusd.sock"
        ping(path)
        assert path.parent.stat().st_mode & 0o777 == 0o700
        (state,) = temporary.iterdir()
        assert state.stat().st_mode & 0o777 == 0o700
        assert stop(process)[0] == 0
        assert not path.exists()
        assert list(temporary.iterdir()) == []


def test_without_a_runtime_directory_ifbus_finds_it_too(place: Path) -> None:
    """Where XDG_RUNTIME_DIR is not set, the daemon is where `ifbus` looks in the place for temporary files."""
    environ = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    with running([IFBUSD, "--dev"], {**environ, "TMPDIR": str(place)}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        path = place / f"ifbusd-{os.getuid()}" / "ifbusd.sock"
        assert f"socket {path} (ifbus finds it)" in process.stdout.readline()
        ping(path)
        assert candidates(None, {"TMPDIR": str(place)})[0] == str(path)


def test_nobody_reading_the_screen_is_no_failure(place: Path, manager: Manager) -> None:
    """A closed standard output (`ifbusd --dev | true`) does not stop the daemon."""
    command = ["/bin/sh", "-c", 'exec "$@" | true', "sh", *dev(place)]
    with running(command, {**os.environ, **manager.environ}):
        said = manager.wait_for("READY=1")
        (pid,) = (int(line.partition("=")[2]) for line in said if line.startswith("MAINPID="))
        ping(place / "s")
        os.kill(pid, signal.SIGTERM)
        manager.wait_for("STOPPING=1")


def test_a_second_daemon_on_the_same_state_names_the_first(place: Path, manager: Manager) -> None:
    """Two daemons never share a store: the second ends with one sentence and status 1."""
    with running(dev(place), {**os.environ, **manager.environ}) as first:
        manager.wait_for("READY=1")
        second = subprocess.run([*dev(place)[:-1], place / "s2"], capture_output=True, text=True)
        assert second.returncode == 1
        assert str(first.pid) in second.stderr
        assert len(second.stderr.splitlines()) == 1
        ping(place / "s")


def test_a_second_daemon_on_the_same_socket_is_refused(place: Path, manager: Manager) -> None:
    """A live socket is never taken over."""
    with running(dev(place), {**os.environ, **manager.environ}):
        manager.wait_for("READY=1")
        command = [IFBUSD, "--dev", "--state", place / "state2", "--socket", place / "s"]
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode in (1, 2)
        assert f"cannot listen at {place / 's'}" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        ping(place / "s")


def test_a_killed_daemon_leaves_a_socket_that_is_taken_over(place: Path, manager: Manager) -> None:
    """After SIGKILL the next start needs no cleaning up."""
    with running(dev(place), {**os.environ, **manager.environ}) as process:
        manager.wait_for("READY=1")
        process.kill()
        process.wait()
        assert (place / "s").exists()
    with running(dev(place), {**os.environ, **manager.environ}):
        manager.wait_for("READY=1")
        ping(place / "s")


def test_a_state_that_cannot_be_made_is_named(place: Path) -> None:
    """The sentence has the directory and the reason; the status is 1."""
    file = place / "file"
    file.touch()
    done = subprocess.run(
        [IFBUSD, "--dev", "--state", file / "x", "--socket", place / "s"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert str(file / "x") in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_it_works_under_the_units_system_call_filter(place: Path, manager: Manager) -> None:
    """With only the system calls that the unit allows, daemon, store and sandboxes do their work."""
    unit = ROOT / "systemd" / "ifbusd.service"
    command = [sys.executable, Path(__file__).with_name("under_filter.py"), unit, *dev(place)]
    if os.getuid() == 0:
        # A daemon of root would give its sandboxes users of their own, which the filter forbids: be somebody, as by User=.
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is not installed")
        command = [*AS_NOBODY, *command]
        for path in (place, place / "notify"):
            os.chown(path, NOBODY, NOBODY)
    with running(command, {**os.environ, **manager.environ}) as process:
        manager.wait_for("READY=1")
        assert "Seccomp:\t2" in Path(f"/proc/{process.pid}/status").read_text()
        with Caller(place / "s") as caller:
            caller.call("coordinator.register_swarm", swarm_id="builder")
            assert add_in_a_sandbox(caller, "builder", 2, 3) == 5
        assert stop(process)[0] == 0


def add_in_a_sandbox(caller: Caller, swarm_id: str, *numbers: int) -> object:
    module = wasmtime.wat2wasm(
        '(module (func (export "run") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))'
    )
    sha256 = hashlib.sha256(module).hexdigest()
    caller.call("chassis.put_blob", sha256=sha256, offset=0, data=bytes(module), total_bytes=len(module))
    caller.call("chassis.load_swarm", swarm_id=swarm_id, contract={"module_sha256": sha256, "kind": "core"})
    return caller.call("chassis.execute_task", swarm_id=swarm_id, input={"args": list(numbers)})["output"]
