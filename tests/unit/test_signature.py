"""Parameters of a method: bound, checked, converted, or refused by name."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import InvalidParams
from ifbus.money import MicroUsd
from ifbusd.identity import Caller
from ifbusd.signature import Signature, nearest

FIVE_CENTS = MicroUsd(50_000)


async def everything(
    caller: Caller,
    name: str,
    count: int = 0,
    *,
    ratio: float = 0.5,
    is_on: bool = False,
    data: bytes = b"",
    tags: list[str] | None = None,
    rows: list[Any] | None = None,
    body: dict[str, Any] | None = None,
    totals: dict[str, int] | None = None,
    kind: Literal["jaccard", "coverage"] | None = None,
    cost_usd: MicroUsd = FIVE_CENTS,
    limit_usd: MicroUsd | None = None,
    extra: Any = None,
) -> dict[str, Any]:
    """A handler with a parameter of every kind."""
    return {}


SIGNATURE = Signature.of(everything)
MANY_TYPES: list[Any] = [None, True, 1, 1.5, "a", b"a", [], ["a"], [1], {}, {"a": 1}, {b"a": 1}]


@pytest.mark.parametrize(
    ("params", "arguments"),
    [
        (["a"], {"name": "a"}),
        (["a", 3, 1], {"name": "a", "count": 3, "ratio": 1.0}),
        ([{"name": "a"}], {"name": "a"}),
        ([{"count": 2**63 - 1, "name": "a"}], {"name": "a", "count": 2**63 - 1}),
        ([{"name": "a", "tags": None}], {"name": "a", "tags": None}),
        ([{"name": "a", "tags": ["x", "y"]}], {"name": "a", "tags": ["x", "y"]}),
        ([{"name": "a", "rows": [1, "x", None]}], {"name": "a", "rows": [1, "x", None]}),
        ([{"name": "a", "body": {"k": [1]}}], {"name": "a", "body": {"k": [1]}}),
        ([{"name": "a", "totals": {"k": 1}}], {"name": "a", "totals": {"k": 1}}),
        ([{"name": "a", "kind": "coverage"}], {"name": "a", "kind": "coverage"}),
        ([{"name": "a", "data": b"\x00"}], {"name": "a", "data": b"\x00"}),
        ([{"name": "a", "cost_usd": "0.07"}], {"name": "a", "cost_usd": 70_000}),
        (
            [{"name": "a", "cost_usd": 2, "limit_usd": "1"}],
            {"name": "a", "cost_usd": 2_000_000, "limit_usd": 1_000_000},
        ),
        ([{"name": "a", "limit_usd": None}], {"name": "a", "limit_usd": None}),
        ([{"name": "a", "extra": {"deep": [{}]}}], {"name": "a", "extra": {"deep": [{}]}}),
    ],
)
def test_good_parameters_become_keyword_arguments(params: list[Any], arguments: dict[str, Any]) -> None:
    """By position or by name, checked and converted, and nothing that was not given."""
    assert SIGNATURE.bind(params) == arguments


@pytest.mark.parametrize(
    ("params", "param", "words"),
    [
        ([], "name", ["name", "expected string", "got nothing"]),
        ([{}], "name", ["expected string"]),
        ([{"count": 1}], "name", ["got nothing"]),
        ([5], "name", ["expected string", "got 5"]),
        (["a", True], "count", ["expected integer", "got True"]),
        (["a", 1.0], "count", ["expected integer", "got 1.0"]),
        (["a", 2**63], "count", ["64 bits"]),
        ([{"name": "a", "ratio": float("nan")}], "ratio", ["expected number", "got nan"]),
        ([{"name": "a", "ratio": True}], "ratio", ["expected number"]),
        ([{"name": "a", "is_on": 1}], "is_on", ["expected boolean"]),
        ([{"name": "a", "tags": "x"}], "tags", ["list of string or nil", "'x'"]),
        ([{"name": "a", "tags": ["x", 5]}], "tags", ["got 5 at [1]"]),
        ([{"name": "a", "body": []}], "body", ["map or nil", "a list of 0"]),
        ([{"name": "a", "body": {b"k": 1}}], "body", ["a key binary of 1"]),
        ([{"name": "a", "totals": {"k": "1"}}], "totals", ["under 'k'"]),
        ([{"name": "a", "kind": "jacard"}], "kind", ['"jaccard" or "coverage"', "did you mean 'jaccard'"]),
        ([{"name": "a", "cost_usd": 0.5}], "cost_usd", ["amount of dollars, got 0.5 (", "at most six decimals)"]),
        ([{"name": "a", "cost_usd": "-1"}], "cost_usd", ["amount of dollars"]),
        ([{"name": "a", "cost_usd": True}], "cost_usd", ["amount of dollars"]),
        ([{"name": "a", "cost_usd": None}], "cost_usd", ["got nil"]),
        ([{"nmae": "a"}], "nmae", ["no such parameter", "did you mean name"]),
        ([{"name": "a", b"x": 1}], "b'x'", ["no such parameter"]),
        ([{"name": "a", "caller": 1}], "caller", ["no such parameter"]),
        ([{"name": "a", "x" * 10_000: 1}], "x" * 80, ["no such parameter"]),
        (["a"] * 14, "[13]", ["14 parameters", "at most 13"]),
    ],
)
def test_bad_parameters_are_refused_by_name(params: list[Any], param: str, words: list[str]) -> None:
    """The refusal names the parameter, what was expected and what came, in a sentence of a bounded length."""
    with pytest.raises(InvalidParams) as refusal:
        SIGNATURE.bind(params)
    assert refusal.value.data["param"] == param
    for word in words:
        assert word in refusal.value.message
    assert len(refusal.value.message) < 500


@given(
    st.dictionaries(
        st.sampled_from([p.name for p in SIGNATURE.parameters] + ["nmae", "x"]), st.sampled_from(MANY_TYPES), max_size=6
    ),
)
def test_any_values_are_bound_or_refused(given_: dict[str, Any]) -> None:
    """Whatever comes for whichever parameter: keyword arguments of the annotated types, or `InvalidParams`."""
    try:
        arguments = SIGNATURE.bind([given_])
    except InvalidParams:
        return
    assert type(arguments["name"]) is str
    for name, kinds in {
        "count": (int,),
        "ratio": (float,),
        "is_on": (bool,),
        "data": (bytes,),
        "tags": (list, type(None)),
        "body": (dict, type(None)),
        "cost_usd": (int,),
        "limit_usd": (int, type(None)),
    }.items():
        if name in arguments:
            assert type(arguments[name]) in kinds


def test_the_description_says_what_a_client_sends() -> None:
    """Each parameter has its name, what it takes in the wire's words, and its default."""
    described = {p.name: (p.expected, p.is_required, p.default) for p in SIGNATURE.parameters}
    assert "caller" not in described
    assert described["name"] == ("string", True, None)
    assert described["count"] == ("integer", False, 0)
    assert described["kind"] == ('"jaccard" or "coverage" or nil', False, None)
    assert described["cost_usd"] == ("amount of dollars", False, "0.05")
    assert described["rows"] == ("list or nil", False, None)


def test_a_handler_that_the_wire_cannot_fill_is_found_at_start() -> None:
    """No `caller`, unknown types, and variable arguments are bugs."""

    async def no_caller(name: str) -> None: ...
    async def strange(caller: Caller, when: complex) -> None: ...
    async def variable(caller: Caller, **more: str) -> None: ...

    for handler in (no_caller, strange, variable):
        with pytest.raises(TypeError):
            Signature.of(handler)


def test_the_nearest_name_is_found_in_bounded_time() -> None:
    """A misspelt name finds its neighbour, a strange or huge one none."""
    assert nearest("clam_task", ["claim_task", "create_task"]) == "claim_task"
    assert nearest("zzz", ["claim_task"]) is None
    assert nearest("claim_task" * 10_000, ["claim_task"]) is None
