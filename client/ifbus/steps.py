"""Conversations of several calls, written once for both clients.

A `Steps` generator yields the `Call` that it wants made and is sent the answer, or the error thrown into it. It does no
I/O; `drive` makes the calls with a blocking client, `drive_async` with an asynchronous one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

from ifbus.errors import ConnectionFailed, IfbusError, Momentary
from ifbus.request import Call

R = TypeVar("R")
Steps = Generator[Call[Any], Any, R]


def ask(call: Call[R]) -> Steps[R]:
    """One call, with its answer's type: ``task = yield from ask(calls.get_task("T-1"))``."""
    answer: R = yield call
    return answer


def is_outcome_unknown(error: BaseException) -> bool:
    """Whether a call that ended with this error may have been done: no answer came, or the caller was interrupted."""
    return not isinstance(error, IfbusError) or isinstance(error, Momentary | ConnectionFailed)


def drive(steps: Steps[R], perform: Callable[[Call[Any]], Any]) -> R:
    """Make every call of `steps`, blocking; what `steps` returns or raises."""
    try:
        call = next(steps)
        while True:
            try:
                answer = perform(call)
            except BaseException as error:  # an interruption too: the steps may have to settle what it left open
                call = steps.throw(error)
            else:
                call = steps.send(answer)
    except StopIteration as end:
        result: R = end.value
        return result


async def drive_async(steps: Steps[R], perform: Callable[[Call[Any]], Awaitable[Any]]) -> R:
    """As `drive`, awaiting each call. Cancelled, calls that the steps still want are cancelled too."""
    try:
        call = next(steps)
        while True:
            try:
                answer = await perform(call)
            except BaseException as error:  # an interruption too: the steps may have to settle what it left open
                call = steps.throw(error)
            else:
                call = steps.send(answer)
    except StopIteration as end:
        result: R = end.value
        return result
