"""Expressions over capabilities: what is written is what is meant, and what cannot be read says where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import InvalidParams
from ifbusd.coordinator.audience.rules import MAX_CHARS, MAX_DEPTH, Expression, parse

AREAS = ("infra", "docs", "gpu")
SKILLS = ("a", "b.c", "d-1")
names = st.builds("{}:{}".format, st.sampled_from(AREAS), st.sampled_from(SKILLS))
leaves = st.one_of(
    names.map(lambda name: Expression("can", name)),
    st.sampled_from(AREAS).map(lambda area: Expression("area", f"{area}:")),
)


def _joined(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(parts, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        several.map(lambda found: Expression("all", parts=found)),
        several.map(lambda found: Expression("any", parts=found)),
        parts.map(lambda part: Expression("not", parts=(part,))),
    )


expressions = st.recursive(leaves, _joined, max_leaves=12)


@given(expressions)
def test_what_is_written_is_read_again(expression: Expression) -> None:
    """However it is spaced, the text of an expression parses to it."""
    assert parse(str(expression)) == expression
    spaced = str(expression).replace("(", " ( ").replace(",", " ,\n").replace(")", " ) ")
    assert parse(f"  {spaced} ") == expression


CAN = st.frozensets(names, max_size=5)


@given(st.lists(expressions, min_size=1, max_size=3), CAN)
def test_it_means_what_its_words_say(parts: list[Expression], can: frozenset[str]) -> None:
    """All of them, any of them, none of them; and de Morgan's laws hold."""
    texts = [str(part) for part in parts]
    told = [parse(text).matches(can) for text in texts]
    listed = ", ".join(texts)
    assert parse(f"all({listed})").matches(can) == all(told)
    assert parse(f"any({listed})").matches(can) == any(told)
    assert parse(f"not({texts[0]})").matches(can) != told[0]
    negated = ", ".join(f"not({text})" for text in texts)
    assert parse(f"not(all({listed}))").matches(can) == parse(f"any({negated})").matches(can)


@given(CAN)
def test_a_word_is_what_a_swarm_can_do(can: frozenset[str]) -> None:
    """A capability is had or not; an area by any of its capabilities."""
    for area in AREAS:
        assert parse(f"{area}:*").matches(can) == any(one.split(":")[0] == area for one in can)
        for skill in SKILLS:
            assert parse(f"{area}:{skill}").matches(can) == (f"{area}:{skill}" in can)


@given(st.text(alphabet="alnyot(): ,*-x\n", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing else than a refusal comes of it, and that points into the text."""
    found, refused = None, None
    try:
        found = parse(text)
    except InvalidParams as error:
        refused = error
    if refused is not None:
        assert 0 <= refused.data["at"] <= len(text)
        assert refused.data["expected"]
    else:
        assert parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "at", "expected"),
    [
        ("", 0, "all(...), any(...), not(...), area:skill or area:*"),
        ("docs", 0, "all(...), any(...), not(...), area:skill or area:*"),
        ("docs:Writing", 0, "all(...), any(...), not(...), area:skill or area:*"),
        ("*:*", 0, "all(...), any(...), not(...), area:skill or area:*"),
        ("all docs:a", 4, "'('"),
        ("all()", 4, "all(...), any(...), not(...), area:skill or area:*"),
        ("all(docs:a", 10, "',' or ')'"),
        ("any(docs:a docs:b)", 11, "',' or ')'"),
        ("not(docs:a, docs:b)", 10, "')'"),
        ("docs:a docs:b", 7, "the end"),
        ("all(docs:a,)", 11, "all(...), any(...), not(...), area:skill or area:*"),
    ],
)
def test_what_cannot_be_read_says_where(text: str, at: int, expected: str) -> None:
    """The place, counted from 0, and what could stand there."""
    with pytest.raises(InvalidParams) as refused:
        parse(text)
    assert (refused.value.data["at"], refused.value.data["expected"]) == (at, expected)
    assert f"at {at}" in refused.value.message


def test_an_expression_is_bounded() -> None:
    """In length and depth."""
    with pytest.raises(InvalidParams):
        parse("a:b" * MAX_CHARS)
    parse("not(" * MAX_DEPTH + "a:b" + ")" * MAX_DEPTH)
    with pytest.raises(InvalidParams):
        parse("not(" * (MAX_DEPTH + 1) + "a:b" + ")" * (MAX_DEPTH + 1))
