"""The commented file and the documentation's page agree with the classes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ifbus.errors import ConfigInvalid
from ifbusd import config_reference
from ifbusd.config import Config, load

ROOT = Path(__file__).parents[3]
FILE = ROOT / "config" / "ifbusd.toml"


def test_the_file_has_every_key_with_its_default(tmp_path: Path) -> None:
    """With all comments taken off its keys, the file says exactly what the daemon takes without it."""
    keys = re.sub(r"^# (\w+ = )", r"\1", FILE.read_text(), flags=re.MULTILINE)
    not_set = {s.key for section in config_reference.sections() for s in section.settings if s.default is None}
    keys = re.sub(rf"^({'|'.join(not_set)}) = .*$", "", keys, flags=re.MULTILINE) if not_set else keys
    given = {(*path, key) for path, table in tables(tomllib.loads(keys)) for key in table}
    wanted = {(*section.path, s.key) for section in config_reference.sections() for s in section.settings if s.default}
    assert given == wanted
    uncommented = tmp_path / "ifbusd.toml"
    uncommented.write_text(keys)
    assert load(uncommented, {}) == Config()


def tables(table: dict[str, object], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, object]]]:
    inner = {name: value for name, value in table.items() if isinstance(value, dict)}
    own = {name: value for name, value in table.items() if name not in inner}
    return [(path, own), *(found for name, value in inner.items() for found in tables(value, (*path, name)))]


def test_the_file_as_it_stands_changes_nothing() -> None:
    """Installed unchanged, the file is the defaults."""
    assert load(FILE, {}) == Config()


def test_keys_without_a_default_load_as_shown(tmp_path: Path) -> None:
    """The example of a key that is not set by default is a value that the daemon takes."""
    for section in config_reference.sections():
        for setting in section.settings:
            if setting.default is None:
                file = tmp_path / "one.toml"
                file.write_text(f"[{'.'.join(section.path)}]\n{setting.key} = {setting.example}\n")
                assert load(file, {}) != Config()


@pytest.mark.parametrize(
    ("path", "text"),
    [("config/ifbusd.toml", config_reference.to_toml()), ("docs/configuration.md", config_reference.to_markdown())],
)
def test_generated_files_are_fresh(path: str, text: str) -> None:
    """`python -m ifbusd.config_reference` has been run since the classes changed."""
    assert (ROOT / path).read_text() == text


def test_every_key_says_what_it_means_and_numbers_have_bounds(tmp_path: Path) -> None:
    """No key is without a reason, and no number takes just anything."""
    file = tmp_path / "one.toml"
    for section in config_reference.sections():
        for setting in section.settings:
            where = f"{'.'.join(section.path)}.{setting.key}"
            assert len(setting.meaning) > 10, f"{where} lacks an entry under Attributes:"
            if setting.example[0].isdigit():
                assert setting.range, f"{where} lacks a validator"
                file.write_text(f"[{'.'.join(section.path)}]\n{setting.key} = -1\n")
                with pytest.raises(ConfigInvalid):
                    load(file, {})


@pytest.mark.slow
def test_checking_a_configuration_loads_no_runtime() -> None:
    """The configuration's classes live in light modules: no event loop, no database, no WebAssembly."""
    code = "import sys, ifbusd.config; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"trio", "asyncio", "apsw", "wasmtime", "psutil"} & set(loaded)
