"""One sandbox: a loaded module of a swarm, its contract, and the process that runs it while there is work.

Limits are held from here: call rate before, wall clock, memory and processor share while it runs, output after. A worker
that crossed one is killed and replaced at the next execution.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import attrs
import trio

from ifbus.errors import GuestFailed, IfbusError, LimitExceeded, Overloaded
from ifbusd.chassis import rules
from ifbusd.chassis.messages import BrokenWorker, Outcome, pack, unpack_outcome
from ifbusd.chassis.model import LoadedModule, SandboxReport
from ifbusd.chassis.processes import Exit, Worker

_log = logging.getLogger(__name__)

# Executions that a promise is measured over: enough for a p99, forgotten in minutes by a busy module.
_SAMPLES: Final = 256
# Most executions end within it and are never looked at in between.
_SLICE_S: Final = 0.02
# Some programs put it before their text.
_BOM: Final = "\ufeff"
# What a worker may have beyond its start and its guest's memory before it is killed; the kernel's own limit is above.
MEMORY_MARGIN_BYTES: Final = 32 << 20
# Processor time that a worker may use between two executions: the instance made ahead takes 5 ms at most.
_IDLE_CPU_US: Final = 50_000


@attrs.frozen(kw_only=True)
class Ready:
    """A worker that has loaded the module and locked itself down.

    Attributes:
        base_bytes: Private memory before the first guest ran.
        released: Called once the process has ended.
    """

    worker: Worker
    layers: tuple[str, ...]
    base_bytes: int
    released: Callable[[], None]


class Run(NamedTuple):
    """A successful execution.

    Attributes:
        cpu_us: Processor time, that of making its instance included.
        waited: As in `Begun`.
    """

    output: Any
    wall_us: int
    cpu_us: int
    memory_bytes: int
    sandbox: str
    waited: bool


@attrs.define(kw_only=True, eq=False)
class Begun:
    """An execution between `Sandbox.begin` and `finish` or `abandon`.

    Attributes:
        number: What its worker calls it, 0 while it has none.
        deadline: When the worker is killed, by trio's clock.
        warmth: Whether a live worker took it.
        answer: The worker's message, once it has been read.
        waited: Whether that was not there yet when it was first asked for.
    """

    text: bytes
    began_us: int
    number: int = 0
    deadline: float = math.inf
    warmth: str = "cold"
    answer: bytes | None = None
    waited: bool = False


class Sandbox:
    """Executions of one module, one at a time. The mutable state is the worker, the buckets and the samples."""

    def __init__(
        self, swarm_id: str, module: LoadedModule, *, queue_length: int, start: Callable[[Sandbox], Awaitable[Ready]]
    ) -> None:
        self.swarm_id = swarm_id
        self.module = module
        self.used_at = 0.0
        self._queue_length = queue_length
        self._start = start
        # No lock: what one task begins, another may finish.
        self._turn = trio.Semaphore(1, max_value=1)
        self._waiting = 0
        self._ready: Ready | None = None
        # What the worker had used by the end of its last execution: from there on it works for the next one.
        self._used_us = 0
        self._number = 0
        # What the worker runs while nobody waits for its answer.
        self._unwatched: Begun | None = None
        limits = module.contract.limits
        self._is_throttled = limits.cpu_percent < 100
        now_us = _now_us()
        self._calls = rules.Bucket.full(rate_per_s=limits.calls_per_s, capacity=limits.calls_per_s, now_us=now_us)
        share = limits.cpu_percent * 10_000  # us of processor per second
        self._cpu = rules.Bucket.full(rate_per_s=share, capacity=share / 10, now_us=now_us)
        self._samples: deque[rules.Sample] = deque(maxlen=_SAMPLES)
        self._executions = 0
        self._failures = 0

    @property
    def cpu_fence_s(self) -> int:
        """Processor seconds after which the kernel ends a worker, the second line behind the wall clock.

        It cannot be moved later: that needs a capability which most hosts withhold. So a worker is replaced before it comes
        near, after no less than 10 s of work: 7 ms for a new one are nothing then.
        """
        return 11 + 2 * -(-self.module.contract.limits.wall_ms // 1000)

    @property
    def is_busy(self) -> bool:
        """Whether an execution runs, or a worker is being started or ended."""
        return not self._turn.value

    @property
    def is_warm(self) -> bool:
        """Whether it has a process."""
        return self._ready is not None

    @property
    def layers(self) -> tuple[str, ...]:
        """What locks its process down; empty when it has none."""
        return self._ready.layers if self._ready is not None else ()

    async def warm_up(self) -> None:
        """Start the worker if there is none. Raises what starting raises."""
        async with self._turn:
            await self._worker()

    async def execute(self, text: bytes) -> Run:
        """`begin` and `finish` in one."""
        return await self.finish(self.begin(text))

    def begin(self, text: bytes) -> Begun:
        """Give an execution to the worker at once, if there is one and nothing stands before it; else `finish` does.

        Whoever begins one must `finish` or `abandon` it.

        Raises:
            LimitExceeded: `data["limit"]` is ``calls_per_s``.
        """
        self._take_call()
        begun = Begun(text=text, began_us=_now_us())
        if self._turn.value and self._ready is not None and not self._must_wait():
            self._turn.acquire_nowait()
            try:
                self._send(self._ready, begun, "warm")
            except OSError:  # it has ended: `finish` starts another one
                self._turn.release()
            else:
                self._unwatched = begun
        return begun

    def has_answer(self, begun: Begun) -> bool:
        """Whether `finish` has nothing to wait for."""
        if begun.answer is None and begun.number:
            assert self._ready is not None  # from `_send` on the turn is ours
            begun.answer = self._ready.worker.receive_now()
        begun.waited |= begun.answer is None
        return begun.answer is not None

    async def finish(self, begun: Begun) -> Run:
        """The end of an execution that was begun.

        Raises:
            LimitExceeded: `data["limit"]` is ``wall_ms``, ``cpu_ms``, ``memory_bytes`` or ``output_bytes``.
            GuestFailed: It trapped, failed, or gave no JSON.
            InvalidParams: The input does not fit the export.
            Overloaded: Too many wait for this sandbox, or all sandboxes are busy.
            Unavailable: No worker could be started.

        Cancelled: the guest is killed; it had no effect, because it can have none.
        """
        if begun is self._unwatched:
            self._unwatched = None
        if not begun.number:
            await self._take_turn()
        try:
            if not begun.number:
                await self._give(begun)
            outcome, cpu_us = await self._answer(begun)
            output = self._result(outcome)
        except IfbusError as error:
            if isinstance(error, GuestFailed | LimitExceeded):
                self._sample(False, begun.began_us)
            raise
        finally:
            self.used_at = time.monotonic()
            self._turn.release()
        return Run(
            output=output,
            wall_us=self._sample(True, begun.began_us),
            cpu_us=cpu_us,
            memory_bytes=outcome.memory_bytes,
            sandbox=begun.warmth,
            waited=begun.waited,
        )

    async def abandon(self, begun: Begun) -> None:
        """Give up an execution that was begun: its guest is killed."""
        if begun is self._unwatched:
            self._unwatched = None
        if begun.number:
            try:
                await self._end()
            finally:
                self._turn.release()

    async def cool(self) -> None:
        """End the worker, if there is one, after what it is doing."""
        async with self._turn:
            await self._end()

    async def kill(self) -> None:
        """End the worker, if there is one, now; what it was doing fails."""
        if self._ready is not None:
            self._ready.worker.signal(signal.SIGKILL)
        await self.cool()

    async def inspect(self) -> None:
        """Look at a worker that nobody waits for: one that is over its time, died, grew or ran without being asked goes."""
        if self._unwatched is not None and self._ready is not None and trio.current_time() > self._unwatched.deadline:
            self._ready.worker.signal(signal.SIGKILL)  # whoever began it is held up; `finish` says why it ended
        if self.is_busy:
            return
        async with self._turn:
            ready = self._ready
            if ready is None:
                return
            worker = ready.worker
            if not worker.is_alive():
                reason = "ended"
            elif worker.cpu_us() - self._used_us > _IDLE_CPU_US:
                reason = "ran without being asked"
            elif worker.private_bytes() > self._memory_bound(ready):
                reason = "grew without being asked"
            else:
                return
            ended = await self._end()
            _log.warning(
                "chassis.idle_sandbox_killed", extra={"swarm": self.swarm_id, "reason": reason, "signal": _name(ended)}
            )

    def report(self) -> SandboxReport:
        """The sandbox as it stands."""
        contract = self.module.contract
        return SandboxReport(
            swarm_id=self.swarm_id,
            module_sha256=contract.module_sha256,
            kind=contract.kind,
            state="busy" if self.is_busy else "idle" if self.is_warm else "cold",
            layers=self.layers,
            executions=self._executions,
            failures=self._failures,
            quality=rules.assess(self._samples, contract.slo),
            private_bytes=self._ready.worker.private_bytes() if self._ready is not None else 0,
        )

    # --- one execution ---------------------------------------------------------------------------------

    def _take_call(self) -> None:
        self._calls, wait_us = rules.take(self._calls, _now_us())
        if wait_us:
            rate = self.module.contract.limits.calls_per_s
            error = rules.exceeded(
                "calls_per_s",
                rate + 1,
                rate,
                f"cannot execute for {self.swarm_id}: more than {rate} calls per second",
                [{"by": "time", "what": f"wait {-(-wait_us // 1000)} ms"}],
            )
            error.data["retry_after_ms"] = -(-wait_us // 1000)
            raise error

    async def _take_turn(self) -> None:
        if self._turn.value:
            self._turn.acquire_nowait()
            return
        if self._waiting >= self._queue_length:
            raise Overloaded(
                f"cannot execute for {self.swarm_id}: {self._waiting} executions wait for this sandbox",
                data={"waiting": self._waiting, "retry_after_ms": 50},
            )
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1

    async def _worker(self) -> Ready:
        if self._ready is not None and not self._ready.worker.is_alive():
            ended = await self._end()
            _log.warning("chassis.sandbox_ended", extra={"swarm": self.swarm_id, "signal": _name(ended)})
        elif self._ready is not None and self._is_worn:
            await self._end()
        if self._ready is None:
            self._ready = await self._start(self)
            self._used_us = self._ready.worker.cpu_us()
        return self._ready

    @property
    def _is_worn(self) -> bool:
        """Whether the kernel's fence might end the next execution before its wall clock does."""
        return self._used_us > self.cpu_fence_s * 1_000_000 - self.module.contract.limits.wall_ms * 1000

    def _must_wait(self) -> bool:
        """Whether something has to be done before the worker takes the next execution."""
        return self._is_worn or self._debt_us() > 0

    async def _give(self, begun: Begun) -> None:
        warmth = "warm" if self._ready is not None else "cold"
        ready = await self._worker()
        try:
            if debt_us := self._debt_us():
                await trio.sleep(debt_us / 1_000_000)
            self._send(ready, begun, warmth)
        except OSError:
            raise self._death(await self._end()) from None
        except BaseException:
            await self._end()
            raise

    def _send(self, ready: Ready, begun: Begun, warmth: str) -> None:
        ready.worker.send(pack([self._number + 1, begun.text]))
        self._number += 1
        begun.number = self._number
        begun.deadline = trio.current_time() + self.module.contract.limits.wall_ms / 1000
        begun.warmth = warmth

    async def _answer(self, begun: Begun) -> tuple[Outcome, int]:
        """What the worker answers, and the processor time that it took."""
        ready = self._ready
        assert ready is not None  # from `_send` on the turn is ours
        worker, before_us = ready.worker, self._used_us
        try:
            if not self.has_answer(begun):
                with trio.CancelScope(deadline=min(begun.deadline, trio.current_time() + _SLICE_S)):
                    begun.answer = await worker.receive()
            if begun.answer is None or (not begun.answer and trio.current_time() > begun.deadline):
                begun.answer = await self._watch(ready, begun.deadline)
            if begun.answer:
                outcome = unpack_outcome(begun.answer, begun.number)
                self._charge(worker)
                if outcome.status == "memory":
                    await self._end()  # out of memory, the process is not to be trusted with the next one
                return outcome, self._used_us - before_us
        except BrokenWorker as error:
            await self._end()
            _log.error("chassis.broken_worker", extra={"swarm": self.swarm_id, "reason": str(error)})
            raise _failed(f"stopped the module: its sandbox broke the protocol ({error})") from error
        except BaseException:
            await self._end()
            raise
        raise self._death(await self._end())

    def _charge(self, worker: Worker) -> int:
        """Charge for what the worker used since the last time; how long in us it must rest then."""
        before_us, self._used_us = self._used_us, worker.cpu_us()
        if not self._is_throttled:
            return 0
        self._cpu, wait_us = rules.charge(self._cpu, _now_us(), self._used_us - before_us)
        return wait_us

    def _debt_us(self) -> int:
        """How long in us until the processor time that was used is paid for."""
        return rules.charge(self._cpu, _now_us(), 0)[1] if self._is_throttled else 0

    async def _watch(self, ready: Ready, deadline: float) -> bytes:
        """The answer of an execution that takes its time, looked at every 20 ms; empty when the worker died."""
        worker, limits = ready.worker, self.module.contract.limits
        while (now := trio.current_time()) < deadline:
            private = worker.private_bytes()
            if private > self._memory_bound(ready):
                raise rules.exceeded(
                    "memory_bytes",
                    private - ready.base_bytes,
                    limits.memory_bytes,
                    f"stopped the module: its sandbox holds more than its {limits.memory_bytes} bytes of memory",
                )
            if wait_us := self._charge(worker):
                worker.signal(signal.SIGSTOP)
                try:
                    await trio.sleep_until(min(deadline, now + wait_us / 1_000_000))
                finally:
                    worker.signal(signal.SIGCONT)
            with trio.CancelScope(deadline=min(deadline, trio.current_time() + _SLICE_S)):
                return await worker.receive()
        raise rules.exceeded(
            "wall_ms",
            limits.wall_ms,
            limits.wall_ms,
            f"stopped the module: it ran longer than its {limits.wall_ms} ms",
            [{"by": "self", "what": "load it with a higher wall_ms", "call": "chassis.load_swarm"}],
        )

    def _result(self, outcome: Outcome) -> Any:
        if outcome.status != "ok":
            raise rules.failure(
                self.module.contract, outcome.status, outcome.message, outcome.output, outcome.memory_bytes
            )
        if len(outcome.output) > self.module.contract.limits.output_bytes:
            raise _failed("stopped the module: its sandbox broke its output limit")
        try:
            value = _decode(outcome.output.decode().removeprefix(_BOM))
        except (ValueError, RecursionError) as error:
            raise _failed(f"the module gave no JSON: {error}", output_bytes=len(outcome.output)) from error
        why = rules.check_output(value)
        if why is not None:
            raise _failed(f"the module gave {why}, which no answer can carry")
        return value

    def _death(self, ended: Exit | None) -> IfbusError:
        limits = self.module.contract.limits
        killer = ended.signal if ended is not None else None
        if killer is signal.SIGXCPU:
            used_ms = ended.cpu_us // 1000 if ended is not None else 0
            return rules.exceeded(
                "cpu_ms",
                used_ms,
                limits.wall_ms,
                "stopped the module: its sandbox used up its processor time",
                [{"by": "self", "what": "load it with a higher wall_ms", "call": "chassis.load_swarm"}],
            )
        _log.error("chassis.sandbox_died", extra={"swarm": self.swarm_id, "signal": _name(ended)})
        if killer is signal.SIGSYS:
            # The abort of a process that is out of memory is such a call, too.
            return _failed("stopped the module: its sandbox made a forbidden system call, or ran out of memory")
        return _failed(f"the module's sandbox ended while it ran ({_name(ended)})")

    def _memory_bound(self, ready: Ready) -> int:
        return ready.base_bytes + self.module.contract.limits.memory_bytes + MEMORY_MARGIN_BYTES

    async def _end(self) -> Exit | None:
        ready, self._ready = self._ready, None
        if ready is None:
            return None
        try:
            return await ready.worker.end()
        finally:
            ready.released()

    def _sample(self, succeeded: bool, began_us: int) -> int:
        wall_us = _now_us() - began_us
        self._samples.append(rules.Sample(succeeded, wall_us))
        self._executions += 1
        self._failures += not succeeded
        return wall_us


def _failed(message: str, **figures: int) -> GuestFailed:
    return GuestFailed(message, data=figures, would_change=[{"by": "self", "what": "another input or module"}])


def _name(ended: Exit | None) -> str:
    if ended is None:
        return "unknown"
    return ended.signal.name if ended.signal is not None else f"exit status {ended.status}"


def _now_us() -> int:
    return time.monotonic_ns() // 1000


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_decode: Final = json.JSONDecoder(parse_constant=_refuse_constant).decode
