"""The checker itself: histories that one order explains, histories that none does, and both by brute force."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proof.history import Operation, Outcome
from tests.proof.linearizability import FOREVER_NS, Task, Verdict, check, step

MS = 1_000_000
LEASE_MS = 100
# How far into the future the server's whole milliseconds reach (`linearizability._TICK_NS`).
SLACK_NS = MS


def operation(line: str) -> Operation:
    """`a claim 1: 0-2` reads: swarm a claimed and got token 1, asked at 0 ms and answered at 2 ms.

    After the verb: the token; `!x2` for a refusal that named holder x with token 2 (`!-` nobody); `?` for an unknown
    outcome; for `get` what it showed: `x2`, `-` (ready) or `done x2`.
    """
    what, times = line.split(": ")
    swarm, kind, *rest = what.split()
    start, end = times.split("-")
    about: dict[str, Any] = {"swarm_id": swarm, "lease_ms": LEASE_MS}
    outcome = Outcome.OK
    answer: dict[str, Any] = {}
    match kind, rest:
        case "claim", ["?"]:
            outcome = Outcome.UNKNOWN
        case "claim", ["!done"]:
            outcome, answer = Outcome.REFUSED, {"code": "not_ready", "data": {"state": "completed"}}
        case "claim", [other] if other.startswith("!"):
            data: dict[str, Any] = {"owner": other[1], "token": int(other[2:]), "lease_left_ms": 0}
            answer = {"claimed": False, "refusal": {"code": "already_claimed", "data": data}}
        case "claim", [token]:
            answer = {"claimed": True, "claim": {"token": int(token), "lease_ms": LEASE_MS}}
        case "get", ["-"]:
            answer = {"task": {"state": "ready"}}
        case "get", ["done", other]:
            answer = {"task": {"state": "completed", "result": [other[0], int(other[1:])]}}
        case "get", [other]:
            answer = {"task": {"state": "claimed", "holder": other[0], "token": int(other[1:]), "lease_left_ms": 0}}
        case _, [token, *how]:
            about["token"] = int(token)
            match how:
                case ["?"]:
                    outcome = Outcome.UNKNOWN
                case ["!-"]:
                    outcome, answer = Outcome.REFUSED, {"code": "stale_token", "data": {"owner": None}}
                case [other]:
                    data = {"owner": other[1], "owner_token": int(other[2:])}
                    code = "not_owner" if data["owner_token"] == about["token"] else "stale_token"
                    outcome, answer = Outcome.REFUSED, {"code": code, "data": data}
                case []:
                    answer = {"lease_ms": LEASE_MS} if kind == "renew" else {}
    return Operation(
        client=swarm,
        kind=kind,
        about=about,
        start_ns=int(start) * MS,
        end_ns=None if outcome is Outcome.UNKNOWN else int(end) * MS,
        outcome=outcome,
        answer=answer,
    )


HONEST = {
    "one after the other": [
        "a claim 1: 0-1",
        "b claim !a1: 2-3",
        "a release 1: 4-5",
        "b claim 2: 6-7",
        "c get b2: 8-9",
    ],
    "a claim and a look at the same time, before": ["a claim 1: 0-9", "c get -: 1-2", "c get a1: 3-4"],
    "a loser that asked before the winner": ["b claim !a1: 0-9", "a claim 1: 1-8"],
    "completed, and completed again": [
        "a claim 1: 0-1",
        "a complete 1: 2-3",
        "a complete 1: 4-5",
        "b get done a1: 6-7",
    ],
    "claims of what is completed": ["a claim 1: 0-1", "a complete 1: 2-3", "b claim !done: 4-5", "a release 1 !-: 6-7"],
    "a lease that ran out": ["a claim 1: 0-1", "b claim 2: 101-102", "a renew 1 !b2: 103-104"],
    "a lease that was renewed and ran out": ["a claim 1: 0-1", "a renew 1: 50-51", "b claim 2: 151-152"],
    "a lease that ran out during a long look": ["a claim 1: 0-1", "c get -: 50-101"],
    "an unknown claim that was done": ["a claim ?: 0-0", "b claim !a7: 2-3", "c get a7: 4-5", "a release 7: 6-7"],
    "an unknown claim that was not done": ["a claim ?: 0-0", "b claim 2: 2-3"],
    "an unknown claim that was done later": ["a claim ?: 0-0", "b claim 2: 2-3", "b release 2: 4-5", "c get a3: 6-7"],
    "an unknown release that was done": ["a claim 1: 0-1", "a release 1 ?: 2-2", "b claim 2: 4-5"],
    "an unknown release that was not done": ["a claim 1: 0-1", "a release 1 ?: 2-2", "b claim !a1: 4-5"],
    "another's token": ["a claim 1: 0-1", "b release 1 !a1: 2-3", "c get a1: 4-5"],
}
IMPOSSIBLE = {
    "two winners": ["a claim 1: 0-5", "b claim 2: 1-4"],
    "a claim that was acknowledged and lost": ["a claim 1: 0-1", "c get -: 2-3"],
    "a completion that was acknowledged and lost": ["a claim 1: 0-1", "a complete 1: 2-3", "b claim 2: 4-5"],
    "a result of somebody else": ["a claim 1: 0-1", "a complete 1: 2-3", "b get done b1: 4-5"],
    "a token that did not grow": ["a claim 2: 0-1", "a release 2: 2-3", "b claim 2: 4-5"],
    "a former holder's completion": ["a claim 1: 0-1", "b claim 2: 101-102", "a complete 1: 103-104"],
    "a former holder's release": ["a claim 1: 0-1", "b claim 2: 101-102", "a release 1: 103-104"],
    "a former holder's renewal": ["a claim 1: 0-1", "a release 1: 2-3", "a renew 1: 4-5"],
    "a refusal of the holder": ["a claim 1: 0-1", "a complete 1 !-: 2-3"],
    "a refusal before the winner came": ["b claim !a1: 0-1", "a claim 1: 2-3"],
    "a lease that ended early": ["a claim 1: 0-1", "b claim 2: 90-91"],
    "a lease that ended early after its renewal": ["a claim 1: 0-1", "a renew 1: 50-51", "b claim 2: 120-121"],
    "a look back in time": ["a claim 1: 0-1", "c get a1: 2-3", "a release 1: 4-5", "c get a1: 6-7"],
    "one unknown claim that was done twice": [
        "a claim ?: 0-0",
        "b get a1: 2-3",
        "b get -: 110-111",
        "b get a2: 112-113",
    ],
    "a winner that nobody was": ["a claim !c1: 0-1"],
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_history_is_explained(name: str) -> None:
    """A history that some order of events explains is linearizable."""
    assert check([operation(line) for line in HONEST[name]]) is Verdict.LINEARIZABLE


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_broken_history_is_rejected(name: str) -> None:
    """A history that no order of events explains is not linearizable."""
    assert check([operation(line) for line in IMPOSSIBLE[name]]) is Verdict.IMPOSSIBLE


def test_a_search_that_takes_too_long_is_undecided() -> None:
    """A checker that gives up says so: undecided is neither a yes nor a no."""
    history = [operation(f"s{n} claim ?: 0-0") for n in range(12)] + [operation("c get x1: 900-901")]
    assert check(history, max_nodes=100) is Verdict.UNDECIDED


SWARMS = st.sampled_from("abc")
TOKENS = st.integers(1, 3)
HOLDERS = st.builds("{}{}".format, SWARMS, TOKENS)
KINDS = st.one_of(
    st.builds("claim {}".format, st.one_of(TOKENS, st.just("?"), st.just("!done"), HOLDERS.map("!{}".format))),
    st.builds(
        "{} {}{}".format,
        st.sampled_from(["renew", "release", "complete"]),
        TOKENS,
        st.sampled_from(["", " ?", " !-", " !a1", " !b2"]),
    ),
    st.builds("get {}".format, st.one_of(st.just("-"), HOLDERS, HOLDERS.map("done {}".format))),
)
LINES = st.builds(
    lambda swarm, kind, start, length: f"{swarm} {kind}: {start}-{start + length}",
    SWARMS,
    KINDS,
    st.integers(0, 250),
    st.integers(1, 120),
)


def is_explained_by(order: tuple[Operation, ...], task: Task, now_ns: int) -> bool:
    """Whether the operations can have taken effect in this order, a lease ending in between wherever it may."""
    if not order:
        return True
    first, *rest = order
    at_ns = max(now_ns, first.start_ns)
    after = step(task, first) if at_ns <= (first.end_ns or FOREVER_NS) else None
    if after is not None and is_explained_by(tuple(rest), after, at_ns):
        return True
    expired_ns = max(now_ns, task.due_ns - SLACK_NS)
    return task.holder is not None and is_explained_by(order, task._replace(holder=None, token=0), expired_ns)


@given(st.lists(LINES, min_size=1, max_size=5))
def test_the_search_finds_what_trying_every_order_finds(lines: list[str]) -> None:
    """On small random histories the verdict is that of trying every order of every choice of unknown operations."""
    history = [operation(line) for line in lines]
    definite = [o for o in history if o.outcome is not Outcome.UNKNOWN]
    unknown = [o for o in history if o.outcome is Outcome.UNKNOWN]
    explained = any(
        is_explained_by(order, Task(), 0)
        for count in range(len(unknown) + 1)
        for done in itertools.combinations(unknown, count)
        for order in itertools.permutations([*definite, *done])
    )
    assert check(history) is (Verdict.LINEARIZABLE if explained else Verdict.IMPOSSIBLE)
