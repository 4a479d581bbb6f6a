"""Who may talk to etcd, and how: TLS on both sides, passwords, tokens that end, rights that lack; and what is said where it fails."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio
from etcd3 import etcdrpc
from etcd3.etcdrpc import auth_pb2

from ifbus.errors import ConfigInvalid, IfbusError, Unavailable
from ifbusd.credentials import credential_path
from ifbusd.store.base import Put, Txn
from ifbusd.store.etcd.cluster import version_warning
from ifbusd.store.etcd.config import EtcdConfig
from tests.certificates import make_certificates
from tests.conformance.backends import etcd_store, running
from tests.proxy import network
from tests.servers import HOST, Node, etcd_nodes

PATIENCE_S = 60
PASSWORD = "correct horse"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """An etcd of one's own."""
    with etcd_nodes(tmp_path / "etcd", 1) as [only]:
        yield only


def innermost(error: BaseException) -> BaseException:
    """What a group of one holds, however deep."""
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    return error


def ask_for_passwords(node: Node) -> None:
    """Let in only root, and `ifbusd` below our prefix."""
    with grpc.insecure_channel(node.address) as channel:
        auth = etcdrpc.AuthStub(channel)
        for name in ("root", "ifbusd"):
            auth.UserAdd(etcdrpc.AuthUserAddRequest(name=name, password=PASSWORD), timeout=10)
            auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name=name), timeout=10)
            auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user=name, role=name), timeout=10)
        permission = auth_pb2.Permission(
            permType=auth_pb2.Permission.READWRITE, key=b"/ifbusd/v1/", range_end=b"/ifbusd/v10"
        )
        auth.RoleGrantPermission(etcdrpc.AuthRoleGrantPermissionRequest(name="ifbusd", perm=permission), timeout=10)
        auth.AuthEnable(etcdrpc.AuthEnableRequest(), timeout=10)


@asynccontextmanager
async def with_tls(directory: Path, port: int) -> AsyncIterator[int]:
    """A port that speaks TLS, asks for a certificate, and leads to another one that does not."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "ca.pem"))
    context.load_cert_chain(directory / "own.pem", directory / "own.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])

    async def forward(source: trio.abc.ReceiveStream, target: trio.abc.SendStream) -> None:
        while data := await source.receive_some(65536):
            await target.send_all(data)

    async def serve(near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream(HOST, port)
            proved = trio.SSLStream(near, context, server_side=True, https_compatible=True)
            async with proved, far, trio.open_nursery() as nursery:
                nursery.start_soon(forward, proved, far)
                await forward(far, proved)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            pass  # one side is gone, or is not who it should be

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")
async def test_tls_with_certificates_on_both_sides(node: Node, tmp_path: Path) -> None:
    """With TLS both sides prove who they are; without our certificate there is no connection."""
    make_certificates(tmp_path)
    (tmp_path / "host").mkdir()
    async with with_tls(tmp_path, node.port) as port:
        endpoints = (f"https://{HOST}:{port}",)
        ca_file = str(tmp_path / "ca.pem")
        store = etcd_store(
            tmp_path / "host",
            "",
            endpoints=endpoints,
            ca_file=ca_file,
            cert_file=str(tmp_path / "own.pem"),
            key_file=str(tmp_path / "own.key"),
        )
        async with running(store):
            assert (await store.txn(Txn(then=[Put("a/1", b"")]))).succeeded
        unproved = etcd_store(tmp_path / "host", "", endpoints=endpoints, ca_file=ca_file, start_timeout_ms=1_000)
        with trio.fail_after(PATIENCE_S), pytest.raises(ExceptionGroup) as caught:
            async with running(unproved):
                pass
        assert isinstance(innermost(caught.value), Unavailable)


@pytest.mark.slow
async def test_a_password_and_a_token_that_ends(node: Node, tmp_path: Path) -> None:
    """A user with rights on our prefix alone suffices; a token that etcd has forgotten is asked for anew; a wrong password is told."""
    ask_for_passwords(node)
    password_file = tmp_path / "password"
    password_file.write_text(f"{PASSWORD}\n")
    (tmp_path / "host").mkdir()
    settings = {
        "prefix": "/ifbusd/v1/",
        "user": "ifbusd",
        "password_file": str(password_file),
        "probe_interval_ms": 100,
    }
    store = etcd_store(tmp_path / "host", node.address, **settings)
    async with running(store):
        revision = (await store.txn(Txn(then=[Put("a/1", b"")], record=b"entry"))).revision
        assert store.told_revision == revision
        assert await store.keep_alive(await store.grant(60_000)) == 60_000
        node.stop()
        node.start()  # it remembers no token
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    last = (await store.txn(Txn(then=[Put("a/2", b"")], record=b"later"))).revision
                    break
                except Unavailable:
                    await trio.sleep(0.05)
            while store.told_revision < last or len(await store.read_log()) < 2:
                await trio.sleep(0.05)
    password_file.write_text("wrong")
    # Long enough for a busy machine to check a password, which is slow on purpose.
    refused = etcd_store(tmp_path / "host", node.address, start_timeout_ms=5_000, **settings)
    with trio.fail_after(PATIENCE_S), pytest.raises(ExceptionGroup) as caught:
        async with running(refused):
            pass
    error = innermost(caught.value)
    assert isinstance(error, IfbusError)
    assert "authentication failed" in error.message
    assert "wrong" not in error.message


@pytest.mark.slow
@pytest.mark.parametrize("asks_for_passwords", [False, True])
async def test_a_start_with_members_that_are_gone(node: Node, tmp_path: Path, asks_for_passwords: bool) -> None:
    """Of three endpoints one refuses and one is silent: the daemon starts on the third, and says how the others are."""
    settings: dict[str, object] = {"prefix": "/ifbusd/v1/", "probe_interval_ms": 100}
    if asks_for_passwords:
        ask_for_passwords(node)
        (tmp_path / "password").write_text(PASSWORD)
        settings |= {"user": "ifbusd", "password_file": str(tmp_path / "password")}
    (tmp_path / "host").mkdir()
    with network() as wires:
        refusing, silent = wires.proxy(node.port), wires.proxy(node.port)
        refusing.refuse()
        silent.cut()
        endpoints = tuple(f"http://{address}" for address in (refusing.address, silent.address, node.address))
        async with running(etcd_store(tmp_path / "host", "", endpoints=endpoints, **settings)) as store:
            assert (await store.txn(Txn(then=[Put("a/1", b"")], record=b"entry"))).succeeded
            shown = {each.endpoint: (each.in_use, each.reachable) for each in store.statistics().endpoints}
            assert shown == {
                refusing.address: (False, False),
                silent.address: (False, False),
                node.address: (True, True),
            }
            refusing.heal()
            silent.heal()
            with trio.fail_after(PATIENCE_S):
                while not all(each.reachable for each in store.statistics().endpoints):
                    await trio.sleep(0.05)
            assert [each.endpoint for each in store.statistics().endpoints if each.in_use] == [node.address]


@pytest.mark.slow
async def test_users_and_roles_may_change_meanwhile(node: Node, tmp_path: Path) -> None:
    """An operator who changes etcd's roles while many write holds nobody up: a token that is too old is asked for anew, once."""
    ask_for_passwords(node)
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "host").mkdir()
    settings = {"prefix": "/ifbusd/v1/", "user": "ifbusd", "password_file": str(tmp_path / "password")}
    with grpc.insecure_channel(node.address) as channel:
        auth = etcdrpc.AuthStub(channel)
        token = auth.Authenticate(etcdrpc.AuthenticateRequest(name="root", password=PASSWORD), timeout=10).token

        def change_roles() -> None:
            for number in range(20):
                auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name=f"role-{number}"), metadata=[("token", token)], timeout=10)

        async with running(etcd_store(tmp_path / "host", node.address, **settings)) as store:

            async def write(key: str) -> None:
                for number in range(50):
                    # One who meets two changes in a row is refused, and asks again.
                    while True:
                        try:
                            await store.txn(Txn(then=[Put(key, b"%d" % number)], record=b"entry"))
                            break
                        except Unavailable as error:
                            assert "outcome" not in error.data, error  # noqa: PT017

            with trio.fail_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.to_thread.run_sync, change_roles)
                    for number in range(8):
                        nursery.start_soon(write, f"a/{number}")
            assert store.statistics().outages == 0


