"""Inboxes: what is pushed lands here, durable, before anybody is told (promise 3)."""

from __future__ import annotations

from typing import Any

import attrs

from ifbus.errors import InvalidRequest, LimitExceeded, NotReady
from ifbus.models import check_capabilities, check_identifier
from ifbusd.bus.base import Message
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core, packed_size
from ifbusd.coordinator.model import CLAIMS, INBOX, TASKS, MessageRecord
from ifbusd.identity import Caller, Session
from ifbusd.operation import Tx

_MAX_BODY_BYTES = 16 << 10
# So many inboxes are written in one transaction; etcd takes 128 operations.
_BROADCAST_CHUNK = 100


class Inbox(Core):
    """Push, broadcast, read, subscribe, acknowledge."""

    async def push_task_to_swarm(self, caller: Caller, task_id: str, swarm_id: str) -> Answer:
        """See `interface.Coordinator.push_task_to_swarm`."""
        check_identifier(swarm_id, "swarm_id")

        async def push(tx: Tx) -> Answer:
            task = await self._task(tx, task_id)
            if await tx.get_stored(CLAIMS + task_id) is not None:
                raise NotReady(f"cannot push {task_id}: it is claimed", data={"task_id": task_id, "state": "claimed"})
            refusal = rules.not_ready(task_id, task, await self._waits_for(tx, task))
            if refusal is not None:
                raise refusal
            await self._governor.check_route(tx, swarm_id, frozenset(task.capabilities))
            if task.route and task.route != swarm_id:
                tx.delete(f"{INBOX}{task.route}/task-{task_id}")
            self._require_room(swarm_id)
            tx.put(TASKS + task_id, attrs.evolve(task, route=swarm_id).to_map())
            body = {"task_id": task_id, "title": task.title, "capabilities": task.capabilities}
            message = MessageRecord(kind="task", body=body, at_ms=self._now_ms())
            self._put_message(tx, swarm_id, message, name=f"task-{task_id}")
            tx.detail["swarm"] = swarm_id
            self._publish_board(tx, "pushed", task_id, swarm_id=swarm_id)
            return {}

        answer = await self._operations.run(caller, "coordinator.push_task_to_swarm", task_id, push)
        return {"seq": answer["receipt"]["revision"], **answer}

    async def broadcast(
        self,
        caller: Caller,
        topic: str,
        body: dict[str, Any],
        *,
        capabilities: list[str] | None = None,
        sender: str = "",
    ) -> Answer:
        """See `interface.Coordinator.broadcast`."""
        check_identifier(topic, "topic")
        wanted = check_capabilities(capabilities or ())
        if packed_size(body) > _MAX_BODY_BYTES:
            raise LimitExceeded(
                f"cannot broadcast: the body is {packed_size(body)} bytes packed, at most {_MAX_BODY_BYTES} are allowed",
                data={"limit": "body_bytes", "used": packed_size(body), "allowed": _MAX_BODY_BYTES},
            )
        at_ms = self._now_ms()
        message = MessageRecord(kind="broadcast", body={"topic": topic, **body}, sender=sender, at_ms=at_ms)
        recipients = [swarm_id for swarm_id in self._governor.swarms_with(wanted) if swarm_id != sender]
        answer: Answer = {}
        for start in range(0, max(1, len(recipients)), _BROADCAST_CHUNK):
            chunk = recipients[start : start + _BROADCAST_CHUNK]
            key = caller.idempotency_key
            part = caller if key is None or not start else attrs.evolve(caller, idempotency_key=f"{key}#{start}")

            async def send(tx: Tx, chunk: list[str] = chunk) -> Answer:
                if sender:
                    await self._governor.require_owner(tx, caller, sender)
                for swarm_id in chunk:
                    self._require_room(swarm_id)
                    self._put_message(tx, swarm_id, message)
                tx.detail.update(sender=sender, recipients=len(chunk))
                return {}

            answer = await self._operations.run(part, "coordinator.broadcast", topic, send)
        broadcast = {
            "topic": topic,
            "body": body,
            "sender": sender,
            "capabilities": sorted(wanted),
            "at_ms": at_ms,
            "delivered_to": len(recipients),
        }
        return {"broadcast": broadcast, **answer}

    def _require_room(self, swarm_id: str) -> None:
        waiting = len(self.board.inbox.get(swarm_id, ()))
        if waiting >= self._config.inbox_messages:
            raise LimitExceeded(
                f"cannot send to {swarm_id}: {waiting} messages wait in its inbox",
                data={"limit": "inbox_messages", "used": waiting, "allowed": self._config.inbox_messages},
                would_change=[{"by": "other", "what": f"{swarm_id} acknowledges its messages"}],
            )

    async def read_inbox(self, caller: Caller, swarm_id: str, *, after_seq: int = 0, limit: int = 50) -> Answer:
        """See `interface.Coordinator.read_inbox`."""
        rules.check_span("limit", limit, 1, 200)
        await self._governor.require_owner(Tx(self._store), caller, swarm_id)
        await self._store.barrier()
        await self.board.catch_up()
        letters = self._letters(swarm_id, after_seq)
        return {"messages": letters[:limit], "has_more": len(letters) > limit}

    def _letters(self, swarm_id: str, after_seq: int) -> list[Answer]:
        waiting = self.board.inbox.get(swarm_id, {}).values()
        ordered = sorted((item for item in waiting if item[0] > after_seq), key=lambda item: item[0])
        return [{"seq": seq, **message.to_map()} for seq, message in ordered]

    async def subscribe_inbox(self, caller: Caller, swarm_id: str, *, after_seq: int = 0) -> Answer:
        """See `interface.Coordinator.subscribe_inbox`."""
        await self._governor.require_owner(Tx(self._store), caller, swarm_id)
        session = _session(caller)
        await self._store.barrier()
        await self.board.catch_up()
        # No await from here on: what is in the inbox now is sent from it, what comes later by the bus, each once.
        letters = self._letters(swarm_id, after_seq)
        for letter in letters:
            session.notify("inbox", [{**letter, "swarm_id": swarm_id}])
        seen = max((letter["seq"] for letter in letters), default=after_seq)

        def deliver(_: str, message: Message) -> None:
            letter = {name: value for name, value in message.items() if name != "revision"}
            if message["revision"] > seen:
                session.notify("inbox", [{**letter, "seq": message["revision"], "swarm_id": swarm_id}])

        session.on_close(self._bus.subscribe(f"inbox.{swarm_id}", deliver).close)
        return {"swarm_id": swarm_id, "replayed": len(letters)}

    async def acknowledge(self, caller: Caller, swarm_id: str, seq: int) -> Answer:
        """See `interface.Coordinator.acknowledge`."""
        await self.board.catch_up()

        async def drop(tx: Tx) -> Answer:
            await self._governor.require_owner(tx, caller, swarm_id)
            read = [
                key
                for key, (number, message) in self.board.inbox.get(swarm_id, {}).items()
                if number <= seq and message.kind != "task"
            ]
            for key in read:
                tx.delete(key)
            tx.detail["seq"] = seq
            return {"dropped": len(read)}

        return await self._operations.run(caller, "coordinator.acknowledge", swarm_id, drop)

    async def subscribe_board(self, caller: Caller) -> Answer:
        """See `interface.Coordinator.subscribe_board`."""
        session = _session(caller)
        session.on_close(self._bus.subscribe("board", lambda _, message: session.notify("board", [message])).close)
        await self._store.barrier()
        return {"revision": self._store.revision}


def _session(caller: Caller) -> Session:
    if caller.session is None:
        raise InvalidRequest("cannot subscribe without a connection")
    return caller.session
