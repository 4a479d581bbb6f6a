"""What the coordinator keeps in the store, and its configuration.

==========================  =====================================================================================
``tasks/<task>``            `TaskRecord`
``claims/<task>``           `ClaimRecord`, on a lease; its create-revision is the fencing token (DESIGN 4)
``sessions/<swarm>``        `SessionRecord`, on the session's lease: there while the swarm is alive
``begun/<swarm>/<incarnation>``  its user, while there is such a session, on no lease; until that was ended, or its end is on record
``inbox/<swarm>/<id>``      `MessageRecord`; its create-revision is the message's ``seq``
``blockers/<id>``           `BlockerRecord`, gone when resolved
``topics/<swarm>/<topic>``   since when it is subscribed to
``helpers/<whose>``         swarms that open blockers of a task (or of a swarm, ``@<swarm>``) have called, as a list
``alarms/<kind>/<whose>``   an open alarm (`clocks`), as it was told
``locks/<resource>``         `LockRecord`, on the lease of its claim or session, or its own; its create-revision is the fence
``held/<id>``               `HeldRecord`: a resource that is held for no claim; until that is released, or its end is on record
``questions/<id>``          `QuestionRecord` that a swarm is to answer; ``approvals/<id>``: a person; ``answers/<id>``: with its answer
``waits/<id>``              `WaitRecord`, on a lease of its own, while somebody waits
``counters/waits``          how many edges were ever added to the wait-for graph
``groups/<group>``          `GroupRecord`: weight and pause of a group of tasks, where it has any
``keys/<concurrency key>``  `KeyRecord`: who may hold a place of it; removed with the last task of the key
``loads/<swarm>``           `LoadRecord`: what may take its slots; on the session's lease, where the session has a number of slots
``counters/tasks``          how many tasks were ever created
``unique/<uid>/<key>``      id of the task that a user's unique key was last given to
==========================  =====================================================================================
"""

from __future__ import annotations

from types import UnionType
from typing import Any, Final, Self, get_args, get_origin, get_type_hints

import attrs
from attrs.validators import and_, ge, gt, le

from ifbus.money import NO_MONEY, MicroUsd
from ifbusd.codec import unpack

TASKS: Final = "tasks/"
CLAIMS: Final = "claims/"
SESSIONS: Final = "sessions/"
BEGUN: Final = "begun/"
INBOX: Final = "inbox/"
BLOCKERS: Final = "blockers/"
ALARMS: Final = "alarms/"
HELPERS: Final = "helpers/"
TOPICS: Final = "topics/"
LOCKS: Final = "locks/"
HELD: Final = "held/"
QUESTIONS: Final = "questions/"
APPROVALS: Final = "approvals/"
ANSWERS: Final = "answers/"
WAITS: Final = "waits/"
WAITS_COUNTER: Final = "counters/waits"
GROUPS: Final = "groups/"
KEYS: Final = "keys/"
LOADS: Final = "loads/"
TASK_COUNTER: Final = "counters/tasks"
UNIQUE: Final = "unique/"

# What is stored of a task's state; what an open one is at the moment follows from the rest (`life.rules`).
OPEN, COMPLETED, FAILED = "open", "completed", "failed"
DEAD, CANCELLED, EXPIRED = "dead", "cancelled", "expired"

# What a claim or a session can be bound to.
PROCESS: Final = "process"
CONNECTION: Final = "connection"
SESSION: Final = "session"
LEASE: Final = "lease"


@attrs.frozen(kw_only=True)
class Holder:
    """What a record says it is bound to.

    Attributes:
        kind: `PROCESS`, `CONNECTION`, `SESSION` or `LEASE`.
        id: Of the binding that is watched; ``""`` where it is the session's, or the lease alone.
        pid, name: Of the process, for people.
    """

    kind: str
    id: str = ""
    pid: int = 0
    name: str = ""

    def to_stored(self) -> dict[str, Any]:
        """The map to store: only what says something."""
        return {name: value for name, value in attrs.asdict(self).items() if value}


