"""What is generated from the commands is fresh, and the schemas are schemas."""

import json
from pathlib import Path

import attrs
import jsonschema
import pytest

import ifbus.schemas
from ifbus import models
from ifbus.cli import grammar, reference
from ifbus.cli.commands import TASK_FIELDS, budget, inbox, swarm
from ifbus.cli.commands.completion import FOLDER, SHELLS
from ifbus.completion.generate import generate

DOCS = Path(__file__).parents[3] / "docs"
SCHEMAS = Path(ifbus.schemas.__file__).parent


def test_the_commands_page_is_fresh() -> None:
    """docs/commands.md is what the commands say of themselves: `python -m ifbus.cli.reference docs`."""
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == reference.commands_markdown()


def test_the_commands_page_has_every_command() -> None:
    """The demo, too, which has no definition of its own."""
    headings = {line.split()[2] for line in reference.commands_markdown().splitlines() if line.startswith("## ifbus ")}
    assert headings == set(grammar.NOUNS)


def test_the_messages_page_is_fresh() -> None:
    """docs/messages.md is the catalogue: `python -m ifbus.cli.reference docs`."""
    assert (DOCS / "messages.md").read_text(encoding="utf-8") == reference.messages_markdown()


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts_are_fresh(shell: str) -> None:
    """The committed scripts know the commands of now: `python -m ifbus.completion.generate`."""
    assert (FOLDER / SHELLS[shell]).read_text(encoding="utf-8") == generate(shell)


def test_each_command_has_a_schema() -> None:
    """Every command's data has a committed schema, and every schema belongs to a command."""
    commands = {command.words.replace(" ", "_") for command in reference.all_commands()}
    assert {path.stem for path in SCHEMAS.glob("*.json")} == commands | {"defs", "envelope", "dry_run"}


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_each_schema_is_valid(path: Path) -> None:
    """The committed schemas are JSON schemas themselves."""
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("model", "columns"),
    [
        (models.Task, TASK_FIELDS),
        (models.SwarmProfile, swarm.SWARM_FIELDS),
        (models.BudgetReport, budget.REPORT_FIELDS),
        (models.InboxMessage, inbox.MESSAGE_FIELDS),
    ],
)
def test_fields_can_be_chosen_as_the_library_names_them(model: type[models.Model], columns: tuple[str, ...]) -> None:
    """`--fields` takes every field of the models, so that the list here cannot fall behind."""
    assert {field.name for field in attrs.fields(model)} <= set(columns)  # type: ignore[arg-type]


def test_the_guide_stays_under_its_ceiling() -> None:
    """`ifbus guide` has at most 2 KiB, whatever the swarm holds."""
    from ifbus.cli.commands.guide import render_guide
    from ifbus.cli.text import View

    you = {
        "swarm_id": "x" * 64,
        "registered": True,
        "holds": [f"{'t' * 40}@{number}" for number in range(50)],
        "free_usd": "999999.999999",
        "letters": 200,
        "daemon": True,
    }
    assert len("\n".join(render_guide({"you": you}, View(now_ms=0))).encode()) <= 2048
