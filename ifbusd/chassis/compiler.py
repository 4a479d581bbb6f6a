"""From a module's bytes to verified code: out of the cache, or through a compiler process with hard limits (FACTS 3).

One compilation runs at a time; others wait in a bounded queue. The same module asked for twice is compiled once.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from ifbus.errors import CompileLimit, IfbusError, InvalidModule, Overloaded, Unavailable
from ifbus.models import ServiceContract
from ifbusd.chassis import cache, rules
from ifbusd.chassis.model import ChassisConfig, CompileProfile
from ifbusd.chassis.orders import CompileOrder
from ifbusd.chassis.processes import Exit, Worker

T = TypeVar("T")

_log = logging.getLogger(__name__)

# File work of the chassis: its own threads, so that a slow disk does not take those of others.
FILE_THREADS: Final = 4


class Code:
    """Verified code in a sealed memfd, closed with the last user's `release`."""

    def __init__(self, descriptor: int, closed: Callable[[], None]) -> None:
        self.descriptor = descriptor
        self._closed = closed
        self._users = 1

    def share(self) -> Code:
        """One more user."""
        self._users += 1
        return self

    def release(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users == 0:
            os.close(self.descriptor)
            self._closed()


class Compiler:
    """Gets code. The mutable state is the code in use, the queue and the counters."""

    def __init__(
        self,
        config: ChassisConfig,
        code_cache: cache.CodeCache,
        fork: Callable[[], Awaitable[Worker]],
        files: trio.CapacityLimiter,
        *,
        engine: Callable[[], str],
        uid: int | None,
    ) -> None:
        """Wire it up.

        Args:
            files: Threads for blocking file work.
            engine: Names what code is compiled for (`Zygote.engine`).
            uid: Own user id of compiler processes, None for the daemon's.
        """
        self._config = config
        self._cache = code_cache
        self._fork = fork
        self._files = files
        self._uid = uid
        self._turn = trio.Lock()
        self._in_use: dict[str, Code] = {}
        self._engine = engine
        self.compilations = 0
        self.cache_hits = 0
        self.tampered = 0

    async def get(self, contract: ServiceContract, profile: CompileProfile, open_module: Callable[[], int]) -> Code:
        """The code for a contract's module; the caller is one user of it.

        Args:
            open_module: Gives a read-only descriptor of the module; called in a thread, and only when it must be compiled.

        Raises:
            InvalidModule: The compiler refuses it.
            CompileLimit: Compiling took more than the profile allows.
            Overloaded: Too many wait already.
            Unavailable: The zygote is.

        Cancelled: nothing happened, or the cache has the code.
        """
        key = self._key(contract)
        found = await self._cached(key)
        if found is not None:
            return found
        if self._turn.statistics().tasks_waiting >= self._config.compile_queue_length:
            raise Overloaded(
                f"cannot compile module {contract.module_sha256[:12]}: {self._config.compile_queue_length} wait already",
                data={"waiting": self._config.compile_queue_length, "retry_after_ms": 1000},
            )
        async with self._turn:
            # Whoever was before us may have wanted the same.
            found = await self._cached(key)
            return found or self._use(key, await self._compile(key, contract, profile, open_module))

    async def forget(self, contract: ServiceContract) -> None:
        """Drop code that workers refuse to map; the next `get` compiles."""
        await self._in_thread(lambda: self._cache.drop(self._key(contract)))

    async def _cached(self, key: cache.CodeKey) -> Code | None:
        if key.name() in self._in_use:
            self.cache_hits += 1
            return self._in_use[key.name()].share()
        try:
            found = await self._in_thread(lambda: self._cache.load(key))
        except cache.Tampered as error:
            self.tampered += 1
            _log.warning("chassis.cache_tampered", extra={"file": str(error)})
            return None
        if found is None:
            return None
        self.cache_hits += 1
        return self._use(key, found)

    def _use(self, key: cache.CodeKey, descriptor: int) -> Code:
        name = key.name()
        if name in self._in_use:  # two read it at once
            os.close(descriptor)
            return self._in_use[name].share()
        self._in_use[name] = Code(descriptor, lambda: self._forget_use(name))
        return self._in_use[name]

    def _forget_use(self, name: str) -> None:
        del self._in_use[name]

    async def _compile(
        self,
        key: cache.CodeKey,
        contract: ServiceContract,
        profile: CompileProfile,
        open_module: Callable[[], int],
    ) -> int:
        code = cache.new_code_file()
        try:
            module = await self._in_thread(open_module)
        except BaseException:
            os.close(code)
            raise
        try:
            rules.check_module(os.pread(module, 8, 0), os.fstat(module).st_size, contract, profile)
            os.fchmod(code, 0o666)  # nobody finds it by name; a compiler under its own uid holds only the descriptor
            await self._run_compiler(contract, profile, module, code)
            self.compilations += 1
            cache.seal(code)
            await self._keep(key, code)
        except BaseException:
            os.close(code)
            raise
        finally:
            os.close(module)
        return code

    async def _keep(self, key: cache.CodeKey, code: int) -> None:
        try:
            await self._in_thread(lambda: self._cache.store(key, code))
        except OSError as error:
            # A full disk, most likely: the code is here and can run, it will only have to be compiled again.
            _log.warning("chassis.cache_not_written", extra={"reason": str(error)})

    async def _run_compiler(self, contract: ServiceContract, profile: CompileProfile, module: int, code: int) -> None:
        order = CompileOrder(
            kind=contract.kind,
            cpu_s=profile.cpu_s,
            data_bytes=profile.data_bytes,
            code_bytes=profile.code_bytes,
            parallel=profile.parallel,
            uid=self._uid,
            daemon_pid=os.getpid(),
        )
        worker = await self._fork()
        answer = None
        try:
            with trio.move_on_after(profile.wall_s):
                answer = await worker.order(["compile", *order], [module, code])
        finally:
            ended = await worker.end()
        if answer != ["compiled"]:
            raise _failure(contract, profile, answer, ended)

    def _key(self, contract: ServiceContract) -> cache.CodeKey:
        return cache.CodeKey(module_sha256=contract.module_sha256, kind=contract.kind, engine=self._engine())

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._files)


