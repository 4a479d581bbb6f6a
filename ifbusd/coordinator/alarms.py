"""Alarms by the three clocks: looked at now and then, told once per episode, on record when they begin and end."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

import trio

from ifbus.errors import IfbusError, Momentary
from ifbusd.coordinator.clocks import rules as clocks
from ifbusd.coordinator.clocks.rules import Alarm
from ifbusd.coordinator.core import Answer, Core, NothingToDo
from ifbusd.coordinator.model import ALARMS
from ifbusd.coordinator.offers import Held
from ifbusd.identity import ITSELF
from ifbusd.operation import Body, Tx
from ifbusd.peers import STAND_BY_S

_log = logging.getLogger(__name__)

# A look takes milliseconds; one that takes this long waits for a store that does not answer.
_PATIENCE_S: Final = 30.0
# Swarms between two turns of everybody else.
_SLICE: Final = 64
_AT_ONCE: Final = 64


class Alarms(Core):
    """Raises and ends alarms. The open ones are in the store, and so outlive a restart without being told twice."""

    async def watch_clocks(self) -> None:
        """Look at all clocks every `clock_tick_ms`, until cancelled; of several daemons the one that has been there longest looks."""
        while True:
            if self._peers is not None and not self._peers.is_first:
                await trio.sleep(STAND_BY_S)
                continue
            with trio.move_on_after(_PATIENCE_S) as scope:
                try:
                    await self._look_at_clocks()
                except Momentary as error:
                    _log.warning("cannot look at the clocks", extra={"reason": error.message})
            if scope.cancelled_caught:
                _log.warning("cannot look at the clocks", extra={"reason": f"not done in {_PATIENCE_S:g} s"})
            await trio.sleep(self._config.clock_tick_ms / 1000)

    async def _look_at_clocks(self) -> None:
        alarming = {alarm.key: alarm for alarm in await self._alarming()}
        before = set(self.board.alarms)
        async with trio.open_nursery() as nursery:
            for key in [key for key in alarming if key not in before][:_AT_ONCE]:
                nursery.start_soon(self._raise_alarm, alarming[key])
            for key in [key for key in before if key not in alarming][:_AT_ONCE]:
                nursery.start_soon(self._end_alarm, key)

    async def _alarming(self) -> list[Alarm]:
        """All that is alarming now."""
        await self.board.catch_up()
        found: list[Alarm | None] = []
        swarms = list(dict.fromkeys([*self.board.sessions, *self.board.held_by]))
        for number, swarm_id in enumerate(swarms, start=1):
            # An account that another host wrote and nobody can read (THREATS T6): the governor's view has said so.
            with suppress(KeyError, TypeError, ValueError, AttributeError):
                found += await self._alarming_of(swarm_id)
            if not number % _SLICE:
                await trio.lowlevel.checkpoint()
        return [alarm for alarm in found if alarm is not None]

    async def _alarming_of(self, swarm_id: str) -> list[Alarm | None]:
        config, now_ms = self._config, self._now_ms()
        found: list[Alarm | None] = []
        session = self.board.sessions.get(swarm_id)
        if session is not None:
            record, lease = session
            left_ms = await self._store.lease_left_ms(lease)
            found.append(clocks.silent(swarm_id, swarm_id, record.lease_ms, left_ms, config.silent_ratio))
            letters = self.board.mail.letters(swarm_id)
            if letters and found[0] is None:
                oldest_at_ms = min(letter.at_ms for _, letter in letters)
                limit_ms = config.starving_ms
                found.append(clocks.starving(swarm_id, len(letters), oldest_at_ms, now_ms=now_ms, limit_ms=limit_ms))
        held = self.board.claims_of(swarm_id)
        spent = await self._spent_on(swarm_id, held)
        for task_id, one in held:
            left_ms = await self._store.lease_left_ms(one.lease)
            estimate = self.board.tasks[task_id].estimate_micro_usd if task_id in self.board.tasks else 0
            shown = clocks.read(one.claim, estimate, spent[task_id], left_ms, now_ms=now_ms, config=config)
            found.append(clocks.runaway(task_id, one.token, swarm_id, shown))
            if one.claim.own_lease:
                handle = f"{task_id}@{one.token}"
                found.append(clocks.silent(handle, swarm_id, one.claim.lease_ms, left_ms, config.silent_ratio))
        return found

    async def _spent_on(self, swarm_id: str, held: list[tuple[str, Held]]) -> dict[str, int]:
        def spent(tx: Tx) -> dict[str, int]:
            return {task_id: self._governor.spent_on(tx, swarm_id, task_id) for task_id, _ in held}

        return await self._operations.look(spent)

    async def _raise_alarm(self, alarm: Alarm) -> None:
        def begin(tx: Tx) -> Answer:
            if tx.get(alarm.key) is not None:
                raise NothingToDo  # another daemon has told it
            message = alarm.to_wire(self._now_ms())
            tx.put(alarm.key, message)
            tx.detail.update(swarm=alarm.swarm_id, **alarm.data)
            tx.publish("escalations", dict(message))
            tx.publish(f"attention.{alarm.swarm_id}", dict(message))
            return {}

        await self._note(f"coordinator.raise_{alarm.kind}", alarm.whose, begin)

    async def _end_alarm(self, key: str) -> None:
        kind, _, whose = key.removeprefix(ALARMS).partition("/")
        open_since = self.board.alarms.get(key, {})
        swarm_id = str(open_since.get("swarm_id", ""))

        def end(tx: Tx) -> Answer:
            if tx.get_stored(key) is None:
                raise NothingToDo
            tx.delete(key)
            tx.detail["swarm"] = swarm_id
            told = {"kind": f"{kind}_ended", "swarm_id": swarm_id, "whose": whose, "at_ms": self._now_ms()}
            tx.publish("escalations", {**told, "reason": f"{kind} of {whose} has ended"})
            return {}

        await self._note(f"coordinator.end_{kind}", whose, end)

    async def _note(self, op: str, target: str, body: Body) -> None:
        try:
            await self._operations.run(ITSELF, op, target, body)
        except NothingToDo:
            pass
        except IfbusError as error:  # the next look finds it again
            _log.warning("cannot put an alarm on record", extra={"op": op, "target": target, "reason": error.message})

    def alarms_of(self, swarm_id: str) -> list[Answer]:
        """The open alarms of a swarm, as they were told."""
        return [message for message in self.board.alarms.values() if message.get("swarm_id") == swarm_id]
