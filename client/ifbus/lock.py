"""Named resources in a session's hands, written once for both clients; `ifbus.sync` and `ifbus.aio` give the steps their forms.

The mutable state is whether they are held, and which names a session has in use (`SwarmCore.locked`); nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ifbus import calls
from ifbus.errors import ConnectionFailed, IfbusError, InvalidParams, LeaseLost, Momentary, ResourceBusy, StaleToken
from ifbus.steps import Steps, ask, is_outcome_unknown
from ifbus.worker import to_wait_ms

if TYPE_CHECKING:
    from ifbus.answers import ResourceGrant
    from ifbus.worker import SwarmCore


class LockCore:
    """The state of one hold; see `ifbus.sync.Lock`."""

    def __init__(self, swarm: SwarmCore, resources: Sequence[str], wait: float) -> None:
        self._swarm = swarm
        for name in resources:
            if not isinstance(name, str):
                raise InvalidParams(
                    f"cannot lock {name!r:.80}: a resource is a text, such as 'gpu:0', and each is an argument",
                    data={"param": "resources"},
                )
        self._resources = tuple(dict.fromkeys(resources))
        self._wait = wait
        self._grant: ResourceGrant | None = None
        self._hold = object()  # another one each time

    @property
    def resources(self) -> tuple[str, ...]:
        """Their names."""
        return self._resources

    @property
    def fences(self) -> dict[str, int]:
        """The fence of each, for whatever guards it to refuse older ones; empty while they are not held."""
        return {} if self._grant is None else dict(self._grant.fences)

    @property
    def is_held(self) -> bool:
        """Whether they were taken and not given back."""
        return self._grant is not None

    def __repr__(self) -> str:
        held = " ".join(f"{name}@{fence}" for name, fence in self.fences.items())
        return f"<{type(self).__name__} {held or ' '.join(self._resources) + ' free'}>"

    def check(self) -> None:
        """Return if they can be proven to be held at this moment; ask before touching them.

        Raises:
            LeaseLost: They cannot: the session has ended, or they were given back.
        """
        self._swarm.check()
        if self._grant is None:
            raise LeaseLost(f"cannot use {', '.join(self._resources)}: not held", data={"resources": self._resources})

    def acquire_steps(self) -> Steps[None]:
        """Take all of them, or none."""
        swarm = self._swarm
        swarm.check()
        key = swarm._new_key()
        call = calls.acquire_resources(
            swarm.swarm_id, self._resources, wait_ms=to_wait_ms(self._wait), idempotency_key=key
        )
        self._reserve()
        try:
            grant = yield from ask(call)
        except BaseException as error:
            self._end_of_use(error, lambda: swarm._strike_steps(call, key, self._free_steps))
            raise
        try:
            swarm.check()
        except LeaseLost:
            self._forget(self._hold)
            yield from self._free_steps(grant)  # they came after the session's end, which frees nothing any more
            raise
        self._grant = grant

    def release_steps(self, error: BaseException | None) -> Steps[None]:
        """The end of the ``with`` block: all of them are free, or will be without the caller's waiting.

        Raises:
            LeaseLost: They were lost before, and `error` does not say so.
        """
        grant, self._grant = self._grant, None
        if grant is None or self._swarm.has_left:
            return  # they are free with the session
        try:
            self._swarm.check()
            yield from ask(calls.release_resources(self._swarm.swarm_id, grant.fences))
        except BaseException as failure:
            self._end_of_use(failure, lambda: self._free_steps(grant))
            if isinstance(failure, StaleToken) and error is not None:
                error.add_note(f"{', '.join(self._resources)} had been lost: {failure.message}")
            elif isinstance(failure, StaleToken):
                raise LeaseLost(failure.message, data=failure.data) from failure
            elif not isinstance(failure, Momentary | ConnectionFailed):
                raise
        else:
            self._forget(self._hold)

    def _free_steps(self, grant: ResourceGrant) -> Steps[None]:
        try:
            yield from ask(calls.release_resources(self._swarm.swarm_id, grant.fences))
        except StaleToken:
            return  # they have come free by themselves

    def _end_of_use(self, error: BaseException, free: Callable[[], Steps[None]]) -> None:
        """Their names may be used again: at once, or after `free` where it is unknown whether they are held."""
        if is_outcome_unknown(error):
            self._swarm._settle(lambda: self._until_free(free()))
        else:
            self._forget(self._hold)

    def _until_free(self, steps: Steps[None]) -> Steps[None]:
        # Until then their names stay in use here: a second hold would have the same fences, and be given back with the first.
        try:
            yield from steps
        except (Momentary, ConnectionFailed):
            raise  # tried again
        except IfbusError:
            self._forget(self._hold)
            raise
        self._forget(self._hold)

    def _reserve(self) -> None:
        if not self._resources:
            raise InvalidParams("cannot lock nothing: name a resource, such as 'gpu:0'", data={"param": "resources"})
        hold = object()
        for name in self._resources:
            if self._swarm.locked.setdefault(name, hold) is not hold:
                self._forget(hold)
                # The daemon would say yes: one swarm holds it. But there are two who would think that nobody else does.
                raise ResourceBusy(
                    f"cannot lock {name}: this session holds it already, or is giving it back",
                    data={"resource": name, "owner": self._swarm.swarm_id},
                )
        self._hold = hold

    def _forget(self, hold: object) -> None:
        for name in self._resources:
            if self._swarm.locked.get(name) is hold:
                del self._swarm.locked[name]
