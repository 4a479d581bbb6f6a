"""The blocking client: every method of the daemon, typed, over a connection that threads share (`ifbus.link`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from ifbus import calls, lease, module
from ifbus.calls import shown_signature
from ifbus.claim import ClaimCore, S, SpendingCore
from ifbus.errors import Cancelled, ConnectionFailed, ConnectionLost, DeadlineExceeded, LeaseLost
from ifbus.exchange import Feed
from ifbus.lease import Renewal, Tenure
from ifbus.link import Abort, Link, Subscription
from ifbus.lock import LockCore
from ifbus.models import BlockerAlert, Execution, InboxMessage, ResourceLimits, Task, TaskClaim
from ifbus.request import Call
from ifbus.steps import Steps, drive
from ifbus.worker import WAIT_S, SwarmCore, call_to_bind, check_in_flight, registration_steps

if TYPE_CHECKING:
    from ifbus.answers import ClaimEnd, CostEntry, Refusal, Registration

P = ParamSpec("P")
R = TypeVar("R")


def _blocking(build: Callable[P, Call[R]]) -> Callable[Concatenate[Client, P], R]:
    """A method that makes the call which `build` describes; arguments and docstring are `build`'s."""

    @wraps(build)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.perform(build(*args, **kwargs))

    method.__signature__ = shown_signature(build)  # type: ignore[attr-defined]
    return method