@attrs.frozen(kw_only=True)
class CoordinatorConfig:
    """Limits of the coordinator.

    Attributes:
        lease_ms: Lease of a session and of a claim without one. 30 s: three missed heartbeats of 10 s.
        min_lease_ms, max_lease_ms: What a caller may ask for.
        max_wait_ms: Longest time that `claim_task` and `claim_next` wait.
        inbox_messages: Messages that wait in one inbox; a push beyond it is refused, a broadcast leaves it out and says so.
        letter_bytes_per_uid: What one user has sent, as stored, and nobody has acknowledged; beyond it pushes and broadcasts of
            that user are refused. 32 MiB: the daemon keeps all letters in memory, and no user may fill that.
        open_tasks: Tasks that are not final yet.
        blockers: Open blockers.
        blockers_per_uid: The same of one user, so that nobody keeps the others from reporting.
        escalate_low_ms, escalate_medium_ms, escalate_high_ms, escalate_critical_ms: A blocker of this severity that is open for so
            long is brought before people. 24 h, 1 h, 10 min, at once.
        leases_per_uid: Sessions of one user, and claims with a lease of their own. 16,384: a quarter of the store's
            `max_leases`, without which nobody can begin a session.
        resources_per_uid: Resources that one user's swarms hold. 4096: about 1 MiB of memory, and nobody holds all that others name.
        board_history: What happened to tasks is kept for so many events, for subscriptions that come back. 4096: about 2 MiB.
        topics_per_swarm: Topics that one swarm subscribes to. 256: a name each.
        questions_per_uid: Open questions of one user's swarms. 1024: what people and swarms can still look through.
        question_ms: How long a question stays open, and its answer is kept, that was asked outside a claim and a session. 24 h.
        bindings: Processes that are watched because a claim or session is bound to them; each takes a descriptor. 1024: as
            many as connections by default, and a fifth of the unit's LimitNOFILE together.
        bindings_per_uid: The same for one user.
        runaway_ratio, runaway_micro_usd: A claim that has spent more than this since its last progress is reported as running
            away: the larger of this share of the task's estimate and this amount.
        silent_ratio: A session or claim that was not renewed for this share of its lease is reported as silent. 0.7: two of
            three heartbeats were missed.
        starving_ms: A live swarm that leaves a letter unread for so long is reported as starving. 10 min.
        clock_tick_ms: How often these three are looked at, and at the latest whether a task's time has come.
        retention_ms: How long a task is kept once it is final, with its result, unless it says so itself. 7 days.
        retained_tasks: Final tasks that are kept at most; beyond it those go first whose time is over first. A million: with as many
            open ones about 1 GiB of the daemon's memory.
        ageing_ms: A ready task gains a level of priority each time it has waited so long. 60 s: what has the lowest priority, -100,
            goes before anything that is created after 200 min of waiting, whatever that one's priority.
        groups: Groups of tasks that have a weight or a pause; the board keeps all of them in memory.
    """

    lease_ms: int = attrs.field(default=30_000, validator=and_(ge(100), le(24 * 3_600_000)))
    min_lease_ms: int = attrs.field(default=500, validator=and_(ge(100), le(24 * 3_600_000)))
    max_lease_ms: int = attrs.field(default=24 * 3_600_000, validator=and_(ge(100), le(24 * 3_600_000)))
    max_wait_ms: int = attrs.field(default=600_000, validator=and_(ge(0), le(24 * 3_600_000)))
    inbox_messages: int = attrs.field(default=1_000, validator=and_(ge(1), le(100_000)))
    letter_bytes_per_uid: int = attrs.field(default=32 << 20, validator=and_(ge(64 << 10), le(16 << 30)))
    open_tasks: int = attrs.field(default=1_000_000, validator=and_(ge(1), le(10_000_000)))
    blockers: int = attrs.field(default=10_000, validator=and_(ge(1), le(100_000)))
    blockers_per_uid: int = attrs.field(default=1_000, validator=and_(ge(1), le(100_000)))
    escalate_low_ms: int = attrs.field(default=24 * 3_600_000, validator=and_(ge(0), le(365 * 24 * 3_600_000)))
    escalate_medium_ms: int = attrs.field(default=3_600_000, validator=and_(ge(0), le(365 * 24 * 3_600_000)))
    escalate_high_ms: int = attrs.field(default=600_000, validator=and_(ge(0), le(365 * 24 * 3_600_000)))
    escalate_critical_ms: int = attrs.field(default=0, validator=and_(ge(0), le(365 * 24 * 3_600_000)))
    leases_per_uid: int = attrs.field(default=16_384, validator=ge(1))
    resources_per_uid: int = attrs.field(default=4_096, validator=and_(ge(1), le(1_000_000)))
    board_history: int = attrs.field(default=4_096, validator=and_(ge(1), le(1_000_000)))
    topics_per_swarm: int = attrs.field(default=256, validator=and_(ge(1), le(10_000)))
    questions_per_uid: int = attrs.field(default=1_024, validator=and_(ge(1), le(100_000)))
    question_ms: int = attrs.field(default=24 * 3_600_000, validator=and_(ge(1_000), le(30 * 24 * 3_600_000)))
    bindings: int = attrs.field(default=1_024, validator=and_(ge(0), le(65_536)))
    bindings_per_uid: int = attrs.field(default=256, validator=and_(ge(0), le(65_536)))
    runaway_ratio: float = attrs.field(default=0.2, validator=and_(ge(0), le(100)))
    runaway_micro_usd: MicroUsd = attrs.field(default=MicroUsd(100_000), validator=ge(NO_MONEY))
    silent_ratio: float = attrs.field(default=0.7, validator=and_(gt(0), le(1)))
    starving_ms: int = attrs.field(default=600_000, validator=and_(ge(100), le(30 * 24 * 3_600_000)))
    clock_tick_ms: int = attrs.field(default=1_000, validator=and_(ge(10), le(60_000)))
    retention_ms: int = attrs.field(default=7 * 24 * 3_600_000, validator=and_(ge(1_000), le(3650 * 24 * 3_600_000)))
    retained_tasks: int = attrs.field(default=1_000_000, validator=and_(ge(1), le(10_000_000)))
    ageing_ms: int = attrs.field(default=60_000, validator=and_(ge(1), le(30 * 24 * 3_600_000)))
    groups: int = attrs.field(default=1_000, validator=and_(ge(0), le(100_000)))

    def __attrs_post_init__(self) -> None:
        if not self.min_lease_ms <= self.lease_ms <= self.max_lease_ms:
            raise ValueError("expected min_lease_ms <= lease_ms <= max_lease_ms")


