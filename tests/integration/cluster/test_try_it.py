"""What docs/cluster.md tells a newcomer to type on one machine works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ifbus import Client, NoDaemon
from tests.servers import run_etcd, run_nats

PAGE = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text(encoding="utf-8")
PATIENCE_S = 120.0


def _wait_for(socket: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with Client(socket) as bus:
                bus.ping()
                return
        except NoDaemon:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.slow
def test_two_hosts_on_one_machine(tmp_path: Path) -> None:
    """The configuration and the commands as they stand, on other ports: created at one daemon, done at the other."""
    section = PAGE.split("## Two hosts on one machine")[1].split("\n## ")[0]
    config = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)[0]
    servers, daemons, story = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert [line.split()[0] for line in servers.splitlines()] == ["etcd", "nats-server"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("IFBUS_")}, "PATH": path}
    for name in ("etcd", "nats"):
        (tmp_path / name).mkdir()
    with ExitStack() as stack:
        etcd = stack.enter_context(run_etcd(tmp_path / "etcd"))
        nats = stack.enter_context(run_nats(tmp_path / "nats"))
        config = config.replace("127.0.0.1:2379", etcd.address).replace("127.0.0.1:4222", nats.address)
        (tmp_path / "two.toml").write_text(config)
        for line in daemons.splitlines():
            process = stack.enter_context(subprocess.Popen(shlex.split(line), cwd=tmp_path, env=environment))
            stack.callback(process.terminate)
        for name in ("a.sock", "b.sock"):
            _wait_for(tmp_path / name)
        told = subprocess.run(
            ["sh", "-e", "-c", story],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert told.returncode == 0, told
    assert "T-1 completed: Count the words" in told.stdout
