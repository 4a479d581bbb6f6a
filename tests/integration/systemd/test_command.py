"""The `ifbusd` command as a person or a service manager meets it, up to the point where a daemon runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ifbusd.__main__ import main
from tests.integration.systemd.running import running, wait_until_listening

IFBUSD = Path(sys.executable).with_name("ifbusd")
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


def run(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [IFBUSD, *arguments], env={"PATH": "/usr/bin:/bin", **environ}, capture_output=True, text=True
    )


def test_version() -> None:
    """The version is one line."""
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ifbusd ")


def test_a_right_configuration_is_confirmed() -> None:
    """The file that is shipped passes its own check."""
    done = run("--config", ROOT / "config" / "ifbusd.toml", "--check-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("ifbusd.toml: ok\n")


def test_a_missing_group_of_the_socket_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default group may be missing on this host: the check names it and how to make it, and the file is still right."""
    file = tmp_path / "ifbusd.toml"
    file.write_text("")
    monkeypatch.setattr("ifbusd.config._group_ids", lambda: {"root": 0})
    assert main(["--check-config", "--config", str(file)]) == 0
    said, verdict = capsys.readouterr().out.splitlines()
    assert "group ifbus: this host has none; groupadd --system ifbus" in said
    assert verdict == f"{file}: ok"
    monkeypatch.setattr("ifbusd.config._group_ids", lambda: {"ifbus": 7})
    assert main(["--check-config", "--config", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok\n"


@pytest.mark.parametrize("check", [["--check-config"], []], ids=["check", "start"])
def test_a_wrong_configuration_ends_with_status_2(tmp_path: Path, check: list[str]) -> None:
    """Each problem is one sentence on standard error, whether the file is checked or used."""
    file = tmp_path / "ifbusd.toml"
    file.write_text("[rpc]\nsokcet = 1\n[coordinator]\nlease_ms = 'long'\n")
    done = run("--config", file, *check)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"ifbusd: {file} line 2: rpc.sokcet: unknown key")
    assert second == f"ifbusd: {file} line 4: coordinator.lease_ms: expected a whole number, got 'long'"


def test_a_wrong_argument_ends_with_status_2() -> None:
    """argparse's own status is the one for a wrong call."""
    assert run("--devel").returncode == 2


@pytest.mark.parametrize("option", ["--state", "--socket", "--config"])
def test_an_empty_path_is_not_where_we_are(option: str) -> None:
    """As of a shell variable that is not set."""
    done = run("--dev", option, "")
    assert done.returncode == 2
    assert f"argument {option}: expected a path, got ''" in done.stderr


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """The kernel takes 107 bytes; the sentence says so instead of a bare errno."""
    done = run("--dev", "--state", tmp_path, "--socket", "/" + "s" * 120)
    assert done.returncode == 2
    assert "expected a path of at most 107 bytes, got 121" in done.stderr


def test_a_place_that_is_taken_or_is_none_names_the_way_out(tmp_path: Path) -> None:
    """Who cannot start because of where it is to be reads which option to change."""
    state, path, file = tmp_path / "state", tmp_path / "ifbusd.sock", tmp_path / "notes.txt"
    file.write_text("mine")
    with running([IFBUSD, "--dev", "--state", state, "--socket", path]):
        wait_until_listening(path)
        elsewhere = tmp_path / "other.sock"
        for options, sentence in (
            (("--state", state, "--socket", elsewhere), "; stop that one, or name another --state"),
            (("--socket", path), "; ask that one (ifbus status), or name another --socket"),
            (("--socket", file), "it exists and is no socket; name another --socket"),
            (("--socket", tmp_path / "none" / "s"), "No such file or directory; name another --socket"),
            (("--state", file, "--socket", elsewhere), "; name another place: --state DIR, --socket PATH"),
        ):
            done = run("--dev", *options)
            assert (done.returncode in (1, 2), done.stderr.count("\n")) == (True, 1), done.stderr
            assert done.stderr.rstrip().endswith(sentence)
    assert file.read_text() == "mine"


def test_a_key_that_is_none_is_told_with_what_to_do(tmp_path: Path) -> None:
    """A state directory that was copied without its modes starts no daemon, which says in a sentence what to remove."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "cache.key").write_bytes(b"short")
    done = run("--dev", "--state", state, "--socket", tmp_path / "s")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.rstrip().endswith(f"remove it and {state / 'code'}: modules are compiled anew")


def test_each_example_of_the_help_stands_in_a_line() -> None:
    """What is to be typed can be copied."""
    examples = run("--help").stdout.partition("examples:\n")[2].splitlines()
    assert examples == ["  ifbusd --dev", "  ifbusd --dev --state DIR", "  ifbusd --config FILE --check-config"]


def test_somebody_elses_socket_directory_is_refused(tmp_path: Path) -> None:
    """A directory that others can write to could hold a socket of theirs."""
    directory = tmp_path / "ifbusd"
    directory.mkdir()
    directory.chmod(0o777)
    done = run("--dev", XDG_RUNTIME_DIR=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("ifbusd: cannot go on: expected a directory of your own with mode 0700")
    assert str(directory) in done.stderr


def test_an_inherited_descriptor_that_is_no_listener_is_refused(tmp_path: Path) -> None:
    """What the manager passes is checked before anything is opened."""
    done = subprocess.run(
        [
            "/bin/sh",
            "-c",
            f"LISTEN_PID=$$ LISTEN_FDS=1 exec {IFBUSD} --dev --state {tmp_path} --socket {tmp_path}/s 3</dev/null",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "cannot use the inherited descriptor 3" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_clients_variables_are_dropped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the daemon nor what it starts acts as the swarm whose shell it was started from."""
    monkeypatch.setenv("IFBUS_TOKEN", "secret")
    assert main(["--check-config", "--config", str(ROOT / "config" / "ifbusd.toml")]) == 0
    assert "IFBUS_TOKEN" not in os.environ
    assert capsys.readouterr().out.endswith(": ok\n")
