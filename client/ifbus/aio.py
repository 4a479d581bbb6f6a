"""The asynchronous client, for asyncio and trio: the same methods as `ifbus.sync`, awaited.

Structured: what runs in the background (one reading task per connection) belongs to the ``async with`` of the client. A
cancelled call is given up at the daemon too and never tears the stream; whether it was done is unknown then, so repeat it
with the same idempotency key if that matters. Sessions are renewed from a thread, so a busy loop does not lose its claims.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from ifbus import calls, lease, module
from ifbus.answers import ClaimEnd, CostEntry, Refusal, Registration
from ifbus.async_link import AsyncLink, AsyncSubscription
from ifbus.calls import shown_signature
from ifbus.claim import ClaimCore, S, SpendingCore
from ifbus.errors import Cancelled, ConnectionFailed, DeadlineExceeded, LeaseLost
from ifbus.exchange import Feed
from ifbus.lease import Performer, Renewal, Tenure
from ifbus.link import Link
from ifbus.lock import LockCore
from ifbus.models import BlockerAlert, Execution, InboxMessage, ResourceLimits, Task, TaskClaim
from ifbus.request import Call
from ifbus.steps import Steps, drive_async
from ifbus.worker import WAIT_S, SwarmCore, call_to_bind, check_in_flight, registration_steps

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K", bool, str)

# What is said at the end of a block is said even if the block was cancelled, for this long at most.
PARTING_S: Final = 2.0


def _awaiting(build: Callable[P, Call[R]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    """A coroutine method that makes the call which `build` describes; arguments and docstring are `build`'s."""

    @wraps(build)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self.perform(build(*args, **kwargs))

    method.__signature__ = shown_signature(build)  # type: ignore[attr-defined]
    return method


