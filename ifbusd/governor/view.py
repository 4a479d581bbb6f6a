"""Keeps the registry in step with the store: reads everything, then follows a watch; only durable changes get in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from ifbus.errors import Unavailable
from ifbusd.codec import unpack
from ifbusd.governor.model import ACCOUNTS, SWARMS, Account, Profile
from ifbusd.governor.registry import Registry, standing_of
from ifbusd.operation import Decoded
from ifbusd.store.base import Compacted, KeyValue, Store, WatchEvent

_log = logging.getLogger(__name__)

# A watch that broke is tried again after this: soon enough for DESIGN promise 9, seldom enough to leave a sick store alone.
RETRY_S: Final = 0.5
# Whoever waits for the view goes on after this, with what the view knows: it decides nothing, admissions read the store.
PATIENCE_S: Final = 1.0

_ApplyOne = Callable[[str, KeyValue | None], None]


class RegistryView:
    """The governor's replica of profiles and accounts. Its mutable state is the registry and the revisions below."""

    def __init__(self, store: Store, decoded: Decoded) -> None:
        self._store = store
        self._decoded = decoded
        self._revisions: dict[str, int] = {}  # of each key, as applied
        self._waiting = trio.lowlevel.ParkingLot()
        self._ignored = 0
        self.registry = Registry()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the store until cancelled; started once everything has been read, or the store did not answer."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._follow, SWARMS, self._apply_profile)
            await nursery.start(self._follow, ACCOUNTS, self._apply_account)
            task_status.started()

    async def caught_up(self, swarm_id: str) -> None:
        """Return once the view shows this swarm as the store has it now, or after `PATIENCE_S`."""
        with trio.move_on_after(PATIENCE_S):
            for key in (SWARMS + swarm_id, ACCOUNTS + swarm_id):
                found = await self._store.get(key)
                while found is not None and self._revisions.get(key, 0) < found.mod_revision:
                    await self._waiting.park()

    def statistics(self) -> dict[str, int]:
        """Number of swarms, newest revision applied, and records that could not be read."""
        return {
            "swarms": len(self.registry),
            "revision": max(self._revisions.values(), default=0),
            "ignored": self._ignored,
        }

    async def _follow(
        self,
        prefix: str,
        apply: _ApplyOne,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        is_started = False
        while True:
            try:
                # The watch opens before the reading, so nothing falls between them; what comes twice is applied once.
                async with self._store.watch(prefix) as watch:
                    await self._read_all(prefix, apply)
                    if not is_started:
                        is_started = True
                        task_status.started()
                    await watch.feed(partial(self._apply_all, prefix, apply))
            except Compacted:
                continue
            except Unavailable as error:
                _log.warning("the registry's view is behind", extra={"prefix": prefix, "error": error.message})
            if not is_started:
                is_started = True
                task_status.started()
            await trio.sleep(RETRY_S)

    async def _read_all(self, prefix: str, apply: _ApplyOne) -> None:
        stale = {key for key in self._revisions if key.startswith(prefix)}
        after = ""
        while True:
            page = await self._store.range(prefix, after=after)
            await self._store.barrier()  # a write that is undone again must not get in
            for found in page.items:
                stale.discard(found.key)
                self._apply(prefix, found.key, found, found.mod_revision, apply)
            if not page.has_more:
                break
            after = page.items[-1].key
        for key in stale:
            self._apply(prefix, key, None, page.revision, apply)
        self._waiting.unpark_all()

    def _apply_all(self, prefix: str, apply: _ApplyOne, batch: list[WatchEvent]) -> None:
        for event in batch:
            self._apply(prefix, event.key, event.value, event.revision, apply)
        self._waiting.unpark_all()

    def _apply(
        self,
        prefix: str,
        key: str,
        found: KeyValue | None,
        revision: int,
        apply: _ApplyOne,
    ) -> None:
        if revision <= self._revisions.get(key, 0):
            return
        if found is None:
            self._revisions.pop(key, None)
        else:
            self._revisions[key] = revision
        try:
            apply(key[len(prefix) :], found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # Another host may write what we cannot read (THREATS T6): that swarm is left out, the others go on.
            self._ignored += 1
            _log.warning("a stored record cannot be read and is ignored", extra={"key": key, "error": repr(error)})

    def _apply_profile(self, swarm_id: str, found: KeyValue | None) -> None:
        self.registry.remove(swarm_id)
        if found is not None:
            self.registry.put_profile(Profile.from_stored(swarm_id, unpack(found.value)))

    def _apply_account(self, swarm_id: str, found: KeyValue | None) -> None:
        account = Account() if found is None else self._decoded.peek(found, _account)
        self.registry.put_standing(swarm_id, standing_of(account))


def _account(data: bytes) -> Account:
    return Account.from_stored(unpack(data))
