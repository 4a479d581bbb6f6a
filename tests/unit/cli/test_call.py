"""One command's connection when the daemon ends it."""

import socket

import msgpack
import pytest

from ifbus.cli.call import Link
from ifbus.errors import ConnectionLost, Overloaded
from ifbus.stream import SocketStream


def test_who_is_turned_away_before_asking_reads_why() -> None:
    """A daemon that said why and closed before the command sent anything is still heard."""
    ours, daemons = socket.socketpair()
    reason = {"code": "overloaded", "message": "1 of 1 connections", "data": {}}
    daemons.sendall(msgpack.packb([2, "closing", [reason]]))
    daemons.close()
    link = Link(SocketStream(ours))
    with pytest.raises(Overloaded, match="1 of 1"):
        link.call("daemon.ping", {})
    link.close()


def test_a_connection_that_ended_without_a_word_is_lost() -> None:
    """Without last words the answer is that the connection ended."""
    ours, daemons = socket.socketpair()
    daemons.close()
    link = Link(SocketStream(ours))
    with pytest.raises(ConnectionLost):
        link.call("daemon.ping", {})
    link.close()
