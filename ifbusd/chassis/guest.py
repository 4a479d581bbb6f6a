"""The three kinds of guest, inside a worker: JSON text in, JSON text out, a fresh Store and instance every time.

No Store ever serves two executions (FACTS 3). Between two of them the next one's instance is made ahead where the guest cannot
tell (ADR 0017); the mapped code stays warm.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import wasmtime
from wasmtime import component

from ifbusd.chassis import wasi, wasip2
from ifbusd.chassis.calls import NUMBERS, NumberCall, find_export
from ifbusd.chassis.messages import clip

# Beyond what honest guests use, and small: 16 tables of 100 k elements are 12.8 MB.
_TABLE_ELEMENTS: Final = 100_000
_TABLES: Final = 16
_COMPONENT_INSTANCES: Final = 64
_COMPONENT_MEMORIES: Final = 8
# An instance that takes more processor time is made when it is asked for, under the eyes of the daemon, which ends a sandbox that works
# 50 ms without being asked. One of a Python tool takes 1 ms.
_AHEAD_NS: Final = 5_000_000

# The world of `ifbus tool build`; keep in step with ifbus/toolbuild.py.
COMPONENT_SIGNATURE: Final = "func(input: string) -> result<string, string>"

_BITS: Final = {"i32": 32, "i64": 64}

Answer = tuple[str, bytes, str, int]
T = TypeVar("T")


class InvalidGuest(Exception):
    """The module has no such export, an import that we do not offer, or types that do not fit its kind."""


class Host:
    """What guests need that is the same for all of them; made once in the zygote."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        self.engine = engine
        self.wasi = wasi.Preview1()
        self.wasi_linker = wasmtime.Linker(engine)
        self.wasi.define(self.wasi_linker)


class Guest(Protocol):
    """Code that is mapped, linked and ready."""

    def run(self, text: bytes) -> Answer:
        """Execute once on JSON text: status, output, message, memory in bytes (`messages.Outcome`)."""
        ...

    def prepare(self) -> None:
        """Between executions: give back what the last one held, and get ready for the next."""
        ...


def load(host: Host, path: str, *, kind: str, export: str, memory_bytes: int, output_bytes: int) -> Guest:
    """Map the compiled code at `path` and check that it fits its kind; once per process.

    Raises:
        InvalidGuest: It does not fit.
        wasmtime.WasmtimeError: The code was compiled for another engine or machine.
    """
    engine = host.engine
    if kind == "component":
        return ComponentGuest(engine, path, export or "run", memory_bytes, output_bytes)
    module = wasmtime.Module.deserialize_file(engine, path)
    if kind == "command":
        return CommandGuest(host, module, export or "_start", memory_bytes, output_bytes)
    return CoreGuest(engine, module, export or "run", memory_bytes, output_bytes)


class _Instances(Generic[T]):
    """Makes instances, each for one execution; one stands ready where making it ahead goes unnoticed (ADR 0017).

    That is so where it is quick, and where the guest's start asks nothing of the host: then it does the same every time.
    """

    def __init__(self, make: Callable[[], T], host_calls: Callable[[], int]) -> None:
        """Wire it up.

        Args:
            host_calls: How often guests have called functions of the host so far.
        """
        self._make = make
        self._host_calls = host_calls
        self._goes_unnoticed = False  # until one was made while the daemon watched
        self._ready: T | None = None

    def take(self) -> T:
        """The one that stands ready, or a new one. Raises what instantiating raises."""
        ready, self._ready = self._ready, None
        return self._make_measured() if ready is None else ready

    def prepare(self) -> None:
        """Make the next one, if that goes unnoticed."""
        if self._goes_unnoticed and self._ready is None:
            try:
                instance = self._make_measured()
            except (wasmtime.Trap, wasmtime.WasmtimeError):
                return  # the next execution meets it, too, and says why
            if self._goes_unnoticed:
                self._ready = instance

    def _make_measured(self) -> T:
        self._goes_unnoticed = False
        calls, began_ns = self._host_calls(), time.thread_time_ns()
        instance = self._make()
        self._goes_unnoticed = time.thread_time_ns() - began_ns < _AHEAD_NS and self._host_calls() == calls
        return instance


class _Instance(NamedTuple):
    """An instance of a module, in a Store of its own."""

    store: wasmtime.Store
    function: wasmtime.Func
    memory: wasmtime.Memory | None


