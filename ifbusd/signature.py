"""From a handler's signature to a checker of its parameters, made once per method; and to its description.

What a parameter may be on the wire follows from its annotation: ``str``, ``int`` (64 bits, never a bool), ``float`` (finite,
ints too), ``bool``, ``bytes``, ``None``, ``Any``, ``list`` and ``list[X]``, ``dict[str, X]``, ``Literal``, unions of these,
and `ifbus.money.MicroUsd`, which is a decimal string or whole number of dollars on the wire and micro-dollars inside.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import math
import types
import typing
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, Never, Union

import attrs

from ifbus.errors import InvalidParams
from ifbus.money import MicroUsd, to_micro_usd, to_usd

CALLER: Final = "caller"
_INT64: Final = range(-(2**63), 2**63)
# Longer candidates are cut before they are compared with known names: difflib is quadratic.
_CANDIDATE_CHARS: Final = 64
_NEAR_RATIO: Final = 0.6
_SHOWN_CHARS: Final = 80


class _Mismatch(Exception):
    """The value is not what the parameter takes; `got` says what it is instead."""


class _Check(NamedTuple):
    """How to check one value.

    Attributes:
        expected: What is taken, in the wire's words.
        plain: Types whose values are all fine as they are; looked up first because it is quick.
        convert: Checks and converts any other value, raising `_Mismatch`; None if there is nothing else.
    """

    expected: str
    plain: frozenset[type]
    convert: Callable[[Any], Any] | None = None

    def apply(self, value: Any) -> Any:
        if type(value) in self.plain:
            return value
        if self.convert is None:
            raise _Mismatch(shown(value))
        return self.convert(value)


@attrs.frozen(kw_only=True)
class Parameter:
    """One parameter of a method, as a client sees it.

    Attributes:
        expected: What it takes, in the wire's words: ``string``, ``integer``, ``list of string``, ...
        default: What it is when not given; meaningless if it `is_required`.
    """

    name: str
    expected: str
    is_required: bool
    default: Any = None


class Signature:
    """What one method takes. Built once; `bind` is on the path of every request."""

    def __init__(self, parameters: tuple[Parameter, ...], checks: dict[str, _Check]) -> None:
        self.parameters = parameters
        self._names = tuple(checks)
        self._checks = checks
        self._required = frozenset(p.name for p in parameters if p.is_required)

    @classmethod
    def of(cls, handler: Callable[..., Any]) -> Signature:
        """The signature of a handler: what follows its parameter `caller`.

        Raises:
            TypeError: It has no `caller`, or a parameter whose annotation the wire cannot check: a bug, found at start.
        """
        parameters = list(inspect.signature(handler).parameters.values())
        names = [p.name for p in parameters]
        if CALLER not in names:
            raise TypeError(f"{handler.__qualname__} has no parameter {CALLER!r}")
        hints = typing.get_type_hints(handler)
        described, checks = [], {}
        for parameter in parameters[names.index(CALLER) + 1 :]:
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{handler.__qualname__}: the wire cannot fill {parameter}")
            check = _check_for(hints[parameter.name], f"{handler.__qualname__}: {parameter.name}")
            checks[parameter.name] = check
            is_required = parameter.default is parameter.empty
            default = None if is_required else parameter.default
            if default is not None and "dollars" in check.expected:
                default = to_usd(default)
            described.append(
                Parameter(name=parameter.name, expected=check.expected, is_required=is_required, default=default)
            )
        return cls(tuple(described), checks)

    def bind(self, params: list[Any]) -> dict[str, Any]:
        """The keyword arguments for the handler: checked and converted, what was not given left out.

        Args:
            params: The positional list in the documented order, or one map of keyword arguments in a list of its own,
                which is changed in place and returned.

        Raises:
            InvalidParams: `data["param"]` names the parameter; the message also what was expected and what came.
        """
        if len(params) == 1 and type(params[0]) is dict:
            given = params[0]
        elif not params:
            given = {}
        else:
            if len(params) > len(self._names):
                self._refuse_surplus(params)
            given = dict(zip(self._names, params, strict=False))
        checks = self._checks
        for name, value in given.items():
            check = checks.get(name)
            if check is None:
                self._refuse_unknown(name)
            if type(value) in check.plain:
                continue
            try:
                given[name] = check.apply(value)  # the key exists, so the map may be changed while it is walked
            except _Mismatch as mismatch:
                raise InvalidParams(
                    f"cannot take {name}: expected {check.expected}, got {mismatch}",
                    data={"param": name, "expected": check.expected},
                ) from None
        if not self._required <= given.keys():
            missing = next(name for name in self._names if name in self._required and name not in given)
            expected = checks[missing].expected
            raise InvalidParams(
                f"cannot do without {missing}: expected {expected}, got nothing",
                data={"param": missing, "expected": expected},
            )
        return given

    def _refuse_unknown(self, name: Any) -> Never:
        near = nearest(name, self._names)
        hint = f"; did you mean {near}?" if near else ""
        takes = ", ".join(self._names) or "no parameters"
        raise InvalidParams(
            f"cannot take {shown(name)}: no such parameter{hint} (takes {takes})",
            data={"param": str(name)[:_SHOWN_CHARS], **({"nearest": near} if near else {})},
        )

    def _refuse_surplus(self, params: list[Any]) -> Never:
        raise InvalidParams(
            f"cannot take {len(params)} parameters: at most {len(self._names)} ({', '.join(self._names)})",
            data={"param": f"[{len(self._names)}]", "used": len(params), "allowed": len(self._names)},
        )


def nearest(name: Any, known: typing.Iterable[str]) -> str | None:
    """The known name that a misspelt one probably means, or None.

    The one that goes on where it ends, else the one that shares most pairs of letters, if difflib agrees that it is near: asking difflib about each takes a millisecond,
    and a client may misspell as often as it likes.
    """
    text = str(name)[:_CANDIDATE_CHARS]
    pairs = _pairs(text)

    def likeness(other: str) -> tuple[bool, float]:
        others = _pairs_of_known(other)
        return other.startswith(text), len(pairs & others) / len(pairs | others)

    best = max(known, key=likeness, default=None)
    return best if best and difflib.SequenceMatcher(None, best, text).ratio() >= _NEAR_RATIO else None


def _pairs(text: str) -> frozenset[str]:
    return frozenset(map("".join, itertools.pairwise(f"^{text}$")))


_pairs_of_known = functools.lru_cache(maxsize=1024)(_pairs)


def shown(value: Any) -> str:
    """A stranger's value for an error message: short, and never walking into a container."""
    kind = type(value)
    if value is None:
        return "nil"
    if kind in (dict, list, bytes):
        return f"{'a map' if kind is dict else 'a list' if kind is list else 'binary'} of {len(value)}"
    if kind is str:
        return repr(value[:_SHOWN_CHARS]) + ("..." if len(value) > _SHOWN_CHARS else "")
    return str(value)


