"""What the README tells a newcomer to type works."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ifbus import Client, testing

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_swarm_of_the_readme_completes_its_task() -> None:
    """The Python block, as it stands, registers, claims, spends and completes."""
    [program] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    with testing.daemon() as daemon:
        assert re.fullmatch(r"T-1@\d+ \d+:[0-9a-f]{8}\n", _run(program, daemon.socket))
        with daemon.client() as bus:
            assert bus.call("coordinator.get_task", "T-1")["task"]["result"] == {"words": 4}


def test_every_link_of_the_readme_leads_somewhere() -> None:
    """No page that the README names is missing."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_client_of_the_protocol_page_completes_its_task() -> None:
    """The program that shows the wire needs nothing else than the page says, and works as it stands."""
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "protocol.md").read_text(), re.DOTALL)
    with testing.daemon() as daemon:
        assert re.fullmatch(r"completed \d+\n", _run(program, daemon.socket))


@pytest.mark.slow
def test_the_programs_of_the_client_page_work_together() -> None:
    """Worker, reader and orchestrator as they stand do the orchestrator's tasks, one at the second attempt."""
    worker, reader, orchestrator = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL
    )
    with testing.daemon() as daemon, ExitStack() as stack:
        at_work = [stack.enter_context(_started(program, daemon.socket)) for program in (worker, reader)]
        with Client(daemon.socket) as bus:
            while len([swarm for swarm in bus.list_swarms().swarms if swarm.alive]) < len(at_work):
                pass
        told = _run(orchestrator, daemon.socket).splitlines()
        assert told[-2:] == ["read completed {'read': 'to be'}", "count completed {'words': 4}"]
        assert [line.split()[0] for line in told[:-2] if line.endswith("count")] == [
            *("created", "claimed", "progress", "progress", "released"),
            *("claimed", "progress", "progress", "completed"),
        ]
        at_work[0].terminate()
        for process in at_work:
            _, complaints = process.communicate(timeout=60)
            assert (process.returncode, complaints) == (0, "")


@contextmanager
def _started(program: str, socket: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "IFBUS_SOCKET": str(socket)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _run(program: str, socket: Path) -> str:
    """What a program printed that ended well at the daemon of this socket."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "IFBUS_SOCKET": str(socket)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
