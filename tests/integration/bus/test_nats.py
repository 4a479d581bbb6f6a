"""Hints over a real NATS: what they bring, and that nothing that happens to NATS, or comes over it, does any harm."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import nats
import pytest
import trio
import trio_asyncio

from ifbus.errors import ConfigInvalid
from ifbusd.bus.config import NatsConfig
from ifbusd.bus.nats import MAX_HINT_BYTES, NatsHints
from tests.certificates import make_certificates
from tests.proxy import network
from tests.servers import HOST, Node, nats_nodes

pytestmark = pytest.mark.slow

# nats-py needs 6 s to notice a server that has stopped: three pings.
PATIENCE_S = 60.0
SUBJECT = "ifbusd.v1.revision"


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0.01)


@attrs.define(eq=False)
class Host:
    """One host's end: what it tells, and what it has heard."""

    hints: NatsHints
    heard: list[int]


def configured(port: int, **changes: Any) -> NatsConfig:
    return NatsConfig(servers=(f"nats://{HOST}:{port}",), **{"connect_ms": 30_000, "hint_interval_ms": 1, **changes})


@asynccontextmanager
async def host(config: NatsConfig) -> AsyncIterator[Host]:
    """A host that runs its hints meanwhile."""
    heard: list[int] = []
    hints = NatsHints(config, name="test", on_hint=heard.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(hints.run)
        yield Host(hints, heard)
        nursery.cancel_scope.cancel()


async def until_heard(by: Host, teller: Host, revision: int) -> None:
    """Tell hints from this revision on until one of them arrives: a single one may be lost."""
    with trio.fail_after(PATIENCE_S):
        for told in itertools.count(revision):
            if by.heard and by.heard[-1] >= revision:
                return
            teller.hints.tell(told)
            await trio.sleep(0.02)


@asynccontextmanager
async def server(directory: Path) -> AsyncIterator[Node]:
    """A NATS server that can be stopped and started again."""
    with nats_nodes(directory, 1) as [node]:
        yield node


async def speak(port: int, *payloads: bytes, **options: Any) -> None:
    """Publish as anybody on the network can."""

    async def publish() -> None:
        client = await nats.connect(f"nats://{HOST}:{port}", **options)
        for payload in payloads:
            await client.publish(SUBJECT, payload)
        await client.flush()
        await client.close()

    async with trio_asyncio.open_loop():
        await trio_asyncio.aio_as_trio(publish)()


async def test_other_hosts_hear_a_hint(tmp_path: Path) -> None:
    """Every other host hears a revision that one tells, and the one that tells does not hear itself."""
    async with server(tmp_path) as node, host(configured(node.port)) as a, host(configured(node.port)) as b:
        async with host(configured(node.port)) as c:
            await until_heard(b, a, 7)
            await until_heard(c, a, 100)
        assert a.heard == []
        assert a.hints.statistics()["connected"]


async def test_only_the_newest_is_told(tmp_path: Path) -> None:
    """A thousand revisions in one go are a few hints, the last of them the newest."""
    async with server(tmp_path) as node, host(configured(node.port)) as a, host(configured(node.port)) as b:
        await until_heard(b, a, 1)
        before = a.hints.sent
        for revision in range(1000, 2000):
            a.hints.tell(revision)
        await until(lambda: b.heard[-1] == 1999)
        assert a.hints.sent - before < 10


async def test_an_older_revision_is_no_news(tmp_path: Path) -> None:
    """What is older than what was told is not told again."""
    async with server(tmp_path) as node, host(configured(node.port)) as a, host(configured(node.port)) as b:
        await until_heard(b, a, 100)
        newest = b.heard[-1]
        a.hints.tell(5)
        a.hints.tell(newest + 1000)
        await until(lambda: b.heard[-1] == newest + 1000)
        assert 5 not in b.heard


async def test_a_start_without_a_server_goes_on(tmp_path: Path) -> None:
    """With no server there the daemon starts after its deadline, and hears hints as soon as a server is there."""
    with nats_nodes(tmp_path, 1) as [node]:
        node.stop()
        async with host(configured(node.port, connect_ms=50)) as a, host(configured(node.port, connect_ms=50)) as b:
            assert not a.hints.statistics()["connected"]
            a.hints.tell(5)
            await until(lambda: a.hints.errors > 0)
            node.start()
            await until(lambda: 5 in b.heard or b.hints.statistics()["connected"])
            await until_heard(b, a, 6)


@pytest.mark.parametrize(
    ("away", "back"), [(Node.kill, Node.start), (Node.pause, Node.go_on)], ids=["killed", "stopped"]
)
async def test_an_outage_is_noticed_and_over_by_itself(
    tmp_path: Path, away: Callable[[Node], None], back: Callable[[Node], None]
) -> None:
    """While the server is away telling neither waits nor grows, the status says so, and afterwards the newest is heard."""
    async with server(tmp_path) as node, host(configured(node.port)) as a, host(configured(node.port)) as b:
        await until_heard(b, a, 1)
        away(node)
        for revision in range(10_000, 60_000):
            a.hints.tell(revision)
        await until(lambda: not a.hints.statistics()["connected"])
        assert a.hints.statistics()["pending_bytes"] <= NatsConfig().pending_bytes
        back(node)
        await until_heard(b, a, 60_000)
        await until_heard(a, b, 100_000)


async def test_a_partition_fills_only_the_bounded_buffer_and_is_over_by_itself(tmp_path: Path) -> None:
    """Packets that go nowhere wait in a buffer of fixed size; the host notices, and hears again when the network is whole."""
    with network() as net:
        async with server(tmp_path) as node:
            proxy = net.proxy(node.port)
            config = configured(proxy.port, pending_bytes=1024)
            async with host(config) as a, host(configured(node.port)) as b:
                await until_heard(b, a, 1)
                proxy.cut()
                revision = 1_000
                while a.hints.statistics()["connected"]:
                    revision += 1
                    a.hints.tell(revision)
                    assert a.hints.statistics()["pending_bytes"] <= 2 * 1024
                    await trio.sleep(0.001)
                proxy.heal()
                await until_heard(b, a, revision)
                await until_heard(a, b, revision + 100_000)


HOSTILE = [
    b"",
    b"0",
    b"-1",
    b"1e9",
    b"9" * (MAX_HINT_BYTES + 1),
    b"\xff" * 3,
    "\u0663".encode(),
    b"{}",
    b"\0" * 100_000,
]


async def test_what_is_no_hint_is_counted_and_does_nothing(tmp_path: Path) -> None:
    """Whatever else anybody publishes to our subject is counted, and nobody is told."""
    async with server(tmp_path) as node, host(configured(node.port)) as a, host(configured(node.port)) as b:
        await until_heard(a, b, 1)
        before = len(a.heard)
        await speak(node.port, *HOSTILE)
        await until(lambda: a.hints.malformed + a.hints.errors >= len(HOSTILE))
        assert len(a.heard) == before


async def test_a_flood_is_not_listened_to(tmp_path: Path) -> None:
    """Beyond the bound nobody is listened to for a moment; after that hints are heard again."""
    config = configured(0, hints_per_s=10)
    async with server(tmp_path) as node:
        config = attrs.evolve(config, servers=(f"nats://{HOST}:{node.port}",))
        async with host(config) as a, host(configured(node.port)) as b:
            await until_heard(a, b, 1)
            while not a.hints.floods:
                await speak(node.port, *[b"123"] * 200)
            heard = a.hints.heard
            await until_heard(a, b, 1_000)
            assert heard < 1_000


async def test_a_password_from_a_file_is_used(tmp_path: Path) -> None:
    """A server that asks for user and password gets those of the file; without them the host goes on alone and says so."""
    secret = tmp_path / "secret"
    secret.write_text("ifbus\nopen sesame\n")
    with nats_nodes(tmp_path, 1, options=["--user=ifbus", "--pass=open sesame"]) as [node]:
        known = configured(node.port, credentials_file=str(secret))
        async with host(known) as a, host(known) as b, host(configured(node.port, connect_ms=50)) as stranger:
            await until_heard(b, a, 1)
            await until(lambda: stranger.hints.errors > 0)
            assert not stranger.hints.statistics()["connected"]
            assert stranger.heard == []
            # The server says why and hangs up: which of the two a try hears first is open.
            await until(lambda: any("Authorization Violation" in alarm["message"] for alarm in stranger.hints.alarms()))
            [alarm] = stranger.hints.alarms()
            assert "bus.nats.credentials_file" in alarm["remedy"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")
async def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    """With TLS both sides prove who they are by certificates of the configured authority."""
    make_certificates(tmp_path)
    options = [
        *("--tls", f"--tlscert={tmp_path}/own.pem", f"--tlskey={tmp_path}/own.key"),
        *("--tlsverify", f"--tlscacert={tmp_path}/ca.pem"),
    ]
    with nats_nodes(tmp_path, 1, options=options) as [node]:
        proved = configured(
            node.port,
            ca_file=str(tmp_path / "ca.pem"),
            cert_file=str(tmp_path / "own.pem"),
            key_file=str(tmp_path / "own.key"),
        )
        unproved = attrs.evolve(proved, cert_file="", key_file="", connect_ms=50)
        async with host(proved) as a, host(proved) as b, host(unproved) as stranger:
            await until_heard(b, a, 1)
            await until(lambda: stranger.hints.errors > 0)
            assert not stranger.hints.statistics()["connected"]


async def test_credentials_that_cannot_be_read_end_the_start(tmp_path: Path) -> None:
    """A credentials file that is missing or makes no sense is an error at the start, not a silent start without it."""
    odd = tmp_path / "odd"
    odd.write_text("one\ntwo\nthree\n")
    missing = str(tmp_path / "missing")
    for settings in (
        {"credentials_file": missing},
        {"credentials_file": str(odd)},
        {"ca_file": missing},
        {"ca_file": str(odd)},
        {"cert_file": missing, "key_file": str(odd)},
    ):
        hints = NatsHints(configured(1, **settings), name="test", on_hint=print)
        with pytest.raises(ConfigInvalid, match=f"bus.nats.{min(settings)}"):
            await hints.run()


def test_a_daemon_of_one_host_imports_no_network() -> None:
    """The composition root alone imports neither NATS, nor a bridge to asyncio, nor gRPC."""
    code = (
        "import sys, ifbusd.daemon; print([n for n in ('nats', 'trio_asyncio', 'asyncio', 'grpc') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
