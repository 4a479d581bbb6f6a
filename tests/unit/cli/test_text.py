"""Spans, tables and lines for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.cli.commands.cost import render_costs
from ifbus.cli.text import View, cell, count, fields, one_line, span, table

VIEW = View(now_ms=1_000_000)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (4_999, "4 s"),
        (540_000, "9 min"),
        (11_520_000, "3 h 12 min"),
        (3_600_000, "1 h"),
        (266_400_000, "3 d 2 h"),
    ],
)
def test_spans_read_as_people_say_them(ms: int, text: str) -> None:
    """A span has at most two units."""
    assert span(ms) == text


def test_large_counts_are_short() -> None:
    """Token counts fit a column."""
    assert [count(number) for number in (999, 88_000, 1_250_000)] == ["999", "88 k", "1.2 M"]


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=40), min_size=1), st.integers(20, 200))
def test_lines_wrap_at_a_field(parts: list[str], width: int) -> None:
    """Nothing is cut: every fact stands whole in some line, and a line is too wide only if one fact is."""
    lines = fields(parts, View(now_ms=0, width=width))
    assert " ".join(lines).split() == parts
    assert all(len(line) <= width or len(line.split()) == 1 for line in lines)


def test_without_a_terminal_nothing_wraps() -> None:
    """A pipe gets each answer in one line, however long."""
    assert len(fields(["x" * 200, "y" * 200], VIEW)) == 1


def test_tables_align_also_in_colour() -> None:
    """Colour codes take no room in a column."""
    colored = View(now_ms=0, color=True)
    rows = [(colored.state("ready"), "a"), (colored.state("claimed"), "b")]
    lines = table(("STATE", "X"), rows)
    assert [line.index(letter) - line.count("\x1b") for line, letter in zip(lines[1:], "ab", strict=True)]
    assert lines[1].replace("\x1b[32m", "").replace("\x1b[0m", "") == "ready    a"
    assert lines[2].replace("\x1b[33m", "").replace("\x1b[0m", "") == "claimed  b"


def test_foreign_text_cannot_move_the_cursor() -> None:
    """Control characters in a title are shown, not obeyed."""
    shown = one_line("a\x1b[2J\nb\x07")
    assert shown.isprintable()
    assert "a" in shown


def test_long_text_says_that_it_goes_on() -> None:
    """What is cut says how long it was."""
    assert "2000 characters" in one_line("x" * 2000)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_any_value_fits_a_cell(value: object) -> None:
    """Whatever stands in an answer becomes one line."""
    assert "\n" not in cell(value)


def test_costs_without_a_model_have_a_name_in_the_table() -> None:
    """A row whose column is empty reads as that of the line above."""
    figures = dict.fromkeys(("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"), 0)
    row = {"key": "", "tasks": 1, "spent_usd": "0.01", "per_accepted_usd": None, "waste_ratio": 0.0, **figures}
    lines = render_costs(
        {"by": "model", "rows": [row], "total_usd": "0.01", "waste_usd": "0.00", "has_more": False}, VIEW
    )
    assert lines[1].split()[0] == "-"
