"""The coordinator's rules: bounds, states, refusals with figures and remedies, and views that the models read."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import IfbusError, InvalidParams
from ifbus.models import BlockerAlert, Task
from ifbusd.codec import pack
from ifbusd.coordinator import rules
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import BlockerRecord, ClaimRecord, MessageRecord, SessionRecord, TaskRecord

TASK = TaskRecord(n=1, title="Write it")
CLAIM = ClaimRecord(swarm_id="docs", incarnation=1, uid=1000, lease_ms=30_000, claimed_at_ms=1_000, percent=40)


def new_task(**changes: Any) -> dict[str, Any]:
    """Arguments of a task that is fine, changed."""
    fine = {
        "title": "Write it",
        "description": "",
        "capabilities": [],
        "depends_on": [],
        "priority": 0,
        "payload_bytes": 1,
        "milestones": [[50, "half"]],
    }
    return fine | changes


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("title", ""),
        ("title", "x" * 201),
        ("title", "two\nlines"),
        ("description", "x" * (16 * 1024 + 1)),
        ("capabilities", ["NoColon"]),
        ("depends_on", [f"T-{n}" for n in range(101)]),
        ("depends_on", ["no/slash"]),
        ("priority", 101),
        ("priority", -101),
        ("payload_bytes", 32 * 1024 + 1),
        ("milestones", [[50, "x"]] * 33),
        ("milestones", [[101, "x"]]),
        ("milestones", [[True, "x"]]),
        ("milestones", [[1, "x" * 201]]),
        ("milestones", [[1]]),
        ("milestones", ["half"]),
    ],
)
def test_a_task_out_of_bounds_is_refused(param: str, value: Any) -> None:
    """Each bound is held, and the refusal names the parameter."""
    with pytest.raises(InvalidParams) as refused:
        rules.check_new_task(**new_task(**{param: value}))
    assert param.removesuffix("_bytes").split("_")[0] in str(refused.value.data["param"])


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "x" * 200},
        {"description": "x" * (16 * 1024)},
        {"priority": 100},
        {"priority": -100},
        {"payload_bytes": 32 * 1024},
        {"milestones": [[0, ""], [100, "x" * 200]] * 16},
        {"depends_on": [f"T-{n}" for n in range(100)]},
    ],
)
def test_a_task_at_its_bounds_is_fine(changes: dict[str, Any]) -> None:
    """The bounds themselves are allowed."""
    rules.check_new_task(**new_task(**changes))


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_percentage_is_one(percent: int) -> None:
    """0 to 100, nothing else."""
    rules.check_percent(0)
    rules.check_percent(100)
    with pytest.raises(InvalidParams):
        rules.check_percent(percent)


def test_spans_and_texts_have_bounds() -> None:
    """Bounds are inclusive."""
    rules.check_span("wait_ms", 1, 1, 2)
    rules.check_span("wait_ms", 2, 1, 2)
    rules.check_text("note", "xx", 2)
    for refused in (
        lambda: rules.check_span("wait_ms", 0, 1, 2),
        lambda: rules.check_span("wait_ms", 3, 1, 2),
        lambda: rules.check_text("note", "xxx", 2),
    ):
        with pytest.raises(InvalidParams):
            refused()


@pytest.mark.parametrize(
    ("state", "blocker", "is_claimed", "is_waiting", "shown"),
    [
        ("open", "", False, False, "ready"),
        ("open", "", False, True, "waiting"),
        ("open", "", True, False, "claimed"),
        ("open", "", True, True, "claimed"),
        ("open", "B-1", False, False, "blocked"),
        ("open", "B-1", False, True, "blocked"),
        ("completed", "", False, False, "completed"),
        ("failed", "B-1", False, True, "failed"),
    ],
)
def test_the_state_that_is_shown(state: str, blocker: str, is_claimed: bool, is_waiting: bool, shown: str) -> None:
    """Final beats blocked beats claimed beats waiting beats ready."""
    task = attrs.evolve(TASK, state=state, blocker=blocker)
    assert life.state_of(task, is_claimed=is_claimed, is_waiting=is_waiting, now_ms=0) == shown
    assert shown in life.STATES


@pytest.mark.parametrize(
    ("task", "waits_for", "figures"),
    [
        (attrs.evolve(TASK, state="completed"), {}, {"state": "completed"}),
        (attrs.evolve(TASK, state="failed"), {"T-0": "ready"}, {"state": "failed"}),
        (attrs.evolve(TASK, blocker="B-1"), {}, {"state": "blocked", "blocker_id": "B-1"}),
        (TASK, {"T-3": "claimed", "T-2": "failed"}, {"state": "waiting", "waits_for": ["T-2", "T-3"]}),
    ],
)
def test_a_task_that_cannot_be_claimed_says_why(
    task: TaskRecord, waits_for: dict[str, str], figures: dict[str, Any]
) -> None:
    """The refusal has the state, what it waits for, and what would change it."""
    refusal = rules.not_ready("T-1", task, waits_for, 0)
    assert refusal is not None
    assert figures.items() <= refusal.data.items()
    assert refusal.data["task_id"] == "T-1"
    assert refusal.would_change
    assert all(state in refusal.message for state in waits_for) or task.state != "open"


def test_a_ready_task_can_be_claimed() -> None:
    """Nothing stands in the way."""
    assert rules.not_ready("T-1", TASK, {}, 0) is None


def test_a_lost_claim_says_who_holds_it() -> None:
    """Owner, fence, time held, progress and what is left of the lease."""
    refusal = rules.already_claimed("T-1", CLAIM, 41, now_ms=241_000, lease_left_ms=26_000)
    assert refusal.data | {"would_change": 0} == {
        "task_id": "T-1",
        "owner": "docs",
        "token": 41,
        "held_ms": 240_000,
        "percent": 40,
        "lease_left_ms": 26_000,
        "would_change": 0,
    }
    assert refusal.would_change[0]["call"] == "ifbus task claim T-1 --wait 10m"
    assert rules.already_claimed("T-1", CLAIM, 41, now_ms=0, lease_left_ms=None).data["held_ms"] == 0


def test_the_view_of_a_claimed_task_is_the_holders() -> None:
    """Progress, note and fence come from the claim while it lasts."""
    task = attrs.evolve(TASK, percent=10, note="old", estimate_micro_usd=1_500_000)
    view = rules.task_view("T-1", task, now_ms=0, claim=CLAIM, token=41)
    assert Task.from_wire(view).holder == "docs"
    assert (view["state"], view["percent"], view["note"], view["token"]) == ("claimed", 40, "", 41)
    assert view["estimate_usd"] == "1.50"


def test_the_view_of_a_final_task_remembers_its_last_holder() -> None:
    """A completed task shows result and who did it; an open one does not show a former holder."""
    done = attrs.evolve(TASK, state="completed", result={"n": 1}, last_holder="docs", last_token=7)
    view = rules.task_view("T-1", done, now_ms=0)
    assert (view["result"], view["holder"], view["token"]) == ({"n": 1}, "docs", 7)
    assert "holder" not in rules.task_view("T-1", attrs.evolve(TASK, last_holder="docs", last_token=7), now_ms=0)


@given(
    before=st.integers(0, 5),
    spent=st.integers(0, 10**9),
    percent=st.integers(0, 100),
    progress_at_ms=st.integers(0, 10**12),
    known=st.booleans(),
)
def test_the_end_of_a_claim_leaves_its_mark(
    before: int, spent: int, percent: int, progress_at_ms: int, known: bool
) -> None:
    """One more attempt, its cost added, its holder noted; how far it came, where that is known."""
    task = attrs.evolve(TASK, attempts=before, spent_micro_usd=5, percent=3, progress_at_ms=9)
    claim = attrs.evolve(CLAIM, percent=percent, progress_at_ms=progress_at_ms)
    after = rules.after_claim(task, claim if known else None, "docs", 41, spent)
    assert (after.attempts, after.spent_micro_usd, after.last_holder, after.last_token) == (
        before + 1,
        5 + spent,
        "docs",
        41,
    )
    assert (after.percent, after.progress_at_ms) == ((percent, progress_at_ms or 9) if known else (3, 9))


def test_checks_read_alike() -> None:
    """A passed check has no remedy, a failed one has the refusal's message, figures and remedies."""
    assert rules.check_result("free", None, "nobody holds it") == {
        "check": "free",
        "ok": True,
        "message": "nobody holds it",
        "data": {},
        "would_change": [],
    }
    error = IfbusError("no", data={"figure": 1}, would_change=[{"by": "self", "what": "w"}])
    failed = rules.check_result("free", error, "")
    assert (failed["ok"], failed["message"], failed["data"]) == (False, "no", {"figure": 1})
    assert failed["would_change"] == [{"by": "self", "what": "w"}]


