"""Copies of the tree that stand on their own: what runs in one imports nothing of the original.

The original is installed in its environment in editable form, and tests start daemons and commands by the path of the
interpreter, some with an environment of their own. So `PYTHONPATH` would not do: a copy has a virtual environment that finds
the copy's packages first and takes the others, without the editable installation, from the original's.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

_ENVIRONMENT = ".venv"


def copy_tree(root: Path, target: Path) -> None:
    """Copy what git tracks, and what it would track, from `root` to the new directory `target`, as it is on the disk now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = root / name
        if source.is_file():  # not so where it was deleted and that is not committed
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, path)


def add_environment(tree: Path) -> None:
    """Give the tree an environment with its own `ifbus` and `ifbusd`, and all else from the one that runs this."""
    place = tree / _ENVIRONMENT
    venv.EnvBuilder(symlinks=True, with_pip=False).create(place)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # A line names a directory, whose own .pth files, the editable installation among them, are not followed.
    # Of several, where the one that runs this is itself the environment of a copy.
    packages = [path for path in sys.path if Path(path).name == "site-packages"]
    paths = [tree, tree / "client", *packages]
    (place / "lib" / version / "site-packages" / "tree.pth").write_text("".join(f"{path}\n" for path in paths))
    for command in Path(sys.executable).parent.iterdir():
        here = place / "bin" / command.name
        if here.exists() or here.is_symlink() or not command.is_file():
            continue
        start, newline, rest = command.read_bytes().partition(b"\n")
        if start == f"#!{sys.executable}".encode():
            here.write_bytes(f"#!{python_of(tree)}".encode() + newline + rest)
            here.chmod(0o755)
        else:
            here.symlink_to(command)


def python_of(tree: Path) -> Path:
    """The interpreter of a tree's environment."""
    return tree / _ENVIRONMENT / "bin" / "python"
