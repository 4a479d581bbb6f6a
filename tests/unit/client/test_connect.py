"""Where a daemon is looked for, and what is said when it is not there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ifbus.connect import SYSTEM_SOCKET, Facts, candidates, explain


def _hostile_link(path: Path) -> None:
    (path.parent / "theirs").mkdir(mode=0o700)
    path.symlink_to("theirs")


def _open_to_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o750)


def _of_somebody_else(path: Path) -> None:
    path.mkdir(mode=0o700)
    os.chown(path, 4242, -1)


def test_without_a_runtime_directory_the_temporary_place_is_looked_at(tmp_path: Path) -> None:
    """A private directory below TMPDIR is a place for a user's own daemon, before the system's."""
    directory = tmp_path / f"ifbusd-{os.getuid()}"
    directory.mkdir(mode=0o700)
    own = f"{directory}/ifbusd.sock"
    assert candidates(None, {"TMPDIR": str(tmp_path)}) == [own, SYSTEM_SOCKET]
    with_runtime = {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": "/run/user/7"}
    assert candidates(None, with_runtime) == ["/run/user/7/ifbusd/ifbusd.sock", SYSTEM_SOCKET]
    assert candidates(None, {"TMPDIR": str(tmp_path), "IFBUS_SOCKET": "/x"}) == ["/x"]


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        Path.touch,
        _hostile_link,
        _open_to_others,
        pytest.param(_of_somebody_else, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root to chown")),
    ],
    ids=["none", "file", "link", "open", "other-owner"],
)
def test_a_temporary_place_that_is_not_ours_alone_is_passed_over(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    """What somebody else could have put there is never connected to."""
    make(tmp_path / f"ifbusd-{os.getuid()}")
    assert candidates(None, {"TMPDIR": str(tmp_path)}) == [SYSTEM_SOCKET]


def test_no_daemon_names_every_place() -> None:
    """Who reads that nothing is there reads where it was looked for."""
    error = explain(["/tmp/ifbusd-7/ifbusd.sock", SYSTEM_SOCKET], errno.ENOENT, Facts())
    assert error.message == f"nothing at /tmp/ifbusd-7/ifbusd.sock nor {SYSTEM_SOCKET}"
    assert error.data["tried"] == ["/tmp/ifbusd-7/ifbusd.sock", SYSTEM_SOCKET]


@pytest.mark.parametrize(
    ("path", "owner", "calls"),
    [
        ("/run/user/7/ifbusd/ifbusd.sock", 7, ["ifbusd --dev"]),
        ("/elsewhere/my sock", 7, ["ifbusd --dev --socket '/elsewhere/my sock'"]),
        ("/elsewhere/sock", 0, ["journalctl -u ifbusd -n 20", "systemctl start ifbusd"]),
        (SYSTEM_SOCKET, 7, ["journalctl -u ifbusd -n 20", "systemctl start ifbusd"]),
    ],
)
def test_a_dead_socket_of_ones_own_is_mended_by_its_user(
    path: str, owner: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own daemon is started again by that user; only the system's is the service manager's."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    error = explain([path], errno.ECONNREFUSED, Facts(uid=7, owner_uid=owner))
    assert [change.get("call") for change in error.would_change] == calls


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/run/user/7/ifbusd/ifbusd.sock", "ifbusd --dev"),
        ("/elsewhere/my sock", "ifbusd --dev --socket '/elsewhere/my sock'"),
    ],
)
def test_a_place_that_was_named_is_told_how_to_fill_it_or_to_look_elsewhere(
    path: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is started as the message says listens where this caller looks; the system's would not."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    error = explain([path], errno.ENOENT, Facts(uid=7))
    assert [change.get("call") for change in error.would_change] == [call, "env -u IFBUS_SOCKET ifbus status"]


def test_what_is_no_socket_is_not_to_be_taken_over() -> None:
    """No daemon listens at a file or a directory, so that starting one there is no remedy."""
    error = explain(["/etc/hosts"], errno.ECONNREFUSED, Facts(uid=7, owner_uid=7, is_socket=False))
    assert error.message == "/etc/hosts is no socket"
    assert [change.get("call") for change in error.would_change] == ["env -u IFBUS_SOCKET ifbus status"]


@pytest.mark.parametrize("facts", [Facts(uid=7, user="ann"), Facts(uid=7, user="ann", owner_group="root", mode=0o600)])
def test_where_no_group_lets_anybody_in_a_daemon_of_ones_own_is_the_way(facts: Facts) -> None:
    """Joining a group does not open a socket or a directory that is its owner's alone."""
    error = explain(["/tmp/x.sock"], errno.EACCES, facts)
    assert [change.get("call") for change in error.would_change] == [None, "ifbusd --dev"]
