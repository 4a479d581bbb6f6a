"""What the parts of the coordinator share: collaborators, the board, and the reads that every operation makes."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import trio

from ifbus.errors import IfbusError, LimitExceeded, NotFound
from ifbus.models import check_identifier
from ifbusd.bus.base import Bus
from ifbusd.codec import pack
from ifbusd.coordinator import rules
from ifbusd.coordinator.admission import Admission
from ifbusd.coordinator.bindings import Bindings
from ifbusd.coordinator.board import Board
from ifbusd.coordinator.holder import Claims
from ifbusd.coordinator.leases import RetiredLeases
from ifbusd.coordinator.model import (
    CLAIMS,
    COMPLETED,
    INBOX,
    OPEN,
    TASKS,
    ClaimRecord,
    CoordinatorConfig,
    Holder,
    MessageRecord,
    TaskRecord,
)
from ifbusd.coordinator.numbers import Numbers
from ifbusd.identity import ITSELF, Caller
from ifbusd.operation import Body, Operations, Tx
from ifbusd.pause import Pause
from ifbusd.peers import Peers
from ifbusd.store.base import Get, KeyValue, Store, Txn

_log = logging.getLogger(__name__)

Answer = dict[str, Any]

# So many tasks are read in one transaction, with their claims; etcd takes 128 operations.
_READ_AT_ONCE = 60
_RETRY_S: Final = 0.5
# A watch of a cluster tells a change within milliseconds, after a change of etcd's leader within two seconds.
_WATCH_PATIENCE_S: Final = 5.0


class NothingToDo(Exception):
    """What was to be put on record is no more so, or is on record already; leaves an operation without a trace."""


class Core:
    """Base of the coordinator's parts.

    Args:
        governor: The governor's side of admissions.
        now_ms: Wall clock, epoch milliseconds.
        new_id: A fresh id, unique and sortable by time, of at most 40 characters of an identifier.
        new_secret: A fresh unguessable string of at most 64 characters.
        peers: The daemons that share the store; None where this is the only one that ever uses it.
        chance: A random number from 0 to 1, for what must not happen to all at once.
    """

    def __init__(
        self,
        *,
        store: Store,
        bus: Bus,
        operations: Operations,
        governor: Admission,
        claims: Claims,
        config: CoordinatorConfig,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
        new_secret: Callable[[], str],
        peers: Peers | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._bus = bus
        self._operations = operations
        self._governor = governor
        self._claims = claims
        self._config = config
        self._now_ms = now_ms
        self._new_id = new_id
        self._new_secret = new_secret
        self._peers = peers
        self._numbers = None if peers is None else Numbers(store)
        # This daemon gives out no work while it is drained (`gates.draining`); how many claims it has given back at the end of it.
        self._host_drain: Pause = {}
        self._host_released = 0
        self._host_empty = trio.Event()
        self._chance = chance
        # Which daemon watches it shows in a binding's id, so that the others can say whether anybody does.
        binding_id = new_id if peers is None else lambda: f"{peers.daemon_id}/{new_id()}"
        self._bindings = Bindings(limit=config.bindings, limit_per_uid=config.bindings_per_uid, new_id=binding_id)
        self.board = Board(
            store,
            operations.decoded,
            self._bindings,
            now_ms=now_ms,
            retention_ms=config.retention_ms,
            retained_tasks=config.retained_tasks,
            ageing_ms=config.ageing_ms,
            board_history=config.board_history,
            patience_s=None if peers is None else _WATCH_PATIENCE_S,
        )
        self._retired = RetiredLeases(store)
        # What ended in a crash was given back, or there is no room to do that: reads and releases need not wait for it.
        self._may_serve = trio.Event()

    def _task(self, tx: Tx, task_id: str) -> TaskRecord:
        check_identifier(task_id, "task_id")
        task = tx.read(TASKS + task_id, TaskRecord.from_bytes)
        if task is None:
            raise self._no_task(task_id)
        return task

    async def _read_tasks(self, task_ids: list[str]) -> list[tuple[KeyValue | None, KeyValue | None]]:
        """Each task and its claim as they stand together, durable."""
        found: list[KeyValue | None] = []
        for start in range(0, len(task_ids), _READ_AT_ONCE):
            keys = [(TASKS + name, CLAIMS + name) for name in task_ids[start : start + _READ_AT_ONCE]]
            done = await self._store.txn(Txn(then=[Get(key) for pair in keys for key in pair]))
            found += done.values
            await trio.lowlevel.checkpoint()
        return list(zip(found[::2], found[1::2], strict=True))

    def _no_task(self, task_id: str) -> NotFound:
        return NotFound(
            f"there is no task {task_id} among {len(self.board.tasks)}",
            data={"task_id": task_id, "tasks": len(self.board.tasks)},
            would_change=[{"by": "self", "what": "look it up", "call": "ifbus task ls --grep WORD"}],
        )

    def _dependency(self, tx: Tx, task_id: str, name: str) -> TaskRecord | None:
        """One that a task depends on, None if it was completed and is gone: only such ones are ever removed while others wait for them."""
        record = tx.read(TASKS + name, TaskRecord.from_bytes)
        stored, own = tx.get_stored(TASKS + name), tx.get_stored(TASKS + task_id)
        # One of that name that is younger than who depends on it is another one.
        is_another = stored is not None and own is not None and stored.create_revision > own.create_revision
        return None if is_another else record

    def _waits_for(self, tx: Tx, task_id: str, task: TaskRecord) -> dict[str, str]:
        """The dependencies that are not completed, with their states, read inside the transaction."""
        waiting = {}
        for name in task.depends_on:
            record = self._dependency(tx, task_id, name)
            if record is None or record.state == COMPLETED:
                continue
            if record.state != OPEN and task.options and task.options.get("on_dependency_failure") == "run":
                continue
            entry = self.board.tasks.get(name)
            waiting[name] = entry.shown if entry else record.state
        return waiting

    def _view(
        self, task_id: str, task: TaskRecord, claim: ClaimRecord | None = None, token: int | None = None
    ) -> Answer:
        return rules.task_view(
            task_id,
            task,
            now_ms=self._now_ms(),
            claim=claim,
            token=token,
            waits_for=self.board.waits_for(task_id),
            busy=self.board.busy_of(task_id) if task.resources else None,
        )

    def _drop_claim(self, tx: Tx, task_id: str, claim: ClaimRecord) -> None:
        """End a claim at commit, and with it what hangs on it: no read is needed, it all lives and ends with the claim's key."""
        tx.delete(CLAIMS + task_id)
        for key in claim.ends_with:
            tx.delete(key)

    def _put_message(self, tx: Tx, message: MessageRecord, *swarm_ids: str) -> None:
        """Put a letter into inboxes, one per transaction and inbox; their listeners hear of it from the board."""
        name, data = self._new_id(), pack(message.to_map())
        for swarm_id in swarm_ids:
            tx.put_new(f"{INBOX}{swarm_id}/{name}", data)

    def _has_room(self, swarm_id: str) -> bool:
        # By the board, so what arrives together may pass the bound together; that does no harm.
        return self.board.mail.waiting(swarm_id) < self._config.inbox_messages

    def _may_send(self, uid: int) -> bool:
        return self.board.mail.bytes_of(uid) < self._config.letter_bytes_per_uid

    def _require_may_send(self, uid: int, what: str) -> None:
        if not self._may_send(uid):
            used, allowed = self.board.mail.bytes_of(uid), self._config.letter_bytes_per_uid
            remedy = f"those who have letters of uid {uid} acknowledge them"
            raise limit_exceeded(what, "letter_bytes_per_uid", used, allowed, remedy)

    def _require_lease(self, uid: int, what: str) -> None:
        used, allowed = self.board.leases_of(uid), self._config.leases_per_uid
        if used >= allowed:
            remedy = "end sessions or claims; a claim without a lease_ms of its own lives on its session's lease"
            raise limit_exceeded(what, "leases_per_uid", used, allowed, remedy)

    def _require_fits(self, tx: Tx, what: str, remedy: str) -> None:
        """Raise LimitExceeded where a batch takes more keys than a commit."""
        used, allowed = max(len(tx.compares), len(tx.writes)), rules.MAX_BATCH_KEYS
        if used > allowed:
            raise limit_exceeded(what, "batch_keys", used, allowed, remedy)

    def _publish_board(self, tx: Tx, event: str, task_id: str, **more: Any) -> None:
        tx.publish("board", {"event": event, "task_id": task_id, "at_ms": self._now_ms(), **more})

    async def _refuse(self, caller: Caller, op: str, target: str, error: IfbusError) -> IfbusError:
        """Put a refusal that no operation makes on record, to be raised."""
        if not error.retryable:
            await self._operations.witness_refusal(caller, f"coordinator.{op}", target, error)
        return error

    def _goes_first(self) -> bool:
        """Whether to do at once what every daemon of a cluster sees that has to be done."""
        return self._peers is None or self._peers.is_first

    async def _surely(self, op: str, target: str, body: Body) -> bool:
        """Do what nobody else will, however long the store takes; False if there was nothing to do."""
        while True:
            try:
                await self._operations.run(ITSELF, op, target, body)
            except NothingToDo:
                return False
            except IfbusError as error:
                if not error.retryable:
                    return False  # the task is gone, and with it whatever was held; the refusal is on record
                if error.data.get("reason") == "storage_full":
                    self._may_serve.set()
                await trio.sleep(_RETRY_S)  # the store has no room, or does not answer: it must come back or end us
            except (KeyError, TypeError, ValueError, AttributeError):
                # Another host may write what we cannot read (THREATS T6): that stays as it is, the daemon goes on.
                _log.exception(
                    "a stored record cannot be read, so something is left undone", extra={"op": op, "target": target}
                )
                return False
            else:
                return True

    async def _bind(
        self, caller: Caller, bind: str | None, op: str, target: str
    ) -> AbstractContextManager[Holder | None]:
        """As `Bindings.use`; a refusal is put on record."""
        try:
            return self._bindings.use(caller, bind)
        except IfbusError as error:
            raise await self._refuse(caller, op, target, error) from None

    def _bound_view(self, bound: Answer) -> Answer | None:
        """What a stored holder says to people, None if it is the lease alone."""
        if "id" not in bound:
            return None
        shown = {name: value for name, value in bound.items() if name != "id"}
        return {**shown, "watched": self._is_watched(bound["id"])}

    def _is_watched(self, binding_id: str) -> bool:
        """Whether some daemon would notice its end."""
        if self._bindings.is_watched(binding_id):
            return True
        daemon_id = binding_id.partition("/")[0]
        return self._peers is not None and daemon_id != self._peers.daemon_id and self._peers.is_there(daemon_id)

    def _bound_now(self, claim: ClaimRecord) -> Answer | None:
        """What frees a claim at once, for people, by the board."""
        session = self.board.sessions.get(claim.swarm_id)
        return self._bound_view(rules.bound_of(claim, None if session is None else session[0]))

    def _check_lease(self, lease_ms: int | None) -> None:
        if lease_ms is not None:
            rules.check_span("lease_ms", lease_ms, self._config.min_lease_ms, self._config.max_lease_ms)


def limit_exceeded(what: str, limit: str, used: int, allowed: int, remedy: str) -> LimitExceeded:
    """The refusal for a bound of the configuration or of a message."""
    return LimitExceeded(
        f"cannot {what}: {limit} is {used} of {allowed}",
        data={"limit": limit, "used": used, "allowed": allowed},
        would_change=[{"by": "self", "what": remedy}],
    )


def packed_size(value: Any) -> int:
    """Bytes of a plain value as stored."""
    return len(pack(value))
