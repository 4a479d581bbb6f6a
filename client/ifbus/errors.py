"""Errors that cross the wire, and the few that only a client meets.

The tree says whose doing an error is, and with that what the caller does next::

    IfbusError
    +-- RequestError            the request: fix it
    |     InvalidRequest UnknownMethod InvalidParams NotFound PermissionDenied
    |     IdempotencyConflict VersionMismatch HandleRequired ConfigInvalid InvalidModule
    +-- Refused                 the state of the world: read `would_change`, decide anew
    |     AlreadyClaimed NotReady Paused AtCapacity NotQualified NotOwner StaleToken (LeaseLost) BudgetExceeded
    |     BreakerTripped LimitExceeded CompileLimit GuestFailed AlreadyExists ResourceBusy WouldDeadlock NotKept
    +-- Momentary               the moment: the same request again, same idempotency key
    |     Overloaded Unavailable DeadlineExceeded Cancelled
    +-- Internal                us: report the id
    +-- ConnectionFailed        no daemon behind the socket (client only)
          DaemonNotRunning DaemonDeadSocket SocketDenied SocketBlocked  (all of them NoDaemon)
          ConnectionLost

On the wire an error is ``{"code": str, "message": str, "data": map}`` (DESIGN 5). ``data`` carries the
figures that decided and, in ``would_change``, what would turn the answer (DESIGN 2, promise 11).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypedDict

Party = Literal["self", "operator", "time", "other"]


class WouldChange(TypedDict, total=False):
    """One thing that would turn a refusal: who can do it, what it is, and the command or call, if there is one."""

    by: Party
    what: str
    call: str


class IfbusError(Exception):
    """Base of every error of ifbus.

    Args:
        message: One sentence, "cannot <verb> <object>: <reason>", with the offending value and the limit.
        data: The figures that decided, as plain wire values.
        would_change: What would turn the answer, most useful first.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, data: dict[str, Any] | None = None, would_change: list[WouldChange] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = dict(data or {})
        if would_change:
            self.data["would_change"] = would_change

    @property
    def would_change(self) -> list[WouldChange]:
        """What would turn the answer; empty where nothing the caller could name would."""
        changes: list[WouldChange] = self.data.get("would_change", [])
        return changes

    def to_wire(self) -> dict[str, Any]:
        """The map that stands in the error slot of a response."""
        return {"code": self.code, "message": self.message, "data": self.data}


# --- the request -------------------------------------------------------------------------------------


class RequestError(IfbusError):
    """The request itself is wrong; the same one will fail again."""


class InvalidRequest(RequestError):
    """The message is MessagePack but no MessagePack-RPC request."""

    code = "invalid_request"


class UnknownMethod(RequestError):
    """The daemon has no such method; `data["nearest"]` names the closest one."""

    code = "unknown_method"


class InvalidParams(RequestError):
    """A parameter is missing, unknown, of the wrong type or out of range; `data["param"]` names it."""

    code = "invalid_params"


class NotFound(RequestError):
    """No task, swarm, module or entry has this id."""

    code = "not_found"


class PermissionDenied(RequestError):
    """The kernel's identity of the caller does not own this swarm, or lacks the operator role."""

    code = "permission_denied"


class IdempotencyConflict(RequestError):
    """This idempotency key was used before, with another body."""

    code = "idempotency_conflict"


class VersionMismatch(RequestError):
    """Client and daemon have no protocol version in common."""

    code = "version_mismatch"


class HandleRequired(RequestError):
    """The command acts as a holder and needs the claim handle (``T-7@41``), not the task id alone."""

    code = "handle_required"


class Usage(RequestError):
    """The command line is wrong; the message has the nearest valid form."""

    code = "usage"


class ConfigInvalid(RequestError):
    """A configuration file is wrong; the message names file, key and expected value."""

    code = "config_invalid"


class InvalidModule(RequestError):
    """The bytes are no WebAssembly module or component that the chassis can load."""

    code = "invalid_module"


# --- the state of the world --------------------------------------------------------------------------


class Refused(IfbusError):
    """The request is fine; the state of the world says no."""


class AlreadyExists(Refused):
    """Something else has this id already, and it differs."""

    code = "already_exists"


class AlreadyClaimed(Refused):
    """Somebody else holds the task; `data["owner"]` says who."""

    code = "already_claimed"


class NotReady(Refused):
    """The task waits for others (`data["waits_for"]`), is blocked, or is already final (`data["state"]`)."""

    code = "not_ready"


class Paused(Refused):
    """Somebody paused or drains the task, its group, the swarm or the host: no new work; `data` says who, why and since when."""

    code = "paused"


class AtCapacity(Refused):
    """As much as may be is held already, of a concurrency key or by a swarm with so many slots: `data` has the holders."""

    code = "at_capacity"


class NotQualified(Refused):
    """The swarm's capabilities overlap too little with what the task needs."""

    code = "not_qualified"


