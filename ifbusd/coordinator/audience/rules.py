"""Expressions over capabilities: ``all(code-analysis:python, any(infra:*, docs:writing), not(gpu:cuda))``. Pure.

    expression = "all" "(" list ")" | "any" "(" list ")" | "not" "(" expression ")" | capability | area ":*"
    list       = expression { "," expression }

Spaces may stand between words and signs. ``area:*`` is any capability of that area.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from ifbus.errors import InvalidParams
from ifbus.models import CAPABILITY

MAX_CHARS: Final = 1_000
MAX_DEPTH: Final = 16
_WORD = re.compile(r"[A-Za-z0-9:*_.-]+", re.ASCII)
_SPACES = re.compile(r"\s*", re.ASCII)
_ANY_OF_AREA = re.compile(r"([a-z0-9][a-z0-9_-]{0,47}):\*", re.ASCII)

Matches = Callable[[frozenset[str]], bool]


class Expression(NamedTuple):
    """A parsed expression.

    Attributes:
        kind: ``all``, ``any``, ``not``, ``can`` (one capability) or ``area``.
        word: The capability, or the area with its colon.
        parts: Of ``all``, ``any`` and ``not``.
    """

    kind: str
    word: str = ""
    parts: tuple[Expression, ...] = ()

    def matches(self, capabilities: frozenset[str]) -> bool:
        """Whether a swarm with these is meant."""
        match self.kind:
            case "all":
                return all(part.matches(capabilities) for part in self.parts)
            case "any":
                return any(part.matches(capabilities) for part in self.parts)
            case "not":
                return not self.parts[0].matches(capabilities)
            case "can":
                return self.word in capabilities
            case _:
                return any(one.startswith(self.word) for one in capabilities)

    def __str__(self) -> str:
        if self.kind == "can":
            return self.word
        if self.kind == "area":
            return f"{self.word}*"
        return f"{self.kind}({', '.join(map(str, self.parts))})"


def parse(text: str) -> Expression:
    """The expression of a text.

    Raises:
        InvalidParams: It is none: the message and ``data.at`` say where, counted from 0, and ``data.expected`` what could stand there.
    """
    if len(text) > MAX_CHARS:
        raise InvalidParams(
            f"an expression is at most {MAX_CHARS} characters, got {len(text)}",
            data={"param": "expression", "used": len(text), "allowed": MAX_CHARS},
        )
    reader = _Reader(text)
    found = reader.expression(0)
    reader.skip_spaces()
    if reader.at < len(text):
        raise reader.unexpected("the end")
    return found


class _Reader:
    """Reads from left to right, one sign ahead."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip_spaces(self) -> None:
        found = _SPACES.match(self.text, self.at)
        self.at = self.at if found is None else found.end()

    def unexpected(self, expected: str) -> InvalidParams:
        got = repr(self.text[self.at : self.at + 20]) if self.at < len(self.text) else "the end"
        return InvalidParams(
            f"cannot read the expression at {self.at}: expected {expected}, got {got}",
            data={"param": "expression", "at": self.at, "expected": expected},
        )

    def expression(self, depth: int) -> Expression:
        self.skip_spaces()
        if depth > MAX_DEPTH:
            raise self.unexpected(f"at most {MAX_DEPTH} levels")
        word = _WORD.match(self.text, self.at)
        if word is not None and word[0] in ("all", "any", "not"):
            self.at = word.end()
            return self.operator(word[0], depth)
        if word is not None and CAPABILITY.fullmatch(word[0]):
            self.at = word.end()
            return Expression("can", word[0])
        if word is not None and (area := _ANY_OF_AREA.fullmatch(word[0])):
            self.at = word.end()
            return Expression("area", f"{area[1]}:")
        raise self.unexpected("all(...), any(...), not(...), area:skill or area:*")

    def operator(self, kind: str, depth: int) -> Expression:
        self.sign("(")
        parts = [self.expression(depth + 1)]
        self.skip_spaces()
        while kind != "not" and self.text.startswith(",", self.at):
            self.at += 1
            parts.append(self.expression(depth + 1))
            self.skip_spaces()
        self.sign(")", "')'" if kind == "not" else "',' or ')'")
        return Expression(kind, parts=tuple(parts))

    def sign(self, sign: str, expected: str = "") -> None:
        self.skip_spaces()
        if not self.text.startswith(sign, self.at):
            raise self.unexpected(expected or repr(sign))
        self.at += 1
