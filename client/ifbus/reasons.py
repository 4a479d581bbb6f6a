"""Every "no" of the daemon: which figures it carries and who could turn it. Source of docs/reasons.md.

``python -m ifbus.reasons docs/reasons.md`` writes the page. A test provokes the refusals one by one and holds each against its
row here; what a code means and what to type is in `ifbus.catalogue`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, NamedTuple

from ifbus.catalogue import CATALOGUE
from ifbus.cli.exits import exit_code
from ifbus.errors import BY_CODE, ConnectionFailed, Internal, Momentary, Party, Refused


class Reason(NamedTuple):
    """One code of the daemon.

    Attributes:
        figures: Names that `data` always has.
        also: Names that it may have besides, as the case is. Every refused change has ``receipt``, too.
        turned_by: Who is named in `would_change`; for a refusal (`ifbus.errors.Refused`) it always names somebody.
    """

    figures: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    turned_by: tuple[Party, ...] = ()


_RETRY: Final = "retry_after_ms"

REASONS: Final[dict[str, Reason]] = {
    # --- the request: mend it ------------------------------------------------------------------------
    "invalid_request": Reason((), ("msgid", "task_id", "swarm_id", "token"), ("self",)),
    "unknown_method": Reason(("method",), ("nearest",)),
    "invalid_params": Reason(
        ("param",),
        (
            "at",
            "index",
            "cycle",
            "expected",
            "used",
            "allowed",
            "asked",
            "least",
            "max",
            "nearest",
            "spent_usd",
            "task_id",
            "bind",
            "reason",
        ),
        ("self",),
    ),
    "invalid_module": Reason((), ("module_sha256", "found", "kind"), ("self",)),
    "not_found": Reason(
        (),
        (
            *(
                "task_id",
                "tasks",
                "swarm_id",
                "blocker_id",
                "open",
                "reply_id",
                "reservation_id",
                "module_sha256",
                "loaded",
            ),
            *("profile", "profiles", "bind", "reason"),
        ),
        ("self",),
    ),
    "permission_denied": Reason(
        (),
        (
            "uid",
            "role",
            "task_id",
            "swarm_id",
            "sender_uid",
            "owner_uid",
            "wanted_usd",
            "bound_usd",
            "blocker_id",
            "reply_id",
            "may",
            "profile",
            "bind",
            "reason",
        ),
        ("self", "operator", "other"),
    ),
    "idempotency_conflict": Reason(("key", "first_op"), (), ("self",)),
    "version_mismatch": Reason(("client_protocol", "daemon_protocol", "build", "pid"), (), ("self", "operator")),
    # --- the state of the world: decide anew ---------------------------------------------------------
    "already_exists": Reason(("task_id",), (), ("self",)),
    "already_claimed": Reason(
        ("task_id", "owner", "token", "held_ms", "percent", "lease_left_ms"), ("instead",), ("self", "other")
    ),
    "not_ready": Reason(
        ("state",),
        (
            "task_id",
            "waits_for",
            "blocker_id",
            "owner",
            "token",
            "swarm_id",
            "ready",
            "too_dear_usd",
            "instead",
            "start_at_ms",
            "start_in_ms",
            "deadline_at_ms",
            "unique_key",
            "existing",
        ),
        ("self", "other", "time"),
    ),
    "paused": Reason(
        ("paused", "name", "by_uid", "by_operator", "reason", "since_at_ms"),
        ("until_at_ms", "instead"),
        ("operator", "other"),
    ),
    "at_capacity": Reason(
        ("limit", "task_id", "used", "allowed", "holders"),
        ("key", "swarm_id", "weight", "instead"),
        ("self", "other"),
    ),
    "not_qualified": Reason(
        ("swarm_id", "overlap", "jaccard", "coverage", "threshold", "similarity", "missing"), ("instead",), ("self",)
    ),
    "resource_busy": Reason(
        ("resource", "owner", "token", "held_ms", "lease_left_ms"), ("held_for", "instead"), ("self", "other")
    ),
    "would_deadlock": Reason(("cycle", "edges"), (), ("self", "other")),
    "not_kept": Reason(("after_seq", "oldest_seq", "newest_seq"), (), ("self",)),
    "not_owner": Reason(("task_id", "token", "owner"), ("resource",), ("other",)),
    "stale_token": Reason(
        (),
        (
            "task_id",
            "token",
            "owner",
            "owner_token",
            "incarnation",
            "owner_incarnation",
            "swarm_id",
            "reason",
            "why",
            "state",
            "deadline_at_ms",
            "resource",
        ),
        ("self",),
    ),
    "budget_exceeded": Reason(
        ("swarm_id", "needs_usd", "spent_usd", "limit_usd", "reserved_usd", "free_usd", "short_by_usd"),
        ("instead",),
        ("self", "operator", "time"),
    ),
    "breaker_tripped": Reason(("swarm_id", "reason", "cause", "tripped_at_ms", "tasks"), (), ("operator",)),
    "limit_exceeded": Reason(("limit", "allowed"), ("used", _RETRY, "bind"), ("self", "operator", "time")),
    "compile_limit": Reason(("limit", "used", "allowed", "profile"), (), ("self", "operator")),
    "guest_failed": Reason((), ("memory_bytes", "memory_limit_bytes", "stderr", "output_bytes"), ("self",)),
    # --- the moment: the same again, after `retry_after_ms` ------------------------------------------
    "overloaded": Reason((), (_RETRY, "used", "allowed", "uid", "waiting", "workers"), ("self",)),
    "unavailable": Reason((), (_RETRY, "reason", "pid", "path"), ("self",)),
    "deadline_exceeded": Reason(),
    "cancelled": Reason(),
    # --- the end of a connection, and a bug ----------------------------------------------------------
    "protocol_error": Reason(("reason",), ("allowed",)),
    "internal": Reason(("id",)),
}

_STEP: Final = {
    Refused: "decide anew, by `would_change`",
    Momentary: "the same request and key again",
    Internal: "report the id",
    ConnectionFailed: "mend the program",
}


def markdown() -> str:
    """docs/reasons.md."""
    lines = [
        "<!-- Generated by `python -m ifbus.reasons docs/reasons.md`; edit ifbus/reasons.py instead. -->\n",
        "# Reasons\n",
        'Every "no" of the daemon is `{code, message, data}`. `data` carries the figures that decided, and in `would_change` what '
        "would turn the answer: `by` whom (`self` is the caller, `time` passes), `what` that is, and the `call` to type if there is "
        "one. A refused change also has the `receipt` of its entry in the record.\n",
        "What a code means and what to type: [messages](messages.md).\n",
        "| code | exit | always in `data` | may be there | turned by | next step |",
        "|---|---|---|---|---|---|",
    ]
    for code, reason in REASONS.items():
        step = next((step for kind, step in _STEP.items() if issubclass(BY_CODE[code], kind)), "mend the request")
        lines.append(
            f"| [{code}](messages.md#{code}) | {exit_code(code)} | {_named(reason.figures)} | {_named(reason.also)} "
            f"| {', '.join(reason.turned_by)} | {step} |"
        )
    client = [code for code in CATALOGUE if code not in REASONS]
    lines.append(f"\nOnly a client meets {_named(tuple(client))}: no daemon has answered.")
    return "\n".join(lines) + "\n"


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