class _ModuleGuest:
    """What core modules and commands have in common."""

    def __init__(
        self,
        engine: wasmtime.Engine,
        module: wasmtime.Module,
        linker: wasmtime.Linker,
        export: str,
        memory_bytes: int,
        host_calls: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._export = export
        self._memory_bytes = memory_bytes
        self._used: _Instance | None = None
        found = {item.name: item.type for item in module.exports}.get(export)
        if not isinstance(found, wasmtime.FuncType):
            raise InvalidGuest(f"the module exports no function {export!r}")
        self.params = [str(kind) for kind in found.params]
        self.results = [str(kind) for kind in found.results]
        if not NUMBERS.keys() >= {*self.params, *self.results}:
            raise InvalidGuest(f"{export!r} takes or gives something else than numbers")
        self._call = NumberCall(self.params, self.results)
        self._instances = _Instances(self._instantiate, host_calls)
        try:
            self._instance_pre = linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as error:
            raise InvalidGuest(clip(str(error))) from error

    def execute(self, *arguments: Any) -> tuple[str, Any, str, int]:
        """Call in an instance of its own: status, what the function returned, message, memory in bytes."""
        used: _Instance | None = None
        try:
            self._used = used = self._instances.take()
            status, result, message = "ok", self._call(used.store, used.function, arguments), ""
        except wasi.GuestExit as exit_:
            status, result, message = ("ok", None, "") if exit_.status == 0 else ("exit", None, str(exit_))
        except wasi.OutputFull:
            status, result, message = "output", None, "wrote more than its output limit"
        except wasmtime.Trap as trap:
            status, result, message = "trap", None, _reason(trap)
        except wasmtime.WasmtimeError as error:
            status, result, message = _instantiation_failure(str(error))
        except MemoryError:
            raise
        except Exception as error:  # of a WASI function of ours that the guest called wrongly: a trap like any other
            status, result, message = "trap", None, clip(f"{type(error).__name__}: {error}")
        size = used.memory.data_len(used.store) if used is not None and used.memory is not None else 0
        return status, result, message, size

    def prepare(self) -> None:
        """See `Guest.prepare`."""
        if self._used is not None:
            self._used.store.close()
            self._used = None
        self._instances.prepare()

    def _instantiate(self) -> _Instance:
        store = wasmtime.Store(self._engine)
        store.set_limits(
            memory_size=self._memory_bytes, table_elements=_TABLE_ELEMENTS, instances=1, tables=_TABLES, memories=1
        )
        instance = self._instance_pre.instantiate(store)
        memory = find_export(store, instance, b"memory")
        function = find_export(store, instance, self._export.encode())
        assert isinstance(function, wasmtime.Func)  # checked at load
        return _Instance(store, function, memory if isinstance(memory, wasmtime.Memory) else None)


class CoreGuest(_ModuleGuest):
    """An exported function: ``{"args": [numbers]}`` in, a number (or a list of them, or null) out."""

    def __init__(
        self, engine: wasmtime.Engine, module: wasmtime.Module, export: str, memory_bytes: int, output_bytes: int
    ) -> None:
        for imported in module.imports:
            raise InvalidGuest(
                f"a core module may import nothing; it wants {clip(f'{imported.module}.{imported.name}')}"
            )
        super().__init__(engine, module, wasmtime.Linker(engine), export, memory_bytes, host_calls=lambda: 0)
        self._output_bytes = output_bytes
        self._gives_fractions = not {"f32", "f64"}.isdisjoint(self.results)

    def run(self, text: bytes) -> Answer:
        """See `Guest.run`."""
        try:
            arguments = self._arguments(_decode(text.decode()))
        except (ValueError, OverflowError) as error:
            return "input", b"", clip(str(error)), 0
        status, result, message, memory = self.execute(*arguments)
        if status != "ok":
            return status, b"", message, memory
        if self._gives_fractions and not all(map(math.isfinite, _numbers(result))):
            return "trap", b"", f"result {result} is no finite number", memory
        output = _encode(result).encode()
        if len(output) > self._output_bytes:
            return "output", b"", "gave more than its output limit", memory
        return "ok", output, "", memory

    def _arguments(self, value: Any) -> list[int | float]:
        arguments = value.get("args") if isinstance(value, dict) and len(value) == 1 else None
        if not isinstance(arguments, list) or len(arguments) != len(self.params):
            raise ValueError(f'{self._export!r} wants {{"args": [{", ".join(self.params)}]}}')
        return [_number(kind, argument) for kind, argument in zip(self.params, arguments, strict=True)]


class CommandGuest(_ModuleGuest):
    """A WASI command: JSON on standard input, JSON on standard output, exit status 0."""

    def __init__(self, host: Host, module: wasmtime.Module, export: str, memory_bytes: int, output_bytes: int) -> None:
        imports = module.imports
        for imported in imports:
            if imported.module != wasi.MODULE:
                raise InvalidGuest(f"a command may import {wasi.MODULE} only; it wants {clip(str(imported.module))}")
        self._wasi = host.wasi
        self._wasi.define_others(host.wasi_linker, imports)
        super().__init__(
            host.engine, module, host.wasi_linker, export, memory_bytes, host_calls=lambda: self._wasi.calls
        )
        if self.params or self.results:
            raise InvalidGuest(f"{export!r} of a command takes and gives nothing")
        self._output_bytes = output_bytes

    def run(self, text: bytes) -> Answer:
        """See `Guest.run`."""
        streams = self._wasi.streams = wasi.Streams(text, self._output_bytes)
        status, _, message, memory = self.execute()
        if status == "ok":
            return "ok", bytes(streams.stdout), "", memory
        return status, bytes(streams.stderr), message, memory


class ComponentGuest:
    """A component: one exported function that takes JSON text and gives JSON text or an error text."""

    def __init__(self, engine: wasmtime.Engine, path: str, export: str, memory_bytes: int, output_bytes: int) -> None:
        self._engine = engine
        self._export = export
        self._memory_bytes = memory_bytes
        self._output_bytes = output_bytes
        self._wasi = wasip2.Preview2()
        self._component = component.Component.deserialize_file(engine, path)
        exported = self._component.type.exports(engine).get(export)
        kind = exported.ty if exported is not None else None
        if not isinstance(kind, component.FuncType) or not _is_tool(kind):
            raise InvalidGuest(f"the component must export {export}: {COMPONENT_SIGNATURE}")
        try:
            self._linker = self._wasi.linker(engine, self._component)
        except wasip2.UnsupportedImport as error:
            raise InvalidGuest(f"a component may import WASI 0.2 only; it wants {clip(str(error))}") from error
        except wasmtime.WasmtimeError as error:
            raise InvalidGuest(clip(str(error))) from error
        self._instances = _Instances(self._instantiate, lambda: self._wasi.calls)
        self._used: wasmtime.Store | None = None

    def run(self, text: bytes) -> Answer:
        """See `Guest.run`."""
        printed = self._wasi.printed = bytearray()
        try:
            store, function = self._instances.take()
            self._used = store
            answer = function(store, text.decode())
        except wasi.GuestExit as exit_:
            return "exit", bytes(printed), str(exit_), 0
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            status, _, message = _instantiation_failure(str(error))
            return status, bytes(printed), message, 0
        except MemoryError:
            raise
        except Exception as error:  # see `_ModuleGuest.execute`
            return "trap", bytes(printed), clip(f"{type(error).__name__}: {error}"), 0
        if not isinstance(answer, component.Variant) or not isinstance(answer.payload, str):
            return "trap", bytes(printed), "gave no result", 0
        output = answer.payload.encode()
        if answer.tag != "ok":
            return "exit", bytes(printed), clip(answer.payload), 0
        if len(output) > self._output_bytes:
            return "output", b"", "gave more than its output limit", 0
        return "ok", output, "", 0

    def prepare(self) -> None:
        """See `Guest.prepare`."""
        if self._used is not None:
            self._used.close()
            self._used = None
        self._instances.prepare()

    def _instantiate(self) -> tuple[wasmtime.Store, component.Func]:
        store = wasmtime.Store(self._engine)
        store.set_limits(
            memory_size=self._memory_bytes,
            table_elements=_TABLE_ELEMENTS,
            instances=_COMPONENT_INSTANCES,
            tables=_TABLES,
            memories=_COMPONENT_MEMORIES,
        )
        function = self._linker.instantiate(store, self._component).get_func(store, self._export)
        assert function is not None  # checked at load
        return store, function


def _is_tool(kind: component.FuncType) -> bool:
    params = [type(param) for _, param in kind.params]
    result = kind.result
    return (
        params == [component.String]
        and isinstance(result, component.ResultType)
        and isinstance(result.ok, component.String)
        and isinstance(result.err, component.String)
    )


def _reason(trap: wasmtime.Trap) -> str:
    code = trap.trap_code
    return clip(trap.message) if code is None else code.name.lower().replace("_", " ")


def _instantiation_failure(message: str) -> tuple[str, None, str]:
    # wasmtime has no code for these, only words: "memory minimum size of 1000 pages exceeds memory limits". What a person
    # wants to know stands after the backtrace.
    reason = clip(message.rpartition("Caused by:")[2].strip())
    if "exceeds memory limit" in message or "exceeds table limit" in message or "resource limit" in message:
        return "memory", None, reason
    return "trap", None, reason


def _number(kind: str, value: Any) -> int | float:
    if type(value) is not int and type(value) is not float:
        raise ValueError(f"{value!r} is no number")
    bits = _BITS.get(kind)
    if bits is None:
        return float(value)
    if type(value) is not int or not -(1 << (bits - 1)) <= value < 1 << bits:
        raise ValueError(f"{value} is no {kind}")
    return value if value < 1 << (bits - 1) else value - (1 << bits)


def _numbers(result: Any) -> list[Any]:
    return result if isinstance(result, list) else [result]


_decode: Final = json.JSONDecoder().decode
_encode: Final = json.JSONEncoder().encode
