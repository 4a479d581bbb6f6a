"""The method table and the page that is generated from it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import attrs
import msgpack

from ifbus import models
from ifbusd.chassis.interface import Chassis
from ifbusd.coordinator.interface import Coordinator
from ifbusd.coordinator.model import CANCELLED, COMPLETED, DEAD, EXPIRED, FAILED
from ifbusd.governor.interface import Governor
from ifbusd.optimise.interface import Optimise
from ifbusd.rpc.daemon_methods import DaemonMethods
from ifbusd.rpc.describe import PAGE, describe, meanings_of, page
from ifbusd.rpc.limits import RpcLimits
from ifbusd.rpc.methods import ROWS
from ifbusd.witness.interface import Witness


def test_the_page_is_not_stale() -> None:
    """docs/protocol.md is what `python -m ifbusd.rpc.describe` would write now."""
    assert (Path(__file__).parents[3] / PAGE).read_text() == page()


def test_every_value_that_the_page_names_is_defined_on_it() -> None:
    """Who reads ``Task`` or ``Receipt`` finds its keys, and every attribute that a class explains is in its table."""
    text = page()
    for name in ("Task", "TaskClaim", "Receipt", "SwarmProfile", "CapabilityMatch", "BudgetReport", "InboxMessage",
                 "BlockerAlert", "TaskBroadcast", "ServiceContract", "ResourceLimits", "SLODefinition", "Execution"):  # fmt: skip
        model = getattr(models, name)
        table = text.partition(f"\n### `{name}`\n")[2].partition("\n### ")[0]
        keys = [field.name for field in attrs.fields(model)]
        assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == keys
        assert set(meanings_of(inspect.getdoc(model) or "")) <= set(keys)


def test_the_limits_that_the_page_names_are_the_defaults() -> None:
    """Who plans by the page is refused at the figure that it gives, not before."""
    limits, text = RpcLimits(), " ".join(page().split())
    assert f"a message is at most {limits.message_bytes // 1024} KiB, nested at most {limits.nesting} deep" in text
    assert f"{limits.in_flight} requests of a connection at a time" in text
    assert f"at most {limits.connections_per_uid} connections" in text


def test_every_event_of_the_board_is_named() -> None:
    """Who watches the board can know all that may come, and an end from a claim's end."""
    sources = (Path(__file__).parents[3] / "ifbusd" / "coordinator").rglob("*.py")
    calls = [call for source in sources for call in re.findall(r"_publish_board\(tx, ([^,]+),", source.read_text())]
    told = {event for call in calls for event in re.findall(r'"(\w+)"', call)}
    named = set(re.findall(r"``(\w+)``", inspect.getdoc(Coordinator.subscribe_board) or ""))
    assert "claimed" in told
    assert told <= named
    assert {COMPLETED, FAILED, DEAD, CANCELLED, EXPIRED} <= named
    assert not told & {COMPLETED, FAILED, DEAD, CANCELLED, EXPIRED}


def test_errors_are_named_as_on_the_wire() -> None:
    """What a method raises is told by its code: a caller never sees the classes."""
    for row in ROWS:
        raises = (inspect.getdoc(row.does) or "").partition("Raises:\n")[2]
        assert not re.search(r"^    (?:\w+, )*[A-Z]\w*(?:, \w+)*:", raises, re.MULTILINE), row.name


def test_every_method_of_every_interface_has_a_row() -> None:
    """The table has each asynchronous method of the services' interfaces, once, under its own name, and nothing else."""
    interfaces = {
        "daemon": DaemonMethods,
        "coordinator": Coordinator,
        "governor": Governor,
        "chassis": Chassis,
        "witness": Witness,
        "optimise": Optimise,
    }
    declared = {
        f"{component}.{name}"
        for component, interface in interfaces.items()
        for name, member in vars(interface).items()
        if inspect.iscoroutinefunction(member) and not name.startswith("_")
    }
    assert sorted(row.name for row in ROWS) == sorted(declared)
    for row in ROWS:
        assert row.name.endswith(f".{row.does.__name__}")


def test_the_description_fits_into_an_answer() -> None:
    """All methods at once, and the longest one in full, are well below a message."""
    assert len(msgpack.packb(describe())) < 32_000
    assert max(len(msgpack.packb(describe(row.name))) for row in ROWS) < 16_000


def test_every_method_says_what_it_does() -> None:
    """Each has a first line, which is what `daemon.describe` lists."""
    assert all(method["summary"] for method in describe()["methods"])
