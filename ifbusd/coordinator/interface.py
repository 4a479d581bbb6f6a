"""What IF.coordinator answers: which task is mine. These signatures are the wire's methods (without `caller`).

Every change answers with a ``receipt`` (`ifbus.models.Receipt` as a map) and is durable when it answers. Acting as a holder takes
the claim's fencing token; one that is not current is refused with ``stale_token`` and nothing is written (promise 1).
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from ifbus.money import NO_MONEY, MicroUsd
from ifbusd.identity import Caller

Answer = dict[str, Any]
Severity = Literal["low", "medium", "high", "critical"]
OnDependencyFailure = Literal["wait", "cancel", "run"]


class Coordinator(Protocol):
    """Tasks, claims, sessions, inboxes and blockers."""

    async def create_task(
        self,
        caller: Caller,
        title: str,
        *,
        task_id: str | None = None,
        description: str = "",
        capabilities: list[str] | None = None,
        depends_on: list[str] | None = None,
        filler: bool = False,
        priority: int = 0,
        estimate_usd: MicroUsd = NO_MONEY,
        payload: dict[str, Any] | None = None,
        milestones: list[Any] | None = None,
        resources: list[str] | None = None,
        not_before_at_ms: int | None = None,
        deadline_at_ms: int | None = None,
        lease_ms: int | None = None,
        max_attempts: int | None = None,
        backoff: dict[str, Any] | None = None,
        unique_key: str | None = None,
        retention_ms: int | None = None,
        on_dependency_failure: OnDependencyFailure | None = None,
        group: str = "",
        concurrency_key: str = "",
        concurrency_limit: int = 1,
        weight: int = 1,
    ) -> Answer:
        """Create a task; waiting swarms that qualify hear of it at once.

        Args:
            title: One line, 1 to 200 characters.
            task_id: Its name; made up (``T-1``, ``T-2``, ...) if not given.
            description: Free text, at most 16 KiB.
            capabilities: What a swarm must be able to do, each ``area:skill``; none fits everybody.
            depends_on: Existing tasks that must be completed first, at most 100.
            filler: Offer it only while nothing better is ready for a swarm.
            priority: Higher is offered first, -100 to 100.
            estimate_usd: What it will probably cost; reserved in the budget of the swarm that claims it.
            payload: Anything the holder should know, at most 32 KiB packed; 40 KiB with all other parameters.
            milestones: ``[percent, text]`` each, at most 32.
            resources: What it needs for itself while it is claimed, such as ``gpu:0`` or ``file:src/a.py``, at most 16; a claim takes
                them with it or is refused. While somebody holds one, the task is ``waiting``.
            not_before_at_ms: Scheduled start, epoch ms: until then it is ``scheduled`` and nobody gets it.
            deadline_at_ms: Expiry, epoch ms: not ended by then it becomes ``expired``; its holder is told and the claim is void.
            lease_ms: Lease of a claim that asks for none of its own; within the daemon's limits.
            max_attempts: 1 to 100. A failure is tried again after a backoff until so many attempts have failed or were lost (its
                lease ran out, its process died); then the task is ``dead``. Giving it back is no failed attempt. Without it the
                first failure is final (``failed``) and a lost claim costs nothing.
            backoff: ``{"base_ms", "factor", "cap_ms", "jitter"}``, any of them: after the n-th failure it rests for base x factor^(n-1),
                at most cap, shortened by up to the share `jitter` at random; 1 s, 2, 5 min and 0.5 if not given.
            unique_key: At most 128 characters. While an open task of this user has it, creating another one answers that, with
                ``"existing": true`` in the task, and changes nothing.
            retention_ms: How long it is kept with its result once it is final; then it is removed. The configuration has the
                default, and the number of final tasks that are kept at most. What the daemon's clock leaps meanwhile does not count.
            on_dependency_failure: What becomes of it when one that it depends on ends without being completed: it waits on, because
                that may be requeued (``wait``, the default), it is cancelled too (``cancel``), or that one counts as done (``run``).
            group: The queue that it belongs to: what an operator gives a share of all claims (`set_group_weight`) or pauses.
            concurrency_key: Tasks with the same one are not held by more than `concurrency_limit` at a time, such as ``repo:website``.
            concurrency_limit: How many of the key may be held when this one is claimed, itself included, 1 to 100.
            weight: How much it counts for the share of its group, and how many slots of its swarm it takes, 1 to 1000.

        Returns:
            ``{"task": Task, "receipt": Receipt}``.

        Raises:
            already_exists: A task has this id.
            not_found: A task in `depends_on` does not exist.
            invalid_params: Something is out of its range; a dependency on itself, with the ``cycle``.
            limit_exceeded: Too many tasks are open.
        """
        ...

    async def create_tasks(self, caller: Caller, tasks: list[dict[str, Any]]) -> Answer:
        """Create up to 50 tasks in one commit, or none of them.

        Args:
            tasks: The parameters of `create_task`, by name, of each. They may depend on one another, in whatever order they stand.

        Returns:
            ``{"tasks": [Task, in the same order], "receipt": ...}``, without what makes a task long.

        Raises:
            invalid_params: One is out of its range, with its ``index``; some wait for one another, with the ``cycle``.
            already_exists, not_found, limit_exceeded: As `create_task`; or together they read too many keys.
        """
        ...

    async def cancel_task(self, caller: Caller, task_id: str, *, reason: str = "") -> Answer:
        """End an open task without a result, for its creator and operators. Cancelling twice is fine.

        Its holder hears it as ``attention [{"kind": "cancelled", "task_id", "token", "handle", "reason", "message"}]`` on every
        connection of its swarm, and finds it in the inbox; what it still does with its token is refused with ``stale_token``.

        Returns:
            ``{"task": Task, "released_usd": given back to the holder's budget, "receipt": ...}``.

        Raises:
            not_ready: It has ended in another way.
            permission_denied: The caller is neither its creator nor an operator.
        """
        ...

    async def list_dead_letters(self, caller: Caller, *, after: str = "", limit: int = 50) -> Answer:
        """Tasks whose attempts are used up (``dead``), those that died first at the front, each with the errors of its attempts.

        ``{"tasks": [Task with "errors": [{"attempt", "at_ms", "swarm_id", "token", "reason", "error"}]], "total", "next"}``; `after` and `limit`
        as `list_tasks`. The newest 16 errors of a task are kept, 400 bytes of each.
        """
        ...

    async def requeue_task(
        self, caller: Caller, task_id: str, *, reason: str = "", deadline_at_ms: int | None = None
    ) -> Answer:
        """Open a task again that is ``dead``, ``failed``, ``cancelled`` or ``expired``, for its creator and operators.

        Its attempts count anew; its errors stay.

        Args:
            reason: Goes on record.
            deadline_at_ms: A new deadline; otherwise an old one that has passed is dropped.

        Returns:
            ``{"task": Task, "receipt": ...}``.

        Raises:
            not_ready: It is open or completed; one that it is to be cancelled with has not been requeued; or another open
                task has its unique key.
            permission_denied: The caller is neither its creator nor an operator.
            limit_exceeded: Too many tasks are open.
        """
        ...

    async def get_task(self, caller: Caller, task_id: str, *, consistent: bool = False) -> Answer:
        """One task as it stands: ``{"task": Task, "revision": as of which it is, or later}``.

        Args:
            consistent: See also what another host has just done, at the price of a question to the cluster's store. On one host
                there is nothing else to see.

        While it is claimed it has ``clocks``: ``{"alive": true while what it is bound to lives and is watched, else nil, "bound_to",
        "bound"?, "beat_ms": since its lease was renewed, "lease_left_ms", "progress_ms": since it came further (a higher percentage,
        another note) or was claimed, "spent_usd": since then, "runaway_above_usd": alarming}``.

        Raises:
            not_found: There is none.
        """
        ...

    async def list_tasks(
        self,
        caller: Caller,
        *,
        states: list[str] | None = None,
        holder: str = "",
        grep: str = "",
        after: str = "",
        limit: int = 50,
        consistent: bool = False,
    ) -> Answer:
        """Tasks in order of creation.

        Args:
            states: Only these; all if not given.
            holder: Only tasks that this swarm holds.
            grep: Only tasks whose id or title contains this, whatever the case.
            after: Go on after this task id.
            limit: At most this many, 1 to 200; fewer if they do not fit into one answer.
            consistent: As in `get_task`.

        Returns:
            ``{"tasks": [Task], "total": matching, "next": task id to go on after or None, "counts": {state: number}, "revision": as of
            which they are, or later}``.
        """
        ...

    async def claim_task(
        self,
        caller: Caller,
        task_id: str,
        swarm_id: str,
        *,
        wait_ms: int = 0,
        lease_ms: int | None = None,
        bind: str | None = None,
        resume_token: str | None = None,
        resources: list[str] | None = None,
    ) -> Answer:
        """Claim one task for a swarm: exactly one caller wins. Match, breaker and budget are checked in the same commit.

        Args:
            wait_ms: If somebody holds it or it is not ready, wait this long for it, at most 10 min.
            lease_ms: Give the claim a lease of its own; otherwise it lives with the swarm's session, or, without one, on a
                lease of the default length.
            bind: What frees it at once, beside its lease. ``process``: the end of the process that opened this connection.
                ``pid:N``: of the process N, which must be an ancestor of that one and all of its user. ``handed``: of a process of
                that user whose pidfd was handed over (`daemon.expect_process`). ``connection``: of this connection. ``lease``:
                nothing. ``session``: what the swarm's session is bound to, which is also meant if nothing is given and there is
                a session. The first five give it a lease of its own. A daemon that is started anew watches no more what was bound before:
                that lives on its lease until it is bound again.
            resume_token: Proof of the session that it is claimed in: refused with ``stale_token`` if that is not the swarm's any more.
            resources: Taken with the claim, or it is refused; besides those that the task names. They are free when it ends.

        Returns:
            ``{"claimed": true, "claim": TaskClaim, "receipt": Receipt}``, or, if somebody else holds it,
            ``{"claimed": false, "refusal": {"code": "already_claimed", "message": ..., "data": {"owner": swarm, "token": fence,
            "held_ms": ..., "percent": ..., "lease_left_ms": ..., "would_change": [...]}}}``: losing a race is no error.
            Claiming again what this session holds already gives the same claim. `TaskClaim` has ``bound_to``: ``process``,
            ``connection``, ``session`` or ``lease``; and, if anything frees it at once, ``bound``: ``{"kind": "process" or "connection",
            "pid", "name"?, "watched": bool}``; and the names of its ``resources``, whose fence is the claim's token. If somebody held it before,
            ``handover`` has what they left: ``{"attempts", "percent", "note"?, "progress_at_ms"?, "spent_usd", "artefacts"?, "errors"?,
            "last": {"swarm_id", "token", "reason"?, "why"?}}``.

        Raises:
            resource_busy: Somebody holds a resource that it needs; `wait_ms` waits for that, too.
            not_found, permission_denied: No such task or swarm; the swarm belongs to another user.
            not_ready: It waits for other tasks or its start, is blocked, or is final.
            paused: The task, its group or the swarm is.
            at_capacity: As many tasks of its concurrency key are held as may be; or it weighs more than the swarm has slots left.
            not_qualified, breaker_tripped, budget_exceeded: The governor's no.
            stale_token: The session of `resume_token` has ended.
            limit_exceeded: Too many processes are watched, or the daemon's descriptors run short.
        """
        ...

    async def claim_next(
        self,
        caller: Caller,
        swarm_id: str,
        *,
        n: int = 1,
        wait_ms: int = 0,
        lease_ms: int | None = None,
        bind: str | None = None,
        resume_token: str | None = None,
    ) -> Answer:
        """Claim the best ready task that this swarm qualifies for and can pay: pushed ones first, fillers last.

        Among the others the group whose turn it is goes first (`set_group_weight`), and within it the highest priority, which rises by
        one for every ``ageing_ms`` of the configuration that a task has been ready.

        Args:
            n: Claim so many of the best at once, in one commit, 1 to 16; fewer if fewer of the best that are ready can be had
                together, or fit into one answer.
            wait_ms: Wait in the daemon until there is one, at most 10 min; 0 answers at once.
            lease_ms, bind, resume_token: As `claim_task`.

        Returns:
            With an `n` above 1 ``{"claimed": true, "claims": [TaskClaim], "receipt": Receipt}``, at least one. Else
            as `claim_task`; without one ``{"claimed": false, "refusal": {"code": "not_ready", ...}}``, whose data has
            ``too_dear_usd`` if something ready fits that the swarm cannot pay; ``paused`` instead while the swarm is.

        Raises:
            not_found, permission_denied, breaker_tripped: As `claim_task`.
            budget_exceeded: The swarm is broke, so that no task whatsoever is for it.
        """
        ...

    async def renew_claim(self, caller: Caller, task_id: str, swarm_id: str, token: int) -> Answer:
        """Renew the lease that a claim lives on: ``{"lease_ms": full time}``. Proves nothing; only the token does.

        Raises:
            stale_token: The claim has ended.
        """
        ...

    async def bind_claim(self, caller: Caller, task_id: str, swarm_id: str, token: int, bind: str) -> Answer:
        """Bind a claim on a lease of its own to something else from now on, as `bind` of `claim_task`.

        Also after a restart of the daemon, which watches nobody until it is asked to: ``{"bound_to", "bound", "receipt": ...}``.

        Raises:
            stale_token, not_owner: The claim has ended; it is another swarm's.
            invalid_request: It lives on the session's lease: bind the session.
        """
        ...

    async def report_progress(
        self,
        caller: Caller,
        task_id: str,
        swarm_id: str,
        token: int,
        percent: int,
        *,
        note: str = "",
        artefacts: list[Any] | None = None,
        blocked_on: str | None = None,
        next_action: str | None = None,
    ) -> Answer:
        """Record how far the holder is (0 to 100) and renew its lease: ``{"task": Task, "lease_ms": ..., "receipt": ...}``.

        Args:
            artefacts: What it leaves for whoever holds the task next, ``{"name", "sha256", "bytes"}`` each; one of the same name takes the
                other's place, the newest 16 are kept.
            blocked_on, next_action: What the holder waits for and what it does next, each at most 1000 characters; what is not given
                stays as it was, ``""`` takes it back. Everybody sees them with the task while it is claimed.

        Raises:
            stale_token, not_owner: The claim has ended; it is another swarm's.
        """
        ...

    async def complete_task(
        self, caller: Caller, task_id: str, swarm_id: str, token: int, *, result: Any = None
    ) -> Answer:
        """End the claim and the task with a result (at most 32 KiB packed); dependants become ready.

        Completing twice with one token answers the first result again, ``"replayed": true`` in the receipt.

        Returns:
            ``{"task": Task with the ended claim's `claimed_at_ms`, "spent_usd": on the task by all its
            claims, "released_usd": given back to the budget, "unblocked": [task ids], "receipt": ...}``.

        Raises:
            stale_token, not_owner: The claim has ended; it is another swarm's.
        """
        ...

    async def complete_tasks(self, caller: Caller, swarm_id: str, tasks: list[dict[str, Any]]) -> Answer:
        """Complete up to 50 tasks of a swarm in one commit; each is completed, or refused by itself.

        Args:
            tasks: ``{"task_id", "token", "result"?}`` each, as `complete_task`.

        Returns:
            ``{"outcomes": [{"task_id", "token", "ok": true, "spent_usd", "released_usd"} or {"task_id", "token", "ok": false, "error":
            {"code", "message", "data"}}], "completed": how many, "unblocked": [task ids], "receipt": ...}``, in the same order.

        Raises:
            not_found, permission_denied: There is no such swarm; it is another user's.
            invalid_params: One has other fields, with its ``index``.
        """
        ...

    async def fail_task(
        self, caller: Caller, task_id: str, swarm_id: str, token: int, error: str, *, retry: bool | None = None
    ) -> Answer:
        """End the claim with a failure; counts against the swarm's breaker. Answers as `complete_task`.

        Args:
            error: Why, at most 4 KiB.
            retry: Whether to offer the task again, after its backoff, while it has attempts left. Not given: if it has
                `max_attempts`. False: no other attempt would go better, so it ends now.
        """
        ...

    async def release_task(self, caller: Caller, task_id: str, swarm_id: str, token: int, *, note: str = "") -> Answer:
        """End the claim without a verdict; the task is ready for others at once. Answers as `complete_task`.

        On a full etcd too, unless attempts count: then with ``"partial": true`` in the receipt, and money and note follow when there is room.
        """
        ...

    async def acquire_resources(
        self,
        caller: Caller,
        swarm_id: str,
        resources: list[str],
        *,
        task_id: str | None = None,
        token: int | None = None,
        lease_ms: int | None = None,
        wait_ms: int = 0,
    ) -> Answer:
        """Take named resources for a swarm, all of them or none: each has one holder at a time.

        Several of a kind are several names, such as ``gpu:0`` and ``gpu:1``; where any of them will do and only their number counts,
        the tasks have a `concurrency_key` instead.

        Args:
            resources: Names such as ``file:src/a.py``, ``port:8080``, ``gpu:0``; 1 to 16.
            task_id, token: Take them for this claim: they are free when it ends, however it ends.
            lease_ms: Without a task: a lease of their own. Otherwise they live with the swarm's session, or, without one, on a lease
                of the default length. Acquiring again what is held renews such a lease and gives the same fence.
            wait_ms: Wait until all are free, at most 10 min.

        Returns:
            ``{"fences": {name: fence}, "lease_ms": ..., "receipt": ...}``. Whose hold ends with its lease hears ``attention [{"kind":
            "resource_lost", "resource", "fence", "reason", "message"}]``. A fence is strictly increasing per resource: whatever
            guards the resource itself can refuse an older one.

        Raises:
            resource_busy: Somebody holds one.
            would_deadlock: Those who wait for one another would go round in a circle: ``data.cycle`` names it.
            stale_token, not_owner: As any act of a holder.
            limit_exceeded: The user holds too many.
        """
        ...

    async def release_resources(self, caller: Caller, swarm_id: str, resources: dict[str, int]) -> Answer:
        """Free resources by name and fence, all of them or none; who waits for one is woken. Answers ``{"released": [name], "receipt"}``.

        Raises:
            stale_token: The hold of a fence has ended; nothing was freed.
            not_owner: Another swarm holds it.
        """
        ...

    async def ask(
        self,
        caller: Caller,
        swarm_id: str,
        to: str,
        question: str,
        *,
        task_id: str | None = None,
        token: int | None = None,
        wait_ms: int = 0,
    ) -> Answer:
        """Put a question to another swarm, or to a person for approval, and wait for the answer.

        It comes as an urgent letter ``question``, or to operators as an escalation ``approval``; the answer comes as a letter
        ``reply``, and from `await_reply`, also after a restart of the daemon. It is open until it is answered, or the claim or
        session that it is asked for ends; without either for 24 h by default.

        Args:
            to: The swarm; ``person`` for whoever has the operator role.
            question: 1 to 4096 characters.
            task_id, token: Ask for this claim: the task is shown as waiting for the answer.
            wait_ms: Wait here for the answer, at most 10 min.

        Returns:
            ``{"reply_id", "answered": bool, "answer"?, "receipt": ...}``.

        Raises:
            would_deadlock: Those who wait for one another would go round in a circle: ``data.cycle`` names it.
            not_found: There is no such swarm.
            stale_token, not_owner: As any act of a holder.
            limit_exceeded: The user has too many open questions, or the inbox is full.
        """
        ...

    async def await_reply(self, caller: Caller, swarm_id: str, reply_id: str, *, wait_ms: int = 0) -> Answer:
        """The answer to a question that the swarm has asked: ``{"reply_id", "answered": bool, "answer"?}``.

        Args:
            wait_ms: Wait for it, at most 10 min.

        Raises:
            not_found: It has ended with its claim or session, or its answer is no longer kept.
        """
        ...

    async def reply(self, caller: Caller, reply_id: str, answer: Any) -> Answer:
        """Answer a question, once: ``{"question": Question, "receipt": ...}``. For the asked swarm's user, or an operator where a person is asked.

        Args:
            answer: Any plain value of at most 16 KiB packed; to an approval ``{"approved": bool, "note": text}``.

        Raises:
            not_found: No such question is open; it may be answered already.
            permission_denied: It is for somebody else.
        """
        ...

    async def list_questions(self, caller: Caller, *, to: str = "", after: str = "", limit: int = 50) -> Answer:
        """Open questions, those to people first, each kind the oldest first.

        Args:
            to: Only those to this swarm, or ``person`` for approvals.
            after: Go on after this reply id.

        Returns:
            ``{"questions": [{"reply_id", "swarm_id", "to", "question", "at_ms", "task_id"?}], "total": matching, "next"}``.
        """
        ...

    async def waits(self, caller: Caller, *, about: str = "", limit: int = 100) -> Answer:
        """Who waits for what: one graph over dependencies, held resources, awaited replies and approvals.

        Args:
            about: Only what this node waits for, and tasks that wait for those: a task id, ``task:T-7``, ``swarm:docs-2``,
                ``resource:gpu:0`` or ``person``. Otherwise all that wait for somebody to act.
            limit: At most this many edges, 1 to 200.

        Returns:
            ``{"edges": [{"from": node, "to": node, "why": "dependency", "resource", "held", "reply", "approval" or "works_on",
            "since_ms"?, "id"?}], "has_more": bool, "help": {"edge", "frees": [task ids], "holds_up": n} or None}``: of what is
            shown, the edge whose end frees the most tasks, or, where each waits for others besides, holds up the most.
        """
        ...

    async def request_help(self, caller: Caller, swarm_id: str) -> Answer:
        """Call for help where it frees the most of what this swarm works on: whoever holds or owes something gets a letter ``help``,
        people an escalation.

        Returns:
            ``{"edge", "frees": [task ids], "holds_up": n, "asked": swarm id or "person", "receipt": ...}``, as `waits` has it.

        Raises:
            invalid_request: Nothing that the swarm works on waits for anybody.
        """
        ...

    async def list_resources(
        self, caller: Caller, *, prefix: str = "", holder: str = "", after: str = "", limit: int = 50
    ) -> Answer:
        """Resources that somebody holds, by name.

        Args:
            prefix: Only names that begin with this, such as ``file:``.
            holder: Only this swarm's.
            after: Go on after this name.

        Returns:
            ``{"resources": [{"resource", "swarm_id", "fence", "at_ms", "lease_left_ms", "task_id"?}], "total": matching, "next"}``.
        """
        ...

    async def register_swarm(
        self,
        caller: Caller,
        swarm_id: str,
        *,
        capabilities: list[str] | None = None,
        cost_per_hour_usd: MicroUsd | None = None,
        budget_usd: MicroUsd | None = None,
        model: str | None = None,
        orchestrator: bool = False,
        lease_ms: int | None = None,
        resume_token: str | None = None,
        bind: str | None = None,
        slots: int | None = None,
    ) -> Answer:
        """Start a session of a swarm: its name belongs to the caller's uid from now on.

        Each registration is a new *incarnation*: claims of an earlier one are void and freed, also those on leases of their
        own (but not those made without a session), unless `resume_token` proves that this is the same process group coming back. The session is a lease: renew it (`renew_session`) or lose all claims in it.

        Args:
            capabilities, cost_per_hour_usd, model: The profile; what is not given stays as it was.
            budget_usd: Its budget when it has none yet. A swarm can lower its own budget, only an operator raises it.
            orchestrator: Hears of every blocker.
            lease_ms: Length of the session's lease; default and limits are the daemon's.
            bind: What ends the session at once, and frees the claims in it, as `bind` of `claim_task` (but for ``session``);
                otherwise only its lease does, or, resuming, what it was bound to before.

            slots: The weights of all tasks that are claimed in this session add up to so much at most, 1 to 1000; no bound if not
                given, or, resuming, what it was before.

        Returns:
            ``{"profile": SwarmProfile, "incarnation": n, "resumed": bool, "lease_ms": ..., "resume_token": secret,
            "bound": as in TaskClaim or nil, "slots": n or nil, "claims": [TaskClaim], "inbox_seq": last message, "receipt": ...}``.

        Raises:
            permission_denied: The name belongs to another user; or `budget_usd` would raise the budget.
        """
        ...

    async def renew_session(self, caller: Caller, swarm_id: str, resume_token: str) -> Answer:
        """Heartbeat: renew the session's lease and with it every claim in it: ``{"lease_ms": ..., "claims": ["T-7@41"],
        "bound": as in TaskClaim or nil}``. Where ``bound`` is not watched, a daemon was started anew: bind it again.

        Raises:
            stale_token: The session has ended or another incarnation took its place: stop all its work.
        """
        ...

    async def bind_session(self, caller: Caller, swarm_id: str, resume_token: str, bind: str) -> Answer:
        """Bind a session to something else from now on, as `bind` of `register_swarm`: ``{"bound": ..., "receipt": ...}``.

        Raises:
            stale_token: The session has ended or another incarnation took its place.
        """
        ...

    async def end_session(self, caller: Caller, swarm_id: str, resume_token: str) -> Answer:
        """End a session: its claims are free at once: ``{"freed": [task ids], "receipt": ...}``. Ended already is fine.

        Claims on leases of their own go on.

        Raises:
            stale_token: Another incarnation took its place.
        """
        ...

    async def swarm_status(self, caller: Caller, swarm_id: str) -> Answer:
        """What a swarm works on, how far it is, what it waits for and what it does next.

        Returns:
            ``{"swarm_id", "status": "in_progress", "blocked" (each of its tasks waits for somebody, or says so), "waiting" (for a task) or
            "away", "tasks": [Task with ``milestone``], "tasks_in_progress": n, "tasks_completed": of the tasks that are kept,
            "waits": [edges as in `waits`], "at_ms"}``.

        Raises:
            not_found: There is no such swarm.
        """
        ...

    async def push_task_to_swarm(self, caller: Caller, task_id: str, swarm_id: str) -> Answer:
        """Put a task into a swarm's durable inbox and tell it; withdrawn when anybody claims the task.

        Returns:
            ``{"seq": revision, "delivered": connections here that listen to the inbox, "receipt": ...}``. Pushing again what lies
            in this inbox already gives the letter's ``seq`` and sends nothing.

        Raises:
            not_found, not_ready, not_qualified, breaker_tripped, budget_exceeded: A push never reaches a swarm that could not claim it.
            permission_denied: It lies in another user's inbox already: only that user, the task's creator and operators take it away.
            limit_exceeded: The inbox is full.
        """
        ...

    async def broadcast(
        self,
        caller: Caller,
        topic: str,
        body: dict[str, Any],
        *,
        capabilities: list[str] | None = None,
        sender: str = "",
        expression: str = "",
        subscribers: bool = False,
    ) -> Answer:
        """Put a message into the inbox of every registered swarm that has all `capabilities`; full inboxes are left out, and who is
        beyond what the sender's user may have under way.

        Args:
            expression: Only swarms that it fits, as ``all(code-analysis:python, any(infra:*, docs:writing), not(gpu:cuda))``.
            subscribers: Only swarms that subscribed to the topic.
            sender: The caller's swarm, if it speaks for one; must be its own, and does not get the message.

        Returns:
            ``{"broadcast": TaskBroadcast, "full": number left out, "full_inboxes": [the first 20 of them], "receipt": ...}``.
        """
        ...

    async def subscribe_topic(self, caller: Caller, swarm_id: str, topic: str) -> Answer:
        """Have what is broadcast on a topic to its subscribers put into this swarm's inbox, from now on, also while it is away.

        There it has a number and waits until it is acknowledged: `subscribe_inbox` and `read_inbox` go on after the last one seen.
        A topic is a whole name and stands for no other: there are no wildcards.
        Answers ``{"topic", "receipt"}``, also if it was subscribed already.

        Raises:
            limit_exceeded: The swarm subscribed to too many.
        """
        ...

    async def unsubscribe_topic(self, caller: Caller, swarm_id: str, topic: str) -> Answer:
        """And no longer; what is in the inbox stays. Answers ``{"topic", "receipt"}``, also if it was not subscribed."""
        ...

    async def list_topics(self, caller: Caller, swarm_id: str) -> Answer:
        """What a swarm subscribed to: ``{"topics": [topic]}``."""
        ...

    async def detect_blocker(self, caller: Caller, swarm_id: str, info: dict[str, Any]) -> Answer:
        """Report that a swarm cannot go on: orchestrators and operators hear it, the best qualified swarms are asked to help.

        It stays open until it is resolved. After a time by its severity it is brought before people again, once: an escalation
        ``blocker_escalated``. So many swarms are asked to help with one task at a time as the policy's ``max_swarms_per_task`` says.

        Args:
            info: ``{"reason": text, "task_id"?: id, "token"?: fence, "severity"?: Severity, "needs"?: [capability],
                "release"?: bool}``. With a task, its token is needed; ``release`` gives the claim back, and the task stays
                ``blocked`` until the blocker is resolved.

        Returns:
            ``{"blocker": BlockerAlert, "full_inboxes": [swarms that could not be told by letter], "receipt": ...}``.

        Raises:
            stale_token, not_owner: As any act of a holder.
            limit_exceeded: Too many blockers are open.
        """
        ...

    async def resolve_blocker(self, caller: Caller, blocker_id: str, *, swarm_id: str = "", note: str = "") -> Answer:
        """End a blocker; its task is ready again. For its reporter's user, its helpers and operators.

        Answers ``{"blocker": BlockerAlert, "receipt": ...}``.

        Raises:
            not_found: No such blocker is open; it may be resolved already.
            permission_denied: The caller is none of these.
        """
        ...

    async def list_blockers(self, caller: Caller) -> Answer:
        """The oldest open blockers that fit into one answer, 100 at most: ``{"blockers": [BlockerAlert], "has_more": bool}``."""
        ...

    async def read_inbox(self, caller: Caller, swarm_id: str, *, after_seq: int = 0, limit: int = 50) -> Answer:
        """Unacknowledged messages with a seq above `after_seq`: ``{"messages": [InboxMessage], "has_more": bool}``.

        They may be fewer than `limit`: what fits into one answer. Go on after the last one's seq.
        """
        ...

    async def subscribe_inbox(self, caller: Caller, swarm_id: str, *, after_seq: int = 0) -> Answer:
        """Send this connection a notification ``inbox [InboxMessage]`` for each message above `after_seq`, now and from now on.

        Each once, in order of ``seq``. Subscribing again on one connection replaces the subscription.

        Returns:
            ``{"swarm_id": ..., "replayed": how many were waiting}``; the waiting ones are sent before the answer.
        """
        ...

    async def acknowledge(self, caller: Caller, swarm_id: str, seq: int) -> Answer:
        """Drop all messages up to and including `seq`: ``{"dropped": n, "receipt": ...}``. Pushed tasks stay until claimed."""
        ...

    async def subscribe_board(self, caller: Caller, *, after_seq: int | None = None) -> Answer:
        """Send this connection a notification ``board [{"event", "task_id", "swarm_id"?, "seq", ...}]`` for each change of a task.

        Each once, in order of ``seq``, which is the same at every daemon. If a daemon falls behind its store, it says so by an event
        ``missed``: list the tasks, then go on.

        Events: ``created``, ``pushed``, ``claimed``, ``progress``, ``blocked`` and ``unblocked``, ``paused`` and ``resumed``, ``requeued``;
        ``released`` (given back, or failed with attempts left); ``lost`` (the claim ended without its holder's word, with the
        ``reason``); and for a task that has ended the state that it ended in: ``completed`` (with ``unblocked``), ``failed``, ``dead``,
        ``cancelled``, ``expired``.

        Args:
            after_seq: What came after this number first, as far as it is kept (``board_history``); from now on if not given.

        Returns:
            ``{"revision", "seq": the newest event's, "replayed": how many came before the answer}``.

        Raises:
            not_kept: Some of what came after `after_seq` is no longer kept, as after a restart in which something happened.
        """
        ...

    async def pause(
        self, caller: Caller, kind: Literal["task", "group", "swarm"], name: str, *, reason: str = ""
    ) -> Answer:
        """Give out no new work of a task or a group, or to a swarm, until it is resumed; claims that run go on.

        For operators; for a task's creator and a swarm's owner, too. Their holders hear ``attention``. It outlives restarts. Pausing
        again changes the reason, but nobody changes an operator's pause but operators.

        Args:
            reason: At most 500 characters; every refusal quotes it.

        Returns:
            ``{"pause": {"by_uid", "by_operator", "reason", "since_at_ms"}, "running": [claim handles that go on, at most 200],
            "receipt": ...}``.

        Raises:
            not_found, permission_denied: There is no such task or swarm; it is another user's, or a group's.
            not_ready: The task is final.
            limit_exceeded: Too many groups have a weight or a pause.
        """
        ...

    async def resume(self, caller: Caller, kind: Literal["task", "group", "swarm"], name: str) -> Answer:
        """End a pause or a drain: ``{"was": the pause, None if there was none, "receipt": ...}``.

        Raises:
            not_found, permission_denied: As `pause`; or an operator paused it, and the caller is none.
            not_ready: The task is final.
        """
        ...

    async def drain_swarm(self, caller: Caller, swarm_id: str, *, grace_ms: int = 600_000, reason: str = "") -> Answer:
        """Give a swarm no new work; what it still holds after the grace is given back, with a note for the next owner.

        For its owner and operators; until `resume`, also over restarts and registrations. The swarm hears ``attention``.

        Args:
            grace_ms: How long it has to finish or hand back, at most 24 h.
            reason: At most 500 characters.

        Returns:
            As `pause`, whose pause has ``until_at_ms``.

        Raises:
            not_found, permission_denied: There is no such swarm; it is another user's.
        """
        ...

    async def drain_host(
        self, caller: Caller, *, off: bool = False, grace_ms: int = 600_000, reason: str = ""
    ) -> Answer:
        """Let this daemon give out no new work to anybody; what it gave out and is still held after the grace is given back.

        Until it is called with `off`, or the daemon is started anew. ``daemon.status`` shows the progress. Where several daemons
        share a store, the others go on: claims are given back that this one gave out, or whose holder's process it watches.

        Returns:
            ``{"drain": the pause with ``until_at_ms``, or None, "left": claims that are still held, "receipt": ...}``.
        """
        ...

    async def set_group_weight(self, caller: Caller, group: str, weight: int) -> Answer:
        """Give a group of tasks a share of the claims: while several have something ready, each is served in proportion to its weight.

        Tasks without a group, and of groups without a weight of their own, share one of weight 1. Whose turn it is follows from the
        claims since the daemon was started: there all begin level.

        Args:
            weight: 1 to 1000; 0 takes it away.

        Returns:
            ``{"group": {"group", "weight", "pause": as of `pause` or None}, "receipt": ...}``.

        Raises:
            limit_exceeded: Too many groups have a weight or a pause.
        """
        ...

    async def list_groups(self, caller: Caller, *, after: str = "", limit: int = 50) -> Answer:
        """Groups with a weight or a pause, by name: ``{"groups": [as in `set_group_weight`], "next": name to go on after or None}``.

        Args:
            after: Go on after this group.
            limit: At most this many, 1 to 200.
        """
        ...

    async def explain_claim(self, caller: Caller, task_id: str, swarm_id: str) -> Answer:
        """Every check that `claim_task` would make, in order, with its figures; changes nothing.

        Returns:
            ``{"task_id", "swarm_id", "would_succeed": bool, "checks": [{"check", "ok", "message", "data", "would_change": [...]}],
            "best": {"swarm_id", "overlap"} or None}``.
        """
        ...
