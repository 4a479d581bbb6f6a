"""What the daemon answers about itself: `daemon.hello`, `ping`, `status`, `describe`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from ifbus.errors import InvalidRequest, VersionMismatch
from ifbus.protocol import PROTOCOL_VERSIONS
from ifbusd.identity import Caller
from ifbusd.rpc.attention import Attention
from ifbusd.rpc.limits import RpcLimits

Answer = dict[str, Any]

FEATURES: Final = ("attention", "binding", "cancel", "deadline", "idempotency", "traceparent")


class DaemonMethods:
    """The daemon's own methods.

    Args:
        build: Version of the installed distribution.
        status: Gives the answer of `daemon.status`: plain values from the components' `statistics()`.
        describe: Gives the answer of `daemon.describe` (`ifbusd.rpc.describe.describe`).
    """

    def __init__(
        self,
        *,
        build: str,
        pid: int,
        limits: RpcLimits,
        attention: Attention,
        now_ms: Callable[[], int],
        status: Callable[[], Awaitable[Answer]],
        describe: Callable[[str], Answer],
    ) -> None:
        self._build = build
        self._pid = pid
        self._limits = limits
        self._attention = attention
        self._now_ms = now_ms
        self._status = status
        self._describe = describe

    async def hello(
        self, caller: Caller, protocol: list[int] | None = None, *, client: str = "", swarm: str = ""
    ) -> Answer:
        """Agree on a protocol version, and learn whom one talks to and as whom; optional, and may be repeated.

        Args:
            protocol: The versions that the client speaks; not given, it takes what the daemon speaks.
            client: Name and version of the client, for the sentence of a version_mismatch.
            swarm: A swarm of the caller that this connection speaks for: it hears ``attention`` from now on.

        Returns:
            ``{"build": version, "protocol": the version to speak, "protocols": all that the daemon speaks, "features": [name],
            "pid": daemon's, "uid": yours, "operator": bool, "limits": {"message_bytes", "in_flight", "nesting", "array_items",
            "map_items"}, "now_ms": the daemon's clock}``.

        Raises:
            version_mismatch: No version in common; the data has both sides'.
            permission_denied, not_found: The swarm belongs to another user; there is none.
        """
        common = set(PROTOCOL_VERSIONS) if protocol is None else set(PROTOCOL_VERSIONS).intersection(protocol)
        if not common:
            raise VersionMismatch(
                f"cannot talk: client {client or '(unnamed)':.80} speaks protocol {_listed(protocol or [])}, daemon {self._build} "
                f"(pid {self._pid}) speaks {_listed(PROTOCOL_VERSIONS)}",
                data={
                    "client_protocol": (protocol or [])[:16],
                    "daemon_protocol": list(PROTOCOL_VERSIONS),
                    "build": self._build,
                    "pid": self._pid,
                },
                would_change=[_remedy(protocol or [])],
            )
        if swarm:
            await self._attention.bind(caller, swarm)
        limits = self._limits
        return {
            "build": self._build,
            "protocol": max(common),
            "protocols": list(PROTOCOL_VERSIONS),
            "features": list(FEATURES),
            "pid": self._pid,
            "uid": caller.uid,
            "operator": caller.is_operator,
            "limits": {
                "message_bytes": limits.message_bytes,
                "in_flight": limits.in_flight,
                "nesting": limits.nesting,
                "array_items": limits.array_items,
                "map_items": limits.map_items,
            },
            "now_ms": self._now_ms(),
        }

    async def ping(self, caller: Caller) -> str:
        """Answer ``"pong"``: the daemon is there and its loop turns."""
        return "pong"

    async def expect_process(self, caller: Caller) -> bool:
        """Announce that a process descriptor (pidfd) comes with one of the next messages on this connection, by SCM_RIGHTS.

        Wait for the answer, ``True``, before sending it; a notification ``$/process`` will do as its message. One is kept until a call with
        ``bind="handed"`` takes it. Descriptors that were not announced, further ones, and those of anything but a process are dropped.
        """
        if caller.session is None:
            raise InvalidRequest("cannot take a descriptor without a connection")
        caller.session.expect_process()
        return True

    async def status(self, caller: Caller) -> Answer:
        """The daemon's state at a glance: versions, uptime, store, tasks, swarms, money, connections."""
        return await self._status()

    async def describe(self, caller: Caller, method: str = "") -> Answer:
        """The methods of this daemon.

        Args:
            method: Describe this one in full; otherwise all of them, a line each.

        Returns:
            ``{"methods": [{"name", "role", "summary", "params": [{"name", "type", "required", "default"?}], "doc"?}]}``; ``doc`` is
            there for a single method.

        Raises:
            unknown_method: There is none of this name.
        """
        return self._describe(method)


def _listed(versions: Any) -> str:
    return " and ".join(str(version) for version in list(versions)[:8]) or "none"


def _remedy(protocol: list[int]) -> Any:
    if protocol and max(protocol) > max(PROTOCOL_VERSIONS):
        return {
            "by": "operator",
            "what": "the daemon is the older: restart it with the new version",
            "call": "systemctl restart ifbusd",
        }
    return {"by": "self", "what": "the client is the older: upgrade it", "call": "pip install --upgrade ifbus"}
