"""What methods answer that is more than one of the `models`: pages, reports, endings. Frozen, read from the wire's maps."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import attrs

from ifbus import errors
from ifbus.errors import IfbusError, WouldChange
from ifbus.models import (
    BudgetReport,
    CapabilityMatch,
    InboxMessage,
    Model,
    Question,
    Receipt,
    ResourceLock,
    SwarmProfile,
    Task,
    TaskClaim,
    to_decimal,
    to_strings,
)

_RECEIPT = {"model": Receipt}


@attrs.frozen(kw_only=True, repr=False)
class Refusal(Model):
    """A claim that was not won. It is false in a condition, because losing a race is no error.

    Attributes:
        code: Why, as a stable code such as ``already_claimed`` or ``not_ready``.
        message: One sentence with the figures.
        data: The figures, and in ``would_change`` what would turn the answer.
    """

    code: str
    message: str = ""
    data: dict[str, Any] = attrs.field(factory=dict)

    def __bool__(self) -> Literal[False]:
        return False

    @property
    def would_change(self) -> list[WouldChange]:
        """What would turn the answer; empty where nothing the caller could name would."""
        changes: list[WouldChange] = self.data.get("would_change", [])
        return changes

    def to_error(self) -> IfbusError:
        """The same as an exception, for who wants to raise it."""
        return errors.from_wire({"code": self.code, "message": self.message, "data": self.data})


@attrs.frozen(kw_only=True, repr=False)
class TaskPage(Model):
    """Some tasks, how many match in all, and the id to go on after (None at the end).

    Attributes:
        counts: Number of tasks by state.
        revision: As of which they are, or later.
    """

    tasks: tuple[Task, ...] = attrs.field(metadata={"models": Task})
    total: int
    next: str | None = None
    counts: dict[str, int] = attrs.field(factory=dict)
    revision: int = 0


@attrs.frozen(kw_only=True, repr=False)
class SwarmPage(Model):
    """Some swarms by name, how many there are, and the name to go on after (None at the end)."""

    swarms: tuple[SwarmProfile, ...] = attrs.field(metadata={"models": SwarmProfile})
    total: int
    next: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class SwarmStatus(Model):
    """What a swarm is doing.

    Attributes:
        status: ``in_progress``, ``blocked``, ``waiting`` (for a task) or ``away``.
        tasks: What it holds, with ``milestone``, ``blocked_on`` and ``next_action``.
        tasks_completed: Of the tasks that are kept.
        waits: Edges as in `WaitGraph`.
    """

    swarm_id: str
    status: str
    tasks: tuple[Task, ...] = attrs.field(default=(), metadata={"models": Task})
    tasks_in_progress: int = 0
    tasks_completed: int = 0
    waits: tuple[dict[str, Any], ...] = attrs.field(default=(), converter=to_strings)
    at_ms: int = 0


@attrs.frozen(kw_only=True, repr=False)
class InboxPage(Model):
    """Some unacknowledged messages, oldest first, and whether there are more."""

    messages: tuple[InboxMessage, ...] = attrs.field(metadata={"models": InboxMessage})
    has_more: bool = False


@attrs.frozen(kw_only=True, repr=False)
class ClaimEnd(Model):
    """How a claim ended.

    Attributes:
        spent_usd: What was spent on the task.
        released_usd: What went back into the swarm's budget.
        unblocked: Tasks that became ready by it.
    """

    task: Task = attrs.field(metadata={"model": Task})
    spent_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    released_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    unblocked: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)


@attrs.frozen(kw_only=True, repr=False)
class TaskOutcome(Model):
    """How one task of a batch fared.

    Attributes:
        error: Why it was refused, as ``{"code", "message", "data"}``; None where it is completed.
    """

    task_id: str
    token: int
    ok: bool
    spent_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    released_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    error: dict[str, Any] | None = None

    def to_error(self) -> IfbusError | None:
        """The refusal as an exception, for who wants to raise it."""
        return None if self.error is None else errors.from_wire(self.error)


@attrs.frozen(kw_only=True, repr=False)
class BatchEnd(Model):
    """How a batch of tasks ended, each for itself.

    Attributes:
        unblocked: Tasks that became ready by it.
    """

    outcomes: tuple[TaskOutcome, ...] = attrs.field(metadata={"models": TaskOutcome})
    completed: int = 0
    unblocked: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)


@attrs.frozen(kw_only=True, repr=False)
class Progress(Model):
    """A recorded progress report; the lease was renewed with it to `lease_ms`."""

    task: Task = attrs.field(metadata={"model": Task})
    lease_ms: int
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)


@attrs.frozen(kw_only=True, repr=False)
class Registration(Model):
    """A session of a swarm.

    Attributes:
        incarnation: Counts the swarm's registrations.
        resumed: It goes on where `resume_token` left off, with the claims in `claims`; otherwise those were freed.
        resume_token: A secret that proves this session: needed to renew, resume and end it.
        inbox_seq: Number of the last message in the inbox.
        bound: What ends it at once, as ``{"kind", "pid", "name", "watched"}``; None: its lease alone.
        slots: The weights of all that is claimed in it add up to so much at most; None: no bound.
    """

    profile: SwarmProfile = attrs.field(metadata={"model": SwarmProfile})
    incarnation: int
    lease_ms: int
    resume_token: str = attrs.field(repr=False)
    resumed: bool = False
    claims: tuple[TaskClaim, ...] = attrs.field(default=(), metadata={"models": TaskClaim})
    inbox_seq: int = 0
    bound: dict[str, Any] | None = None
    slots: int | None = None
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)


@attrs.frozen(kw_only=True, repr=False)
class SessionRenewal(Model):
    """A renewed session: the full time of its lease, and the handles (``T-7@41``) of the claims that live in it.

    Attributes:
        bound: What ends it at once, as ``{"kind", "pid", "name", "watched"}``; None: its lease alone.
    """

    lease_ms: int
    claims: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    bound: dict[str, Any] | None = None

    @property
    def is_watched(self) -> bool:
        """Whether the daemon would notice that what the session is bound to has ended; after its restart it would not."""
        return self.bound is None or bool(self.bound.get("watched"))


@attrs.frozen(kw_only=True, repr=False)
class Push(Model):
    """A task in a swarm's inbox: its place there, and how many connections heard of it at once."""

    seq: int
    delivered: int = 0
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)


