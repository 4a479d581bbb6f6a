"""The exit-code table (UX 4): one function from an error's code to what the shell sees. Pure."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
BUG: Final = 1
WRONG_CALL: Final = 2
REFUSED: Final = 3
NOT_FOUND: Final = 4
NOT_ALLOWED: Final = 5
LOST: Final = 6
NOT_YET: Final = 7
FOUND_SOMETHING: Final = 8
NO_DAEMON: Final = 9
THE_MOMENT: Final = 10
# What a shell reports of a program that Ctrl-C ended: 128 + SIGINT.
INTERRUPTED: Final = 130

MEANING: Final = {
    DONE: "done, or already so; an empty list",
    BUG: "a bug of ours (`internal` and an id)",
    WRONG_CALL: "wrong call or configuration",
    REFUSED: "refused by the state of the world: read `would_change`",
    NOT_FOUND: "not found",
    NOT_ALLOWED: "not allowed: ask an operator",
    LOST: "lost: stale claim, lease gone, cancelled; stop that work at once",
    NOT_YET: "not yet: nothing ready, or `--wait` ran out",
    FOUND_SOMETHING: "a check found something",
    NO_DAEMON: "no daemon",
    THE_MOMENT: "the moment: overloaded, unavailable, timed out; same `--key` later",
}

_BY_CODE: Final = {
    "internal": BUG,
    "protocol_error": BUG,
    "usage": WRONG_CALL,
    "handle_required": WRONG_CALL,
    "invalid_request": WRONG_CALL,
    "unknown_method": WRONG_CALL,
    "invalid_params": WRONG_CALL,
    "invalid_module": WRONG_CALL,
    "config_invalid": WRONG_CALL,
    "idempotency_conflict": WRONG_CALL,
    "version_mismatch": WRONG_CALL,
    "already_claimed": REFUSED,
    "already_exists": REFUSED,
    "resource_busy": REFUSED,
    "not_kept": REFUSED,
    "would_deadlock": REFUSED,
    "not_ready": REFUSED,
    "paused": REFUSED,
    "at_capacity": REFUSED,
    "not_qualified": REFUSED,
    "not_owner": REFUSED,
    "budget_exceeded": REFUSED,
    "breaker_tripped": REFUSED,
    "limit_exceeded": REFUSED,
    "compile_limit": REFUSED,
    "guest_failed": REFUSED,
    "not_found": NOT_FOUND,
    "permission_denied": NOT_ALLOWED,
    "stale_token": LOST,
    "lease_lost": LOST,
    "cancelled": LOST,
    "no_daemon": NO_DAEMON,
    "daemon_not_running": NO_DAEMON,
    "daemon_dead_socket": NO_DAEMON,
    "socket_denied": NO_DAEMON,
    "socket_blocked": NO_DAEMON,
    "overloaded": THE_MOMENT,
    "unavailable": THE_MOMENT,
    "deadline_exceeded": THE_MOMENT,
    "connection_lost": THE_MOMENT,
}


def exit_code(code: str, *, waited: bool = False) -> int:
    """What the shell sees for an error.

    Args:
        code: The error's stable code. An unknown one, of a newer daemon, counts as refused: its message says what it is.
        waited: The caller asked for the next one or waited: then "held", "not ready" and their like mean not yet.
    """
    if waited and code in ("not_ready", "already_claimed", "resource_busy", "paused", "at_capacity"):
        return NOT_YET
    return _BY_CODE.get(code, REFUSED)
