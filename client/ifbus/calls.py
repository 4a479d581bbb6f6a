"""Every method of the wire as a function from typed arguments to a `Call`: what to send, and how to read the answer.

Both clients make their methods from these functions, so that a signature, a docstring and a reading stand once. Pure: no
I/O, clock or chance. Keep in step with the daemon's ``interface.py`` files; a test compares the two.

Money is given as a decimal string, a whole number of dollars or a `Decimal`. Every method also takes `request.Options`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, Unpack

from ifbus.errors import InvalidParams
from ifbus.models import (
    BlockerAlert,
    BudgetReport,
    Execution,
    Model,
    Question,
    ServiceContract,
    SwarmProfile,
    Task,
    TaskBroadcast,
    TaskClaim,
)
from ifbus.money import to_micro_usd, to_usd
from ifbus.request import Call, Options, untyped

if TYPE_CHECKING:
    from ifbus.answers import (
        BatchEnd,
        BlobProgress,
        Breaker,
        ClaimEnd,
        ClaimExplanation,
        CostEntry,
        CostReport,
        InboxPage,
        LoadedModule,
        MatchReport,
        Progress,
        Push,
        QuestionPage,
        Refusal,
        Registration,
        Reply,
        Reservation,
        ResourceGrant,
        ResourcePage,
        SessionRenewal,
        SwarmPage,
        SwarmStatus,
        TaskPage,
        WaitGraph,
        WitnessHead,
        WitnessPage,
        WitnessVerdict,
    )

M = TypeVar("M", bound=Model)
R = TypeVar("R")
V = TypeVar("V")
Usd = str | int | Decimal
Similarity = Literal["jaccard", "coverage"]
Severity = Literal["low", "medium", "high", "critical"]
OnDependencyFailure = Literal["wait", "cancel", "run"]
Paused = Literal["task", "group", "swarm"]
Dimension = Literal["swarm", "task", "operation", "model", "hour"]


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _map(value: Mapping[str, V], param: str) -> dict[str, V]:
    """A copy of the map. Raises InvalidParams where it is none."""
    if not isinstance(value, Mapping):
        raise InvalidParams(f"cannot send {param}: expected a map, got {value!r:.80}", data={"param": param})
    return dict(value)


def _plain(value: R, param: str) -> R:
    """The same value, unless a map in it has a key that is no text: such a message costs the connection, and all its calls."""
    found: list[Any] = [value]
    seen: set[int] = set()
    while found:
        item = found.pop()
        if not isinstance(item, dict | list | tuple) or id(item) in seen:
            continue
        seen.add(id(item))  # a container in itself is for the packer to refuse
        if isinstance(item, dict):
            for key in item:
                if not isinstance(key, str):
                    raise InvalidParams(
                        f"cannot send {param}: a map has text for keys, got {key!r:.80}", data={"param": param}
                    )
            found.extend(item.values())
        else:
            found.extend(item)
    return value


def usd(amount: Usd | None, param: str) -> str | None:
    """The wire's decimal string. Raises InvalidParams where the amount is none, with `param` named."""
    if amount is None:
        return None
    try:
        return to_usd(to_micro_usd(format(amount, "f") if isinstance(amount, Decimal) else amount))
    except ValueError as error:
        raise InvalidParams(f"cannot read {param}: {error}", data={"param": param}) from error


def _answer(name: str) -> Callable[[Any], Any]:
    """Reads one of `ifbus.answers`, which is loaded when the first one comes: making its classes takes a client's import again."""

    def read(answer: Any) -> Any:
        from ifbus import answers

        return getattr(answers, name).from_wire(answer)

    return read


def _under(key: str, model: type[M]) -> Callable[[Any], M]:
    return lambda answer: model.from_wire(answer[key])


def _all_under(key: str, read: Callable[[Any], R]) -> Callable[[Any], tuple[R, ...]]:
    return lambda answer: tuple(map(read, answer[key]))


def _claim(answer: Any) -> TaskClaim | Refusal:
    if not answer["claimed"]:
        refusal: Refusal = _answer("Refusal")(answer["refusal"])
        return refusal
    claim = answer["claim"]
    if "receipt" in answer:
        claim = {**claim, "receipt": answer["receipt"]}
    return TaskClaim.from_wire(claim)


def _claims(answer: Any) -> tuple[TaskClaim, ...] | Refusal:
    # A daemon that was asked for one answers with one.
    parts = answer["claims"] if "claims" in answer else (answer.get("claim"),)
    found = [_claim({**answer, "claim": part}) for part in parts]
    return tuple(found) if answer["claimed"] else found[0]  # type: ignore[arg-type, return-value]


_task = _under("task", Task)
_report = _under("report", BudgetReport)
_blocker = _under("blocker", BlockerAlert)


def shown_signature(build: Callable[..., Any]) -> inspect.Signature:
    """What `help` shows for a method made from `build`: its own parameters, behind `self`."""
    signature = inspect.signature(build)
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return signature.replace(parameters=[self_parameter, *signature.parameters.values()])


# --- daemon ------------------------------------------------------------------------------------------


_PING: Final = Call[Any]("daemon.ping", {}, untyped)


def ping(**options: Unpack[Options]) -> Call[Any]:
    """Whether the daemon answers."""
    return Call("daemon.ping", {}, untyped, options) if options else _PING


def status(**options: Unpack[Options]) -> Call[dict[str, Any]]:
    """How the daemon is: version, figures, open alarms."""
    return Call("daemon.status", {}, untyped, options)


def describe(**options: Unpack[Options]) -> Call[dict[str, Any]]:
    """Every method that this daemon has, with signature and docstring."""
    return Call("daemon.describe", {}, untyped, options)


# --- coordinator -------------------------------------------------------------------------------------


