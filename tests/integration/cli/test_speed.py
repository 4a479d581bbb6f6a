"""Speed is manners: what a one-shot command imports, and what it may never import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.cli.shell import Shell

pytestmark = pytest.mark.slow

# Each would cost a command more than it has: 60 ms in all (UX 2).
HEAVY = {
    "anyio",
    "asyncio",
    "attr",
    "attrs",
    "click",
    "ifbus.link",
    "ifbus.models",
    "rich",
    "textual",
    "trio",
}
COMMANDS = (
    "status",
    "task ls",
    "task ls --json",
    "task next --swarm speedy",
    "swarm ls",
    "budget",
    "breaker ls",
    "witness query",
    "cost report",
    "guide --swarm speedy",
    "inbox --swarm speedy",
    "rpc daemon.ping",
    "__complete task",
)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_one_shot_command_loads_nothing_heavy(shell: Shell, line: str) -> None:
    """No event loop, no table library and no model class stands between an agent and its answer."""
    shell("swarm", "register", "speedy", "--can", "a:b")
    program = (
        "import sys; from ifbus.cli import main; status = main(sys.argv[1:]);"
        "sys.stderr.write('LOADED ' + ' '.join(sorted(sys.modules))); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *line.split()],
        env=shell.environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 7), done
    loaded = set(done.stderr.partition("LOADED ")[2].split())
    assert loaded & HEAVY == set()
