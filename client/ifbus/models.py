"""The values that swarms, operators and the daemon exchange: frozen, validated, the same on both sides.

`from_wire` takes the map that a method answers with and ignores what a newer daemon added; `to_wire` gives the map
that a method takes. Money is `Decimal` dollars here and a decimal string on the wire; times are epoch milliseconds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from decimal import Decimal
from operator import attrgetter
from types import UnionType
from typing import Any, NamedTuple, Self, get_args, get_origin, get_type_hints, is_typeddict

import attrs

from ifbus.errors import InvalidParams

CAPABILITY = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}:[a-z0-9][a-z0-9_.-]{0,47}", re.ASCII)
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
RESOURCE = re.compile(r"[a-z][a-z0-9_-]{0,31}:[A-Za-z0-9._~+=/-]{1,160}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
MAX_CAPABILITIES = 64
# Sets of types that are remembered for each class: a field of two types has few, and whoever brings classes of their own not many.
_MOST_KINDS = 64


# The same names come with every request, and a look-up is a quarter of a match.
@functools.lru_cache(maxsize=8192)
def _is_identifier(value: str) -> bool:
    return IDENTIFIER.fullmatch(value) is not None


def check_identifier(value: str, what: str) -> str:
    """`value`, if it can name a task or swarm: 1 to 64 of ``A-Z a-z 0-9 . _ -``, a letter or digit first.

    Raises:
        InvalidParams: It cannot; the message names `what` and the rule.
    """
    if not _is_identifier(value):
        raise InvalidParams(
            f"a {what} is 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit, got {value!r:.80}",
            data={"param": what},
        )
    return value


def check_capabilities(values: Any) -> frozenset[str]:
    """The capabilities as a set, if each reads ``area:skill`` and there are at most 64.

    Raises:
        InvalidParams: One does not; the message quotes it.
    """
    if len(values) > MAX_CAPABILITIES:
        raise InvalidParams(
            f"at most {MAX_CAPABILITIES} capabilities, got {len(values)}", data={"param": "capabilities"}
        )
    for value in values:
        if not (isinstance(value, str) and CAPABILITY.fullmatch(value)):
            raise InvalidParams(
                f"a capability reads area:skill in small letters, such as code-analysis:python, got {value!r:.80}",
                data={"param": "capabilities"},
            )
    return frozenset(values)


def check_resource(value: Any) -> str:
    """`value`, if it can name a resource: a kind, a colon and 1 to 160 of ``A-Z a-z 0-9 . _ ~ + = / -``, such as ``file:src/a.py``.

    Raises:
        InvalidParams: It cannot; the message quotes it.
    """
    if not (isinstance(value, str) and RESOURCE.fullmatch(value)):
        raise InvalidParams(
            f"a resource reads kind:name, such as gpu:0 or file:src/a.py, got {value!r:.80}",
            data={"param": "resources"},
        )
    return value


def to_decimal(value: Any) -> Any:
    """A converter: dollars as `Decimal` where they are given as a string or a whole number; anything else as it is."""
    if type(value) is int:
        return Decimal(value)
    if type(value) is str:
        try:
            return Decimal(value)
        except ArithmeticError:
            return value  # the check of types names the field
    return value


def to_strings(value: Any) -> Any:
    """A converter: a tuple of what a list, tuple or set holds, a set in order; anything else as it is."""
    if type(value) is tuple:
        return value
    if isinstance(value, (set, frozenset)):
        return tuple(sorted(value)) if all(type(item) is str for item in value) else tuple(value)
    return tuple(value) if isinstance(value, list) else value


def _non_negative(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if _is_number(value) and not value >= 0:
        raise ValueError(f"{attribute.name} must be 0 or more, got {value}")


def _positive(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if _is_number(value) and not value > 0:
        raise ValueError(f"{attribute.name} must be above 0, got {value}")


def _percent(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if _is_number(value) and not 1 <= value <= 100:
        raise ValueError(f"{attribute.name} must be between 1 and 100, got {value}")


def _ratio(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if _is_number(value) and not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be between 0 and 1, got {value}")


def _is_number(value: Any) -> bool:
    # Another type is for the check of types, which names what is expected; NaN cannot be compared.
    return value is not None and (isinstance(value, (int, float)) or (isinstance(value, Decimal) and value.is_finite()))


def _identifier(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, str):
        check_identifier(value, attribute.name)


def _capabilities(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, tuple):
        check_capabilities(value)


def _one_of(*choices: str) -> Callable[[object, attrs.Attribute[Any], Any], None]:
    def validate(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if isinstance(value, str) and value not in choices:
            raise ValueError(f"{attribute.name} must be one of {', '.join(choices)}, got {value!r:.80}")

    return validate


def _sha256(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, str) and not SHA256.fullmatch(value):
        raise ValueError(f"{attribute.name} must be 64 hex digits, got {value!r:.80}")


class _Check(NamedTuple):
    """What one field may hold.

    Attributes:
        types: Exactly these types pass at once; subclasses after a second look (`refuse`).
        items: For a tuple, what each item must be; None for anything.
        expected: The same in words.
    """

    name: str
    types: tuple[type, ...]
    items: type | None
    expected: str

    def refuse(self, owner: type, value: Any) -> None:
        """Raise ValueError unless `value` is fine after all."""
        # A bool is an int to Python and no number to us; a whole number will do where a fraction may stand.
        if (isinstance(value, self.types) and not (isinstance(value, bool) and bool not in self.types)) or (
            type(value) is int and float in self.types
        ):
            return
        raise ValueError(f"{owner.__name__}.{self.name} must be {self.expected}, got {_shown(value)}")

    def look_closer(self, owner: type, value: Any) -> None:
        """Raise ValueError for an amount that is none, or an item of a tuple that is of another type."""
        if isinstance(value, tuple):
            for item in value:
                if self.items is not None and not isinstance(item, self.items):
                    raise ValueError(f"{owner.__name__}.{self.name} must be {self.expected}, got {_shown(item)} in it")
        elif isinstance(value, Decimal) and not value.is_finite():
            raise ValueError(f"{owner.__name__}.{self.name} must be a finite amount, got {value}")


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:80]}"


class _Checks:
    """What the fields of a class may hold. Its state: the types that values had which were fine, so that most need no second look."""

    def __init__(self, checks: list[_Check]) -> None:
        self._checks = checks
        self._values_of: Callable[[Model], Any] = attrgetter(*(check.name for check in checks))
        # Whose type does not say everything.
        self._closer = [at for at, check in enumerate(checks) if check.items is not None or Decimal in check.types]
        self._is_one = len(checks) == 1
        self._fine: set[tuple[type, ...]] = set()

    def look_at(self, model: Model) -> None:
        """Raise ValueError where a value is not of its field's type."""
        values: tuple[Any, ...] = (self._values_of(model),) if self._is_one else self._values_of(model)
        kinds = tuple(map(type, values))
        if kinds not in self._fine:
            for check, value, kind in zip(self._checks, values, kinds, strict=True):
                if kind not in check.types:
                    check.refuse(type(model), value)
            if len(self._fine) < _MOST_KINDS:
                self._fine.add(kinds)
        for at in self._closer:
            self._checks[at].look_closer(type(model), values[at])


