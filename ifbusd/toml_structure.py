"""A TOML document into frozen attrs classes: strictly, with all problems of a file at once, each with its line and key.

`cattrs` converts the values, with hooks that refuse where it would repair (``true`` for 1, a text for a list of letters). The
tables are walked here, because cattrs stops at a class's first failing validator and does not name the field.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

import attrs
from cattrs import Converter

from ifbus.money import MicroUsd, to_micro_usd

T = TypeVar("T", bound=attrs.AttrsInstance)
KeyPath = tuple[str, ...]

# A TOML integer has 64 bits; tomllib takes longer ones, which later would not fit the store or a system call.
_MAX_INT: Final = 2**63 - 1
_SHOWN: Final = 60


class Problem(NamedTuple):
    """One thing that is wrong in a document: at which key, and what would be right there."""

    path: KeyPath
    text: str


def key_of(field_name: str) -> str:
    """The name of a field in the file: amounts are dollars at the edge (``x_usd``), micro-dollars inside (``x_micro_usd``)."""
    return re.sub("_micro_usd$", "_usd", field_name)


def parse(text: str) -> dict[str, Any]:
    """The document as plain values.

    Raises:
        ValueError: It is no TOML; the message has line and column.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("lists or tables are nested too deeply") from None


def structure(table: dict[str, Any], base: T, problems: list[Problem], path: KeyPath = ()) -> T:
    """`base` with what the table says instead; whatever is wrong goes to `problems` and stays as in `base`.

    Args:
        base: An attrs instance; a key that the table lacks keeps its value. Tables of tables (``dict[str, Class]``) are
            merged by name; a new name starts from the class's own defaults.
    """
    cls = type(base)
    types = get_type_hints(cls)
    fields = {key_of(field.name): field.name for field in attrs.fields(cls)}
    given: dict[str, Any] = {}
    for key, value in table.items():
        here = (*path, key)
        if key not in fields:
            problems.append(Problem(here, f"unknown key{_did_you_mean(key, fields)}"))
            continue
        name = fields[key]
        wanted = MicroUsd if name.endswith("_micro_usd") else types[name]
        try:
            given[name] = _value(value, wanted, getattr(base, name), problems, here)
        except ValueError as error:
            problems.append(Problem(here, str(error)))
    try:
        return _changed(base, given)
    except ValueError:
        # Of a whole class attrs names only the first field that a validator refuses, so each is tried alone.
        for name, text in list(_invalid_alone(base, given)):
            problems.append(Problem((*path, key_of(name)), text))
            del given[name]
    try:
        return _changed(base, given)
    except ValueError as error:
        # What is left is a rule over several fields: the table's problem.
        problems.append(Problem(path, _expectation(error)))
        return base


def lines_of_keys(text: str) -> dict[KeyPath, int]:
    """In which line, from 1, each table and key stands, as far as a look at each line alone can tell."""
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *_parts(key[1])), number)
    return found


_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_NAMES = rf"({_NAME}(?:\s*\.\s*{_NAME})*)"
_HEADER = re.compile(rf"\s*\[\s*{_NAMES}\s*\]")
_KEY = re.compile(rf"\s*{_NAMES}\s*=")


def _parts(dotted: str) -> KeyPath:
    return tuple(part.strip("\"'") for part in re.findall(_NAME, dotted))


def _value(value: Any, wanted: Any, base: Any, problems: list[Problem], path: KeyPath) -> Any:
    if attrs.has(type(base)):
        return structure(_table(value), base, problems, path)
    if get_origin(wanted) is dict:
        _, cls = get_args(wanted)
        merged = dict(base)
        for name, inner in _table(value).items():
            merged[name] = structure(_table(inner), base.get(name) or cls(), problems, (*path, name))
        return merged
    return _CONVERTER.structure(value, wanted)


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _expected("a table", value)
    return value


def _changed(base: T, given: dict[str, Any]) -> T:
    changed: T = attrs.evolve(cast("Any", base), **given)  # mypy knows `evolve` of a class, not of a type variable
    return changed


def _invalid_alone(base: attrs.AttrsInstance, given: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in given.items():
        try:
            _changed(base, {name: value})
        except ValueError as error:
            yield name, _expectation(error)


def _expectation(error: ValueError) -> str:
    # attrs says "'lease_ms' must be >= 1: 0"; some of its validators put more arguments behind the message.
    text = str(error.args[0]) if error.args else str(error)
    if match := re.fullmatch(r"'\w+' must be (.*?)(?:: (\S*)| \(got (.*)\))", text):
        return f"expected {match[1]}, got {match[2] or match[3]}"
    return text


def _did_you_mean(key: str, known: dict[str, str]) -> str:
    nearest = difflib.get_close_matches(key[:64], known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else f"; known here: {', '.join(known)}"


def _expected(what: str, value: Any) -> ValueError:
    shown = str(value).lower() if type(value) is bool else repr(value)
    return ValueError(f"expected {what}, got {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}")


def _whole_number(value: Any, _: Any) -> int:
    if type(value) is not int or abs(value) > _MAX_INT:
        raise _expected("a whole number", value)
    return value


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _expected("a number", value)
    return float(value)


def _text(value: Any, _: Any) -> str:
    if type(value) is not str:
        raise _expected("a text in quotes", value)
    return value


def _truth(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise _expected("true or false", value)
    return value


def _absolute_path(value: Any, _: Any) -> Path:
    if type(value) is not str or not value.startswith("/") or "\0" in value:
        raise _expected("an absolute path in quotes", value)
    return Path(value)


def _amount(value: Any, _: Any) -> int:
    return to_micro_usd(value)


def _is_choice(wanted: Any) -> bool:
    return get_origin(wanted) is Literal or (isinstance(wanted, type) and issubclass(wanted, enum.Enum))


def _choice(wanted: Any) -> Callable[[Any, Any], Any]:
    allowed = (
        {choice: choice for choice in get_args(wanted)}
        if get_origin(wanted) is Literal
        else {member.value: member for member in wanted}
    )

    def one_of(value: Any, _: Any) -> Any:
        if type(value) is not str or value not in allowed:
            raise _expected("one of " + ", ".join(map(repr, allowed)), value)
        return allowed[value]

    return one_of


def _is_collection(wanted: Any) -> bool:
    return get_origin(wanted) in (tuple, frozenset)


def _collection(wanted: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    collect, element = get_origin(wanted), get_args(wanted)[0]

    def each(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise _expected("a list", value)
        return collect(converter.structure(item, element) for item in value)

    return each


def _strict_converter() -> Converter:
    converter = Converter(detailed_validation=False)
    converter.register_structure_hook(int, _whole_number)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(bool, _truth)
    converter.register_structure_hook(Path, _absolute_path)
    converter.register_structure_hook(MicroUsd, _amount)
    converter.register_structure_hook_factory(_is_choice, _choice)
    converter.register_structure_hook_factory(_is_collection, _collection)
    return converter


_CONVERTER: Final = _strict_converter()