def test_a_file_that_is_missing_is_named_with_its_key(tmp_path: Path) -> None:
    """The message has the key and the path."""
    with pytest.raises(ConfigInvalid, match=r"store.etcd.ca_file: cannot read .*none.pem: No such file"):
        etcd_store(tmp_path, "", endpoints=("https://localhost:2379",), ca_file=str(tmp_path / "none.pem"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"endpoints": ()}, "none"),
        ({"endpoints": ("etcd-1",)}, "etcd-1"),
        ({"endpoints": ("https://a:1", "http://b:1")}, "one way"),
        ({"prefix": "ifbusd"}, "prefix"),
        ({"cert_file": "own.pem"}, "together"),
        ({"user": "ifbusd"}, "together"),
        ({"ca_file": "ca.pem"}, "https"),
        ({"endpoints": ("http://etcd-1:2379",), "user": "u", "password_file": "p"}, "password"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], said: str) -> None:
    """Each with what was expected."""
    with pytest.raises(ValueError, match=said):
        EtcdConfig(**settings)  # type: ignore[arg-type]


def test_a_relative_file_is_a_credential(tmp_path: Path) -> None:
    """Where the service manager made a directory for them."""
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credential_path("password", environ) == tmp_path / "password"
    assert credential_path("/etc/password", environ) == Path("/etc/password")
    assert credential_path("password", {}) == Path("password")


@pytest.mark.parametrize(
    ("version", "is_fine"),
    [
        ("3.4.44", False),
        ("3.5.1", False),
        ("3.5.29", False),
        ("3.5.30", True),
        ("3.6.10", False),
        ("3.6.11", True),
        ("3.7.0", True),
        ("4.0.0", True),
        ("3.6.11-rc.1", True),
        ("newest", False),
    ],
)
def test_versions_with_known_faults_are_warned_about(version: str, is_fine: bool) -> None:
    """Below 3.5.30 and 3.6.11, and where it cannot be told."""
    assert (version_warning(version) == "") == is_fine