class Client(Link):
    """A connection to the daemon, blocking, for any number of threads; see `Link` for its arguments.

    Every method also takes `request.Options`: ``timeout``, ``idempotency_key``, ``traceparent``. Errors are the classes of
    `ifbus.errors`, the same that the daemon raised.
    """

    ping = _blocking(calls.ping)
    status = _blocking(calls.status)
    describe = _blocking(calls.describe)
    create_task = _blocking(calls.create_task)
    get_task = _blocking(calls.get_task)
    list_tasks = _blocking(calls.list_tasks)
    create_tasks = _blocking(calls.create_tasks)
    complete_tasks = _blocking(calls.complete_tasks)
    cancel_task = _blocking(calls.cancel_task)
    requeue_task = _blocking(calls.requeue_task)
    list_dead_letters = _blocking(calls.list_dead_letters)
    claim_task = _blocking(calls.claim_task)
    claim_next = _blocking(calls.claim_next)
    claim_several = _blocking(calls.claim_several)
    renew_claim = _blocking(calls.renew_claim)
    bind_claim = _blocking(calls.bind_claim)
    report_progress = _blocking(calls.report_progress)
    complete_task = _blocking(calls.complete_task)
    fail_task = _blocking(calls.fail_task)
    release_task = _blocking(calls.release_task)
    acquire_resources = _blocking(calls.acquire_resources)
    release_resources = _blocking(calls.release_resources)
    list_resources = _blocking(calls.list_resources)
    ask = _blocking(calls.ask)
    await_reply = _blocking(calls.await_reply)
    reply = _blocking(calls.reply)
    list_questions = _blocking(calls.list_questions)
    waits = _blocking(calls.waits)
    request_help = _blocking(calls.request_help)
    register_swarm = _blocking(calls.register_swarm)
    renew_session = _blocking(calls.renew_session)
    bind_session = _blocking(calls.bind_session)
    end_session = _blocking(calls.end_session)
    swarm_status = _blocking(calls.swarm_status)
    push_task_to_swarm = _blocking(calls.push_task_to_swarm)
    broadcast = _blocking(calls.broadcast)
    subscribe_topic = _blocking(calls.subscribe_topic)
    unsubscribe_topic = _blocking(calls.unsubscribe_topic)
    list_topics = _blocking(calls.list_topics)
    detect_blocker = _blocking(calls.detect_blocker)
    resolve_blocker = _blocking(calls.resolve_blocker)
    list_blockers = _blocking(calls.list_blockers)
    read_inbox = _blocking(calls.read_inbox)
    acknowledge = _blocking(calls.acknowledge)
    pause = _blocking(calls.pause)
    resume = _blocking(calls.resume)
    drain_swarm = _blocking(calls.drain_swarm)
    drain_host = _blocking(calls.drain_host)
    set_group_weight = _blocking(calls.set_group_weight)
    list_groups = _blocking(calls.list_groups)
    explain_claim = _blocking(calls.explain_claim)
    register_profile = _blocking(calls.register_profile)
    get_swarm = _blocking(calls.get_swarm)
    list_swarms = _blocking(calls.list_swarms)
    find_qualified_swarm = _blocking(calls.find_qualified_swarm)
    track_cost = _blocking(calls.track_cost)
    reserve_cost = _blocking(calls.reserve_cost)
    settle_cost = _blocking(calls.settle_cost)
    get_budget_report = _blocking(calls.get_budget_report)
    set_budget = _blocking(calls.set_budget)
    trip_circuit_breaker = _blocking(calls.trip_circuit_breaker)
    reset_circuit_breaker = _blocking(calls.reset_circuit_breaker)
    list_breakers = _blocking(calls.list_breakers)
    list_escalations = _blocking(calls.list_escalations)
    put_blob = _blocking(calls.put_blob)
    load_swarm = _blocking(calls.load_swarm)
    execute_task = _blocking(calls.execute_task)
    unload_swarm = _blocking(calls.unload_swarm)
    list_sandboxes = _blocking(calls.list_sandboxes)
    witness_query = _blocking(calls.witness_query)
    witness_verify = _blocking(calls.witness_verify)
    witness_head = _blocking(calls.witness_head)
    cost_report = _blocking(calls.cost_report)

    def subscribe_inbox(self, swarm_id: str, *, after_seq: int = 0) -> Subscription[InboxMessage]:
        """A swarm's unacknowledged messages above `after_seq`, and then each that comes."""
        feed = Feed("inbox", "coordinator.subscribe_inbox", swarm_id=swarm_id, after_seq=after_seq)
        return self.subscribe(feed, InboxMessage.from_wire)

    def subscribe_board(self, *, after_seq: int | None = None) -> Subscription[dict[str, Any]]:
        """Each change of a task, as ``{"event", "task_id", "swarm_id"?, "seq", ...}``: after the number `after_seq`, or from now on.

        Over reconnects it goes on after the last one seen. Raises NotKept where some of what came after it is no longer kept.
        """
        feed = Feed("board", "coordinator.subscribe_board", after_seq=after_seq or 0, resumes=True)
        return self.subscribe(feed, dict)

    def subscribe_escalations(self) -> Subscription[dict[str, Any]]:
        """Open escalations and each new one (operator), as ``{"kind", "swarm_id", "reason", "at_ms", ...}``."""
        return self.subscribe(Feed("escalation", "governor.subscribe_escalations"), dict)

    def register(
        self,
        swarm_id: str,
        *,
        capabilities: Sequence[str] | None = None,
        cost_per_hour_usd: calls.Usd | None = None,
        budget_usd: calls.Usd | None = None,
        model: str | None = None,
        orchestrator: bool | None = None,
        lease_ms: int | None = None,
        resume_token: str | None = None,
        bind: str | None = None,
        slots: int | None = None,
        on_lease_lost: Callable[[LeaseLost], None] | None = None,
        on_claim_lost: Callable[[str, LeaseLost], None] | None = None,
    ) -> Swarm:
        """Start a session and keep it alive until it is left: ``with bus.register("builder") as swarm``.

        Its lease is renewed from a thread and a connection of its own, so a busy holder does not lose its claims.

        Args:
            bind: What ends the session at once and frees its claims, as in `register_swarm`. If not given: this process, where its
                connection is its own and the daemon's kernel can tell of its end. ``lease``: nothing does but its lease.
            on_lease_lost: Called once, in the renewing thread, when the session can no longer be proven: stop touching the
                world. Every later call as its holder raises LeaseLost all the same.
            on_claim_lost: Called once with the handle of a claim that ended without its holder's word (its task was cancelled, its deadline
                has passed, its lease is lost): stop that work. In the renewing thread, or where an answer brought the news, so it must not
                wait for this client. Every later call of that claim raises LeaseLost all the same, and one under way is given up.

        What these two raise goes to `threading.excepthook` and ends nothing.

        Takes and raises, beside that, what `register_swarm` does.
        """
        if bind is None and self._inherited is not None:
            bind = "lease"  # whoever opened this connection is another process
        registration, tenure = drive(
            registration_steps(
                swarm_id,
                capabilities=capabilities,
                cost_per_hour_usd=cost_per_hour_usd,
                budget_usd=budget_usd,
                model=model,
                orchestrator=orchestrator,
                lease_ms=lease_ms,
                resume_token=resume_token,
                bind=bind,
                slots=slots,
            ),
            self.perform,
        )
        self._routes.swarms.append(swarm_id)
        call = call_to_bind(registration, bind)
        if call is not None:
            self._routes.bindings[swarm_id] = call
        # An inherited connection cannot be opened a second time: there the renewals share it.
        owns_link = self._inherited is None
        link = Link(self.socket_path, timeout=self.timeout) if owns_link else self
        return Swarm(
            self,
            registration,
            tenure,
            link,
            owns_link=owns_link,
            bind=bind,
            on_lease_lost=on_lease_lost,
            on_claim_lost=on_claim_lost,
        )

    def _forget_swarm(self, swarm_id: str) -> None:
        if swarm_id in self._routes.swarms:
            self._routes.swarms.remove(swarm_id)
        self._routes.bindings.pop(swarm_id, None)

    def _forget_hearer(self, hear: Callable[[dict[str, Any]], None]) -> None:
        if hear in self._routes.hearers:
            self._routes.hearers.remove(hear)

    def _give_up_connection(self, error: LeaseLost) -> None:
        """The daemon does not answer and a lease is lost: holders that wait for it must hear of that now."""
        if self._inherited is None:  # that one could not be made again
            self._drop(ConnectionLost(error.message, data=error.data))


