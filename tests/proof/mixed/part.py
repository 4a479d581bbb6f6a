"""One process of the mixed run: `python -m tests.proof.mixed.part ROLE SOCKET NUMBER SEED UID`.

It says ``ready`` once its role has begun. Each line on its standard input begins a new phase; at the end of the input it stops
and prints what came of it, as JSON.
"""

import importlib
import json
import os
import select
import sys
from collections.abc import Callable
from typing import Any

from tests.proof.mixed.honest import Honest
from tests.proof.mixed.hostile import Hostile

# A turn of a role: does a piece of its work.
ROLES: dict[str, Callable[..., Any]] = {"honest": Honest, "hostile": Hostile}


def _has_input(pause_s: float) -> bool:
    readable, _, _ = select.select([0], [], [], pause_s)
    return bool(readable)


def _main(role: str, path: str, number: str, seed: str, uid: str) -> None:
    if int(uid) != os.getuid():
        # Another user may not be able to read this installation, so what would be imported later comes now.
        for name in ("grp", "pwd", "difflib", "ifbus.answers"):
            importlib.import_module(name)
        os.setgroups([])
        os.setgid(int(uid))
        os.setuid(int(uid))
    with ROLES[role](path, int(number), int(seed)) as player:
        player.turn()
        print("ready", flush=True)
        while True:
            if _has_input(player.PAUSE_S):
                if not os.read(0, 1):
                    break
                player.begin_phase()
            player.turn()
        print(json.dumps(player.result()), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
