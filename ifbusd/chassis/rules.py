"""Decisions of the chassis: pure functions over frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import attrs

from ifbus.errors import (
    GuestFailed,
    IfbusError,
    InvalidModule,
    InvalidParams,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    WouldChange,
)
from ifbus.models import ServiceContract, SLODefinition
from ifbusd.chassis.messages import clip
from ifbusd.chassis.model import ChassisConfig, CompileProfile, Quality

_PAGE_BYTES: Final = 64 << 10
_MAGIC: Final = b"\0asm"
_MODULE_VERSION: Final = b"\x01\0\0\0"
_COMPONENT_VERSION: Final = b"\x0d\0\x01\0"

# 95 %: as often as not, one verdict in twenty is too harsh.
_WILSON_Z: Final = 1.96

_TEXT_CHARS: Final = 256

_RESTART_FIRST_MS: Final = 50
_RESTART_LAST_MS: Final = 10_000


# --- rates ---------------------------------------------------------------------------------------------


class Bucket(NamedTuple):
    """A token bucket: fills by `rate_per_s` up to `capacity`.

    Attributes:
        level: Tokens at `at_us`; below zero after a `charge` that it did not cover.
    """

    rate_per_s: float
    capacity: float
    level: float
    at_us: int

    @classmethod
    def full(cls, *, rate_per_s: float, capacity: float, now_us: int) -> Bucket:
        """A bucket that has not been drawn from yet."""
        return cls(rate_per_s, capacity, capacity, now_us)

    def at(self, level: float, now_us: int) -> Bucket:
        """The same bucket at another level."""
        return Bucket(self.rate_per_s, self.capacity, level, now_us)


def take(bucket: Bucket, now_us: int, amount: float = 1.0) -> tuple[Bucket, int]:
    """Take `amount` if it is there: the bucket afterwards and 0, else the bucket and the wait in us until it is."""
    level = _level(bucket, now_us)
    if level >= amount:
        return bucket.at(level - amount, now_us), 0
    return bucket.at(level, now_us), _wait_us(amount - level, bucket.rate_per_s)


def charge(bucket: Bucket, now_us: int, amount: float) -> tuple[Bucket, int]:
    """Take `amount` that was used already: the bucket afterwards, and the wait in us until it is out of debt."""
    level = _level(bucket, now_us) - amount
    return bucket.at(level, now_us), _wait_us(-level, bucket.rate_per_s) if level < 0 else 0


def _level(bucket: Bucket, now_us: int) -> float:
    gained = max(0, now_us - bucket.at_us) * bucket.rate_per_s / 1_000_000
    return min(bucket.capacity, bucket.level + gained)


def _wait_us(missing: float, rate_per_s: float) -> int:
    return math.ceil(missing * 1_000_000 / rate_per_s)


def restart_delay_ms(failures: int, chance: float) -> int:
    """How long to wait before the zygote is started again, after so many ends in a row; `chance` is 0 to 1.

    Doubles from 50 ms to 10 s, with up to a quarter taken off so that many hosts do not act in step.
    """
    delay = min(_RESTART_LAST_MS, _RESTART_FIRST_MS << min(failures, 16))
    return int(delay * (1 - 0.25 * chance))


# --- policy --------------------------------------------------------------------------------------------


def check_contract(contract: ServiceContract, config: ChassisConfig) -> None:
    """Refuse values of a wrong type and limits beyond the host's policy.

    Raises:
        InvalidParams: Names the first one; for a limit what was asked and what is allowed.
    """
    limits = contract.limits
    for param, text in (("export", contract.export), ("profile", contract.profile), ("version", contract.version)):
        if type(text) is not str or len(text) > _TEXT_CHARS:
            raise InvalidParams(
                f"cannot load the module: {param} is no text of at most {_TEXT_CHARS} characters", data={"param": param}
            )
    for name, value in attrs.asdict(limits).items():
        if type(value) is not int:
            raise InvalidParams(
                f"cannot load the module: limits.{name} is no whole number", data={"param": f"limits.{name}"}
            )
    for name, asked, allowed in (
        ("memory_bytes", limits.memory_bytes, config.max_memory_bytes),
        ("wall_ms", limits.wall_ms, config.max_wall_ms),
        ("output_bytes", limits.output_bytes, config.max_output_bytes),
        ("calls_per_s", limits.calls_per_s, config.max_calls_per_s),
    ):
        if asked > allowed:
            raise InvalidParams(
                f"cannot load the module: limits.{name} is {asked}, this host allows {allowed}",
                data={"param": f"limits.{name}", "asked": asked, "allowed": allowed},
                would_change=[{"by": "self", "what": f"{name} of at most {allowed}"}],
            )
    if limits.memory_bytes < _PAGE_BYTES:
        raise InvalidParams(
            f"cannot load the module: limits.memory_bytes is {limits.memory_bytes}, one page is {_PAGE_BYTES}",
            data={"param": "limits.memory_bytes", "asked": limits.memory_bytes, "least": _PAGE_BYTES},
        )


def choose_profile(contract: ServiceContract, config: ChassisConfig, *, uid: int, is_operator: bool) -> CompileProfile:
    """The contract's compile profile, if the caller may use it.

    Raises:
        NotFound: The host has no such profile.
        PermissionDenied: It is for others.
    """
    profile = config.profiles.get(contract.profile)
    if profile is None:
        raise NotFound(
            f"cannot load the module: no compile profile {contract.profile!r} on this host",
            data={"profile": contract.profile, "profiles": sorted(config.profiles)},
        )
    if not (profile.everybody or is_operator or uid in profile.uids):
        raise PermissionDenied(
            f"cannot load the module: compile profile {contract.profile!r} is not open to uid {uid}",
            data={"profile": contract.profile, "uid": uid},
            would_change=[{"by": "operator", "what": f"uid {uid} in chassis.profiles.{contract.profile}.uids"}],
        )
    return profile


def check_module(
    head: bytes,
    size: int,
    contract: ServiceContract,
    profile: CompileProfile,
    profiles: Mapping[str, CompileProfile] | None = None,
) -> None:
    """Refuse what no compiler needs to look at: by the first eight bytes and the length.

    Args:
        profiles: All of the host's, to name those that would take a module this long.

    Raises:
        InvalidModule: No WebAssembly, or of the other kind.
        LimitExceeded: Longer than the profile allows.
    """
    if size > profile.module_bytes:
        # In the sentence, too: a traceback shows nothing else.
        larger = {name: other for name, other in (profiles or {}).items() if size <= other.module_bytes}
        instead = f"; {' and '.join(map(repr, larger))} would take it" if larger else ""
        raise exceeded(
            "module_bytes",
            size,
            profile.module_bytes,
            f"cannot load the module: it is {size} bytes, profile {contract.profile!r} allows {profile.module_bytes}{instead}",
            [_use_of(name, other) for name, other in larger.items()]
            or [{"by": "operator", "what": "a larger compile profile"}],
        )
    if head[:4] != _MAGIC:
        raise InvalidModule("cannot load the module: it does not begin as WebAssembly does")
    wanted, other = (
        (_COMPONENT_VERSION, _MODULE_VERSION) if contract.kind == "component" else (_MODULE_VERSION, _COMPONENT_VERSION)
    )
    if head[4:8] == other:
        is_a, kind = (
            ("core module", "core' or 'command") if contract.kind == "component" else ("component", "component")
        )
        raise InvalidModule(
            f"cannot load the module as {contract.kind}: it is a {is_a}",
            data={"kind": contract.kind},
            would_change=[{"by": "self", "what": f"kind '{kind}'"}],
        )
    if head[4:8] != wanted:
        raise InvalidModule(f"cannot load the module: unknown WebAssembly version {head[4:8].hex()}")


def _use_of(name: str, profile: CompileProfile) -> WouldChange:
    who = "everybody may" if profile.everybody else f"operators and chassis.profiles.{name}.uids may"
    return {"by": "self", "what": f'profile="{name}" takes {profile.module_bytes} bytes; {who} use it'}


def check_output(value: Any, *, depth: int = 24, array_items: int = 4096, map_items: int = 512) -> str | None:
    """Why a guest's JSON value cannot go out over the wire, or None. The bounds are below `ifbus.protocol.Limits`."""
    if isinstance(value, bool | str | float) or value is None:
        return None
    if isinstance(value, int):
        return None if -(1 << 63) <= value < 1 << 64 else "a number beyond 64 bits"
    if depth == 0:
        return "nested too deeply"
    if isinstance(value, list):
        if len(value) > array_items:
            return f"a list of more than {array_items}"
        parts = value
    else:
        if len(value) > map_items:
            return f"a map of more than {map_items}"
        parts = list(value.values())
    return next((why for part in parts if (why := check_output(part, depth=depth - 1))), None)