def create_task(
    title: str,
    *,
    task_id: str | None = None,
    description: str | None = None,
    capabilities: Sequence[str] | None = None,
    depends_on: Sequence[str] | None = None,
    filler: bool | None = None,
    priority: int | None = None,
    estimate_usd: Usd | None = None,
    payload: Mapping[str, Any] | None = None,
    milestones: Sequence[Any] | None = None,
    resources: Sequence[str] | None = None,
    not_before_at_ms: int | None = None,
    deadline_at_ms: int | None = None,
    lease_ms: int | None = None,
    max_attempts: int | None = None,
    backoff: Mapping[str, Any] | None = None,
    unique_key: str | None = None,
    retention_ms: int | None = None,
    on_dependency_failure: OnDependencyFailure | None = None,
    group: str | None = None,
    concurrency_key: str | None = None,
    concurrency_limit: int | None = None,
    weight: int | None = None,
    **options: Unpack[Options],
) -> Call[Task]:
    """Create a task; waiting swarms that qualify hear of it at once.

    Args:
        title: One line, 1 to 200 characters.
        task_id: Its name; made up (``T-1``, ``T-2``, ...) if not given.
        capabilities: What a swarm must be able to do, each ``area:skill``; none fits everybody.
        depends_on: Existing tasks that must be completed first.
        filler: Offer it only while nothing better is ready for a swarm.
        priority: Higher is offered first, -100 to 100.
        estimate_usd: What it will probably cost; reserved in the budget of the swarm that claims it.
        payload: Anything the holder should know, at most 32 KiB packed.
        milestones: ``[percent, text]`` each, at most 32.
        resources: What it needs for itself while it is claimed, such as ``gpu:0`` or ``file:src/a.py``, at most 16.
        not_before_at_ms: Scheduled start, epoch ms.
        deadline_at_ms: Expiry, epoch ms: not ended by then it becomes ``expired``, and its holder must stop.
        lease_ms: Lease of a claim that asks for none of its own.
        max_attempts: A failed or lost attempt is tried again after a backoff until so many have gone wrong; then it is ``dead``.
        backoff: ``{"base_ms", "factor", "cap_ms", "jitter"}``, any of them; 1 s, 2, 5 min and 0.5 if not given.
        unique_key: While an open task of this user has it, that one is the answer, with `Task.existing`.
        retention_ms: How long it is kept with its result once it is final.
        on_dependency_failure: When one that it depends on ends without being completed: ``wait`` on (the default), be cancelled too
            (``cancel``), or ``run``.
        group: The queue that it belongs to: what an operator gives a share of all claims, or pauses.
        concurrency_key: Tasks with the same one are not held by more than `concurrency_limit` at a time, such as ``repo:website``.
        concurrency_limit: How many of the key may be held when this one is claimed, itself included; 1 if not given.
        weight: How much it counts for the share of its group, and how many slots of its swarm it takes; 1 if not given.

    Raises:
        AlreadyExists: A task has this id.
        NotFound: A task in `depends_on` does not exist.
        InvalidParams: Something is out of its range.
    """
    params = _given(
        title=title,
        task_id=task_id,
        description=description,
        capabilities=_list(capabilities),
        depends_on=_list(depends_on),
        filler=filler,
        priority=priority,
        estimate_usd=usd(estimate_usd, "estimate_usd"),
        payload=None if payload is None else _plain(_map(payload, "payload"), "payload"),
        milestones=_list(milestones),
        resources=_list(resources),
        not_before_at_ms=not_before_at_ms,
        deadline_at_ms=deadline_at_ms,
        lease_ms=lease_ms,
        max_attempts=max_attempts,
        backoff=None if backoff is None else _map(backoff, "backoff"),
        unique_key=unique_key,
        retention_ms=retention_ms,
        on_dependency_failure=on_dependency_failure,
        group=group,
        concurrency_key=concurrency_key,
        concurrency_limit=concurrency_limit,
        weight=weight,
    )
    return Call("coordinator.create_task", params, _task, options)


def create_tasks(tasks: Sequence[Mapping[str, Any]], **options: Unpack[Options]) -> Call[tuple[Task, ...]]:
    """Create up to 50 tasks in one commit, or none of them.

    Args:
        tasks: The arguments of `create_task`, by name, of each. They may depend on one another, in whatever order they stand.

    Raises:
        InvalidParams: One is out of its range (``data["index"]``), or some wait for one another (``data["cycle"]``).
        AlreadyExists, NotFound, LimitExceeded: As `create_task`.
    """
    made = [create_task(**task) for task in tasks]
    for call in made:
        if call.options:
            raise TypeError(f"a task of create_tasks got an unexpected keyword argument {min(call.options)!r}")
    params = {"tasks": [call.params for call in made]}
    return Call("coordinator.create_tasks", params, _all_under("tasks", Task.from_wire), options)


def cancel_task(task_id: str, *, reason: str | None = None, **options: Unpack[Options]) -> Call[Task]:
    """End an open task without a result, for its creator and operators; its holder is told to stop.

    Raises:
        NotReady: It has ended in another way.
        PermissionDenied: The caller is neither its creator nor an operator.
    """
    return Call("coordinator.cancel_task", _given(task_id=task_id, reason=reason), _task, options)


def requeue_task(
    task_id: str, *, reason: str | None = None, deadline_at_ms: int | None = None, **options: Unpack[Options]
) -> Call[Task]:
    """Open a task again that is dead, failed, cancelled or expired, for its creator and operators; its attempts count anew.

    Args:
        reason: Goes on record.
        deadline_at_ms: A new deadline; otherwise an old one that has passed is dropped.

    Raises:
        NotReady: It is open or completed.
        PermissionDenied: The caller is neither its creator nor an operator.
    """
    params = _given(task_id=task_id, reason=reason, deadline_at_ms=deadline_at_ms)
    return Call("coordinator.requeue_task", params, _task, options)


def list_dead_letters(
    *, after: str | None = None, limit: int | None = None, **options: Unpack[Options]
) -> Call[TaskPage]:
    """Tasks whose attempts are used up, those that died first at the front, each with the `Task.errors` of its attempts."""
    params = _given(after=after, limit=limit)
    return Call("coordinator.list_dead_letters", params, _answer("TaskPage"), options)


def _list(values: Sequence[Any] | None) -> list[Any] | None:
    if isinstance(values, str):
        # A string is a sequence of strings too: "a:b" would become three capabilities.
        raise InvalidParams(f"cannot read a list: got the single string {values!r:.80}, write [{values!r:.80}]")
    return None if values is None else list(values)


