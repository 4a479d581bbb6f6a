"""Compiling strangers' modules: in a process that the kernel limits, once, and used again only with a valid MAC."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import wasmtime

from ifbus.errors import CompileLimit, InvalidModule, LimitExceeded, NotFound, PermissionDenied
from ifbusd.chassis.model import ChassisConfig, CompileProfile
from tests.integration.chassis.harness import GUESTS, Harness, caller, running

_MiB = 1 << 20
# A quarter of the default's time and memory, so that each bomb goes off quickly.
TIGHT = ChassisConfig(profiles={"default": CompileProfile(everybody=True, cpu_s=1, wall_s=5, data_bytes=192 * _MiB)})


def _leb(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def _section(number: int, *items: bytes) -> bytes:
    body = _leb(len(items)) + b"".join(items)
    return bytes([number]) + _leb(len(body)) + body


def _module(bodies: list[bytes], locals_: bytes = b"\0") -> bytes:
    """A module of functions ``() -> ()`` with these bodies, the first exported as run."""
    codes = [locals_ + body + b"\x0b" for body in bodies]
    return (
        b"\0asm\1\0\0\0"
        + _section(1, b"\x60\0\0")
        + _section(3, *[b"\0"] * len(bodies))
        + _section(7, b"\x03run\0\0")
        + _section(10, *[_leb(len(code)) + code for code in codes])
    )


def _get(local: int) -> bytes:
    return b"\x20" + _leb(local)


BOMBS: dict[str, Callable[[], bytes]] = {
    "nested blocks": lambda: _module([b"\x02\x7f" * 50_000 + b"\x41\0" + b"\x0b" * 50_000 + b"\x1a"]),
    "nested loops": lambda: _module([b"\x03\x40" * 50_000 + b"\x0b" * 50_000]),
    "a variable through loops": lambda: _module(
        [b"\x03\x40\x20\0\x41\1\x6a\x21\0" * 10_000 + b"\x20\0\x0d\0\x0b" * 10_000], b"\x01\x01\x7f"
    ),
    "variables crossed in loops": lambda: _module(
        [
            b"\x03\x40" * 3000
            + b"".join(
                _get(n % 1000) + b"\x21" + _leb(n * 7 % 1000) + _get(n % 1000) + b"\x0d\0\x0b" for n in range(3000)
            )
        ],
        b"\x01" + _leb(1000) + b"\x7f",
    ),
    "branches": lambda: _module([b"\x02\x40" * 60_000 + b"\x41\0\x0d\0" * 60_000 + b"\x0b" * 60_000]),
    "if-else ladder": lambda: _module([b"\x41\0\x04\x40" * 40_000 + b"\x05\x0b" * 40_000]),
    "crowd of functions": lambda: _module([b""] * 250_000),
    "large branch table": lambda: _module([b"\x02\x40\x41\0\x0e" + _leb(900_000) + b"\0" * 900_000 + b"\0\x0b"]),
    "many locals": lambda: _module([b"\x41\0\x21\0" * 1000], b"\x01" + _leb(49_000) + b"\x7f"),
}
# Those that no amount of patience compiles within the profile; which limit they meet first is the machine's affair.
STOPPED = ["nested blocks", "nested loops", "a variable through loops", "variables crossed in loops"]


@pytest.mark.parametrize("bomb", BOMBS)
async def test_compile_bomb_ends_at_a_limit(tmp_path: Path, bomb: str) -> None:
    """A module made to be hard to compile is refused, or compiles within its profile; the next load works either way."""
    async with running(tmp_path / "state", TIGHT) as chassis:
        outcome = "ok"
        with trio.fail_after(60):
            try:
                await chassis.load(BOMBS[bomb]())
            except (CompileLimit, InvalidModule, LimitExceeded) as refused:
                outcome = refused.code
        assert outcome == "compile_limit" or bomb not in STOPPED
        await chassis.load("core", export="add", swarm="b")
        assert await chassis.run(1, 2, swarm="b") == 3


@pytest.mark.parametrize("bomb", STOPPED)
async def test_refused_compilation_says_what_it_lacked(tmp_path: Path, bomb: str) -> None:
    """The limit, its figures, the profile and who could change it."""
    async with running(tmp_path / "state", TIGHT) as chassis:
        with pytest.raises(CompileLimit) as caught:
            await chassis.load(BOMBS[bomb]())
        assert caught.value.data["limit"] in {"data_bytes", "cpu_ms", "wall_ms"}
        assert caught.value.data["profile"] == "default"
        assert caught.value.data["used"] >= caught.value.data["allowed"] > 0
        assert {change["by"] for change in caught.value.would_change} == {"self", "operator"}


async def test_honest_large_function_passes_the_default_profile(chassis: Harness) -> None:
    """400 k instructions in one function are work, not an attack."""
    await chassis.load(_module([b"\x41\0\x1a" * 133_000]))
    assert await chassis.run() is None


async def test_module_beyond_its_profile_is_refused_unread(chassis: Harness) -> None:
    """Longer than the profile allows: refused by its length, with the profile's name."""
    with pytest.raises(LimitExceeded) as caught:
        await chassis.load(b"\0asm\1\0\0\0" + bytes(1 * _MiB))
    assert caught.value.data["limit"] == "module_bytes"


