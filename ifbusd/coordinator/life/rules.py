"""The states of a task as a table, and every decision about its end, its retry and what the next owner gets. Pure.

Stored is only ``open`` or how a task ended; which of the open states it is in follows from other keys and the time (`state_of`).
A move that the table lacks is refused (`require`), or, where the daemon itself would make it, a bug (`move`).
"""

from __future__ import annotations

from typing import Any, Final

from ifbus.errors import InvalidParams, NotReady
from ifbus.models import SHA256, check_identifier
from ifbus.money import to_usd
from ifbusd.codec import how_many_fit, pack
from ifbusd.coordinator.model import (
    CANCELLED,
    COMPLETED,
    DEAD,
    EXPIRED,
    FAILED,
    OPEN,
    CoordinatorConfig,
    TaskHistory,
    TaskOptions,
    TaskRecord,
)

WAITING, SCHEDULED, READY, CLAIMED, BLOCKED = "waiting", "scheduled", "ready", "claimed", "blocked"
PAUSED: Final = "paused"
OPEN_STATES: Final = (WAITING, SCHEDULED, READY, CLAIMED, BLOCKED, PAUSED)
FINAL_STATES: Final = (COMPLETED, FAILED, DEAD, CANCELLED, EXPIRED)
STATES: Final = (*OPEN_STATES, *FINAL_STATES)
# Before it is created, after it was removed.
NONE: Final = ""
# Whatever is open and held by nobody: which of these follows from dependencies and the time.
_FREE: Final = (WAITING, SCHEDULED, READY)
# The same where it may have been paused meanwhile.
_BACK: Final = (*_FREE, PAUSED)

# From one state, by one event, to these; which of several is decided by the rule that the event names below.
TABLE: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    (NONE, "create"): _FREE,
    (WAITING, "dependencies_met"): (SCHEDULED, READY),
    # What it depends on was requeued, and it is one that ran without it.
    (SCHEDULED, "dependency_requeued"): (WAITING,),
    (READY, "dependency_requeued"): (WAITING,),
    (SCHEDULED, "time_reached"): (READY,),
    (READY, "claim"): (CLAIMED,),
    (CLAIMED, "complete"): (COMPLETED,),
    (CLAIMED, "fail"): (*_BACK, FAILED, DEAD),
    (CLAIMED, "lose"): (*_BACK, DEAD),
    (CLAIMED, "release"): _BACK,
    (CLAIMED, "block"): (BLOCKED,),
    (BLOCKED, "unblock"): _BACK,
    # Whoever holds it goes on, and what is blocked stays so: there a pause shows when that is over.
    **{(state, "pause"): (PAUSED,) for state in _FREE},
    (PAUSED, "resume"): _FREE,
    **{(state, "cancel"): (CANCELLED,) for state in OPEN_STATES},
    **{(state, "expire"): (EXPIRED,) for state in OPEN_STATES},
    **{(state, "requeue"): _BACK for state in (FAILED, DEAD, CANCELLED, EXPIRED)},
    **{(state, "remove"): (NONE,) for state in FINAL_STATES},
}
EVENTS: Final = tuple(dict.fromkeys(event for _, event in TABLE))


def _stored(state: str) -> str:
    return OPEN if state in OPEN_STATES else state


# The same by what is stored.
_MOVES: Final = {
    (_stored(source), event, _stored(target)) for (source, event), targets in TABLE.items() for target in targets
}

# Each error that is kept of an attempt, and all of them, as packed; with 40 KiB of task they fit into an answer.
MAX_KEPT_ERRORS: Final = 16
_KEPT_ERROR_BYTES: Final = 400
_KEPT_ERRORS_BYTES: Final = 6 << 10
# With those and the longest error of the last attempt.
_MAX_TASK_BYTES: Final = 60 << 10
MAX_ARTEFACTS: Final = 16
MAX_ATTEMPTS: Final = 100
# Of a unique key, so that it stands in a store key and a witness entry.
MAX_UNIQUE_KEY: Final = 128
_TEN_YEARS_MS: Final = 3650 * 24 * 3_600_000
# The field's usual ones: a second, doubled each time up to five minutes, half of it chance so that a herd spreads out.
DEFAULT_BACKOFF: Final[dict[str, Any]] = {"base_ms": 1_000, "factor": 2.0, "cap_ms": 300_000, "jitter": 0.5}
# A power beyond it is above any cap.
_MAX_EXPONENT: Final = 64
ON_DEPENDENCY_FAILURE: Final = ("wait", "cancel", "run")
_TASK_SHOW: Final = "ifbus task show {task_id}"


