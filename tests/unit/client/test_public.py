"""What `import ifbus` offers, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ifbus

# What each stage may not have loaded: an event loop, the daemon's libraries, a pretty terminal.
_HEAVY = ["anyio", "asyncio", "grpc", "nats", "rich", "sniffio", "structlog", "trio", "wasmtime", "apsw", "pytest"]


def _loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    ("code", "more"),
    [
        ("import ifbus", ["attrs", "msgpack", "ifbus.models", "socket"]),
        ("from ifbus.link import Link", ["attrs", "ifbus.models"]),
        ("import ifbus; ifbus.Client", ["ifbus.answers", "ifbus.aio", "hashlib", "pathlib", "subprocess"]),
        ("import ifbus.testing", []),
    ],
)
def test_an_import_loads_little(code: str, more: list[str]) -> None:
    """Each door into the library loads what it needs, no event loop among it."""
    assert not _loaded_by(code) & {*_HEAVY, *more}


def test_every_public_name_is_there() -> None:
    """`__all__`, the table of homes and the imports for type checkers name the same things, and each can be had."""
    tree = ast.parse(Path(str(ifbus.__file__)).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - ifbus._MODULES == set(ifbus.__all__) - {"Limits"}
    assert set(ifbus._HOMES) == set(ifbus.__all__)
    assert sorted(ifbus.__all__) == ifbus.__all__ or len(set(ifbus.__all__)) == len(ifbus.__all__)
    for name in [*ifbus.__all__, *ifbus._MODULES]:
        assert getattr(ifbus, name) is not None
        assert name in dir(ifbus)
    with pytest.raises(AttributeError, match="no_such_name"):
        ifbus.no_such_name  # noqa: B018


def test_the_models_of_the_mission_are_public() -> None:
    """The names that the mission gives its models are all here."""
    mission = "TaskClaim TaskBroadcast BlockerAlert SwarmProfile CapabilityMatch BudgetReport ServiceContract"
    assert {*mission.split(), "ResourceLimits", "SLODefinition"} <= set(ifbus.__all__)