@attrs.frozen(kw_only=True, slots=False)
class _Record:
    """A stored map as a value. Fields that a newer version added are ignored; fields with their default are not stored.

    Without slots: to change a copy of a dictionary costs a tenth of what calling the constructor with 27 fields does.
    """

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The record of stored bytes.

        Raises:
            TypeError, ValueError, AttributeError: They are none, as another host may have written (THREATS T6).
        """
        types = _types(cls)
        values = {}
        for name, value in unpack(data).items():
            allowed = types.get(name)
            if allowed is None:
                continue
            if allowed is _STRINGS:
                if type(value) is not list or not all(type(one) is str for one in value):
                    raise TypeError(f"{name} of a {cls.__name__} is a list of texts, got {value!r:.80}")
            elif allowed is not _ANYTHING and type(value) not in allowed:
                raise TypeError(f"{name} of a {cls.__name__} is no {type(value).__name__}: {value!r:.80}")
            values[name] = value
        return cls(**values)

    def to_map(self) -> dict[str, Any]:
        """The map to store."""
        defaults = _fields(type(self))
        return {name: value for name, value in self.__dict__.items() if value != defaults[name]}

    def evolve(self, **changes: Any) -> Self:
        """This record with some fields changed; their names are the caller's to get right."""
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__, **changes)
        return changed


