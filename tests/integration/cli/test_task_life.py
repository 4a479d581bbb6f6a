"""The commands about a task's times and ends, at a real daemon."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.integration.cli.shell import Shell, validate

pytestmark = pytest.mark.slow


def test_a_dead_letter_from_its_first_attempt_to_its_requeue(me: Shell) -> None:
    """Failed to death, listed with its errors, shown, requeued."""
    task_id = me("task", "add", "Try", "--max-attempts", "2", "--backoff", '{"base_ms": 0}').out.split()[0]
    failed = me("task", "fail", me.claim(task_id), "no such file").out
    assert re.search(r" failed in \d+ m?s for 0.00 USD, 0.00 back in the budget    offered again", failed)
    handed = me("task", "claim", task_id)
    assert f"before you: {me.swarm} to 0 % (failed: no such file)" in handed.out
    assert "dead" in me("task", "fail", handed.out.split()[0], "still none").out
    listed = me("task", "dead")
    assert f"{task_id} dead after 2 failed attempts: Try" in listed.out
    assert "no such file" in listed.out
    assert "still none" in me("task", "show", task_id).out
    data = me("task", "dead", "--json").data
    validate(data, "task_dead")
    assert [error["error"] for error in data["tasks"][0]["errors"]] == ["no such file", "still none"]
    ran = me("task", "requeue", task_id, "--reason", "the disk is mended", "--json")
    validate(ran.data, "task_requeue")
    assert ran.data["task"]["state"] == "ready"
    assert task_id not in me("task", "dead").out


def test_a_cancelled_holder_reads_it_in_its_next_answer(me: Shell) -> None:
    """Whoever only asks now and then hears of it before the answer, and cannot complete the task any more."""
    task_id = me.new_task("Count", "--need", "docs:writing")
    handle = me.claim(task_id)
    ran = me("task", "cancel", task_id, "--reason", "not wanted any more", "--json")
    validate(ran.data, "task_cancel")
    said = me("task", "complete", handle)
    assert said.exit == 6
    assert "stale_token" in said.err
    assert "that claim has ended (cancelled: not wanted any more)" in said.err
    assert f"! {handle} was cancelled: not wanted any more; stop this work" in said.err


def test_times_are_typed_as_spans(me: Shell) -> None:
    """A start and a deadline from now; what is no time is refused by name."""
    added = me("task", "add", "Later", "--start", "1h", "--deadline", "2h", "--lease", "90s", "--json")
    validate(added.data, "task_add")
    task = added.data["task"]
    assert (task["state"], task["lease_ms"]) == ("scheduled", 90_000)
    assert task["deadline_at_ms"] - task["not_before_at_ms"] == 3_600_000
    shown = me("task", "show", task["task_id"])
    assert "starts in" in shown.out
    assert "expires in" in shown.out
    assert me("task", "ls", "--state", "scheduled", "-q").out.split()[-1] == task["task_id"]
    assert me("task", "add", "Never", "--start", "soon").exit == 2


def test_a_unique_key_gives_the_first_task(me: Shell) -> None:
    """The second one says that it was there already."""
    first = me("task", "add", "Once", "--unique", "nightly-1").out.split()[0]
    again = me("task", "add", "Once", "--unique", "nightly-1").out
    assert again.split()[0] == first
    assert "was there already" in again


def test_an_artefact_reaches_the_next_holder(me: Shell, tmp_path: Path) -> None:
    """Name, size and hash of a file; shown with the task."""
    file = tmp_path / "report.md"
    file.write_bytes(b"half of it")
    task_id = me.new_task("Report", "--need", "docs:writing")
    handle = me.claim(task_id)
    assert me("task", "progress", handle, "50", "half", "--artefact", str(file)).exit == 0
    assert me("task", "release", handle, "see report.md").exit == 0
    shown = me("task", "show", task_id).out
    assert f"artefact report.md: 10 bytes, sha256 {hashlib.sha256(b'half of it').hexdigest()}" in shown
    taken = me("task", "claim", task_id, "--json")
    validate(taken.data, "task_claim")
    assert taken.data["claim"]["handover"]["note"] == "see report.md"


def test_many_tasks_at_once(me: Shell, tmp_path: Path) -> None:
    """Created from one file whatever their order, completed by one command; a circle is refused with its names."""
    file = tmp_path / "tasks.json"
    file.write_text(
        '[{"title": "Second", "task_id": "two", "depends_on": ["one"]}, {"title": "First", "task_id": "one"}, {"title": "x", "task_id": "three"}]'
    )
    made = me("task", "batch", str(file), "--json")
    validate(made.data, "task_batch")
    assert [task["state"] for task in made.data["tasks"]] == ["waiting", "ready", "ready"]
    handles = [me.claim("one"), me.claim("three")]
    done = me("task", "complete", *handles, "--json")
    validate(done.data, "task_complete")
    assert (done.exit, done.data["completed"], done.data["unblocked"]) == (0, 2, ["two"])
    again = me("task", "complete", me.claim("two"), "one@1")
    assert again.exit != 0
    assert "two completed" in again.out
    assert "one@1 refused: stale_token" in again.out
    file.write_text(
        '[{"title": "a", "task_id": "a", "depends_on": ["b"]}, {"title": "b", "task_id": "b", "depends_on": ["a"]}]'
    )
    refused = me("task", "batch", str(file))
    assert "a -> b -> a" in refused.err
