"""One request as a value, and which methods need no idempotency key. Light: the untyped clients import nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypedDict, TypeVar

from ifbus.errors import InvalidParams, ProtocolError

R = TypeVar("R")

# These change nothing that a repetition would change again, so they carry no idempotency key (which costs the daemon a
# durable record). Every other method gets one, those that a newer daemon adds included.
KEYLESS: Final = frozenset(
    {
        "daemon.hello",
        "daemon.expect_process",
        "daemon.ping",
        "daemon.describe",
        "daemon.status",
        # Binding twice is as binding once; and a repetition may come over another connection, which is another thing to bind to.
        "coordinator.bind_claim",
        "coordinator.bind_session",
        # Nothing outside the sandbox changes: a repetition runs once more, and waits for no more than its admission.
        "chassis.execute_task",
        "coordinator.get_task",
        "coordinator.list_tasks",
        "coordinator.list_dead_letters",
        "coordinator.renew_claim",
        "coordinator.renew_session",
        "coordinator.list_blockers",
        "coordinator.list_resources",
        "coordinator.list_topics",
        "coordinator.swarm_status",
        "coordinator.await_reply",
        "coordinator.list_questions",
        "coordinator.waits",
        "coordinator.read_inbox",
        "coordinator.subscribe_inbox",
        "coordinator.subscribe_board",
        "coordinator.explain_claim",
        "governor.get_swarm",
        "governor.list_swarms",
        "governor.find_qualified_swarm",
        "governor.get_budget_report",
        "governor.list_breakers",
        "governor.subscribe_escalations",
        "governor.list_escalations",
        # Its offset makes a chunk that comes twice harmless.
        "chassis.put_blob",
        "chassis.list_sandboxes",
        "witness.query",
        "witness.verify",
        "witness.head",
        "optimise.report",
    }
)


class Options(TypedDict, total=False):
    """What can be said about any call, beside its own parameters.

    Attributes:
        timeout: Seconds that the caller gives this call; sent along, so that the daemon stops working on it too.
        idempotency_key: Replaces the automatic one, to repeat a call of an earlier process with the effect of one.
        traceparent: W3C trace context that goes into log and witness.
    """

    timeout: float | None
    idempotency_key: str | None
    traceparent: str | None


# What a daemon takes. Clocks and the kernel take more, but not any number.
_MAX_TIMEOUT_S: Final = 24 * 60 * 60
_OPTIONS: Final = frozenset(("timeout", "idempotency_key", "traceparent"))


def check_options(method: str, options: Options) -> None:
    """Raise TypeError if a keyword is neither an option nor an argument of the method, InvalidParams if the timeout is no span."""
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise TypeError(f"{method} got an unexpected keyword argument {min(unknown)!r}")
    check_timeout(f"call {method}", options.get("timeout"))


def check_timeout(what: str, timeout: float | None) -> None:
    """Raise InvalidParams if it is no span that can be waited for; None is none.

    Args:
        what: What cannot be done then.
    """
    if timeout is not None and not (isinstance(timeout, int | float) and 0 <= timeout <= _MAX_TIMEOUT_S):
        raise InvalidParams(
            f"cannot {what}: a timeout is in seconds, at most {_MAX_TIMEOUT_S}, got {timeout!r:.40}",
            data={"param": "timeout"},
        )


class Call(NamedTuple, Generic[R]):
    """One request: the method, its parameters, how to read its answer, and what was said about it.

    Attributes:
        params: Keyword parameters, or a list of positional ones.
        wait_s: How long the daemon was asked to wait on purpose; the client's own patience starts after that.
    """

    method: str
    params: dict[str, Any] | list[Any]
    read: Callable[[Any], R]
    options: Options = Options()
    wait_s: float = 0.0


def untyped(answer: Any) -> Any:
    """The answer as it came."""
    return answer


def to_wire(
    call: Call[Any], *, key: str | None, asked_timeout_s: float | None
) -> tuple[list[Any], dict[str, Any] | None]:
    """The params array of a request, and what it says about itself.

    Args:
        key: Idempotency key, or None for a method without.
        asked_timeout_s: The time that is left of what the caller gave, or None if the caller did not say.
    """
    meta: dict[str, Any] = {}
    if key is not None:
        meta["idempotency_key"] = key
    if asked_timeout_s is not None:
        meta["timeout_ms"] = max(1, int(asked_timeout_s * 1000))
    traceparent = call.options.get("traceparent")
    if traceparent is not None:
        meta["traceparent"] = traceparent
    params = call.params if type(call.params) is list else [call.params] if call.params else []
    return params, meta or None


def read_answer(call: Call[R], answer: Any) -> R:
    """The answer in the form that `call` promises. Raises ProtocolError where a daemon answers in another shape."""
    try:
        return call.read(answer)
    except (KeyError, TypeError, InvalidParams) as error:
        raise ProtocolError(f"cannot read the answer to {call.method}: {type(error).__name__} {error}") from error
