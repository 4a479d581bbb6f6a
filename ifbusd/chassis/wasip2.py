"""WASI 0.2 for components: the few functions that a Python tool meets at run time; every other import traps (ADR 0010).

No directory is ever preopened and no stream leads out of the process, so files and sockets do not exist for the guest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

from wasmtime import Engine
from wasmtime.component import (
    Component,
    ComponentInstanceType,
    Linker,
    Record,
    ResourceAny,
    ResourceHost,
    ResourceType,
    Variant,
)

from ifbusd.chassis.wasi import STDERR_BYTES, GuestExit

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_MAX_RANDOM_BYTES: Final = 64 << 10
_WRITABLE_BYTES: Final = 64 << 10
_DONE: Final = Variant("ok")


class UnsupportedImport(Exception):
    """The component imports something that is no WASI 0.2 interface."""


class Preview2:
    """The functions, defined once in a linker. The mutable state: `printed` (standard output and error, cut off), and how many
    calls of functions there were."""

    def __init__(self) -> None:
        self.printed = bytearray()
        self.calls = 0
        self._type_ids: dict[str, int] = {}
        self._functions: dict[tuple[str, str], Callable[..., Any]] = {
            ("wasi:cli/environment", "get-environment"): lambda store: [],
            ("wasi:cli/environment", "get-arguments"): lambda store: [],
            ("wasi:cli/environment", "initial-cwd"): lambda store: None,
            ("wasi:cli/exit", "exit"): _exit,
            ("wasi:cli/stdin", "get-stdin"): lambda store: self._stream("input-stream", _STDIN),
            ("wasi:cli/stdout", "get-stdout"): lambda store: self._stream("output-stream", _STDOUT),
            ("wasi:cli/stderr", "get-stderr"): lambda store: self._stream("output-stream", _STDERR),
            ("wasi:cli/terminal-stdin", "get-terminal-stdin"): lambda store: None,
            ("wasi:cli/terminal-stdout", "get-terminal-stdout"): lambda store: None,
            ("wasi:cli/terminal-stderr", "get-terminal-stderr"): lambda store: None,
            ("wasi:clocks/monotonic-clock", "now"): lambda store: time.monotonic_ns(),
            ("wasi:clocks/monotonic-clock", "resolution"): lambda store: 1000,
            ("wasi:clocks/wall-clock", "now"): lambda store: _datetime(time.time_ns()),
            ("wasi:clocks/wall-clock", "resolution"): lambda store: _datetime(1000),
            ("wasi:filesystem/preopens", "get-directories"): lambda store: [],
            ("wasi:random/random", "get-random-bytes"): _random_bytes,
            ("wasi:random/random", "get-random-u64"): lambda store: int.from_bytes(os.urandom(8), "little"),
            ("wasi:random/insecure", "get-insecure-random-bytes"): _random_bytes,
            ("wasi:random/insecure-seed", "insecure-seed"): lambda store: (0, 0),
            ("wasi:io/streams", "[method]input-stream.read"): _at_end,
            ("wasi:io/streams", "[method]input-stream.blocking-read"): _at_end,
            ("wasi:io/streams", "[method]output-stream.check-write"): lambda store, stream: _WRITABLE_BYTES,
            ("wasi:io/streams", "[method]output-stream.write"): self._print,
            ("wasi:io/streams", "[method]output-stream.flush"): lambda store, stream: _DONE,
            ("wasi:io/streams", "[method]output-stream.blocking-flush"): lambda store, stream: _DONE,
            ("wasi:io/streams", "[method]output-stream.blocking-write-and-flush"): self._print,
        }

    def linker(self, engine: Engine, component: Component) -> Linker:
        """A linker that satisfies every import of `component`.

        Raises:
            UnsupportedImport: One is no WASI 0.2 interface.
        """
        linker = Linker(engine)
        imports = component.type.imports(engine)
        with linker.root() as root:
            for name, extern in imports.items():
                interface, _, interface_version = name.partition("@")
                kind = extern.ty
                if not isinstance(kind, ComponentInstanceType) or not (
                    interface.startswith("wasi:") and interface_version.startswith("0.2.")
                ):
                    raise UnsupportedImport(name)
                with root.add_instance(name) as instance:
                    for item, item_extern in kind.exports(engine).items():
                        function = self._functions.get((interface, item))
                        if function is not None:
                            function = self._counted(function)
                            instance.add_func(item, _returning(function) if item.startswith("[method]") else function)
                        elif isinstance(item_extern.ty, ResourceType):
                            instance.add_resource(item, ResourceType.host(self._type_id(item)), _drop)
        linker.define_unknown_imports_as_traps(component)
        return linker

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            return function(*arguments)

        return call

    def _type_id(self, resource: str) -> int:
        # One number per resource name: `output-stream` is the same resource in every interface that names it.
        return self._type_ids.setdefault(resource, len(self._type_ids) + 1)

    def _stream(self, resource: str, number: int) -> ResourceHost:
        return ResourceHost.own(number, self._type_id(resource))

    def _print(self, store: Any, stream: Any, data: bytes) -> Variant:
        self.printed += data[: max(0, STDERR_BYTES - len(self.printed))]
        return _DONE


def _returning(method: Callable[..., Any]) -> Callable[..., Any]:
    # A method gets its resource as a loan; one that is not given back by the end of the call is a trap.
    def call(store: Any, resource: ResourceAny, *arguments: Any) -> Any:
        try:
            return method(store, resource, *arguments)
        finally:
            resource.drop(store)

    return call


def _drop(store: Any, rep: int) -> None:
    """Our resources are numbers: nothing to free."""


def _exit(store: Any, status: Any) -> None:
    raise GuestExit(1 if isinstance(status, Variant) and status.tag == "err" else 0)


def _random_bytes(store: Any, size: int) -> bytes:
    if size > _MAX_RANDOM_BYTES:
        raise ValueError(f"asked for {size} random bytes at once, at most {_MAX_RANDOM_BYTES}")
    return os.urandom(size)


def _at_end(store: Any, stream: Any, size: int) -> None:
    """None is how wasmtime-py spells the error `closed` of a result whose other side is a list."""


def _datetime(ns: int) -> Record:
    datetime = Record()
    datetime.seconds, datetime.nanoseconds = divmod(ns, 1_000_000_000)  # type: ignore[attr-defined]
    return datetime