class AsyncClient(AsyncLink):
    """A connection to the daemon for the tasks of one event loop: ``async with ifbus.AsyncClient() as bus``.

    See `AsyncLink` for its arguments. Every method also takes `request.Options`: ``timeout``, ``idempotency_key``,
    ``traceparent``. Errors are the classes of `ifbus.errors`, the same that the daemon raised.
    """

    ping = _awaiting(calls.ping)
    status = _awaiting(calls.status)
    describe = _awaiting(calls.describe)
    create_task = _awaiting(calls.create_task)
    get_task = _awaiting(calls.get_task)
    list_tasks = _awaiting(calls.list_tasks)
    create_tasks = _awaiting(calls.create_tasks)
    complete_tasks = _awaiting(calls.complete_tasks)
    cancel_task = _awaiting(calls.cancel_task)
    requeue_task = _awaiting(calls.requeue_task)
    list_dead_letters = _awaiting(calls.list_dead_letters)
    claim_task = _awaiting(calls.claim_task)
    claim_next = _awaiting(calls.claim_next)
    claim_several = _awaiting(calls.claim_several)
    renew_claim = _awaiting(calls.renew_claim)
    bind_claim = _awaiting(calls.bind_claim)
    report_progress = _awaiting(calls.report_progress)
    complete_task = _awaiting(calls.complete_task)
    fail_task = _awaiting(calls.fail_task)
    release_task = _awaiting(calls.release_task)
    acquire_resources = _awaiting(calls.acquire_resources)
    release_resources = _awaiting(calls.release_resources)
    list_resources = _awaiting(calls.list_resources)
    ask = _awaiting(calls.ask)
    await_reply = _awaiting(calls.await_reply)
    reply = _awaiting(calls.reply)
    list_questions = _awaiting(calls.list_questions)
    waits = _awaiting(calls.waits)
    request_help = _awaiting(calls.request_help)
    register_swarm = _awaiting(calls.register_swarm)
    renew_session = _awaiting(calls.renew_session)
    bind_session = _awaiting(calls.bind_session)
    end_session = _awaiting(calls.end_session)
    swarm_status = _awaiting(calls.swarm_status)
    push_task_to_swarm = _awaiting(calls.push_task_to_swarm)
    broadcast = _awaiting(calls.broadcast)
    subscribe_topic = _awaiting(calls.subscribe_topic)
    unsubscribe_topic = _awaiting(calls.unsubscribe_topic)
    list_topics = _awaiting(calls.list_topics)
    detect_blocker = _awaiting(calls.detect_blocker)
    resolve_blocker = _awaiting(calls.resolve_blocker)
    list_blockers = _awaiting(calls.list_blockers)
    read_inbox = _awaiting(calls.read_inbox)
    acknowledge = _awaiting(calls.acknowledge)
    pause = _awaiting(calls.pause)
    resume = _awaiting(calls.resume)
    drain_swarm = _awaiting(calls.drain_swarm)
    drain_host = _awaiting(calls.drain_host)
    set_group_weight = _awaiting(calls.set_group_weight)
    list_groups = _awaiting(calls.list_groups)
    explain_claim = _awaiting(calls.explain_claim)
    register_profile = _awaiting(calls.register_profile)
    get_swarm = _awaiting(calls.get_swarm)
    list_swarms = _awaiting(calls.list_swarms)
    find_qualified_swarm = _awaiting(calls.find_qualified_swarm)
    track_cost = _awaiting(calls.track_cost)
    reserve_cost = _awaiting(calls.reserve_cost)
    settle_cost = _awaiting(calls.settle_cost)
    get_budget_report = _awaiting(calls.get_budget_report)
    set_budget = _awaiting(calls.set_budget)
    trip_circuit_breaker = _awaiting(calls.trip_circuit_breaker)
    reset_circuit_breaker = _awaiting(calls.reset_circuit_breaker)
    list_breakers = _awaiting(calls.list_breakers)
    list_escalations = _awaiting(calls.list_escalations)
    put_blob = _awaiting(calls.put_blob)
    load_swarm = _awaiting(calls.load_swarm)
    execute_task = _awaiting(calls.execute_task)
    unload_swarm = _awaiting(calls.unload_swarm)
    list_sandboxes = _awaiting(calls.list_sandboxes)
    witness_query = _awaiting(calls.witness_query)
    witness_verify = _awaiting(calls.witness_verify)
    witness_head = _awaiting(calls.witness_head)
    cost_report = _awaiting(calls.cost_report)

    async def subscribe_inbox(self, swarm_id: str, *, after_seq: int = 0) -> AsyncSubscription[InboxMessage]:
        """A swarm's unacknowledged messages above `after_seq`, and then each that comes."""
        feed = Feed("inbox", "coordinator.subscribe_inbox", swarm_id=swarm_id, after_seq=after_seq)
        return await self.subscribe(feed, InboxMessage.from_wire)

    async def subscribe_board(self, *, after_seq: int | None = None) -> AsyncSubscription[dict[str, Any]]:
        """Each change of a task, as ``{"event", "task_id", "swarm_id"?, "seq", ...}``: after the number `after_seq`, or from now on.

        Over reconnects it goes on after the last one seen. Raises NotKept where some of what came after it is no longer kept.
        """
        feed = Feed("board", "coordinator.subscribe_board", after_seq=after_seq or 0, resumes=True)
        return await self.subscribe(feed, dict)

    async def subscribe_escalations(self) -> AsyncSubscription[dict[str, Any]]:
        """Open escalations and each new one (operator), as ``{"kind", "swarm_id", "reason", "at_ms", ...}``."""
        return await self.subscribe(Feed("escalation", "governor.subscribe_escalations"), dict)

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
    ) -> Registering:
        """Start a session and keep it alive until it is left: ``async with bus.register("builder") as swarm``.

        Or ``swarm = await bus.register("builder")``, and `AsyncSwarm.close` later. Its lease is renewed from a thread and a
        connection of its own, so a busy loop does not lose its claims.

        Args:
            bind: What ends the session at once and frees its claims, as in `register_swarm`. If not given: this process, where its
                connection is its own and the daemon's kernel can tell of its end. ``lease``: nothing does but its lease.
            on_lease_lost: Called once, in the renewing thread, when the session can no longer be proven: stop touching the
                world. Every later call as its holder raises LeaseLost all the same, and those under way do at once.
            on_claim_lost: Called once with the handle of a claim that ended without its holder's word (its task was cancelled, its deadline
                has passed, its lease is lost): stop that work. In the renewing thread, or where an answer brought the news, so it must not
                wait for this client. Every later call of that claim raises LeaseLost all the same, and one under way is given up.

        What these two raise goes to `threading.excepthook` and ends nothing.

        Takes and raises, beside that, what `register_swarm` does.
        """
        if bind is None and self._inherited is not None:
            bind = "lease"  # whoever opened this connection is another process
        steps = registration_steps(
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
        )
        return Registering(self._start_session(steps, bind, on_lease_lost, on_claim_lost))

    async def _start_session(
        self,
        steps: Steps[tuple[Registration, Tenure]],
        bind: str | None,
        on_lease_lost: Callable[[LeaseLost], None] | None,
        on_claim_lost: Callable[[str, LeaseLost], None] | None,
    ) -> AsyncSwarm:
        registration, tenure = await drive_async(steps, self.perform)
        swarm_id = registration.profile.swarm_id
        self._routes.swarms.append(swarm_id)
        call = call_to_bind(registration, bind)
        if call is not None:
            self._routes.bindings[swarm_id] = call
        return AsyncSwarm(
            self, registration, tenure, bind=bind, on_lease_lost=on_lease_lost, on_claim_lost=on_claim_lost
        )

    def _forget_hearer(self, hear: Callable[[dict[str, Any]], None]) -> None:
        if hear in self._routes.hearers:
            self._routes.hearers.remove(hear)

    def _renewing_link(self) -> Performer:
        if self._inherited is None:
            return Link(self.socket_path, timeout=self.timeout)
        # An inherited connection cannot be opened a second time: there the renewals share it, and need a loop that turns.
        return _ThroughLoop(self)

    def _forget_swarm(self, swarm_id: str) -> None:
        if swarm_id in self._routes.swarms:
            self._routes.swarms.remove(swarm_id)
        self._routes.bindings.pop(swarm_id, None)


