"""IFChassis: loads modules for swarms and runs them in sandboxes; the async shell over rules, processes and files."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import trio

from ifbus.errors import (
    IfbusError,
    InvalidModule,
    InvalidParams,
    LimitExceeded,
    Momentary,
    NotFound,
    Overloaded,
    Unavailable,
)
from ifbus.models import ServiceContract, check_identifier
from ifbusd.chassis import rules
from ifbusd.chassis.blobs import Blobs, Upload
from ifbusd.chassis.cache import CodeCache, load_or_make_key
from ifbusd.chassis.compiler import FILE_THREADS, Code, Compiler
from ifbusd.chassis.interface import ClaimDirectory, SwarmDirectory
from ifbusd.chassis.launch import Launched
from ifbusd.chassis.model import ChassisConfig, ChassisStatistics, LoadedModule, SandboxReport
from ifbusd.chassis.orders import ServeOrder
from ifbusd.chassis.processes import Worker, become_subreaper
from ifbusd.chassis.sandbox import Begun, Ready, Run, Sandbox
from ifbusd.chassis.supervisor import Supervisor
from ifbusd.codec import how_many_fit, unpack
from ifbusd.identity import Caller
from ifbusd.latency import LatencyWindow
from ifbusd.later import Later
from ifbusd.operation import Operations, Tx
from ifbusd.store.base import Store
from ifbusd.store.fsync import DiskFailed

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Mapping 33 MB of code and locking down takes 10 ms; the rest is for a busy machine.
_LOAD_S: Final = 10.0
_INSPECT_S: Final = 0.25
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
# modules/<swarm>: the swarm's loaded modules, a list of `LoadedModule` records.
_PREFIX: Final = "modules/"
_EXECUTE: Final = "chassis.execute_task"
# An execution that began and ended within this is over with its admission: what happened meanwhile may have happened after.
_BRIEF_US: Final = 1_000


class IFChassis:
    """See `interface.Chassis`. Start `run` first.

    The mutable state is the sandboxes, a cache of the store's ``modules/`` records with the processes behind them, and
    whether the disk has failed.
    """

    def __init__(
        self,
        config: ChassisConfig,
        state_dir: Path,
        *,
        store: Store,
        operations: Operations,
        swarms: SwarmDirectory,
        claims: ClaimDirectory,
        now_ms: Callable[[], int],
        latency: LatencyWindow | None = None,
        launched: Launched | None = None,
    ) -> None:
        """Wire it up.

        Args:
            latency: Where the time of an execution that succeeded goes.
            launched: The first zygote, if it is getting ready already.
        """
        self._config = config
        self._state_dir = state_dir
        self._store = store
        self._operations = operations
        self._swarms = swarms
        self._claims = claims
        self._now_ms = now_ms
        self._latency = LatencyWindow() if latency is None else latency
        self._files = trio.CapacityLimiter(FILE_THREADS)
        self._blob_turn = trio.Lock()
        self._blobs = Blobs(
            state_dir / "blobs", bytes_per_uid=config.blob_bytes_per_uid, bytes_in_all=config.blob_bytes
        )
        self._supervisor = Supervisor(random.random, launched)
        self._compiler: Compiler | None = None
        self._sandboxes: dict[tuple[str, str], Sandbox] = {}
        # Replaced while somebody may still use them; the watch ends their processes.
        self._retired: list[Sandbox] = []
        # A worker each, and one for the compiler; None where the daemon cannot give user ids away.
        self._free_uids = (
            [config.worker_uid_base + number for number in range(config.max_workers + 1)] if os.geteuid() == 0 else None
        )
        self._workers = 0
        self._workers_of: Counter[int] = Counter()  # by the uid that loaded the module
        self._workers_started = 0
        self._disk_failure: DiskFailed | None = None
        self._disk_failed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled: the zygote, the watch over idle sandboxes. Started when executions are possible.

        Raises:
            DiskFailed: An upload could not be made durable; nothing may be acknowledged any more.
        """
        become_subreaper()
        async with trio.open_nursery() as nursery:
            # Before the cache's key is read: the zygote has no secrets to lose.
            await nursery.start(self._supervisor.run)
            await self._open_files()
            nursery.start_soon(self._inspect)
            task_status.started()
            try:
                await self._disk_failed.wait()
            finally:
                with trio.CancelScope(shield=True):  # bounded by Worker.end
                    for sandbox in [*self._sandboxes.values(), *self._retired]:
                        await sandbox.kill()
            assert self._disk_failure is not None
            raise self._disk_failure

    @property
    def layers(self) -> str:
        """What will lock every sandbox down, for people; empty before `run` has started."""
        return self._supervisor.layers

    # --- methods ---------------------------------------------------------------------------------------

    async def put_blob(self, caller: Caller, sha256: str, offset: int, data: bytes, total_bytes: int) -> dict[str, Any]:
        """See `interface.Chassis.put_blob`."""
        for param, value, kind in (
            ("sha256", sha256, str),
            ("offset", offset, int),
            ("data", data, bytes),
            ("total_bytes", total_bytes, int),
        ):
            if type(value) is not kind:
                raise InvalidParams(f"cannot store a chunk: {param} is no {kind.__name__}", data={"param": param})
        async with self._blob_turn:
            try:
                upload = await self._put_chunk(caller.uid, sha256, offset, data, total_bytes)
            except LimitExceeded:
                keep = await self._loaded_by(caller.uid)
                if not await self._in_thread(lambda: self._blobs.make_room(caller.uid, total_bytes, keep)):
                    raise
                upload = await self._put_chunk(caller.uid, sha256, offset, data, total_bytes)
        return attrs.asdict(upload)

    async def load_swarm(self, caller: Caller, swarm_id: str, contract: dict[str, Any]) -> dict[str, Any]:
        """See `interface.Chassis.load_swarm`."""
        check_identifier(swarm_id, "swarm_id")
        wanted = ServiceContract.from_wire(contract)
        rules.check_contract(wanted, self._config)
        module = LoadedModule(contract=wanted, uid=caller.uid, loaded_at_ms=self._now_ms())
        sandbox: Sandbox | None = None

        def load(tx: Tx) -> dict[str, Any]:
            nonlocal sandbox
            self._swarms.require_owner(tx, caller, swarm_id)
            modules = _read(tx, swarm_id)
            sha256 = wanted.module_sha256
            tx.detail = {"module": sha256, "kind": wanted.kind}
            before = next((loaded for loaded in modules if loaded.sha256 == sha256), None)
            if before is None and len(modules) >= self._config.max_modules:
                raise rules.exceeded(
                    "modules",
                    len(modules) + 1,
                    self._config.max_modules,
                    f"cannot load another module for {swarm_id}: {len(modules)} are loaded",
                    [{"by": "self", "what": "unload one", "call": "chassis.unload_swarm"}],
                )
            if before is not None and before.contract == wanted and before.uid == caller.uid:
                installed = self._sandbox(swarm_id, before)
                if sandbox not in (None, installed):  # somebody else loaded the same meanwhile
                    self._retired.append(sandbox)
                sandbox = installed
            elif sandbox is None:
                sandbox = self._new_sandbox(swarm_id, module)
            if not sandbox.is_warm:
                tx.obtain(f"warm {id(sandbox)}", partial(self._warm_up, caller, wanted, sandbox))
            if sandbox.module != before:
                # The last one loaded stands last: it is the default of `execute_task`.
                _write(tx, swarm_id, [*(loaded for loaded in modules if loaded is not before), module])
            return {"swarm_id": swarm_id, "module_sha256": sha256, "kind": wanted.kind, "layers": list(sandbox.layers)}

        try:
            answer = await self._operations.run(caller, "chassis.load_swarm", swarm_id, load)
        except BaseException:
            if sandbox is not None and self._sandboxes.get((swarm_id, wanted.module_sha256)) is not sandbox:
                with trio.CancelScope(shield=True):  # bounded by Worker.end
                    await sandbox.kill()
            raise
        if sandbox is not None:
            await self._install(sandbox)
        return answer

    async def execute_task(
        self,
        caller: Caller,
        swarm_id: str,
        input: Any,
        *,
        module_sha256: str | None = None,
        task_id: str | None = None,
        token: int | None = None,
    ) -> dict[str, Any] | Later:
        """See `interface.Chassis.execute_task`."""
        began_ns = time.perf_counter_ns()
        text = self._input_text(input)
        if (task_id is None) != (token is None):
            raise InvalidParams("cannot execute for a claim: task_id and token go together", data={"param": "token"})

        def decide(tx: Tx) -> Sandbox:
            self._swarms.require_owner(tx, caller, swarm_id)
            self._swarms.require_running(tx, swarm_id)
            if task_id is not None and token is not None:
                self._claims.require_holder(tx, task_id, swarm_id, token)
            module = _choose(swarm_id, _read(tx, swarm_id), module_sha256)
            tx.detail = {"module": module.sha256}
            if task_id is not None:
                tx.detail |= {"task_id": task_id, "token": token}
            return self._sandbox(swarm_id, module)

        if caller.idempotency_key is not None:
            return Later(partial(self._execute_once, caller, swarm_id, text, decide, began_ns))
        return await self._execute_at_once(caller, swarm_id, text, decide, began_ns)

    async def _execute_at_once(
        self, caller: Caller, swarm_id: str, text: bytes, decide: Callable[[Tx], Sandbox], began_ns: int
    ) -> dict[str, Any] | Later:
        """Run while the admission is made durable (ADR 0017): the answer waits for both."""
        started: tuple[Sandbox, Begun] | None = None

        def admit(tx: Tx) -> dict[str, Any]:
            nonlocal started
            sandbox = decide(tx)
            # Decided anew after a lost race, the execution itself is not repeated.
            started = started or (sandbox, sandbox.begin(text))
            return {}

        try:
            admitted = await self._operations.run(caller, _EXECUTE, swarm_id, admit)
        except BaseException:
            if started is not None:
                sandbox, begun = started
                await sandbox.abandon(begun)
            raise
        assert started is not None  # by the decision that was committed
        sandbox, begun = started
        finish = partial(self._finish, caller, swarm_id, decide, sandbox, begun, admitted["receipt"], began_ns)
        return await finish() if sandbox.has_answer(begun) else Later(finish)

    async def _finish(
        self,
        caller: Caller,
        swarm_id: str,
        decide: Callable[[Tx], Sandbox],
        sandbox: Sandbox,
        begun: Begun,
        admitted: dict[str, Any],
        began_ns: int,
    ) -> dict[str, Any]:
        """The end of a run whose admission is durable.

        One that came later than that, and is not brief, is decided once more and has an entry of its own; so has a failure.
        """
        try:
            run = await sandbox.finish(begun)
        except Momentary:
            raise
        except IfbusError as failure:
            await self._operations.witness_refusal(caller, _EXECUTE, swarm_id, failure)
            raise
        if not run.waited or run.wall_us < _BRIEF_US:
            self._latency.note(began_ns)
            answer = _answer(run)
            answer["receipt"] = admitted
            return answer

        def end(tx: Tx) -> dict[str, Any]:
            decide(tx)
            tx.detail |= {"admitted": admitted["seq"], "wall_us": run.wall_us, "cpu_us": run.cpu_us}
            return _answer(run)

        ended = await self._operations.run(caller, _EXECUTE, swarm_id, end)
        self._latency.note(began_ns)
        return ended

    async def _execute_once(
        self, caller: Caller, swarm_id: str, text: bytes, decide: Callable[[Tx], Sandbox], began_ns: int
    ) -> dict[str, Any]:
        """Run, then put the end on record together with the answer that a repetition gets."""

        def execute(tx: Tx) -> dict[str, Any]:
            sandbox = decide(tx)
            run = tx.obtain("run", lambda: sandbox.execute(text))
            tx.detail |= {"wall_us": run.wall_us, "cpu_us": run.cpu_us}
            return _answer(run)

        answer = await self._operations.run(caller, _EXECUTE, swarm_id, execute)
        self._latency.note(began_ns)
        return answer

    async def unload_swarm(self, caller: Caller, swarm_id: str, *, module_sha256: str | None = None) -> dict[str, Any]:
        """See `interface.Chassis.unload_swarm`."""

        def unload(tx: Tx) -> dict[str, Any]:
            self._swarms.require_owner(tx, caller, swarm_id)
            modules = _read(tx, swarm_id)
            gone = [module.sha256 for module in modules if module_sha256 in (None, module.sha256)]
            tx.detail = {"modules": gone}
            if gone:
                _write(tx, swarm_id, [module for module in modules if module.sha256 not in gone])
            return {"swarm_id": swarm_id, "unloaded": gone}

        answer = await self._operations.run(caller, "chassis.unload_swarm", swarm_id, unload)
        for sha256 in answer["unloaded"]:
            sandbox = self._sandboxes.pop((swarm_id, sha256), None)
            if sandbox is not None:
                await sandbox.kill()
        return answer

    async def list_sandboxes(self, caller: Caller) -> list[dict[str, Any]]:
        """See `interface.Chassis.list_sandboxes`."""
        rows = [
            {name: list(value) if isinstance(value, tuple) else value for name, value in attrs.asdict(report).items()}
            for report in self._reports(lambda module: caller.is_operator or module.uid == caller.uid)
        ]
        return rows[: how_many_fit(rows)]

    def statistics(self) -> ChassisStatistics:
        """See `interface.Chassis.statistics`."""
        compiler = self._compiler
        return ChassisStatistics(
            zygote_restarts=self._supervisor.restarts,
            workers=self._workers,
            workers_started=self._workers_started,
            compilations=compiler.compilations if compiler is not None else 0,
            cache_hits=compiler.cache_hits if compiler is not None else 0,
            tampered=compiler.tampered if compiler is not None else 0,
            sandboxes=tuple(self._reports(lambda module: True)),
        )

    # --- sandboxes -------------------------------------------------------------------------------------

    def _sandbox(self, swarm_id: str, module: LoadedModule) -> Sandbox:
        """The sandbox for what the store says is loaded; one with an older contract is replaced."""
        key = (swarm_id, module.sha256)
        found = self._sandboxes.get(key)
        if found is not None and (found.module is module or found.module == module):
            found.module = module  # the store's decoded value stays the same object
            return found
        if found is not None:
            self._retired.append(found)
        self._sandboxes[key] = self._new_sandbox(swarm_id, module)
        return self._sandboxes[key]

    def _new_sandbox(self, swarm_id: str, module: LoadedModule) -> Sandbox:
        return Sandbox(swarm_id, module, queue_length=self._config.queue_length, start=self._start)

    async def _install(self, sandbox: Sandbox) -> None:
        key = (sandbox.swarm_id, sandbox.module.sha256)
        before = self._sandboxes.get(key)
        self._sandboxes[key] = sandbox
        if before is not None and before is not sandbox:
            await before.kill()

    def _reports(self, wanted: Callable[[LoadedModule], bool]) -> list[SandboxReport]:
        return [sandbox.report() for sandbox in self._sandboxes.values() if wanted(sandbox.module)]

    async def _inspect(self) -> None:
        while True:
            await trio.sleep(_INSPECT_S)
            retired, self._retired = self._retired, []
            for sandbox in retired:
                await sandbox.kill()
            for sandbox in list(self._sandboxes.values()):
                await sandbox.inspect()
            self._supervisor.reap_strays()

    # --- workers ---------------------------------------------------------------------------------------

    async def _warm_up(self, caller: Caller, contract: ServiceContract, sandbox: Sandbox) -> None:
        await self._admit(caller, contract)
        await sandbox.warm_up()

    async def _admit(self, caller: Caller, contract: ServiceContract) -> None:
        """Refuse a module before anything is spent on it: the profile, and whether the caller has uploaded such a one."""
        profile = rules.choose_profile(contract, self._config, uid=caller.uid, is_operator=caller.is_operator)
        head, size = await self._in_thread(lambda: self._blobs.head(caller.uid, contract.module_sha256))
        rules.check_module(head, size, contract, profile, self._config.profiles)

    async def _start(self, sandbox: Sandbox) -> Ready:
        """A worker that has loaded the sandbox's module; compiles it if the cache has lost it."""
        for _ in range(2):
            code = await self._code(sandbox.module)
            try:
                await self._make_room(sandbox.module.uid)
                ready = await self._start_worker(sandbox, code)
            except BaseException:
                code.release()
                raise
            if ready is not None:
                return ready
            # Written by this very engine on this very machine, and refused: another processor than before, or a bug.
            code.release()
            _log.warning("chassis.code_refused", extra={"module_sha256": sandbox.module.sha256})
            await self._get_compiler().forget(sandbox.module.contract)
        raise Unavailable("cannot start a sandbox: the engine refuses its own code")

    async def _code(self, module: LoadedModule) -> Code:
        contract = module.contract
        # Whether the loader may use the profile was decided when it was loaded.
        profile = rules.choose_profile(contract, self._config, uid=module.uid, is_operator=True)
        return await self._get_compiler().get(
            contract, profile, lambda: self._blobs.open(module.uid, contract.module_sha256)
        )

    async def _make_room(self, uid: int) -> None:
        """End idle workers until there is room for one more: the user's own first, where the bound is the user's."""
        most, most_per_uid = self._config.max_workers, self._config.max_workers_per_uid
        while (is_users := self._workers_of[uid] >= most_per_uid) or self._workers >= most:
            idle = [
                sandbox
                for sandbox in self._sandboxes.values()
                if sandbox.is_warm and not sandbox.is_busy and (sandbox.module.uid == uid or not is_users)
            ]
            if not idle:
                used, whose = (self._workers_of[uid], f" of uid {uid}") if is_users else (self._workers, "")
                raise Overloaded(
                    f"cannot start a sandbox: all {used}{whose} are busy",
                    data={"workers": used, "retry_after_ms": 100},
                )
            await min(idle, key=lambda sandbox: sandbox.used_at).cool()

    async def _start_worker(self, sandbox: Sandbox, code: Code) -> Ready | None:
        """A ready worker, which owns a use of `code` from then on; None if it could not map the code."""
        contract = sandbox.module.contract
        self._workers += 1
        self._workers_of[sandbox.module.uid] += 1
        self._workers_started += 1
        uid = self._take_uid()

        def released() -> None:
            self._workers -= 1
            self._workers_of -= Counter([sandbox.module.uid])  # forgets a user without any
            self._give_uid(uid)

        worker: Worker | None = None
        failure: IfbusError | None = None
        try:
            worker = await self._supervisor.fork()
            order = ServeOrder(
                kind=contract.kind,
                export=contract.export,
                memory_bytes=contract.limits.memory_bytes,
                output_bytes=contract.limits.output_bytes,
                cpu_s=sandbox.cpu_fence_s,
                uid=uid,
                daemon_pid=os.getpid(),
            )
            answer: list[Any] | None = None
            with trio.move_on_after(_LOAD_S):
                answer = await worker.order(["serve", *order], [code.descriptor])
            match answer:
                case ["ready", [*layers]]:
                    base_bytes = worker.private_bytes()

                    def end() -> None:
                        released()
                        code.release()

                    return Ready(worker=worker, layers=tuple(map(str, layers)), base_bytes=base_bytes, released=end)
                case ["failed", "code", _]:
                    pass
                case ["failed", "invalid", str(message)]:
                    failure = InvalidModule(f"cannot load the module: {message}")
                case ["failed", "lockdown", str(message)]:
                    _log.error("chassis.lockdown_failed", extra={"reason": message})
                    failure = Unavailable(f"cannot run guests safely on this host: {message}")
                case _:
                    ended = await worker.end()
                    _log.error(
                        "chassis.worker_not_ready", extra={"answer": str(answer)[:200], "signal": str(ended.signal)}
                    )
                    failure = Unavailable("cannot start a sandbox: its process ended while loading")
        except BaseException:
            if worker is not None:
                await worker.end()
            released()
            raise
        await worker.end()
        released()
        if failure is not None:
            raise failure
        return None

    def _take_uid(self) -> int | None:
        return self._free_uids.pop() if self._free_uids else None

    def _give_uid(self, uid: int | None) -> None:
        if uid is not None and self._free_uids is not None:
            self._free_uids.append(uid)

    # --- files and records -------------------------------------------------------------------------------

    async def _open_files(self) -> None:
        def open_() -> CodeCache:
            self._blobs.prepare()
            cache = CodeCache(
                self._state_dir / "code",
                load_or_make_key(self._state_dir / "cache.key"),
                max_bytes=self._config.cache_bytes,
            )
            cache.prepare()
            return cache

        self._compiler = Compiler(
            self._config,
            await self._in_thread(open_),
            self._supervisor.fork,
            self._files,
            engine=lambda: self._supervisor.engine,
            uid=self._take_uid(),
        )

    def _get_compiler(self) -> Compiler:
        if self._compiler is None:
            raise Unavailable("cannot use the chassis: it is starting", data={"retry_after_ms": 200})
        return self._compiler

    async def _put_chunk(self, uid: int, sha256: str, offset: int, data: bytes, total_bytes: int) -> Upload:
        if self._disk_failure is not None:
            raise Unavailable(self._disk_failure.message)
        try:
            return await self._in_thread(lambda: self._blobs.put(uid, sha256, offset, data, total_bytes))
        except DiskFailed as error:
            self._disk_failure = error
            self._disk_failed.set()
            raise Unavailable(f"the outcome is unknown: {error.message}") from error
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise Unavailable("cannot store a chunk: the storage is full", data={"reason": "storage_full"}) from error

    async def _loaded_by(self, uid: int) -> set[str]:
        """The modules that a user has loaded for any swarm: rarely asked, so read from the store."""
        found: set[str] = set()
        after, more = "", True
        while more:
            page = await self._store.range(_PREFIX, after=after)
            for item in page.items:
                modules = map(LoadedModule.from_record, unpack(item.value))
                found |= {module.sha256 for module in modules if module.uid == uid}
                after = item.key
            more = page.has_more
        return found

    def _input_text(self, value: Any) -> bytes:
        try:
            text = _encode(value).encode()
        except (TypeError, ValueError) as error:
            raise InvalidParams(f"cannot execute: the input is no JSON: {error}", data={"param": "input"}) from error
        if len(text) > self._config.input_bytes:
            raise rules.exceeded(
                "input_bytes",
                len(text),
                self._config.input_bytes,
                f"cannot execute: the input is {len(text)} bytes of JSON, this host allows {self._config.input_bytes}",
            )
        return text

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._files)


