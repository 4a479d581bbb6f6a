"""Each error of the catalogue that a command can meet: provoke it, type its remedy, see the error gone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ifbus.catalogue import CATALOGUE
from tests.integration.cli.shell import Ran, Shell
from tests.integration.cli.withheld import withholding_the_second_answer
from tests.integration.systemd.running import IFBUSD, running, wait_until_listening

pytestmark = pytest.mark.slow

NewSwarm = Callable[..., Shell]


def _refused(ran: Ran, code: str, exit_status: int) -> str:
    """What was said; the failure is of this kind and stdout is empty."""
    assert (ran.exit, ran.out) == (exit_status, ""), ran
    assert code in ran.err.split("    ")[0], ran
    return ran.err


def _remedies(said: str) -> list[str]:
    """The commands that a message names."""
    return re.findall(r"ifbus [a-z]+[^|\n`]*", said.replace("(operator)", ""))


def _remedy(said: str, start: str) -> str:
    """The one of them that begins like this."""
    found = [remedy.strip() for remedy in _remedies(said) if remedy.startswith(start)]
    assert found, said
    return found[0]


def test_usage(shell: Shell) -> None:
    """The example that an unknown verb gets is a command that works."""
    said = _refused(shell("task", "lss"), "usage:", 2)
    assert shell.type(_remedy(said, "ifbus task ls")).exit == 0


def test_handle_required(me: Shell) -> None:
    """Completing by task id is refused; with the fence from the claim's own answer it works."""
    handle = me.claim(me.new_task("a", "--need", "docs:writing"))
    said = _refused(me("task", "complete", handle.split("@")[0]), "handle_required", 2)
    remedy = _remedy(said, "ifbus task complete").replace("FENCE", handle.split("@")[1])
    assert me.type(remedy).exit == 0


def test_invalid_params(shell: Shell) -> None:
    """A wrong amount is refused; the help that the message names says what is right."""
    said = _refused(shell("task", "add", "x", "--estimate-usd", "1e3"), "invalid_params", 2)
    assert "1e3" in said
    assert "USD" in shell.type(_remedy(said, "ifbus task add --help")).out


def test_unknown_method(shell: Shell) -> None:
    """The list of methods that the message names has the right one."""
    said = _refused(shell("rpc", "coordinator.claim"), "unknown_method", 2)
    assert "coordinator.claim_task" in said
    assert "coordinator.claim_task" in shell("rpc", "daemon.describe").out


def test_not_found(shell: Shell) -> None:
    """A task that is not there is found by its title; a swarm that is not there can be registered."""
    task_id = shell.new_task("findable words")
    _refused(shell("task", "show", "T-99999"), "not_found", 4)
    (remedy,) = [remedy for remedy in CATALOGUE["not_found"].remedies if "task ls" in remedy]
    found = shell.type(remedy.replace("WORD", "findable"))
    assert task_id in found.out
    said = _refused(shell("task", "next", "--swarm", "newcomer"), "not_found", 4)
    assert shell.type(_remedy(said, "ifbus swarm register newcomer")).exit == 0
    assert shell("task", "claim", task_id, "--swarm", "newcomer").exit == 0


def test_resource_busy(new_swarm: NewSwarm) -> None:
    """What another swarm holds is refused with who and for how long; the list that the message names shows it, released it is had."""
    me, other = new_swarm(), new_swarm()
    task_id = me.new_task("a", "--need", "docs:writing", "--resource", "gpu:7")
    assert other("lock", "acquire", "gpu:7").out.startswith("gpu:7@")
    said = _refused(me("task", "claim", task_id), f"refused {task_id}: resource_busy", 3)
    assert f"{other.swarm} holds gpu:7" in said
    listed = me.type(_remedy(said, "ifbus lock ls"))
    assert str(other.swarm) in listed.out
    why = me("why", task_id)
    assert f"{other.swarm} holds gpu:7" in why.out
    assert "waits for gpu:7" in me("task", "add", "b", "--resource", "gpu:7").out
    hold = f"gpu:7@{other('lock', 'ls', '--json').data['resources'][0]['fence']}"
    assert other("lock", "release", hold).out == "gpu:7 free\n"
    assert me("task", "claim", task_id).exit == 0
    assert task_id in me("lock", "ls").out


def test_would_deadlock(new_swarm: NewSwarm) -> None:
    """Two that ask each other: the second is refused with the circle; the graph shows it, and after an answer it may ask."""
    me, other = new_swarm(), new_swarm()
    asked = me("inbox", "ask", str(other.swarm), "where is it?")
    said = _refused(other("inbox", "ask", str(me.swarm), "where is what?"), "would_deadlock", 3)
    assert f"which waits for a reply of {other.swarm}" in said
    shown = other.type(_remedy(said, "ifbus waits"))
    assert f"waits for a reply of {other.swarm}" in shown.out
    assert "where is it?" in other("inbox").out
    assert other("inbox", "reply", asked.out.split()[0], "--text", "here").exit == 0
    assert "where is it?: here" in me("inbox").out
    assert other("inbox", "ask", str(me.swarm), "where is what?").exit == 0