_checks: dict[type, _Checks] = {}
_IN_WORDS: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    dict: "a map",
    tuple: "a list",
    type(None): "None",
    Decimal: "dollars as a decimal string, whole number or Decimal",
}


def _checks_of(owner: type[Model]) -> list[_Check]:
    """What the fields' annotations promise; read when the first one is made, so that an import does not pay for it."""
    hints = get_type_hints(owner)
    checks = []
    for field in attrs.fields(owner):
        types: list[type] = []
        items: type | None = None
        for choice in _choices(hints[field.name]):
            plain = get_origin(choice) or choice
            if plain is tuple:
                [item, _] = get_args(choice)
                items = None if item is Any else dict if is_typeddict(item) else get_origin(item) or item
            types.append(plain)
        if Any not in types:
            words = " or ".join(_IN_WORDS.get(each, f"a {each.__name__}") for each in types)
            if items is not None:
                words = words.replace("a list", f"a list of {_IN_WORDS.get(items, items.__name__).removeprefix('a ')}s")
            checks.append(_Check(field.name, tuple(types), items, words))
    return checks


def _choices(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


_plans: dict[type, dict[str, tuple[type[Model] | None, type[Model] | None]]] = {}


def _plan_of(owner: type[Model]) -> dict[str, tuple[type[Model] | None, type[Model] | None]]:
    return {field.name: (field.metadata.get("model"), field.metadata.get("models")) for field in attrs.fields(owner)}


@attrs.frozen(kw_only=True, repr=False)
class Model:
    """Shared by all: types that are checked, to and from the wire's maps."""

    def __attrs_post_init__(self) -> None:
        """Raise ValueError where a value is not of its field's type."""
        owner = type(self)
        checks = _checks.get(owner)
        if checks is None:
            checks = _checks[owner] = _Checks(_checks_of(owner))
        checks.look_at(self)

    # Written once: generated ones are a quarter of the time that making these classes takes.
    def __repr__(self) -> str:
        shown = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in attrs.fields(type(self))
            if field.repr and getattr(self, field.name) != field.default
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def from_wire(cls, values: dict[str, Any]) -> Self:
        """The value for a map of the wire; unknown keys are ignored, missing ones take the default.

        Raises:
            InvalidParams: A required key is missing, or a value is of another type or out of its range; nothing else.
        """
        plan = _plans.get(cls)
        if plan is None:
            plan = _plans[cls] = _plan_of(cls)
        try:
            given = {}
            for name, value in values.items():
                found = plan.get(name)
                if found is not None:
                    one, many = found
                    if one is not None and value is not None:
                        value = one.from_wire(value)
                    elif many is not None:
                        value = tuple(map(many.from_wire, value))
                    given[name] = value
            return cls(**given)
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise InvalidParams(f"cannot read a {cls.__name__}: {error}", data={"param": cls.__name__}) from error

    def to_wire(self) -> dict[str, Any]:
        """The map for the wire, without the keys whose value is None."""
        wire: dict[str, Any] = {}
        for field in attrs.fields(type(self)):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, Decimal):
                value = format(value, "f")
            elif isinstance(value, Model):
                value = value.to_wire()
            elif isinstance(value, tuple):
                value = [item.to_wire() if isinstance(item, Model) else item for item in value]
            wire[field.name] = value
        return wire