@attrs.frozen(kw_only=True, repr=False)
class Check(Model):
    """One check of an admission, with its figures and, where it fails, what would change it."""

    check: str
    ok: bool
    message: str = ""
    data: dict[str, Any] = attrs.field(factory=dict)
    would_change: tuple[WouldChange, ...] = attrs.field(default=(), converter=to_strings)


@attrs.frozen(kw_only=True, repr=False)
class ClaimExplanation(Model):
    """Every check that a claim would go through, in order.

    Attributes:
        best: The swarm that fits best now as ``{"swarm_id", "overlap"}``, or None.
    """

    task_id: str
    swarm_id: str
    would_succeed: bool
    checks: tuple[Check, ...] = attrs.field(default=(), metadata={"models": Check})
    best: dict[str, Any] | None = None


@attrs.frozen(kw_only=True, repr=False)
class MatchReport(Model):
    """Which swarms fit, best first, and why the others do not.

    Attributes:
        best: The first of `matches`; None if nobody qualifies.
        considered: How many swarms were looked at.
        refused: How many failed, by reason code.
    """

    best: CapabilityMatch | None = attrs.field(default=None, metadata={"model": CapabilityMatch})
    matches: tuple[CapabilityMatch, ...] = attrs.field(default=(), metadata={"models": CapabilityMatch})
    considered: int = 0
    threshold: float = 0.0
    similarity: str = ""
    refused: dict[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, repr=False)
class CostEntry(Model):
    """A recorded cost: where the budget stands after it, and whether it tripped the breaker."""

    report: BudgetReport = attrs.field(metadata={"model": BudgetReport})
    tripped: bool = False
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)


@attrs.frozen(kw_only=True, repr=False)
class Reservation(Model):
    """Money set aside until it is settled or its claim ends."""

    reservation_id: str
    report: BudgetReport = attrs.field(metadata={"model": BudgetReport})
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)


@attrs.frozen(kw_only=True, repr=False)
class ResourceGrant(Model):
    """Resources that were taken: the fence of each, and the length of the lease that they live on."""

    fences: dict[str, int]
    lease_ms: int
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)


