"""Who a one-shot command claims for, as a table of what is above it."""

from __future__ import annotations

import os

import pytest

from ifbus.cli.owner import Ancestor, choose, read_chain

ME, ROOT = 1000, 0


def above(*started: str, uid: int = ME) -> list[Ancestor]:
    """Processes by their command lines, the nearest first; ``&`` before one: forked and nothing executed since."""
    chain = []
    for number, line in enumerate(started):
        argv = tuple(line.removeprefix("&").split())
        name = os.path.basename(argv[0]).removeprefix("-")
        if line == "tmux: server":
            name, argv = line, ("tmux",)
        chain.append(Ancestor(900 - number, name, argv, uid, line.startswith("&")))
    return chain


@pytest.mark.parametrize(
    ("started", "chosen"),
    [
        pytest.param(("agent --fast",), 0, id="an agent"),
        pytest.param(("bash",), 0, id="an interactive shell"),
        pytest.param(("-zsh", "sshd-session"), 0, id="a login shell"),
        pytest.param(("/bin/bash work.sh", "bash"), 0, id="a script"),
        pytest.param(("bash -e work.sh -c x",), 0, id="a script whose argument is -c"),
        pytest.param(("sh -c ifbus", "agent"), 1, id="the shell of one command"),
        pytest.param(("/bin/bash -lc ifbus", "node agent.js"), 1, id="the same as a login shell"),
        pytest.param(("bash -euo pipefail -c ifbus", "agent"), 1, id="the same with other options"),
        pytest.param(("bash --rcfile /dev/null -c ifbus", "agent"), 1, id="the same with a long option"),
        pytest.param(("&bash", "bash"), 1, id="a subshell"),
        pytest.param(("&bash work.sh", "bash work.sh", "bash"), 1, id="a subshell of a script"),
        pytest.param(("&python agent.py", "python agent.py"), 0, id="a worker of an agent"),
        pytest.param(("sh -c ifbus", "make claim", "bash"), 2, id="a make target"),
        pytest.param(("timeout 5 ifbus", "env A=b timeout", "agent"), 2, id="runners"),
        pytest.param(("bash -c x", "sshd"), None, id="a command over ssh"),
        pytest.param(("sh -c x", "systemd"), None, id="a unit"),
        pytest.param(("timeout 5 ifbus", "tmux: server"), None, id="a pane without a shell"),
        pytest.param((), None, id="nothing to be seen"),
    ],
)
def test_the_nearest_that_outlives_the_command(started: tuple[str, ...], chosen: int | None) -> None:
    """What only carries the command is passed over, what outlives everybody is nobody's."""
    assert choose(above(*started), ME) == (None if chosen is None else 900 - chosen)


def test_another_user_ends_the_search() -> None:
    """What is above `sudo` is not this user's."""
    assert choose([*above("sh -c x"), *above("agent", uid=ROOT)], ME) is None


def test_the_first_process_is_nobodys() -> None:
    """Whatever runs as number 1 stands for the machine or the container."""
    assert choose([Ancestor(1, "agent", ("agent",), ME)], ME) is None


def test_the_chain_is_what_the_kernel_says() -> None:
    """Our parent comes first, each is the parent of the one before."""
    chain = read_chain()
    assert chain[0].pid == os.getppid()
    assert chain[0].uid == os.stat(f"/proc/{os.getppid()}").st_uid
    assert len({ancestor.pid for ancestor in chain}) == len(chain)