class _ThroughLoop:
    """Makes a thread's calls in the client's event loop."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._token = anyio.lowlevel.current_token()

    def perform(self, call: Call[R]) -> R:
        return anyio.from_thread.run(self._client.perform, call, token=self._token)

    def close(self) -> None:
        """Nothing is its own."""


class Registering:
    """A registration to be: ``async with`` it and leave the session at the end, or ``await`` it."""

    def __init__(self, start: Coroutine[Any, Any, AsyncSwarm]) -> None:
        self._start = start
        self._swarm: AsyncSwarm | None = None

    def __await__(self) -> Generator[Any, Any, AsyncSwarm]:
        return self._start.__await__()

    async def __aenter__(self) -> AsyncSwarm:
        self._swarm = await self._start
        return self._swarm

    async def __aexit__(self, *exc_info: object) -> None:
        if self._swarm is not None:
            await self._swarm.close()


class AsyncSwarm(SwarmCore):
    """A live session: takes tasks and letters for one swarm. Made by `AsyncClient.register`; leave it with `close`.

    Tasks of one loop may share it: each claim belongs to whom it was given. A forked child may not use it.
    """

    def __init__(
        self,
        client: AsyncClient,
        registration: Registration,
        tenure: Tenure,
        *,
        bind: str | None,
        on_lease_lost: Callable[[LeaseLost], None] | None,
        on_claim_lost: Callable[[str, LeaseLost], None] | None,
    ) -> None:
        super().__init__(registration, tenure, client.new_key, on_lease_lost=on_lease_lost, on_claim_lost=on_claim_lost)
        self._client = client
        self._run_soon = _entrance()
        self._changed = anyio.Event()  # replaced when it is set: what is held, waited for, or to be done has changed
        self._claiming: dict[anyio.CancelScope, bool] = {}  # of the claims under way, and whether a drain ends them
        self._holding: dict[anyio.CancelScope, str] = {}  # of the calls under way as a holder, and of which claim
        self._letters: list[AsyncSubscription[InboxMessage]] = []
        link = client._renewing_link()
        self._renewal = Renewal(
            link,
            tenure,
            registration.resume_token,
            owns_link=isinstance(link, Link),
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def drain(self) -> None:
        """Take no more tasks: `tasks` ends, what is held may be finished."""
        self._is_draining = True
        for scope, ends_with_drain in tuple(self._claiming.items()):
            if ends_with_drain:
                scope.cancel()
        self._tell_change()

    async def close(self) -> tuple[str, ...]:
        """End the session: what it still holds comes free at once; the ids of those tasks. Twice is fine.

        Tasks that wait for work here stop waiting. Cancelled, it still takes up to 2 s to say so to the daemon.
        """
        if self._tenure.is_foreign(os.getpid()):
            return ()
        self._is_leaving = self._is_draining = True
        self._tell_change()
        freed: tuple[str, ...] = ()
        with anyio.CancelScope(shield=True):
            for scope in tuple(self._claiming):
                scope.cancel()
            with anyio.move_on_after(WAIT_S):
                # A claim that is won after the session's end would belong to nobody. The bound is for one that is not awaited.
                while self._claiming:
                    await self._changed.wait()
            try:
                with anyio.move_on_after(PARTING_S):
                    freed = await drive_async(self.leave_steps(), self._client.perform)
            except (ConnectionFailed, DeadlineExceeded):
                pass  # the daemon is gone: the session ends with its lease
            finally:
                await anyio.to_thread.run_sync(self._renewal.stop)
                self._client._forget_swarm(self.swarm_id)
                self._client._forget_hearer(self._hear)
                for letters in self._letters:
                    await letters.close()
        return freed

    def tasks(self, spec: type[S] | None = None, *, max_in_flight: int = 1) -> AsyncIterator[AsyncClaim[S]]:
        """Tasks for this swarm, the best ready one each time, waiting in the daemon while there is none.

        Claims that a resumed session brought back come first. Ends when the swarm is drained or left. The next task is claimed
        when fewer than `max_in_flight` are held, so a loop that works on each before it goes on has one at a time, and one that
        hands them to other tasks as many as it says.

        Args:
            spec: An attrs class or dataclass that `Claim.spec` fills from the payload.

        Raises:
            BreakerTripped: The swarm is stopped until an operator resets it.
            LeaseLost: The session has ended.
        """
        return _Tasks(self, spec, max_in_flight)

    async def _next_task(self, spec: type[S] | None, max_in_flight: int) -> AsyncClaim[S] | None:
        while await self._wait_for_room(max_in_flight):
            try:
                grant = self._next_resumed() or await self._ask(self.next_steps(wait=WAIT_S), ends_with_drain=True)
            except (Cancelled, LeaseLost):
                if self._is_draining:
                    return None
                raise
            if grant is not None:
                return self._held(grant, spec)
        return None

    async def _wait_for_room(self, max_in_flight: int) -> bool:
        while not self._may_take(max_in_flight):
            await self._changed.wait()
        return not self._is_draining

    def take_up(self, spec: type[S] | None = None) -> tuple[AsyncClaim[S], ...]:
        """The claims that came back with ``register(resume_token=...)``, each once; `tasks` gives those that are left."""
        claims = []
        while (grant := self._next_resumed()) is not None:
            claims.append(self._held(grant, spec))
        return tuple(claims)

    async def claim(
        self,
        task_id: str,
        spec: type[S] | None = None,
        *,
        wait: float = 0,
        resources: Sequence[str] | None = None,
    ) -> AsyncClaim[S] | Refusal:
        """Claim one task in this session; a falsy `Refusal` if somebody else holds it.

        Cancelled, it is not held: a claim that was won all the same is given back.

        Args:
            wait: Seconds to wait for it, if it is held or not ready.
            resources: Named resources to take with it or not at all; besides those that the task names. They are free when it ends.

        Raises:
            NotFound, NotReady, NotQualified, BreakerTripped, BudgetExceeded, ResourceBusy: The daemon's no.
            LeaseLost: The session has ended.
        """
        try:
            grant = await self._ask(self.claim_steps(task_id, wait=wait, resources=resources))
        except Cancelled:
            if self._is_leaving:
                raise self._left() from None
            raise
        return self._held(grant, spec) if isinstance(grant, TaskClaim) else grant

    def lock(self, *resources: str, wait: float = 0) -> AsyncLock:
        """Hold named resources in this session, all of them or none: ``async with swarm.lock("gpu:0", wait=30) as gpu: ... gpu.fences``.

        They live on the session's lease, and are free at the end of the block or of the session, whichever comes first. They keep
        other swarms away; two blocks of one session cannot hold the same one, whoever waits.

        Args:
            resources: Such as ``gpu:0`` or ``file:src/a.py``; up to 16.
            wait: Seconds to wait until all are free, at most 10 min.
        """
        return AsyncLock(self, resources, wait)

    def inbox(self, *, after_seq: int = 0) -> AsyncIterator[InboxMessage]:
        """The swarm's letters, those that wait first; each is acknowledged when the next one is asked for.

        Whoever dies over a letter finds it again. Ends when the swarm is left or the client is closed.
        """
        return _Letters(self, after_seq)

    async def _subscribe(self, after_seq: int) -> AsyncSubscription[InboxMessage]:
        letters = await self._client.subscribe_inbox(self.swarm_id, after_seq=after_seq)
        self._letters.append(letters)
        return letters

    async def _ask(self, steps: Steps[R], *, ends_with_drain: bool = False) -> R:
        if self._is_leaving:
            raise self._left()

        async def perform(call: Call[Any]) -> Any:
            # What gives a claim back goes through.
            if call.wait_s:
                return await self._perform_in(self._claiming, ends_with_drain, call)
            return await self._perform_in(self._holding, "", call)

        return await drive_async(steps, perform)

    async def _perform_as_holder(self, handle: str, call: Call[R]) -> R:
        """Make a call that the loss of its claim ends."""
        return await self._perform_in(self._holding, handle, call)

    async def _perform_in(self, scopes: dict[anyio.CancelScope, K], kind: K, call: Call[R]) -> R:
        """Make a call that the loss of the session ends, and what else `scopes` says of calls of its kind."""
        scope = anyio.CancelScope()
        scopes[scope] = kind
        try:
            with scope:
                return await self._client.perform(call, guard=self.check)
        finally:
            del scopes[scope]
            self._tell_change()
        lease.check(self._tenure, kind if isinstance(kind, str) else None)
        raise Cancelled(f"{call.method} was given up, because {self.swarm_id} leaves; it may have been done")

    def _listen(self) -> None:
        self._renewal.listen()

    def _give_up_calls(self, handle: str) -> None:
        self._run_soon(partial(self._stop_holding, handle))

    def _settle(self, steps: Callable[[], Steps[None]]) -> None:
        if not self._is_leaving:  # whatever is held is freed with the session
            self._renewal.settle(steps)

    def _held(self, grant: TaskClaim, spec: type[S] | None) -> AsyncClaim[S]:
        self._in_flight += 1
        perform = partial(self._perform_as_holder, grant.handle)
        return AsyncClaim(grant, self._tenure, self._loaded, spec, perform, self._let_go)

    def _let_go(self) -> None:
        self._in_flight -= 1
        self._tell_change()

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _hear_of_the_loss(self, error: LeaseLost, is_silent: bool) -> None:
        # In the renewing thread. What waits for the daemon as the holder must stop, whether or not it would still answer.
        self._run_soon(self._stop_all)
        self._tell_session_lost(error)

    def _stop_all(self) -> None:
        for scope in (*self._holding, *self._claiming):
            scope.cancel()
        self._tell_change()

    def _stop_holding(self, handle: str) -> None:
        for scope, holder in tuple(self._holding.items()):
            if holder == handle:
                scope.cancel()


class _Tasks(Generic[S]):
    """`AsyncSwarm.tasks`. No generator: one that is left early would have to be closed by hand."""

    def __init__(self, swarm: AsyncSwarm, spec: type[S] | None, max_in_flight: int) -> None:
        check_in_flight(max_in_flight)
        self._swarm = swarm
        self._spec = spec
        self._max_in_flight = max_in_flight

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AsyncClaim[S]:
        claim = await self._swarm._next_task(self._spec, self._max_in_flight)
        if claim is None:
            raise StopAsyncIteration
        return claim


class _Letters:
    """`AsyncSwarm.inbox`. Left early, its subscription stays until the swarm is left."""

    def __init__(self, swarm: AsyncSwarm, after_seq: int) -> None:
        self._swarm = swarm
        self._after_seq = after_seq
        self._subscription: AsyncSubscription[InboxMessage] | None = None
        self._read: InboxMessage | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InboxMessage:
        swarm = self._swarm
        if self._subscription is None:
            self._subscription = await swarm._subscribe(self._after_seq)
        if self._read is not None:
            await drive_async(swarm.read_steps(self._read), swarm._client.perform)
            self._read = None
        self._read = await self._subscription.receive()
        if self._read is None:
            raise StopAsyncIteration
        return self._read


class AsyncClaim(ClaimCore[S], Generic[S]):
    """A task in our hands: ``async with task:`` and say how it went; an exception fails it, no verdict gives it back.

    Every call as the holder carries the fencing token, and raises LeaseLost once the claim has ended: then stop. Cancelled, the
    task is given back.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        await _say_in_parting(self.leave_steps(error), self._perform, error)

    async def progress(
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
        return await drive_async(steps, self._perform)

    async def complete(self, result: Any = None) -> ClaimEnd:
        """End the task with a result, any plain value of at most 32 KiB. Raises LeaseLost."""
        return await drive_async(self.complete_steps(result), self._perform)

    async def fail(self, error: str, *, retry: bool | None = None) -> ClaimEnd:
        """End the claim with a failure, and the task too, unless it is to be offered again. Raises LeaseLost.

        Args:
            retry: Whether to offer it again while it has attempts left; not given: if it has ``max_attempts``.
        """
        return await drive_async(self.fail_steps(error, retry=retry), self._perform)

    async def release(self, note: str | None = None) -> ClaimEnd:
        """Give the task back without a verdict; others may claim it at once. Raises LeaseLost."""
        return await drive_async(self.release_steps(note), self._perform)

    async def blocked(
        self, reason: str, *, needs: Sequence[str] | None = None, severity: calls.Severity | None = None
    ) -> BlockerAlert:
        """Give the task back because it cannot go on; it stays blocked until somebody resolves that. Raises LeaseLost.

        Args:
            needs: Capabilities that would help; the best qualified swarms are asked.
        """
        return await drive_async(self.blocked_steps(reason, needs=needs, severity=severity), self._perform)

    async def execute(
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
        if not module.is_at_hand(source):
            source = await anyio.to_thread.run_sync(module.find, source)
        steps = self.execute_steps(source, input=input, limits=limits, kind=kind, export=export, profile=profile)
        return await drive_async(steps, self._perform)

    def spend(self, operation: str, estimate_usd: calls.Usd) -> AsyncSpending:
        """Set money aside: ``async with task.spend("llm", estimate_usd="0.12") as cost: ... await cost.settle(usd=...)``."""
        return AsyncSpending(self, operation, estimate_usd)


class AsyncSpending(SpendingCore):
    """Money set aside while the ``async with`` block runs; what was not settled is given back at its end."""

    async def __aenter__(self) -> Self:
        await drive_async(self.reserve_steps(), self._perform)
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        await _say_in_parting(self.give_back_steps(error), self._perform, error)

    async def settle(
        self, *, usd: calls.Usd | None = None, model: str | None = None, usage: Mapping[str, int] | None = None
    ) -> CostEntry:
        """Record what it really cost, once. See `SpendingCore.settle_steps`."""
        return await drive_async(self.settle_steps(usd=usd, model=model, usage=usage), self._perform)


class AsyncLock(LockCore):
    """Named resources, held while the ``async with`` block runs. Made by `AsyncSwarm.lock`.

    Entering it raises ResourceBusy where somebody else holds one, and WouldDeadlock where waiting would close a circle; leaving it
    LeaseLost if they were lost meanwhile. Cancelled, they are given back.
    """

    def __init__(self, swarm: AsyncSwarm, resources: Sequence[str], wait: float) -> None:
        super().__init__(swarm, resources, wait)
        self._ask = swarm._ask
        self._perform = swarm._client.perform

    async def __aenter__(self) -> Self:
        await self._ask(self.acquire_steps())
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        await _say_in_parting(self.release_steps(error), self._perform, error)


async def _say_in_parting(
    steps: Steps[None], perform: Callable[[Call[Any]], Coroutine[Any, Any, Any]], error: BaseException | None
) -> None:
    """Take the steps at the end of a block, also of a cancelled one: what is not given back there is held by nobody."""
    with anyio.move_on_after(PARTING_S, shield=True) as scope:
        await drive_async(steps, perform)
    if scope.cancelled_caught and error is None:
        raise DeadlineExceeded(
            f"cannot end it: no answer in {PARTING_S:g} s", data={"timeout_ms": int(PARTING_S * 1000)}
        )


def _entrance() -> Callable[[Callable[[], None]], None]:
    """A function that has another one run soon in this event loop, for use in other threads; it never blocks."""
    token = anyio.lowlevel.current_token()
    native: Any = token.native_token
    enter: Callable[[Callable[[], None]], object] = (
        native.call_soon_threadsafe if hasattr(native, "call_soon_threadsafe") else native.run_sync_soon
    )

    def run_soon(function: Callable[[], None]) -> None:
        try:
            enter(function)
        except RuntimeError:
            return  # the loop has ended, and with it everything that could be told

    return run_soon