def get_task(task_id: str, *, consistent: bool | None = None, **options: Unpack[Options]) -> Call[Task]:
    """One task as it stands; `consistent` with what other hosts have just done, too. Raises NotFound."""
    return Call("coordinator.get_task", {"task_id": task_id, **_given(consistent=consistent)}, _task, options)


def list_tasks(
    *,
    states: Sequence[str] | None = None,
    holder: str | None = None,
    grep: str | None = None,
    after: str | None = None,
    limit: int | None = None,
    consistent: bool | None = None,
    **options: Unpack[Options],
) -> Call[TaskPage]:
    """Tasks in order of creation.

    Args:
        states: Only these; all if not given.
        holder: Only tasks that this swarm holds.
        grep: Only tasks whose id or title contains this, whatever the case.
        after: Go on after this task id.
        limit: At most this many, 1 to 200; 50 if not given.
        consistent: With what other hosts have just done, too.
    """
    params = _given(states=_list(states), holder=holder, grep=grep, after=after, limit=limit, consistent=consistent)
    return Call("coordinator.list_tasks", params, _answer("TaskPage"), options)


def claim_task(
    task_id: str,
    swarm_id: str,
    *,
    wait_ms: int | None = None,
    lease_ms: int | None = None,
    bind: str | None = None,
    resume_token: str | None = None,
    resources: Sequence[str] | None = None,
    **options: Unpack[Options],
) -> Call[TaskClaim | Refusal]:
    """Claim one task for a swarm: exactly one caller wins; the others get a `Refusal` that says who.

    Args:
        wait_ms: If somebody holds it or it is not ready, wait this long for it, at most 10 min.
        lease_ms: Give the claim a lease of its own; otherwise it lives with the swarm's session.
        bind: What frees it at once: the end of this ``process``, of an ancestor ``pid:N``, of a process that was ``handed`` over
            (`hand_over`), of this ``connection``; of nothing (``lease``), or of what the ``session`` is bound to, which counts if nothing
            is given and there is a session.
        resume_token: Proof of the session that it is claimed in.
        resources: Taken with the claim, or it is refused; besides those that the task names. They are free when it ends.

    Raises:
        ResourceBusy: Somebody holds a resource that it needs.
        NotFound, PermissionDenied: No such task, swarm or process; it belongs to another user.
        NotReady: It waits for other tasks, is blocked, or is final.
        Paused: The task, its group or the swarm is.
        AtCapacity: As many tasks of its concurrency key are held as may be.
        NotQualified, BreakerTripped, BudgetExceeded: The governor's no.
        StaleToken: The session of `resume_token` has ended.
        LimitExceeded: The daemon watches too many processes.
    """
    params = _given(
        task_id=task_id,
        swarm_id=swarm_id,
        wait_ms=wait_ms,
        lease_ms=lease_ms,
        bind=bind,
        resume_token=resume_token,
        resources=_list(resources),
    )
    return Call("coordinator.claim_task", params, _claim, options, (wait_ms or 0) / 1000)


def claim_next(
    swarm_id: str,
    *,
    wait_ms: int | None = None,
    lease_ms: int | None = None,
    bind: str | None = None,
    resume_token: str | None = None,
    **options: Unpack[Options],
) -> Call[TaskClaim | Refusal]:
    """Claim the best ready task that this swarm qualifies for and can pay; a `Refusal` if there is none.

    Args:
        wait_ms: Wait in the daemon until there is one, at most 10 min; 0 answers at once.
        lease_ms, bind, resume_token: As `claim_task`.

    Raises:
        NotFound, PermissionDenied, BreakerTripped, StaleToken: As `claim_task`.
    """
    params = _given(swarm_id=swarm_id, wait_ms=wait_ms, lease_ms=lease_ms, bind=bind, resume_token=resume_token)
    return Call("coordinator.claim_next", params, _claim, options, (wait_ms or 0) / 1000)


def claim_several(
    swarm_id: str,
    n: int,
    *,
    wait_ms: int | None = None,
    lease_ms: int | None = None,
    bind: str | None = None,
    resume_token: str | None = None,
    **options: Unpack[Options],
) -> Call[tuple[TaskClaim, ...] | Refusal]:
    """As `claim_next`, the best `n` tasks at once, in one commit; at least one, or a `Refusal`.

    Args:
        n: 1 to 16; fewer come if fewer can be had, or fit into one answer.

    Raises:
        NotFound, PermissionDenied, BreakerTripped, StaleToken: As `claim_task`.
    """
    params = _given(swarm_id=swarm_id, n=n, wait_ms=wait_ms, lease_ms=lease_ms, bind=bind, resume_token=resume_token)
    return Call("coordinator.claim_next", params, _claims, options, (wait_ms or 0) / 1000)


def renew_claim(task_id: str, swarm_id: str, token: int, **options: Unpack[Options]) -> Call[int]:
    """Renew the lease that a claim lives on; its full length in ms. Proves nothing; only the token does. Raises StaleToken."""
    params = {"task_id": task_id, "swarm_id": swarm_id, "token": token}
    return Call("coordinator.renew_claim", params, lambda answer: int(answer["lease_ms"]), options)


def bind_claim(
    task_id: str, swarm_id: str, token: int, bind: str, **options: Unpack[Options]
) -> Call[dict[str, Any] | None]:
    """Bind a claim on a lease of its own to something else, as `bind` of `claim_task`; what it is bound to now, or None.

    Raises:
        StaleToken, NotOwner: The claim has ended; it is another swarm's.
        InvalidRequest: It lives on the session's lease.
    """
    params = {"task_id": task_id, "swarm_id": swarm_id, "token": token, "bind": bind}
    return Call("coordinator.bind_claim", params, lambda answer: answer["bound"], options)


