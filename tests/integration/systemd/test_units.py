"""The units: what systemd itself says of them."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ifbusd.__main__ import WRONG_CONFIG
from ifbusd.config import DaemonConfig

UNITS = Path(__file__).parents[3] / "systemd"
IFBUSD = Path(sys.executable).with_name("ifbusd")

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as installed, with the daemon where it is here."""
    for unit in (*UNITS.glob("ifbusd.s*"), UNITS / "user" / "ifbusd.service"):
        text = unit.read_text().replace("/usr/bin/ifbusd", str(IFBUSD))
        copy = tmp_path / unit.relative_to(UNITS)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text)
    return tmp_path


def settings(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(unit)
    return parser


def analyze(*arguments: str | Path, **environ: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        env={**os.environ, "SYSTEMD_COLORS": "0", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_the_units_are_clean(units: Path) -> None:
    """systemd finds nothing to say about service and socket."""
    assert analyze("verify", units / "ifbusd.service", units / "ifbusd.socket") == ""


def test_the_user_unit_is_clean(units: Path, tmp_path: Path) -> None:
    """systemd finds nothing to say about one user's own service."""
    runtime_dir = tmp_path / "runtime"
    runtime_dir.mkdir(mode=0o700)
    said = analyze("--user", "verify", units / "user" / "ifbusd.service", XDG_RUNTIME_DIR=str(runtime_dir))
    assert said == ""


def test_the_service_is_hardened(units: Path) -> None:
    """The exposure is at most 0.7 of 10 (FACTS of `systemd-analyze security`: a bare unit has 9.6)."""
    # The threshold is in tenths.
    said = analyze("security", "--offline=true", "--threshold=7", "--no-pager", units / "ifbusd.service")
    assert "SAFE" in said


def test_the_unit_of_a_cluster_reaches_the_network(units: Path) -> None:
    """The drop-in undoes what shuts a daemon off from etcd and NATS, and nothing else; systemd knows all of its keys."""
    assert not _reaches_the_network(units)
    place = units / "ifbusd.service.d"
    place.mkdir()
    shutil.copy(UNITS / "cluster.conf", place)
    assert analyze("verify", units / "ifbusd.service") == ""
    assert _reaches_the_network(units)
    # The threshold is in tenths.
    assert "OK" in analyze("security", "--offline=true", "--threshold=16", "--no-pager", units / "ifbusd.service")


def _reaches_the_network(units: Path) -> bool:
    """Whether nothing of it is shut off; fails where some is and some is not."""
    said = analyze("security", "--offline=true", "--json=short", "--no-pager", units / "ifbusd.service")
    names = ("PrivateNetwork=", "IPAddressDeny=", "RestrictAddressFamilies=~AF_(INET|INET6)")
    shut = [setting["set"] for setting in json.loads(said) if setting["name"] in names]
    assert shut in ([False] * len(names), [True] * len(names))
    return not shut[0]


def test_the_users_can_be_made() -> None:
    """systemd-sysusers takes the snippet, and it names the groups that socket and configuration use."""
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed")
    snippet = UNITS / "ifbusd.sysusers"
    subprocess.run(["systemd-sysusers", "--dry-run", snippet], check=True, capture_output=True)
    names = {line.split()[1] for line in snippet.read_text().splitlines() if line[:1] in "ug"}
    assert names == {"ifbusd", "ifbus", "ifbus-admin"}


def test_units_and_defaults_agree() -> None:
    """Socket, mode, group, state and exit status stand in units and classes; they are the same."""
    listen = settings(UNITS / "ifbusd.socket")["Socket"]
    service = settings(UNITS / "ifbusd.service")["Service"]
    defaults = DaemonConfig()
    assert listen["ListenStream"] == str(defaults.socket)
    assert int(listen["SocketMode"], 8) == defaults.socket_mode
    assert listen["SocketGroup"] == defaults.socket_group
    assert Path("/var/lib") / service["StateDirectory"] == defaults.state_dir
    assert Path("/run") / service["RuntimeDirectory"] == defaults.socket.parent
    assert int(service["RestartPreventExitStatus"]) == WRONG_CONFIG
    assert int(service["TimeoutStopSec"].rstrip("s")) * 1000 > 2 * defaults.grace_ms
