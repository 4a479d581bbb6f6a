"""What a hint is, and what a configuration of NATS may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import ConfigInvalid
from ifbusd.bus.config import NatsConfig, secrets_of
from ifbusd.bus.nats import MAX_HINT_BYTES, MAX_REVISION, read_hint
from ifbusd.config import load


@given(st.integers(1, MAX_REVISION))
def test_a_revision_is_read_back(revision: int) -> None:
    """Every revision that a store can have is a hint."""
    assert read_hint(b"%d" % revision) == revision


@given(st.binary(max_size=64))
def test_no_bytes_raise(data: bytes) -> None:
    """Whatever arrives is a revision in range or nothing."""
    found = read_hint(data)
    assert found is None or (0 < found <= MAX_REVISION and len(data) <= MAX_HINT_BYTES)


@pytest.mark.parametrize(
    "data", [b"", b"0", b"-1", b"+1", b" 1", b"1_0", b"1.0", b"9" * 19, b"1" * 20, "\u0661".encode()]
)
def test_what_is_no_revision_is_nothing(data: bytes) -> None:
    """Zero, signs, other scripts' digits, and numbers that no store reaches are no hints."""
    assert read_hint(data) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"servers": ()},
        {"servers": ("localhost",)},
        {"servers": ("nats://me:secret@host:4222",)},
        {"servers": ("http://host:4222",)},
        {"subject_prefix": ""},
        {"subject_prefix": "ifbusd.>"},
        {"subject_prefix": "ifbusd..v1"},
        {"subject_prefix": "a b"},
        {"subject_prefix": "x" * 101},
        {"cert_file": "/cert.pem"},
        {"key_file": "/key.pem"},
        {"ca_file": "/ca\0.pem"},
        {"pending_bytes": 0},
        {"hint_interval_ms": 0},
        {"hints_per_s": 1},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    """Servers without a scheme, passwords in them, wildcards in subjects, half a key pair, bounds of nothing."""
    with pytest.raises(ValueError):  # noqa: PT011  # attrs words most of them
        NatsConfig(**changes)


def test_tls_is_spoken_where_anything_asks_for_it() -> None:
    """A tls:// server, an authority or a certificate of our own each mean TLS."""
    assert not NatsConfig().has_tls
    assert NatsConfig(servers=("tls://host:4222",)).has_tls
    assert NatsConfig(ca_file="/ca.pem").has_tls
    assert NatsConfig(cert_file="/c.pem", key_file="/k.pem").has_tls


@pytest.mark.parametrize(
    ("text", "secrets"),
    [("token\n", {"token": "token"}), ("me\n\n my secret \n", {"user": "me", "password": "my secret"})],
)
def test_credentials_are_one_line_or_two(tmp_path: Path, text: str, secrets: dict[str, str]) -> None:
    """A token on one line, or user and password on a line each; empty lines do not count."""
    path = tmp_path / "credentials"
    path.write_text(text)
    assert secrets_of(NatsConfig(credentials_file=str(path))) == secrets


def test_a_relative_file_is_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is where the service manager made a directory for them; an absolute one is where it says."""
    (tmp_path / "nats").write_text("token\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert secrets_of(NatsConfig(credentials_file="nats")) == {"token": "token"}
    with pytest.raises(ConfigInvalid, match=r"bus\.nats\.credentials_file: cannot read /nats"):
        secrets_of(NatsConfig(credentials_file="/nats"))


def test_nats_without_a_store_for_many_hosts_is_refused(tmp_path: Path) -> None:
    """Hints between hosts make no sense over the store of one host, and the message says so."""
    path = tmp_path / "ifbusd.toml"
    path.write_text('[bus]\nbackend = "nats"\n')
    with pytest.raises(ConfigInvalid, match=r'store\.backend = "etcd"'):
        load(path)


def test_the_example_for_a_cluster_can_be_read() -> None:
    """config/cluster.toml is a configuration of today."""
    config = load(Path(__file__).parents[3] / "config" / "cluster.toml")
    assert (config.store.backend, config.bus.backend) == ("etcd", "nats")
