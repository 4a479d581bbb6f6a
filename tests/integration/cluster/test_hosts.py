"""Daemons on several hosts with a real etcd and a real NATS: swarms work together, and outlive whatever of it is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ifbus.errors import IfbusError, StaleToken, Unavailable
from ifbus.link import Link
from ifbus.sync import Client
from tests.hosts import PATIENCE_S, Host, Hosts, hosts, until

pytestmark = pytest.mark.slow

LEASE_MS = 2_000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Two hosts that no test harms."""
    with hosts(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts to be harmed."""
    with hosts(tmp_path) as made:
        yield made


@pytest.fixture
def links() -> Iterator[Callable[[Host], Link]]:
    """Clients that are closed at the end."""
    with ExitStack() as stack:
        yield lambda host: stack.enter_context(host.client(timeout=PATIENCE_S))


def register(link: Link, swarm_id: str, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = link.call("coordinator.register_swarm", swarm_id=swarm_id, capabilities=[], **more)
    return answer


def create(link: Link, task_id: str, **more: Any) -> None:
    link.call("coordinator.create_task", title=task_id, task_id=task_id, **more)


def claim(link: Link, task_id: str, swarm_id: str, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = link.call("coordinator.claim_task", task_id=task_id, swarm_id=swarm_id, **more)
    return answer


def state(link: Link, task_id: str) -> str:
    found: str = link.call("coordinator.get_task", task_id=task_id)["task"]["state"]
    return found


def entries(link: Link, op: str) -> list[dict[str, Any]]:
    """The entries of one operation in this host's record."""
    found: list[dict[str, Any]] = []
    while page := link.call("witness.query", after_seq=found[-1]["seq"] if found else 0, limit=200)["entries"]:
        found += page
    return [entry for entry in found if entry["op"] == op]


def wait_for_a_task(link: Link, swarm_id: str) -> Future[dict[str, Any]]:
    """Ask for the next task in a thread; what came, once it has come."""
    heard: Future[dict[str, Any]] = Future()

    def wait() -> None:
        try:
            heard.set_result(link.call("coordinator.claim_next", swarm_id=swarm_id, wait_ms=60_000))
        except IfbusError as error:
            heard.set_exception(error)

    threading.Thread(target=wait, daemon=True).start()
    return heard


def test_the_daemons_know_one_another(pair: Hosts, links: Callable[[Host], Link]) -> None:
    """The status names the backend, the daemons that are there, and whether NATS and etcd answer."""
    statuses = [until(lambda host=host: knows_two(links(host))) for host in pair.hosts]
    assert [status["backend"] for status in statuses] == ["etcd", "etcd"]
    assert all(status["bus"]["connected"] for status in statuses)
    assert sorted(status["bus"]["daemons"]["first"] for status in statuses) == [False, True]


def knows_two(link: Link) -> dict[str, Any] | None:
    status: dict[str, Any] = link.call("daemon.status")
    return status if status["bus"]["daemons"]["count"] == 2 else None


def test_a_task_created_on_one_host_reaches_a_swarm_on_the_other(pair: Hosts, links: Callable[[Host], Link]) -> None:
    """Who waits at one host's daemon gets what is created at the other's, and its completion is seen there."""
    a, b = map(links, pair.hosts)
    register(b, "waiting")
    for n in range(5):
        heard = wait_for_a_task(b, "waiting")
        create(a, f"reached-{n}")
        answer = heard.result(PATIENCE_S)
        assert answer["claim"]["task_id"] == f"reached-{n}"
        token = answer["claim"]["token"]
        b.call("coordinator.complete_task", task_id=f"reached-{n}", swarm_id="waiting", token=token)
        assert until(lambda n=n: state(a, f"reached-{n}") == "completed")
    assert until(lambda: b.call("daemon.status")["bus"]["heard"])


def test_claims_race_over_hosts_and_one_wins(pair: Hosts, links: Callable[[Host], Link]) -> None:
    """Of claims of one task at both hosts at once one wins, and the others hear whose it is."""
    racers = [(links(pair[n % 2]), f"racer-{n}") for n in range(4)]
    for link, name in racers:
        register(link, name)
    with ThreadPoolExecutor(len(racers)) as threads:
        for n in range(20):
            create(racers[n % 4][0], f"race-{n}")
            answers = list(threads.map(lambda racer, n=n: claim(racer[0], f"race-{n}", racer[1]), racers))
            [winner] = [name for (_, name), answer in zip(racers, answers, strict=True) if answer["claimed"]]
            assert {answer["refusal"]["data"]["owner"] for answer in answers if not answer["claimed"]} == {winner}


@pytest.mark.parametrize("n", [1, 2])
def test_who_loses_a_race_for_the_next_task_gets_another(pair: Hosts, links: Callable[[Host], Link], n: int) -> None:
    """As many ask at once at both hosts as there are tasks for, and do not wait: each gets its own, and no lost race is on record."""
    racers = [(links(pair[number % 2]), f"asks-for-{n}-{number}") for number in range(8)]
    for link, name in racers:
        register(link, name)
    before = [len(entries(links(host), "coordinator.claim_task")) for host in pair.hosts]
    with ThreadPoolExecutor(len(racers)) as threads:
        for turn in range(10):
            names = {f"next-{n}-{turn}-{number}" for number in range(len(racers) * n)}
            for name in names:
                create(racers[0][0], name)
            for link, _ in racers[:2]:
                until(lambda link=link, names=names: all(state(link, name) == "ready" for name in names))
            got = threads.map(lambda racer: racer[0].call("coordinator.claim_next", swarm_id=racer[1], n=n), racers)
            claims = [answer.get("claims") or [answer["claim"]] for answer in got]
            assert all(claims)
            won = [claim["task_id"] for each in claims for claim in each]
            assert len(set(won)) == len(won)
            if n == 1:
                assert set(won) == names
            for name in names - set(won):
                racers[0][0].call("coordinator.cancel_task", task_id=name)
    for host, count in zip(pair.hosts, before, strict=True):
        later = entries(links(host), "coordinator.claim_task")[count:]
        assert {entry["outcome"] for entry in later} <= {"ok"}


def test_each_receipt_proves_what_was_before(pair: Hosts, links: Callable[[Host], Link]) -> None:
    """Who keeps a receipt of a claim can have the record of that host checked against it."""
    link = links(pair[0])
    register(link, "keeper")
    create(link, "proved")
    until(lambda: entries(link, "coordinator.create_task"))
    receipt = claim(link, "proved", "keeper")["receipt"]
    assert link.call("witness.verify", receipt=f"{receipt['seq']}:{receipt['head']}")["ok"]
    assert not link.call("witness.verify", receipt=f"{receipt['seq']}:{'0' * 64}")["ok"]


def test_a_retry_at_the_other_host_is_one_effect(pair: Hosts, links: Callable[[Host], Link]) -> None:
    """The same request with the same idempotency key, sent to another daemon, is answered with the first answer."""
    a, b = map(links, pair.hosts)
    first = a.call("coordinator.create_task", title="once", idempotency_key="once")
    again = b.call("coordinator.create_task", title="once", idempotency_key="once")
    assert again["task"]["task_id"] == first["task"]["task_id"]
    assert again["receipt"]["replayed"]


def test_tasks_are_listed_in_order_of_creation(doomed: Hosts, links: Callable[[Host], Link]) -> None:
    """Page by page each task once, at every host the same, and after a restart too, whichever host numbered them."""
    clients = [links(host) for host in doomed.hosts]
    titles = [f"task {n}" for n in range(12)]
    numbers = []
    for n, title in enumerate(titles):
        name = clients[n * 5 // 3 % 2].call("coordinator.create_task", title=title)["task"]["task_id"]
        numbers.append(int(name.removeprefix("T-")))
    assert numbers != sorted(numbers)
    doomed[1].daemon.stop()
    doomed[1].daemon.start()
    for link in (clients[0], links(doomed[1])):
        assert until(lambda link=link: len(found := list_all(link, limit=2)) >= len(titles) and found) == titles


def list_all(link: Link, limit: int) -> list[str]:
    """The titles of all tasks, read in pages."""
    found: list[str] = []
    after = ""
    while after is not None:
        page = link.call("coordinator.list_tasks", after=after, limit=limit)
        found += [task["title"] for task in page["tasks"]]
        after = page["next"]
    return found


def test_letters_and_events_reach_the_other_host(pair: Hosts, links: Callable[[Host], Link]) -> None:
    """A blocker that is reported at one host is told live to the orchestrator at the other, and what happens on the board too."""
    a = links(pair[0])
    with Client(pair[1].daemon.socket, timeout=PATIENCE_S) as b:
        b.register_swarm("chief", orchestrator=True)
        with b.subscribe_inbox("chief") as letters, b.subscribe_board() as board:
            register(a, "stuck")
            create(a, "seen")
            a.call("coordinator.detect_blocker", swarm_id="stuck", info={"reason": "no key"})
            assert next(letters).kind == "blocker"
            assert next(board)["event"] == "created"


def test_a_swarm_goes_on_through_another_host(doomed: Hosts, links: Callable[[Host], Link]) -> None:
    """Its daemon is killed; with its resume token a swarm goes on through another host's daemon and keeps claim and token."""
    a, b = map(links, doomed.hosts)
    registered = register(a, "moving", lease_ms=20_000)
    create(a, "kept")
    token = claim(a, "kept", "moving")["claim"]["token"]
    doomed[0].daemon.kill()
    again = register(b, "moving", resume_token=registered["resume_token"])
    assert again["resumed"]
    assert [held["token"] for held in again["claims"]] == [token]
    b.call("coordinator.report_progress", task_id="kept", swarm_id="moving", token=token, percent=50)
    done = b.call("coordinator.complete_task", task_id="kept", swarm_id="moving", token=token, result=1)
    assert done["task"]["state"] == "completed"


def test_a_swarm_that_moved_is_not_taken_for_silent(pair: Hosts, links: Callable[[Host], Link]) -> None:
    """Renewed through another host for twice its lease, a session is no reason for an alarm at any host."""
    a, b = map(links, pair.hosts)
    names = {}
    for n, link in enumerate((a, b)):
        registered = register(link, f"moved-{n}", lease_ms=LEASE_MS)
        names[f"moved-{n}"] = ((b, a)[n], registered["resume_token"])
    ends_s = time.monotonic() + 2 * LEASE_MS / 1000
    while time.monotonic() < ends_s:
        for name, (link, token) in names.items():
            link.call("coordinator.renew_session", swarm_id=name, resume_token=token)
        time.sleep(LEASE_MS / 10_000)
    told = [*entries(a, "coordinator.raise_silent"), *entries(b, "coordinator.raise_silent")]
    assert [entry for entry in told if entry["detail"]["swarm"] in names] == []


def test_tasks_of_a_dead_host_are_done_elsewhere(doomed: Hosts, links: Callable[[Host], Link]) -> None:
    """A host dies: its claims end with their leases, once on record, and others take the tasks; the old token is stale."""
    a, b = map(links, doomed.hosts)
    register(a, "dying", lease_ms=LEASE_MS, budget_usd="1.00")
    create(a, "left", estimate_usd="0.50")
    token = claim(a, "left", "dying")["claim"]["token"]
    register(b, "heir")
    doomed[0].daemon.kill()
    answer = wait_for_a_task(b, "heir").result(PATIENCE_S)
    assert answer["claim"]["task_id"] == "left"
    until(lambda: entries(b, "coordinator.expire_claim"))
    with pytest.raises(StaleToken):
        b.call("coordinator.complete_task", task_id="left", swarm_id="dying", token=token)
    doomed[0].daemon.start()
    [expired] = until(lambda: entries(b, "coordinator.expire_claim"))
    assert float(expired["detail"]["released_usd"]) == 0.5
    task = links(doomed[0]).call("coordinator.get_task", task_id="left")["task"]
    assert (task["holder"], task["attempts"]) == ("heir", 1)


def test_without_nats_everything_still_arrives(doomed: Hosts, links: Callable[[Host], Link]) -> None:
    """NATS is stopped, killed, and away at a start: tasks and letters come through the store's watch all the same."""
    a, b = map(links, doomed.hosts)
    register(b, "waiting")
    [nats] = doomed.nats
    for n, (away, back) in enumerate([(nats.pause, nats.go_on), (nats.kill, nats.start), (nats.kill, lambda: None)]):
        away()
        heard = wait_for_a_task(b, "waiting")
        create(a, f"without-{n}")
        assert heard.result(PATIENCE_S)["claim"]["task_id"] == f"without-{n}"
        back()
    until(lambda: "nats_away" in [alarm["kind"] for alarm in a.call("daemon.status")["alarms"]])
    doomed[0].daemon.stop()
    doomed[0].daemon.start()
    again = links(doomed[0])
    assert not again.call("daemon.status")["bus"]["connected"]
    heard = wait_for_a_task(b, "waiting")
    create(again, "without-it")
    assert heard.result(PATIENCE_S)["claim"]["task_id"] == "without-it"
    nats.start()
    until(lambda: again.call("daemon.status")["bus"]["connected"])


def test_a_host_that_is_parted_from_etcd_says_so_and_comes_back(doomed: Hosts, links: Callable[[Host], Link]) -> None:
    """Cut off from etcd a daemon refuses what needs it as `unavailable`, others go on; healed, it goes on without a restart."""
    a, b = map(links, doomed.hosts)
    register(a, "parted")
    doomed[0].part(from_etcd=True)
    with pytest.raises(Unavailable):
        a.call("coordinator.create_task", title="lost", timeout=30)
    assert a.call("daemon.ping")
    assert a.call("daemon.status")["store"]["state"] == "unreachable"
    create(b, "meanwhile")
    doomed[0].heal()
    until(lambda: a.call("daemon.status")["store"]["state"] == "ok")
    until(lambda: state(a, "meanwhile") == "ready")
    create(a, "after")
    assert until(lambda: state(b, "after") == "ready")


def test_a_host_without_etcd_still_shows_how_it_is(doomed: Hosts, links: Callable[[Host], Link]) -> None:
    """With etcd paused, ping, describe and status answer, and status says what is wrong; what needs etcd is refused at once."""
    link = links(doomed[0])
    register(link, "docs")
    created = link.call("coordinator.create_task", title="here", capabilities=[])["task"]["task_id"]
    doomed.etcd[0].pause()
    until(lambda: link.call("daemon.status")["store"]["state"] == "unreachable")
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            link.call("coordinator.claim_task", task_id=created, swarm_id="docs")
        assert caught.value.data["reason"] == "store_unreachable"
        assert caught.value.retry_after_ms > 0
        assert link.call("daemon.ping")
    status = link.call("daemon.status")
    assert "etcd_unreachable" in [alarm["kind"] for alarm in status["alarms"]]
    assert link.call("daemon.describe")
    shown = link.call("coordinator.list_tasks")
    assert [task["task_id"] for task in shown["tasks"]] == [created]
    assert shown["revision"] > 0
    with pytest.raises(Unavailable):
        link.call("coordinator.list_tasks", consistent=True)
    doomed.etcd[0].go_on()
    until(lambda: link.call("daemon.status")["store"]["state"] == "ok")
    assert link.call("coordinator.claim_task", task_id=created, swarm_id="docs")["claimed"]