# --- what a guest did ------------------------------------------------------------------------------------


def exceeded(
    limit: str, used: int, allowed: int, message: str, would_change: list[WouldChange] | None = None
) -> LimitExceeded:
    """A crossed limit, always with the same three figures."""
    return LimitExceeded(message, data={"limit": limit, "used": used, "allowed": allowed}, would_change=would_change)


def failure(contract: ServiceContract, status: str, message: str, stderr: bytes, memory_bytes: int) -> IfbusError:
    """The error for a guest that ended in another way than ``ok`` (statuses: `messages.Outcome`)."""
    limits = contract.limits
    raise_it: list[WouldChange] = [{"by": "self", "what": "load it with a higher limit", "call": "chassis.load_swarm"}]
    if status == "input":
        return InvalidParams(f"cannot execute the module: {message}", data={"param": "input"})
    if status == "output":
        return exceeded(
            "output_bytes",
            limits.output_bytes + 1,
            limits.output_bytes,
            f"stopped the module: it {message} of {limits.output_bytes} bytes",
            raise_it,
        )
    # A guest learns of its memory limit by a refused growth and then fails in its own way: with no page left to grow by,
    # the limit is what ended it.
    if status == "memory" or (status == "trap" and memory_bytes + _PAGE_BYTES > limits.memory_bytes):
        return exceeded(
            "memory_bytes",
            max(memory_bytes, limits.memory_bytes),
            limits.memory_bytes,
            f"stopped the module: it needs more than its {limits.memory_bytes} bytes of memory",
            raise_it,
        )
    data: dict[str, Any] = {"memory_bytes": memory_bytes, "memory_limit_bytes": limits.memory_bytes}
    if stderr:
        data["stderr"] = clip(stderr.decode(errors="replace"))
    changes = (
        raise_it if memory_bytes * 2 > limits.memory_bytes else [{"by": "self", "what": "another input or module"}]
    )
    word = "failed" if status == "exit" else "trapped"
    return GuestFailed(f"the module {word}: {message}", data=data, would_change=changes)  # type: ignore[arg-type]


