"""Values of the chassis: its configuration, what it keeps of a loaded module, and what it reports."""

from __future__ import annotations

from typing import Any, Final

import attrs
from attrs.validators import and_, ge, le

from ifbus.models import ServiceContract

_MiB: Final = 1 << 20


@attrs.frozen(kw_only=True)
class CompileProfile:
    """Limits of one compilation, held by the kernel, and who may ask for them (operators always may).

    Attributes:
        module_bytes: Longest module.
        cpu_s, wall_s: Processor and wall time of the compiler process.
        data_bytes: Memory of the compiler process.
        code_bytes: Longest compiled code.
        parallel: Compile on all cores; for trusted modules only, because it starts threads.
        everybody: Whether any caller may use the profile.
        uids: Users who may, besides operators.
    """

    module_bytes: int = attrs.field(default=1 * _MiB, validator=and_(ge(1024), le(1024 * _MiB)))
    cpu_s: int = attrs.field(default=5, validator=and_(ge(1), le(3600)))
    wall_s: int = attrs.field(default=10, validator=and_(ge(1), le(3600)))
    data_bytes: int = attrs.field(default=512 * _MiB, validator=and_(ge(64 * _MiB), le(1 << 36)))
    code_bytes: int = attrs.field(default=32 * _MiB, validator=and_(ge(1 * _MiB), le(4096 * _MiB)))
    parallel: bool = False
    everybody: bool = False
    uids: tuple[int, ...] = attrs.field(default=(), converter=tuple)


def _default_profiles() -> dict[str, CompileProfile]:
    return {
        # FACTS 3: an honest 400 k-instruction function takes 0.84 s and 273 MB; every compile bomb ends within 5 s.
        "default": CompileProfile(everybody=True),
        # A Python tool is 18 MB and takes 4 to 8 s.
        "python-component": CompileProfile(
            module_bytes=32 * _MiB,
            cpu_s=60,
            wall_s=60,
            data_bytes=4096 * _MiB,
            code_bytes=128 * _MiB,
            parallel=True,
        ),
    }


@attrs.frozen(kw_only=True)
class ChassisConfig:
    """Policy of one host's chassis.

    Attributes:
        max_workers: Sandbox processes at once; an idle one makes room for a new one, least recently used first.
        max_workers_per_uid: The same of one user's modules. 16: half of all, so that nobody keeps the others from running.
        max_modules: Modules loaded per swarm.
        queue_length: Executions that may wait for one sandbox; the next one is refused with `overloaded`.
        compile_queue_length: Compilations that may wait; one runs at a time.
        input_bytes: Longest input of an execution, as JSON.
        max_memory_bytes, max_wall_ms, max_output_bytes, max_calls_per_s: The most that a contract may ask for. Output stays
            below what fits into one answer on the wire.
        blob_bytes_per_uid: Modules kept per user, unfinished uploads included.
        blob_bytes: Modules kept in all.
        cache_bytes: Compiled code kept on disk; least recently used goes first.
        worker_uid_base: Where the daemon runs as root, sandboxes get user ids from here up, each its own.
        profiles: Compile profiles by name.
    """

    max_workers: int = attrs.field(default=32, validator=and_(ge(1), le(1024)))
    max_workers_per_uid: int = attrs.field(default=16, validator=and_(ge(1), le(1024)))
    max_modules: int = attrs.field(default=16, validator=and_(ge(1), le(1024)))
    queue_length: int = attrs.field(default=16, validator=and_(ge(1), le(4096)))
    compile_queue_length: int = attrs.field(default=16, validator=and_(ge(1), le(1024)))
    input_bytes: int = attrs.field(default=60 << 10, validator=and_(ge(1024), le(60 << 10)))
    max_memory_bytes: int = attrs.field(default=1024 * _MiB, validator=and_(ge(1 * _MiB), le(4096 * _MiB)))
    max_wall_ms: int = attrs.field(default=60_000, validator=and_(ge(1), le(3_600_000)))
    max_output_bytes: int = attrs.field(default=48 << 10, validator=and_(ge(1024), le(48 << 10)))
    max_calls_per_s: int = attrs.field(default=10_000, validator=and_(ge(1), le(1_000_000)))
    blob_bytes_per_uid: int = attrs.field(default=256 * _MiB, validator=and_(ge(1 * _MiB), le(1 << 40)))
    blob_bytes: int = attrs.field(default=2048 * _MiB, validator=and_(ge(1 * _MiB), le(1 << 40)))
    cache_bytes: int = attrs.field(default=1024 * _MiB, validator=and_(ge(1 * _MiB), le(1 << 40)))
    # Above what distributions, containers and systemd hand out (up to 0x7000_0000), below 2^31.
    worker_uid_base: int = attrs.field(default=0x7FFE_0000, validator=and_(ge(1), le(0x7FFF_0000)))
    profiles: dict[str, CompileProfile] = attrs.field(factory=_default_profiles)


@attrs.frozen(kw_only=True)
class LoadedModule:
    """What is durable of a module that was loaded for a swarm.

    Attributes:
        uid: Who loaded it: the bytes to compile again from are among this user's.
    """

    contract: ServiceContract
    uid: int
    loaded_at_ms: int

    @property
    def sha256(self) -> str:
        """Content address of its bytes."""
        return self.contract.module_sha256

    def to_record(self) -> dict[str, Any]:
        """Plain values for the store."""
        return {"contract": self.contract.to_wire(), "uid": self.uid, "loaded_at_ms": self.loaded_at_ms}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> LoadedModule:
        """The inverse of `to_record`."""
        return cls(
            contract=ServiceContract.from_wire(record["contract"]),
            uid=record["uid"],
            loaded_at_ms=record["loaded_at_ms"],
        )


@attrs.frozen(kw_only=True)
class Quality:
    """What a module did over its last executions.

    Attributes:
        slo_met: Whether that is what its contract promises.
        reputation: Trust in it, 0 to 1 (`rules.reputation`).
    """

    p50_us: int
    p99_us: int
    success_ratio: float
    slo_met: bool
    reputation: float


@attrs.frozen(kw_only=True)
class SandboxReport:
    """One sandbox as it stands.

    Attributes:
        state: ``cold`` (no process), ``idle`` or ``busy``.
        layers: What locks its process down.
        executions, failures: Since the daemon started; refusals before the guest ran do not count.
        quality: Over its last executions; None before the first.
        private_bytes: Memory of its process; 0 when cold.
    """

    swarm_id: str
    module_sha256: str
    kind: str
    state: str
    layers: tuple[str, ...]
    executions: int
    failures: int
    quality: Quality | None
    private_bytes: int


@attrs.frozen(kw_only=True)
class ChassisStatistics:
    """The chassis as a whole.

    Attributes:
        zygote_restarts: Times that a zygote ended and was replaced.
        workers: Sandbox processes alive; `workers_started` counts all since the start.
        compilations: Modules compiled since the start; `cache_hits` the ones that were not.
        tampered: Cache files that failed their authentication and were thrown away.
    """

    zygote_restarts: int
    workers: int
    workers_started: int
    compilations: int
    cache_hits: int
    tampered: int
    sandboxes: tuple[SandboxReport, ...]
