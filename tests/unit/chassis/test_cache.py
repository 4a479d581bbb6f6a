"""Compiled code is used only if it is, byte for byte and under its name, what this host wrote."""

import errno
import fcntl
import os
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ifbus.errors import ConfigInvalid
from ifbusd.chassis.cache import CodeCache, CodeKey, Tampered, load_or_make_key, new_code_file, seal

KEY = CodeKey(module_sha256="a" * 64, kind="core", engine="e")
OTHER = CodeKey(module_sha256="b" * 64, kind="core", engine="e")
CODE = bytes(range(256)) * 20


def _cache(directory: Path, *, key: bytes = b"k" * 32, max_bytes: int = 1 << 30) -> CodeCache:
    cache = CodeCache(directory / "code", key, max_bytes=max_bytes)
    cache.prepare()
    return cache


def _memory(code: bytes) -> int:
    memory = new_code_file()
    os.write(memory, code)
    seal(memory)
    return memory


def _store(cache: CodeCache, key: CodeKey, code: bytes) -> None:
    memory = _memory(code)
    cache.store(key, memory)
    os.close(memory)


def _load(cache: CodeCache, key: CodeKey) -> bytes | None:
    memory = cache.load(key)
    if memory is None:
        return None
    with open(memory, "rb") as file:
        file.seek(0)
        return file.read()


def test_stored_code_comes_back_sealed(tmp_path: Path) -> None:
    """What was stored is there again, in memory that nobody can change any more."""
    cache = _cache(tmp_path)
    assert cache.load(KEY) is None
    _store(cache, KEY, CODE)
    memory = cache.load(KEY)
    assert memory is not None
    assert os.pread(memory, len(CODE) + 1, 0) == CODE
    assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) == 0xF
    with pytest.raises(PermissionError):
        os.write(memory, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)
    os.close(memory)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path: Path, data: st.DataObject) -> None:
    """One bit anywhere in the file, magic and MAC included, and it is gone instead of used."""
    cache = _cache(tmp_path)
    _store(cache, KEY, CODE)
    (path,) = (tmp_path / "code").iterdir()
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(Tampered):
        cache.load(KEY)
    assert not path.exists()
    assert cache.load(KEY) is None


@pytest.mark.parametrize("size", [0, 1, 15, 16, 47, 48, 49, 48 + len(CODE) - 1])
def test_truncated_file_is_found(tmp_path: Path, size: int) -> None:
    """A file that a crash cut off is not used."""
    cache = _cache(tmp_path)
    _store(cache, KEY, CODE)
    (path,) = (tmp_path / "code").iterdir()
    os.truncate(path, size)
    with pytest.raises(Tampered):
        cache.load(KEY)


def test_extended_file_is_found(tmp_path: Path) -> None:
    """Nor is one that got longer."""
    cache = _cache(tmp_path)
    _store(cache, KEY, CODE)
    (path,) = (tmp_path / "code").iterdir()
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(Tampered):
        cache.load(KEY)


def test_files_swapped_or_linked_are_found(tmp_path: Path) -> None:
    """Authentic code under another module's name, or behind a link, is not that module's."""
    cache = _cache(tmp_path)
    _store(cache, KEY, CODE)
    (own,) = (tmp_path / "code").iterdir()
    _store(cache, OTHER, CODE[::-1])
    (other,) = set((tmp_path / "code").iterdir()) - {own}
    first, second = own.read_bytes(), other.read_bytes()
    own.write_bytes(second)
    other.write_bytes(first)
    for key in (KEY, OTHER):
        with pytest.raises(Tampered):
            cache.load(key)
    _store(cache, KEY, CODE)
    other.symlink_to(own)
    with pytest.raises(Tampered):
        cache.load(OTHER)


def test_another_hosts_cache_is_not_used(tmp_path: Path) -> None:
    """Without the key that wrote it, no file is of any use."""
    _store(_cache(tmp_path), KEY, CODE)
    with pytest.raises(Tampered):
        _cache(tmp_path, key=b"x" * 32).load(KEY)


def test_kinds_engines_and_modules_do_not_share_code(tmp_path: Path) -> None:
    """Core modules and commands compile alike; anything else has code of its own."""
    names = {
        CodeKey(module_sha256=sha256, kind=kind, engine=engine).name()
        for sha256 in "ab"
        for kind in ("core", "command", "component")
        for engine in ("e", "f")
    }
    assert len(names) == 8


def test_least_recently_used_code_goes_first(tmp_path: Path) -> None:
    """The bound holds by dropping what was not asked for longest, never what was just stored."""
    cache = _cache(tmp_path, max_bytes=3 * (len(CODE) + 48))
    keys = [CodeKey(module_sha256=str(number), kind="core", engine="e") for number in range(4)]
    for number, key in enumerate(keys[:3]):
        _store(cache, key, CODE)
        os.utime(tmp_path / "code" / f"{key.name()}.code", (number, number))
    assert _load(cache, keys[0]) == CODE
    _store(cache, keys[3], CODE)
    assert [_load(cache, key) is not None for key in keys] == [True, False, True, True]
    _store(cache, KEY, CODE * 10)
    assert _load(cache, KEY) == CODE * 10


def test_key_is_made_once_and_private(tmp_path: Path) -> None:
    """The first start makes it, later ones read it, and one that others could read is refused."""
    path = tmp_path / "cache.key"
    key = load_or_make_key(path)
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_make_key(path) == key
    path.chmod(0o640)
    with pytest.raises(ConfigInvalid, match="readable by its owner only"):
        load_or_make_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigInvalid, match="must hold 32 bytes"):
        load_or_make_key(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="symbolic links"):
        load_or_make_key(path)


def test_code_that_cannot_be_opened_now_stays(tmp_path: Path) -> None:
    """Without a descriptor left it is no forgery: it is not removed, and is there when there is one again."""
    cache = _cache(tmp_path)
    _store(cache, KEY, CODE)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError, match="open files") as error:
            cache.load(KEY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert error.value.errno == errno.EMFILE
    assert _load(cache, KEY) == CODE


def test_code_that_is_removed_while_it_is_read_is_still_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that makes room meanwhile takes the file away, and what was read and found right is used."""
    cache = _cache(tmp_path)
    _store(cache, KEY, CODE)

    def remove_and_seal(memory: int) -> None:
        cache.drop(KEY)
        seal(memory)

    monkeypatch.setattr("ifbusd.chassis.cache.seal", remove_and_seal)
    assert _load(cache, KEY) == CODE
