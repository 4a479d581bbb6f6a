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
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from ifbus import calls
from ifbus.backoff import backoff
from ifbus.errors import ConnectionFailed, IfbusError, LeaseLost, Momentary
from ifbus.exchange import Feed
from ifbus.link import GRACE_S, Link
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
        ending: Handles whose holder is saying its last word: that the daemon lists one no more may be the answer to that.
    """

    def __init__(self, swarm_id: str, *, lease_ms: int, sent_s: float, pid: int) -> None:
        self.swarm_id = swarm_id
        self.lease_s = lease_ms / 1000
        self.proven_until_s = sent_s + self.lease_s
        self.lost: LeaseLost | None = None
        self.ending: set[str] = set()
        self._pid = pid
        self._held_since_s: dict[str, float] = {}
        self._own_lease_s: dict[str, float] = {}  # of claims whose tasks have shorter ones than the session
        self._gone: dict[str, str] = {}  # and why
        self._last_sent_s = sent_s

    def hold(self, handle: str, at_s: float, lease_ms: int | None = None) -> None:
        """A claim was won; its own lease counts where it is shorter than the session's, and is renewed with that."""
        if lease_ms is not None and lease_ms / 1000 < self.lease_s:
            self._own_lease_s[handle] = lease_ms / 1000
        self._held_since_s[handle] = at_s

    def end(self, handle: str, reason: str) -> LeaseLost | None:
        """The daemon says that a claim has ended: the error for whoever holds it; None if nobody does any more."""
        if self._held_since_s.pop(handle, None) is None:
            return None
        self._own_lease_s.pop(handle, None)
        self._gone[handle] = reason
        return LeaseLost(f"{reason}; nothing was written", data={"handle": handle})

    @property
    def has_short_leases(self) -> bool:
        """Whether a claim is held that has to be renewed more often than the session."""
        return bool(self._own_lease_s)

    def holds(self, handle: str) -> bool:
        """Whether a claim was won and has not ended."""
        return handle in self._held_since_s

    def is_foreign(self, pid: int) -> bool:
        """Whether that process is a fork of the one that registered: it may not act for the swarm, nor end its session."""
        return pid != self._pid

    def let_go(self, handle: str) -> None:
        """A claim has ended by its holder's own word."""
        self._held_since_s.pop(handle, None)
        self._own_lease_s.pop(handle, None)

    def renewed(self, *, lease_ms: int, sent_s: float, listed: Iterable[str]) -> dict[str, LeaseLost]:
        """The daemon renewed the session and listed its claims; the error for each that was found to be gone, by its handle.

        A claim counts as gone only if it was held already when the renewal before this one was sent: the list may be a
        moment older than a claim that was won meanwhile.
        """
        if self.lost is not None:
            return {}
        before_s, self._last_sent_s = self._last_sent_s, sent_s
        self.lease_s = lease_ms / 1000
        self.proven_until_s = max(self.proven_until_s, sent_s + self.lease_s)
        known = set(listed)
        gone = {
            handle: self.end(handle, f"{handle} has ended: the daemon lists it no more")
            for handle, since_s in list(self._held_since_s.items())
            if since_s < before_s and handle not in known and handle not in self.ending
        }
        return {handle: error for handle, error in gone.items() if error is not None}

    def next_renewal_s(self, now_s: float) -> float:
        """Seconds from now until the next renewal is due."""
        lease_s = min([self.lease_s, *tuple(self._own_lease_s.values())])
        return max(0.0, self._last_sent_s + lease_s / RENEWALS_PER_LEASE - now_s)

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
        if handle is None:
            return
        if (own_s := self._own_lease_s.get(handle)) is not None:
            since_s = max(self._held_since_s.get(handle, 0.0), self._last_sent_s)
            if now_s >= since_s + own_s:
                self.end(handle, f"the lease of {own_s:g} s of {handle} was not renewed in time")
        if handle in self._gone:
            raise LeaseLost(f"{self._gone[handle]}; nothing was written", data={"handle": handle})


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
        on_attention: Called in this thread with what the daemon says of the swarm, as soon as it does, once `listen` was called.
        on_gone: Called in this thread with the handle and the error of a claim that a renewal found gone.
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
        on_attention: Callable[[dict[str, Any]], None],
        on_gone: Callable[[str, LeaseLost], None],
    ) -> None:
        self._on_attention = on_attention
        self._on_gone = on_gone
        self._hearing: Feed | None = None
        self._woken = threading.Event()
        if isinstance(link, Link) and owns_link:
            self._hearing = Feed("attention", "daemon.hello", params={"swarm": tenure.swarm_id})
            link._attach(self._hearing)
        self._bind = bind
        self._link = link
        self._tenure = tenure
        self._resume_token = resume_token
        self._owns_link = owns_link
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self._is_listening = False
        self._thread = threading.Thread(target=self._run, name=f"ifbus renewal {tenure.swarm_id}", daemon=True)

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """Renew no more; comes back when the thread has ended, which a renewal under way delays by its connection's end."""
        self._stopped.set()
        self._woken.set()
        if self._owns_link:
            self._link.close()
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join()

    def listen(self) -> None:
        """Something is held: from now on hear at once what the daemon says of it, and renew as often as it needs."""
        if not self._is_listening or self._tenure.has_short_leases:
            self._is_listening = True
            self._woken.set()
            if self._hearing is not None and isinstance(self._link, Link):
                self._link._rouse(self._hearing)

    def _pause(self, wait_s: float) -> bool:
        """Wait, hearing meanwhile what the daemon says; True once this has stopped. Ends early when it is woken."""
        until_s = now_s() + wait_s
        while not self._stopped.is_set() and (left_s := until_s - now_s()) > 0:
            if self._woken.is_set():
                self._woken.clear()
                return self._stopped.is_set()
            item = None
            if self._is_listening and self._hearing is not None and isinstance(self._link, Link):
                item = self._link._listen_to(self._hearing, left_s)
            if item is not None:
                self._on_attention(item)
            else:
                self._woken.wait(max(0.0, until_s - now_s()))
        return self._stopped.is_set()

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
        while not self._pause(wait_s):
            due_s = self._tenure.next_renewal_s(now_s())
            if failures == 0 and due_s > 0:  # woken: there is something to listen for, or to renew sooner
                self._connect(due_s)
                wait_s = self._tenure.next_renewal_s(now_s())
                continue
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
                gone = self._tenure.renewed(lease_ms=answer.lease_ms, sent_s=sent_s, listed=answer.claims)
                for handle, lost in gone.items():
                    self._on_gone(handle, lost)
                if self._tenure.lost is not None:
                    self._lose(self._tenure.lost.message)
                    return
                if not answer.is_watched and self._bind is not None:
                    self._bind_again(self._bind)
                wait_s = self._tenure.next_renewal_s(now_s())

    def _connect(self, at_most_s: float) -> None:
        """So that what the daemon says is heard before the first renewal."""
        if self._hearing is None or not self._is_listening:
            return
        with suppress(IfbusError):  # the renewal tries again, and knows what to do about it
            self._link.perform(calls.ping(timeout=max(LEAST_TIMEOUT_S, at_most_s / 2)))

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
