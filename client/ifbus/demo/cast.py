"""Who plays. Costs and budgets are such that one swarm runs out of money and one meets a blocker."""

from __future__ import annotations

from typing import Final, NamedTuple


class Part(NamedTuple):
    """One swarm of the play.

    Attributes:
        is_pushed: It waits for tasks that are pushed into its inbox; the others take the next one that fits.
        blocked_on: The task on which it cannot go on without help.
        llm_usd: What one task really costs it; scout's is more than it can pay.
        think_s: How long one step takes: the language model, which the play does not have.
    """

    name: str
    capabilities: tuple[str, ...]
    cost_per_hour_usd: str
    budget_usd: str
    is_pushed: bool = False
    blocked_on: str = ""
    llm_usd: str = "0.03"
    think_s: float = 0.06


CAST: Final = (
    Part(
        "infra-1",
        (
            "infra:distributed-systems",
            "infra:networking",
            "code-analysis:python",
            "testing:performance",
            "testing:integration",
        ),
        "1.20",
        "5.00",
        is_pushed=True,
    ),
    Part(
        "python-1",
        ("code-analysis:python", "architecture:patterns", "testing:unit", "docs:api-design"),
        "1.00",
        "5.00",
        is_pushed=True,
    ),
    Part(
        "security-1",
        ("architecture:security", "code-analysis:rust", "code-analysis:python"),
        "1.50",
        "5.00",
        blocked_on="P0.3.1",
    ),
    Part("monitor-1", ("coordination:monitoring", "testing:performance", "code-analysis:python"), "0.80", "5.00"),
    Part("docs-1", ("docs:technical-writing", "docs:api-design"), "0.40", "2.00", is_pushed=True),
    Part("scout", ("code-analysis:python", "architecture:patterns"), "0.20", "0.25", llm_usd="0.30"),
)
ORCHESTRATOR: Final = "orchestrator"
# What an hour of the board's estimates is reckoned at; reserved when a task is claimed.
ESTIMATE_USD_PER_HOUR: Final = "0.05"
# The security swarm's blocker: who can help is found by these.
BLOCKER_NEEDS: Final = ("infra:networking",)


def part(name: str) -> Part:
    """The part of this name."""
    return next(part for part in CAST if part.name == name)
