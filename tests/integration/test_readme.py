"""What the README tells a newcomer to type works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ifbus import testing

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
