"""Finding an export and calling it, straight through wasmtime's C interface: four fifths of a small execution's time.

wasmtime's Python classes list all exports in order to give one, and make several type objects for each number that goes in or
comes out. The C functions are public, their bindings in the Python package are not, so this is all that touches them: another
version of the package must pass the tests of the guests.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, byref
from typing import Any, Final, NoReturn

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._func import maybe_raise_last_exn

NUMBERS: Final = {
    "i32": ffi.WASMTIME_I32.value,
    "i64": ffi.WASMTIME_I64.value,
    "f32": ffi.WASMTIME_F32.value,
    "f64": ffi.WASMTIME_F64.value,
}
_FUNCTION: Final = ffi.WASMTIME_EXTERN_FUNC.value
_MEMORY: Final = ffi.WASMTIME_EXTERN_MEMORY.value
_Trap: Final = POINTER(ffi.wasm_trap_t)


def find_export(
    store: wasmtime.Store, instance: wasmtime.Instance, name: bytes
) -> wasmtime.Func | wasmtime.Memory | None:
    """The function or memory that an instance exports under a name, None if there is none."""
    found = ffi.wasmtime_extern_t()
    if not ffi.wasmtime_instance_export_get(store._context(), byref(instance._instance), name, len(name), byref(found)):
        return None
    kind: Any = found.kind  # a plain number, whatever its declaration says
    if kind == _FUNCTION:
        return wasmtime.Func._from_raw(found.of.func)
    return wasmtime.Memory._from_raw(found.of.memory) if kind == _MEMORY else None


class NumberCall:
    """Calls functions of one type, whose parameters and results are numbers. Not for two calls at once."""

    def __init__(self, params: Sequence[str], results: Sequence[str]) -> None:
        """`params`, `results`: names of `NUMBERS`."""
        self._given = (ffi.wasmtime_val_t * len(params))()
        self._got = (ffi.wasmtime_val_t * len(results))()
        for value, name in zip(self._given, params, strict=True):
            value.kind = NUMBERS[name]
        # Where each number stands: the same places in every call.
        self._inputs = [(value.of, name) for value, name in zip(self._given, params, strict=True)]
        self._outputs = [(value.of, name) for value, name in zip(self._got, results, strict=True)]

    def __call__(self, store: wasmtime.Store, function: wasmtime.Func, arguments: Sequence[float]) -> Any:
        """What the function returns: None, a number, or a list of them.

        Args:
            function: Of this type: nobody checks it here.
            arguments: As many as there are parameters; each must fit its own.

        Raises:
            wasmtime.Trap, wasmtime.WasmtimeError: As calling the function itself would; so does what a host function raised.
        """
        given, got = self._given, self._got
        for (place, name), argument in zip(self._inputs, arguments, strict=True):
            setattr(place, name, argument)
        trap = _Trap()
        error = ffi.wasmtime_func_call(
            store._context(), byref(function._func), given, len(given), got, len(got), byref(trap)
        )
        # Null pointers are false.
        if error:  # type: ignore[truthy-bool]
            _raise(wasmtime.WasmtimeError._from_ptr(error))
        if trap:  # type: ignore[truthy-bool]
            _raise(wasmtime.Trap._from_ptr(trap))
        results = [getattr(place, name) for place, name in self._outputs]
        return results if len(results) > 1 else results[0] if results else None


def _raise(failure: Exception) -> NoReturn:
    maybe_raise_last_exn()  # what a host function raised is the reason
    raise failure
