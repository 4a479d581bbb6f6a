"""The caller is who the kernel says it is, whatever it claims or becomes later."""

from __future__ import annotations

import array
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from ifbus.errors import PermissionDenied
from ifbusd.rpc.limits import RpcLimits
from ifbusd.rpc.peer import peer_as_sent, read_peer
from tests.integration.rpc.serving import Serving, serving

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can start a client as another user")
STRANGER, STRANGERS_GROUP, OPERATORS = 54321, 54322, 54323

# A client in words of one syllable: raw MessagePack, no library of ours. It becomes another user in time or too late; it is
# started by root because other users may not enter the directory of an interpreter.
CLIENT = """
import json, os, socket, sys
path, method, before, user = sys.argv[1], sys.argv[2].encode(), json.loads(sys.argv[3]), json.loads(sys.argv[4])
def become():
    os.setgroups(user["groups"])
    os.setgid(user["gid"])
    os.setuid(user["uid"])
sock = socket.socket(socket.AF_UNIX)
if before:
    become()
try:
    sock.connect(path)
except PermissionError:
    sys.exit(13)
if not before:
    become()
sock.sendall(bytes([0x94, 0x00, 0x01, 0xA0 + len(method)]) + method + bytes([0x90]))
print(json.dumps({"pid": os.getpid(), "uid": os.getuid(), "hex": sock.recv(65536).hex()}))
"""


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that every user can enter (pytest's own is for its owner)."""
    directory = Path(tempfile.mkdtemp(prefix="ifbusd-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


async def ask(
    served: Serving, method: str, *, gid: int = STRANGERS_GROUP, groups: Sequence[int] = (), is_late: bool = False
) -> tuple[dict[str, Any], Any]:
    """What a client process of `STRANGER` gets for `method`, and what it says of itself.

    Args:
        is_late: It connects as root and becomes the stranger afterwards.
    """
    user = {"uid": STRANGER, "gid": gid, "groups": list(groups)}
    command = [sys.executable, "-S", "-c", CLIENT, str(served.path), method, json.dumps(not is_late), json.dumps(user)]
    done = await trio.run_process(command, capture_stdout=True)
    told = json.loads(done.stdout)
    _, msgid, error, result = msgpack.unpackb(bytes.fromhex(told["hex"]))
    assert msgid == 1
    return told, result if error is None else error


def send_as_stranger(sock: socket.socket, data: bytes) -> None:
    """Have another user write to this connection."""
    script = "import os, sys; os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1])); os.write(int(sys.argv[3]), bytes.fromhex(sys.argv[4]))"
    words = [str(STRANGER), str(STRANGERS_GROUP), str(sock.fileno()), data.hex()]
    subprocess.run([sys.executable, "-S", "-c", script, *words], pass_fds=[sock.fileno()], check=True)


async def test_the_peer_is_this_process(tmp_path: Path) -> None:
    """User, group, process and groups are those of the client."""
    async with serving(tmp_path) as served, served.client() as client:
        who = await client.call("probe.whoami")
        assert (who["uid"], who["gid"], who["pid"]) == (os.getuid(), os.getgid(), os.getpid())
        assert set(who["groups"]) == set(os.getgroups())
        assert not who["operator"]


@needs_root
async def test_another_user_is_told_apart(public_directory: Path) -> None:
    """A client of another user is that user, with its groups, and no operator."""
    operators = frozenset({OPERATORS})
    async with serving(public_directory, operator_uids=frozenset({0}), operator_gids=operators, mode=0o666) as served:
        told, who = await ask(served, "probe.whoami", groups=[STRANGERS_GROUP + 7])
        assert who == {
            "uid": STRANGER,
            "gid": STRANGERS_GROUP,
            "pid": told["pid"],
            "groups": [STRANGERS_GROUP + 7],
            "operator": False,
        }
        _, who = await ask(served, "probe.whoami", groups=[OPERATORS])
        assert who["operator"]
        _, who = await ask(served, "probe.whoami", gid=OPERATORS)
        assert who["operator"]
        _, denied = await ask(served, "probe.stop")
        assert denied["code"] == "invalid_params"  # who may call it at all, is said after what it takes


@needs_root
async def test_the_identity_is_that_of_connect(public_directory: Path) -> None:
    """A process that becomes somebody else after it has connected is still who it was, as the kernel keeps it."""
    async with serving(public_directory, mode=0o666) as served:
        told, who = await ask(served, "probe.whoami", is_late=True)
        assert told["uid"] == STRANGER
        assert (who["uid"], who["pid"]) == (0, told["pid"])


@needs_root
async def test_the_role_is_that_of_the_sender_as_well(public_directory: Path) -> None:
    """An operator that becomes somebody else after it has connected is still who it was, but no operator, and hears why."""
    async with serving(public_directory, mode=0o666, operator_uids=frozenset({0})) as served:
        _, who = await ask(served, "probe.whoami", is_late=True)
        assert (who["uid"], who["operator"]) == (0, False)
        _, who = await ask(served, "probe.whoami", is_late=True, gid=OPERATORS)
        assert not who["operator"]
        async with served.client() as client:
            sock: Any = client.sock
            msgid, request = client.request("probe.stop", "docs")
            await trio.to_thread.run_sync(send_as_stranger, sock._sock, request)
            with pytest.raises(PermissionDenied, match=f"uid {STRANGER} sent the request") as denied:
                await client.answer(msgid)
            assert (denied.value.data["uid"], denied.value.data["sender_uid"]) == (0, STRANGER)
            assert served.witnessed == [("probe.stop", "docs", "permission_denied")]
            assert await client.call("probe.stop", "docs") == "stopped docs"
    async with serving(public_directory, mode=0o666, operator_uids=frozenset({0, STRANGER})) as served:
        _, who = await ask(served, "probe.whoami", is_late=True)
        assert (who["uid"], who["operator"]) == (0, True)


@needs_root
async def test_groups_of_connect_are_not_lent(public_directory: Path) -> None:
    """Who is an operator by a further group stays it as the same user; another user that gets the connection is none."""
    operators = frozenset({OPERATORS})
    async with serving(public_directory, mode=0o666, operator_gids=operators) as served:
        await ask(served, "probe.note", groups=[OPERATORS])
        peer = served.probe.callers[-1].peer
        assert peer.is_operator
        for uid, expected in ((STRANGER, True), (STRANGER + 1, False)):
            sender = struct.pack("iII", 1, uid, STRANGERS_GROUP)
            sent = peer_as_sent(peer, sender, operator_uids=frozenset(), operator_gids=operators)
            assert sent.is_operator == expected
        assert not peer_as_sent(peer, b"", operator_uids=frozenset(), operator_gids=operators).is_operator


@needs_root
async def test_each_piece_of_a_request_must_be_an_operators(tmp_path: Path) -> None:
    """A request that another user has begun or finished has no role, the next one that is all an operator's has it again."""
    request = bytes([0x94, 0x00, 0x01, 0xA0 + 12]) + b"probe.whoami" + bytes([0x90])
    async with serving(tmp_path, operator_uids=frozenset({os.getuid()})) as served, served.client() as client:
        sock: Any = client.sock
        raw: socket.socket = sock._sock

        async def role() -> bool:
            told = msgpack.unpackb(await client.sock.recv(65536))[3]
            return bool(told["operator"])

        async def is_read() -> None:
            while array.array("i", fcntl.ioctl(raw, termios.TIOCOUTQ, bytes(4)))[0]:
                await trio.sleep(0.001)

        for pieces, expected in (
            ("oo", True),
            ("os", False),
            ("so", False),
            ("oso", False),
            ("soo", False),
            ("o", True),
        ):
            bounds = [len(request) * number // len(pieces) for number in range(len(pieces) + 1)]
            for number, who in enumerate(pieces):
                piece = request[bounds[number] : bounds[number + 1]]
                if who == "s":
                    await trio.to_thread.run_sync(send_as_stranger, raw, piece)
                else:
                    await client.sock.send(piece)
                await is_read()
            assert (pieces, await role()) == (pieces, expected)


@needs_root
async def test_the_socket_keeps_strangers_out(public_directory: Path) -> None:
    """With its ordinary mode another user cannot even connect."""
    async with serving(public_directory) as served:
        with pytest.raises(subprocess.CalledProcessError) as denied:
            await ask(served, "daemon.ping")
        assert denied.value.returncode == 13


@needs_root
async def test_a_quota_is_one_users_own(public_directory: Path) -> None:
    """Where one user has all its connections in use, another still gets in."""
    limits = RpcLimits(connections_per_uid=1)
    async with serving(public_directory, mode=0o666, limits=limits) as served, served.client() as client:
        await client.call("daemon.ping")
        _, pong = await ask(served, "daemon.ping")
        assert pong == "pong"


def test_a_pair_of_sockets_belongs_to_who_made_it() -> None:
    """An inherited connection is its maker's, with the role of its primary group."""
    one, other = socket.socketpair()
    with one, other:
        peer = read_peer(one, operator_gids=frozenset({os.getgid()}), connection_id=7)
    assert (peer.uid, peer.pid, peer.connection_id, peer.is_operator) == (os.getuid(), os.getpid(), 7, True)


@needs_root
async def test_more_groups_than_can_be_read_give_no_role(public_directory: Path) -> None:
    """A client with 300 groups is served, but none of them makes it an operator."""
    groups = [OPERATORS, *range(60_000, 60_299)]
    async with serving(public_directory, mode=0o666, operator_gids=frozenset({OPERATORS})) as served:
        _, who = await ask(served, "probe.whoami", groups=groups)
        assert (who["uid"], who["groups"], who["operator"]) == (STRANGER, [], False)
