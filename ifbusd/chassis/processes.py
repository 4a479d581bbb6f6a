"""The zygote and its workers as the daemon sees them: processes held by pidfd, spoken to over SEQPACKET sockets.

The daemon is a child subreaper, so workers are its own children: nobody else can reap them, a pid stays theirs until
`Worker.end` returns, and what ended them is known for certain.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from typing import Any, Final

import attrs
import trio

from ifbus.errors import Unavailable
from ifbusd.chassis.launch import Launched, launch
from ifbusd.chassis.messages import MAX_MESSAGE_BYTES, BrokenWorker, pack, unpack
from ifbusd.chassis.orders import FORK

_PR_SET_CHILD_SUBREAPER: Final = 36
# Python, wasmtime and one compilation: 0.15 s here; a busy small machine gets the rest.
_ZYGOTE_START_S: Final = 15.0
# A fork takes 3 ms; a zygote that is found stopped after this is replaced.
_FORK_S: Final = 0.5
# One that needs longer than this, on however busy a machine, is ill.
_SLOW_FORK_S: Final = 10.0
# SIGKILL works within milliseconds unless the kernel itself is stuck.
_END_S: Final = 5.0
_UNHELD_LOOK_S: Final = 0.001
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Workers that a `Worker` will reap.
_held: Final[set[int]] = set()


@attrs.frozen(kw_only=True)
class Exit:
    """How a worker ended.

    Attributes:
        signal: The signal that killed it, or None.
        status: Its exit status when no signal did.
        cpu_us: Processor time of its whole life.
    """

    signal: signal.Signals | None
    status: int
    cpu_us: int


def become_subreaper() -> None:
    """Make this process the parent of workers whose intermediate parent ends. For the life of the process."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become the workers' parent")


def reap_strays(group: int) -> bool:
    """Reap what a zygote has left that ended in the middle of a fork: workers that nobody was told of, and their parents.

    They end by themselves, for nobody holds the other end of their sockets.

    Args:
        group: The zygote's process id, which is also that of the process group of all that it forked.

    Returns:
        Whether nothing of that group is left, held workers included; until then nobody else is given its number.
    """
    while True:
        try:
            found = os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        if found is None or found.si_pid in _held:
            return False
        os.waitpid(found.si_pid, os.WNOHANG)


class _Channel:
    """Our end of a SEQPACKET socket pair, without trio's own socket between: a third of a small execution's cost.

    Sends never wait, because each side reads one message before it is sent the next, and one fits the socket's buffer.
    """

    def __init__(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        self._raw = raw

    def send(self, message: bytes, descriptors: list[int] | None = None) -> None:
        if descriptors:
            socket.send_fds(self._raw, [message], descriptors)
        else:
            self._raw.send(message)

    def receive_now(self) -> bytes | None:
        """The next message if it is there, else None; empty when the other side is gone."""
        try:
            size = self._raw.recv_into(_buffer)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""
        return bytes(_buffer[:size])

    async def receive(self) -> bytes:
        """The next message; empty when the other side is gone."""
        while True:
            await trio.lowlevel.wait_readable(self._raw)
            message = self.receive_now()
            if message is not None:
                return message

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._raw)
        self._raw.close()


# Read into and copied out of without an await between; one byte more than any message, to know one that was cut off.
_buffer = memoryview(bytearray(MAX_MESSAGE_BYTES + 1))