def test_a_blocker_reads_as_the_model() -> None:
    """With and without a task."""
    blocker = BlockerRecord(
        swarm_id="docs", reason="stuck", uid=1, task_id="T-1", token=4, needs=["a:b"], helpers=["h"]
    )
    alert = BlockerAlert.from_wire(rules.blocker_view("B-1", blocker))
    assert (alert.task_id, alert.token, alert.needs, alert.helpers) == ("T-1", 4, ("a:b",), ("h",))
    assert "task_id" not in rules.blocker_view("B-1", attrs.evolve(blocker, task_id=""))


names = st.text(min_size=1, max_size=5)


@given(
    st.one_of(
        st.builds(TaskRecord, n=st.integers(1, 9), title=names, capabilities=st.lists(names), result=st.none() | names),
        st.builds(
            ClaimRecord,
            swarm_id=names,
            incarnation=st.integers(0, 9),
            uid=st.integers(0, 9),
            lease_ms=st.integers(1, 9),
            claimed_at_ms=st.integers(0, 9),
            own_lease=st.booleans(),
        ),
        st.builds(
            SessionRecord,
            incarnation=st.integers(1, 9),
            uid=st.integers(0, 9),
            lease_ms=st.integers(1, 9),
            token_hash=st.binary(),
        ),
        st.builds(MessageRecord, kind=names, body=st.dictionaries(names, st.integers(-9, 9)), urgent=st.booleans()),
        st.builds(BlockerRecord, swarm_id=names, reason=names, uid=st.integers(0, 9), needs=st.lists(names)),
    )
)
def test_records_survive_the_store(record: Any) -> None:
    """What is stored is read back the same; a field that a newer version added is ignored."""
    assert type(record).from_bytes(pack(record.to_map())) == record
    assert type(record).from_bytes(pack({**record.to_map(), "from_the_future": 1})) == record
