"""`ifbus run`: starts an agent with its identity, renews its session while it lives, frees its claims when it ends."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sys
import threading
from typing import Final

from ifbus.cli.command import Command, Data, Invocation, Outcome, span_type
from ifbus.cli.commands.task import split_list
from ifbus.cli.text import span
from ifbus.connect import candidates, connect
from ifbus.errors import IfbusError, StaleToken, Usage
from ifbus.link import Link

_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# siginfo's si_code for "the kernel did it": for these signals, the terminal. It tells the whole process group, so the
# program has it already.
_SI_KERNEL: Final = 0x80
# Three heartbeats in one lease: two may be lost.
_BEATS_PER_LEASE: Final = 3


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--swarm", metavar="NAME", help="its name (else IFBUS_SWARM)")
    parser.add_argument(
        "--can", metavar="CAP", action="append", help="what it can do, area:skill; again or A,B (else as it was)"
    )
    parser.add_argument("--budget-usd", metavar="USD", help="its budget when it has none; only an operator raises one")
    parser.add_argument("--cost-per-hour-usd", metavar="USD")
    parser.add_argument("--model", metavar="TEXT", help="the language model behind it")
    parser.add_argument("--orchestrator", action="store_true", help="hears of every blocker")
    parser.add_argument("--lease", metavar="SPAN", type=span_type, help="lease of the session; default: the daemon's")
    parser.add_argument("--slots", type=int, metavar="N", help="the weights of what it holds add up to N at most")
    parser.add_argument(
        "--fd",
        action="store_true",
        help="hand a connection over (IFBUS_FD): for a program that a sandbox lets not connect",
    )


class _Session:
    """A swarm's session, bound to the program and renewed by a thread of its own."""

    def __init__(self, link: Link, profile: Data) -> None:
        self._link = link
        self._profile = profile
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="renewal")
        self._pidfd = -1
        answer = link.call("coordinator.register_swarm", **profile)
        self.lease_ms: int = answer["lease_ms"]
        self.token: str = answer["resume_token"]

    @property
    def _name(self) -> str:
        name: str = self._profile["swarm_id"]
        return name

    def start(self, pid: int) -> None:
        """Bind it to our child, and renew it from now on."""
        self._pidfd = os.pidfd_open(pid)
        self._bind()
        self._thread.start()

    def _bind(self) -> None:
        try:
            self._link.hand_over(self._pidfd)
            self._link.call("coordinator.bind_session", swarm_id=self._name, resume_token=self.token, bind="handed")
        except IfbusError as error:
            if not _has_ended(self._pidfd):
                _say(f"! {self._name} lives on its lease alone: {error.message}")

    def _beat(self) -> None:
        while not self._stop.wait(self.lease_ms / 1000 / _BEATS_PER_LEASE):
            name = self._name
            try:
                answer = self._link.call("coordinator.renew_session", swarm_id=name, resume_token=self.token)
            except StaleToken as error:
                # Not registered again: the program's commands prove the session that it was started in, and whoever has
                # taken the name since must not lose it to us.
                if not self._stop.is_set() and not _has_ended(self._pidfd):
                    _say(
                        f"! session of {name} was lost, its claims are free; end the program and start it anew: {error.message}"
                    )
                return
            except IfbusError as error:
                # The next beat tries again; what is lost by then, the fencing token keeps from doing harm.
                _say(f"! session of {name} was not renewed: {error.message}")
            else:
                bound = answer.get("bound")
                if bound is not None and not bound["watched"]:  # the daemon was started anew
                    self._bind()

    def end(self) -> list[str]:
        """Stop renewing and end the session; the tasks that became free."""
        self._stop.set()
        self._thread.join()
        os.close(self._pidfd)
        try:
            answer = self._link.call("coordinator.end_session", swarm_id=self._name, resume_token=self.token)
        except StaleToken:
            return []
        # What the daemon has freed already, because it saw the program end, it has told.
        told = [item["task_id"] for item in self._link.attention if _is_freed(item)]
        return list(dict.fromkeys([*told, *answer["freed"]]))


def _is_freed(item: Data) -> bool:
    return item.get("kind") == "lease_lost" and item.get("reason") == "process_ended"


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _run(invocation: Invocation) -> Outcome:
    args = invocation.args
    program = args.program
    if not program:
        raise Usage(
            "`run` starts a program: say which, after --",
            data={"command": "run", "example": invocation.command.examples[0]},
        )
    if shutil.which(program[0]) is None:
        raise Usage(f"no program {program[0]:.200}", data={"command": "run", "example": invocation.command.examples[0]})
    profile = {
        "swarm_id": invocation.require_swarm(),
        "capabilities": split_list(args.can),
        "budget_usd": args.budget_usd,
        "cost_per_hour_usd": args.cost_per_hour_usd,
        "model": args.model,
        "orchestrator": args.orchestrator,
        "lease_ms": args.lease,
        "slots": args.slots,
    }
    # Before any thread: threads inherit the mask, so a signal reaches only the wait below.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD})
    with Link(args.socket) as link:
        session = _Session(link, {name: value for name, value in profile.items() if value is not None})
        name = profile["swarm_id"]
        _say(f"ifbus run: {name} registered, session lease {span(session.lease_ms)} renewed while {program[0]} lives")
        identity = _identity(name, session.token, args.socket)
        pid = os.posix_spawnp(
            program[0],
            program,
            {**os.environ, **identity, **(_hand_over(args.socket) if args.fd else {})},
            setsigmask=before,
            # Python ignores these two; the program should find them as a shell would leave them.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
        session.start(pid)
        try:
            status = _wait(pid)
        finally:
            freed = session.end()
    if freed:
        _say(f"ifbus run: {name} ended, free again: {', '.join(freed)}")
    return Outcome({"swarm_id": name, "exit": status, "freed": freed}, exit=status)


def _identity(name: str, token: str, socket_path: str | None) -> dict[str, str]:
    places = candidates(socket_path, os.environ)
    found = next((path for path in places if os.path.exists(path)), places[0])
    return {"IFBUS_SOCKET": os.path.abspath(found), "IFBUS_SWARM": name, "IFBUS_TOKEN": token}


def _hand_over(socket_path: str | None) -> dict[str, str]:
    """A connection for the program and all that it starts: it stays open as long as one of them lives.

    They take turns at it by a byte in a pipe, so only who must gets one: a program that keeps its turn stops the others.
    """
    turn_read, turn_write = os.pipe()
    os.write(turn_write, b"\0")
    descriptors = [connect(candidates(socket_path, os.environ)).detach(), turn_read, turn_write]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    return {"IFBUS_FD": ",".join(map(str, descriptors))}


def _wait(pid: int) -> int:
    """Pass signals on until the program ends; its exit code, or 128 + signal as shells count."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        info = signal.sigwaitinfo({*_FORWARDED, signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
            os.kill(pid, info.si_signo)


def _say(line: str) -> None:
    # One write a line: the program writes to the same place.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


COMMANDS = {
    "": Command(
        words="run",
        summary="Start an agent with its identity; its claims are free when it ends",
        examples=(
            "ifbus run --swarm me --can docs:writing --budget-usd 1 -- bash",
            "ifbus run --swarm builder --can code-analysis:python -- my-agent --fast",
            "ifbus run --swarm boss --orchestrator -- python boss.py",
        ),
        arguments=_arguments,
        run=_run,
    ),
}
