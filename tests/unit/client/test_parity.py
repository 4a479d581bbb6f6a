"""The two clients are one: every method, parameter and docstring of the blocking client has its awaiting twin."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ifbus import aio, async_link, link, sync

PAIRS = [
    (sync.Client, aio.AsyncClient),
    (sync.Swarm, aio.AsyncSwarm),
    (sync.Claim, aio.AsyncClaim),
    (sync.Spending, aio.AsyncSpending),
    (sync.Lock, aio.AsyncLock),
    (link.Subscription, async_link.AsyncSubscription),
]
# In an event loop a call is ended by cancelling it.
_ONLY_BLOCKING = {("perform", "abort")}
# These wait for nothing, whichever client it is.
_PLAIN = {"drain", "take_attention", "take_up", "new_key", "check"}
# Not coroutines themselves, but what they give is awaited or iterated.
_GIVES_ASYNC = {"register", "tasks", "inbox", "spend", "lock"}


def _public(cls: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(cls) if not name.startswith("_") and callable(value)}


def _methods() -> Iterator[Any]:
    for blocking, awaiting in PAIRS:
        for name in sorted(_public(blocking).keys() | _public(awaiting).keys()):
            if not name.endswith("_steps"):  # shared by both
                yield pytest.param(blocking, awaiting, name, id=f"{blocking.__name__}.{name}")


@pytest.mark.parametrize(("blocking", "awaiting", "name"), list(_methods()))
def test_a_method_has_its_twin(blocking: type, awaiting: type, name: str) -> None:
    """Both have the method, with the same parameters, kinds, defaults and annotations; the one blocks, the other awaits."""
    one, other = getattr(blocking, name), getattr(awaiting, name)
    parameters = [
        parameter
        for parameter in inspect.signature(one).parameters.values()
        if (name, parameter.name) not in _ONLY_BLOCKING
    ]
    assert parameters == list(inspect.signature(other).parameters.values())
    assert inspect.iscoroutinefunction(other) == (name not in _PLAIN | _GIVES_ASYNC)
    returned = str(inspect.signature(other).return_annotation)
    assert re.sub("Async|Registering", lambda found: "" if found[0] == "Async" else "Swarm", returned) == str(
        inspect.signature(one).return_annotation
    )


@pytest.mark.parametrize(("blocking", "awaiting", "name"), list(_methods()))
def test_a_method_is_documented_as_its_twin(blocking: type, awaiting: type, name: str) -> None:
    """Both say first what the caller gets."""
    for cls in (blocking, awaiting):
        assert (getattr(cls, name).__doc__ or "").strip(), f"{cls.__name__}.{name}"


@pytest.mark.parametrize(("blocking", "awaiting"), PAIRS)
def test_properties_are_the_same(blocking: type, awaiting: type) -> None:
    """Both have the same properties, and each its own form of ``with`` and ``for``."""

    def properties(cls: type) -> set[str]:
        return {name for name, value in inspect.getmembers(cls) if isinstance(value, property)}

    assert properties(blocking) == properties(awaiting)
    for plain, asynchronous in (("__enter__", "__aenter__"), ("__exit__", "__aexit__"), ("__iter__", "__aiter__")):
        assert hasattr(blocking, plain) == hasattr(awaiting, asynchronous)