class Worker:
    """One worker process. Not for concurrent use: its owner sends one message and reads one answer at a time."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        # Open for the worker's life: looking at its memory must not fail for want of a descriptor.
        try:
            self._statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._pidfd)
            raise
        self._channel = _Channel(channel)
        self._cpu_clock = (~pid << 3) | 2  # clock_getcpuclockid(3): the whole process, by scheduler time
        self._exit: Exit | None = None
        _held.add(pid)

    async def order(self, fields: list[Any], descriptors: list[int]) -> list[Any]:
        """Give it its order and the descriptors for it, and wait for the answer; an empty list if it died."""
        try:
            self._channel.send(pack(fields), descriptors)
            return unpack(await self._channel.receive() or pack([]))
        except (OSError, BrokenWorker):
            return []

    def send(self, message: bytes) -> None:
        """Send one request.

        Raises:
            OSError: The worker is gone.
        """
        self._channel.send(message)

    def receive_now(self) -> bytes | None:
        """The next message if it is there, else None; empty when the worker is gone."""
        return self._channel.receive_now()

    async def receive(self) -> bytes:
        """The next message; empty when the worker is gone."""
        return await self._channel.receive()

    def cpu_us(self) -> int:
        """Processor time that it used so far."""
        return time.clock_gettime_ns(self._cpu_clock) // 1000

    def private_bytes(self) -> int:
        """Memory of its own: resident pages that no file backs (code is mapped, guest memory and heap are not)."""
        _, resident, shared, *_ = os.pread(self._statm, 256, 0).split()
        return (int(resident) - int(shared)) * _PAGE_BYTES

    def is_alive(self) -> bool:
        """Whether it runs; does not reap."""
        if self._exit is not None:
            return False
        found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        if self._exit is None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return

    async def end(self) -> Exit:
        """Kill it if it still runs, reap it, close its descriptors, and say how it ended. Twice is fine.

        Not cancellable, but bounded: raises `trio.TooSlowError` if the kernel does not let go of it.
        """
        if self._exit is None:
            self.signal(signal.SIGKILL)
            with trio.fail_after(_END_S) as scope:
                scope.shield = True
                await trio.lowlevel.wait_readable(self._pidfd)
            if self._exit is None:  # somebody else waited too
                _, status, usage = os.wait4(self.pid, 0)  # noqa: ASYNC222 - it has ended
                _held.discard(self.pid)
                cpu_us = int((usage.ru_utime + usage.ru_stime) * 1_000_000)
                killer = signal.Signals(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None
                self._exit = Exit(signal=killer, status=os.waitstatus_to_exitcode(status), cpu_us=cpu_us)
                self._channel.close()
                os.close(self._pidfd)
                os.close(self._statm)
        return self._exit


def _pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise _exhausted(error) from error


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # there until it is reaped
        return file.read().rpartition(")")[2].split()[0] in "tT"


def _exhausted(error: OSError) -> Unavailable:
    # No descriptor left: the moment's matter, and no fault of the zygote.
    return Unavailable(f"cannot start a sandbox process: {error.strerror}", data={"retry_after_ms": 1000})


async def _end_unheld(pid: int) -> None:
    """Kill and reap a worker that no descriptor could be opened for; not cancellable, but bounded."""
    try:
        # The number is its own until it is reaped, if it is a child of ours; nobody else is to be killed by number.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # noqa: ASYNC222 - does not wait
    except ChildProcessError:
        return
    os.kill(pid, signal.SIGKILL)
    with trio.fail_after(_END_S) as scope:
        scope.shield = True
        # There is nothing to wait on: that would take a descriptor.
        while not os.waitpid(pid, os.WNOHANG)[0]:  # noqa: ASYNC110, ASYNC222 - does not wait
            await trio.sleep(_UNHELD_LOOK_S)


class Zygote:
    """A running zygote process. One fork at a time; `wait` returns when it has ended.

    Attributes:
        engine: Names engine version, settings and machine: what its workers' code must have been compiled for.
        layers: What its workers will lock themselves down with, for people.
        is_killed: We have ended it, so it is of no more use.
    """

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._channel = _Channel(channel)
        self._turn = trio.Lock()
        self.engine = self.layers = ""
        self.is_killed = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    async def start(cls, launched: Launched | None = None) -> Zygote:
        """Start one, unless one was launched before, and wait until it is ready.

        Raises:
            Unavailable: It ended or did not get ready in time; the reason is on standard error.
        """
        try:
            zygote = cls(*(launched or launch()))
        except OSError as error:
            raise Unavailable(f"cannot start the sandbox zygote: {error.strerror}") from error
        try:
            with trio.fail_after(_ZYGOTE_START_S):
                ready = await zygote._channel.receive()
            if not ready:
                raise Unavailable("cannot start the sandbox zygote: it ended at once, see the daemon's log")
            zygote.engine, zygote.layers = unpack(ready)
        except BaseException as error:
            await zygote.end()
            if isinstance(error, trio.TooSlowError):
                raise Unavailable(
                    f"cannot start the sandbox zygote: not ready after {_ZYGOTE_START_S:.0f} s"
                ) from error
            raise
        return zygote

    async def fork(self) -> Worker:
        """A new worker without an order yet.

        Raises:
            Unavailable: No descriptor is left. Or the zygote is gone, stopped, or could not fork: then it `is_killed`, and a
                new one will come.
        """
        ours, theirs = _pair()
        try:
            async with self._turn:
                with theirs:
                    self._channel.send(FORK, [theirs.fileno()])
                answer = await self._answer()
            if not answer or type(answer[0]) is not int or answer[0] <= 0:
                raise BrokenWorker("no pid")
            pid = answer[0]
        except BaseException as error:
            ours.close()
            theirs.close()
            if isinstance(error, trio.Cancelled):  # while others had their turn
                raise
            self.kill()  # ill, it is better gone
            if isinstance(error, OSError | BrokenWorker | trio.TooSlowError | trio.ClosedResourceError):
                raise Unavailable(
                    "cannot start a sandbox: the zygote does not answer", data={"retry_after_ms": 250}
                ) from error
            raise
        try:
            return Worker(pid, ours)
        except OSError as error:
            ours.close()
            await _end_unheld(pid)
            raise _exhausted(error) from error

    async def _answer(self) -> list[Any]:
        # Never given up half way: the answer would be taken for the next one's, and its worker would be nobody's.
        answer: bytes | None = None
        with trio.CancelScope(shield=True), trio.fail_after(_SLOW_FORK_S):
            while answer is None:
                with trio.move_on_after(_FORK_S):
                    answer = await self._channel.receive()
                if answer is None and _is_stopped(self.pid):
                    raise BrokenWorker("it was stopped")
        return unpack(answer or b"")

    async def wait(self) -> None:
        """Return when the process has ended."""
        await trio.lowlevel.wait_readable(self._pidfd)

    def kill(self) -> None:
        """End it at once. Workers live on."""
        self.is_killed = True
        self._process.kill()

    async def end(self) -> int:
        """Kill it if it still runs and reap it; its exit status."""
        self.kill()
        with trio.fail_after(_END_S) as scope:
            scope.shield = True
            await self.wait()
        self._channel.close()
        status = self._process.wait()
        os.close(self._pidfd)
        return status