def _failure(
    contract: ServiceContract, profile: CompileProfile, answer: list[object] | None, ended: Exit
) -> IfbusError:
    match answer:
        case ["failed", "invalid", str(message)]:
            return InvalidModule(f"cannot load the module: {message}", data={"module_sha256": contract.module_sha256})
        case ["failed", "lockdown", str(message)]:
            _log.error("chassis.lockdown_failed", extra={"reason": message})
            return Unavailable(f"cannot compile safely on this host: {message}")
        case ["failed", "code_bytes", _]:
            return _compile_limit(contract, "code_bytes", profile.code_bytes, profile.code_bytes)
        case None:
            return _compile_limit(contract, "wall_ms", profile.wall_s * 1000, profile.wall_s * 1000)
    if ended.signal is signal.SIGXCPU or (ended.signal is signal.SIGKILL and ended.cpu_us > profile.cpu_s * 900_000):
        used_ms = max(ended.cpu_us // 1000, profile.cpu_s * 1000)
        return _compile_limit(contract, "cpu_ms", used_ms, profile.cpu_s * 1000)
    # Out of memory, the compiler aborts; its abort's own system call is one that the filter kills for.
    _log.info("chassis.compiler_ended", extra={"signal": str(ended.signal), "module_sha256": contract.module_sha256})
    return _compile_limit(contract, "data_bytes", profile.data_bytes, profile.data_bytes)


def _compile_limit(contract: ServiceContract, limit: str, used: int, allowed: int) -> CompileLimit:
    return CompileLimit(
        f"cannot compile the module: it needs more than {limit} = {allowed} of profile {contract.profile!r}",
        data={"limit": limit, "used": used, "allowed": allowed, "profile": contract.profile},
        would_change=[
            {"by": "self", "what": "a smaller module, or smaller functions"},
            {"by": "operator", "what": "a larger compile profile"},
        ],
    )
