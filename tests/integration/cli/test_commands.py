"""Every command at a real daemon: its answer for people, its answer for programs, its exit code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ifbus.testing import daemon
from tests.integration.cli.shell import Shell, validate

pytestmark = pytest.mark.slow
BOARD = Path(__file__).parents[2] / "data" / "phase0-board.md"


def test_a_task_from_creation_to_receipt(me: Shell) -> None:
    """Add, claim, report, complete; the receipt then proves the record."""
    added = me("task", "add", "Count the words", "--need", "docs:writing", "--estimate-usd", "0.05")
    task_id, state = added.out.split()
    assert state == "ready"
    claimed = me("task", "claim", task_id)
    handle, word = claimed.out.split()[:2]
    assert (handle.split("@")[0], word) == (task_id, "claimed:")
    assert "lease 10 min of its own" in claimed.out
    assert "0.05 USD reserved" in claimed.out
    assert f"{task_id} at 50 %: half" in me("task", "progress", handle, "50", "half").out
    done = me("task", "complete", handle, "--result", '{"words": 3}')
    assert done.exit == 0
    assert re.search(rf"^{task_id} completed in \d+ m?s for 0.00 USD, 0.05 back in the budget", done.out)
    receipt = done.out.partition("--receipt ")[2].strip().rstrip(")")
    verified = me("witness", "verify", "--receipt", receipt)
    assert (verified.exit, verified.out.split("    ")[0]) == (0, "witness verify: ok")
    assert 'result: {"words": 3}' in me("task", "show", task_id).out


def test_what_several_handles_end_is_not_reminded_of(me: Shell) -> None:
    """Who completes several claims at once is not told that it still holds one of them."""
    first, second = (me.claim(me.new_task(title, "--need", "docs:writing")) for title in ("a", "b"))
    kept = me.claim(me.new_task("c", "--need", "docs:writing"))
    done = me("task", "complete", first, second)
    assert done.exit == 0
    assert re.findall(r"you still hold (\S+)", done.out) == [kept]


def test_who_gets_nothing_though_something_is_ready_reads_how_to_learn_why(new_swarm: Callable[..., Shell]) -> None:
    """Waiting alone does not help a swarm that lacks what the ready tasks need; what to type names the reason."""
    idle = new_swarm(can="audio:mixing")
    task_id = idle.new_task("nothing for a mixer", "--need", "docs:writing")
    ran = idle("task", "next")
    assert ran.exit == 7
    remedy = "ifbus task ls --state ready"
    assert f"what stands against one (self): {remedy}\n" in ran.err
    assert task_id in idle.type(remedy).out
    assert "lacks docs:writing" in idle("why", task_id).out


def test_every_answer_fits_its_schema(new_swarm: Callable[..., Shell], tmp_path: Path) -> None:
    """With --json each command prints one line whose data fits the committed schema."""
    me, other = new_swarm("--budget-usd", "5"), new_swarm("--budget-usd", "5")
    name = str(me.swarm)
    board = tmp_path / "board.md"
    board.write_text("## One\n#### **SCHEMA-1: First**\n**Estimate:** 2h\n", encoding="utf-8")

    def check(schema: str, *words: str, shell: Shell = me) -> dict[str, object]:
        ran = shell(*words, "--json")
        validate(ran.data, schema)
        return ran.data

    check("task_import", "task", "import", str(board), "--usd-per-hour", "0.10")
    check(
        "task_add",
        "task",
        "add",
        "Count",
        "--description",
        "long",
        "--payload",
        '{"a": [1]}',
        "--milestone",
        "25 begun",
    )
    first, second, third, fourth = (me.new_task(title, "--need", "docs:writing") for title in "abcd")
    handle = "{0[task_id]}@{0[token]}".format
    claim = check("task_claim", "task", "claim", first)["claim"]
    check("task_progress", "task", "progress", handle(claim), "50", "half")
    asked = check("inbox_ask", "inbox", "ask", str(other.swarm), "where?", "--task", handle(claim))["reply_id"]
    assert check("swarm_request-help", "swarm", "request-help")["asked"] == other.swarm
    approval = check("inbox_ask", "inbox", "ask", "person", "may I?", "--task", handle(claim))["reply_id"]
    check("waits", "waits")
    check("inbox_reply", "inbox", "reply", str(asked), "--text", "here", shell=other)
    check("approvals_ls", "approvals", "ls")
    check("approvals_approve", "approvals", "approve", str(approval), "--note", "go on")
    rejected = check("inbox_ask", "inbox", "ask", "person", "and now?", "--task", handle(claim))["reply_id"]
    check("approvals_reject", "approvals", "reject", str(rejected))
    hold = check("lock_acquire", "lock", "acquire", "gpu:0", "--task", handle(claim))["fences"]
    check("swarm_status", "swarm", "status")
    assert me("swarm", "status", "--yaml").out.startswith(f'session: "{name}"')
    check("lock_ls", "lock", "ls", "--prefix", "gpu:")
    check("lock_release", "lock", "release", f"gpu:0@{hold['gpu:0']}")
    check("task_complete", "task", "complete", handle(claim), "--result", "[1]")
    check("task_fail", "task", "fail", me.claim(second), "no such file", "--retry")
    check("task_release", "task", "release", me.claim(third))
    asked = ("which port?", "--need", "docs:writing", "--severity", "high")
    check("task_blocked", "task", "blocked", me.claim(fourth), *asked)
    check("task_unblock", "task", "unblock", fourth, "--note", "8080")
    several = [me.new_task(title, "--need", "docs:writing", "--priority", "90") for title in "ef"]
    both = check("task_next", "task", "next", "--count", "2", shell=other)["claim"]
    assert [claim["task_id"] for claim in both] == several
    claim = check("task_next", "task", "next", shell=other)["claim"]
    check("task_show", "task", "show", first)
    check("task_ls", "task", "ls", "--limit", "3")
    check("swarm_ls", "swarm", "ls")
    check("swarm_show", "swarm", "show", name)
    check("swarm_register", "swarm", "register", name, "--model", "small")
    check("inbox_ls", "inbox", shell=other)
    check("inbox_topics", "inbox", "topics", "--subscribe", "builds")
    sent = ("inbox", "send", "builds", "main is green", "--subscribers", "--fits", "docs:*")
    assert check("inbox_send", *sent, shell=other)["broadcast"]["delivered_to"] == 1
    assert "main is green" in me("inbox").out
    assert check("inbox_topics", "inbox", "topics", "--unsubscribe", "builds")["topics"] == []
    check("inbox_ack", "inbox", "ack", "1")
    check("budget_show", "budget", "show", "--all")
    check("budget_set", "budget", "set", name, "6.00")
    check("pause", "pause", "task", third, "--reason", "wait for the release")
    check("resume", "resume", "task", third)
    check("pause", "pause", "group", "nightly")
    check("group_weight", "group", "weight", "nightly", "3")
    check("group_ls", "group", "ls")
    check("resume", "resume", "group", "nightly")
    check("pause", "pause", "swarm", name)
    check("swarm_drain", "swarm", "drain", name, "--grace", "10m", "--reason", "upgrade")
    assert "draining" in me("swarm", "show", name).out
    check("resume", "resume", "swarm", name)
    check("drain", "drain", "--grace", "10m", "--reason", "reboot")
    assert "draining by uid" in me("status").out
    check("drain", "drain", "--off")
    check("breaker_trip", "breaker", "trip", name, "--reason", "looks odd")
    check("breaker_ls", "breaker", "ls", "--tripped")
    check("breaker_show", "breaker", "show", name)
    check("status", "status")
    check("breaker_reset", "breaker", "reset", name, "--reason", "was fine")
    me.type(
        f'ifbus rpc governor.track_cost \'{{"swarm_id": "{name}", "operation": "llm", "cost_usd": "0.10", "model": "small"}}\''
    )
    for dimension in ("swarm", "task", "operation", "model", "hour"):
        check("cost_report", "cost", "report", "--by", dimension)
    check("witness_query", "witness", "query", "--limit", "200")
    check("witness_verify", "witness", "verify")
    check("guide", "guide")
    check("rpc", "rpc", "daemon.describe")
    check("help", "help", "stale_token")
    check("completion", "completion", "zsh")
    check("dry_run", "task", "add", "never", "--dry-run")
    assert "never" not in me("task", "ls", "--grep", "never", "-q").out


def test_an_explanation_has_every_check(new_swarm: Callable[..., Shell]) -> None:
    """`why` names each check with its figures and what would change it; exit 3 while the answer is no."""
    me = new_swarm("--budget-usd", "0.10")
    task_id = me.new_task("Deploy", "--need", "infra:networking", "--estimate-usd", "0.90")
    ran = me("why", task_id)
    assert ran.exit == 3
    assert ran.out.startswith("no: 2 of ")
    assert "lacks infra:networking" in ran.out
    assert "would change: " in ran.out
    as_json = me("why", task_id, "--json")
    validate(as_json.data, "why")
    assert me("why", me.new_task("Write", "--need", "docs:writing")).exit == 0


def test_importing_a_board_twice_changes_nothing(shell: Shell) -> None:
    """18 tasks with dependencies come in; again, none is new."""
    assert shell("task", "import", str(BOARD), "--usd-per-hour", "0.10").out.startswith("18 tasks created")
    again = shell("task", "import", "-", stdin=BOARD.read_text(encoding="utf-8"))
    assert (again.exit, again.out.split("    ")[0]) == (0, "0 tasks created, 18 there already")
    task = shell("task", "show", "P0.1.2", "--json").data["task"]
    assert (task["state"], task["waits_for"], task["estimate_usd"]) == ("waiting", ["P0.1.1"], "0.20")


def test_lists_say_how_many_of_how_many(shell: Shell) -> None:
    """A page says what it left out and how to go on; going on shows the rest."""
    for number in range(3):
        shell("task", "add", f"paged {number}")
    first = shell("task", "ls", "--grep", "paged", "--limit", "2")
    said = first.out.splitlines()[-1]
    assert said.startswith("2 of 3 tasks, more: --after ")
    rest = shell("task", "ls", "--grep", "paged", "--limit", "2", "--after", said.split()[-1], "--json").document
    assert (rest["page"]["returned"], rest["page"]["next"]) == (1, None)


def test_nothing_found_is_no_error(shell: Shell) -> None:
    """An empty list exits with 0 and says how many there are in all; its JSON has the usual shape."""
    ran = shell("task", "ls", "--grep", "no such words")
    assert ran.exit == 0
    assert ran.out.startswith("no task ")
    document = shell("task", "ls", "--grep", "no such words", "--json").document
    assert (document["data"]["tasks"], document["page"]["returned"]) == ([], 0)


def test_fields_and_ids_alone(shell: Shell) -> None:
    """`--fields` gives just these columns, `-q` just the ids; an unknown field is refused."""
    task_id = shell.new_task("fields alone")
    assert shell("task", "ls", "--grep", "fields alone", "-q").out == f"{task_id}\n"
    assert shell("task", "ls", "--grep", "fields alone", "--fields", "id,state").out.split() == [
        "TASK_ID", "STATE", task_id, "ready",
    ]  # fmt: skip
    assert shell("task", "show", task_id, "--json", "--fields", "id,state").data == {
        "task": {"task_id": task_id, "state": "ready"}
    }
    assert shell("task", "ls", "--fields", "colour").exit == 2


def test_the_same_key_has_the_effect_of_one(shell: Shell) -> None:
    """A change sent twice under one key happens once and says so; another body under it is refused."""
    first = shell("task", "add", "only once", "--key", "k-once", "--json").data
    again = shell("task", "add", "only once", "--key", "k-once", "--json").data
    assert again["task"]["task_id"] == first["task"]["task_id"]
    assert again["receipt"]["replayed"] is True
    other = shell("task", "add", "something else", "--key", "k-once", "--json")
    assert (other.exit, other.error["code"]) == (2, "idempotency_conflict")


def test_a_blocker_is_resolved_by_task_or_by_id(me: Shell, new_swarm: Callable[..., Shell]) -> None:
    """Who can help ends a blocker; the task is ready again and its reporter hears what was said."""
    helper = new_swarm()
    task_id = me.new_task("open a port", "--need", "docs:writing")
    said = me("task", "blocked", me.claim(task_id), "which port?", "--need", "docs:writing", "--release")
    blocker = re.findall(r"B-\w+", said.out)[0]
    assert f"when it is resolved: ifbus task unblock {blocker} --note TEXT" in said.out
    assert me("task", "show", task_id, "--json").data["task"]["state"] == "blocked"
    assert {task_id, blocker} <= set(helper("__complete", "blocker").out.split())
    assert f"{task_id} blocked" in me("status").out
    done = helper("task", "unblock", task_id, "--note", "take 8080")
    assert (done.exit, done.out.split("    ")[0]) == (0, f"{task_id} ready")
    assert "take 8080" in me("inbox").out
    again = helper("task", "unblock", task_id)
    assert (again.exit, "nothing blocks it" in again.err) == (4, True)
    # A task may have more than one: then the id says which.
    handle = me.claim(task_id)
    first, second = (
        re.findall(r"B-\w+", me("task", "blocked", handle, reason).out)[0] for reason in ("which host?", "which user?")
    )
    both = me("task", "unblock", task_id)
    assert (both.exit, first in both.err, second in both.err) == (2, True, True)
    for blocker in (first, second):
        assert me("task", "unblock", blocker).exit == 0


def test_a_live_session_shows_as_alive(shell: Shell) -> None:
    """`swarm ls`, `swarm show` and `status` tell a swarm with a session from one without."""
    before = shell("status", "--json").data["swarms"]["alive"]
    shell("swarm", "register", "quiet", "--can", "a:b")
    inside = ("run", "--swarm", "lively", "--can", "a:b", "--", "ifbus", "status", "--json")
    # `ifbus run` talks on stderr, the command that it starts does not.
    assert shell(*inside)._replace(err="").data["swarms"]["alive"] == before + 1
    shown = shell("run", "--swarm", "lively", "--", "ifbus", "swarm", "show", "lively")
    assert shown.out.startswith("lively alive")
    alive = {
        swarm["swarm_id"]: swarm["alive"] for swarm in shell("swarm", "ls", "--json", "--limit", "200").data["swarms"]
    }
    assert (alive["lively"], alive["quiet"]) == (False, False)
    assert shell("swarm", "show", "lively").out.startswith("lively silent")
    assert shell("swarm", "show", "quiet").out.startswith("quiet has no session yet")


def test_attention_ends_the_answer(me: Shell) -> None:
    """What the swarm still holds is said at the end of any other answer, in JSON beside the data."""
    handle = me.claim(me.new_task("held", "--need", "docs:writing"))
    assert me("inbox").out.splitlines()[-1] == f"! you still hold {handle}"
    (item,) = me("inbox", "--json").document["attention"]
    assert item["handle"] == handle
    assert "!" not in me("task", "progress", handle, "10").out


def test_what_a_claim_suggests_works_for_a_swarm_named_by_a_flag(me: Shell, shell: Shell) -> None:
    """Without IFBUS_SWARM the follow-ups of a claim repeat the flag, and work as printed."""
    task_id = me.new_task("flagged", "--need", "docs:writing")
    claimed = shell("task", "claim", task_id, "--swarm", str(me.swarm))
    progress, complete, blocked = claimed.out.split("next: ")[1].strip().split(" | ")
    assert shell.type(progress).exit == 0
    assert blocked.endswith(f' "why" --swarm {me.swarm}')
    assert shell.type(complete.replace("JSON", "1")).exit == 0
    assert "--swarm" not in me("task", "claim", me.new_task("named", "--need", "docs:writing")).out


def test_answers_stay_under_their_ceilings(me: Shell) -> None:
    """What an agent pays for: next 400 bytes, a refusal 500, status 900, guide 2 KiB."""
    me.new_task("A title of the usual length, as people write them", "--need", "docs:writing", "--priority", "100")
    won = me("task", "next")
    assert won.exit == 0
    assert len(won.out.encode()) <= 400
    me.new_task("Another", "--need", "docs:writing")
    refused = me.as_swarm("swarm-1")("task", "claim", won.out.split("@")[0], "--swarm", str(me.swarm))
    lost = me(
        "task", "claim", me.new_task("Deploy", "--need", "infra:a,infra:b,infra:c,infra:d", "--estimate-usd", "7")
    )
    assert lost.exit == 3
    for ran in (refused, lost):
        assert len(ran.err.encode()) <= 500
    assert len(me("status").out.encode()) <= 900
    assert len(me("guide").out.encode()) <= 2048


def test_guide_opens_with_the_swarms_own_state(me: Shell, shell: Shell) -> None:
    """A swarm reads who it is, what it holds and what it may spend; a stranger reads how to get a name."""
    handle = me.claim(me.new_task("guided", "--need", "docs:writing", "--estimate-usd", "0.31"))
    assert me("guide").out.splitlines()[0] == f"you are {me.swarm}, you hold {handle}, 0.69 USD left, 0 letters"
    assert shell("guide").out.startswith("you have no name here")
    assert "which nobody registered" in shell("guide", "--swarm", "nobody").out


def test_status_with_check_finds_a_tripped_breaker(new_swarm: Callable[..., Shell]) -> None:
    """`status` exits with 0 whatever it says; with --check an open alarm is 8."""
    me = new_swarm("--budget-usd", "1")
    me("breaker", "trip", str(me.swarm), "--reason", "looks odd")
    plain, checked = me("status"), me("status", "--check")
    assert (plain.exit, checked.exit) == (0, 8)
    assert f"! {me.swarm} tripped" in plain.out
    assert f"ifbus breaker show {me.swarm}" in plain.out
    me("breaker", "reset", str(me.swarm), "--reason", "was fine")


def test_a_tampered_store_is_found_without_its_daemon(tmp_path: Path) -> None:
    """`witness verify --state` checks a stopped daemon's files; one flipped byte is exit 8 and a place."""
    state = tmp_path / "state"
    with daemon(state_dir=state) as running:
        shell = Shell(running.socket)
        for number in range(5):
            assert shell("task", "add", f"watched {number}").exit == 0
    sound = shell("witness", "verify", "--state", str(state), "--json")
    validate(sound.data, "witness_verify")
    assert (sound.exit, sound.data["ok"]) == (0, True)
    database = state / "ifbusd.db"
    content = bytearray(database.read_bytes())
    at = content.index(b"watched 2")
    content[at] ^= 1
    database.write_bytes(content)
    touched = shell("witness", "verify", "--state", str(state))
    assert touched.exit == 8
    assert touched.out.startswith("witness verify: FAILED")
    assert "  entry " in touched.out or "  file: " in touched.out