def shown(task: TaskRecord) -> dict[str, Any]:
    """What a task's view says of its options and history, without what is empty."""
    history = TaskHistory.of(task)
    found = {
        **task.options,
        "failures": history.failures,
        "retry_at_ms": history.retry_at_ms if task.state == OPEN else 0,
        "errors": history.errors,
        "artefacts": history.artefacts,
        "reason": history.reason,
    }
    return {name: value for name, value in found.items() if value or name == "retention_ms"}


# --- the table ---------------------------------------------------------------------------------------


def state_of(task: TaskRecord, *, is_claimed: bool, is_waiting: bool, now_ms: int) -> str:
    """The state that people see. Keep in step with `Board._refresh`, which a test compares with this."""
    if task.state != OPEN:
        return task.state
    if task.options and 0 < task.options.get("deadline_at_ms", 0) <= now_ms:
        return EXPIRED  # on record in a moment; nobody may act on it any more
    if task.blocker:
        return BLOCKED
    if is_claimed or (task.history and "attempt" in task.history):
        return CLAIMED
    if task.pause:
        return PAUSED
    if is_waiting:
        return WAITING
    return SCHEDULED if start_at_ms(task) > now_ms else READY


def require(task_id: str, state: str, event: str) -> None:
    """Raise NotReady if the table has no such move from this state."""
    if (state, event) in TABLE:
        return
    sources = [source for source in STATES if (source, event) in TABLE]
    raise NotReady(
        f"cannot {event} {task_id}: it is {state}; only {_either(sources)} tasks can be",
        data={"task_id": task_id, "state": state},
        would_change=[{"by": "self", "what": "look at it", "call": _TASK_SHOW.format(task_id=task_id)}],
    )


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def move(task: TaskRecord, event: str, to: str, **changes: Any) -> TaskRecord:
    """The task after an event, open again (`OPEN`) or final.

    Raises:
        AssertionError: The table knows no such move from how the task is stored: a bug.
    """
    if (task.state, event, to) not in _MOVES:
        raise AssertionError(f"the table has no move from {task.state} to {to} by {event}")
    return task.evolve(state=to, **changes)


# --- times -------------------------------------------------------------------------------------------


def start_at_ms(task: TaskRecord) -> int:
    """When an open task may be claimed at the earliest: its scheduled start, or the end of its backoff; 0: at once."""
    start = task.options.get("not_before_at_ms", 0) if task.options else 0
    retry = task.history.get("retry_at_ms", 0) if task.history else 0
    return max(start, retry)


def deadline_at_ms(task: TaskRecord) -> int:
    """When an open task expires; 0: never."""
    found: int = task.options.get("deadline_at_ms", 0) if task.options else 0
    return found


def is_overdue(task: TaskRecord, now_ms: int) -> bool:
    """Whether the deadline of an open task has passed."""
    return task.state == OPEN and 0 < deadline_at_ms(task) <= now_ms


def removable_at_ms(task: TaskRecord, retention_ms: int) -> int:
    """When a final task has been kept for long enough.

    Args:
        retention_ms: The configuration's, for a task that does not say.
    """
    own = task.options.get("retention_ms") if task.options else None
    since = max(task.ended_at_ms, task.history.get("awaited_at_ms", 0) if task.history else 0)
    return since + (retention_ms if own is None else own)


