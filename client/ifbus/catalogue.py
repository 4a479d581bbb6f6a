"""What each error code means and what to type: source of `ifbus help CODE`, of docs/messages.md, and of the CLI's remedies.

A remedy is here only if a test provokes its error, types it and sees the error gone (tests/integration/cli), or if it is
for a person at another program (``systemctl``, ``usermod``). ``{name}`` stands for the figure `name` of the error's data.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One code.

    Attributes:
        sentence: What is wrong, with its figures.
        meaning: What that is and what to do about it.
        remedies: What to type, most useful first; empty where nothing that one could type would help.
    """

    sentence: str
    meaning: str
    remedies: tuple[str, ...] = ()


CATALOGUE: dict[str, Entry] = {
    # --- the request ---------------------------------------------------------------------------------
    "usage": Entry(
        "no `task deliver`",
        "The command line is wrong. The message names the nearest valid form and an example.",
        ("ifbus help",),
    ),
    "handle_required": Entry(
        "`task complete` needs the claim handle, not the task id alone",
        "Who acts as a task's holder names task and fencing token in one word, T-7@41: it stands in the answer of the claim. "
        "The command never looks the current one up, because that would hand a former holder the key.",
        ("ifbus {command} {task_id}@FENCE",),
    ),
    "invalid_params": Entry(
        "`estimate_usd` is a string such as '0.05', got '1e3'",
        "A value is missing, unknown, of the wrong type or out of range; `data.param` names it.",
        ("ifbus {command} --help",),
    ),
    "invalid_request": Entry(
        "a request is [0, msgid, method, params]",
        "The message is MessagePack but no request. Programs that use the library never see it.",
    ),
    "unknown_method": Entry(
        "no method coordinator.claim; nearest: coordinator.claim_task",
        "The daemon has no such method. `daemon.describe` lists them all.",
        ("ifbus rpc daemon.describe",),
    ),
    "invalid_module": Entry(
        "cannot load the module: no WebAssembly",
        "The bytes are no WebAssembly module or component that the chassis can load. A Python function becomes one by `tool build`.",
        ("ifbus tool build {source}",),
    ),
    "config_invalid": Entry(
        "ifbusd.toml line 14: `lease_ttl` is no key of [coordinator]",
        "The configuration file is wrong; the message names file, key and expected value.",
        ("ifbusd --check-config",),
    ),
    "version_mismatch": Entry(
        "client 1.4 speaks protocol 3, daemon 1.1 speaks 1 and 2",
        "Client and daemon have no protocol version in common: update the older one, then restart the daemon.",
        ("systemctl restart ifbusd",),
    ),
    "idempotency_conflict": Entry(
        "key k-1 was used for coordinator.create_task with another body",
        "The same key stands for the same request. Take a new key, or send what was sent the first time.",
        ("ifbus {typed} --key NEW",),
    ),
    "not_found": Entry(
        "no task T-99",
        "No task, swarm or entry has this id.",
        ("ifbus task ls --grep WORD", "ifbus swarm ls"),
    ),
    "permission_denied": Entry(
        "reset needs the operator role; you are uid 1004",
        "The kernel's identity of the caller does not own this swarm, or lacks the operator role. "
        "Ask an operator: uid 0 or a member of the operators' group.",
    ),
    # --- the state of the world ----------------------------------------------------------------------
    "already_exists": Entry(
        "a task T-1 exists already",
        "Something else has this id already, and it differs. Take another id.",
        ("ifbus task show {task_id}",),
    ),
    "already_claimed": Entry(
        "held by docs-2 for 4 min, fence 41, lease ends in 26 s unless renewed",
        "Exactly one swarm holds a task. Wait for it, or take another.",
        ("ifbus task claim {task_id} --wait 10m", "ifbus task next"),
    ),
    "not_ready": Entry(
        "T-7 waits for T-3 and T-5",
        "The task waits for others, is blocked, or has ended; or, for `task next`, nothing is ready that fits.",
        ("ifbus task claim {task_id} --wait 10m", "ifbus task next --wait 10m"),
    ),
    "paused": Entry(
        "group nightly is paused by uid 1000: disk nearly full",
        "Somebody keeps new work from this task, its group, the swarm or the host; what is held already goes on. "
        "An operator's pause takes an operator to end, another one its maker, too.",
        ("ifbus task next --wait 10m",),
    ),
    "at_capacity": Entry(
        "2 of 2 tasks with concurrency key repo:website are held: T-3, T-5",
        "As much is held as may be at a time, of a concurrency key or by a swarm with so many slots. Wait until one of the holders ends.",
        ("ifbus task claim {task_id} --wait 10m", "ifbus task next"),
    ),
    "not_qualified": Entry(
        "overlap 0.33 of 0.70, lacks infra:networking",
        "The swarm's capabilities overlap too little with what the task needs. Take another task, or register what it can do.",
        ("ifbus swarm register {swarm_id} --can {missing}", "ifbus task next"),
    ),
    "not_owner": Entry(
        "T-7 is held by docs-2",
        "The task is claimed by another swarm than the one that the request names, or by nobody. Stop this work.",
        ("ifbus task show {task_id}",),
    ),
    "resource_busy": Entry(
        "docs-2 holds gpu:0 for T-3",
        "A resource has one holder at a time. Wait for it, or do something that does not need it.",
        ("ifbus lock ls --prefix {resource}",),
    ),
    "would_deadlock": Entry(
        "T-7 waits for gpu:0, which is held for T-3, which waits for a reply of docs-2, which works on T-7",
        "Each of these would wait for the next one, for ever. Let go of something, or do without.",
        ("ifbus waits",),
    ),
    "not_kept": Entry(
        "cannot go on after 4096: only what came after 8191 is kept",
        "What happened in between is known only by its outcome. List the tasks, then subscribe from now on.",
        ("ifbus task ls",),
    ),
    "stale_token": Entry(
        "T-7@41 ended 11:04:10 (lease ran out), now 43 of docs-2; nothing was written",
        "The claim that this handle stood for has ended. Stop this work at once; claim again before doing more.",
        ("ifbus task claim {task_id}", "ifbus task next"),
    ),
    "lease_lost": Entry(
        "the lease of T-7@41 can no longer be proven",
        "The library could not renew in time and must take the claim for lost. Stop this work at once.",
        ("ifbus task next",),
    ),
    "budget_exceeded": Entry(
        "builder 5.00: spent 4.04, reserved 0.27, needs 0.90, short by 0.21",
        "The swarm's budget does not cover this. Take something cheaper, wait until reserved money comes back, or ask an operator.",
        ("ifbus budget set {swarm_id} USD",),
    ),
    "breaker_tripped": Entry(
        "builder, 11:02, 3 failures in a row: T-2, T-4, T-8",
        "The swarm is stopped until an operator resets its breaker. One that is broke needs a budget in the same command.",
        ("ifbus breaker show {swarm_id}", "ifbus breaker reset {swarm_id} --reason TEXT --budget-usd USD"),
    ),
    "limit_exceeded": Entry(
        "guest stopped: memory 64 MiB, after 0.8 s",
        "A hard limit ended this: memory, time, output, call rate or message length; `data.limit` names it.",
    ),
    "compile_limit": Entry(
        "compiling took more than 2 s",
        "Compiling the module took more time or memory than its profile allows. An operator can allow a larger profile.",
    ),
    "guest_failed": Entry(
        "the guest exited with 1: no such key",
        "The guest trapped, raised or exited with a failure of its own; nothing else was harmed. Mend the tool.",
    ),
    # --- the moment ----------------------------------------------------------------------------------
    "overloaded": Entry(
        "64 of 64 requests of uid 1004 in flight",
        "A quota of this uid or connection is used up. The same request again, with the same key; the command has tried already.",
        ("ifbus {typed} --key {key}",),
    ),
    "unavailable": Entry(
        "the store has been silent for 3.2 s",
        "Something that this call needs does not answer, or the daemon is stopping. Same request, same key, a little later.",
        ("ifbus {typed} --key {key}",),
    ),
    "deadline_exceeded": Entry(
        "no answer in 5 s; it may have been done",
        "No answer within the time that the caller gave. With the same key it has the effect of one.",
        ("ifbus {typed} --key {key}",),
    ),
    "connection_lost": Entry(
        "the connection ended while the request was under way",
        "The outcome is unknown. With the same key it has the effect of one.",
        ("ifbus {typed} --key {key}",),
    ),
    "cancelled": Entry(
        "the request was given up",
        "Whoever asked gave this up, or the work itself was cancelled. Stop it.",
    ),
    # --- us ------------------------------------------------------------------------------------------
    "internal": Entry(
        "our bug e-5f2c",
        "A bug of ours; nothing was written unless the message says so. The id finds it in the daemon's log: please report both.",
        ("journalctl -u ifbusd --grep {id}",),
    ),
    # --- no daemon -----------------------------------------------------------------------------------
    "no_daemon": Entry("no daemon answers", "One of the four causes below; the answer says which."),
    "daemon_not_running": Entry(
        "nothing at $XDG_RUNTIME_DIR/ifbusd/ifbusd.sock nor /run/ifbusd/ifbusd.sock",
        "There is no socket at any of the places where one could be; without XDG_RUNTIME_DIR a private /tmp/ifbusd-UID is one. A daemon in a place of its own: set IFBUS_SOCKET.",
        ("systemctl start ifbusd", "ifbusd --dev"),
    ),
    "daemon_dead_socket": Entry(
        "/run/ifbusd/ifbusd.sock exists, nobody listens",
        "A daemon was there and has ended without cleaning up. A new one takes the socket over. What is no socket at all was not meant.",
        ("ifbusd --dev", "journalctl -u ifbusd -n 20", "systemctl start ifbusd"),
    ),
    "socket_denied": Entry(
        "ann (uid 1004) is not in group ifbus, which owns /run/ifbusd/ifbusd.sock",
        "The socket's mode, or a directory on the way to it, keeps this user out.",
        ("usermod -aG ifbus {user}", "id"),
    ),
    "socket_blocked": Entry(
        "this process may not connect at all (EPERM)",
        "A sandbox around this process forbids it to connect; the daemon may be well. Start the agent from outside.",
        ("ifbus run --fd --swarm NAME -- COMMAND",),
    ),
    "protocol_error": Entry(
        "the peer sent bytes that are no MessagePack-RPC",
        "Whatever answers at this socket is no ifbusd, or the bytes were damaged.",
        ("ifbus status",),
    ),
}  # fmt: skip


def remedies(code: str, figures: dict[str, Any]) -> list[str]:
    """What to type for this error, with its own figures filled in; a figure that it lacks stands in capitals."""
    entry = CATALOGUE.get(code)
    return [] if entry is None else [_fill(remedy, figures) for remedy in entry.remedies]


def _fill(remedy: str, figures: dict[str, Any]) -> str:
    def value(found: re.Match[str]) -> str:
        figure = figures.get(found[1])
        if isinstance(figure, list):
            figure = ",".join(map(str, figure))
        return found[1].upper() if figure in (None, "") else str(figure)

    return re.sub(r"\{(\w+)\}", value, remedy)