async def test_large_profile_is_for_operators(chassis: Harness) -> None:
    """A stranger does not get the large profile by asking; an operator does, for a module of any kind."""
    with pytest.raises(PermissionDenied):
        await chassis.load("core", export="add", profile="python-component")
    with pytest.raises(NotFound):
        await chassis.load("core", export="add", profile="no-such")
    await chassis.load("core", export="add", profile="python-component", who=caller(is_operator=True))
    assert await chassis.run(1, 2) == 3


async def test_code_too_long_for_its_profile_is_refused(tmp_path: Path) -> None:
    """The compiler cannot write more than the profile allows, however small the module was."""
    tight = CompileProfile(everybody=True, code_bytes=1 * _MiB)
    async with running(tmp_path / "state", ChassisConfig(profiles={"default": tight})) as chassis:
        body = b"".join(b"\x41" + _leb(number % 64) + b"\x1a\x10\0" for number in range(100_000))
        with pytest.raises(CompileLimit) as caught:
            await chassis.load(_module([body]))
        assert caught.value.data["limit"] == "code_bytes"


async def test_same_module_is_compiled_once(chassis: Harness) -> None:
    """For other swarms, limits and exports the code is there; two who load it at once wait for one compilation."""
    async with trio.open_nursery() as nursery:
        for swarm in "abc":
            nursery.start_soon(lambda swarm=swarm: chassis.load("core", swarm=swarm, export="add"))
    await chassis.load("core", swarm="d", export="fib")
    assert chassis.chassis.statistics().compilations == 1
    assert [await chassis.run(1, 2, swarm=swarm) for swarm in "abc"] == [3, 3, 3]


async def test_cache_outlives_the_daemon(tmp_path: Path) -> None:
    """A new daemon maps what the old one compiled."""
    async with running(tmp_path / "state") as chassis:
        await chassis.load("core", export="add")
    async with running(tmp_path / "state") as chassis:
        assert (await chassis.execute({"args": [1, 2]}))["sandbox"] == "cold"
        statistics = chassis.chassis.statistics()
        assert (statistics.compilations, statistics.cache_hits, statistics.tampered) == (0, 1, 0)


def _flip(path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def _cut(path: Path, _: Path) -> None:
    os.truncate(path, 5000)


def _link(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("tamper", [_flip, _swap, _cut, _link])
async def test_tampered_code_is_never_run(tmp_path: Path, tamper: Callable[[Path, Path], None]) -> None:
    """A changed cache file costs one compilation and a warning; the answer is right."""
    async with running(tmp_path / "state") as chassis:
        await chassis.load("core", export="add")
        (path,) = (tmp_path / "state" / "code").iterdir()
        await chassis.load("wordcount", swarm="b", kind="command")
        (other,) = set((tmp_path / "state" / "code").iterdir()) - {path}
    tamper(path, other)
    async with running(tmp_path / "state") as chassis:
        assert await chassis.run(20, 3) == 23
        statistics = chassis.chassis.statistics()
        assert (statistics.compilations, statistics.tampered) == (1, 1)


async def test_code_of_another_engine_is_made_again(tmp_path: Path) -> None:
    """Authentic code that the engine refuses (the machine was changed under us) is compiled anew, once."""
    async with running(tmp_path / "state") as chassis:
        await chassis.load("core", export="add")
        compiler = chassis.chassis._get_compiler()
        sandbox = chassis.chassis._sandboxes["a", next(iter(chassis.chassis._sandboxes))[1]]
        await sandbox.cool()
        config = wasmtime.Config()
        config.epoch_interruption = True
        foreign = wasmtime.Module(wasmtime.Engine(config), (GUESTS / "core.wasm").read_bytes()).serialize()
        from ifbusd.chassis import cache

        memory = cache.new_code_file()
        os.write(memory, foreign)
        cache.seal(memory)
        compiler._cache.store(compiler._key(sandbox.module.contract), memory)
        os.close(memory)
        assert await chassis.run(20, 3) == 23
        assert chassis.chassis.statistics().compilations == 2
