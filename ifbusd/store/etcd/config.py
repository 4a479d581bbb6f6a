"""Settings of the etcd store, each with its unit and the reason for its default."""

from __future__ import annotations

import re
from typing import Final

import attrs
from attrs.validators import and_, ge, le

# In the state directory of a daemon on etcd: its name among the others'.
NODE_FILE: Final = "node-id"
_ENDPOINT: Final = re.compile(r"(https?://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_PREFIX: Final = re.compile(r"/(?:[A-Za-z0-9._-]+/)+")


def _are_endpoints(_: object, __: object, value: tuple[str, ...]) -> None:
    wrong = [each for each in value if not _ENDPOINT.fullmatch(each)]
    if not value or wrong:
        raise ValueError(f'expected addresses such as "https://etcd-1:2379", got {wrong[0] if wrong else "none"!r:.60}')
    if len({each.startswith("https://") for each in value}) > 1:
        raise ValueError("expected all endpoints with https:// or none: one client talks in one way")


def _is_prefix(_: object, __: object, value: str) -> None:
    if len(value) > 128 or not _PREFIX.fullmatch(value):
        raise ValueError(f'expected a prefix such as "/ifbusd/v1/", at most 128 characters, got {value!r:.60}')


@attrs.frozen(kw_only=True)
class EtcdConfig:
    """Where the cluster's etcd is, how to talk to it, and the bounds on what is kept of it in memory.

    Attributes:
        endpoints: Addresses of the members, ``https://host:port`` (or ``http://``, for a loopback or a test). One is used at a
            time; another takes over when it does not answer.
        prefix: All keys stand under it. It carries the version of what is stored: daemons that share a prefix understand
            one another, and an upgrade that they would not survive takes another.
        ca_file: Certificates that the servers' are checked against (PEM); "" takes the system's.
        cert_file: Our own certificate (PEM), where the servers ask for one. With it goes `key_file`.
        key_file: The private key to `cert_file` (PEM). A relative path of a file is one in $CREDENTIALS_DIRECTORY.
        user: Name for etcd's own access control; "" does without.
        password_file: File that holds its password, and nothing else but a line end. Never logged; a relative path is one in
            $CREDENTIALS_DIRECTORY, where systemd's LoadCredential= puts it.
        request_timeout_ms: Deadline of each request to etcd. After it the outcome of a write is unknown, and etcd counts as
            unreachable until it answers again. 2 s: above etcd's own for a change of leader (1 s), below people's patience.
        start_timeout_ms: How long a start waits for etcd before it gives up with a message.
        probe_interval_ms: How often is asked whether etcd answers, and tried again when it does not.
        slow_request_ms: Above this a probe's time is called slow in the status.
        max_in_flight: Groups of transactions under way at once. One waits for etcd's disk, the next is on its way.
        max_batch_txns: Transactions in one group, at most; etcd takes 128 operations, of which a transaction needs one.
        max_batch_bytes: The same for the sum of what they write. 1 MiB: below etcd's 1.5 MiB for a request.
        max_waiting_txns: Transactions that wait to be sent; more are refused (`Overloaded`).
        replica_bytes: Keys and values kept in memory, so that a decision need not ask etcd. What does not fit is asked for.
        replica_value_bytes: Values larger than this are not kept in it.
        history_events: Changes kept for watchers; one that is further behind reads everything anew.
        history_bytes: The same for the sum of their values.
        record_slots: Witness entries of this host that stand in etcd at once, for the other hosts to fetch; then the oldest is
            written over. Each takes some 500 bytes.
    """

    endpoints: tuple[str, ...] = attrs.field(default=("http://127.0.0.1:2379",), validator=_are_endpoints)
    prefix: str = attrs.field(default="/ifbusd/v1/", validator=_is_prefix)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    user: str = ""
    password_file: str = ""
    request_timeout_ms: int = attrs.field(default=2_000, validator=and_(ge(100), le(30_000)))
    start_timeout_ms: int = attrs.field(default=10_000, validator=and_(ge(100), le(300_000)))
    probe_interval_ms: int = attrs.field(default=1_000, validator=and_(ge(50), le(60_000)))
    slow_request_ms: int = attrs.field(default=250, validator=ge(1))
    max_in_flight: int = attrs.field(default=2, validator=and_(ge(1), le(16)))
    max_batch_txns: int = attrs.field(default=100, validator=and_(ge(1), le(126)))
    max_batch_bytes: int = attrs.field(default=1024 * 1024, validator=and_(ge(1), le(1024 * 1024)))
    max_waiting_txns: int = attrs.field(default=4_096, validator=ge(1))
    replica_bytes: int = attrs.field(default=128 * 1024 * 1024, validator=ge(0))
    replica_value_bytes: int = attrs.field(default=64 * 1024, validator=ge(0))
    history_events: int = attrs.field(default=16_384, validator=ge(1))
    history_bytes: int = attrs.field(default=8 * 1024 * 1024, validator=ge(1))
    record_slots: int = attrs.field(default=16_384, validator=and_(ge(64), le(1_048_576)))

    def __attrs_post_init__(self) -> None:
        """Refuse settings that only make sense together."""
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("expected cert_file and key_file together, or neither")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("expected user and password_file together, or neither")
        if (self.ca_file or self.cert_file) and not self.is_encrypted:
            raise ValueError("expected endpoints with https:// where ca_file or cert_file is set")
        if self.user and not self.is_encrypted and not all(_is_loopback(each) for each in self.endpoints):
            raise ValueError("expected endpoints with https:// where a password is sent to another host")

    @property
    def is_encrypted(self) -> bool:
        """Whether the endpoints are talked to with TLS."""
        return self.endpoints[0].startswith("https://")

    @property
    def targets(self) -> tuple[str, ...]:
        """The endpoints as ``host:port``."""
        return tuple(each.rpartition("//")[2] for each in self.endpoints)


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition("//")[2].rpartition(":")[0]
    return host in ("localhost", "[::1]") or host.startswith("127.")
