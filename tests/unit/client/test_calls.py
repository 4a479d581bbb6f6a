"""The client's methods are the daemon's: names, parameters, and which of them need an idempotency key."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from ifbus import answers, calls, models
from ifbus.errors import InvalidParams
from ifbus.models import ServiceContract
from ifbus.request import KEYLESS, Call, check_options
from ifbus.sync import Client
from ifbusd.rpc.methods import ROWS

# Their answers are streams: `Client.subscribe_*` make these calls; hello is said on each connection, and `hand_over` announces.
_ELSEWHERE = {
    "daemon.hello",
    "daemon.expect_process",
    "coordinator.subscribe_inbox",
    "coordinator.subscribe_board",
    "governor.subscribe_escalations",
}
_NAMES = {"witness.query": "witness_query", "witness.verify": "witness_verify", "witness.head": "witness_head"} | {
    "optimise.report": "cost_report"
}
_SAMPLES: dict[str, Any] = {
    "contract": ServiceContract(module_sha256="0" * 64),
    "body": {},
    "cost_usd": 1,
    "estimate_usd": 1,
    "limit_usd": 1,
    "tasks": [],
    "capabilities": ["a:b"],
    "resources": {"gpu:0": 1},
    "token": 1,
    "percent": 1,
    "offset": 0,
    "total_bytes": 1,
    "seq": 1,
    "data": b"",
    "input": None,
}
_ROWS = [row for row in ROWS if row.name not in _ELSEWHERE]


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.name)
def test_a_method_of_the_daemon_has_its_call(row: Any) -> None:
    """The call of each method sends parameters that the daemon's method has, all that it requires among them."""
    build = getattr(calls, _NAMES.get(row.name, row.name.split(".")[1]))
    own = [p for p in inspect.signature(build).parameters.values() if p.kind is not p.VAR_KEYWORD]
    call = build(**{p.name: _SAMPLES.get(p.name, "x") for p in own if p.default is p.empty})
    theirs = list(inspect.signature(row.does).parameters.values())[2:]  # without self and caller
    assert call.method == row.name
    assert set(call.params) <= {p.name for p in theirs}
    assert {p.name for p in theirs if p.default is p.empty} <= set(call.params)
    if row.name != "coordinator.detect_blocker":  # takes its parameters in a map
        assert {p.name for p in theirs} >= {p.name for p in own}


def test_what_changes_something_has_a_key() -> None:
    """Every method that changes state is sent with an idempotency key, but for those whose repetition changes nothing more."""
    changing = {row.name for row in ROWS if row.changes}
    renewals = {"coordinator.renew_claim", "coordinator.renew_session"}
    binding = {"coordinator.bind_claim", "coordinator.bind_session"}
    assert changing & KEYLESS <= {*renewals, *binding, "chassis.put_blob", "chassis.execute_task"}
    assert {row.name for row in ROWS} >= KEYLESS


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.name)
def test_a_client_has_the_method(row: Any) -> None:
    """`Client` has each call as a method, with its docstring."""
    name = _NAMES.get(row.name, row.name.split(".")[1])
    assert getattr(Client, name).__doc__ == getattr(calls, name).__doc__


def test_answers_are_read_as_what_is_annotated() -> None:
    """Every class that a call's reader names exists, and is what the call's signature promises."""
    for name, build in inspect.getmembers(calls, inspect.isfunction):
        promised = str(inspect.signature(build).return_annotation)
        if promised.startswith("Call[") and "_answer(" in inspect.getsource(build):
            read = inspect.getsource(build).split('_answer("')[1].split('"')[0]
            assert hasattr(answers, read), name
            assert read in promised, name


def test_several_claims_are_read_as_such() -> None:
    """Each with the receipt of their one commit; a refusal stays one, and a daemon that knows no `n` gives one."""
    claim = {"swarm_id": "me", "token": 7, "lease_ms": 1000, "claimed_at_ms": 1}
    parts = [{**claim, "task_id": name, "task": {"task_id": name, "title": "t"}} for name in ("T-1", "T-2")]
    read = calls.claim_several("me", 2).read
    claims = read({"claimed": True, "claims": parts, "receipt": {"revision": 7}})
    assert isinstance(claims, tuple)
    assert [(one.handle, one.receipt and one.receipt.revision) for one in claims] == [("T-1@7", 7), ("T-2@7", 7)]
    assert len(read({"claimed": True, "claim": parts[0], "receipt": {"revision": 7}})) == 1  # type: ignore[arg-type]
    refusal = read({"claimed": False, "refusal": {"code": "not_ready", "message": "none", "data": {}}})
    assert isinstance(refusal, answers.Refusal)


