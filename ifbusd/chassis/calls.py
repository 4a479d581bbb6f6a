"""Finding an export and calling it, straight through wasmtime's C interface: four fifths of a small execution's time.

wasmtime's Python classes list all exports in order to give one, and make several type objects for each number that goes in or
comes out. The C functions are public, their bindings in the Python package are not, so this is all that touches them: another
version of the package must pass the tests of the guests.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from typing import Any, Final

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._extern import wrap_extern
from wasmtime._func import enter_wasm

NUMBERS: Final = {
    "i32": ffi.WASMTIME_I32.value,
    "i64": ffi.WASMTIME_I64.value,
    "f32": ffi.WASMTIME_F32.value,
    "f64": ffi.WASMTIME_F64.value,
}


def find_export(store: wasmtime.Store, instance: wasmtime.Instance, name: bytes) -> Any:
    """What an instance exports under a name, None if there is nothing."""
    found = ffi.wasmtime_extern_t()
    if not ffi.wasmtime_instance_export_get(store._context(), byref(instance._instance), name, len(name), byref(found)):
        return None
    return wrap_extern(found)


class NumberCall:
    """Calls functions of one type, whose parameters and results are numbers. Not for two calls at once."""

    def __init__(self, params: Sequence[str], results: Sequence[str]) -> None:
        """`params`, `results`: names of `NUMBERS`."""
        self._params = tuple(params)
        self._results = tuple(results)
        self._given = (ffi.wasmtime_val_t * len(params))()
        self._got = (ffi.wasmtime_val_t * len(results))()
        for value, name in zip(self._given, params, strict=True):
            value.kind = NUMBERS[name]

    def __call__(self, store: wasmtime.Store, function: wasmtime.Func, arguments: Sequence[float]) -> Any:
        """What the function returns: None, a number, or a list of them.

        Args:
            function: Of this type: nobody checks it here.
            arguments: As many as there are parameters; each must fit its own.

        Raises:
            wasmtime.Trap, wasmtime.WasmtimeError: As calling the function itself would; so does what a host function raised.
        """
        given, got = self._given, self._got
        for value, name, argument in zip(given, self._params, arguments, strict=True):
            setattr(value.of, name, argument)
        with enter_wasm(store) as trap:
            error = ffi.wasmtime_func_call(
                store._context(), byref(function._func), given, len(given), got, len(got), trap
            )
            if error:  # type: ignore[truthy-bool] # a null pointer is false
                raise wasmtime.WasmtimeError._from_ptr(error)
        results = [getattr(value.of, name) for value, name in zip(got, self._results, strict=True)]
        return results if len(results) > 1 else results[0] if results else None