@attrs.frozen(kw_only=True, repr=False)
class Receipt(Model):
    """Proof of one durable operation: its revision, and a place in the witness log with the log's head there.

    On one host that is the place of the operation's own entry. With etcd each host's log follows the store, and the entry's place
    is not known yet when the operation is durable: then it is the newest entry that this host's log has on its disk, and the
    operation's own comes after it. Either proves all that was before.

    Attributes:
        revision: The store's revision after the operation; for a claim it is the fencing token.
        seq: Number of the witness entry, from 1; None while the log is empty.
        head: SHA-256 of the chain up to that entry, 64 hex digits. Keep it: it proves any later change of the past.
        replayed: This answer was given before, to the same idempotency key.
        partial: The storage of the cluster is full: what the operation gives up is given up, and what it writes besides (money that is
            given back, a note) follows when there is room, as after a lease that has ended.
    """

    revision: int
    seq: int | None = None
    head: str | None = None
    replayed: bool = False
    partial: bool = False

    def __str__(self) -> str:
        return f"{self.seq}:{(self.head or '')[:8]}"


@attrs.frozen(kw_only=True, repr=False)
class SwarmProfile(Model):
    """What a swarm can do, what it costs, and how it stands.

    Attributes:
        swarm_id: Its name.
        capabilities: What it can do, each ``area:skill``.
        cost_per_hour_usd: What an hour of it costs; 0 is free.
        reputation: How well it has done so far, 0 to 1.
        model: The language model behind it, free text.
        uid: The user that registered it, None before registration.
        incarnation: Counts its registrations; claims belong to one incarnation.
        alive: Its session's lease is held.
        breaker: ``closed`` or ``tripped``.
        free_usd: Budget neither spent nor reserved; None without a budget.
        pause: Who keeps new work from it, why and since when; None while nobody does.
    """

    swarm_id: str = attrs.field(validator=_identifier)
    capabilities: tuple[str, ...] = attrs.field(default=(), converter=to_strings, validator=_capabilities)
    cost_per_hour_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal, validator=_non_negative)
    reputation: float = attrs.field(default=1.0, validator=_ratio)
    model: str = ""
    uid: int | None = None
    incarnation: int = 0
    alive: bool = False
    breaker: str = "closed"
    free_usd: Decimal | None = attrs.field(default=None, converter=to_decimal)
    claims: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    pause: dict[str, Any] | None = None


