"""Which command somebody typed, or meant."""

import pytest

from ifbus.cli import _late, grammar, load
from ifbus.cli.command import make_parser
from ifbus.cli.reference import all_commands
from ifbus.errors import Usage

COMMANDS = [
    (noun, verb) if verb else (noun,) for noun, verbs in grammar.NOUNS.items() if noun != "demo" for verb in verbs or ("",)
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_command_is_defined_as_it_is_listed(words: tuple[str, ...]) -> None:
    """Every word of the grammar leads to a command of that name, with three examples that its own parser takes."""
    command = load(words)
    assert command.words == " ".join(words)
    assert len(command.examples) == 3
    assert not command.summary.endswith(".")
    make_parser(command)


def test_no_command_is_missing_from_the_grammar() -> None:
    """A module's commands are exactly the verbs that the grammar lists; there are at most 60."""
    defined: set[str] = set()
    for name in {grammar.module_of(words) for words in COMMANDS}:
        module = __import__(f"ifbus.cli.commands.{name}", fromlist=["COMMANDS"])
        defined |= {command.words for command in module.COMMANDS.values()}
    assert defined == {" ".join(words) for words in COMMANDS}
    assert len(list(all_commands())) + 1 <= 60


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("task list", ("task", "ls")),
        ("tasks", ("task", "ls")),
        ("task get T-7", ("task", "show")),
        ("task create x", ("task", "add")),
        ("task done T-7@41", ("task", "complete")),
        ("task finish T-7@41", ("task", "complete")),
        ("task close T-7@41", ("task", "complete")),
        ("budget", ("budget", "show")),
        ("inbox", ("inbox", "ls")),
        ("breaker close docs-2", ("breaker", "reset")),
        ("cost", ("cost", "report")),
        ("inbox subscribe builds", ("inbox", "topics")),
        ("inbox broadcast builds done", ("inbox", "send")),
        ("", ("help",)),
    ],
)
def test_likely_guesses_work(typed: str, meant: tuple[str, ...]) -> None:
    """What callers type without having read anything is understood."""
    assert grammar.resolve(typed.split())[0] == meant


def test_ready_means_ready_tasks() -> None:
    """`task ready` lists ready tasks, as in other trackers."""
    assert grammar.resolve(["task", "ready", "--json"]) == (("task", "ls"), ["--state", "ready", "--json"])


@pytest.mark.parametrize(
    ("typed", "nearest", "example"),
    [
        ("task deliver T-7", "ifbus task complete", "ifbus task complete T-7@41"),
        ("task compelte T-7", "ifbus task complete", "ifbus task complete T-7@41"),
        ("task T-7", "ifbus task show", "ifbus task show T-7"),
        ("claim T-7", "ifbus task claim", "ifbus task claim T-7"),
        ("next", "ifbus task next", "ifbus task next"),
        ("taks ls", "ifbus task ls", "ifbus task ls"),
        ("statsu", "ifbus status", "ifbus status"),
        ("breaker kill docs-2", "ifbus breaker trip", 'ifbus breaker trip docs-2 --reason "too dear"'),
        ("tool", "ifbus tool build", "ifbus tool build my_tool.py"),
    ],
)
def test_an_unknown_word_gets_the_nearest_form_and_an_example(typed: str, nearest: str, example: str) -> None:
    """An unknown word is refused with what was probably meant and one line to type."""
    with pytest.raises(Usage) as caught:
        grammar.resolve(typed.split())
    assert f"`{nearest}`" in caught.value.message
    assert caught.value.data["example"] == example


@pytest.mark.parametrize("typed", ["xyzzy", "task xyzzy", "\x1b[2J" + "x" * 60_000])
def test_nonsense_gets_the_choice(typed: str) -> None:
    """What resembles nothing is answered with what there is, shortly."""
    with pytest.raises(Usage) as caught:
        grammar.resolve(typed.split())
    assert len(caught.value.message) < 500
    assert caught.value.data["example"].startswith("ifbus ")


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words not in (("help",), ("completion",))], ids=" ".join
)
def test_the_example_of_each_command_parses(words: tuple[str, ...]) -> None:
    """The example that an error shows is a line that the parser takes."""
    import shlex

    from ifbus.cli import _split_at_dashes

    typed = shlex.split(grammar.example(words).removeprefix("ifbus "))
    found, rest = grammar.resolve(typed)
    assert found == words
    make_parser(load(words)).parse(_split_at_dashes(rest)[0])


def test_options_may_stand_before_the_noun() -> None:
    """`ifbus --json task ls` is `ifbus task ls --json`, and a program's own options stay behind its dashes."""
    assert _late(["--json", "task", "ls"]) == ["task", "ls", "--json"]
    assert _late(["--socket", "/s", "run", "--", "x", "--y"]) == ["run", "--socket", "/s", "--", "x", "--y"]
    assert _late(["--version"]) == ["help", "--version"]


def test_an_unknown_option_gets_the_nearest() -> None:
    """A misspelt option is refused with the one that exists."""
    with pytest.raises(Usage, match="no `--jsno` here; nearest: `--json`"):
        make_parser(load(("task", "ls"))).parse(["--jsno"])


@pytest.mark.parametrize("flag", ["--mine", "--name", "--all", "-x", "--" + "x" * 10_000])
def test_a_far_fetched_option_is_not_suggested(flag: str) -> None:
    """What resembles no option gets the example alone."""
    with pytest.raises(Usage, match="no `-") as caught:
        make_parser(load(("task", "ls"))).parse([flag])
    assert "nearest" not in caught.value.message
    assert caught.value.data["example"].startswith("ifbus task ls")
