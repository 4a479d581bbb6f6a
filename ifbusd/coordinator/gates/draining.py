"""Draining: no new work, and at the end of a grace what is still held is given back with a note for the next owner.

A swarm's drain is a pause with an end, so it stands in its profile and outlives every restart until it is resumed. A host's drain is
this daemon's own: it gives out nothing to anybody. It is kept in memory alone, for a daemon that is started again is started to work.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from ifbus.errors import IfbusError, Unavailable
from ifbusd import pause as pauses
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, NothingToDo
from ifbusd.coordinator.freeing import Freeing
from ifbusd.coordinator.gates.pausing import MAX_REASON, Pausing
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import CLAIMS, OPEN, TASKS, ClaimRecord
from ifbusd.coordinator.offers import Held
from ifbusd.identity import ITSELF, Caller
from ifbusd.operation import Tx
from ifbusd.pause import UNTIL, Pause

_log = logging.getLogger(__name__)

DEFAULT_GRACE_MS: Final = 600_000
MAX_GRACE_MS: Final = 24 * 3_600_000
HOST: Final = "host"
_AT_ONCE: Final = 64
# In an answer and in attention.
_SHOWN: Final = 200


class Draining(Pausing, Freeing):
    """Drains of swarms and of this host."""

    async def drain_swarm(
        self, caller: Caller, swarm_id: str, *, grace_ms: int = DEFAULT_GRACE_MS, reason: str = ""
    ) -> Answer:
        """See `interface.Coordinator.drain_swarm`."""
        rules.check_span("grace_ms", grace_ms, 0, MAX_GRACE_MS)
        return await self._pause(caller, "coordinator.drain_swarm", "swarm", swarm_id, reason, grace_ms)

    async def drain_host(
        self, caller: Caller, *, off: bool = False, grace_ms: int = DEFAULT_GRACE_MS, reason: str = ""
    ) -> Answer:
        """See `interface.Coordinator.drain_host`."""
        rules.check_span("grace_ms", grace_ms, 0, MAX_GRACE_MS)
        rules.check_text("reason", reason, MAX_REASON)
        now_ms = self._now_ms()
        drain: Pause = {}
        if not off:
            drain = pauses.new(
                {}, uid=caller.uid, is_operator=True, reason=reason, now_ms=now_ms, until_at_ms=now_ms + grace_ms
            )

        def body(tx: Tx) -> Answer:
            tx.detail["on"] = not off
            if drain:
                tx.detail.update(reason=reason, grace_ms=grace_ms)
                item = pauses.told(HOST, self._host, drain, at_ms=now_ms)
                for swarm_id, claims in self._ours().items():
                    handles = [f"{task_id}@{held.token}" for task_id, held in claims]
                    tx.publish(f"attention.{swarm_id}", {**item, "claims": handles[:_SHOWN]})
            return {"drain": drain or None}

        before = self._host_drain
        if not before:
            self._host_empty = trio.Event()
        self._host_drain = drain  # from here on, so that no claim slips in while this is put on record
        try:
            answer = await self._operations.run(caller, "coordinator.drain_host", self._host, body)
        except BaseException:
            self._host_drain = before
            raise
        if off:
            self._host_released = 0
            self._host_empty.set()
            self.board.offers.wake_all()
        await self.board.show_told()
        return {**answer, "left": self._left()}

    async def drain_to_stop(self, grace_ms: int) -> None:
        """Drain this host and return once nothing that it gave out is held any more, at the latest soon after the grace."""
        with trio.move_on_after((grace_ms + 2 * self._config.clock_tick_ms) / 1000):
            try:
                await self.drain_host(ITSELF, grace_ms=grace_ms, reason="the daemon stops")
            except Unavailable as error:
                _log.warning("cannot put a drain on record", extra={"reason": error.message})
                return
            await self._host_empty.wait()

    async def look_after_drains(self) -> None:
        """Give back what is held when the grace of a drain is over, until cancelled."""
        while True:
            await trio.sleep(self._config.clock_tick_ms / 1000)
            try:
                await self._end_drains()
            except IfbusError as error:
                _log.warning("cannot end a drain", extra={"reason": error.message})
            if self._host_drain and not self._left():
                self._host_empty.set()

    async def _end_drains(self) -> None:
        now_ms = self._now_ms()
        due: list[tuple[str, str, str, Pause]] = []
        if self._goes_first():
            for swarm_id in list(self.board.held_by):
                drain = self._governor.seen_pause(swarm_id)
                if drain.get(UNTIL, now_ms + 1) <= now_ms:
                    due += [("swarm", swarm_id, task_id, drain) for task_id, _ in self.board.claims_of(swarm_id)]
        if self._host_drain and self._host_drain[UNTIL] <= now_ms:
            ours = [task_id for claims in self._ours().values() for task_id, _ in claims]
            due += [(HOST, self._host, task_id, self._host_drain) for task_id in ours]
        for start in range(0, len(due), _AT_ONCE):
            async with trio.open_nursery() as nursery:
                for kind, name, task_id, drain in due[start : start + _AT_ONCE]:
                    nursery.start_soon(self._give_back, kind, name, task_id, drain)
        if due:
            await self.board.show_told()

    async def _give_back(self, kind: str, name: str, task_id: str, drain: Pause) -> None:
        leases: list[int] = []

        def still(tx: Tx, claim: ClaimRecord) -> bool:
            if kind == HOST:  # it may have ended since, and have been given out anew by another daemon
                return self._host_drain is drain and self._is_ours(claim)
            now_ms = self._now_ms()  # resumed, or given more time, it is by the store, whatever this daemon saw
            return claim.swarm_id == name and self._governor.pause_of(tx, name).get(UNTIL, now_ms + 1) <= now_ms

        def give_back(tx: Tx) -> Answer:
            leases.clear()
            stored = tx.get_stored(CLAIMS + task_id)
            claim = tx.read(CLAIMS + task_id, ClaimRecord.from_bytes)
            if stored is None or claim is None or not still(tx, claim):
                raise NothingToDo
            task = self._task(tx, task_id)
            swarm_id, token = claim.swarm_id, stored.create_revision
            spent = self._governor.spent_on(tx, swarm_id, task_id)
            given_back = self._governor.claim_ended(tx, swarm_id, task_id, outcome="neutral")
            after = rules.after_claim(task, claim, swarm_id, token, spent)
            if after.state == OPEN:
                why = f"{kind} {name} was drained" + (f": {drain['reason']}" if drain["reason"] else "")
                after = life.move(life.end_attempt(after, token, "drained", why), "release", OPEN, error="")
            tx.put(TASKS + task_id, after.to_map(), decoded=after)
            self._drop_claim(tx, task_id, claim)
            if claim.own_lease:
                leases.append(stored.lease)
            self._tell_freed(tx, task_id, swarm_id, token, given_back, "drained")
            return {}

        if await self._surely("coordinator.expire_claim", task_id, give_back):
            for lease in leases:
                self._retired.add(lease)
            if kind == HOST:
                self._host_released += 1

    # --- what this daemon gave out -------------------------------------------------------------------

    @property
    def _host(self) -> str:
        return "this" if self._peers is None else self._peers.daemon_id

    def _ours(self) -> dict[str, list[tuple[str, Held]]]:
        """By swarm the claims that end with this host's drain: where it is not alone, those that it gave out or watches."""
        found: dict[str, list[tuple[str, Held]]] = {}
        for swarm_id in self.board.held_by:
            claims = [(task_id, held) for task_id, held in self.board.claims_of(swarm_id) if self._is_ours(held.claim)]
            if claims:
                found[swarm_id] = claims
        return found

    def _is_ours(self, claim: ClaimRecord) -> bool:
        if self._peers is None:
            return True
        session = self.board.sessions.get(claim.swarm_id)
        binding_id = str(rules.bound_of(claim, None if session is None else session[0]).get("id", ""))
        watched_by, _, _ = binding_id.partition("/")
        return self._peers.daemon_id == (watched_by or claim.given_by)

    def _left(self) -> int:
        return sum(map(len, self._ours().values()))

    def drain_progress(self) -> Answer | None:
        """What `status` says of this host's drain; None while there is none."""
        if not self._host_drain:
            return None
        shown = {name: self._host_drain[name] for name in ("by_uid", "reason", "since_at_ms", UNTIL)}
        return {**shown, "left": self._left(), "released": self._host_released}