def test_completion_knows_the_ids_of_now(shell: Shell) -> None:
    """The shell's TAB gets task ids, swarm names and error codes; without a daemon it gets nothing, silently."""
    task_id = shell.new_task("to be completed by a TAB")
    assert task_id in shell("__complete", "task").out.split()
    assert "stale_token" in shell("__complete", "code").out.split()
    silent = shell("__complete", "task", env={"IFBUS_SOCKET": "/nonexistent/x.sock"})
    assert (silent.out, silent.err) == ("", "")


def test_bash_completes_ids(shell: Shell) -> None:
    """The committed script, loaded by a real bash, completes a task's id."""
    import subprocess

    task_id = shell.new_task("tabbed")
    script = (
        "source <(ifbus completion bash); COMP_WORDS=(ifbus task claim ''); COMP_CWORD=3; COMP_LINE='ifbus task claim ';"
        " COMP_POINT=${#COMP_LINE}; _shtab_ifbus; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["bash", "-c", script], env=shell.environ(), capture_output=True, text=True, timeout=60, check=False
    )
    assert task_id in done.stdout.split(), done


def test_a_reader_that_has_enough_is_fine(shell: Shell) -> None:
    """`ifbus ... | head -1` ends without a complaint."""
    import subprocess

    done = subprocess.run(
        ["bash", "-c", "ifbus help | head -1; echo ${PIPESTATUS[0]}"],
        env=shell.environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")


def test_a_result_can_come_from_stdin(me: Shell) -> None:
    """`--result -` reads the JSON from stdin; what is no JSON is refused before anything is sent."""
    handle = me.claim(me.new_task("piped", "--need", "docs:writing"))
    assert me("task", "complete", handle, "--result", "-", stdin="{").exit == 2
    digest = hashlib.sha256(b"x").hexdigest()
    done = me("task", "complete", handle, "--result", "-", "--json", stdin=f'{{"sha": "{digest}"}}')
    assert done.data["task"]["result"] == {"sha": digest}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.toml",
            '[[task]]\nid = "{0}-2"\ntitle = "b"\ndepends_on = ["{0}-1"]\n\n[[task]]\nid = "{0}-1"\ntitle = "a"\n',
        ),
        ("a.yaml", "- id: {0}-2\n  title: b\n  depends_on: [{0}-1]\n- id: {0}-1\n  title: a\n"),
    ],
)
def test_a_list_of_tasks_is_imported_once(shell: Shell, tmp_path: Path, name: str, text: str) -> None:
    """A dry run creates nothing, the first import all, the second nothing; a mistake is refused with its line and creates nothing."""
    path, word = tmp_path / name, name.replace(".", "-")
    path.write_text(text.format(word), encoding="utf-8")
    dry = shell("task", "import", str(path), "--dry-run")
    assert f"{word}-1" in dry.out
    assert shell("task", "show", f"{word}-1").exit == 4
    assert shell("task", "import", str(path)).out.startswith("2 tasks created")
    assert f"waits for: {word}-1" in shell("task", "show", f"{word}-2").out
    assert shell("task", "import", str(path)).out.startswith("0 tasks created, 2 there already")
    path.write_text(text.format("other") + "nonsense", encoding="utf-8")
    said = shell("task", "import", str(path))
    assert said.exit == 2
    assert "line " in said.err
    assert shell("task", "show", "other-1").exit == 4


def test_a_list_may_depend_on_tasks_of_the_daemon(shell: Shell) -> None:
    """What neither the list nor the daemon knows is refused with its line, and creates nothing."""
    text = "[[task]]\nid = 'far-2'\ntitle = 'b'\n\n[[task]]\nid = 'far-3'\ntitle = 'c'\ndepends_on = ['far-1']\n"
    said = shell("task", "import", "-", "--format", "toml", stdin=text)
    assert said.exit == 2
    assert "line 5: task far-3 waits for far-1, which is neither on the board nor in the daemon" in said.err
    assert shell("task", "show", "far-2").exit == 4
    assert shell("task", "add", "a", "--id", "far-1").exit == 0
    assert shell("task", "import", "-", "--format", "toml", stdin=text).out.startswith("2 tasks created")
    assert "waits for: far-1" in shell("task", "show", "far-3").out
