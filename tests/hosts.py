"""Several hosts on one machine: a daemon each, on one etcd and one NATS, each of them one node or more.

Every daemon reaches every server through a TCP proxy of its own, so a test can part any of them. Nothing is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from ifbus.link import Link
from ifbus.testing import Daemon, daemon
from tests.proxy import Network, Proxy, network
from tests.servers import Node, etcd_nodes, nats_nodes

# Long enough for a busy machine; nothing waits for it where all is well.
PATIENCE_S: Final = 60.0
_CONFIG: Final = """
[store]
backend = "etcd"
[store.etcd]
endpoints = [{endpoints}]
request_timeout_ms = {request_timeout_ms}
probe_interval_ms = 200
[bus]
backend = "nats"
[bus.nats]
servers = [{servers}]
[coordinator]
min_lease_ms = 1000
"""


@attrs.frozen(kw_only=True)
class Host:
    """A host: its daemon, and its ways to each etcd and each NATS node, in the order of the nodes."""

    daemon: Daemon
    to_etcd: list[Proxy]
    to_nats: list[Proxy]

    def client(self, **options: Any) -> Link:
        """An untyped client of this host's daemon."""
        return self.daemon.client(**options)

    def part(self, *, from_etcd: bool = False, from_nats: bool = False) -> None:
        """Lose what it sends to all of them, and what they send."""
        for proxy in [*(self.to_etcd if from_etcd else ()), *(self.to_nats if from_nats else ())]:
            proxy.cut()

    def heal(self) -> None:
        """End all partings."""
        for proxy in (*self.to_etcd, *self.to_nats):
            proxy.heal()


@attrs.frozen(kw_only=True)
class Hosts:
    """The hosts, and the servers that they share."""

    hosts: list[Host]
    etcd: list[Node]
    nats: list[Node]
    directory: Path

    def __getitem__(self, number: int) -> Host:
        return self.hosts[number]


@contextmanager
def hosts(
    directory: Path,
    count: int = 2,
    *,
    etcd: int = 1,
    nats: int = 1,
    etcd_options: Sequence[str] = (),
    request_timeout_ms: int = 1_000,
    more: str = "",
    is_direct: bool = False,
) -> Iterator[Hosts]:
    """So many hosts, their daemons answering.

    Args:
        etcd, nats: Numbers of nodes.
        etcd_options: More arguments for each etcd.
        more: Further configuration, from a table's head on.
        is_direct: Nothing between a daemon and the servers, where times are measured; then nothing can be cut.
    """
    with ExitStack() as stack:
        stores = stack.enter_context(etcd_nodes(directory / "etcd", etcd, options=etcd_options))
        buses = stack.enter_context(nats_nodes(directory / "nats", nats))
        net = stack.enter_context(network())
        made = Hosts(hosts=[], etcd=stores, nats=buses, directory=directory)
        for number in range(count):
            made.hosts.append(
                _host(stack, directory, number, made, None if is_direct else net, request_timeout_ms, more)
            )
        yield made


def _host(
    stack: ExitStack,
    directory: Path,
    number: int,
    among: Hosts,
    net: Network | None,
    request_timeout_ms: int,
    more: str,
) -> Host:
    to_etcd = [] if net is None else [net.proxy(node.port) for node in among.etcd]
    to_nats = [] if net is None else [net.proxy(node.port) for node in among.nats]
    config = directory / f"host-{number}.toml"
    config.write_text(
        _CONFIG.format(
            endpoints=", ".join(f'"http://{proxy.address}"' for proxy in to_etcd or among.etcd),
            servers=", ".join(f'"nats://{proxy.address}"' for proxy in to_nats or among.nats),
            request_timeout_ms=request_timeout_ms,
        )
        + more
    )
    running = stack.enter_context(daemon(config=config, state_dir=directory / f"state-{number}"))
    return Host(daemon=running, to_etcd=to_etcd, to_nats=to_nats)


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives, once that is something."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found