@attrs.frozen(kw_only=True, repr=False)
class ResourcePage(Model):
    """Some held resources by name, how many match, and the name to go on after (None at the end)."""

    resources: tuple[ResourceLock, ...] = attrs.field(metadata={"models": ResourceLock})
    total: int
    next: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class Reply(Model):
    """Whether a question was answered, and with what; ask again with its `reply_id` (`await_reply`)."""

    reply_id: str
    answered: bool
    answer: Any = None
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)


@attrs.frozen(kw_only=True, repr=False)
class QuestionPage(Model):
    """Some open questions, how many match, and the reply id to go on after (None at the end)."""

    questions: tuple[Question, ...] = attrs.field(metadata={"models": Question})
    total: int
    next: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class WaitGraph(Model):
    """Who waits for what.

    Attributes:
        edges: ``{"from", "to", "why", "since_ms"?, "id"?}`` each; nodes read ``task:T-7``, ``swarm:docs-2``, ``resource:gpu:0``, ``person``.
        help: Of those the one whose end frees the most, or holds up the most, as ``{"edge", "frees": [task ids], "holds_up": n}``; None if nobody
            has to act.
    """

    edges: tuple[dict[str, Any], ...] = attrs.field(default=(), converter=to_strings)
    has_more: bool = False
    help: dict[str, Any] | None = None


@attrs.frozen(kw_only=True, repr=False)
class Breaker(Model):
    """One swarm's circuit breaker: ``closed`` or ``tripped``, and then why and since when."""

    swarm_id: str
    state: str
    reason: str | None = None
    tripped_at_ms: int | None = None
    failures_in_a_row: int = 0


@attrs.frozen(kw_only=True, repr=False)
class WitnessHead(Model):
    """The newest entry's number and chain hash; kept elsewhere, it proves any later change of what came before."""

    seq: int
    hash: str


@attrs.frozen(kw_only=True, repr=False)
class WitnessEntry(Model):
    """One operation on record.

    Attributes:
        op: The method.
        outcome: ``ok`` or an error code.
        hash: SHA-256 of the chain up to this entry, hex.
    """

    seq: int
    op: str
    outcome: str
    hash: str
    revision: int = 0
    at_ms: int = 0
    uid: int = 0
    pid: int = 0
    target: str = ""
    detail: Any = None
    trace: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class WitnessPage(Model):
    """Some entries, the log's head, and the number to go on after (None at the end)."""

    entries: tuple[WitnessEntry, ...] = attrs.field(metadata={"models": WitnessEntry})
    head: WitnessHead = attrs.field(metadata={"model": WitnessHead})
    next: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class WitnessVerdict(Model):
    """Whether the record is untouched.

    Attributes:
        problems: ``{"seq", "what"}`` each.
        cannot_know: What this check could not see, as sentences.
    """

    ok: bool
    entries: int
    head: WitnessHead = attrs.field(metadata={"model": WitnessHead})
    problems: tuple[dict[str, Any], ...] = attrs.field(default=(), converter=to_strings)
    cannot_know: tuple[str, ...] = attrs.field(default=(), converter=to_strings)


@attrs.frozen(kw_only=True, repr=False)
class CostRow(Model):
    """Costs under one key; waste is what went into tasks that failed or were given back."""

    key: str
    tasks: int = 0
    accepted: int = 0
    spent_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    per_accepted_usd: Decimal | None = attrs.field(default=None, converter=to_decimal)
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    waste_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    waste_ratio: float = 0.0


@attrs.frozen(kw_only=True, repr=False)
class CostReport(Model):
    """Costs summed by one dimension, dearest first."""

    by: str
    rows: tuple[CostRow, ...] = attrs.field(metadata={"models": CostRow})
    total_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    waste_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    has_more: bool = False


@attrs.frozen(kw_only=True, repr=False)
class BlobProgress(Model):
    """How much of a module the daemon has; go on from `received_bytes`."""

    received_bytes: int
    complete: bool


@attrs.frozen(kw_only=True, repr=False)
class LoadedModule(Model):
    """A module that is loaded for a swarm.

    Attributes:
        layers: What locks its worker down.
    """

    swarm_id: str
    module_sha256: str
    kind: str
    layers: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    receipt: Receipt | None = attrs.field(default=None, metadata=_RECEIPT)
