"""Promise 2, step by step: the daemon is killed at every await between receiving a claim and its reply.

After the restart either the claim is there, and the same request sent again is answered as the first time, or it is not, and the
request is done now. Whatever was answered is there, and on record once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from ifbus.errors import ConnectionLost
from ifbus.link import Link
from ifbus.testing import Daemon, daemon
from tests.proof.crowd import wait_until
from tests.proof.records import Proof
from tests.proof.sizes import size
from tests.proof.swarm import Wire
from tests.servers import etcd_nodes

_DOOMED: Final = Path(__file__).parent / "doomed"
_SWARM: Final = "claimer"
_ETCD: Final = '[store]\nbackend = "etcd"\n[store.etcd]\nendpoints = ["http://{address}"]\n'
# A claim takes some dozens of steps; more than this means that it is never answered.
_MOST_STEPS: Final = 400


@pytest.fixture(params=["embedded", "etcd"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A configuration for each kind of store."""
    path = tmp_path / "ifbusd.toml"
    if request.param == "embedded":
        path.write_text("")
        yield path
        return
    with etcd_nodes(tmp_path / "etcd", 1) as [node]:
        path.write_text(_ETCD.format(address=node.address))
        yield path


@contextmanager
def _running(config: Path, state_dir: Path, *, dies_at: int = 0) -> Iterator[Daemon]:
    armed = state_dir.parent / "armed"
    armed.unlink(missing_ok=True)
    environment = {"PYTHONPATH": str(_DOOMED), "DOOMED_AT": str(dies_at), "DOOMED_ARMED": str(armed)}
    with daemon(config=config, state_dir=state_dir, environment=environment) as made:
        yield made


def _claim_of(task_id: str) -> dict[str, Any]:
    return {"key": f"key-{task_id}", "task_id": task_id, "swarm_id": _SWARM, "lease_ms": 600_000}


def _ask_doomed(doomed: Daemon, armed: Path, task_id: str) -> dict[str, Any] | None:
    """Have the daemon count, claim, and see whether an answer came before its end."""
    wire = Wire(str(doomed.socket))
    try:
        os.kill(doomed.pid, signal.SIGUSR1)
        wait_until(armed.exists)
        wire.ask("coordinator.claim_task", **_claim_of(task_id))
        return wire.answer()
    except (ConnectionLost, ConnectionResetError, BrokenPipeError):
        return None
    finally:
        wire.close()


def _claims_on_record(link: Link, task_id: str) -> int:
    entries: list[dict[str, Any]] = []
    after = 0
    while page := link.call("witness.query", after_seq=after, limit=200)["entries"]:
        after = page[-1]["seq"]
        entries += page
    return sum(
        (entry["op"], entry["target"], entry["outcome"]) == ("coordinator.claim_task", task_id, "ok")
        for entry in entries
    )


def _is_right(link: Link, task_id: str, first: dict[str, Any] | None) -> tuple[bool, bool]:
    """Whether what is there after a restart is as it must be; and whether the claim was."""
    before = link.call("coordinator.get_task", task_id=task_id, consistent=True)["task"]
    claim = _claim_of(task_id)
    retried = link.call("coordinator.claim_task", idempotency_key=claim.pop("key"), **claim)
    wait_until(lambda: _claims_on_record(link, task_id) > 0, patience_s=20)  # a cluster's record follows the store
    was_there = before["state"] == "claimed"
    token = retried["claim"]["token"]
    is_right = (
        retried["claimed"]
        and retried["receipt"].get("replayed", False) == was_there
        and (not was_there or before["token"] == token)
        and (first is None or (was_there and first["claim"]["token"] == token))
        and _claims_on_record(link, task_id) == 1
    )
    if not is_right:
        print(first, before, retried, sep="\n  ")
    return is_right, was_there


@pytest.mark.slow
def test_killed_at_every_step_of_a_claim(config: Path, tmp_path: Path, proof: Proof) -> None:
    """Killed at any step, the daemon has done the claim or not: the same request gives one claim, on record once."""
    state_dir, armed = tmp_path / "state", tmp_path / "armed"
    stride = size(3, 1, 1) if "etcd" in config.read_text() else size(2, 1, 1)
    ran = done_before = violations = 0
    first: dict[str, Any] | None = None
    for step in count(1, stride):
        assert step < _MOST_STEPS
        # Each start looks at what the last end has left, and is then killed one step later.
        with _running(config, state_dir, dies_at=step) as doomed:
            with doomed.client() as link:
                if ran:
                    is_right, was_there = _is_right(link, f"task-{ran}", first)
                    violations += not is_right
                    done_before += was_there
                if first is not None:
                    break
                link.call("governor.register_profile", swarm_id=_SWARM, capabilities=[])
                ran += 1
                link.call("coordinator.create_task", title="doomed", task_id=f"task-{ran}")
            first = _ask_doomed(doomed, armed, f"task-{ran}")
    kind = "etcd" if "etcd" in config.read_text() else "one host"
    print(f"{ran} steps, the claim was there after {done_before}")
    figures = {"claim_was_there": done_before}
    proof.cases(
        promise=2,
        name=f"killed at a step of a claim, {kind}",
        ran=ran,
        violations=violations,
        seed=None,
        figures=figures,
    )