_FIELDS: dict[str, dict[str, Any]] = {}


def _fields(cls: type[_Record]) -> dict[str, Any]:
    """Name -> default of a record's fields, `attrs.NOTHING` for none; an empty container made by a factory counts as its own default."""
    fields = _FIELDS.get(cls.__name__)
    if fields is None:
        fields = _FIELDS[cls.__name__] = {}
        for field in attrs.fields(cls):
            factory = getattr(field.default, "factory", None)
            fields[field.name] = factory() if factory is not None else field.default
    return fields


_ANYTHING: Final = frozenset[type]()
_STRINGS: Final = frozenset([list])
_TYPES: dict[str, dict[str, frozenset[type]]] = {}


def _types(cls: type[_Record]) -> dict[str, frozenset[type]]:
    """Name -> what the value of a record's field may be."""
    types = _TYPES.get(cls.__name__)
    if types is None:
        hints = get_type_hints(cls)
        types = _TYPES[cls.__name__] = {field.name: _allowed(hints[field.name]) for field in attrs.fields(cls)}
    return types


def _allowed(hint: Any) -> frozenset[type]:
    if hint is Any:
        return _ANYTHING
    if hint == list[str]:
        return _STRINGS
    return frozenset(get_origin(one) or one for one in (get_args(hint) if isinstance(hint, UnionType) else (hint,)))


@attrs.frozen(kw_only=True, slots=False)
class TaskRecord(_Record):
    """A task as stored. Whether an open one is waiting, ready or claimed follows from the other keys and is never stored."""

    n: int
    title: str
    state: str = OPEN
    description: str = ""
    capabilities: list[str] = attrs.field(factory=list)
    depends_on: list[str] = attrs.field(factory=list)
    resources: list[str] = attrs.field(factory=list)
    filler: bool = False
    priority: int = 0
    estimate_micro_usd: int = 0
    payload: dict[str, Any] = attrs.field(factory=dict)
    milestones: list[Any] = attrs.field(factory=list)
    created_at_ms: int = 0
    uid: int = 0
    blocker: str = ""
    route: str = ""
    percent: int = 0
    note: str = ""
    progress_at_ms: int = 0
    attempts: int = 0
    spent_micro_usd: int = 0
    result: Any = None
    error: str = ""
    ended_at_ms: int = 0
    last_holder: str = ""
    last_token: int = 0
    last_claimed_at_ms: int = 0
    options: dict[str, Any] = attrs.field(factory=dict)
    history: dict[str, Any] = attrs.field(factory=dict)
    group: str = ""
    pause: dict[str, Any] = attrs.field(factory=dict)
    concurrency_key: str = ""
    concurrency_limit: int = 0
    weight: int = 1


@attrs.frozen(kw_only=True, slots=False)
class TaskOptions(_Record):
    """What its creator asked for the task's life, `TaskRecord.options`. Most tasks ask for nothing, and pay one empty map.

    Attributes:
        not_before_at_ms: Nobody gets it before; 0: at once.
        deadline_at_ms: Not completed by then, it has expired; 0: never.
        lease_ms: Lease of a claim that asks for none; 0: the session's, or the daemon's default.
        max_attempts: Failed or lost attempts after which it is dead; 0: no retry rule, the first failure is final.
        backoff: ``base_ms``, ``factor``, ``cap_ms``, ``jitter`` as far as they were given.
        unique_key: At most one open task of its user has it; ``""``: none.
        retention_ms: Kept so long once it is final; None: the configuration's.
        on_dependency_failure: ``wait``, ``cancel`` or ``run`` when one that it depends on ends without being completed.
    """

    not_before_at_ms: int = 0
    deadline_at_ms: int = 0
    lease_ms: int = 0
    max_attempts: int = 0
    backoff: dict[str, Any] = attrs.field(factory=dict)
    unique_key: str = ""
    retention_ms: int | None = None
    on_dependency_failure: str = "wait"

    @classmethod
    def of(cls, task: TaskRecord) -> TaskOptions:
        """The options of a task."""
        return cls(**task.options) if task.options else _NO_OPTIONS


