"""Every place where the daemon's code makes an error for a client, found by reading the code, and told by what it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

from ifbus import errors
from ifbus.errors import IfbusError

ROOT = Path(__file__).parents[2]
_CLASSES = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, IfbusError)
}
# Not for a client of the daemon: a start that fails, a file that is checked without one, what a library says by itself.
_ELSEWHERE = {
    "ifbusd/__main__.py",
    "ifbusd/activation.py",
    "ifbusd/config.py",
    "ifbusd/rpc/listener.py",
    "ifbusd/store/schema.py",
    "ifbusd/witness/offline.py",
}
_SHARED = ("client/ifbus/protocol.py", "client/ifbus/models.py")


class Site(NamedTuple):
    """One of them.

    Attributes:
        says: Matches its messages; None where the message is not written there.
        figures: Names in its `data`, as far as they are written there.
    """

    file: str
    line: int
    code: str
    says: re.Pattern[str] | None
    figures: frozenset[str]
    is_whole: bool
    names_change: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.code} {self.says.pattern[:90] if self.says else ''}"

    def made(self, error: dict[str, Any]) -> bool:
        """Whether this error can be from here."""
        if error["code"] != self.code or not self.figures <= error["data"].keys():
            return False
        return self.says is None or self.says.fullmatch(error["message"]) is not None


def sites() -> list[Site]:
    """All of them, in the order of the code."""
    found = []
    for path in (*sorted((ROOT / "ifbusd").rglob("*.py")), *(ROOT / name for name in _SHARED)):
        name = path.relative_to(ROOT).as_posix()
        if name not in _ELSEWHERE:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [site for node in ast.walk(tree) if (site := _site(name, node)) is not None]
    return sorted(found, key=lambda site: (site.file, site.line))


def _site(file: str, node: ast.AST) -> Site | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
        return None
    kind = _CLASSES.get(node.func.id)
    if kind is None or kind is errors.ConfigInvalid:  # a start that fails, too
        return None
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    data = keywords.get("data")
    names = data.keys if isinstance(data, ast.Dict) else []
    return Site(
        file=file,
        line=node.lineno,
        code=kind.code,
        says=_pattern(node.args[0]),
        figures=frozenset(str(name.value) for name in names if isinstance(name, ast.Constant)),
        is_whole=data is None or (isinstance(data, ast.Dict) and all(isinstance(name, ast.Constant) for name in names)),
        names_change="would_change" in keywords,
    )


def _pattern(message: ast.expr) -> re.Pattern[str] | None:
    text = _regular(message)
    return re.compile(text, re.DOTALL) if re.sub(r"\.\*", "", text) else None


def _regular(message: ast.expr) -> str:
    if isinstance(message, ast.Constant):
        return re.escape(str(message.value))
    if isinstance(message, ast.JoinedStr):
        return "".join(_regular(part) for part in message.values)
    if isinstance(message, ast.BinOp):
        return _regular(message.left) + _regular(message.right)
    return ".*"
