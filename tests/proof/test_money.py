"""Promise 4: money is exact, and no number of spenders goes beyond a budget (DESIGN 2)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, Final

import apsw
import msgpack
import pytest

from ifbus.errors import InvalidParams
from ifbus.link import Link
from ifbus.money import to_usd
from ifbusd.daemon import DATABASE
from tests.proof import history, ledger
from tests.proof.crowd import Client, Crowd, crowd, read_log, rounds, wait_until
from tests.proof.history import Operation, Outcome
from tests.proof.ledger import Position, micro_usd
from tests.proof.records import Proof
from tests.proof.sizes import size

PROCESSES: Final = 8
# Of each process. Each shares its purses with the threads of its number in the others; one purse in 25 is everybody's.
THREADS: Final = 8


@pytest.mark.slow
def test_spenders(tmp_path: Path, proof: Proof, seed: int) -> None:
    """64 spenders who reserve, settle, let go and die never go beyond a budget, and every counter is what the record adds up to."""
    ran = violations = 0
    for directory, rng in rounds(tmp_path, seed, size(1, 25, 250)):
        with crowd(directory) as among:
            limits = _spend(among, rng)
            with among.daemon.client() as bus:
                wrong = list(_wrong(bus, limits, history.read_all(directory)))
        for purse, what in wrong:
            print(purse, what)
        ran += len(limits)
        violations += len({purse for purse, _ in wrong})
    figures = {"spenders": PROCESSES * THREADS}
    proof.cases(promise=4, name="spenders", ran=ran, violations=violations, seed=seed, figures=figures)


def _spend(among: Crowd, rng: random.Random) -> dict[str, int]:
    """Have 200 purses spent from by all spenders, some of which are killed, as is the daemon; the limits of the purses."""
    for_all = [f"purse-all-{k}" for k in range(8)]
    shared = [[f"purse-{n}-{k}" for k in range(24)] for n in range(THREADS)]
    limits = {name: rng.randint(1, 3_000_000) for name in chain(for_all, *shared)}
    with among.daemon.client() as bus:
        for name, limit in limits.items():
            budget = to_usd(limit)
            bus.call("governor.register_profile", swarm_id=name, capabilities=["hot:task"], budget_usd=budget)
    spenders = [
        among.start(
            "spend",
            histories=[str(among.history()) for _ in range(THREADS)],
            counters=str(among.counters_path),
            number=n,
            name=f"spender-{n}",
            seed=rng.getrandbits(32),
            purses=[[*shared[thread], *for_all] for thread in range(THREADS)],
        )
        for n in range(PROCESSES)
    ]
    for _ in range(4):
        due = among.counters.sum() + rng.randint(100, 2_000)
        wait_until(lambda due=due: among.counters.sum() >= due or not _running(spenders))  # type: ignore[misc]
        if rng.random() < 0.5:
            among.restart()
        elif len(_running(spenders)) > PROCESSES // 2:
            rng.choice(_running(spenders)).kill()
    wait_until(lambda: not _running(spenders))
    return limits


def _running(clients: list[Client]) -> list[Client]:
    return [client for client in clients if client.is_running]


def _wrong(bus: Link, limits: dict[str, int], operations: list[Operation]) -> Iterator[tuple[str, str]]:
    """Purses of which budget, record, answers, counters and ledger do not agree, with what is wrong."""
    reports, log = _at_one_moment(bus)
    purses = ledger.read(log)
    for name, limit in limits.items():
        purse = purses.get(name, ledger.Purse())
        for revision, position in purse.history.items():
            if position.spent + position.reserved > limit:
                yield name, f"{position} at revision {revision} is more than {limit}"
        if _position(reports[name]) != purse.position:
            yield name, f"the counters say {_position(reports[name])}, the record adds up to {purse.position}"
    for operation in operations:
        if operation.outcome is Outcome.OK and "report" in operation.answer:
            name, revision = operation.about["swarm_id"], operation.answer["receipt"]["revision"]
            told, recorded = _position(operation.answer["report"]), purses[name].history.get(revision)
            if told != recorded:
                yield name, f"{operation} was told {told}, the record adds up to {recorded}"
    costs = bus.call("optimise.report", limit=200)
    ledgers = {row["key"]: row["spent_usd"] for row in costs["rows"]}
    for name, report in reports.items():
        if ledgers.get(name, report["spent_usd"] if costs["has_more"] else "0.00") != report["spent_usd"]:
            yield name, f"the ledger has {ledgers.get(name)}, the counter {report['spent_usd']}"
    if micro_usd(costs["total_usd"]) != sum(micro_usd(report["spent_usd"]) for report in reports.values()):
        yield "all", f"the ledger has {costs['total_usd']} in all"


def _position(report: dict[str, Any]) -> Position:
    return Position(micro_usd(report["spent_usd"]), micro_usd(report["reserved_usd"]))


def _at_one_moment(bus: Link) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """All budget reports, and the witness log up to where they were read: leases still end meanwhile, so until nothing did."""
    while True:
        head = bus.call("witness.head")
        reports: dict[str, dict[str, Any]] = {}
        after: str | None = ""
        while after is not None:
            page = bus.call("governor.get_budget_report", after=after, limit=200)
            reports |= {report["swarm_id"]: report for report in page["reports"]}
            after = page["next"]
        if bus.call("witness.head") == head:
            return reports, [entry for entry in read_log(bus) if entry["seq"] <= head["seq"]]


# What an amount must never become by way of a float, by rounding or by a lenient reader.
ODD: Final[list[Any]] = [
    *(0, -1, 1, 5, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 10**12, 10**12 + 1, True, False, None),
    *(0.0, 0.1, 1e-7, 1e308, 5e-324, -0.0, 1.5, float("nan"), float("inf"), float("-inf")),
    *("0", "0.00", "00.10", "0.1", "0.000001", "0.0000001", "0.1000000", "1e-7", "1E3", "1e308", "1.5e0", "0x10"),
    *(
        "-1",
        "-0",
        "+1",
        " 1",
        "1 ",
        "1\n",
        "",
        ".",
        ".5",
        "5.",
        "1.2.3",
        "1,5",
        "1_000",
        "1\0",
        "NaN",
        "inf",
        "Infinity",
    ),
    *(
        "1000000000000",
        "1000000000000.000001",
        "999999999999.999999",
        "9" * 40,
        "0." + "0" * 40 + "1",
        "9223372036854775808",
    ),
    *(
        "\u0663.\u0665",
        "\uff11.\uff10",
        "\u0967",
        "\u00b2",
        "\u00bd",
        "1\u0660",
        "\u22121",
        "1\u200b",
        "\u2167",
        b"1",
        b"",
        [],
        ["1"],
        {},
        {"usd": 1},
    ),
]
# An amount that the wire takes: ASCII digits, at most six decimals, at most 10**12; or such a whole number.
_EXACT: Final = re.compile(r"[0-9]{1,13}(\.[0-9]{1,6})?", re.ASCII)


class Inlets:
    """All ways in which an amount comes in, each tried on a swarm of its own, and what became of the amount there."""

    def __init__(self, bus: Link, swarm_id: str) -> None:
        """Register the swarm; it has no budget, and holds a task of its name."""
        self._bus = bus
        self._swarm_id = swarm_id
        bus.call("governor.register_profile", swarm_id=swarm_id, capabilities=["hot:task"])
        bus.call("coordinator.create_task", title="x", task_id=swarm_id)
        token = bus.call("coordinator.claim_task", swarm_id, swarm_id, 0, 600_000)["claim"]["token"]
        self._mine = {"swarm_id": swarm_id, "task_id": swarm_id, "token": token, "operation": "llm"}

    def try_all(self, amount: Any) -> Iterator[tuple[str, int | None]]:
        """The methods, each with the micro-dollars that it made of the amount; None: it refused or ignored it."""
        mine = self._mine
        swarm: dict[str, Any] = {"swarm_id": self._swarm_id}
        yield self._try("governor.track_cost", "spent_usd", cost_usd=amount, **mine)
        yield self._try("governor.reserve_cost", "reserved_usd", estimate_usd=amount, **mine)
        held = self._bus.call("governor.reserve_cost", estimate_usd="0", **mine)["reservation_id"]
        yield self._try("governor.settle_cost", "spent_usd", reservation_id=held, cost_usd=amount, **swarm)
        yield self._try("governor.set_budget", "limit_usd", limit_usd=amount, **swarm)
        self._bus.call("governor.set_budget", limit_usd="0", **swarm)
        yield self._try("governor.reset_circuit_breaker", "limit_usd", budget_usd=amount, reason="odd", **swarm)
        self._bus.call("governor.set_budget", limit_usd="0", **swarm)
        profile = {"capabilities": ["hot:task"], "budget_usd": amount, **swarm}
        yield self._try("governor.register_profile", "limit_usd", **profile)
        self._bus.call("governor.set_budget", limit_usd="0", **swarm)
        yield self._try("coordinator.register_swarm", "limit_usd", **profile)
        yield self._create(amount)

    def _try(self, method: str, figure: str, **params: Any) -> tuple[str, int | None]:
        before = self._report()
        try:
            self._bus.call(method, **params)
        except InvalidParams:
            assert self._report() == before, f"{method} refused {params} and changed something"
            return method, None
        after = self._report()
        assert {name: value for name, value in after.items() if before.get(name) != value}.keys() <= {
            figure,
            "free_usd",
        }
        taken = micro_usd(after[figure]) - micro_usd(before.get(figure, "0"))
        return method, taken

    def _report(self) -> dict[str, Any]:
        [report] = self._bus.call("governor.get_budget_report", self._swarm_id)["reports"]
        return dict(report)

    def _create(self, amount: Any) -> tuple[str, int | None]:
        try:
            task = self._bus.call("coordinator.create_task", title="x", estimate_usd=amount)["task"]
        except InvalidParams:
            return "coordinator.create_task", None
        return "coordinator.create_task", micro_usd(task["estimate_usd"])


def _exactly(amount: Any) -> int | None:
    """The micro-dollars that an amount stands for, None if it stands for none."""
    if type(amount) is int:
        return amount * 1_000_000 if 0 <= amount <= 10**12 else None
    if type(amount) is not str or not _EXACT.fullmatch(amount) or Decimal(amount) > 10**12:
        return None
    return int(Decimal(amount) * 1_000_000)


def _amounts(rng: random.Random, count: int) -> Iterator[Any]:
    """The odd ones, and mutations of them."""
    yield from ODD
    texts = [amount for amount in ODD if type(amount) is str and amount]
    for _ in range(count - len(ODD)):
        text = list(rng.choice(texts))
        text[rng.randrange(len(text))] = rng.choice([*"0123456789.eE+-_, ", "\u0663", ""])
        yield "".join(text)


@pytest.mark.slow
def test_odd_amounts(tmp_path: Path, proof: Proof, seed: int) -> None:
    """Whatever is given as an amount is taken exactly or refused with invalid_params, and no float is ever stored."""
    ran, wrong = 0, []
    for directory, rng in rounds(tmp_path, seed, size(1, 100, 1_000)):
        with crowd(directory) as among:
            for n, amount in enumerate(_amounts(rng, 250)):
                with among.daemon.client() as bus:  # a connection for each: it speaks for no more than 64 swarms
                    for method, taken in Inlets(bus, f"odd-{n}").try_all(amount):
                        ran += 1
                        # Where no amount is needed, nil is as good as none.
                        if taken != _exactly(amount) and not (amount is None and not taken):
                            wrong.append(f"{method} took {amount!r} as {taken} micro-dollars, not {_exactly(amount)}")
            among.daemon.stop()
            wrong += [f"{key} holds a float" for key, value in _stored(among.daemon.state_dir) if _has_float(value)]
    print(*wrong, sep="\n")
    proof.cases(promise=4, name="odd amounts", ran=ran, violations=len(wrong), seed=seed)


def _stored(state_dir: Path) -> Iterator[tuple[str, Any]]:
    """What a stopped daemon has stored of money, by key."""
    with closing(apsw.Connection(str(state_dir / DATABASE))) as connection:
        for key, value in connection.execute("select key, value from kv"):
            if key.startswith(("accounts/", "ledger/", "tasks/", "claims/", "tripped/")):
                yield key, msgpack.unpackb(value)


def _has_float(value: Any) -> bool:
    if isinstance(value, dict):
        return _has_float([*value, *value.values()])
    return any(map(_has_float, value)) if isinstance(value, list) else isinstance(value, float)
