"""Keeps a zygote running, and a worker ready: starts the zygote, notices its end, starts the next after a backoff.

Workers do not notice. Where a worker was asked for once, the next one is forked ahead: that is half of what a new sandbox costs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from ifbus.errors import Unavailable
from ifbusd.chassis import rules
from ifbusd.chassis.launch import Launched
from ifbusd.chassis.processes import Worker, Zygote, reap_strays

_log = logging.getLogger(__name__)

# A zygote that lived this long was well: its end starts a new count.
_WELL_AFTER_S: Final = 10.0
# Who took the one that was ready is to finish first: loading a module and its first execution take 7 ms.
_SPARE_AFTER_S: Final = 0.005
# Longer than a restart (0.2 s) and its first backoff, shorter than what a caller calls hanging.
_WAIT_FOR_ZYGOTE_S: Final = 2.0


class Supervisor:
    """Owns the zygote. The mutable state is which one is ready, if any, the worker that is, if any, and which have ended.

    Attributes:
        restarts: Times that a zygote ended.
        engine, layers: As the last zygote has them (`Zygote`); empty until the first is ready.
    """

    def __init__(self, chance: Callable[[], float], launched: Launched | None = None) -> None:
        """Wire it up.

        Args:
            chance: A random number of 0 to 1, for backoffs.
            launched: The first zygote, if it is getting ready already.
        """
        self._chance = chance
        self._launched = launched
        self._zygote: Zygote | None = None
        self._ready = trio.Event()
        self._spare: Worker | None = None
        self._is_spare_due = trio.Event()
        self._ended: set[int] = set()  # as long as a fork of theirs is left
        self.restarts = 0
        self.engine = ""
        self.layers = ""

    @property
    def zygote_pid(self) -> int | None:
        """Process id of the zygote that is ready, None while there is none."""
        return None if self._zygote is None else self._zygote.pid

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; started once the first zygote is ready. Raises `Unavailable` if the first never gets so."""
        launched, self._launched = self._launched, None
        zygote = await Zygote.start(launched)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_spare)
            task_status.started()
            await self._keep_zygote(zygote)

    async def _keep_zygote(self, zygote: Zygote) -> None:
        failures = 0
        while True:
            began = trio.current_time()
            try:
                self._zygote = zygote
                self.engine, self.layers = zygote.engine, zygote.layers
                self._ready.set()
                await zygote.wait()
            finally:
                self._lost()
                status = await zygote.end()
                self._ended.add(zygote.pid)
            failures = 0 if trio.current_time() - began > _WELL_AFTER_S else failures + 1
            self.restarts += 1
            _log.warning("chassis.zygote_ended", extra={"status": status, "failures": failures})
            await self._end_spare()  # what runs guests is to be a copy of the zygote that is there
            zygote = await self._start_again(failures)

    def reap_strays(self) -> None:
        """Reap what zygotes have left that ended in the middle of a fork; to be called now and then."""
        self._ended = {group for group in self._ended if not reap_strays(group)}

    async def _keep_spare(self) -> None:
        try:
            while True:
                await self._is_spare_due.wait()
                await trio.sleep(_SPARE_AFTER_S)
                self._is_spare_due = trio.Event()
                if self._spare is None:
                    with suppress(Unavailable):  # the next one who asks hears of it
                        self._spare = await self._fork_once()
        finally:
            await self._end_spare()

    async def _end_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.end()

    async def _start_again(self, failures: int) -> Zygote:
        while True:
            await trio.sleep(rules.restart_delay_ms(failures, self._chance()) / 1000)
            try:
                return await Zygote.start()
            except Unavailable as error:
                failures += 1
                _log.error("chassis.zygote_not_started", extra={"reason": error.message, "failures": failures})

    async def fork(self) -> Worker:
        """A new worker without an order; waits for a zygote that is just being replaced, and tries twice.

        Raises:
            Unavailable: No zygote within 2 s.
        """
        spare, self._spare = self._spare, None
        self._is_spare_due.set()
        if spare is not None:
            if spare.is_alive():
                return spare
            await spare.end()
        try:
            return await self._fork_once()
        except Unavailable:
            return await self._fork_once()

    async def _fork_once(self) -> Worker:
        with trio.move_on_after(_WAIT_FOR_ZYGOTE_S):
            while self._zygote is None:
                await self._ready.wait()
        zygote = self._zygote
        if zygote is None:
            raise Unavailable("cannot start a sandbox: no zygote", data={"retry_after_ms": 1000})
        try:
            return await zygote.fork()
        except Unavailable:
            if zygote.is_killed and self._zygote is zygote:  # nobody else need try it until `run` sees its end
                self._lost()
            raise

    def _lost(self) -> None:
        self._zygote = None
        if self._ready.is_set():
            self._ready = trio.Event()