def test_not_kept(shell: Shell) -> None:
    """A subscription that goes on from where nothing is kept is refused; the list shows what came of it all."""
    said = _refused(shell("rpc", "coordinator.subscribe_board", '{"after_seq": 1}'), "not_kept", 3)
    assert shell.type(_remedy(said, "ifbus task ls")).exit == 0
    assert shell("rpc", "coordinator.subscribe_board").exit == 0


def test_already_exists(shell: Shell) -> None:
    """A task's id is taken: the message's remedy shows by what."""
    shell("task", "add", "the first", "--id", "TAKEN-1")
    said = _refused(shell("task", "add", "the second", "--id", "TAKEN-1"), "already_exists", 3)
    assert "the first" in shell.type(_remedy(said, "ifbus task show TAKEN-1")).out


def test_already_claimed(me: Shell, new_swarm: NewSwarm) -> None:
    """The loser reads who holds it and what else fits; waiting for it works once the holder lets go."""
    other = new_swarm()
    task_id = me.new_task("wanted", "--need", "docs:writing")
    me.new_task("something else", "--need", "docs:writing")
    handle = me.claim(task_id)
    said = _refused(other("task", "claim", task_id), "already_claimed", 3)
    assert f"held by {me.swarm}" in said
    instead = other.type(_remedy(said.split("instead:")[1], "ifbus task claim"))
    assert instead.exit == 0
    assert other("task", "claim", task_id, "--wait", "50ms").exit == 7
    assert me("task", "release", handle).exit == 0
    assert other.type(_remedy(said, f"ifbus task claim {task_id} --wait 10m")).exit == 0


def test_not_ready(me: Shell) -> None:
    """A task that waits for another can be claimed as soon as that is completed; an empty board says how to wait."""
    first = me.new_task("before", "--need", "docs:writing")
    second = me.new_task("after", "--need", "docs:writing", "--depends-on", first)
    said = _refused(me("task", "claim", second), "not_ready", 3)
    assert first in said
    me("task", "complete", me.claim(first))
    assert me.type(_remedy(said, f"ifbus task claim {second}")).exit == 0


def test_paused(me: Shell) -> None:
    """A paused task says who paused it and why; another one is to be had, and this one after the resume that the message names."""
    task_id = me.new_task("later", "--need", "docs:writing")
    me.new_task("now", "--need", "docs:writing")
    assert "paused" in me("pause", "task", task_id, "--reason", "wait for the release").out
    said = _refused(me("task", "claim", task_id), "paused", 3)
    assert "wait for the release" in said
    assert me("task", "next", "--wait", "10m").exit == 0
    assert me.type(_remedy(said, f"ifbus resume task {task_id}")).exit == 0
    assert me("task", "claim", task_id).exit == 0


def test_at_capacity(me: Shell) -> None:
    """A full concurrency key names its holders; waiting for a place works once one of them ends."""
    first, second = (
        me.new_task(title, "--need", "docs:writing", "--concurrency-key", "repo:site") for title in ("one", "two")
    )
    handle = me.claim(first)
    said = _refused(me("task", "claim", second), "at_capacity", 3)
    assert "1 of 1" in said
    assert first in said
    assert me("task", "claim", second, "--wait", "50ms").exit == 7
    assert me("task", "release", handle).exit == 0
    assert me.type(_remedy(said, f"ifbus task claim {second} --wait 10m")).exit == 0


def test_nothing_ready(new_swarm: NewSwarm) -> None:
    """With nothing that fits, `task next` is 7; the wait that it names ends with the first task that does."""
    only_me = new_swarm(can="rare:skill")
    said = _refused(only_me("task", "next"), "not_ready", 7)
    remedy = _remedy(said, "ifbus task next --wait")
    task_id = only_me.new_task("rare work", "--need", "rare:skill")
    assert only_me.type(remedy).out.startswith(f"{task_id}@")


def test_not_qualified(new_swarm: NewSwarm) -> None:
    """Who lacks a capability can register it and then claim."""
    me = new_swarm(can="docs:writing")
    task_id = me.new_task("wire it", "--need", "infra:networking")
    said = _refused(me("task", "claim", task_id), "not_qualified", 3)
    assert "infra:networking" in said
    assert me.type(_remedy(said, "ifbus swarm register")).exit == 0
    assert me("task", "claim", task_id).exit == 0


