"""The socket file: its mode from the start, a dead one taken over, a live one never."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from ifbus.errors import AlreadyExists, ConfigInvalid
from ifbusd.rpc.listener import open_listener, remove_socket


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_the_mode_is_right_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """Owner and group only, and the process's umask is as it was."""
    previous = os.umask(umask)
    try:
        with open_listener(tmp_path / "s", gid=os.getgid()):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
        with open_listener(tmp_path / "t", mode=0o600):
            assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o600
    finally:
        assert os.umask(previous) == umask


def test_a_dead_socket_is_taken_over(tmp_path: Path) -> None:
    """What a killed daemon left behind is replaced."""
    path = tmp_path / "s"
    open_listener(path).close()
    assert path.exists()
    with open_listener(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    """Where somebody listens, even with a full backlog, nobody else does, and what is no socket stays."""
    path = tmp_path / "s"
    with open_listener(path) as live:
        with pytest.raises(AlreadyExists):
            open_listener(path)
        live.listen(0)  # the look above waits to be accepted, so the backlog is full
        with pytest.raises(AlreadyExists):
            open_listener(path)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(AlreadyExists):
        open_listener(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_place_without_room_for_a_socket_is_named(tmp_path: Path) -> None:
    """No directory, or too long a path."""
    for path in (tmp_path / "missing" / "s", tmp_path / ("x" * 120)):
        with pytest.raises(ConfigInvalid) as wrong:
            open_listener(path)
        assert str(path) in wrong.value.message


def test_only_the_own_socket_is_removed(tmp_path: Path) -> None:
    """At the end the file goes, unless another daemon has put its own there."""
    path = tmp_path / "s"
    first = open_listener(path)
    first.close()
    second = open_listener(path)
    remove_socket(path, first)
    assert path.exists()
    second.close()
    remove_socket(path, second)
    assert not path.exists()
    remove_socket(path, second)