def _read(tx: Tx, swarm_id: str) -> tuple[LoadedModule, ...]:
    """The modules loaded for a swarm, the last loaded one last."""
    return tx.read(_PREFIX + swarm_id, _modules) or ()


def _modules(data: bytes) -> tuple[LoadedModule, ...]:
    return tuple(map(LoadedModule.from_record, unpack(data)))


def _write(tx: Tx, swarm_id: str, modules: Sequence[LoadedModule]) -> None:
    if modules:
        tx.put(_PREFIX + swarm_id, [module.to_record() for module in modules])
    else:
        tx.delete(_PREFIX + swarm_id)


def _choose(swarm_id: str, modules: Sequence[LoadedModule], sha256: str | None) -> LoadedModule:
    for module in reversed(modules):
        if sha256 in (None, module.sha256):
            return module
    raise NotFound(
        f"cannot execute for {swarm_id}: " + ("no module is loaded" if sha256 is None else "that module is not loaded"),
        data={"swarm_id": swarm_id, "module_sha256": sha256, "loaded": [module.sha256 for module in modules]},
        would_change=[{"by": "self", "what": "load it first", "call": "chassis.load_swarm"}],
    )


def _answer(run: Run) -> dict[str, Any]:
    """`ifbus.models.Execution` as a map; checking it again would cost 20 us."""
    return {
        "output": run.output,
        "wall_us": run.wall_us,
        "cpu_us": run.cpu_us,
        "memory_bytes": run.memory_bytes,
        "sandbox": run.sandbox,
    }


_encode: Final = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
