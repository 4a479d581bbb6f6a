"""What the daemon does goes without the garbage collector, which looks seldom and holds everybody up when it does."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

import ifbus
from ifbus.answers import Refusal
from ifbus.testing import Daemon, daemon
from tests.hosts import until

# In the daemon: no collector, and on a signal a count of what only a collector would find, by type.
_LOOK = """
import collections, gc, signal, sys

def look(*_):
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = collections.Counter(type(one).__qualname__ for one in gc.garbage)
    gc.garbage.clear()
    with open({path!r}, "w") as file:
        print(__import__("json").dumps(found), file=file)

if "ifbusd" in sys.orig_argv:
    gc.enable = lambda: None
    signal.signal(signal.SIGUSR2, look)
"""


def work(running: Daemon, name: str) -> None:
    """A session that has tasks made, claimed by name and by waiting, refused, given back, failed and completed."""
    with ifbus.Client(running.socket) as bus, bus.register(name, capabilities=[f"of:{name}"], budget_usd=5) as swarm:
        assert isinstance(bus.claim_next(name, wait_ms=20), Refusal)
        later = threading.Timer(0.02, bus.create_task, ["waited for"], {"capabilities": [f"of:{name}"]})
        later.start()
        tasks = swarm.tasks()
        next(tasks).complete()
        later.join()
        for _ in range(4):
            bus.create_task("one", capabilities=[f"of:{name}"], estimate_usd="0.01")
        next(tasks).complete()
        next(tasks).release()
        next(tasks).fail("in vain", retry=False)
        next(tasks).progress(50, "half")
        named = bus.create_task("two", capabilities=[f"of:{name}"]).task_id
        claim = swarm.claim(named)
        assert isinstance(claim, ifbus.Claim)
        claim.complete({"done": True})
        with swarm.lock(f"gpu:{name}"):
            bus.push_task_to_swarm(bus.create_task("three", capabilities=[f"of:{name}"]).task_id, name)
        with pytest.raises(ifbus.IfbusError):
            bus.get_task("nobody-made-it")
        with pytest.raises(ifbus.IfbusError):
            bus.complete_task("nobody-made-it", name, 1)


def test_nothing_is_left_in_circles(tmp_path: Path) -> None:
    """Sessions, connections, claims, waits, letters, locks and refusals, alone and side by side, are gone when they are over."""
    path = tmp_path / "found"
    (tmp_path / "sitecustomize.py").write_text(_LOOK.format(path=str(path)))
    with daemon(environment={**os.environ, "PYTHONPATH": str(tmp_path)}) as running:
        for turn in range(3):
            work(running, f"alone-{turn}")
        workers = [threading.Thread(target=work, args=(running, f"side-{number}")) for number in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        with ifbus.Client(running.socket) as bus:
            until(lambda: len(bus.status()["rpc"]["sessions"]) == 1)
            os.kill(running.pid, signal.SIGUSR2)
            until(path.exists)
            until(lambda: path.read_text().endswith("\n"))
    assert json.loads(path.read_text()) == {}
