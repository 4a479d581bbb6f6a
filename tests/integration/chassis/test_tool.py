"""A Python function as a component: built, compiled under the large profile, run, and as shut in as any guest."""

import os
from pathlib import Path
from typing import Any

import pytest

from ifbus.errors import GuestFailed, InvalidParams, LimitExceeded
from ifbus.toolbuild import FUNCTION, PROFILE, BuiltTool, ToolBuildFailed, build
from ifbusd.chassis.model import ChassisConfig
from tests.integration.chassis.harness import GUESTS, Harness, caller, running


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> BuiltTool:
    """tests/guests/hostile_tool.py as a component, which imports the honest wordcount_tool.py beside it."""
    return build(GUESTS / "hostile_tool.py", tmp_path_factory.mktemp("tool") / "tool.wasm")


@pytest.mark.slow
async def test_python_tool_runs_and_reaches_nothing(tool: BuiltTool, tmp_path: Path) -> None:
    """One build and one compilation; then every attempt in the same sandbox, in the order of growing violence."""
    state = tmp_path / "state"
    async with running(state) as chassis:
        await _load(chassis, tool, wall_ms=10_000)
        output = (await chassis.execute({"text": "One two, two. Three!"}))["output"]
        assert (output["words"], output["top"][0]) == (4, ["two", 2])
        assert output["at"] > 1_600_000_000

        with pytest.raises(GuestFailed, match="KeyError: 'text'"):
            await chassis.execute({"texts": ""})
        for wanted in ("read", "write", "list"):
            assert await _try(chassis, wanted) == "FileNotFoundError"
        with pytest.raises(GuestFailed, match="wasi:sockets/instance-network"):
            await _try(chassis, "socket")
        assert not Path("/tmp/escaped").exists()
        assert await _try(chassis, "environment") == {}
        assert await _try(chassis, "random") != await _try(chassis, "random")
        with pytest.raises(GuestFailed):
            await _try(chassis, "exit")
        with pytest.raises(GuestFailed, match="MemoryError"):
            await _try(chassis, "memory")
        with pytest.raises(LimitExceeded) as caught:
            await _try(chassis, "output")
        assert caught.value.data["limit"] == "output_bytes"

        process = Path(f"/proc/{chassis.worker_pid()}")
        assert len(list((process / "task").iterdir())) == 1
        links = sorted(os.readlink(link).partition(":")[0].partition(" ")[0] for link in (process / "fd").iterdir())
        assert links == ["/memfd", "socket"]

    async with running(state) as chassis:
        assert (await chassis.execute({"text": "x"}))["sandbox"] == "cold"
        assert chassis.chassis.statistics().compilations == 0
        await _load(chassis, tool, wall_ms=300)
        with pytest.raises(LimitExceeded) as caught:
            await _try(chassis, "spin")
        assert caught.value.data["limit"] == "wall_ms"


async def _load(chassis: Harness, tool: BuiltTool, **limits: int) -> dict[str, Any]:
    return await chassis.load(
        tool.path.read_bytes(),
        who=caller(is_operator=True),
        kind="component",
        export=FUNCTION,
        profile=PROFILE,
        **limits,
    )


async def _try(chassis: Harness, wanted: str) -> Any:
    return (await chassis.execute({"try": wanted}))["output"]["outcome"]


def test_profile_that_the_builder_names_is_in_the_default_policy() -> None:
    """What `ifbus tool build` tells people to ask for exists."""
    assert PROFILE in ChassisConfig().profiles


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("x = 1\n", "no function run"),
        ("async def run(input): ...\n", "async"),
        ("def run(): ...\n", "one argument"),
        ("def run(a, b): ...\n", "one argument"),
        ("def run(a, *, b): ...\n", "one argument"),
        ("def run(input):\n  return (\n", "never closed"),
    ],
)
def test_source_without_a_fit_function_is_refused(tmp_path: Path, source: str, why: str) -> None:
    """What cannot become a tool is said in one sentence, before the builder is started."""
    path = tmp_path / "tool.py"
    path.write_text(source)
    with pytest.raises(ToolBuildFailed, match=why):
        build(path, tmp_path / "tool.wasm")
    assert not (tmp_path / "tool.wasm").exists()


def test_source_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    """No file, or a name that Python cannot import."""
    with pytest.raises(InvalidParams, match="No such file"):
        build(tmp_path / "none.py", tmp_path / "tool.wasm")
    path = tmp_path / "my-tool.py"
    path.write_text("def run(input): ...\n")
    with pytest.raises(ToolBuildFailed, match="no identifier"):
        build(path, tmp_path / "tool.wasm")


@pytest.mark.slow
def test_source_that_fails_to_import_says_why(tmp_path: Path) -> None:
    """The tool's own error is the message, with the builder's last lines beside it."""
    path = tmp_path / "tool.py"
    path.write_text("import no_such_module\ndef run(input): ...\n")
    with pytest.raises(ToolBuildFailed, match="No module named 'no_such_module'") as failed:
        build(path, tmp_path / "tool.wasm")
    assert "tool.py" in failed.value.data["log"]