def test_budget_exceeded(new_swarm: NewSwarm) -> None:
    """Who is short reads by how much; an operator sets more and the claim goes through."""
    me = new_swarm("--budget-usd", "0.10")
    task_id = me.new_task("dear", "--need", "docs:writing", "--estimate-usd", "0.90")
    said = _refused(me("task", "claim", task_id), "budget_exceeded", 3)
    remedy = _remedy(said, "ifbus budget set")
    assert me.type(remedy.replace("USD", "1.00")).exit == 0
    assert me("task", "claim", task_id).exit == 0


def test_breaker_tripped(me: Shell) -> None:
    """A stopped swarm claims nothing until the reset that the message names."""
    task_id = me.new_task("held up", "--need", "docs:writing")
    me("breaker", "trip", str(me.swarm), "--reason", "looks odd")
    said = _refused(me("task", "claim", task_id), "breaker_tripped", 3)
    assert "looks odd" in said
    assert me.type(_remedy(said, "ifbus breaker reset")).exit == 0
    assert me("task", "claim", task_id).exit == 0


def test_broke_breaker_needs_money(new_swarm: NewSwarm) -> None:
    """A swarm that is broke is not reset without a new budget; the message says so and the remedy works."""
    me = new_swarm("--budget-usd", "0.10")
    name = str(me.swarm)
    spend = f'{{"swarm_id": "{name}", "operation": "llm", "cost_usd": "0.10"}}'
    assert me("rpc", "governor.track_cost", spend).exit == 0
    said = _refused(me("breaker", "reset", name, "--reason", "looked"), "budget_exceeded", 3)
    assert me.type(_remedy(said, f"ifbus budget set {name}")).exit == 0
    assert me("breaker", "reset", name, "--reason", "looked").exit == 0
    assert me("budget", "show", name, "--json").data["reports"][0]["breaker"] == "closed"
    # The other way: `breaker show` names the reset that brings the money along.
    assert me("rpc", "governor.track_cost", spend).exit == 0
    remedy = _remedy(me("breaker", "show", name).out, "ifbus breaker reset")
    assert me.type(re.sub(r"\bUSD\b", "2.00", remedy)).exit == 0
    assert me("budget", "show", name, "--json").data["reports"][0]["breaker"] == "closed"


def test_stale_token(me: Shell) -> None:
    """The handle of a claim that has ended is refused with 6 and writes nothing; a new claim goes on."""
    task_id = me.new_task("contested", "--need", "docs:writing")
    stale = me.claim(task_id)
    me("task", "release", stale)
    said = _refused(me("task", "progress", stale, "90"), "stale_token", 6)
    assert me("task", "show", task_id, "--json").data["task"]["percent"] == 0
    fresh = me.type(_remedy(said, "ifbus task claim"))
    assert fresh.exit == 0
    assert me("task", "progress", fresh.out.split()[0], "90").exit == 0


def test_not_owner(me: Shell, new_swarm: NewSwarm) -> None:
    """Another swarm's handle is refused; the task says whose it is."""
    handle = me.claim(me.new_task("mine", "--need", "docs:writing"))
    ran = new_swarm()("task", "progress", handle, "50")
    assert ran.exit in (3, 6)
    assert "not_owner" in ran.err or "stale_token" in ran.err
    assert f"held by {me.swarm}" in me("task", "show", handle).out


def test_idempotency_conflict(shell: Shell) -> None:
    """One key cannot stand for two requests; with a new one the second goes through."""
    shell("task", "add", "one", "--key", "k-conflict")
    said = _refused(shell("task", "add", "two", "--key", "k-conflict"), "idempotency_conflict", 2)
    assert "k-conflict" in said
    assert shell.type(_remedy(said, "ifbus task add two --key NEW")).exit == 0


def test_connection_lost(shell: Shell, tmp_path: Path) -> None:
    """When the answer is lost, the same command with the key that the message names finds the task made, once."""
    with withholding_the_second_answer(shell.socket_path, tmp_path / "lossy.sock", hangs_up=True) as lossy:
        said = _refused(Shell(lossy)("task", "add", "made once"), "connection_lost", 10)
    again = shell.type(f"{_remedy(said, 'ifbus task add')} --json").data
    assert again["receipt"]["replayed"] is True
    assert shell("task", "ls", "--grep", "made once", "-q").out.split() == [again["task"]["task_id"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to call as another user")
def test_permission_denied(open_directory: Path) -> None:
    """Another user acts for nobody else's swarm and resets no breaker: 5, and whom to ask."""
    path = open_directory / "ifbusd.sock"
    shell = Shell(path)
    with running([IFBUSD, "--dev", "--socket", path]):
        wait_until_listening(path)
        path.chmod(0o666)
        shell("swarm", "register", "me", "--can", "a:b")
        words = ("breaker", "reset", "me", "--reason", "please")
        said = _refused(shell.as_user(4242, [], *words), "permission_denied", 5)
        assert "operator" in said
        _refused(shell.as_user(4242, [], "task", "next", "--swarm", "me"), "permission_denied", 5)
        assert shell(*words).exit == 0