# --- quality of service -----------------------------------------------------------------------------------


class Sample(NamedTuple):
    """One execution: whether it ended without error, and how long it took."""

    succeeded: bool
    wall_us: int


def assess(samples: Sequence[Sample], slo: SLODefinition) -> Quality | None:
    """Quality over `samples`; None without any."""
    if not samples:
        return None
    walls = sorted(sample.wall_us for sample in samples)
    succeeded = sum(sample.succeeded for sample in samples)
    p99_us = percentile(walls, 0.99)
    return Quality(
        p50_us=percentile(walls, 0.50),
        p99_us=p99_us,
        success_ratio=succeeded / len(samples),
        slo_met=succeeded >= slo.success_ratio * len(samples) and p99_us <= slo.p99_latency_ms * 1000,
        reputation=reputation(succeeded, len(samples), p99_us, slo),
    )


def percentile(ordered: Sequence[int], ratio: float) -> int:
    """Nearest-rank percentile of a sorted, non-empty sequence."""
    return ordered[max(0, math.ceil(ratio * len(ordered)) - 1)]


def reputation(succeeded: int, total: int, p99_us: int, slo: SLODefinition) -> float:
    """Trust in a module, 0 to 1: how often it surely succeeds, times how far it keeps its latency promise.

    The first factor is the lower bound of the 95 % Wilson score interval of the success ratio (E. B. Wilson, 1927, J. Am.
    Stat. Assoc. 22, 209-212), so three successes out of three count less than 300 out of 300. The second is
    ``min(1, promised p99 / measured p99)``.
    """
    if total == 0:
        return 0.0
    ratio, z2 = succeeded / total, _WILSON_Z**2
    centre = ratio + z2 / (2 * total)
    margin = _WILSON_Z * math.sqrt(ratio * (1 - ratio) / total + z2 / (4 * total**2))
    lower = max(0.0, (centre - margin) / (1 + z2 / total))
    return lower * min(1.0, slo.p99_latency_ms * 1000 / max(1, p99_us))
