"""Which instances are made ahead, and that each serves one execution."""

import itertools
import time

import wasmtime

from ifbusd.chassis import guest


class _Host:
    """Instances are numbers; making one may call the host, take long or fail."""

    def __init__(self) -> None:
        self.calls = 0
        self.calls_each = 0
        self.takes_ns = 0
        self.fails = False
        self.made: list[int] = []
        self._numbers = itertools.count(1)
        self.instances = guest._Instances(self._make, lambda: self.calls)

    def _make(self) -> int:
        self.calls += self.calls_each
        began_ns = time.thread_time_ns()
        while time.thread_time_ns() - began_ns < self.takes_ns:
            pass
        if self.fails:
            raise wasmtime.WasmtimeError("no room")
        self.made.append(next(self._numbers))
        return self.made[-1]


def test_none_is_made_before_one_was_asked_for() -> None:
    """What a module does when it starts is unknown until one of it started while the daemon watched."""
    host = _Host()
    host.instances.prepare()
    assert host.made == []


def test_next_one_is_made_ahead_and_given_out_once() -> None:
    """After the first one, each stands ready when it is asked for, and none is given out twice."""
    host = _Host()
    taken = []
    for _ in range(3):
        taken.append(host.instances.take())
        assert len(host.made) == len(taken)
        host.instances.prepare()
        host.instances.prepare()
        assert len(host.made) == len(taken) + 1
    assert taken == [1, 2, 3]


def test_start_that_calls_the_host_is_never_run_ahead() -> None:
    """It might read its input, the time or chance: it runs when the execution runs."""
    host = _Host()
    host.calls_each = 1
    assert [host.instances.take(), host.instances.prepare(), host.instances.take()] == [1, None, 2]
    assert host.made == [1, 2]


def test_instance_that_called_the_host_ahead_is_thrown_away() -> None:
    """Even where no earlier one did."""
    host = _Host()
    host.instances.take()
    host.calls_each = 1
    host.instances.prepare()
    assert host.instances.take() == 3


def test_slow_start_is_not_run_ahead() -> None:
    """The daemon ends a sandbox that works for long without being asked."""
    host = _Host()
    host.takes_ns = 2 * guest._AHEAD_NS
    host.instances.take()
    host.instances.prepare()
    assert host.made == [1]


def test_failure_ahead_is_left_to_the_execution() -> None:
    """Nobody could be told of it; the next execution makes its own and fails, or not, in front of the caller."""
    host = _Host()
    host.instances.take()
    host.fails = True
    host.instances.prepare()
    host.fails = False
    assert host.instances.take() == 2
