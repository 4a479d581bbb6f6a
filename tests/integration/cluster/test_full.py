"""A full etcd, by real daemons: nothing new, no claim is lost, what only gives up is done, and all goes on by itself when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ifbus.errors import Unavailable
from ifbus.link import Link
from tests.full_etcd import OPTIONS, fill, make_room, takes_deletes
from tests.hosts import PATIENCE_S, Hosts, hosts, until

pytestmark = pytest.mark.slow

LEASE_MS = 60_000


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts on an etcd that takes little; not full yet."""
    with hosts(tmp_path, etcd_options=OPTIONS) as made:
        yield made


@pytest.fixture
def links(full: Hosts) -> Iterator[list[Link]]:
    """A client of each."""
    with ExitStack() as stack:
        yield [stack.enter_context(host.client(timeout=PATIENCE_S)) for host in full.hosts]


def at_last(link: Link, method: str, **params: Any) -> dict[str, Any]:
    """The answer, as soon as there is room."""

    def call() -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = link.call(method, **params)
        except Unavailable:
            return None
        return answer

    found: dict[str, Any] = until(call)
    return found


def refused(link: Link, method: str, **params: Any) -> None:
    """See that there is no room for it, and that this was found out."""
    with pytest.raises(Unavailable) as caught:
        link.call(method, **params)
    assert caught.value.data["reason"] == "storage_full"
    assert "outcome" not in caught.value.data
    assert caught.value.retry_after_ms > 0


def claim(link: Link, task_id: str, **more: Any) -> int:
    """Create a task and claim it; the token."""
    link.call("coordinator.create_task", title=task_id, task_id=task_id, **more)
    answer = link.call("coordinator.claim_task", task_id=task_id, swarm_id="worker")
    token: int = answer["claim"]["token"]
    return token


def test_a_full_etcd_takes_nothing_from_anybody(full: Hosts, links: list[Link]) -> None:
    """Writes say that there is no room and did nothing; reads and renewals go on, claims stay; with room all goes on as if nothing had been."""
    a, b = links
    session = a.call("coordinator.register_swarm", swarm_id="worker", capabilities=[], lease_ms=LEASE_MS)
    token = claim(a, "held")
    fill(full.etcd[0])
    # One that refuses deletes then also refuses to read several keys at once.
    takes_reads = takes_deletes(full.etcd[0])
    refused(a, "coordinator.create_task", title="new", task_id="new")
    refused(b, "coordinator.complete_task", task_id="held", swarm_id="worker", token=token, result=1)
    done = {"task_id": "held", "swarm_id": "worker", "token": token, "result": 1}
    refused(a, "coordinator.complete_task", **done)
    refused(a, "coordinator.report_progress", task_id="held", swarm_id="worker", token=token, percent=50)
    assert a.call("coordinator.renew_session", swarm_id="worker", resume_token=session["resume_token"])["claims"]
    assert a.call("coordinator.renew_claim", task_id="held", swarm_id="worker", token=token)["lease_ms"] == LEASE_MS
    assert b.call("coordinator.get_task", task_id="held", consistent=takes_reads)["task"]["state"] == "claimed"
    assert [task["task_id"] for task in b.call("coordinator.list_tasks", consistent=True)["tasks"]] == ["held"]
    until(lambda: "etcd_nospace" in [alarm["kind"] for alarm in a.call("daemon.status")["alarms"]])
    # A daemon that is started now serves as well.
    full[1].daemon.stop()
    full[1].daemon.start()
    with full[1].client(timeout=PATIENCE_S) as again:
        assert again.call("coordinator.get_task", task_id="held")["task"]["state"] == "claimed"
        refused(again, "coordinator.complete_task", **done)
        make_room(full.etcd[0])
        assert at_last(again, "coordinator.complete_task", **done)["task"]["state"] == "completed"
        assert at_last(again, "coordinator.create_task", title="new", task_id="new")
        until(lambda: again.call("daemon.status")["bus"]["daemons"]["count"] == 2)


def test_what_only_gives_up_goes_on(full: Hosts, links: list[Link]) -> None:
    """Releases of claims and resources, acknowledgements and the end of a session are done; the money follows when there is room."""
    a, b = links
    session = a.call(
        "coordinator.register_swarm", swarm_id="worker", capabilities=[], budget_usd="1.00", lease_ms=LEASE_MS
    )
    released, held = claim(a, "released", estimate_usd="0.50"), claim(a, "held")
    counted = claim(a, "counted", max_attempts=2)
    fences = a.call("coordinator.acquire_resources", swarm_id="worker", resources=["gpu:0"], lease_ms=LEASE_MS)[
        "fences"
    ]
    b.call("coordinator.broadcast", topic="news", body={"text": "look"})
    letters = until(lambda: a.call("coordinator.read_inbox", swarm_id="worker")["messages"])
    fill(full.etcd[0])
    if not takes_deletes(full.etcd[0]):
        pytest.skip("this etcd, being full, takes not even deletes: needs 3.4.20, 3.5.7 or later")
    answer = a.call("coordinator.release_task", task_id="released", swarm_id="worker", token=released)
    assert answer["receipt"]["partial"]
    until(lambda: b.call("coordinator.get_task", task_id="released")["task"]["state"] == "ready")
    freed = a.call("coordinator.release_resources", swarm_id="worker", resources=fences)
    assert freed["receipt"]["partial"]
    assert a.call("coordinator.acknowledge", swarm_id="worker", seq=letters[-1]["seq"])["dropped"] == 1
    until(lambda: not b.call("coordinator.read_inbox", swarm_id="worker")["messages"])
    refused(
        a, "coordinator.release_task", task_id="counted", swarm_id="worker", token=counted
    )  # it would cost an attempt
    ended = a.call("coordinator.end_session", swarm_id="worker", resume_token=session["resume_token"])
    assert sorted(ended["freed"]) == ["counted", "held"]
    until(lambda: b.call("coordinator.get_task", task_id="held")["task"]["state"] == "ready")
    assert held > released
    on_record = a.call("witness.query", limit=200)["entries"]
    assert [entry["target"] for entry in on_record if entry["op"] == "coordinator.release_task"] == ["released"]
    make_room(full.etcd[0])
    until(lambda: float(b.call("governor.get_budget_report", swarm_id="worker")["reports"][0]["reserved_usd"]) == 0)
    at_last(b, "coordinator.register_swarm", swarm_id="heir", capabilities=[])
    for task_id in ("released", "held", "counted"):
        at_last(b, "coordinator.claim_task", task_id=task_id, swarm_id="heir", wait_ms=30_000)