@attrs.frozen(kw_only=True, repr=False)
class CapabilityMatch(Model):
    """How well one swarm fits a set of required capabilities.

    Attributes:
        jaccard: ``|P n R| / |P u R|`` of the swarm's capabilities P and the required ones R, 0 to 1.
        coverage: ``|P n R| / |R|``, 0 to 1.
        overlap: The one of the two that the policy compares with its threshold.
        score: ``overlap * reputation / cost_per_hour_usd``; None for a free swarm, which ranks before all others.
        missing: Required capabilities that the swarm lacks.
    """

    swarm_id: str
    jaccard: float = attrs.field(validator=_ratio)
    coverage: float = attrs.field(validator=_ratio)
    overlap: float = attrs.field(validator=_ratio)
    reputation: float = attrs.field(validator=_ratio)
    cost_per_hour_usd: Decimal = attrs.field(converter=to_decimal, validator=_non_negative)
    score: float | None = None
    missing: tuple[str, ...] = attrs.field(default=(), converter=to_strings)


@attrs.frozen(kw_only=True, repr=False)
class BudgetReport(Model):
    """Where a swarm's money stands; exact to the micro-dollar.

    Attributes:
        limit_usd: The budget; None means none was ever set and nothing is refused for money.
        spent_usd: Settled costs.
        reserved_usd: Estimates of claims and calls under way.
        free_usd: ``limit - spent - reserved``, negative after an overspend; None without a budget.
        breaker: ``closed`` or ``tripped``; `breaker_reason` says why.
    """

    swarm_id: str
    limit_usd: Decimal | None = attrs.field(default=None, converter=to_decimal)
    spent_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    reserved_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    free_usd: Decimal | None = attrs.field(default=None, converter=to_decimal)
    breaker: str = "closed"
    breaker_reason: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class Task(Model):
    """One task as the board shows it.

    Attributes:
        state: ``waiting`` (for `waits_for`), ``scheduled`` (for its start, or backing off), ``ready``, ``claimed``, ``blocked``, ``paused``; or
            final: ``completed``, ``failed``, ``dead``, ``cancelled``, ``expired``.
        capabilities: What a swarm must be able to do.
        depends_on: Tasks that must be completed first.
        waits_for: Those of them that are not completed yet.
        filler: Offered only while nothing better is ready for a swarm.
        priority: Higher goes first, -100 to 100.
        estimate_usd: What it will probably cost; reserved when it is claimed.
        payload: What the creator wants the holder to know, any map of plain values.
        milestones: ``[percent, text]`` each.
        resources: What a claim of it takes; `busy_resources` are those of them that somebody holds.
        percent, note: The holder's last progress report.
        blocked_on, next_action: What the holder says that it waits for, and what it does next.
        milestone: The last milestone that it has passed (`swarm_status`).
        holder, token: The swarm that holds it and its fencing token.
        result: What it was completed with.
        error: Why its last attempt failed.
        not_before_at_ms, deadline_at_ms, lease_ms, max_attempts, backoff, unique_key, retention_ms, on_dependency_failure: As it was created.
        existing: It was there already, with the unique key that was asked for.
        failures: Attempts that failed or were lost since it was created or requeued.
        retry_at_ms: Until then it rests after a failure.
        errors: Of the newest of them: ``attempt``, ``at_ms``, ``swarm_id``, ``token``, ``reason``, ``error``.
        artefacts: What its holders have left: ``name``, ``sha256``, ``bytes``.
        reason: Why it was cancelled or has expired.
        clocks: Of its claim, from `get_task`: ``alive`` (True while what it is bound to lives and is watched), ``beat_ms`` since its lease was
            renewed, ``progress_ms`` and ``spent_usd`` since it came further, and what they are measured by.
        group: The queue that it belongs to.
        pause: Who keeps it from being claimed, why and since when.
        concurrency_key, concurrency_limit: How many tasks of this key may be held at a time.
        weight: How much it counts for the share of its group, and how many slots of its swarm it takes.
    """

    task_id: str = attrs.field(validator=_identifier)
    title: str
    state: str = "ready"
    description: str = ""
    capabilities: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    depends_on: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    waits_for: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    filler: bool = False
    priority: int = 0
    estimate_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal, validator=_non_negative)
    spent_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    payload: dict[str, Any] = attrs.field(factory=dict)
    milestones: tuple[Any, ...] = attrs.field(default=(), converter=to_strings)
    created_at_ms: int = 0
    percent: int = 0
    note: str = ""
    progress_at_ms: int | None = None
    holder: str | None = None
    token: int | None = None
    claimed_at_ms: int | None = None
    attempts: int = 0
    result: Any = None
    error: str | None = None
    ended_at_ms: int | None = None
    not_before_at_ms: int | None = None
    deadline_at_ms: int | None = None
    lease_ms: int | None = None
    max_attempts: int | None = None
    backoff: dict[str, Any] | None = None
    unique_key: str | None = None
    retention_ms: int | None = None
    on_dependency_failure: str = "wait"
    existing: bool = False
    failures: int = 0
    retry_at_ms: int | None = None
    errors: tuple[dict[str, Any], ...] = attrs.field(default=(), converter=to_strings)
    artefacts: tuple[dict[str, Any], ...] = attrs.field(default=(), converter=to_strings)
    reason: str | None = None
    clocks: dict[str, Any] | None = None
    resources: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    busy_resources: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    blocked_on: str | None = None
    next_action: str | None = None
    milestone: str | None = None
    group: str = ""
    pause: dict[str, Any] | None = None
    concurrency_key: str = ""
    concurrency_limit: int = 0
    weight: int = 1