class Swarm(SwarmCore):
    """A live session: takes tasks and letters for one swarm. Made by `Client.register`; leave it with `close` or ``with``.

    Threads may share it: each claim belongs to whom it was given. A forked child may not use it.
    """

    def __init__(
        self,
        client: Client,
        registration: Registration,
        tenure: Tenure,
        link: Link,
        *,
        owns_link: bool,
        bind: str | None,
        on_lease_lost: Callable[[LeaseLost], None] | None,
        on_claim_lost: Callable[[str, LeaseLost], None] | None,
    ) -> None:
        super().__init__(registration, tenure, client.new_key, on_lease_lost=on_lease_lost, on_claim_lost=on_claim_lost)
        self._client = client
        # Guards `_in_flight` and `_aborts`; told when one of them, or whether to go on, has changed.
        self._changed = threading.Condition()
        self._aborts: dict[Abort, bool] = {}  # of the claims under way, and whether a drain ends them
        self._holding: dict[Abort, str] = {}  # of the calls under way as a holder, and of which claim
        self._letters: list[Subscription[InboxMessage]] = []
        self._renewal = Renewal(
            link,
            tenure,
            registration.resume_token,
            owns_link=owns_link,
            # The renewing connection is this process's too, but it is another connection.
            bind=None if bind == "connection" else call_to_bind(registration, bind),
            on_lost=self._hear_of_the_loss,
            on_attention=self._hear,
            on_gone=self._tell_claim_lost,
        )
        self._renewal.start()
        client._routes.hearers.append(self._hear)
        if self._resumed:
            self._renewal.listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def drain(self) -> None:
        """Take no more tasks: `tasks` ends, what is held may be finished. For signal handlers too."""
        self._is_draining = True
        with self._changed:
            aborts = tuple(abort for abort, ends_with_drain in self._aborts.items() if ends_with_drain)
            self._changed.notify_all()
        for abort in aborts:
            # Not at the price of waiting for a thread that is sending, perhaps the one that this interrupts: what it asked
            # for ends by itself within `WAIT_S`.
            abort.set(wait=False)

    def close(self) -> tuple[str, ...]:
        """End the session: what it still holds comes free at once; the ids of those tasks. Twice is fine.

        Threads that wait for a task here stop waiting.
        """
        if self._tenure.is_foreign(os.getpid()):
            return ()
        with self._changed:
            self._is_leaving = self._is_draining = True
            aborts = tuple(self._aborts)
            self._changed.notify_all()
        for abort in aborts:
            abort.set()
        with self._changed:
            # A claim that is won after the session's end would belong to nobody. The bound is for a daemon that hangs.
            self._changed.wait_for(lambda: not self._aborts, timeout=WAIT_S)
        try:
            return drive(self.leave_steps(), self._client.perform)
        except (ConnectionFailed, DeadlineExceeded):
            return ()  # the daemon is gone: the session ends with its lease
        finally:
            self._renewal.stop()
            self._client._forget_swarm(self.swarm_id)
            self._client._forget_hearer(self._hear)
            for letters in tuple(self._letters):
                letters.close()

    def tasks(self, spec: type[S] | None = None, *, max_in_flight: int = 1) -> Iterator[Claim[S]]:
        """Tasks for this swarm, the best ready one each time, waiting in the daemon while there is none.

        Claims that a resumed session brought back come first. Ends when the swarm is drained or left. The next task is claimed
        when fewer than `max_in_flight` are held, so a loop that works on each before it goes on has one at a time, and one that
        hands them to threads as many as it says.

        Args:
            spec: An attrs class or dataclass that `Claim.spec` fills from the payload.

        Raises:
            BreakerTripped: The swarm is stopped until an operator resets it.
            LeaseLost: The session has ended.
        """
        check_in_flight(max_in_flight)
        while self._wait_for_room(max_in_flight):
            try:
                grant = self._next_resumed() or self._ask(self.next_steps(wait=WAIT_S), ends_with_drain=True)
            except (Cancelled, LeaseLost):
                if self._is_draining:
                    return
                raise
            if grant is not None:
                yield self._held(grant, spec)

    def _wait_for_room(self, max_in_flight: int) -> bool:
        """Wait until another task may be taken; False once none may any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._may_take(max_in_flight))
        return not self._is_draining

    def take_up(self, spec: type[S] | None = None) -> tuple[Claim[S], ...]:
        """The claims that came back with ``register(resume_token=...)``, each once; `tasks` gives those that are left."""
        claims = []
        while (grant := self._next_resumed()) is not None:
            claims.append(self._held(grant, spec))
        return tuple(claims)

    def claim(
        self,
        task_id: str,
        spec: type[S] | None = None,
        *,
        wait: float = 0,
        resources: Sequence[str] | None = None,
    ) -> Claim[S] | Refusal:
        """Claim one task in this session; a falsy `Refusal` if somebody else holds it.

        Args:
            wait: Seconds to wait for it, if it is held or not ready.
            resources: Named resources to take with it or not at all; besides those that the task names. They are free when it ends.

        Raises:
            NotFound, NotReady, NotQualified, BreakerTripped, BudgetExceeded, ResourceBusy: The daemon's no.
            LeaseLost: The session has ended.
        """
        try:
            grant = self._ask(self.claim_steps(task_id, wait=wait, resources=resources))
        except Cancelled:
            if self._is_leaving:
                raise self._left() from None
            raise
        return self._held(grant, spec) if isinstance(grant, TaskClaim) else grant

    def lock(self, *resources: str, wait: float = 0) -> Lock:
        """Hold named resources in this session, all of them or none: ``with swarm.lock("gpu:0", wait=30) as gpu: ... gpu.fences``.

        They live on the session's lease, and are free at the end of the block or of the session, whichever comes first. They keep
        other swarms away; two blocks of one session cannot hold the same one, whoever waits.

        Args:
            resources: Such as ``gpu:0`` or ``file:src/a.py``; up to 16.
            wait: Seconds to wait until all are free, at most 10 min.
        """
        return Lock(self, resources, wait)

    def inbox(self, *, after_seq: int = 0) -> Iterator[InboxMessage]:
        """The swarm's letters, those that wait first; each is acknowledged when the next one is asked for.

        Whoever dies over a letter finds it again. Ends when the swarm is left or the client is closed.
        """
        with self._client.subscribe_inbox(self.swarm_id, after_seq=after_seq) as letters:
            self._letters.append(letters)
            try:
                for letter in letters:
                    yield letter
                    drive(self.read_steps(letter), self._client.perform)
            finally:
                self._letters.remove(letters)

    def _ask(self, steps: Steps[R], *, ends_with_drain: bool = False) -> R:
        abort = Abort()
        with self._changed:
            if self._is_leaving:
                raise self._left()
            self._aborts[abort] = ends_with_drain

        def perform(call: Call[Any]) -> Any:
            try:
                # What gives a claim back goes through.
                return self._client.perform(call, guard=self.check, abort=abort if call.wait_s else None)
            except Cancelled:
                self.check()
                raise

        try:
            return drive(steps, perform)
        finally:
            with self._changed:
                del self._aborts[abort]
                self._changed.notify_all()

    def _listen(self) -> None:
        self._renewal.listen()

    def _give_up_calls(self, handle: str) -> None:
        # In the renewing thread, or in one that reads: neither may wait for a sender. What it cannot say ends by itself.
        for abort, holder in tuple(self._holding.items()):
            if handle == holder:
                abort.set(wait=False)

    def _perform_as_holder(self, handle: str, call: Call[R]) -> R:
        """Make a call that the loss of its claim ends."""
        abort = Abort()
        self._holding[abort] = handle
        try:
            return self._client.perform(call, guard=self.check, abort=abort)
        except Cancelled:
            lease.check(self._tenure, handle)
            raise
        finally:
            del self._holding[abort]

    def _settle(self, steps: Callable[[], Steps[None]]) -> None:
        if not self._is_leaving:  # whatever is held is freed with the session
            self._renewal.settle(steps)

    def _held(self, grant: TaskClaim, spec: type[S] | None) -> Claim[S]:
        with self._changed:
            self._in_flight += 1
        perform = partial(self._perform_as_holder, grant.handle)
        return Claim(grant, self._tenure, self._loaded, spec, perform, self._let_go)

    def _let_go(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def _hear_of_the_loss(self, error: LeaseLost, is_silent: bool) -> None:
        if is_silent:
            self._client._give_up_connection(error)
        with self._changed:
            claiming = tuple(self._aborts)
            self._changed.notify_all()
        for abort in tuple(self._holding) + claiming:
            abort.set(wait=False)  # as above
        self._tell_session_lost(error)


class Claim(ClaimCore[S], Generic[S]):
    """A task in our hands: ``with task:`` and say how it went; an exception fails it, no verdict gives it back.

    Every call as the holder carries the fencing token, and raises LeaseLost once the claim has ended: then stop.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        drive(self.leave_steps(error), self._perform)

    def progress(
        self,
        percent: int,
        note: str | None = None,
        *,
        artefacts: Sequence[Mapping[str, Any]] | None = None,
        blocked_on: str | None = None,
        next_action: str | None = None,
    ) -> Task:
        """Say how far it is, 0 to 100; the task as it stands. Raises LeaseLost.

        Args:
            artefacts: What is left for whoever holds the task next, ``{"name", "sha256", "bytes"}`` each.
            blocked_on, next_action: What it waits for and what it does next; what is not given stays, ``""`` takes it back.
        """
        steps = self.progress_steps(percent, note, artefacts=artefacts, blocked_on=blocked_on, next_action=next_action)
        return drive(steps, self._perform)

    def complete(self, result: Any = None) -> ClaimEnd:
        """End the task with a result, any plain value of at most 32 KiB. Raises LeaseLost."""
        return drive(self.complete_steps(result), self._perform)

    def fail(self, error: str, *, retry: bool | None = None) -> ClaimEnd:
        """End the claim with a failure, and the task too, unless it is to be offered again. Raises LeaseLost.

        Args:
            retry: Whether to offer it again while it has attempts left; not given: if it has ``max_attempts``.
        """
        return drive(self.fail_steps(error, retry=retry), self._perform)

    def release(self, note: str | None = None) -> ClaimEnd:
        """Give the task back without a verdict; others may claim it at once. Raises LeaseLost."""
        return drive(self.release_steps(note), self._perform)

    def blocked(
        self, reason: str, *, needs: Sequence[str] | None = None, severity: calls.Severity | None = None
    ) -> BlockerAlert:
        """Give the task back because it cannot go on; it stays blocked until somebody resolves that. Raises LeaseLost.

        Args:
            needs: Capabilities that would help; the best qualified swarms are asked.
        """
        return drive(self.blocked_steps(reason, needs=needs, severity=severity), self._perform)

    def execute(
        self,
        source: module.Source | module.Module,
        *,
        input: Any = None,
        limits: ResourceLimits | None = None,
        kind: module.Kind | None = None,
        export: str = "",
        profile: str = "default",
    ) -> Execution:
        """Run WebAssembly in a sandbox for this task; uploaded and loaded once per content. See `ClaimCore.execute_steps`."""
        steps = self.execute_steps(source, input=input, limits=limits, kind=kind, export=export, profile=profile)
        return drive(steps, self._perform)

    def spend(self, operation: str, estimate_usd: calls.Usd) -> Spending:
        """Set money aside for one operation: ``with task.spend("llm", estimate_usd="0.12") as cost: ... cost.settle(usd=...)``."""
        return Spending(self, operation, estimate_usd)


class Spending(SpendingCore):
    """Money set aside while the ``with`` block runs; what was not settled is given back at its end."""

    def __enter__(self) -> Self:
        drive(self.reserve_steps(), self._perform)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        drive(self.give_back_steps(error), self._perform)

    def settle(
        self, *, usd: calls.Usd | None = None, model: str | None = None, usage: Mapping[str, int] | None = None
    ) -> CostEntry:
        """Record what it really cost, once. See `SpendingCore.settle_steps`."""
        return drive(self.settle_steps(usd=usd, model=model, usage=usage), self._perform)


class Lock(LockCore):
    """Named resources, held while the ``with`` block runs. Made by `Swarm.lock`.

    Entering it raises ResourceBusy where somebody else holds one, and WouldDeadlock where waiting would close a circle; leaving it
    LeaseLost if they were lost meanwhile.
    """

    def __init__(self, swarm: Swarm, resources: Sequence[str], wait: float) -> None:
        super().__init__(swarm, resources, wait)
        self._ask = swarm._ask
        self._perform = swarm._client.perform

    def __enter__(self) -> Self:
        self._ask(self.acquire_steps())
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        drive(self.release_steps(error), self._perform)
