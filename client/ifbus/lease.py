"""How long a holder may believe that it is one: decided pessimistically, from its own clock alone.

A lease proves nothing to the daemon (only the fencing token does), but a holder must know when to stop touching the world.
The lease began, for the daemon, when the renewal *arrived*; the holder counts from when it was *sent*, so it always stops
first. The clock is CLOCK_BOOTTIME, which goes on while the machine sleeps.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

from ifbus import calls
from ifbus.backoff import backoff
from ifbus.errors import ConnectionFailed, IfbusError, LeaseLost, Momentary
from ifbus.link import GRACE_S
from ifbus.request import Call
from ifbus.steps import Steps, drive

R = TypeVar("R")

# A renewal may be tried this often within a lease, so that one lost or slow one does not cost the claims.
RENEWALS_PER_LEASE: Final = 3
# A last try close to the deadline still gets this long: a local answer takes far less.
LEAST_TIMEOUT_S: Final = 0.05


def now_s() -> float:
    """Seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Tenure:
    """Until when a session, and each claim in it, can be proven. Pure: every time is an argument, in seconds of one clock.

    Attributes:
        lost: Set once, when the session cannot be proven any more; it never comes back.
    """

    def __init__(self, swarm_id: str, *, lease_ms: int, sent_s: float, pid: int) -> None:
        self.swarm_id = swarm_id
        self.lease_s = lease_ms / 1000
        self.proven_until_s = sent_s + self.lease_s
        self.lost: LeaseLost | None = None
        self._pid = pid
        self._held_since_s: dict[str, float] = {}
        self._gone: set[str] = set()
        self._last_sent_s = sent_s

    def hold(self, handle: str, at_s: float) -> None:
        """A claim was won."""
        self._held_since_s[handle] = at_s

    def holds(self, handle: str) -> bool:
        """Whether a claim was won and has not ended."""
        return handle in self._held_since_s

    def is_foreign(self, pid: int) -> bool:
        """Whether that process is a fork of the one that registered: it may not act for the swarm, nor end its session."""
        return pid != self._pid

    def let_go(self, handle: str) -> None:
        """A claim has ended by its holder's own word."""
        self._held_since_s.pop(handle, None)

    def renewed(self, *, lease_ms: int, sent_s: float, listed: Iterable[str]) -> list[str]:
        """The daemon renewed the session and listed its claims; the handles that were found to be gone.

        A claim counts as gone only if it was held already when the renewal before this one was sent: the list may be a
        moment older than a claim that was won meanwhile.
        """
        if self.lost is not None:
            return []
        before_s, self._last_sent_s = self._last_sent_s, sent_s
        self.lease_s = lease_ms / 1000
        self.proven_until_s = max(self.proven_until_s, sent_s + self.lease_s)
        known = set(listed)
        gone = [
            handle for handle, since_s in list(self._held_since_s.items()) if since_s < before_s and handle not in known
        ]
        for handle in gone:
            self._held_since_s.pop(handle, None)
        self._gone.update(gone)
        return gone

    def next_renewal_s(self, now_s: float) -> float:
        """Seconds from now until the next renewal is due."""
        return max(0.0, self._last_sent_s + self.lease_s / RENEWALS_PER_LEASE - now_s)

    def lose(self, reason: str) -> LeaseLost:
        """The session is over; the error that every later call as its holder raises."""
        if self.lost is None:
            self.lost = LeaseLost(
                f"cannot act for {self.swarm_id} any more: {reason}; nothing was written",
                data={"swarm_id": self.swarm_id},
                would_change=[
                    {
                        "by": "self",
                        "what": "stop this work, register again",
                        "call": f"ifbus swarm register {self.swarm_id}",
                    }
                ],
            )
        return self.lost

    def check(self, now_s: float, pid: int, handle: str | None = None) -> None:
        """Return if the session, and the claim if one is named, can be proven at this moment.

        Raises:
            LeaseLost: It cannot; the holder must stop now.
        """
        if self.lost is None and self.is_foreign(pid):
            raise LeaseLost(f"cannot act for {self.swarm_id}: this process is a fork of the one that registered it")
        if self.lost is None and now_s >= self.proven_until_s:
            self.lose(f"its lease of {self.lease_s:g} s was not renewed in time")
        if self.lost is not None:
            # A new instance for each caller: a shared one would collect everybody's tracebacks.
            raise LeaseLost(self.lost.message, data=self.lost.data)
        if handle is not None and handle in self._gone:
            raise LeaseLost(
                f"{handle} has ended: the daemon lists it no more; nothing was written", data={"handle": handle}
            )