@attrs.frozen(kw_only=True, repr=False)
class TaskClaim(Model):
    """A won claim: the right to work on a task, proven by its fencing token.

    Attributes:
        token: The fencing token: every call as the holder must carry it. Strictly increasing per task.
        lease_ms: The claim is free again this long after the last renewal.
        reserved_usd: The estimate that was set aside in the swarm's budget.
        bound_to: ``process``, ``connection``, ``session`` or ``lease``.
        bound: What frees it at once, as ``{"kind", "pid", "name", "watched"}``; None: its lease alone.
        resources: That were taken with it; their fence is `token`.
        handover: What earlier owners left, None without one: ``attempts``, ``percent``, ``note``, ``spent_usd``, ``artefacts``, ``errors``, ``last``.
    """

    task_id: str
    swarm_id: str
    token: int = attrs.field(validator=_positive)
    lease_ms: int = attrs.field(validator=_positive)
    claimed_at_ms: int
    task: Task = attrs.field(metadata={"model": Task})
    reserved_usd: Decimal = attrs.field(default=Decimal(0), converter=to_decimal)
    bound_to: str = "lease"
    bound: dict[str, Any] | None = None
    resources: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    handover: dict[str, Any] | None = None
    receipt: Receipt | None = attrs.field(default=None, metadata={"model": Receipt})

    @property
    def handle(self) -> str:
        """Task and fencing token in one word, ``T-7@41``."""
        return f"{self.task_id}@{self.token}"


@attrs.frozen(kw_only=True, repr=False)
class ResourceLock(Model):
    """A named resource that a swarm holds.

    Attributes:
        fence: Strictly increasing per resource: what guards the resource itself can refuse an older one.
        task_id: It is held for the claim of this task and ends with it; None: for the swarm by itself.
        lease_left_ms: It is free then unless renewed.
    """

    resource: str
    swarm_id: str
    fence: int
    at_ms: int = 0
    task_id: str | None = None
    lease_left_ms: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class Question(Model):
    """A question that a swarm waits to have answered.

    Attributes:
        to: The swarm that is asked, or ``person`` for an operator's approval.
        task_id: It is asked for the claim of this task and ends with it; None: for the swarm by itself.
    """

    reply_id: str
    swarm_id: str
    to: str
    question: str
    at_ms: int = 0
    task_id: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class InboxMessage(Model):
    """One letter in a swarm's durable inbox; it stays until it is acknowledged.

    Attributes:
        seq: Its place in the inbox; strictly increasing per swarm. Resume a subscription after the last one seen.
        kind: ``task`` (a task was pushed), ``broadcast``, ``blocker``, ``help`` (somebody needs you), ``question``, ``reply`` or ``notice``.
        body: What it says, by kind.
        sender: The swarm that sent it, or ``""`` for the daemon.
    """

    seq: int
    kind: str
    body: dict[str, Any]
    sender: str = ""
    at_ms: int = 0
    urgent: bool = False