# --- from annotation to check ------------------------------------------------------------------------


def _check_for(annotation: Any, where: str) -> _Check:
    if annotation is MicroUsd:
        return _Check("amount of dollars", frozenset(), _money)
    simple = _SIMPLE.get(annotation)
    if simple is not None:
        return simple
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _union([_check_for(argument, where) for argument in arguments])
    if origin is Literal:
        return _literal(arguments)
    if origin is list:
        return _list_of(_check_for(arguments[0], where))
    if origin is dict and arguments[0] is str:
        return _map_of(_check_for(arguments[1], where))
    raise TypeError(f"{where}: the wire cannot check {annotation!r}")


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise _Mismatch(shown(value))
    if value not in _INT64:
        raise _Mismatch(f"{value}, which does not fit into 64 bits")
    return value


def _number(value: Any) -> float:
    if type(value) is int:
        return float(value)
    if type(value) is not float or not math.isfinite(value):
        raise _Mismatch(shown(value))
    return value


def _money(value: Any) -> int:
    try:
        return to_micro_usd(value)
    except ValueError as error:
        rule = str(error).partition(", got ")[0]  # what we got is said already
        raise _Mismatch(f"{shown(value)} ({rule})") from None


def _any_list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise _Mismatch(shown(value))
    return value


def _any_map(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _Mismatch(shown(value))
    for key in value:
        if type(key) is not str:
            raise _Mismatch(f"a key {shown(key)}")
    return value


# `Any` must still be a value of the wire, which whatever was decoded is.
_ANYTHING: Final = frozenset({type(None), bool, int, float, str, bytes, list, dict})
_SIMPLE: Final[dict[Any, _Check]] = {
    str: _Check("string", frozenset({str})),
    bool: _Check("boolean", frozenset({bool})),
    bytes: _Check("binary", frozenset({bytes})),
    type(None): _Check("nil", frozenset({type(None)})),
    Any: _Check("anything", _ANYTHING),
    int: _Check("integer", frozenset(), _integer),
    float: _Check("number", frozenset(), _number),
    list: _Check("list", frozenset({list})),
}


def _union(checks: list[_Check]) -> _Check:
    plain = frozenset[type]().union(*(check.plain for check in checks))
    converts = [check.convert for check in checks if check.convert is not None]
    expected = " or ".join(check.expected for check in checks)
    if not converts:
        return _Check(expected, plain)

    def convert(value: Any) -> Any:
        reasons = []
        for attempt in converts:
            try:
                return attempt(value)
            except _Mismatch as mismatch:
                reasons.append(str(mismatch))
        raise _Mismatch(reasons[0])

    return _Check(expected, plain, convert)


def _literal(choices: tuple[Any, ...]) -> _Check:
    allowed = {(type(choice), choice) for choice in choices}

    def convert(value: Any) -> Any:
        if type(value) not in (str, int, bool) or (type(value), value) not in allowed:
            near = nearest(value, [choice for choice in choices if type(choice) is str]) if type(value) is str else None
            raise _Mismatch(shown(value) + (f" (did you mean {near!r}?)" if near else ""))
        return value

    return _Check(
        " or ".join(f'"{choice}"' if type(choice) is str else str(choice) for choice in choices), frozenset(), convert
    )


def _list_of(item: _Check) -> _Check:
    if item.expected == "anything":
        return _SIMPLE[list]

    def convert(value: Any) -> list[Any]:
        items = _any_list(value)
        for index, element in enumerate(items):
            if type(element) not in item.plain:
                try:
                    items[index] = item.apply(element)
                except _Mismatch as mismatch:
                    raise _Mismatch(f"{mismatch} at [{index}]") from None
        return items

    return _Check(f"list of {item.expected}", frozenset(), convert)


def _map_of(item: _Check) -> _Check:
    if item.expected == "anything":
        return _Check("map", frozenset(), _any_map)

    def convert(value: Any) -> dict[str, Any]:
        entries = _any_map(value)
        for key, element in entries.items():
            try:
                entries[key] = item.apply(element)
            except _Mismatch as mismatch:
                raise _Mismatch(f"{mismatch} under {shown(key)}") from None
        return entries

    return _Check(f"map of {item.expected}", frozenset(), convert)