def report_progress(
    task_id: str,
    swarm_id: str,
    token: int,
    percent: int,
    *,
    note: str | None = None,
    artefacts: Sequence[Mapping[str, Any]] | None = None,
    blocked_on: str | None = None,
    next_action: str | None = None,
    **options: Unpack[Options],
) -> Call[Progress]:
    """Record how far the holder is (0 to 100) and renew its lease. Raises StaleToken, NotOwner.

    Args:
        artefacts: What it leaves for whoever holds the task next, ``{"name", "sha256", "bytes"}`` each; the newest 16 are kept.
        blocked_on, next_action: What it waits for and what it does next; what is not given stays, ``""`` takes it back.
    """
    left = None if artefacts is None else [_map(artefact, "artefacts") for artefact in artefacts]
    params = _given(
        task_id=task_id,
        swarm_id=swarm_id,
        token=token,
        percent=percent,
        note=note,
        artefacts=left,
        blocked_on=blocked_on,
        next_action=next_action,
    )
    return Call("coordinator.report_progress", params, _answer("Progress"), options)


def complete_task(
    task_id: str, swarm_id: str, token: int, *, result: Any = None, **options: Unpack[Options]
) -> Call[ClaimEnd]:
    """End the claim and the task with a result (at most 32 KiB packed); dependants become ready.

    Completing twice with one token answers the first result again, ``replayed`` in the receipt. Raises StaleToken, NotOwner.
    """
    params = _given(task_id=task_id, swarm_id=swarm_id, token=token, result=_plain(result, "result"))
    return Call("coordinator.complete_task", params, _answer("ClaimEnd"), options)


def complete_tasks(swarm_id: str, tasks: Sequence[Mapping[str, Any]], **options: Unpack[Options]) -> Call[BatchEnd]:
    """Complete up to 50 tasks of a swarm in one commit; each is completed, or refused by itself.

    Args:
        tasks: ``{"task_id", "token", "result"}`` each, the result may be left out.
    """
    params = {"swarm_id": swarm_id, "tasks": [_plain(_map(task, "tasks"), "tasks") for task in tasks]}
    return Call("coordinator.complete_tasks", params, _answer("BatchEnd"), options)


def fail_task(
    task_id: str, swarm_id: str, token: int, error: str, *, retry: bool | None = None, **options: Unpack[Options]
) -> Call[ClaimEnd]:
    """End the claim with a failure; counts against the swarm's breaker. Raises StaleToken, NotOwner.

    Args:
        error: Why, at most 4 KiB.
        retry: Whether to offer the task again while it has attempts left; not given: if it has `max_attempts`.
    """
    params = _given(task_id=task_id, swarm_id=swarm_id, token=token, error=error, retry=retry)
    return Call("coordinator.fail_task", params, _answer("ClaimEnd"), options)


def release_task(
    task_id: str, swarm_id: str, token: int, *, note: str | None = None, **options: Unpack[Options]
) -> Call[ClaimEnd]:
    """End the claim without a verdict; the task is ready for others at once. Raises StaleToken, NotOwner."""
    params = _given(task_id=task_id, swarm_id=swarm_id, token=token, note=note)
    return Call("coordinator.release_task", params, _answer("ClaimEnd"), options)


def acquire_resources(
    swarm_id: str,
    resources: Sequence[str],
    *,
    task_id: str | None = None,
    token: int | None = None,
    lease_ms: int | None = None,
    wait_ms: int | None = None,
    **options: Unpack[Options],
) -> Call[ResourceGrant]:
    """Take named resources (``file:src/a.py``, ``gpu:0``) for a swarm, all of them or none: each has one holder at a time.

    Args:
        task_id, token: Take them for this claim: they are free when it ends, however it ends.
        lease_ms: Without a task: a lease of their own. Otherwise they live with the swarm's session. Acquiring again what is held
            renews such a lease.
        wait_ms: Wait until all are free, at most 10 min.

    Raises:
        ResourceBusy: Somebody holds one.
        StaleToken, NotOwner: The claim has ended; it is another swarm's.
    """
    params = _given(
        swarm_id=swarm_id,
        resources=_list(resources),
        task_id=task_id,
        token=token,
        lease_ms=lease_ms,
        wait_ms=wait_ms,
    )
    return Call("coordinator.acquire_resources", params, _answer("ResourceGrant"), options, (wait_ms or 0) / 1000)


def release_resources(swarm_id: str, resources: Mapping[str, int], **options: Unpack[Options]) -> Call[tuple[str, ...]]:
    """Free resources by name and fence, all of them or none; their names. Raises StaleToken, NotOwner."""
    params = {"swarm_id": swarm_id, "resources": _map(resources, "resources")}
    return Call("coordinator.release_resources", params, lambda answer: tuple(answer["released"]), options)


def list_resources(
    *,
    prefix: str | None = None,
    holder: str | None = None,
    after: str | None = None,
    limit: int | None = None,
    **options: Unpack[Options],
) -> Call[ResourcePage]:
    """Resources that somebody holds, by name: those that begin with `prefix`, of the swarm `holder`, after the name `after`."""
    params = _given(prefix=prefix, holder=holder, after=after, limit=limit)
    return Call("coordinator.list_resources", params, _answer("ResourcePage"), options)


def ask(
    swarm_id: str,
    to: str,
    question: str,
    *,
    task_id: str | None = None,
    token: int | None = None,
    wait_ms: int | None = None,
    **options: Unpack[Options],
) -> Call[Reply]:
    """Put a question to another swarm, or to a ``person`` for approval; the answer, if it comes within `wait_ms` (at most 10 min).

    Args:
        task_id, token: Ask for this claim: the task is shown as waiting, and the question ends with it.

    Raises:
        WouldDeadlock: Those who wait for one another would go round in a circle.
        NotFound: There is no such swarm.
        StaleToken, NotOwner: The claim has ended; it is another swarm's.
    """
    params = _given(swarm_id=swarm_id, to=to, question=question, task_id=task_id, token=token, wait_ms=wait_ms)
    return Call("coordinator.ask", params, _answer("Reply"), options, (wait_ms or 0) / 1000)


def await_reply(swarm_id: str, reply_id: str, *, wait_ms: int | None = None, **options: Unpack[Options]) -> Call[Reply]:
    """The answer to an earlier question, if it comes within `wait_ms` (at most 10 min). Raises NotFound: the question has ended."""
    params = _given(swarm_id=swarm_id, reply_id=reply_id, wait_ms=wait_ms)
    return Call("coordinator.await_reply", params, _answer("Reply"), options, (wait_ms or 0) / 1000)