@pytest.mark.parametrize(
    ("amount", "sent"), [("0.05", "0.05"), (5, "5.00"), (Decimal("1.20"), "1.20"), (Decimal("1E+1"), "10.00")]
)
def test_money_is_sent_as_a_decimal_string(amount: Any, sent: str) -> None:
    """Strings, whole numbers and decimals become the wire's string, exactly."""
    call = calls.set_budget("me", amount)
    assert isinstance(call.params, dict)
    assert call.params["limit_usd"] == sent


@pytest.mark.parametrize("amount", [0.1, "-1", "1e3", "0.0000001", True, Decimal("NaN"), "many"])
def test_what_is_no_amount_is_refused_here(amount: Any) -> None:
    """A float, a sign, an exponent or a seventh decimal is refused before it is sent, with the parameter named."""
    with pytest.raises(InvalidParams, match="limit_usd"):
        calls.set_budget("me", amount)


def test_a_single_string_is_no_list() -> None:
    """`capabilities="a:b"` would be three capabilities, and is refused."""
    with pytest.raises(InvalidParams, match="a:b"):
        calls.register_swarm("me", capabilities="a:b")


def test_a_won_claim_and_a_lost_one_are_told_apart() -> None:
    """A lost race reads as a falsy `Refusal`, which can be raised."""
    call = calls.claim_task("T-1", "me", wait_ms=2_000)
    assert call.wait_s == 2
    refusal = call.read(
        {"claimed": False, "refusal": {"code": "already_claimed", "message": "held by docs", "data": {"owner": "docs"}}}
    )
    assert isinstance(refusal, answers.Refusal)
    assert not refusal
    assert refusal.to_error().data["owner"] == "docs"
    claim = {"task_id": "T-1", "swarm_id": "me", "token": 3, "lease_ms": 1, "claimed_at_ms": 1}
    won = call.read(
        {
            "claimed": True,
            "claim": {**claim, "task": {"task_id": "T-1", "title": "x"}},
            "receipt": {"revision": 3, "seq": 1, "head": "ab" * 32},
        }
    )
    assert isinstance(won, models.TaskClaim)
    assert won.handle == "T-1@3"
    assert str(won.receipt) == "1:abababab"


@pytest.mark.parametrize(
    "build",
    [
        lambda: calls.create_task("x", payload={"a": [{1: 2}]}),
        lambda: calls.complete_task("T-1", "me", 1, result={None: 1}),
        lambda: calls.complete_tasks("me", [{"task_id": "T-1", "token": 1, "result": {b"k": 1}}]),
        lambda: calls.execute_task("me", ({1: 1},)),
        lambda: calls.broadcast("t", {2: 1}),  # type: ignore[dict-item]
        lambda: calls.reply("Q-1", [{1.5: 1}]),
    ],
)
def test_a_map_with_other_keys_than_text_is_refused_before_it_is_sent(build: Callable[[], Call[Any]]) -> None:
    """The daemon would have to end the connection, with the calls of all threads on it."""
    with pytest.raises(InvalidParams, match="text for keys"):
        build()


@pytest.mark.parametrize(
    ("build", "param"),
    [
        (lambda: calls.create_task("x", payload=[1]), "payload"),  # type: ignore[arg-type]
        (lambda: calls.create_task("x", payload="text"), "payload"),  # type: ignore[arg-type]
        (lambda: calls.create_task("x", backoff=5), "backoff"),  # type: ignore[arg-type]
        (lambda: calls.broadcast("t", "text"), "body"),  # type: ignore[arg-type]
        (lambda: calls.complete_tasks("me", ["T-1@1"]), "tasks"),  # type: ignore[list-item]
        (lambda: calls.release_resources("me", "gpu:0"), "resources"),  # type: ignore[arg-type]
        (lambda: calls.track_cost("me", "llm", "0.01", usage=7), "usage"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_map_is_refused_by_its_name(build: Callable[[], Call[Any]], param: str) -> None:
    """Who gives another value than a map reads which argument it was, not what Python makes of it."""
    with pytest.raises(InvalidParams, match=f"cannot send {param}: expected a map, got "):
        build()


def test_a_container_in_itself_is_looked_at_once() -> None:
    """It is for the packer to refuse."""
    payload: dict[str, Any] = {}
    payload["again"] = [payload, payload]
    assert calls.create_task("x", payload=payload).params


def test_a_misspelt_argument_is_no_option() -> None:
    """Nothing that the caller wrote is passed over in silence; a timeout is a span."""
    call = calls.create_task("x", estimat_usd="0.05")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'estimat_usd'"):
        check_options(call.method, call.options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'bogus'"):
        calls.create_tasks([{"title": "x", "bogus": 1}])
    for timeout in (-1, math.nan, math.inf, "5"):
        with pytest.raises(InvalidParams, match="in seconds"):
            check_options("daemon.ping", {"timeout": timeout})  # type: ignore[typeddict-item]
    check_options("daemon.ping", {"timeout": 0, "idempotency_key": "k", "traceparent": None})
