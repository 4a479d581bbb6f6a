"""The methods in words: the answer of `daemon.describe`, and docs/protocol.md (``python -m ifbusd.rpc.describe``)."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

from ifbusd.rpc.methods import ROWS, Row, unknown_method
from ifbusd.rpc.signature import Signature

_PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def describe(method: str = "") -> dict[str, Any]:
    """One method in full, or all of them with a line each; the shape is that of `daemon.describe`.

    Raises:
        UnknownMethod: There is none of this name.
    """
    if not method:
        return {"methods": _all()}
    for row in ROWS:
        if row.name == method:
            return {"methods": [{**_entry(row), "doc": inspect.getdoc(row.does) or ""}]}
    raise unknown_method(method, [row.name for row in ROWS])


@functools.cache
def _all() -> list[dict[str, Any]]:
    return [_entry(row) for row in ROWS]


def _entry(row: Row) -> dict[str, Any]:
    doc = inspect.getdoc(row.does) or ""
    params = []
    for parameter in Signature.of(row.does).parameters:
        params.append({"name": parameter.name, "type": parameter.expected, "required": parameter.is_required})
        if parameter.default is not None:
            params[-1]["default"] = parameter.default
    return {"name": row.name, "role": row.role.value, "summary": doc.partition("\n")[0], "params": params}