def reply(reply_id: str, answer: Any, **options: Unpack[Options]) -> Call[Question]:
    """Answer a question, once; the question. To an approval (operator) the answer is ``{"approved": bool, "note": text}``.

    Raises:
        NotFound: It is not open; it may be answered already.
        PermissionDenied: It is for somebody else.
    """
    params = {"reply_id": reply_id, "answer": _plain(answer, "answer")}
    return Call("coordinator.reply", params, _under("question", Question), options)


def list_questions(
    *, to: str | None = None, after: str | None = None, limit: int | None = None, **options: Unpack[Options]
) -> Call[QuestionPage]:
    """Open questions, the oldest first: those to the swarm `to`, or to a ``person``, after the reply id `after`."""
    params = _given(to=to, after=after, limit=limit)
    return Call("coordinator.list_questions", params, _answer("QuestionPage"), options)


def waits(*, about: str | None = None, limit: int | None = None, **options: Unpack[Options]) -> Call[WaitGraph]:
    """Who waits for what, over dependencies, resources, replies and approvals: all, or around a task or node `about`."""
    return Call("coordinator.waits", _given(about=about, limit=limit), _answer("WaitGraph"), options)


def request_help(swarm_id: str, **options: Unpack[Options]) -> Call[dict[str, Any]]:
    """Call for help where it frees the most of what this swarm works on: ``{"edge", "frees", "holds_up", "asked"}``."""
    return Call("coordinator.request_help", {"swarm_id": swarm_id}, untyped, options)


def register_swarm(
    swarm_id: str,
    *,
    capabilities: Sequence[str] | None = None,
    cost_per_hour_usd: Usd | None = None,
    budget_usd: Usd | None = None,
    model: str | None = None,
    orchestrator: bool | None = None,
    lease_ms: int | None = None,
    resume_token: str | None = None,
    bind: str | None = None,
    slots: int | None = None,
    **options: Unpack[Options],
) -> Call[Registration]:
    """Start a session of a swarm; its name belongs to the caller's uid from now on. `register` also renews and ends it.

    Args:
        capabilities, cost_per_hour_usd, model: The profile; what is not given stays as it was.
        budget_usd: Its budget when it has none yet. A swarm can lower its own budget, only an operator raises it.
        orchestrator: Hears of every blocker.
        lease_ms: Length of the session's lease; default and limits are the daemon's.
        resume_token: Proves that this is an earlier session coming back; without it, that session's claims are freed.
        bind: What ends the session at once and frees its claims: the end of this ``process``, of an ancestor ``pid:N``, of a process
            that was ``handed`` over (`hand_over`), or of this ``connection``; its ``lease`` alone if not given.
        slots: The weights of all tasks that are claimed in this session add up to so much at most; no bound if not given.

    Raises:
        PermissionDenied: The name belongs to another user; or `budget_usd` would raise the budget.
    """
    params = _given(
        swarm_id=swarm_id,
        capabilities=_list(capabilities),
        cost_per_hour_usd=usd(cost_per_hour_usd, "cost_per_hour_usd"),
        budget_usd=usd(budget_usd, "budget_usd"),
        model=model,
        orchestrator=orchestrator,
        lease_ms=lease_ms,
        resume_token=resume_token,
        bind=bind,
        slots=slots,
    )
    return Call("coordinator.register_swarm", params, _answer("Registration"), options)


def renew_session(swarm_id: str, resume_token: str, **options: Unpack[Options]) -> Call[SessionRenewal]:
    """Renew a session's lease and with it every claim in it. Raises StaleToken: it has ended, stop all its work."""
    params = {"swarm_id": swarm_id, "resume_token": resume_token}
    return Call("coordinator.renew_session", params, _answer("SessionRenewal"), options)


def bind_session(
    swarm_id: str, resume_token: str, bind: str, **options: Unpack[Options]
) -> Call[dict[str, Any] | None]:
    """Bind a session to something else, as `bind` of `register_swarm`; what it is bound to now, or None. Raises StaleToken."""
    params = {"swarm_id": swarm_id, "resume_token": resume_token, "bind": bind}
    return Call("coordinator.bind_session", params, lambda answer: answer["bound"], options)


def end_session(swarm_id: str, resume_token: str, **options: Unpack[Options]) -> Call[tuple[str, ...]]:
    """End a session: the ids of the tasks that are free by it. Ended already is fine."""
    params = {"swarm_id": swarm_id, "resume_token": resume_token}
    return Call("coordinator.end_session", params, lambda answer: tuple(answer["freed"]), options)


def swarm_status(swarm_id: str, **options: Unpack[Options]) -> Call[SwarmStatus]:
    """What a swarm works on, how far it is, what it waits for and what it does next. Raises NotFound."""
    return Call("coordinator.swarm_status", {"swarm_id": swarm_id}, _answer("SwarmStatus"), options)


def push_task_to_swarm(task_id: str, swarm_id: str, **options: Unpack[Options]) -> Call[Push]:
    """Put a task into a swarm's durable inbox and tell it; withdrawn when anybody claims the task.

    Raises:
        NotFound, NotReady, NotQualified, BreakerTripped: A push never reaches a swarm that could not claim it.
    """
    params = {"task_id": task_id, "swarm_id": swarm_id}
    return Call("coordinator.push_task_to_swarm", params, _answer("Push"), options)


def broadcast(
    topic: str,
    body: Mapping[str, Any],
    *,
    capabilities: Sequence[str] | None = None,
    sender: str | None = None,
    expression: str | None = None,
    subscribers: bool | None = None,
    **options: Unpack[Options],
) -> Call[TaskBroadcast]:
    """Put a message into the inbox of every registered swarm that has all `capabilities`.

    Args:
        sender: The caller's swarm, if it speaks for one; must be its own.
        expression: Only swarms that it fits, as ``all(code-analysis:python, any(infra:*, docs:writing), not(gpu:cuda))``.
        subscribers: Only swarms that subscribed to the topic.
    """
    params = _given(
        topic=topic,
        body=_plain(_map(body, "body"), "body"),
        capabilities=_list(capabilities),
        sender=sender,
        expression=expression,
        subscribers=subscribers,
    )
    return Call("coordinator.broadcast", params, _under("broadcast", TaskBroadcast), options)


