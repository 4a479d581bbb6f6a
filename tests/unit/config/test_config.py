"""The configuration: what is taken, what is refused, and how the refusal reads."""

from __future__ import annotations

import contextlib
import grp
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifbus.errors import ConfigInvalid
from ifbusd.chassis.model import CompileProfile
from ifbusd.config import MAX_FILE_BYTES, MAX_PROBLEMS, Config, DaemonConfig, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ifbusd.toml"


def refusal(file: Path, text: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        load(file, {})
    return caught.value.message.splitlines()


def test_no_file_gives_the_defaults() -> None:
    """Without a file every key has its default."""
    assert load(None, {}) == Config()


def test_values_of_every_kind_are_taken(file: Path) -> None:
    """A right file changes what it names and nothing else."""
    file.write_text(
        """
        [daemon]
        state_dir = "/srv/ifbusd"
        socket_mode = 0o600
        log_format = "json"
        [operators]
        uids = [0, 1000]
        [governor]
        threshold = 1
        max_self_budget_usd = "10.50"
        [rpc]
        nesting = 16
        """
    )
    config = load(file, {})
    assert config.daemon == attrs.evolve(
        Config().daemon, state_dir=Path("/srv/ifbusd"), socket_mode=0o600, log_format="json"
    )
    assert config.operators.uids == (0, 1000)
    assert config.governor.threshold == 1.0
    assert config.governor.max_self_budget_micro_usd == 10_500_000
    assert config.rpc.nesting == 16
    assert config.store == Config().store


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[rpc]\nnestign = 3", "line 2: rpc.nestign: unknown key; did you mean nesting?"),
        ("[rcp]\nnesting = 3", "line 1: rcp: unknown key; did you mean rpc?"),
        ("rpc = 3", "line 1: rpc: expected a table, got 3"),
        ("operators = 'groups'", "line 1: operators: expected a table, got 'groups'"),
        ("[daemon]\ngrace_ms = true", "line 2: daemon.grace_ms: expected a whole number, got true"),
        ("[daemon]\ngrace_ms = 1.9", "line 2: daemon.grace_ms: expected a whole number, got 1.9"),
        ("[daemon]\ngrace_ms = 'many'", "line 2: daemon.grace_ms: expected a whole number, got 'many'"),
        ("[daemon]\ngrace_ms = -1", "line 2: daemon.grace_ms: expected >= 0, got -1"),
        ("daemon.grace_ms = -1", "line 1: daemon.grace_ms: expected >= 0, got -1"),
        (
            "[daemon]\nsocket_mode = 660",
            "line 2: daemon.socket_mode: expected octal permissions, 0o600 to 0o777, got 0o1224 (660)",
        ),
        (
            "[daemon]\nsocket_mode = 0o440",
            "line 2: daemon.socket_mode: expected octal permissions, 0o600 to 0o777, got 0o440 (288)",
        ),
        ("[daemon]\nsocket = 'run/s'", "line 2: daemon.socket: expected an absolute path in quotes, got 'run/s'"),
        (
            f"[daemon]\nsocket = '/{'s' * 200}'",
            "line 2: daemon.socket: expected a path of at most 107 bytes, got 201",
        ),
        (
            "[daemon]\nlog_format = 'xml'",
            "line 2: daemon.log_format: expected one of 'auto', 'text', 'json', got 'xml'",
        ),
        ("[daemon]\nsocket_group = 1", "line 2: daemon.socket_group: expected a text in quotes, got 1"),
        ("[operators]\nuids = 0", "line 2: operators.uids: expected a list, got 0"),
        ("[operators]\ngroups = 'wheel'", "line 2: operators.groups: expected a list, got 'wheel'"),
        ("[operators]\nuids = [-1]", "line 2: operators.uids: expected >= 0, got -1"),
        ("[operators]\nuids = ['root']", "line 2: operators.uids: expected a whole number, got 'root'"),
        ("[governor]\nthreshold = 'most'", "line 2: governor.threshold: expected a number, got 'most'"),
        ("[governor]\nthreshold = nan", "line 2: governor.threshold: expected a number, got nan"),
        ("[governor]\nthreshold = 0", "line 2: governor.threshold: expected > 0, got 0.0"),
    ],
)
def test_a_problem_names_line_key_and_expected_value(file: Path, text: str, said: str) -> None:
    """One wrong value gives one sentence: file, line, key, what is expected, what was found."""
    assert refusal(file, text) == [f"{file} {said}"]


def test_an_amount_is_a_decimal_string(file: Path) -> None:
    """Money in binary floats is refused, as it is on the wire."""
    for wrong in ("0.1", "'1e9'", "true"):
        said = refusal(file, f"[governor]\nmax_self_budget_usd = {wrong}")[0]
        assert "line 2: governor.max_self_budget_usd: an amount of dollars is a string such as '0.05'" in said


def test_a_rule_over_several_keys_is_the_tables_problem(file: Path) -> None:
    """Values that are right alone and wrong together are named with their table."""
    assert refusal(file, "[coordinator]\nmin_lease_ms = 25_000\nlease_ms = 20_000") == [
        f"{file} line 1: coordinator: expected min_lease_ms <= lease_ms <= max_lease_ms"
    ]