@attrs.frozen(kw_only=True, slots=False)
class TaskHistory(_Record):
    """What became of a task's attempts, `TaskRecord.history`. Empty until something did not go straight.

    Attributes:
        failures: Failed and lost attempts since it was created or requeued.
        retry_at_ms: Backing off until then.
        errors: Of the newest of them, oldest first: ``{"attempt", "at_ms", "swarm_id", "token", "reason", "error"}``.
        artefacts: What holders have left: ``{"name", "sha256", "bytes"}``.
        ended: Why the last claim ended early: ``{"token", "reason", "why"?}``.
        attempt: Who holds it, where a lost attempt counts: still there without a claim, the loss is not on record yet.
        reason: Why it is final without a verdict.
        awaited_at_ms: When, final and not completed, it last got a dependant.
    """

    failures: int = 0
    retry_at_ms: int = 0
    errors: list[dict[str, Any]] = attrs.field(factory=list)
    artefacts: list[dict[str, Any]] = attrs.field(factory=list)
    ended: dict[str, Any] = attrs.field(factory=dict)
    attempt: dict[str, Any] = attrs.field(factory=dict)
    reason: str = ""
    awaited_at_ms: int = 0

    @classmethod
    def of(cls, task: TaskRecord) -> TaskHistory:
        """The history of a task."""
        return cls(**task.history) if task.history else _NO_HISTORY


_NO_OPTIONS: Final = TaskOptions()
_NO_HISTORY: Final = TaskHistory()


@attrs.frozen(kw_only=True, slots=False)
class ClaimRecord(_Record):
    """Who holds a task, since when, and how far the holder is.

    Attributes:
        incarnation: Of the session in which it was made; 0 without one.
        own_lease: The lease is this claim's alone and ends with it; otherwise it is the session's.
        with_session: It is, because the task asks for its length: the session's renewals renew it, and its end ends it.
        bound: What frees it at once beside its lease, as `bindings.Holder` stores it; empty for the lease alone, or the session's.
        evidence_at_ms: When it last came further; 0 where it has not since it was claimed.
        evidence_micro_usd: What had been spent on the task by then.
        blocked_on, next_action: What the holder says that it waits for, and what it does next.
        given_by: The daemon that gave it out, where several share the store.
        ends_with: Keys that hang on its lease and are deleted in the transaction that ends it.
    """

    swarm_id: str
    incarnation: int
    uid: int
    lease_ms: int
    claimed_at_ms: int
    own_lease: bool = False
    with_session: bool = False
    reserved_micro_usd: int = 0
    percent: int = 0
    note: str = ""
    progress_at_ms: int = 0
    bound: dict[str, Any] = attrs.field(factory=dict)
    evidence_at_ms: int = 0
    evidence_micro_usd: int = 0
    blocked_on: str = ""
    next_action: str = ""
    given_by: str = ""
    ends_with: list[str] = attrs.field(factory=list)

    @property
    def bound_to(self) -> str:
        """``process``, ``connection``, ``session`` or ``lease``."""
        kind: str = self.bound.get("kind") or ("lease" if self.own_lease else "session")
        return kind