def subscribe_topic(swarm_id: str, topic: str, **options: Unpack[Options]) -> Call[str]:
    """Have what is broadcast to a topic's subscribers put into this swarm's inbox, also while it is away; the topic."""
    params = {"swarm_id": swarm_id, "topic": topic}
    return Call("coordinator.subscribe_topic", params, lambda answer: str(answer["topic"]), options)


def unsubscribe_topic(swarm_id: str, topic: str, **options: Unpack[Options]) -> Call[str]:
    """And no longer; what is in the inbox stays. The topic."""
    params = {"swarm_id": swarm_id, "topic": topic}
    return Call("coordinator.unsubscribe_topic", params, lambda answer: str(answer["topic"]), options)


def list_topics(swarm_id: str, **options: Unpack[Options]) -> Call[tuple[str, ...]]:
    """The topics that a swarm subscribed to, by name."""
    return Call("coordinator.list_topics", {"swarm_id": swarm_id}, lambda answer: tuple(answer["topics"]), options)


def detect_blocker(
    swarm_id: str,
    reason: str,
    *,
    task_id: str | None = None,
    token: int | None = None,
    severity: Severity | None = None,
    needs: Sequence[str] | None = None,
    release: bool | None = None,
    **options: Unpack[Options],
) -> Call[BlockerAlert]:
    """Report that a swarm cannot go on: orchestrators and operators hear it, the best qualified swarms are asked to help.

    Args:
        task_id, token: The task that it concerns and the claim's fencing token.
        needs: Capabilities that would help.
        release: Give the claim back; the task stays ``blocked`` until the blocker is resolved.

    Raises:
        StaleToken, NotOwner: The claim has ended; it is another swarm's.
    """
    info = _given(reason=reason, task_id=task_id, token=token, severity=severity, needs=_list(needs), release=release)
    return Call("coordinator.detect_blocker", {"swarm_id": swarm_id, "info": info}, _blocker, options)


def resolve_blocker(
    blocker_id: str, *, swarm_id: str | None = None, note: str | None = None, **options: Unpack[Options]
) -> Call[BlockerAlert]:
    """End a blocker; its task is ready again. For its reporter's user, its helpers and operators."""
    params = _given(blocker_id=blocker_id, swarm_id=swarm_id, note=note)
    return Call("coordinator.resolve_blocker", params, _blocker, options)


def list_blockers(**options: Unpack[Options]) -> Call[tuple[BlockerAlert, ...]]:
    """The open blockers, oldest first."""
    return Call("coordinator.list_blockers", {}, _all_under("blockers", BlockerAlert.from_wire), options)


def read_inbox(
    swarm_id: str, *, after_seq: int | None = None, limit: int | None = None, **options: Unpack[Options]
) -> Call[InboxPage]:
    """Unacknowledged messages with a seq above `after_seq`, at most `limit` (50)."""
    params = _given(swarm_id=swarm_id, after_seq=after_seq, limit=limit)
    return Call("coordinator.read_inbox", params, _answer("InboxPage"), options)


def acknowledge(swarm_id: str, seq: int, **options: Unpack[Options]) -> Call[int]:
    """Drop all messages up to and including `seq`; how many those were. Pushed tasks stay until claimed."""
    params = {"swarm_id": swarm_id, "seq": seq}
    return Call("coordinator.acknowledge", params, lambda answer: int(answer["dropped"]), options)


def pause(kind: Paused, name: str, *, reason: str | None = None, **options: Unpack[Options]) -> Call[dict[str, Any]]:
    """Give out no new work of a task or a group, or to a swarm, until it is resumed; claims that run go on.

    For operators; for a task's creator and a swarm's owner, too. The answer has the ``pause`` and the claims that go on as ``running``.

    Args:
        kind: ``task``, ``group`` or ``swarm``.
        reason: At most 500 characters; every refusal quotes it.

    Raises:
        NotFound, PermissionDenied: There is no such task or swarm; it is another user's, or a group's.
        NotReady: The task is final.
    """
    return Call("coordinator.pause", _given(kind=kind, name=name, reason=reason), untyped, options)


def resume(kind: Paused, name: str, **options: Unpack[Options]) -> Call[dict[str, Any] | None]:
    """End a pause or a drain: what it was, None if there was none. Raises as `pause`; an operator's takes an operator."""
    return Call("coordinator.resume", {"kind": kind, "name": name}, lambda answer: answer["was"], options)


def drain_swarm(
    swarm_id: str, *, grace_ms: int | None = None, reason: str | None = None, **options: Unpack[Options]
) -> Call[dict[str, Any]]:
    """Give a swarm no new work; what it still holds after the grace is given back. For its owner and operators, until `resume`.

    Args:
        grace_ms: How long it has to finish or hand back; 10 min if not given.
        reason: At most 500 characters.

    Raises:
        NotFound, PermissionDenied: There is no such swarm; it is another user's.
    """
    params = _given(swarm_id=swarm_id, grace_ms=grace_ms, reason=reason)
    return Call("coordinator.drain_swarm", params, untyped, options)


def drain_host(
    *, off: bool | None = None, grace_ms: int | None = None, reason: str | None = None, **options: Unpack[Options]
) -> Call[dict[str, Any]]:
    """Let this daemon give out no new work to anybody (operator), until called with `off`, or until it is started anew.

    Args:
        grace_ms: What it gave out and is still held after that is given back; 10 min if not given.
        reason: At most 500 characters; every refusal quotes it.
    """
    params = _given(off=off, grace_ms=grace_ms, reason=reason)
    return Call("coordinator.drain_host", params, untyped, options)


def set_group_weight(group: str, weight: int, **options: Unpack[Options]) -> Call[dict[str, Any]]:
    """Give a group of tasks a share of the claims, in proportion to its weight beside the others (operator).

    Tasks without a group, and of groups without a weight of their own, share one of weight 1.

    Args:
        weight: 1 to 1000; 0 takes it away.
    """
    params = {"group": group, "weight": weight}
    return Call("coordinator.set_group_weight", params, lambda answer: answer["group"], options)


