"""Client library of the ifbusd daemon: `Client` for threads, `AsyncClient` for asyncio and trio.

Importing it loads nothing else; each name is loaded when it is first used, so that a short-lived program pays only for
what it needs. Everything public is listed in `__all__`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifbus.aio import AsyncClient as AsyncClient
    from ifbus.answers import Refusal as Refusal
    from ifbus.errors import BreakerTripped as BreakerTripped
    from ifbus.errors import BudgetExceeded as BudgetExceeded
    from ifbus.errors import ConnectionFailed as ConnectionFailed
    from ifbus.errors import IfbusError as IfbusError
    from ifbus.errors import LeaseLost as LeaseLost
    from ifbus.errors import NoDaemon as NoDaemon
    from ifbus.errors import Refused as Refused
    from ifbus.errors import StaleToken as StaleToken
    from ifbus.models import BlockerAlert as BlockerAlert
    from ifbus.models import BudgetReport as BudgetReport
    from ifbus.models import CapabilityMatch as CapabilityMatch
    from ifbus.models import Execution as Execution
    from ifbus.models import InboxMessage as InboxMessage
    from ifbus.models import ResourceLimits as ResourceLimits
    from ifbus.models import ServiceContract as ServiceContract
    from ifbus.models import SLODefinition as SLODefinition
    from ifbus.models import SwarmProfile as SwarmProfile
    from ifbus.models import Task as Task
    from ifbus.models import TaskBroadcast as TaskBroadcast
    from ifbus.models import TaskClaim as TaskClaim
    from ifbus.sync import Client as Client

    Limits = ResourceLimits

# Where each name lives. A test holds it equal to the imports above and to `__all__`.
_HOMES = {
    "AsyncClient": "aio",
    "BlockerAlert": "models",
    "BreakerTripped": "errors",
    "BudgetExceeded": "errors",
    "BudgetReport": "models",
    "CapabilityMatch": "models",
    "Client": "sync",
    "ConnectionFailed": "errors",
    "Execution": "models",
    "IfbusError": "errors",
    "InboxMessage": "models",
    "LeaseLost": "errors",
    "Limits": "models",
    "NoDaemon": "errors",
    "Refusal": "answers",
    "Refused": "errors",
    "ResourceLimits": "models",
    "SLODefinition": "models",
    "ServiceContract": "models",
    "StaleToken": "errors",
    "SwarmProfile": "models",
    "Task": "models",
    "TaskBroadcast": "models",
    "TaskClaim": "models",
}

__all__ = [
    "AsyncClient",
    "BlockerAlert",
    "BreakerTripped",
    "BudgetExceeded",
    "BudgetReport",
    "CapabilityMatch",
    "Client",
    "ConnectionFailed",
    "Execution",
    "IfbusError",
    "InboxMessage",
    "LeaseLost",
    "Limits",
    "NoDaemon",
    "Refusal",
    "Refused",
    "ResourceLimits",
    "SLODefinition",
    "ServiceContract",
    "StaleToken",
    "SwarmProfile",
    "Task",
    "TaskBroadcast",
    "TaskClaim",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ifbus' has no attribute {name!r}")
    value = getattr(import_module(f"ifbus.{home}"), "ResourceLimits" if name == "Limits" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