@attrs.frozen(kw_only=True, repr=False)
class TaskBroadcast(Model):
    """A message for every registered swarm with the wanted capabilities, through its durable inbox.

    Attributes:
        topic: What it is about, an identifier.
        capabilities: Only swarms that have all of these get it; empty means everybody.
        expression: Only swarms that it fits; ``""`` means everybody.
        delivered_to: How many inboxes it was put into.
    """

    topic: str
    body: dict[str, Any]
    sender: str = ""
    capabilities: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    at_ms: int = 0
    delivered_to: int = 0
    expression: str = ""


@attrs.frozen(kw_only=True, repr=False)
class BlockerAlert(Model):
    """A holder cannot go on: what the orchestrator hears.

    Attributes:
        severity: ``low``, ``medium``, ``high`` or ``critical``.
        needs: Capabilities that would help.
        helpers: Swarms that were asked to help, best first.
        escalated_at_ms: When it was brought before people, because it was open for too long.
    """

    blocker_id: str
    swarm_id: str
    reason: str
    task_id: str | None = None
    token: int | None = None
    severity: str = attrs.field(default="medium", validator=_one_of("low", "medium", "high", "critical"))
    needs: tuple[str, ...] = attrs.field(default=(), converter=to_strings, validator=_capabilities)
    helpers: tuple[str, ...] = attrs.field(default=(), converter=to_strings)
    at_ms: int = 0
    escalated_at_ms: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class ResourceLimits(Model):
    """Hard limits of one sandbox; each is enforced from outside the guest's code (DESIGN 6).

    Attributes:
        memory_bytes: Guest memory; growth beyond it fails inside the guest.
        wall_ms: Time for one execution; then the sandbox is killed.
        cpu_percent: Share of one core over a second, 1 to 100; 100 means no throttling.
        calls_per_s: Executions and host calls per second, burst of the same size.
        output_bytes: Standard output or result of one execution.
    """

    memory_bytes: int = attrs.field(default=64 << 20, validator=_positive)
    wall_ms: int = attrs.field(default=2_000, validator=_positive)
    cpu_percent: int = attrs.field(default=100, validator=_percent)
    calls_per_s: int = attrs.field(default=1_000, validator=_positive)
    output_bytes: int = attrs.field(default=32 << 10, validator=_positive)


@attrs.frozen(kw_only=True, repr=False)
class SLODefinition(Model):
    """What a loaded module promises; measured over its last executions.

    Attributes:
        p99_latency_ms: 99 of 100 executions end within this.
        success_ratio: Share of executions that end without error, 0 to 1.
    """

    p99_latency_ms: int = attrs.field(default=1_000, validator=_positive)
    success_ratio: float = attrs.field(default=0.95, validator=_ratio)


@attrs.frozen(kw_only=True, repr=False)
class ServiceContract(Model):
    """What is loaded for a swarm and under which terms.

    Attributes:
        module_sha256: Content address of the WebAssembly bytes, 64 hex digits.
        kind: ``core`` (an exported function: numbers in, number out), ``command`` (WASI: JSON on stdin, JSON on
            stdout) or ``component`` (typed values).
        export: The function to call; ``""`` is the kind's own default (``run`` for core and component, ``_start``).
        profile: Named compile profile of the daemon's policy; ``default`` is the tight one.
        version: The author's version of the module, free text.
    """

    module_sha256: str = attrs.field(validator=_sha256)
    kind: str = attrs.field(default="core", validator=_one_of("core", "command", "component"))
    export: str = ""
    limits: ResourceLimits = attrs.field(factory=ResourceLimits, metadata={"model": ResourceLimits})
    slo: SLODefinition = attrs.field(factory=SLODefinition, metadata={"model": SLODefinition})
    profile: str = "default"
    version: str = ""


@attrs.frozen(kw_only=True, repr=False)
class Execution(Model):
    """What one sandboxed execution gave.

    Attributes:
        output: The guest's result: a number, a JSON value, or a component's typed value.
        wall_us, cpu_us: Time from request to answer inside the chassis, and processor time of the sandbox.
        memory_bytes: The guest's memory after the run.
        sandbox: ``warm`` (a live worker answered) or ``cold`` (one was made for it).
    """

    output: Any
    wall_us: int
    cpu_us: int
    memory_bytes: int
    sandbox: str
