"""Who a one-shot command claims for: the process behind it that will do the work, and not the shell that ends with the command.

The rule, from the command's parent upwards:

1. Passed over is what ends with the command: a shell that was given it (``bash -c``), a subshell, and programs that only run another
   one, such as ``make``, ``timeout``, ``env`` or ``xargs``.
2. At another user's process, and at what outlives everybody (init, systemd, sshd, tmux, a container's shim), the search ends: the
   claim then lives on its lease alone.
3. Otherwise this one: an agent, a script, or the interactive shell of a person.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

_MAX_DEPTH: Final = 32
# Forked and not executed since (PF_FORKNOEXEC in linux/sched.h): of a shell that is a subshell.
_FORKED: Final = 0x40
_SHELLS: Final = frozenset({"ash", "bash", "dash", "fish", "ksh", "mksh", "sh", "zsh"})
_RUNNERS: Final = frozenset(
    {"chrt", "doas", "env", "flock", "gmake", "ionice", "just", "ltrace", "make", "ninja", "nice", "nohup", "parallel", "script"}
    | {"setsid", "stdbuf", "strace", "sudo", "taskset", "time", "timeout", "unshare", "watch", "xargs"}
)  # fmt: skip
_EVERLASTING: Final = frozenset(
    {"conmon", "containerd-shim", "cron", "crond", "docker-init", "init", "login", "screen", "sshd", "sshd-session", "systemd"}
    | {"tini", "tmux", "tmux: server"}
)  # fmt: skip


class Ancestor(NamedTuple):
    """A process above the command.

    Attributes:
        name: What the kernel calls it, at most 15 characters.
        argv: How it was started; empty where that cannot be seen.
        is_forked: It was forked and has not executed anything since.
    """

    pid: int
    name: str
    argv: tuple[str, ...]
    uid: int
    is_forked: bool = False


def choose(chain: Sequence[Ancestor], uid: int) -> int | None:
    """The process that a claim of `uid` is bound to, None for none.

    Args:
        chain: The command's parent first.
    """
    for ancestor in chain:
        if ancestor.uid != uid or ancestor.pid <= 1 or ancestor.name in _EVERLASTING:
            return None
        if not _ends_with_the_command(ancestor):
            return ancestor.pid
    return None


def _ends_with_the_command(ancestor: Ancestor) -> bool:
    program = os.path.basename(ancestor.argv[0]).removeprefix("-") if ancestor.argv else ancestor.name
    if program in _RUNNERS:
        return True
    return program in _SHELLS and (ancestor.is_forked or _is_given_a_command(ancestor.argv))


def _is_given_a_command(argv: Sequence[str]) -> bool:
    """Whether a shell was started with ``-c``, perhaps among other options (``-lc``, ``-o pipefail -c``)."""
    words = iter(argv[1:])
    for word in words:
        if not word.startswith(("-", "+")) or word in ("-", "--"):
            return False
        if word.startswith("--"):
            if word in ("--rcfile", "--init-file"):
                next(words, None)
            continue
        if "c" in word:
            return True
        if word[-1] in "oO":
            next(words, None)
    return False


def read_chain() -> list[Ancestor]:
    """The processes above this one, as far as they can be seen."""
    chain: list[Ancestor] = []
    pid = os.getppid()
    try:
        while pid > 0 and len(chain) < _MAX_DEPTH:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                before, _, after = file.read().rpartition(")")
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                argv = tuple(file.read(4096).split("\0")[:-1])
            fields = after.split()  # state ppid pgrp session tty tpgid flags ...
            uid = os.stat(f"/proc/{pid}").st_uid
            chain.append(Ancestor(pid, before.partition("(")[2], argv, uid, bool(int(fields[6]) & _FORKED)))
            pid = int(fields[1])
    except (OSError, ValueError, IndexError):
        return chain  # what is above is hidden from us, or has ended just now
    return chain
