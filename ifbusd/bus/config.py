"""Settings of the bus between hosts, each with its unit and the reason for its default."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final, Literal

import attrs
from attrs.validators import and_, ge, in_, le

from ifbus.errors import ConfigInvalid
from ifbusd.credentials import credential_path

_SERVER: Final = re.compile(r"(nats|tls)://[^\s/@]+")
# Tokens of letters, digits, - and _; no wildcard may get into what others subscribe to.
_SUBJECT: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_MAX_SUBJECT_CHARS: Final = 100


def _servers(_: object, __: object, value: tuple[str, ...]) -> None:
    if not value:
        raise ValueError("expected at least one server")
    for server in value:
        if not _SERVER.fullmatch(server):
            raise ValueError(f"expected nats://HOST:PORT or tls://HOST:PORT without a password, got {server!r:.60}")


def _subject(_: object, __: object, value: str) -> None:
    if not _SUBJECT.fullmatch(value) or len(value) > _MAX_SUBJECT_CHARS:
        raise ValueError(f"expected words of letters, digits, - and _ with dots between them, got {value!r:.60}")


def _path_or_nothing(_: object, __: object, value: str) -> None:
    if "\0" in value:
        raise ValueError(f'expected a path, or "", got {value!r:.60}')


@attrs.frozen(kw_only=True)
class NatsConfig:
    """How to reach NATS. It carries hints alone: where it is down, everything arrives through the store's watch.

    Attributes:
        servers: Where to connect, tried in a random order: `nats://HOST:PORT`, or `tls://HOST:PORT` for TLS. No passwords
            here: this file may be read by many.
        subject_prefix: Of all our subjects. Its end is the version of what they carry (`docs/cluster.md`); clusters that
            share a NATS need different ones.
        credentials_file: A file with user and password on a line each, or with a token on one; "" for neither. A relative path, here
            and below, is one in $CREDENTIALS_DIRECTORY, where systemd's LoadCredential= puts it.
        ca_file: Certificates that the servers' are checked against; "" for the system's. Setting it means TLS.
        cert_file, key_file: This host's certificate and its key, for servers that ask for one; "" for none.
        connect_ms: A start goes on without NATS after this. It is tried further meanwhile.
        pending_bytes: What may wait for a server that does not take it. Only the newest hint is ever kept, so it is small.
        hint_interval_ms: A daemon sends at most one hint in this time, the newest. 50 ms: a watch that has stalled is noticed
            soon, and a hundred busy hosts send 2,000 hints a second.
        hints_per_s: Beyond it nobody is listened to for a second, so that a flood costs next to nothing. 5,000: two hundred
            busy hosts.
    """

    servers: tuple[str, ...] = attrs.field(default=("nats://127.0.0.1:4222",), validator=_servers)
    subject_prefix: str = attrs.field(default="ifbusd.v1", validator=_subject)
    credentials_file: str = attrs.field(default="", validator=_path_or_nothing)
    ca_file: str = attrs.field(default="", validator=_path_or_nothing)
    cert_file: str = attrs.field(default="", validator=_path_or_nothing)
    key_file: str = attrs.field(default="", validator=_path_or_nothing)
    connect_ms: int = attrs.field(default=2_000, validator=and_(ge(0), le(60_000)))
    pending_bytes: int = attrs.field(default=16 << 10, validator=and_(ge(1 << 10), le(2 << 20)))
    hint_interval_ms: int = attrs.field(default=50, validator=and_(ge(1), le(1_000)))
    hints_per_s: int = attrs.field(default=5_000, validator=and_(ge(10), le(1_000_000)))

    def __attrs_post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("expected cert_file and key_file together, or neither")

    @property
    def has_tls(self) -> bool:
        """Whether to speak TLS."""
        return bool(self.ca_file or self.cert_file) or any(server.startswith("tls:") for server in self.servers)


@attrs.frozen(kw_only=True)
class BusConfig:
    """What tells other hosts that there is something to look at.

    Attributes:
        backend: `local` for one host, or where the store's watch alone is quick enough; `nats` beside a store on etcd.
        nats: How to reach NATS.
    """

    backend: Literal["local", "nats"] = attrs.field(default="local", validator=in_(("local", "nats")))
    nats: NatsConfig = attrs.field(factory=NatsConfig)


def secrets_of(config: NatsConfig) -> dict[str, Any]:
    """Who we are to NATS, as `nats.connect` takes it, from the credentials file.

    Raises:
        ConfigInvalid: It cannot be read, or has neither one line nor two.
    """
    if not config.credentials_file:
        return {}
    path = credential_path(config.credentials_file, os.environ)
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file.read(4096).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("credentials_file", path, error) from error
    match lines:
        case [token]:
            return {"token": token}
        case [user, password]:
            return {"user": user, "password": password}
    raise ConfigInvalid(
        f"bus.nats.credentials_file: expected a token, or user and password on a line each, in {path}",
        data={"key": "bus.nats.credentials_file"},
    )


def unreadable(key: str, path: Path, error: OSError | UnicodeDecodeError) -> ConfigInvalid:
    """What ends the start where a file that `key` names is of no use."""
    reason = getattr(error, "strerror", None) or error
    return ConfigInvalid(f"bus.nats.{key}: cannot read {path}: {reason}", data={"key": f"bus.nats.{key}"})