def list_groups(
    *, after: str | None = None, limit: int | None = None, **options: Unpack[Options]
) -> Call[tuple[dict[str, Any], ...]]:
    """Groups with a weight or a pause, by name: ``{"group", "weight", "pause"}`` each.

    Args:
        after: Go on after this group.
        limit: At most this many, 1 to 200; 50 if not given.
    """
    params = _given(after=after, limit=limit)
    return Call("coordinator.list_groups", params, lambda answer: tuple(answer["groups"]), options)


def explain_claim(task_id: str, swarm_id: str, **options: Unpack[Options]) -> Call[ClaimExplanation]:
    """Every check that `claim_task` would make, in order, with its figures; changes nothing."""
    params = {"task_id": task_id, "swarm_id": swarm_id}
    return Call("coordinator.explain_claim", params, _answer("ClaimExplanation"), options)


# --- governor ----------------------------------------------------------------------------------------


def register_profile(
    swarm_id: str,
    capabilities: Sequence[str],
    *,
    cost_per_hour_usd: Usd | None = None,
    budget_usd: Usd | None = None,
    model: str | None = None,
    **options: Unpack[Options],
) -> Call[SwarmProfile]:
    """Create or change a swarm's profile without starting a session.

    Raises:
        PermissionDenied: The name belongs to another user, or `budget_usd` would raise an existing budget.
    """
    params = _given(
        swarm_id=swarm_id,
        capabilities=_list(capabilities),
        cost_per_hour_usd=usd(cost_per_hour_usd, "cost_per_hour_usd"),
        budget_usd=usd(budget_usd, "budget_usd"),
        model=model,
    )
    return Call("governor.register_profile", params, _under("profile", SwarmProfile), options)


def get_swarm(swarm_id: str, **options: Unpack[Options]) -> Call[SwarmProfile]:
    """One swarm's profile. Raises NotFound."""
    return Call("governor.get_swarm", {"swarm_id": swarm_id}, _under("profile", SwarmProfile), options)


def list_swarms(*, after: str | None = None, limit: int | None = None, **options: Unpack[Options]) -> Call[SwarmPage]:
    """Swarms by name, at most `limit` (50), going on after the name `after`."""
    return Call("governor.list_swarms", _given(after=after, limit=limit), _answer("SwarmPage"), options)


def find_qualified_swarm(
    capabilities: Sequence[str],
    *,
    max_cost_per_hour_usd: Usd | None = None,
    similarity: Similarity | None = None,
    limit: int | None = None,
    **options: Unpack[Options],
) -> Call[MatchReport]:
    """The swarms fit for a task, best first by (overlap x reputation) / cost; free ones before all that cost something.

    Args:
        similarity: Which measure is compared with the threshold; the policy's default if not given.
        limit: At most this many matches; 5 if not given.
    """
    params = _given(
        capabilities=_list(capabilities),
        max_cost_per_hour_usd=usd(max_cost_per_hour_usd, "max_cost_per_hour_usd"),
        similarity=similarity,
        limit=limit,
    )
    return Call("governor.find_qualified_swarm", params, _answer("MatchReport"), options)


def track_cost(
    swarm_id: str,
    operation: str,
    cost_usd: Usd,
    *,
    task_id: str | None = None,
    token: int | None = None,
    model: str | None = None,
    usage: Mapping[str, int] | None = None,
    **options: Unpack[Options],
) -> Call[CostEntry]:
    """Record money that was spent; a budget that is used up trips the breaker in the same commit.

    Args:
        operation: What it was for, an identifier such as ``llm``.
        task_id, token: The task that it was spent on and the claim's fencing token.
        usage: Token counts: any of ``input_tokens``, ``output_tokens``, ``cache_read_tokens``, ``cache_write_tokens``.

    Raises:
        StaleToken: The claim has ended; nothing was recorded.
    """
    params = _given(
        swarm_id=swarm_id,
        operation=operation,
        cost_usd=usd(cost_usd, "cost_usd"),
        task_id=task_id,
        token=token,
        model=model,
        usage=None if usage is None else _map(usage, "usage"),
    )
    return Call("governor.track_cost", params, _answer("CostEntry"), options)


def reserve_cost(
    swarm_id: str, operation: str, estimate_usd: Usd, *, task_id: str, token: int, **options: Unpack[Options]
) -> Call[Reservation]:
    """Set money aside before spending it; it comes back with the claim's end at the latest.

    Raises:
        BudgetExceeded: Less than this is free; nothing was reserved.
        StaleToken: The claim has ended.
    """
    params = _given(
        swarm_id=swarm_id,
        operation=operation,
        estimate_usd=usd(estimate_usd, "estimate_usd"),
        task_id=task_id,
        token=token,
    )
    return Call("governor.reserve_cost", params, _answer("Reservation"), options)


def settle_cost(
    swarm_id: str,
    reservation_id: str,
    cost_usd: Usd,
    *,
    model: str | None = None,
    usage: Mapping[str, int] | None = None,
    **options: Unpack[Options],
) -> Call[CostEntry]:
    """Replace a reservation by what it really cost; 0 gives all of it back. Raises NotFound: settled, or gone with its claim."""
    params = _given(
        swarm_id=swarm_id,
        reservation_id=reservation_id,
        cost_usd=usd(cost_usd, "cost_usd"),
        model=model,
        usage=None if usage is None else _map(usage, "usage"),
    )
    return Call("governor.settle_cost", params, _answer("CostEntry"), options)


def get_budget_report(*, swarm_id: str | None = None, **options: Unpack[Options]) -> Call[tuple[BudgetReport, ...]]:
    """Where the money of one swarm or of all stands."""
    params = _given(swarm_id=swarm_id)
    return Call("governor.get_budget_report", params, _all_under("reports", BudgetReport.from_wire), options)


def set_budget(swarm_id: str, limit_usd: Usd, **options: Unpack[Options]) -> Call[BudgetReport]:
    """Set a swarm's budget (operator). Does not reset a breaker."""
    params = {"swarm_id": swarm_id, "limit_usd": usd(limit_usd, "limit_usd")}
    return Call("governor.set_budget", params, _report, options)


def trip_circuit_breaker(swarm_id: str, reason: str, **options: Unpack[Options]) -> Call[BudgetReport]:
    """Stop a swarm now (operator): no claim, push or spend until a reset."""
    params = {"swarm_id": swarm_id, "reason": reason}
    return Call("governor.trip_circuit_breaker", params, _report, options)


