"""The caller is who the kernel says it is, whatever it claims or becomes later."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from ifbusd.rpc.limits import RpcLimits
from ifbusd.rpc.peer import read_peer
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
