"""The library is typed through: mypy reads a program that uses it as its author meant it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_mypy_sees_the_types_that_are_meant() -> None:
    """Every `assert_type` holds, and every mistake is found."""
    command = [sys.executable, "-m", "mypy", "--strict", str(HERE / "api.py")]
    ran = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