def not_due(task_id: str, task: TaskRecord, now_ms: int) -> NotReady | None:
    """Why the time of an open task has not come, or has passed; None if neither."""
    if is_overdue(task, now_ms):
        return NotReady(
            f"cannot claim {task_id}: its deadline has passed {now_ms - deadline_at_ms(task)} ms ago",
            data={"task_id": task_id, "state": EXPIRED, "deadline_at_ms": deadline_at_ms(task)},
            would_change=[
                {"by": "other", "what": "its creator requeues it", "call": f"ifbus task requeue {task_id}"},
                {"by": "self", "what": "take another task", "call": "ifbus task next"},
            ],
        )
    if task.history and "attempt" in task.history:
        return NotReady(
            f"cannot claim {task_id}: its last claim has just ended, which is being put on record",
            data={"task_id": task_id, "state": CLAIMED},
            would_change=[
                {"by": "time", "what": "a moment passes", "call": f"ifbus task claim {task_id} --wait 10m"},
            ],
        )
    start = start_at_ms(task)
    if start <= now_ms:
        return None
    return NotReady(
        f"cannot claim {task_id}: it is scheduled to start in {start - now_ms} ms",
        data={"task_id": task_id, "state": SCHEDULED, "start_at_ms": start, "start_in_ms": start - now_ms},
        would_change=[
            {"by": "time", "what": "its start is reached", "call": f"ifbus task claim {task_id} --wait 10m"},
            {"by": "self", "what": "take another task", "call": "ifbus task next"},
        ],
    )


# --- what a creator asks for -------------------------------------------------------------------------


def check_options(options: TaskOptions, config: CoordinatorConfig, now_ms: int) -> None:
    """Raise InvalidParams, naming the parameter, if a new task asks for what it cannot have."""
    longest = now_ms + _TEN_YEARS_MS
    _require("not_before_at_ms", 0 <= options.not_before_at_ms <= longest, "epoch milliseconds, within ten years")
    _require(
        "deadline_at_ms",
        not options.deadline_at_ms or max(now_ms, options.not_before_at_ms) < options.deadline_at_ms <= longest,
        "epoch milliseconds, after now and after not_before_at_ms, within ten years",
    )
    shortest_ms, longest_ms = config.min_lease_ms, config.max_lease_ms
    _require(
        "lease_ms",
        not options.lease_ms or shortest_ms <= options.lease_ms <= longest_ms,
        f"{shortest_ms} to {longest_ms} ms",
    )
    _require("max_attempts", 0 <= options.max_attempts <= MAX_ATTEMPTS, f"1 to {MAX_ATTEMPTS}")
    _require(
        "unique_key",
        len(options.unique_key) <= MAX_UNIQUE_KEY and options.unique_key.isprintable(),
        f"one line of 1 to {MAX_UNIQUE_KEY} characters",
    )
    _require(
        "retention_ms",
        options.retention_ms is None or 0 <= options.retention_ms <= _TEN_YEARS_MS,
        "0 to ten years in ms",
    )
    _require(
        "on_dependency_failure",
        options.on_dependency_failure in ON_DEPENDENCY_FAILURE,
        _either([f'"{choice}"' for choice in ON_DEPENDENCY_FAILURE]),
    )
    _check_backoff(options.backoff)


def _check_backoff(backoff: dict[str, Any]) -> None:
    for name, value in backoff.items():
        _require("backoff", name in DEFAULT_BACKOFF, f"a map of {', '.join(DEFAULT_BACKOFF)}")
        is_span = name.endswith("_ms")
        _require(
            "backoff", type(value) is int or (type(value) is float and not is_span), f"a number as {name} in a map"
        )
        low, high = {"factor": (1, 100), "jitter": (0, 1)}.get(name, (0, 24 * 3_600_000))
        _require("backoff", low <= value <= high, f"{low} to {high} as {name}")


def _require(param: str, is_fine: bool, expected: str) -> None:
    if not is_fine:
        raise InvalidParams(f"{param} must be {expected}", data={"param": param, "expected": expected})


def find_cycle(depends_on: dict[str, list[str]]) -> list[str] | None:
    """Some that wait for one another in a circle, from one of them back to it; None if there are none.

    Args:
        depends_on: By task; what is no key of it waits for none of them.
    """
    done: set[str] = set()
    for first in depends_on:
        path: dict[str, None] = {}  # in order
        left = [(first, False)]
        while left:
            name, is_left = left.pop()
            if is_left:
                del path[name]
                done.add(name)
            elif name in path:
                names = list(path)
                return [*names[names.index(name) :], name]
            elif name not in done and name in depends_on:
                path[name] = None
                left.append((name, True))
                left += [(other, False) for other in depends_on[name]]
    return None