class Performer(Protocol):
    """What makes calls, blocking: a `Link`, or what hands them to an event loop."""

    def perform(self, call: Call[R]) -> R: ...
    def close(self) -> None: ...


class Renewal:
    """Renews a session from a thread and a connection of its own, so that a busy holder does not lose its claims.

    Args:
        link: The connection that renews; closed with this if `owns_link`.
        bind: Binds the session again to its process, where the daemon does not watch that any more; None if nothing is to be.
        on_lost: Called once in this thread when the session is lost, with the error, and whether that is because the daemon
            did not answer.
    """

    def __init__(
        self,
        link: Performer,
        tenure: Tenure,
        resume_token: str,
        *,
        owns_link: bool,
        bind: Call[Any] | None = None,
        on_lost: Callable[[LeaseLost, bool], None],
    ) -> None:
        self._bind = bind
        self._link = link
        self._tenure = tenure
        self._resume_token = resume_token
        self._owns_link = owns_link
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"ifbus renewal {tenure.swarm_id}", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Renew no more; comes back when the thread has ended, which a renewal under way delays by its connection's end."""
        self._stopped.set()
        if self._owns_link:
            self._link.close()
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join()

    def settle(self, steps: Callable[[], Steps[None]]) -> None:
        """Take steps that outlive their caller, in a thread of their own, until they are done or this has stopped.

        They begin again after a momentary failure, so they must be such that a repetition is harmless.
        """

        def settle() -> None:
            failures = 0
            while not self._stopped.is_set() and self._tenure.lost is None:
                try:
                    drive(steps(), self._link.perform)
                except (Momentary, ConnectionFailed):
                    self._stopped.wait(backoff(failures, random.random()))
                    failures += 1
                except IfbusError:
                    return  # refused: there is nothing of ours to settle any more
                else:
                    return

        threading.Thread(target=settle, name=f"ifbus settles {self._tenure.swarm_id}", daemon=True).start()

    def _run(self) -> None:
        failures = 0
        wait_s = self._tenure.next_renewal_s(now_s())
        while not self._stopped.wait(wait_s):
            sent_s = now_s()
            left_s = self._tenure.proven_until_s - sent_s
            timeout_s = max(LEAST_TIMEOUT_S, min(left_s, self._tenure.lease_s / RENEWALS_PER_LEASE) - GRACE_S)
            try:
                answer = self._link.perform(
                    calls.renew_session(self._tenure.swarm_id, self._resume_token, timeout=timeout_s)
                )
            except (Momentary, ConnectionFailed) as error:
                if self._stopped.is_set():
                    return
                left_s = self._tenure.proven_until_s - now_s()
                if left_s <= 0:
                    reason = f"its lease of {self._tenure.lease_s:g} s could not be renewed in time"
                    self._lose(f"{reason} ({error.message})", is_silent=True)
                    return
                wait_s = min(backoff(failures, random.random()), left_s)
                failures += 1
            except IfbusError as error:
                if not self._stopped.is_set():
                    self._lose(error.message)
                return
            else:
                failures = 0
                self._tenure.renewed(lease_ms=answer.lease_ms, sent_s=sent_s, listed=answer.claims)
                if self._tenure.lost is not None:
                    self._lose(self._tenure.lost.message)
                    return
                if not answer.is_watched and self._bind is not None:
                    self._bind_again(self._bind)
                wait_s = self._tenure.next_renewal_s(now_s())

    def _bind_again(self, bind: Call[Any]) -> None:
        try:
            self._link.perform(bind)
        except (Momentary, ConnectionFailed):
            return  # after the next renewal
        except IfbusError:
            self._bind = None  # it lives on its lease alone from now on

    def _lose(self, reason: str, *, is_silent: bool = False) -> None:
        self._on_lost(self._tenure.lose(reason), is_silent)


def check(tenure: Tenure, handle: str | None = None) -> None:
    """As `Tenure.check`, now and in this process."""
    tenure.check(now_s(), os.getpid(), handle)