@attrs.frozen(kw_only=True, slots=False)
class SessionRecord(_Record):
    """A live registration.

    Attributes:
        token_hash: SHA-256 of the resume token.
        slots: The weights of all that is claimed in it add up to so much at most; 0: no bound.
        bound: What ends it at once beside its lease, as `bindings.Holder` stores it; empty for the lease alone.
    """

    incarnation: int
    uid: int
    lease_ms: int
    token_hash: bytes
    started_at_ms: int = 0
    slots: int = 0
    bound: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, slots=False)
class LockRecord(_Record):
    """A resource that is held.

    Attributes:
        task_id: It is held for the swarm's claim of this task and ends with it; ``""`` for the swarm by itself.
        incarnation: Of the session whose lease it lives on; 0 without one.
        own_lease: The lease is this hold's alone.
        held_id: Of its `HeldRecord`, where it is held for no claim.
    """

    swarm_id: str
    uid: int
    at_ms: int
    task_id: str = ""
    incarnation: int = 0
    own_lease: bool = False
    held_id: str = ""


@attrs.frozen(kw_only=True, slots=False)
class HeldRecord(_Record):
    """That a swarm took a resource by itself, written with its lock, but on no lease; its create-revision is the fence.

    Attributes:
        incarnation: Of the session whose lease the lock lives on; 0 without one.
    """

    resource: str
    swarm_id: str
    incarnation: int = 0


@attrs.frozen(kw_only=True, slots=False)
class QuestionRecord(_Record):
    """A question that a swarm waits to have answered, on the lease of its claim or session, or its own.

    Attributes:
        to: The swarm that is to answer; ``person`` for an operator.
        task_id: It is asked for the swarm's claim of this task and ends with it; ``""`` for the swarm by itself.
        answered_at_ms: 0 while it is open.
    """

    swarm_id: str
    uid: int
    to: str
    question: str
    at_ms: int
    task_id: str = ""
    answer: Any = None
    answered_at_ms: int = 0
    answered_by_uid: int = -1

    @property
    def source(self) -> str:
        """The node that waits."""
        return f"task:{self.task_id}" if self.task_id else f"swarm:{self.swarm_id}"


@attrs.frozen(kw_only=True, slots=False)
class WaitRecord(_Record):
    """Somebody waits for resources right now."""

    swarm_id: str
    resources: list[str]
    at_ms: int
    task_id: str = ""

    @property
    def source(self) -> str:
        """The node that waits."""
        return f"task:{self.task_id}" if self.task_id else f"swarm:{self.swarm_id}"


@attrs.frozen(kw_only=True, slots=False)
class GroupRecord(_Record):
    """What an operator decided about a group of tasks.

    Attributes:
        weight: Its share beside other groups; 0 where it has none of its own.
        pause: `ifbusd.pause`; empty while it goes on.
    """

    weight: int = 0
    pause: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, slots=False)
class KeyRecord(_Record):
    """Which tasks may hold a place of a concurrency key: all that do, and some whose claim has ended since."""

    tasks: list[str] = attrs.field(factory=list)


@attrs.frozen(kw_only=True, slots=False)
class LoadRecord(_Record):
    """The weights by task of what a session may hold: of all that it does, and of some whose claim has ended since."""

    weights: dict[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, slots=False)
class MessageRecord(_Record):
    """One letter of an inbox; `uid` is the user who caused it, by the kernel's word, whatever the `sender`."""

    kind: str
    body: dict[str, Any]
    uid: int = -1
    sender: str = ""
    at_ms: int = 0
    urgent: bool = False


@attrs.frozen(kw_only=True, slots=False)
class BlockerRecord(_Record):
    """An open blocker.

    Attributes:
        due_at_ms: When it is brought before people if it is open still; 0: never.
        escalated_at_ms: When it was; 0: it was not.
    """

    swarm_id: str
    reason: str
    uid: int
    task_id: str = ""
    token: int = 0
    severity: str = "medium"
    needs: list[str] = attrs.field(factory=list)
    helpers: list[str] = attrs.field(factory=list)
    at_ms: int = 0
    due_at_ms: int = 0
    escalated_at_ms: int = 0
