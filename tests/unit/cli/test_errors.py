"""Exit codes, the catalogue, refusals as people and programs read them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus import errors
from ifbus.catalogue import CATALOGUE, remedies
from ifbus.cli import grammar, main, output
from ifbus.cli.exits import MEANING, exit_code
from ifbus.cli.text import View

VIEW = View(now_ms=0)

TABLE = {
    0: [],
    1: ["internal", "protocol_error"],
    2: [
        "usage", "handle_required", "invalid_request", "unknown_method", "invalid_params", "invalid_module",
        "config_invalid", "idempotency_conflict", "version_mismatch",
    ],
    3: [
        "already_claimed", "already_exists", "not_ready", "paused", "at_capacity", "not_qualified", "not_owner", "budget_exceeded",
        "breaker_tripped", "limit_exceeded", "compile_limit", "guest_failed", "resource_busy", "would_deadlock", "not_kept",
    ],
    4: ["not_found"],
    5: ["permission_denied"],
    6: ["stale_token", "lease_lost", "cancelled"],
    9: ["no_daemon", "daemon_not_running", "daemon_dead_socket", "socket_denied", "socket_blocked"],
    10: ["overloaded", "unavailable", "deadline_exceeded", "connection_lost"],
}  # fmt: skip


def test_every_code_has_its_exit() -> None:
    """The table of UX 4, code by code, and no code without a place in it."""
    assert {code: number for number, codes in TABLE.items() for code in codes} == {
        code: exit_code(code) for code in errors.BY_CODE
    }
    assert set(TABLE) <= set(MEANING)


def test_waiting_in_vain_is_not_yet() -> None:
    """Who waited, or asked for the next one, hears "not yet" instead of "refused"."""
    assert exit_code("not_ready", waited=True) == 7
    assert exit_code("already_claimed", waited=True) == 7
    assert exit_code("budget_exceeded", waited=True) == 3


def test_every_code_is_in_the_catalogue() -> None:
    """`ifbus help CODE` knows every error, and nothing that is none."""
    assert set(CATALOGUE) == set(errors.BY_CODE)


@pytest.mark.parametrize("code", CATALOGUE)
def test_every_remedy_is_a_command_that_exists(code: str) -> None:
    """Each `ifbus` remedy begins with a real command."""
    for remedy in remedies(code, {"command": "task ls", "typed": "task ls"}):
        words = remedy.split()
        if words[0] == "ifbus":
            grammar.resolve(words[1:])


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_remedies_fill_in_any_figures(figures: dict[str, object]) -> None:
    """Missing or odd figures never break a remedy."""
    for code in CATALOGUE:
        assert all(
            "{" not in remedy or any("{" in str(value) for value in figures.values())
            for remedy in remedies(code, figures)
        )


def test_a_lost_claim_reads_as_in_the_spec() -> None:
    """Owner, time, fence, progress and lease in one line, then what would change it, then what else fits."""
    error = errors.AlreadyClaimed(
        "cannot claim T-7: docs-2 holds it",
        data={
            "owner": "docs-2",
            "token": 41,
            "held_ms": 240_000,
            "percent": 50,
            "lease_left_ms": 26_000,
            "instead": {"what": "T-9 fits you (estimate 0.30 USD)", "call": "ifbus task claim T-9"},
        },
        would_change=[
            {"by": "other", "what": "docs-2 completes or lets go", "call": "ifbus task claim T-7 --wait 10m"}
        ],
    )
    assert output.render_error(error, VIEW, subject="T-7") == [
        "refused T-7: already_claimed    held by docs-2 for 4 min (fence 41), at 50 %, lease ends in 26 s unless renewed",
        "  would change: docs-2 completes or lets go: ifbus task claim T-7 --wait 10m",
        "  instead: T-9 fits you (estimate 0.30 USD): ifbus task claim T-9",
    ]


@pytest.mark.parametrize(
    ("call", "repeated"),
    [
        ("ifbus task claim T-7 --wait 10m", "ifbus task claim T-7 --wait 10m --swarm bob"),
        ("ifbus task next", "ifbus task next --swarm bob"),
        ("ifbus task next --swarm ann", "ifbus task next --swarm ann"),
        ("ifbus task show T-7", "ifbus task show T-7"),
        ("ifbus run --swarm ann -- bash", "ifbus run --swarm ann -- bash"),
        ("ifbus task progress --help", "ifbus task progress --help"),
        ("ifbus demo", "ifbus demo"),
        ("ifbus moon phase", "ifbus moon phase"),
        ("pip install ifbus", "pip install ifbus"),
    ],
)
def test_what_is_suggested_acts_for_the_swarm_of_the_flag(call: str, repeated: str) -> None:
    """A follow-up repeats ``--swarm`` where its command takes it, in text and JSON, so that it works as printed."""
    error = errors.AlreadyClaimed(
        "held",
        data={"instead": {"what": "x", "call": call}, "example": call},
        would_change=[{"by": "other", "what": "y", "call": call}],
    )
    output.repeat_swarm(error, " --swarm bob")
    assert error.would_change[0]["call"] == repeated
    assert error.data["instead"]["call"] == repeated
    assert error.data["example"] == repeated
    assert output.for_swarm(call, "") == call


def test_a_catalogue_remedy_repeats_the_flag() -> None:
    """The remedies that every error of a code has act for the same swarm, too."""
    lines = output.render_error(errors.LeaseLost("gone"), VIEW._replace(swarm_flag=" --swarm bob"))
    assert lines[-1] == "  try: ifbus task next --swarm bob"


def test_run_without_a_name_shows_the_flag_before_the_dashes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is behind ``--`` is the program's; the name belongs before it."""
    monkeypatch.delenv("IFBUS_SWARM", raising=False)
    assert main(["run", "--", "true"]) == 2
    example = capsys.readouterr().err.split("example: ")[1]
    assert example.index("--swarm") < example.index(" -- ")
    assert example.count("--swarm") == 1


