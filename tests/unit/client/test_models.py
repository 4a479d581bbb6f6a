"""The models refuse what is not of their types or out of range, and survive the wire."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus import answers, models
from ifbus.errors import InvalidParams
from ifbus.models import (
    BlockerAlert,
    Model,
    Receipt,
    ResourceLimits,
    ServiceContract,
    SLODefinition,
    SwarmProfile,
    Task,
    TaskClaim,
)

ALL = sorted(
    {
        cls
        for module in (models, answers)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, Model)
    }
    - {Model},
    key=lambda cls: cls.__name__,
)
_TASK = Task(task_id="T-1", title="x", capabilities=("a:b",), estimate_usd=Decimal("0.05"))
_CLAIM = TaskClaim(
    task_id="T-1", swarm_id="me", token=41, lease_ms=1, claimed_at_ms=1, task=_TASK, receipt=Receipt(revision=41)
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Task(task_id="T-1", title=1), "Task.title must be a string, got int 1"),
        (lambda: Task(task_id=7, title="x"), "Task.task_id must be a string, got int 7"),
        (lambda: Task(task_id="T-1", title="x", depends_on="T-2"), "must be a list of strings, got str 'T-2'"),
        (lambda: Task(task_id="T-1", title="x", capabilities=[1]), "must be a list of strings, got int 1 in it"),
        (lambda: Task(task_id="T-1", title="x", priority=True), "must be a whole number, got bool True"),
        (lambda: Task(task_id="T-1", title="x", estimate_usd=0.05), "must be dollars as a decimal string"),
        (lambda: Task(task_id="T-1", title="x", estimate_usd="much"), "must be dollars as a decimal string"),
        (lambda: Task(task_id="T-1", title="x", estimate_usd="NaN"), "must be a finite amount"),
        (lambda: Task(task_id="T-1", title="x", estimate_usd=-1), "estimate_usd must be 0 or more"),
        (lambda: Task(task_id="T-1", title="x", payload=[]), "must be a map, got list"),
        (lambda: Task(task_id="T-1", title="x", token="7"), "must be a whole number or None, got str '7'"),
        (lambda: Task(task_id="no spaces", title="x"), "task_id is 1 to 64 letters"),
        (lambda: TaskClaim(task_id="T", swarm_id="s", token=0, lease_ms=1, claimed_at_ms=1, task=_TASK), "above 0"),
        (
            lambda: TaskClaim(task_id="T", swarm_id="s", token=1, lease_ms=1, claimed_at_ms=1, task={}),
            "a Task, got dict",
        ),
        (lambda: SwarmProfile(swarm_id="me", capabilities=["Loud"]), "area:skill"),
        (lambda: SwarmProfile(swarm_id="me", reputation=1.5), "between 0 and 1"),
        (lambda: ResourceLimits(memory_bytes=0), "above 0"),
        (lambda: ResourceLimits(cpu_percent=101), "between 1 and 100"),
        (lambda: SLODefinition(success_ratio="all"), "must be a number, got str 'all'"),
        (lambda: ServiceContract(module_sha256="abc"), "64 hex digits"),
        (lambda: ServiceContract(module_sha256="0" * 64, kind="elf"), "core, command, component"),
        (lambda: BlockerAlert(blocker_id="b", swarm_id="s", reason="r", severity="hm"), "low, medium, high, critical"),
    ],
)
def test_a_wrong_value_is_refused_by_name(make: Callable[[], Any], message: str) -> None:
    """The error names the field, what it must be, and what came."""
    with pytest.raises((ValueError, InvalidParams)) as raised:
        make()
    assert message in str(raised.value)


def test_what_is_near_enough_is_taken() -> None:
    """Lists for tuples, whole numbers for ratios, strings and whole numbers for money."""
    assert Task(task_id="T-1", title="x", depends_on=["T-2"]).depends_on == ("T-2",)
    assert SwarmProfile(swarm_id="me", capabilities={"b:b", "a:a"}).capabilities == ("a:a", "b:b")
    assert SLODefinition(success_ratio=1).success_ratio == 1
    assert Task(task_id="T-1", title="x", estimate_usd=5).estimate_usd == Decimal(5)


@pytest.mark.parametrize("value", [_TASK, _CLAIM, ServiceContract(module_sha256="0" * 64), ResourceLimits()])
def test_a_value_survives_the_wire(value: Model) -> None:
    """To the wire and back it is the same; what a newer daemon adds is passed over."""
    assert type(value).from_wire({**value.to_wire(), "added_later": 1}) == value


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_field_is_checked(cls: type[Model]) -> None:
    """No model takes an object of a type that nothing has, in any field, unless that field takes anything."""
    required = {field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING}
    for field in attrs.fields(cls):
        if str(field.type) != "Any" and required <= {field.name}:
            with pytest.raises(InvalidParams):
                cls.from_wire({field.name: object()})


_WIRE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("0.05") | st.just("a:b"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_map_is_a_value_or_invalid(data: st.DataObject) -> None:
    """Whatever a map holds under the right names, reading it gives a value or InvalidParams, nothing else."""
    cls = data.draw(st.sampled_from(ALL))
    names = [field.name for field in attrs.fields(cls)]
    values = {name: data.draw(_WIRE) for name in names}
    try:
        value = cls.from_wire(values)
    except InvalidParams:
        return
    assert isinstance(value, cls)


def test_a_secret_is_not_shown() -> None:
    """A registration shows itself without the token that proves it."""
    registration = answers.Registration(
        profile=SwarmProfile(swarm_id="me"), incarnation=2, lease_ms=1, resume_token="hush"
    )
    assert "hush" not in repr(registration)
    assert repr(Receipt(revision=3)) == "Receipt(revision=3)"