def reset_circuit_breaker(
    swarm_id: str, reason: str, *, budget_usd: Usd | None = None, **options: Unpack[Options]
) -> Call[BudgetReport]:
    """Let a stopped swarm work again (operator; witnessed with uid and reason).

    Args:
        budget_usd: A new budget at the same time; a swarm that was stopped for money needs one.

    Raises:
        BudgetExceeded: The swarm is broke and no new budget was given.
    """
    params = _given(swarm_id=swarm_id, reason=reason, budget_usd=usd(budget_usd, "budget_usd"))
    return Call("governor.reset_circuit_breaker", params, _report, options)


def list_breakers(*, tripped_only: bool | None = None, **options: Unpack[Options]) -> Call[tuple[Breaker, ...]]:
    """Every swarm's breaker, or only the tripped ones."""
    params = _given(tripped_only=tripped_only)
    return Call("governor.list_breakers", params, _all_under("breakers", _answer("Breaker")), options)


def list_escalations(**options: Unpack[Options]) -> Call[tuple[dict[str, Any], ...]]:
    """Open escalations: tripped breakers, open blockers, alarms and approvals that are waited for."""
    return Call("governor.list_escalations", {}, lambda answer: tuple(answer["escalations"]), options)


# --- chassis -----------------------------------------------------------------------------------------


def put_blob(sha256: str, offset: int, data: bytes, total_bytes: int, **options: Unpack[Options]) -> Call[BlobProgress]:
    """Upload one chunk (at most 48 KiB) of a module; `upload_module` does all of them.

    Raises:
        InvalidModule: What came has another SHA-256; the upload starts again.
        LimitExceeded: More bytes or files than a user may keep.
    """
    params = {"sha256": sha256, "offset": offset, "data": data, "total_bytes": total_bytes}
    return Call("chassis.put_blob", params, _answer("BlobProgress"), options)


def load_swarm(swarm_id: str, contract: ServiceContract, **options: Unpack[Options]) -> Call[LoadedModule]:
    """Load an uploaded module for a swarm under a contract, compiled if need be. The same contract again changes nothing.

    Raises:
        NotFound: No such swarm, compile profile, or module among the caller's uploads.
        InvalidParams: A limit beyond the host's policy.
        InvalidModule: Not WebAssembly, of another kind, without the export, or with imports that are not offered.
        CompileLimit, LimitExceeded: Compiling took more, or the module is longer, than the profile allows.
    """
    params = {"swarm_id": swarm_id, "contract": contract.to_wire()}
    return Call("chassis.load_swarm", params, _answer("LoadedModule"), options)


def execute_task(
    swarm_id: str,
    input: Any,
    *,
    module_sha256: str | None = None,
    task_id: str | None = None,
    token: int | None = None,
    **options: Unpack[Options],
) -> Call[Execution]:
    """Run a loaded module; the execution is on record when this returns.

    Sent again after a lost connection it runs again, unless it has an ``idempotency_key``: then the first answer comes back.

    Args:
        input: For ``core`` ``{"args": [numbers]}``, else any JSON value.
        module_sha256: Which of the swarm's modules; the last loaded by default.
        task_id, token: The claim that it is done for.

    Raises:
        LimitExceeded: Memory, time, output or call rate; ``data["limit"]`` says which.
        GuestFailed: It trapped, failed, or gave no JSON; ``data["stderr"]`` has the start of what it said.
        StaleToken, NotOwner: The claim has ended; it is another swarm's.
    """
    # A JSON null is an input too, so `input` is always sent.
    params = {
        "input": _plain(input, "input"),
        **_given(swarm_id=swarm_id, module_sha256=module_sha256, task_id=task_id, token=token),
    }
    return Call("chassis.execute_task", params, Execution.from_wire, options)


def unload_swarm(
    swarm_id: str, *, module_sha256: str | None = None, **options: Unpack[Options]
) -> Call[tuple[str, ...]]:
    """Unload one module of a swarm, or all of them; the SHA-256s of what was unloaded. Running executions fail."""
    params = _given(swarm_id=swarm_id, module_sha256=module_sha256)
    return Call("chassis.unload_swarm", params, lambda answer: tuple(answer["unloaded"]), options)


def list_sandboxes(**options: Unpack[Options]) -> Call[tuple[dict[str, Any], ...]]:
    """The sandboxes of modules that the caller loaded; an operator sees all."""
    return Call("chassis.list_sandboxes", {}, tuple, options)


# --- witness and optimise ----------------------------------------------------------------------------


def witness_query(
    *,
    after_seq: int | None = None,
    limit: int | None = None,
    op: str | None = None,
    target: str | None = None,
    outcome: str | None = None,
    newest_first: bool | None = None,
    **options: Unpack[Options],
) -> Call[WitnessPage]:
    """Entries of the record that fit all given filters.

    Args:
        op: A method's name, or its start up to a dot (``coordinator``).
        outcome: ``ok`` or an error code.
    """
    params = _given(after_seq=after_seq, limit=limit, op=op, target=target, outcome=outcome, newest_first=newest_first)
    return Call("witness.query", params, _answer("WitnessPage"), options)


def witness_verify(*, receipt: str | None = None, **options: Unpack[Options]) -> Call[WitnessVerdict]:
    """Recompute the whole chain, and compare it with a receipt ``seq:hash`` if one is given."""
    return Call("witness.verify", _given(receipt=receipt), _answer("WitnessVerdict"), options)


def witness_head(**options: Unpack[Options]) -> Call[WitnessHead]:
    """The record's newest number and hash: kept elsewhere, it proves any later change of what came before."""
    return Call("witness.head", {}, _answer("WitnessHead"), options)


def cost_report(
    *,
    by: Dimension | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    limit: int | None = None,
    **options: Unpack[Options],
) -> Call[CostReport]:
    """Costs summed by one dimension (``swarm`` if not given), dearest first."""
    params = _given(by=by, since_ms=since_ms, until_ms=until_ms, limit=limit)
    return Call("optimise.report", params, _answer("CostReport"), options)
