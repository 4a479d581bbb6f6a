"""Handles, spans, times and JSON as people type them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.cli import load
from ifbus.cli.command import make_parser, parse_handle, parse_json, parse_span
from ifbus.cli.commands.cost import parse_when
from ifbus.errors import HandleRequired, IfbusError, InvalidParams, Usage

COMPLETE = load(("task", "complete"))


def test_a_handle_is_task_and_fence() -> None:
    """`T-7@41` is task T-7 and fencing token 41."""
    assert parse_handle("T-7@41", COMPLETE) == ("T-7", 41)


def test_a_task_id_alone_is_no_handle() -> None:
    """Acting as a holder with the id alone is refused; the fence is never looked up."""
    with pytest.raises(HandleRequired) as caught:
        parse_handle("T-7", COMPLETE)
    assert caught.value.data["task_id"] == "T-7"


@pytest.mark.parametrize("text", ["@41", "T-7@", "T-7@x", "T-7@-1", "T-7@٤١", "T-7@" + "9" * 30])
def test_what_only_looks_like_a_handle_is_refused(text: str) -> None:
    """A handle without task or with a fence that is no whole number is a usage error."""
    with pytest.raises(Usage):
        parse_handle(text, COMPLETE)


@given(st.text())
def test_any_word_is_a_handle_or_refused(text: str) -> None:
    """Whatever the word, it is a handle or one of our errors."""
    try:
        task_id, token = parse_handle(text, COMPLETE)
    except IfbusError:
        return
    assert task_id
    assert token >= 0


@pytest.mark.parametrize(
    ("text", "ms"),
    [("30s", 30_000), ("10m", 600_000), ("2h", 7_200_000), ("250ms", 250), ("5", 5_000), ("5min", 300_000)],
)
def test_spans_are_read(text: str, ms: int) -> None:
    """A span has a unit; a bare number is seconds."""
    assert parse_span(text) == ms


@pytest.mark.parametrize("text", ["", "s", "-5s", "1.5h", "1e3", "five", "99999999999s"])
def test_other_spans_are_refused(text: str) -> None:
    """What is no whole number with a unit is refused."""
    with pytest.raises(ValueError, match="a span reads"):
        parse_span(text)


@pytest.mark.parametrize("text", ["{", "NaN", "[Infinity]", ""])
def test_what_is_no_json_is_refused(text: str) -> None:
    """JSON arguments are JSON: no NaN, no half maps."""
    with pytest.raises(InvalidParams):
        parse_json(text, "result")


def test_times_are_read() -> None:
    """A time is a span ago, today's midnight or a date; anything else is refused."""
    now_ms = 1_700_000_000_000
    assert parse_when("2h", now_ms) == now_ms - 7_200_000
    assert now_ms - 86_400_000 <= parse_when("today", now_ms) <= now_ms
    assert parse_when("2023-11-01", now_ms) < now_ms
    with pytest.raises(Usage):
        parse_when("yesterday", now_ms)


def test_the_usage_of_run_has_the_program_in_it() -> None:
    """What follows the dashes is no argument of ours, but nothing runs without it."""
    usage = make_parser(load(("run",))).format_help().partition("usage: ")[2].partition("\n\n")[0]
    assert usage.endswith("-- COMMAND")


def test_a_missing_word_is_named_as_the_usage_names_it() -> None:
    """Capitals stand for what is to be filled in, in a complaint as in the help."""
    with pytest.raises(Usage, match="required: TITLE"):
        make_parser(load(("task", "add"))).parse([])
