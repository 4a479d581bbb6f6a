"""`ifbus resume`: the other half of `ifbus.cli.commands.pause`."""

from __future__ import annotations

from ifbus.cli.commands.pause import RESUME as COMMANDS

__all__ = ["COMMANDS"]
