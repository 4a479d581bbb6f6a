"""`ifbus demo`: a real swarm works through a real task board, against a daemon of its own, and leaves nothing running.

cast.py          who plays: capabilities, costs, budgets
play.py          the processes: daemon, swarms, orchestrator; and the operator's hand
swarm.py orchestrator.py   one process each, using only the client library
tally.py         what they report, added up (pure)
screen.py        the live picture and the closing tables
"""

from __future__ import annotations

import importlib.util
import sys

from ifbus.cli.command import Parser


def main(argv: list[str]) -> int:
    """Play; 0 if every scene came off, 1 if not (it says which), 2 if something is not installed.

    Raises:
        Usage: The arguments do not fit; SystemExit after `--help`.
    """
    parser = Parser(prog="ifbus demo", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--full", action="store_true", help="also build a tool from a Python function and run it (needs ifbus[tool])"
    )
    parser.add_argument("--tool", metavar="WASM", help="with --full: the tool was built before and is here")
    arguments = parser.parse(argv)
    missing = [extra for extra, module in (("daemon", "trio"), ("cli", "rich")) if not importlib.util.find_spec(module)]
    if arguments.full and not arguments.tool and not importlib.util.find_spec("componentize_py"):
        missing.append("tool")
    if missing:
        print(f"cannot play: this needs more of ifbus: pip install 'ifbus[{','.join(missing)}]'", file=sys.stderr)
        return 2
    from ifbus.demo.play import play

    try:
        return play(is_full=arguments.full, tool=arguments.tool)
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return 130
