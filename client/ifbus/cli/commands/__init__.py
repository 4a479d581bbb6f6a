"""One module a noun; each has ``COMMANDS``: verb (``""`` for a noun alone) -> `ifbus.cli.command.Command`.

`task` has three, so that each command compiles and loads only what it needs (`ifbus.cli.grammar.module_of`).
"""

from __future__ import annotations

TASK_FIELDS = (
    "task_id", "title", "state", "description", "capabilities", "depends_on", "waits_for", "filler", "priority",
    "estimate_usd", "spent_usd", "payload", "milestones", "created_at_ms", "percent", "note", "progress_at_ms",
    "holder", "token", "claimed_at_ms", "attempts", "result", "error", "ended_at_ms", "blocker_id", "route",
    "clocks", "not_before_at_ms", "deadline_at_ms", "lease_ms", "max_attempts", "backoff", "unique_key", "retention_ms",
    "on_dependency_failure", "existing", "failures", "retry_at_ms", "errors", "artefacts", "reason", "resources", "busy_resources", "blocked_on", "next_action", "milestone",
    "group", "pause", "concurrency_key", "concurrency_limit", "weight",
)  # fmt: skip
