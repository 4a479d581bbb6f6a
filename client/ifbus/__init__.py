"""Client library of the ifbusd daemon: `Client` for threads, `AsyncClient` for asyncio and trio.

Importing it loads nothing else; each name is loaded when it is first used, so that a short-lived program pays only for
what it needs. Everything public is listed in `__all__`. Beside it, by their own names: `ifbus.errors` with the whole tree of
errors, `ifbus.models` and `ifbus.answers`, and `ifbus.testing` with a real daemon for tests.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifbus import answers as answers
    from ifbus import errors as errors
    from ifbus import models as models
    from ifbus import testing as testing
    from ifbus.aio import AsyncClaim as AsyncClaim
    from ifbus.aio import AsyncClient as AsyncClient
    from ifbus.aio import AsyncLock as AsyncLock
    from ifbus.aio import AsyncSpending as AsyncSpending
    from ifbus.aio import AsyncSwarm as AsyncSwarm
    from ifbus.answers import Refusal as Refusal
    from ifbus.async_link import AsyncSubscription as AsyncSubscription
    from ifbus.errors import AlreadyClaimed as AlreadyClaimed
    from ifbus.errors import BreakerTripped as BreakerTripped
    from ifbus.errors import BudgetExceeded as BudgetExceeded
    from ifbus.errors import ConnectionFailed as ConnectionFailed
    from ifbus.errors import ConnectionLost as ConnectionLost
    from ifbus.errors import DeadlineExceeded as DeadlineExceeded
    from ifbus.errors import GuestFailed as GuestFailed
    from ifbus.errors import IfbusError as IfbusError
    from ifbus.errors import InvalidParams as InvalidParams
    from ifbus.errors import LeaseLost as LeaseLost
    from ifbus.errors import LimitExceeded as LimitExceeded
    from ifbus.errors import Momentary as Momentary
    from ifbus.errors import NoDaemon as NoDaemon
    from ifbus.errors import NotFound as NotFound
    from ifbus.errors import NotQualified as NotQualified
    from ifbus.errors import NotReady as NotReady
    from ifbus.errors import PermissionDenied as PermissionDenied
    from ifbus.errors import Refused as Refused
    from ifbus.errors import StaleToken as StaleToken
    from ifbus.link import Subscription as Subscription
    from ifbus.models import BlockerAlert as BlockerAlert
    from ifbus.models import BudgetReport as BudgetReport
    from ifbus.models import CapabilityMatch as CapabilityMatch
    from ifbus.models import Execution as Execution
    from ifbus.models import InboxMessage as InboxMessage
    from ifbus.models import Receipt as Receipt
    from ifbus.models import ResourceLimits as ResourceLimits
    from ifbus.models import ServiceContract as ServiceContract
    from ifbus.models import SLODefinition as SLODefinition
    from ifbus.models import SwarmProfile as SwarmProfile
    from ifbus.models import Task as Task
    from ifbus.models import TaskBroadcast as TaskBroadcast
    from ifbus.models import TaskClaim as TaskClaim
    from ifbus.sync import Claim as Claim
    from ifbus.sync import Client as Client
    from ifbus.sync import Lock as Lock
    from ifbus.sync import Spending as Spending
    from ifbus.sync import Swarm as Swarm

    Limits = ResourceLimits

# Where each name lives. A test holds it equal to the imports above and to `__all__`.
_HOMES = {
    "AlreadyClaimed": "errors",
    "AsyncClaim": "aio",
    "AsyncClient": "aio",
    "AsyncLock": "aio",
    "AsyncSpending": "aio",
    "AsyncSubscription": "async_link",
    "AsyncSwarm": "aio",
    "BlockerAlert": "models",
    "BreakerTripped": "errors",
    "BudgetExceeded": "errors",
    "BudgetReport": "models",
    "CapabilityMatch": "models",
    "Claim": "sync",
    "Client": "sync",
    "ConnectionFailed": "errors",
    "ConnectionLost": "errors",
    "DeadlineExceeded": "errors",
    "Execution": "models",
    "GuestFailed": "errors",
    "IfbusError": "errors",
    "InboxMessage": "models",
    "InvalidParams": "errors",
    "LeaseLost": "errors",
    "LimitExceeded": "errors",
    "Limits": "models",
    "Lock": "sync",
    "Momentary": "errors",
    "NoDaemon": "errors",
    "NotFound": "errors",
    "NotQualified": "errors",
    "NotReady": "errors",
    "PermissionDenied": "errors",
    "Receipt": "models",
    "Refusal": "answers",
    "Refused": "errors",
    "ResourceLimits": "models",
    "SLODefinition": "models",
    "ServiceContract": "models",
    "Spending": "sync",
    "StaleToken": "errors",
    "Subscription": "link",
    "Swarm": "sync",
    "SwarmProfile": "models",
    "Task": "models",
    "TaskBroadcast": "models",
    "TaskClaim": "models",
}
_MODULES = frozenset({"answers", "errors", "models", "testing"})

__all__ = [
    "AlreadyClaimed",
    "AsyncClaim",
    "AsyncClient",
    "AsyncLock",
    "AsyncSpending",
    "AsyncSubscription",
    "AsyncSwarm",
    "BlockerAlert",
    "BreakerTripped",
    "BudgetExceeded",
    "BudgetReport",
    "CapabilityMatch",
    "Claim",
    "Client",
    "ConnectionFailed",
    "ConnectionLost",
    "DeadlineExceeded",
    "Execution",
    "GuestFailed",
    "IfbusError",
    "InboxMessage",
    "InvalidParams",
    "LeaseLost",
    "LimitExceeded",
    "Limits",
    "Lock",
    "Momentary",
    "NoDaemon",
    "NotFound",
    "NotQualified",
    "NotReady",
    "PermissionDenied",
    "Receipt",
    "Refusal",
    "Refused",
    "ResourceLimits",
    "SLODefinition",
    "ServiceContract",
    "Spending",
    "StaleToken",
    "Subscription",
    "Swarm",
    "SwarmProfile",
    "Task",
    "TaskBroadcast",
    "TaskClaim",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"ifbus.{name}")  # which puts it here, so this is asked once
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ifbus' has no attribute {name!r}")
    value = getattr(import_module(f"ifbus.{home}"), "ResourceLimits" if name == "Limits" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
