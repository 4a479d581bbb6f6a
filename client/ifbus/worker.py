"""A swarm's session, written once for both clients: registration, claims, letters, leaving.

Methods named ``*_steps`` are conversations (`ifbus.steps`); `ifbus.sync` and `ifbus.aio` give them their blocking and their
awaiting form.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from ifbus import calls, lease
from ifbus.answers import Refusal, Registration
from ifbus.errors import StaleToken
from ifbus.lease import Tenure
from ifbus.models import InboxMessage, ServiceContract, SwarmProfile, TaskClaim
from ifbus.steps import Steps, ask

# How long one request waits in the daemon for the next task. A task that gets ready answers it at once; the end of a wait only
# costs a look at whether the swarm is to stop.
WAIT_S: Final = 2.0


class SwarmCore:
    """The state of one session; see `ifbus.sync.Swarm`. The mutable state: what is held, and whether it takes more."""

    def __init__(self, registration: Registration, tenure: Tenure) -> None:
        self._registration = registration
        self._tenure = tenure
        self._loaded: dict[str, ServiceContract] = {}
        self._is_draining = False
        self._has_left = False

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

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.swarm_id}, incarnation {self._registration.incarnation}>"

    def check(self) -> None:
        """Return if the session can be proven at this moment; never asks the daemon.

        Raises:
            LeaseLost: It cannot; stop all its work.
        """
        lease.check(self._tenure)

    def drain(self) -> None:
        """Take no more tasks: `tasks` ends, what is held may be finished. Comes into effect within `WAIT_S`."""
        self._is_draining = True

    def claim_steps(self, task_id: str, *, wait: float = 0) -> Steps[TaskClaim | Refusal]:
        """Claim one task by its id, in this session."""
        self.check()
        at_s = lease.now_s()
        grant = yield from ask(calls.claim_task(task_id, self.swarm_id, wait_ms=round(wait * 1000) or None))
        if isinstance(grant, TaskClaim):
            self._tenure.hold(grant.handle, at_s)
        return grant

    def next_steps(self, *, wait: float) -> Steps[TaskClaim | Refusal]:
        """Claim the best ready task, waiting for one."""
        self.check()
        grant = yield from ask(calls.claim_next(self.swarm_id, wait_ms=round(wait * 1000)))
        if isinstance(grant, TaskClaim):
            # Held from now, not from when we began to wait: a renewal sent meanwhile could not list it.
            self._tenure.hold(grant.handle, lease.now_s())
        return grant

    def read_steps(self, letter: InboxMessage) -> Steps[None]:
        """A letter was dealt with: the daemon drops it. A pushed task stays until somebody claims it."""
        yield from ask(calls.acknowledge(self.swarm_id, letter.seq))

    def leave_steps(self) -> Steps[tuple[str, ...]]:
        """End the session; the ids of tasks that come free by it."""
        self._is_draining = True
        if self._has_left or self._tenure.lost is not None:
            return ()
        self._has_left = True
        try:
            return (yield from ask(calls.end_session(self.swarm_id, self._registration.resume_token)))
        except StaleToken:
            return ()  # it had ended already


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
) -> Steps[tuple[Registration, Tenure]]:
    """Register, and count the lease from before the daemon could."""
    sent_s = lease.now_s()
    registration = yield from ask(
        calls.register_swarm(
            swarm_id,
            capabilities=capabilities,
            cost_per_hour_usd=cost_per_hour_usd,
            budget_usd=budget_usd,
            model=model,
            orchestrator=orchestrator,
            lease_ms=lease_ms,
            resume_token=resume_token,
        )
    )
    tenure = Tenure(swarm_id, lease_ms=registration.lease_ms, sent_s=sent_s, pid=os.getpid())
    for claim in registration.claims:
        tenure.hold(claim.handle, sent_s)
    return registration, tenure