# --- attempts ----------------------------------------------------------------------------------------


def counts_attempts(task: TaskRecord) -> bool:
    """Whether a lost claim decides what becomes of the task, so that the next one must wait until that is on record."""
    return bool(task.options) and ("max_attempts" in task.options or "backoff" in task.options)


def begin_attempt(task: TaskRecord, swarm_id: str) -> TaskRecord:
    """The task of a claim that counts."""
    return task.evolve(history={**task.history, "attempt": {"swarm_id": swarm_id}})


def end_attempt(task: TaskRecord, token: int, reason: str, why: str = "") -> TaskRecord:
    """The task with why its claim ended early, for the next owner and for what the former one still tries."""
    ended = {"token": token, "reason": reason, "why": why[:_KEPT_ERROR_BYTES]}
    history = {name: value for name, value in task.history.items() if name != "attempt"}
    return task.evolve(history={**history, "ended": {name: value for name, value in ended.items() if value}})


def forget_attempt(task: TaskRecord) -> TaskRecord:
    """The task without a claim under way."""
    if not task.history or "attempt" not in task.history:
        return task
    return task.evolve(history={name: value for name, value in task.history.items() if name != "attempt"})


def backoff_ms(task: TaskRecord, failures: int, chance: float) -> int:
    """How long a task rests after so many failures in a row; exponential, with a share of chance that shortens it.

    Args:
        chance: 0 to 1.
    """
    options = TaskOptions.of(task)
    if not (options.max_attempts or options.backoff):
        return 0
    backoff = {**DEFAULT_BACKOFF, **options.backoff}
    longest: int = backoff["cap_ms"]
    power = backoff["factor"] ** min(failures - 1, _MAX_EXPONENT)
    rest_ms: float = min(longest, backoff["base_ms"] * power) * (1 - backoff["jitter"] * chance)
    return round(rest_ms)


def after_failure(
    task: TaskRecord,
    *,
    event: str,
    reason: str,
    error: str,
    swarm_id: str,
    token: int,
    now_ms: int,
    chance: float,
    retry: bool | None = None,
) -> TaskRecord:
    """The task after an attempt that failed or was lost: counted, its error kept, and open again, failed or dead.

    Args:
        event: ``fail`` or ``lose``, which always retries.
        reason: In a word: ``failed``, ``lease_ended``, ``process_ended`` ...
        retry: None: if the task has a retry rule; False: this failure is final; True: offer it again while attempts are left.
    """
    options, history = TaskOptions.of(task), TaskHistory.of(task)
    failures = history.failures + 1
    kept = {
        "attempt": task.attempts,
        "at_ms": now_ms,
        "swarm_id": swarm_id,
        "token": token,
        "reason": reason,
        "error": _cut(error),
    }
    after = end_attempt(task, token, reason, error)
    after = after.evolve(history={**after.history, "failures": failures, "errors": _newest([*history.errors, kept])})
    may_retry = event == "lose" or (bool(options.max_attempts) if retry is None else retry)
    has_attempts = not options.max_attempts or failures < options.max_attempts
    if may_retry and has_attempts:
        rest_ms = backoff_ms(task, failures, chance)
        if rest_ms:
            after = after.evolve(history={**after.history, "retry_at_ms": now_ms + rest_ms})
        return _fitting(move(after, event, OPEN, error=kept["error"] or after.error))
    state = DEAD if options.max_attempts else FAILED
    return _fitting(move(after, event, state, error=error or reason, ended_at_ms=now_ms))


def _fitting(task: TaskRecord) -> TaskRecord:
    """The same task, without the errors of former attempts, and the last one's cut, if it would not fit into an answer with them."""
    history = task.history
    while (excess := len(pack(task.to_map())) - _MAX_TASK_BYTES) > 0 and len(history.get("errors", ())) > 1:
        history = {**history, "errors": history["errors"][1:]}
        task = task.evolve(history=history)
    if excess <= 0:
        return task
    error = task.error.encode()
    return task.evolve(error=error[: max(0, len(error) - excess)].decode(errors="ignore"))


