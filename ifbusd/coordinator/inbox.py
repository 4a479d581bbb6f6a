"""Inboxes: what is pushed lands here, durable, before anybody is told (promise 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from ifbus.errors import InvalidRequest, NotKept
from ifbus.models import check_capabilities, check_identifier
from ifbusd.codec import how_many_fit, pack
from ifbusd.coordinator import history as history_of
from ifbusd.coordinator import rules
from ifbusd.coordinator.audience import rules as audience
from ifbusd.coordinator.core import Answer, Core, limit_exceeded, packed_size
from ifbusd.coordinator.gates import checks as gates
from ifbusd.coordinator.mailboxes import Listener
from ifbusd.coordinator.model import CLAIMS, INBOX, TASKS, ClaimRecord, MessageRecord
from ifbusd.identity import Caller, Session
from ifbusd.operation import Tx

_MAX_BODY_BYTES = 16 << 10
# So many letters are written or dropped in one transaction; etcd takes 128 operations.
_CHUNK = 100
# So many letters of a backlog, at most 24 KiB each, are sent before the reader has to take them.
_REPLAYED_AT_ONCE = 16
# A broadcast names at most so many swarms whose inboxes were full.
_NAMED = 20


class Inbox(Core):
    """Push, broadcast, read, subscribe, acknowledge. The mutable state is the open subscriptions by connection and subject."""

    def __init__(self, **parts: Any) -> None:
        """See `Core`."""
        super().__init__(**parts)
        self._subscriptions: dict[Session, dict[str, Callable[[], None]]] = {}
        self._told: tuple[MessageRecord | None, Answer] = (None, {})  # the last letter, which may have gone to many

    async def push_task_to_swarm(self, caller: Caller, task_id: str, swarm_id: str) -> Answer:
        """See `interface.Coordinator.push_task_to_swarm`."""
        check_identifier(swarm_id, "swarm_id")

        await self.board.show_told()

        def push(tx: Tx) -> Answer:
            task = self._task(tx, task_id)
            held = tx.get_stored(CLAIMS + task_id)
            if held is not None:
                raise rules.not_pushable(task_id, ClaimRecord.from_bytes(held.value), held.create_revision)
            refusal = rules.not_ready(task_id, task, self._waits_for(tx, task_id, task), self._now_ms())
            if refusal is not None:
                raise refusal
            gates.require_open(tx, task_id, task)
            self._governor.check_route(tx, swarm_id, frozenset(task.capabilities))
            name = f"task-{task_id}"
            if task.route == swarm_id:
                there = tx.get_stored(f"{INBOX}{swarm_id}/{name}")
                if there is not None:
                    return {"seq": there.create_revision}
            elif task.route:
                if not caller.is_operator and caller.uid != task.uid:
                    self._governor.require_owner(tx, caller, task.route)  # nobody else takes its letter away
                tx.delete(f"{INBOX}{task.route}/{name}")
            self._require_may_send(caller.uid, f"push {task_id} to {swarm_id}")
            waiting, allowed = self.board.mail.waiting(swarm_id), self._config.inbox_messages
            if waiting >= allowed:
                raise limit_exceeded(
                    f"push {task_id} to {swarm_id}",
                    "inbox_messages",
                    waiting,
                    allowed,
                    f"another swarm, or {swarm_id} acknowledges its messages",
                )
            pushed = task.evolve(route=swarm_id)
            tx.put(TASKS + task_id, pushed.to_map(), decoded=pushed)
            body = {"task_id": task_id, "title": task.title, "capabilities": task.capabilities}
            message = MessageRecord(kind="task", body=body, uid=caller.uid, at_ms=self._now_ms())
            tx.put_new(f"{INBOX}{swarm_id}/{name}", pack(message.to_map()))  # where there was one, `route` says so
            tx.detail["swarm"] = swarm_id
            self._publish_board(tx, "pushed", task_id, swarm_id=swarm_id)
            return {}

        answer = await self._operations.run(caller, "coordinator.push_task_to_swarm", task_id, push)
        self._store.tell()
        return {"seq": answer["receipt"]["revision"], "delivered": self.board.mail.listeners(swarm_id), **answer}

    async def broadcast(
        self,
        caller: Caller,
        topic: str,
        body: dict[str, Any],
        *,
        capabilities: list[str] | None = None,
        sender: str = "",
        expression: str = "",
        subscribers: bool = False,
    ) -> Answer:
        """See `interface.Coordinator.broadcast`."""
        check_identifier(topic, "topic")
        wanted = check_capabilities(capabilities or ())
        meant = audience.parse(expression) if expression else None
        if packed_size(body) > _MAX_BODY_BYTES:
            raise limit_exceeded(
                "broadcast",
                "body_bytes",
                packed_size(body),
                _MAX_BODY_BYTES,
                "a shorter body; it can name where more is",
            )
        await self.board.show_told()
        at_ms = self._now_ms()
        message = MessageRecord(
            kind="broadcast", body={**body, "topic": topic}, uid=caller.uid, sender=sender, at_ms=at_ms
        )
        answer: Answer = {}
        delivered, full, last, n = 0, [], "", 0
        while True:

            def send(tx: Tx, last: str = last) -> Answer:
                if sender:
                    self._governor.require_owner(tx, caller, sender)
                if not last:
                    self._require_may_send(caller.uid, "broadcast")
                # Sorted, and the next chunk goes on after the last name: a retry with the same key meets nobody twice.
                named = self._audience(topic if subscribers else "", wanted, meant)
                left = [name for name in named if name > last and name != sender]
                chunk = left[:_CHUNK]
                # Some have it already: who is beyond what the sender may send now is left out like a full inbox.
                room = [name for name in chunk if self._has_room(name)] if self._may_send(caller.uid) else []
                self._put_message(tx, message, *room)
                tx.detail.update(sender=sender, recipients=len(room))
                return {
                    "delivered": len(room),
                    "full": sorted(set(chunk) - set(room)),
                    "last": chunk[-1] if len(left) > len(chunk) else "",
                }

            part = caller if not n or caller.idempotency_key is None else _part(caller, n)
            answer = await self._operations.run(part, "coordinator.broadcast", topic, send)
            self._store.tell()
            delivered += answer.pop("delivered")
            full += answer.pop("full")
            last, n = answer.pop("last"), n + 1
            if not last:
                break
            await self.board.show_told()  # the next chunk is judged by what this one has added
        broadcast = {
            "topic": topic,
            "body": body,
            "sender": sender,
            "capabilities": sorted(wanted),
            "expression": expression,
            "at_ms": at_ms,
            "delivered_to": delivered,
        }
        return {"broadcast": broadcast, "full": len(full), "full_inboxes": full[:_NAMED], **answer}

    def _audience(self, topic: str, wanted: frozenset[str], meant: audience.Expression | None) -> list[str]:
        """Whom a broadcast is for, by name."""
        if meant is None:
            named = self._governor.swarms_with(wanted)
        else:
            named = self._governor.swarms_matching(lambda can: wanted <= can and meant.matches(can))
        if not topic:
            return named
        fit = frozenset(named)
        return [name for name in self.board.topics.subscribers(topic) if name in fit]

    async def read_inbox(self, caller: Caller, swarm_id: str, *, after_seq: int = 0, limit: int = 50) -> Answer:
        """See `interface.Coordinator.read_inbox`."""
        rules.check_limit(limit)
        await self._operations.look(lambda tx: self._governor.require_owner(tx, caller, swarm_id))
        await self.board.catch_up()
        letters = self.board.mail.letters(swarm_id, after_seq)
        messages = [{"seq": seq, **message.to_map()} for seq, message in letters[:limit]]
        messages = messages[: how_many_fit(messages)]
        return {"messages": messages, "has_more": len(letters) > len(messages)}

    async def subscribe_inbox(self, caller: Caller, swarm_id: str, *, after_seq: int = 0) -> Answer:
        """See `interface.Coordinator.subscribe_inbox`."""
        await self._operations.look(lambda tx: self._governor.require_owner(tx, caller, swarm_id))
        session = _session(caller)
        await self.board.catch_up()

        def tell(seq: int, message: MessageRecord) -> None:
            session.notify("inbox", [{"seq": seq, **self._map_of(message), "swarm_id": swarm_id}])

        subject = f"inbox.{swarm_id}"
        self._unsubscribe(session, subject)
        # A full inbox is longer than what may wait for a reader, so it is told no faster than it is read.
        seen, replayed = after_seq, 0
        while len(letters := self.board.mail.letters(swarm_id, seen)) > _REPLAYED_AT_ONCE:
            for seen, message in letters[:_REPLAYED_AT_ONCE]:
                tell(seen, message)
            replayed += _REPLAYED_AT_ONCE
            await session.drained()
        # No await from here on: what still waits is told now, what comes later as it comes, each once.
        listener = Listener(tell=tell, seen=seen)
        replayed += self.board.mail.listen(swarm_id, listener)
        self._subscribe(session, subject, lambda: self.board.mail.stop_listening(swarm_id, listener))
        return {"swarm_id": swarm_id, "replayed": replayed}

    def _map_of(self, message: MessageRecord) -> Answer:
        if message is not self._told[0]:
            self._told = (message, message.to_map())
        return self._told[1]

    async def acknowledge(self, caller: Caller, swarm_id: str, seq: int) -> Answer:
        """See `interface.Coordinator.acknowledge`."""
        dropped, n = 0, 0
        while True:
            await self.board.catch_up()

            def drop(tx: Tx) -> Answer:
                self._governor.require_owner(tx, caller, swarm_id)
                read = [
                    key
                    for key, (number, message) in self.board.mail.by_key(swarm_id).items()
                    if number <= seq and message.kind != "task"
                ]
                for key in read[:_CHUNK]:
                    tx.delete(key)
                tx.deletes_suffice = True
                tx.detail["seq"] = seq
                return {"dropped": len(read[:_CHUNK]), "has_more": len(read) > _CHUNK}

            part = caller if not n or caller.idempotency_key is None else _part(caller, n)
            answer = await self._operations.run(part, "coordinator.acknowledge", swarm_id, drop)
            dropped, n = dropped + answer["dropped"], n + 1
            if not answer.pop("has_more"):
                return {**answer, "dropped": dropped}

    async def subscribe_board(self, caller: Caller, *, after_seq: int | None = None) -> Answer:
        """See `interface.Coordinator.subscribe_board`."""
        session = _session(caller)
        await self.board.catch_up()
        self._unsubscribe(session, "board")
        history = self.board.history
        seen, replayed = history.newest if after_seq is None else after_seq, 0
        try:
            while len(missed := list(history.after(seen))) > _REPLAYED_AT_ONCE:
                # It is told no faster than it is read.
                for message in missed[:_REPLAYED_AT_ONCE]:
                    seen = message["seq"]
                    session.notify("board", [message])
                replayed += _REPLAYED_AT_ONCE
                await session.drained()
        except NotKept as error:
            raise await self._refuse(caller, "subscribe_board", "", error) from None
        # No await from here on: what is left is told now, what comes later as it comes, each once.
        listener = history_of.Listener(tell=lambda message: session.notify("board", [message]), seen=seen)
        history.listen(listener)
        self._subscribe(session, "board", lambda: history.stop_listening(listener))
        return {"revision": self._store.told_revision, "seq": history.newest, "replayed": replayed + len(missed)}

    def _subscribe(self, session: Session, subject: str, close: Callable[[], None]) -> None:
        """Note how to end a connection's subscription; one that it had to the same subject ends now."""
        subjects = self._subscriptions.get(session)
        if subjects is None:
            subjects = self._subscriptions[session] = {}
            session.on_close(lambda: self._unsubscribe_all(session))
        self._unsubscribe(session, subject)
        if session in self._subscriptions:
            subjects[subject] = close
        else:
            close()  # the connection had ended already

    def _unsubscribe(self, session: Session, subject: str) -> None:
        former = self._subscriptions.get(session, {}).pop(subject, None)
        if former is not None:
            former()

    def _unsubscribe_all(self, session: Session) -> None:
        for close in self._subscriptions.pop(session, {}).values():
            close()


def _part(caller: Caller, n: int) -> Caller:
    """The caller of the n-th further transaction of a request, with an idempotency key of its own."""
    # With a character that nobody types: it must not be the key of another request.
    return attrs.evolve(caller, idempotency_key=f"{caller.idempotency_key}\x1f{n}")


def _session(caller: Caller) -> Session:
    if caller.session is None:
        raise InvalidRequest("cannot subscribe without a connection")
    return caller.session
