"""Where the files are that the configuration names, such as keys and passwords."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def credential_path(name: str, environ: Mapping[str, str]) -> Path:
    """Where a file of the configuration is: a relative one in the directory that the service manager made for credentials."""
    path = Path(name)
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    return path if path.is_absolute() or not directory else Path(directory) / path