def test_a_state_directory_that_is_not_there_is_not_answered_with_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    """The remedy of a missing file names a directory, no task."""
    assert main(["witness", "verify", "--state", "/nosuch"]) == 4
    err = capsys.readouterr().err
    assert "example: ifbus witness verify --state /var/lib/ifbusd" in err
    assert "task" not in err


def test_a_large_refusal_stays_under_its_ceiling() -> None:
    """A refusal has at most 500 bytes, and says what it left out."""
    error = errors.NotQualified(
        "x" * 1000, would_change=[{"by": "self", "what": "w" * 50, "call": "ifbus task next"}] * 9
    )
    text = "\n".join(output.render_error(error, VIEW, subject="T-7"))
    assert len(text.encode()) <= 500
    assert "7 more with --json" in text
    assert "1000 characters" in text


def test_no_daemon_says_what_to_type_in_one_line() -> None:
    """The causes of "no daemon" carry their remedy behind them."""
    error = errors.DaemonNotRunning(
        "nothing at /run/x", would_change=[{"by": "self", "what": "start one", "call": "ifbusd --dev"}]
    )
    assert output.render_error(error, VIEW) == ["daemon_not_running: nothing at /run/x    try: ifbusd --dev"]


def test_an_error_of_a_newer_daemon_keeps_its_code() -> None:
    """A code that this command does not know is passed on, not renamed."""
    error = errors.from_wire({"code": "moon_phase", "message": "wrong moon", "data": {}})
    assert output.envelope_of_error(error, [])["error"]["code"] == "moon_phase"
    assert output.render_error(error, VIEW)[0].startswith("moon_phase: wrong moon")


@pytest.mark.parametrize("words", [["task", "deliver"], ["task", "ls", "--nope"], ["help", "no_such_code"]])
def test_json_failures_are_one_line_on_stdout(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With --json a failure is one document on stdout, and stderr stays empty."""
    assert main([*words, "--json"]) in (2, 4)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    assert json.loads(captured.out)["ok"] is False


@pytest.mark.parametrize("code", CATALOGUE)
def test_help_explains_every_code_offline(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`ifbus help CODE` needs no daemon."""
    assert main(["help", code]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{code}: ")
    assert f"exit {exit_code(code)}" in out
