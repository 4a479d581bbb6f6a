"""A swarm's session, written once for both clients: registration, claims, letters, leaving.

Methods named ``*_steps`` are conversations (`ifbus.steps`); `ifbus.sync` and `ifbus.aio` give them their blocking and their
awaiting form.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from ifbus import calls, lease
from ifbus.errors import (
    IdempotencyConflict,
    InvalidParams,
    LeaseLost,
    LimitExceeded,
    NotFound,
    StaleToken,
)
from ifbus.lease import Tenure
from ifbus.models import InboxMessage, ServiceContract, SwarmProfile, TaskClaim
from ifbus.request import Call
from ifbus.steps import Steps, ask, is_outcome_unknown

if TYPE_CHECKING:
    from ifbus.answers import Refusal, Registration

R = TypeVar("R")

# How long one request waits in the daemon for the next task. A task that gets ready answers it at once; the end of a wait only
# costs a look at whether the swarm is to stop.
WAIT_S: Final = 2.0
# What the daemon says when a claim has ended without its holder's word.
_CLAIM_ENDS: Final = frozenset(("cancelled", "expired", "lease_lost"))


class SwarmCore:
    """The state of one session; see `ifbus.sync.Swarm`. The mutable state: what is held, and whether it takes more.

    Attributes:
        locked: Named resources that this session holds, takes or gives back, and a mark of each such hold.

    Args:
        new_key: Makes an idempotency key.
        on_lease_lost, on_claim_lost: The user's, as `ifbus.sync.Client.register` takes them.
    """

    def __init__(
        self,
        registration: Registration,
        tenure: Tenure,
        new_key: Callable[[], str],
        *,
        on_lease_lost: Callable[[LeaseLost], None] | None,
        on_claim_lost: Callable[[str, LeaseLost], None] | None,
    ) -> None:
        self._registration = registration
        self._tenure = tenure
        self._new_key = new_key
        self._on_lease_lost = on_lease_lost
        self._on_claim_lost = on_claim_lost
        self._loaded: dict[str, ServiceContract] = {}
        self._resumed = deque(registration.claims)
        self._in_flight = 0
        self.locked: dict[str, object] = {}
        self._is_draining = False
        self._is_leaving = False
        self._has_left = False

    def _listen(self) -> None:
        """Something is held: hear at once what the daemon says of it."""
        raise NotImplementedError

    def _give_up_calls(self, handle: str) -> None:
        """A claim has ended: what is under way for it can come to nothing."""
        raise NotImplementedError

    def _tell_claim_lost(self, handle: str, error: LeaseLost) -> None:
        """A claim has ended, and not by its holder."""
        self._give_up_calls(handle)
        if self._on_claim_lost is not None:
            _tell(self._on_claim_lost, handle, error)

    def _tell_session_lost(self, error: LeaseLost) -> None:
        if self._on_lease_lost is not None:
            _tell(self._on_lease_lost, error)

    def _hear(self, item: dict[str, Any]) -> None:
        """What the daemon says, on whatever connection, and perhaps twice: a claim that it ended is held no more."""
        if item.get("kind") in _CLAIM_ENDS and "task_id" in item and "token" in item:
            handle = f"{item['task_id']}@{item['token']}"
            reason = str(item.get("message") or f"{handle} has ended: {item.get('reason', 'lost')}")
            error = self._tenure.end(handle, reason)
            if error is not None:
                self._tell_claim_lost(handle, error)

    def _hold(self, grant: TaskClaim) -> None:
        # Held from now, not from when we began to wait: a renewal sent meanwhile could not list it.
        self._tenure.hold(grant.handle, lease.now_s(), grant.lease_ms)
        self._listen()

    def _settle(self, steps: Callable[[], Steps[None]]) -> None:
        """Take steps in the background, where the caller cannot wait for them."""
        raise NotImplementedError

    @property
    def swarm_id(self) -> str:
        """Its name."""
        return self._tenure.swarm_id

    @property
    def profile(self) -> SwarmProfile:
        """The profile as it stood at registration."""
        return self._registration.profile

    @property
    def registration(self) -> Registration:
        """What the daemon answered, with the resume token that proves this session."""
        return self._registration

    @property
    def is_draining(self) -> bool:
        """Whether it takes no more work."""
        return self._is_draining

    @property
    def has_left(self) -> bool:
        """Whether the session was ended by its own word."""
        return self._has_left

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.swarm_id}, incarnation {self._registration.incarnation}>"

    def check(self) -> None:
        """Return if the session can be proven at this moment; never asks the daemon.

        Raises:
            LeaseLost: It cannot; stop all its work.
        """
        lease.check(self._tenure)

    def claim_steps(
        self, task_id: str, *, wait: float = 0, resources: Sequence[str] | None = None
    ) -> Steps[TaskClaim | Refusal]:
        """Claim one task by its id, in this session."""
        key = self._new_key()
        wait_ms = to_wait_ms(wait)
        call = calls.claim_task(
            task_id,
            self.swarm_id,
            wait_ms=wait_ms,
            resources=resources,
            resume_token=self._registration.resume_token,
            idempotency_key=key,
        )
        return (yield from self._claim_steps(call, key))

    def next_steps(self, *, wait: float) -> Steps[TaskClaim | None]:
        """Claim the best ready task, waiting for one; what comes after `drain` is given back."""
        key = self._new_key()
        call = calls.claim_next(
            self.swarm_id,
            wait_ms=round(wait * 1000),
            resume_token=self._registration.resume_token,
            idempotency_key=key,
        )
        grant = yield from self._claim_steps(call, key)
        if not isinstance(grant, TaskClaim):
            return None
        if self._is_draining:
            yield from self._give_back_steps(grant)
            return None
        return grant

    def _claim_steps(self, call: Call[TaskClaim | Refusal], key: str) -> Steps[TaskClaim | Refusal]:
        self.check()
        try:
            grant = yield from ask(call)
        except StaleToken as error:
            # Another incarnation has taken this one's place, or the daemon saw its process end: nothing of it counts any more.
            self._tenure.lose(error.message)
            self.check()
            raise
        except BaseException as error:
            if is_outcome_unknown(error):  # and nobody will work on it
                self._settle(lambda: self._strike_steps(call, key, self._give_back_unless_held))
            raise
        if isinstance(grant, TaskClaim):
            self._hold(grant)
        return grant

    def _strike_steps(self, call: Call[R], key: str, give_back: Callable[[R], Steps[None]]) -> Steps[None]:
        """See to it that what a call of unknown outcome took is not held: not now, and not by a request that is still on its way.

        Its key is used for something that changes nothing. If that is taken, the call can never happen any more; if it is
        refused, the call has happened, and the record of it answers the same call with what is to be given back.
        """
        try:
            yield from ask(calls.acknowledge(self.swarm_id, 0, idempotency_key=key))
        except IdempotencyConflict:
            yield from give_back((yield from ask(call)))

    def _give_back_unless_held(self, grant: TaskClaim | Refusal) -> Steps[None]:
        if isinstance(grant, TaskClaim) and not self._tenure.holds(grant.handle):
            yield from self._give_back_steps(grant)

    def _give_back_steps(self, grant: TaskClaim) -> Steps[None]:
        self._tenure.let_go(grant.handle)
        try:
            yield from ask(calls.release_task(grant.task_id, self.swarm_id, grant.token, note="nobody waited for it"))
        except StaleToken:
            return  # it has ended by itself

    def read_steps(self, letter: InboxMessage) -> Steps[None]:
        """A letter was dealt with: the daemon drops it. A pushed task stays until somebody claims it."""
        yield from ask(calls.acknowledge(self.swarm_id, letter.seq))

    def leave_steps(self) -> Steps[tuple[str, ...]]:
        """End the session; the ids of tasks that come free by it."""
        self._is_leaving = self._is_draining = True
        if self._has_left or self._tenure.lost is not None or self._tenure.is_foreign(os.getpid()):
            return ()
        self._has_left = True
        try:
            return (yield from ask(calls.end_session(self.swarm_id, self._registration.resume_token)))
        except StaleToken:
            return ()  # it had ended already

    def _next_resumed(self) -> TaskClaim | None:
        try:
            return self._resumed.popleft()
        except IndexError:  # rather than a look before: threads may share this
            return None

    def _may_take(self, max_in_flight: int) -> bool:
        return self._in_flight < max_in_flight or self._is_draining or self._tenure.lost is not None

    def _left(self) -> LeaseLost:
        return LeaseLost(f"cannot claim: the session of {self.swarm_id} was left", data={"swarm_id": self.swarm_id})


def check_in_flight(most: int) -> None:
    """Raise InvalidParams if no task could ever be taken with so many held at most."""
    if not (isinstance(most, int) and most >= 1):
        raise InvalidParams(
            f"cannot take tasks: max_in_flight is a whole number of at least 1, got {most!r:.40}",
            data={"param": "max_in_flight"},
        )


def to_wait_ms(wait: float) -> int | None:
    """Seconds as the wire's milliseconds, None for no wait. Raises InvalidParams where it is no span that ends."""
    if not (isinstance(wait, int | float) and 0 <= wait < math.inf):
        raise InvalidParams(f"a wait is in seconds, got {wait!r:.40}", data={"param": "wait"})
    return round(wait * 1000) or None