def _cut(text: str) -> str:
    return text.encode()[:_KEPT_ERROR_BYTES].decode(errors="ignore")


def _newest(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    newest = errors[::-1][:MAX_KEPT_ERRORS]
    return newest[: how_many_fit(newest, _KEPT_ERRORS_BYTES)][::-1]


def requeued(task: TaskRecord, now_ms: int, deadline_at_ms: int | None) -> TaskRecord:
    """A final task open again: its attempts count anew, its errors stay, a deadline that has passed is dropped.

    Args:
        deadline_at_ms: A new deadline; None: the old one, if that has not passed.
    """
    options = dict(task.options)
    if deadline_at_ms is not None:
        options["deadline_at_ms"] = deadline_at_ms
    elif options.get("deadline_at_ms", now_ms) <= now_ms:
        options.pop("deadline_at_ms", None)
    gone = ("failures", "retry_at_ms", "reason", "awaited_at_ms", "attempt")
    history = {name: value for name, value in task.history.items() if name not in gone}
    return move(task, "requeue", OPEN, error="", ended_at_ms=0, blocker="", options=options, history=history)


# --- what the next owner gets ------------------------------------------------------------------------


def check_artefacts(artefacts: list[Any]) -> list[dict[str, Any]]:
    """The artefacts, if each is ``{"name", "sha256", "bytes"}``. Raises InvalidParams."""
    _require("artefacts", len(artefacts) <= MAX_ARTEFACTS, f"at most {MAX_ARTEFACTS}")
    for artefact in artefacts:
        _require(
            "artefacts",
            isinstance(artefact, dict)
            and artefact.keys() == {"name", "sha256", "bytes"}
            and isinstance(artefact["name"], str)
            and isinstance(artefact["sha256"], str)
            and SHA256.fullmatch(artefact["sha256"]) is not None
            and type(artefact["bytes"]) is int
            and artefact["bytes"] >= 0,
            '{"name": identifier, "sha256": 64 hex digits, "bytes": size} each',
        )
        check_identifier(artefact["name"], "artefact name")
    return artefacts


def with_artefacts(task: TaskRecord, artefacts: list[dict[str, Any]]) -> TaskRecord:
    """The task with what its holder leaves: one of the same name takes the other's place, beyond the bound the oldest go."""
    by_name = {artefact["name"]: artefact for artefact in TaskHistory.of(task).artefacts}
    for artefact in artefacts:
        by_name.pop(artefact["name"], None)
        by_name[artefact["name"]] = artefact
    return task.evolve(history={**task.history, "artefacts": list(by_name.values())[-MAX_ARTEFACTS:]})


def handover(task: TaskRecord) -> dict[str, Any] | None:
    """What earlier owners left for the next one; None if nobody held it before. At most about 12 KiB."""
    if not task.attempts:
        return None
    history = TaskHistory.of(task)
    pack: dict[str, Any] = {
        "attempts": task.attempts,
        "percent": task.percent,
        "spent_usd": to_usd(task.spent_micro_usd),
    }
    last = {"swarm_id": task.last_holder, "token": task.last_token, **history.ended}
    optional = {
        "note": task.note,
        "progress_at_ms": task.progress_at_ms,
        "artefacts": history.artefacts,
        "errors": history.errors,
        "last": last if task.last_holder else None,
    }
    pack.update({name: value for name, value in optional.items() if value})
    return pack


def why_ended(task: TaskRecord | None, token: int) -> dict[str, str]:
    """Why the claim of this token ended early, as figures of a refusal: ``reason``, ``why``, ``state``; empty if it is not known."""
    if task is None:
        return {}
    ended = task.history.get("ended", {}) if task.history else {}
    if ended.get("token") != token:
        return {}
    figures = {"reason": ended["reason"], "why": ended.get("why", ""), "state": task.state}
    return {name: value for name, value in figures.items() if value}


def in_words(why: dict[str, str]) -> str:
    """`why_ended` in a few words."""
    return f"{why['reason']}: {why['why']}" if why.get("why") else why["reason"]
