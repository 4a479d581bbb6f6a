"""The wheel as it is installed: the client alone works, and what needs more says what to install."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0


class Done(NamedTuple):
    """What a command left."""

    exit: int
    out: str
    err: str


def _type(*command: str | Path, cwd: Path) -> Done:
    done = subprocess.run(
        command, cwd=cwd, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are of an environment that has the wheel and what it depends on, without any extra."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_S)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    bin_folder = folder / "venv" / "bin"
    pip = [bin_folder / "python", "-m", "pip", "--disable-pip-version-check", "install", "--only-binary", ":all:"]
    with (ROOT / "pyproject.toml").open("rb") as file:
        needed = tomllib.load(file)["project"]["dependencies"]
    # Ours may fail only for want of an index; the wheel itself needs none.
    base = subprocess.run(
        [*pip, "-c", ROOT / "constraints.txt", *needed], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if base.returncode:
        pytest.skip(f"pip cannot install the base dependencies here: {base.stderr.strip().splitlines()[-1]}")
    subprocess.run([*pip, "--no-index", "--no-deps", wheel], check=True, capture_output=True, timeout=PATIENCE_S)
    subprocess.run([bin_folder / "python", "-m", "pip", "check"], check=True, capture_output=True, timeout=PATIENCE_S)
    return bin_folder


def test_the_command_works_without_extras(bin_folder: Path, tmp_path: Path) -> None:
    """Help, version and completion need neither daemon nor extras; a missing daemon is told as that."""
    assert _type(bin_folder / "ifbus", "--help", cwd=tmp_path).exit == 0
    assert _type(bin_folder / "ifbus", "--version", cwd=tmp_path).out.startswith("ifbus ")
    assert "ifbus" in _type(bin_folder / "ifbus", "completion", "bash", cwd=tmp_path).out
    alone = _type(bin_folder / "ifbus", "status", "--socket", tmp_path / "none.sock", cwd=tmp_path)
    assert (alone.exit, alone.err.split(":")[0]) == (9, "daemon_not_running")


def test_both_clients_can_be_imported(bin_folder: Path, tmp_path: Path) -> None:
    """The base dependencies are enough for the blocking and the asynchronous client."""
    ran = _type(bin_folder / "python", "-c", "import ifbus; ifbus.Client, ifbus.AsyncClient", cwd=tmp_path)
    assert ran == Done(0, "", "")


@pytest.mark.parametrize(
    ("command", "status", "extra"),
    [
        (("ifbus", "demo"), 2, "ifbus[daemon,cli]"),
        (("ifbus", "tool", "build", "tool.py"), 2, "ifbus[tool]"),
        (("ifbus", "witness", "verify", "--state", "."), 2, "ifbus[daemon]"),
        (("ifbusd", "--dev"), 1, "ifbus[daemon]"),
    ],
)
def test_what_is_missing_is_said(
    bin_folder: Path, tmp_path: Path, command: tuple[str, ...], status: int, extra: str
) -> None:
    """What needs an extra says which, as something to type, and not by a traceback."""
    (tmp_path / "tool.py").write_text("def run(input):\n    return input\n", encoding="utf-8")
    ran = _type(bin_folder / command[0], *command[1:], cwd=tmp_path)
    assert ran.exit == status, ran
    assert f"pip install '{extra}'" in ran.err
    assert "Traceback" not in ran.err