def _tell(function: Callable[..., None], *args: object) -> None:
    """Call a function of the user's.

    What it raises is reported as an error of this thread that nobody caught, and no more: the thread renews a session, or reads
    what others wait for.
    """
    try:
        function(*args)
    except Exception as error:
        threading.excepthook(
            threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
        )


def call_to_bind(registration: Registration, bind: str | None) -> Call[Any] | None:
    """The call that binds a session again to what it was bound to, None if it was to nothing, or cannot be again."""
    if registration.bound is None or bind == "handed":
        return None
    return calls.bind_session(registration.profile.swarm_id, registration.resume_token, bind or "process")


def registration_steps(
    swarm_id: str,
    *,
    capabilities: Sequence[str] | None,
    cost_per_hour_usd: calls.Usd | None,
    budget_usd: calls.Usd | None,
    model: str | None,
    orchestrator: bool | None,
    lease_ms: int | None,
    resume_token: str | None,
    bind: str | None,
    slots: int | None,
) -> Steps[tuple[Registration, Tenure]]:
    """Register, and count the lease from before the daemon could.

    Args:
        bind: None asks for this process, and does without where the daemon cannot watch it.
    """

    def register(bind: str | None) -> Call[Registration]:
        return calls.register_swarm(
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

    sent_s = lease.now_s()
    try:
        registration = yield from ask(register(bind or "process"))
    except (InvalidParams, NotFound, LimitExceeded) as error:
        if bind is not None or "bind" not in error.data:
            raise
        registration = yield from ask(register(None))
    tenure = Tenure(swarm_id, lease_ms=registration.lease_ms, sent_s=sent_s, pid=os.getpid())
    taken_up = []
    for claim in registration.claims:
        tenure.hold(claim.handle, sent_s, claim.lease_ms)
        # Many claims do not fit into one answer with all that their tasks say, so a resumed one may have been cut short.
        taken_up.append(attrs.evolve(claim, task=(yield from ask(calls.get_task(claim.task_id)))))
    return attrs.evolve(registration, claims=tuple(taken_up)), tenure