def test_all_problems_of_a_file_are_named_at_once(file: Path) -> None:
    """Mistakes in several tables, types, ranges and names come in one answer, in the order of the lines."""
    said = refusal(file, "[rpc]\nnesting = 1\nin_flight = 0\n[daemon]\nsokcet = '/x'\ngrace_ms = 'a'\n[stroe]\n")
    assert [line.split(": ")[1] for line in said] == [
        "rpc.nesting",
        "rpc.in_flight",
        "daemon.sokcet",
        "daemon.grace_ms",
        "stroe",
    ]


def test_a_file_of_another_kind_has_a_bounded_answer(file: Path) -> None:
    """Thousands of unknown keys are counted, not listed."""
    said = refusal(file, "".join(f"k{n} = 1\n" for n in range(5000)))
    assert len(said) == MAX_PROBLEMS + 1
    assert said[-1].endswith("and 4950 more")


@pytest.mark.parametrize(
    "content",
    [b"[daemon", b"\xff\xfe", b"a = " + b"[" * 5000, b"a = 1" + b"0" * 9000, b"#" * (MAX_FILE_BYTES + 1)],
    ids=["no TOML", "no UTF-8", "nested", "long number", "large"],
)
def test_what_is_no_configuration_file_is_refused(file: Path, content: bytes) -> None:
    """Bytes that are no TOML, no UTF-8 or far too many are one problem, never a traceback."""
    file.write_bytes(content)
    with pytest.raises(ConfigInvalid, match=str(file)):
        load(file, {})


def test_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    """A missing file that was asked for is an error, not the defaults."""
    with pytest.raises(ConfigInvalid, match="No such file"):
        load(file, {})


def test_a_group_that_is_not_on_this_host_is_refused(file: Path) -> None:
    """A misspelt operator group would silently take the role from everybody."""
    present = grp.getgrgid(0).gr_name
    said = refusal(file, f"[operators]\ngroups = ['{present}x']\n[daemon]\nsocket_group = 'no-such-group'")
    assert said[0].endswith(
        f"operators.groups: expected a group of this host, got '{present}x'; did you mean {present}?"
    )
    assert "daemon.socket_group: expected a group of this host, got 'no-such-group'" in said[1]


def test_operator_groups_become_ids(file: Path) -> None:
    """The groups of the file are resolved by the host's own names."""
    file.write_text(f"[operators]\ngroups = ['{grp.getgrgid(0).gr_name}']")
    assert load(file, {}).operators.gids() == frozenset({0})


def test_the_group_of_the_socket_becomes_its_id() -> None:
    """No group is the daemon's own; one that the host lacks is refused with the command that makes it."""
    assert DaemonConfig(socket_group="").socket_gid() is None
    assert DaemonConfig(socket_group=grp.getgrgid(0).gr_name).socket_gid() == 0
    with pytest.raises(ConfigInvalid, match="groupadd --system no-such-group"):
        DaemonConfig(socket_group="no-such-group").socket_gid()


def test_named_tables_are_merged_with_the_defaults(file: Path) -> None:
    """A profile of the file changes what it names, a new one starts from the strict defaults, the others stay."""
    file.write_text("[chassis.profiles.default]\nmodule_bytes = 2_000_000\n[chassis.profiles.mine]\nuids = [1000]")
    profiles = load(file, {}).chassis.profiles
    before = Config().chassis.profiles
    assert profiles == {
        **before,
        "default": attrs.evolve(before["default"], module_bytes=2_000_000),
        "mine": CompileProfile(uids=(1000,)),
    }
    assert "line 2: chassis.profiles.mine.cpu: unknown key" in refusal(file, "[chassis.profiles.mine]\ncpu = 1")[0]


def test_directories_of_the_service_manager_are_defaults(file: Path) -> None:
    """$STATE_DIRECTORY and $RUNTIME_DIRECTORY count where the file is silent."""
    environ = {"STATE_DIRECTORY": "/var/lib/mine:/var/lib/other", "RUNTIME_DIRECTORY": "/run/mine"}
    config = load(None, environ)
    assert (config.daemon.state_dir, config.daemon.socket) == (Path("/var/lib/mine"), Path("/run/mine/ifbusd.sock"))
    file.write_text("[daemon]\nstate_dir = '/srv/x'")
    config = load(file, environ)
    assert (config.daemon.state_dir, config.daemon.socket) == (Path("/srv/x"), Path("/run/mine/ifbusd.sock"))


_NAMES = st.sampled_from(["daemon", "rpc", "grace_ms", "uids", "governor", "threshold", "x", "'a b'"])
_VALUES = st.sampled_from(
    ["1", "-1", "true", "nan", "'x'", "[]", "[[1]]", "{}", "{a=1}", "1979-05-27", "0x7f", "[1,'a']"]
)


@given(
    lines=st.lists(st.one_of(st.builds("[{}]".format, _NAMES), st.builds("{} = {}".format, _NAMES, _VALUES), st.text()))
)
def test_any_text_gives_a_configuration_or_its_problems(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing but `ConfigInvalid` comes out of a wrong file."""
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    with contextlib.suppress(ConfigInvalid):
        assert isinstance(load(file, {}), Config)