class NotOwner(Refused):
    """The task is claimed by another swarm than the one that the request names, or by nobody."""

    code = "not_owner"


class ResourceBusy(Refused):
    """Somebody else holds a resource that this needs; `data["resource"]` names it, `data["owner"]` says who."""

    code = "resource_busy"


class WouldDeadlock(Refused):
    """Waiting for this would close a cycle of those who wait for one another; `data["cycle"]` names it."""

    code = "would_deadlock"


class NotKept(Refused):
    """A subscription asks for what is no longer kept: read what is there now, then subscribe from now on."""

    code = "not_kept"


class StaleToken(Refused):
    """The claim that this fencing token stood for has ended; nothing was written."""

    code = "stale_token"


class LeaseLost(StaleToken):
    """The client can no longer prove its lease: the holder must stop now (raised by the client)."""

    code = "lease_lost"


class BudgetExceeded(Refused):
    """The swarm's budget does not cover this."""

    code = "budget_exceeded"


class BreakerTripped(Refused):
    """The swarm is stopped until an operator resets its circuit breaker."""

    code = "breaker_tripped"


class LimitExceeded(Refused):
    """A hard limit ended this: memory, time, output or call rate; `data["limit"]` names it."""

    code = "limit_exceeded"


class CompileLimit(Refused):
    """Compiling the module took more time or memory than its profile allows."""

    code = "compile_limit"


class GuestFailed(Refused):
    """The guest trapped, raised or exited with a failure of its own; nothing else was harmed."""

    code = "guest_failed"


# --- the moment --------------------------------------------------------------------------------------


class Momentary(IfbusError):
    """Right request, wrong moment: send it again with the same idempotency key."""

    retryable = True

    @property
    def retry_after_ms(self) -> int:
        """How long to wait before the next try, 0 where the daemon did not say."""
        after: int = self.data.get("retry_after_ms", 0)
        return after


class Overloaded(Momentary):
    """A quota of this uid or connection is used up."""

    code = "overloaded"


class Unavailable(Momentary):
    """Something that this call needs (store, bus, zygote) does not answer, or the daemon is stopping."""

    code = "unavailable"


class DeadlineExceeded(Momentary):
    """No answer within the time that the caller gave; the operation may have been done."""

    code = "deadline_exceeded"


class Cancelled(Momentary):
    """The caller gave this request up; the operation may have been done."""

    code = "cancelled"


# --- us ----------------------------------------------------------------------------------------------


class Internal(IfbusError):
    """A bug of ours; `data["id"]` finds it in the daemon's log."""

    code = "internal"


# --- only in a client --------------------------------------------------------------------------------


class ConnectionFailed(IfbusError):
    """There is no usable connection to a daemon."""

    retryable = True


class NoDaemon(ConnectionFailed):
    """No daemon answers at the socket; the subclass says which of the four causes it is."""

    code = "no_daemon"


class DaemonNotRunning(NoDaemon):
    """There is no socket at any of the places where one could be."""

    code = "daemon_not_running"


class DaemonDeadSocket(NoDaemon):
    """The socket file exists and nobody listens on it."""

    code = "daemon_dead_socket"


class SocketDenied(NoDaemon):
    """The socket's mode or a directory on the way to it keeps this user out (EACCES)."""

    code = "socket_denied"


class SocketBlocked(NoDaemon):
    """This process may not connect at all (EPERM): a sandbox around it."""

    code = "socket_blocked"


class ConnectionLost(ConnectionFailed):
    """The connection ended while a request was under way: its outcome is unknown."""

    code = "connection_lost"


class ProtocolError(ConnectionFailed):
    """The peer sent bytes that are no MessagePack-RPC; this connection is finished."""

    code = "protocol_error"
    retryable = False


def _leaves(cls: type[IfbusError]) -> list[type[IfbusError]]:
    found = [cls] if "code" in cls.__dict__ else []
    for sub in cls.__subclasses__():
        found += _leaves(sub)
    return found


BY_CODE: dict[str, type[IfbusError]] = {}
for _cls in _leaves(IfbusError):
    if _cls is not IfbusError:
        BY_CODE[_cls.code] = _cls


def from_wire(error: object) -> IfbusError:
    """The exception for the error slot of a response; an unknown code becomes a plain `IfbusError`.

    A daemon may be newer than this client, so the code of an unknown error stays in ``data["code"]``.
    """
    if not isinstance(error, dict):
        return Internal(f"the daemon answered with an error that is no map: {str(error)[:200]}")
    code, message, data = error.get("code"), error.get("message"), error.get("data")
    cls = BY_CODE.get(code) if isinstance(code, str) else None
    figures = data if isinstance(data, dict) else {}
    if cls is None:
        return IfbusError(str(message), data={**figures, "code": code})
    return cls(str(message), data=figures)
