"""etcd's and gRPC's errors, sorted by what they mean for the one who asked. Above this module nobody knows gRPC's codes."""

from __future__ import annotations

import enum
from typing import Final

import grpc

from ifbus.errors import IfbusError, LimitExceeded, Overloaded, Unavailable
from ifbusd.store.base import LeaseNotFound


class Kind(enum.Enum):
    """What went wrong."""

    OUTAGE = "outage"
    NO_SPACE = "no_space"
    TOO_LARGE = "too_large"
    ANSWER_TOO_LARGE = "answer_too_large"
    BUSY = "busy"
    LEASE_NOT_FOUND = "lease_not_found"
    COMPACTED = "compacted"
    TOKEN = "token"
    DENIED = "denied"
    INVALID = "invalid"


class EtcdFault(Exception):
    """A request failed.

    Attributes:
        kind: How.
        detail: etcd's or gRPC's own words.
        may_be_done: A write of it may have been applied, or may yet be.
    """

    def __init__(self, kind: Kind, detail: str, *, may_be_done: bool = False) -> None:
        super().__init__(f"{kind.value}: {detail}")
        self.kind = kind
        self.detail = detail
        self.may_be_done = may_be_done


# etcd's own default (`--max-request-bytes`); what it is set to elsewhere it does not tell.
_REQUEST_BYTES: Final = 1_572_864
# gRPC says so of a call that never left, because there is no connection.
_NOT_SENT: Final = (
    "failed to connect",
    "connections to all backends failing",
    "dns resolution failed",
    "connection refused",
)
# Users or roles have changed since the token was given: with signed tokens for ever, with others while a request is on its way.
_OLD_TOKEN: Final = ("revision in header is old", "revision of auth store is old")


def fault_of(error: grpc.RpcError) -> EtcdFault:
    """What a failed call means. What is not known to mean less is an outage, after which a write may have been done."""
    code, detail = error.code(), str(error.details() or "no details")
    said = detail.lower()
    if any(words in said for words in _OLD_TOKEN):
        return EtcdFault(Kind.TOKEN, detail)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "space exceeded" in said:
            return EtcdFault(Kind.NO_SPACE, detail)
        # etcd says of our requests, in nearly the same words, "grpc: received message larger than max".
        if "received message larger" in said and not said.startswith("grpc:"):
            return EtcdFault(Kind.ANSWER_TOO_LARGE, detail, may_be_done=True)
        if "larger than max" in said or "too large" in said:
            return EtcdFault(Kind.TOO_LARGE, detail)
        return EtcdFault(Kind.BUSY, detail)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        if "user name is empty" in said:  # there was no token at all
            return EtcdFault(Kind.TOKEN, detail)
        return EtcdFault(Kind.TOO_LARGE if "too large" in said else Kind.INVALID, detail)
    if code is grpc.StatusCode.NOT_FOUND and "lease" in said:
        return EtcdFault(Kind.LEASE_NOT_FOUND, detail)
    if code is grpc.StatusCode.OUT_OF_RANGE:
        return EtcdFault(Kind.COMPACTED, detail)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return EtcdFault(Kind.TOKEN, detail)
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return EtcdFault(Kind.DENIED, detail)
    if code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND):
        return EtcdFault(Kind.INVALID, detail)
    is_unsent = code is grpc.StatusCode.UNAVAILABLE and any(words in said for words in _NOT_SENT)
    name = "deadline exceeded" if code is grpc.StatusCode.DEADLINE_EXCEEDED else detail
    return EtcdFault(Kind.OUTAGE, name, may_be_done=not is_unsent)


def error_of(fault: EtcdFault, what: str, *, retry_after_ms: int) -> IfbusError | ValueError:
    """The error that a caller of the store gets.

    Args:
        what: What was to be done, such as ``commit``.
    """
    if fault.kind is Kind.LEASE_NOT_FOUND:
        return LeaseNotFound(f"cannot {what}: the lease has ended")
    if fault.kind is Kind.INVALID:
        return ValueError(f"cannot {what}: {fault.detail}")
    if fault.kind is Kind.TOO_LARGE:
        return LimitExceeded(
            f"cannot {what}: it is larger than etcd takes ({fault.detail})",
            data={"limit": "etcd_request_bytes", "allowed": _REQUEST_BYTES},
            would_change=[{"by": "self", "what": "ask for less at a time"}],
        )
    if fault.kind is Kind.BUSY:
        return Overloaded(
            f"cannot {what}: etcd is overloaded ({fault.detail})", data={"retry_after_ms": retry_after_ms}
        )
    is_full = fault.kind is Kind.NO_SPACE
    said = "etcd's storage is full" if is_full else "etcd does not answer"
    outcome = ", the outcome is unknown" if fault.may_be_done else ""
    data = {"reason": "storage_full" if is_full else "store_unreachable", "retry_after_ms": retry_after_ms}
    if fault.may_be_done:
        data["outcome"] = "unknown"
    return Unavailable(f"cannot {what}: {said} ({fault.detail}){outcome}", data=data)
