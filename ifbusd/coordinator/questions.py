"""Questions that somebody waits to have answered: by another swarm, or by a person (an approval). Durable, and waited for here.

A question hangs on the lease of the claim or session that it is asked for. Answered, it moves from ``questions/`` or
``approvals/`` to ``answers/`` on the same lease, so that whoever asked finds it after a restart, its own or the daemon's.
"""

from __future__ import annotations

from typing import Any

import trio

from ifbus.errors import IfbusError, InvalidParams, InvalidRequest, NotFound, PermissionDenied
from ifbus.models import check_identifier
from ifbusd.codec import how_many_fit
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, limit_exceeded, packed_size
from ifbusd.coordinator.model import (
    ANSWERS,
    APPROVALS,
    QUESTIONS,
    SESSIONS,
    MessageRecord,
    QuestionRecord,
)
from ifbusd.coordinator.waiting import Waiting
from ifbusd.coordinator.waits import rules as waits
from ifbusd.coordinator.waits.rules import Help
from ifbusd.coordinator.waits.view import edges_of_record
from ifbusd.identity import Caller
from ifbusd.operation import Tx
from ifbusd.store.base import LeaseNotFound

_MAX_ANSWER_BYTES = 16 << 10
# The newest answers of a swarm are kept with its session; beyond these the oldest goes when it asks again.
_ANSWERS_KEPT = 64
# So many of them go in one transaction: more may have come since it last asked, and etcd takes 128 operations.
_DROPPED_AT_ONCE = 64
# A letter quotes so much of the question.
_QUOTED = 200
# So many tasks that help would free are named.
_FREED = 20
# An id says whom the question is for, so that its key follows from it.
_FOR_PERSON, _FOR_SWARM = "A-", "Q-"


class Questions(Waiting):
    """Ask, reply, wait for the answer, list; and the graph of all that wait."""

    async def ask(
        self,
        caller: Caller,
        swarm_id: str,
        to: str,
        question: str,
        *,
        task_id: str | None = None,
        token: int | None = None,
        wait_ms: int = 0,
    ) -> Answer:
        """See `interface.Coordinator.ask`."""
        check_identifier(to, "to")
        rules.check_text("question", question, rules.MAX_ERROR)
        rules.check_span("wait_ms", wait_ms, 0, self._config.max_wait_ms)
        if not question:
            raise InvalidParams("a question has words", data={"param": "question"})
        if to == swarm_id:
            raise InvalidParams(f"a question is for somebody else, {to} would ask itself", data={"param": "to"})
        if (task_id is None) != (token is None):
            raise InvalidParams("task_id and token go together", data={"param": "token"})
        reply_id = f"{_FOR_PERSON if to == waits.PERSON else _FOR_SWARM}{self._new_id()}"
        granted: list[int] = []
        used: list[int] = []
        await self.board.catch_up()

        async def grant() -> int:
            granted.append(await self._store.grant(self._config.question_ms))
            return granted[0]

        def put_question(tx: Tx) -> Answer:
            used.clear()
            self._governor.require_owner(tx, caller, swarm_id)
            if to != waits.PERSON and self._governor.capabilities_of(to) is None:
                raise rules.no_swarm(to)
            used_up, allowed = self.board.waits.count_of(caller.uid), self._config.questions_per_uid
            if used_up >= allowed:
                remedy = "wait until some are answered: ifbus waits"
                raise limit_exceeded(f"ask {to}", "questions_per_uid", used_up, allowed, remedy)
            record = QuestionRecord(
                swarm_id=swarm_id, uid=caller.uid, to=to, question=question, at_ms=self._now_ms(), task_id=task_id or ""
            )
            session = tx.get_stored(SESSIONS + swarm_id)
            if task_id is not None:
                stored, claim = self._claims.require_holder(tx, task_id, swarm_id, token or 0)
                lease = stored.lease
                self._end_with_claim(
                    tx, f"ask for {task_id}", task_id, claim, lease=lease, keys=[_key(reply_id), ANSWERS + reply_id]
                )
            elif session is not None:
                lease = session.lease
            else:
                lease = tx.obtain("lease", grant)
                used[:] = granted
            self._add_edges(tx, f"ask {to}", [edges_of_record(record, reply_id)])
            tx.put(_key(reply_id), record.to_map(), lease=lease)
            for old in self.board.waits.answers_of(swarm_id)[: -_ANSWERS_KEPT + 1][:_DROPPED_AT_ONCE]:
                tx.delete(ANSWERS + old)
            view = _view(reply_id, record)
            if to == waits.PERSON:
                tx.publish("escalations", {"kind": "approval", **view, "reason": question[:_QUOTED]})
            else:
                self._send(tx, caller.uid, to, "question", view, swarm_id)
            tx.detail.update(swarm=swarm_id, to=to, reply=reply_id)
            if task_id is not None:
                tx.detail.update(task=task_id, token=token)
            return {"reply_id": reply_id}

        try:
            answer = await self._operations.run(caller, "coordinator.ask", swarm_id, put_question)
        except LeaseNotFound:  # of a claim or session that is just ending
            used.clear()
            error = rules.lease_over(task_id, token or 0) if task_id else rules.session_ended(swarm_id)
            raise await self._refuse(caller, "ask", swarm_id, error) from None
        except IfbusError:
            used.clear()
            raise
        finally:  # cancelled, it may have been committed: then the lease stays
            for lease in granted:
                if lease not in used:
                    self._retired.add(lease)
        if not await self.board.wait_for(answer["receipt"]["revision"]):
            return {**answer, "answered": False}  # asked it is, though the store does not tell
        return {**answer, **await self._answered(answer["reply_id"], wait_ms)}

    def _send(self, tx: Tx, uid: int, swarm_id: str, kind: str, body: Answer, sender: str) -> None:
        """A letter that must arrive: refused where there is no room for it."""
        self._require_may_send(uid, f"write to {swarm_id}")
        if not self._has_room(swarm_id):
            waiting, allowed = self.board.mail.waiting(swarm_id), self._config.inbox_messages
            remedy = f"{swarm_id} acknowledges its messages"
            raise limit_exceeded(f"write to {swarm_id}", "inbox_messages", waiting, allowed, remedy)
        letter = MessageRecord(kind=kind, body=body, uid=uid, sender=sender, at_ms=self._now_ms(), urgent=True)
        self._put_message(tx, letter, swarm_id)

    async def await_reply(self, caller: Caller, swarm_id: str, reply_id: str, *, wait_ms: int = 0) -> Answer:
        """See `interface.Coordinator.await_reply`."""
        check_identifier(reply_id, "reply_id")
        rules.check_span("wait_ms", wait_ms, 0, self._config.max_wait_ms)
        await self._operations.look(lambda tx: self._governor.require_owner(tx, caller, swarm_id))
        await self.board.catch_up()
        record = self.board.waits.questions.get(reply_id) or self.board.waits.answers.get(reply_id)
        if record is None or record.swarm_id != swarm_id:
            raise _no_question(reply_id, swarm_id)
        return await self._answered(reply_id, wait_ms)

    async def _answered(self, reply_id: str, wait_ms: int) -> Answer:
        """The answer, or that there is none within this time. Raises NotFound where the question has ended without one."""
        deadline = trio.current_time() + wait_ms / 1000
        while True:
            with self.board.waits.waiting(reply_id) as changed:
                answered = self.board.waits.answers.get(reply_id)
                if answered is not None:
                    return {"reply_id": reply_id, "answered": True, "answer": answered.answer}
                if reply_id not in self.board.waits.questions:
                    raise _no_question(reply_id, "")
                with trio.move_on_at(deadline):
                    await changed.wait()
            if not changed.is_set():
                return {"reply_id": reply_id, "answered": False}

    async def reply(self, caller: Caller, reply_id: str, answer: Any) -> Answer:
        """See `interface.Coordinator.reply`."""
        check_identifier(reply_id, "reply_id")
        size = packed_size(answer)
        if size > _MAX_ANSWER_BYTES:
            remedy = "a shorter answer; it can name where more is"
            raise limit_exceeded("reply", "answer_bytes", size, _MAX_ANSWER_BYTES, remedy)
        await self.board.show_told()

        def put_answer(tx: Tx) -> Answer:
            stored = tx.get_stored(_key(reply_id))
            if stored is None:
                raise _no_question(reply_id, "")
            record = QuestionRecord.from_bytes(stored.value)
            if record.to != waits.PERSON:
                self._governor.require_owner(tx, caller, record.to)
            elif not caller.is_operator:
                raise PermissionDenied(
                    f"cannot reply to {reply_id}: {record.swarm_id} asks for a person's word, and uid {caller.uid} has not the"
                    " operator role",
                    data={"reply_id": reply_id, "uid": caller.uid, "role": "operator"},
                    would_change=[{"by": "operator", "what": "an operator decides", "call": "ifbus approvals ls"}],
                )
            now_ms = self._now_ms()
            answered = record.evolve(answer=answer, answered_at_ms=now_ms, answered_by_uid=caller.uid)
            tx.delete(_key(reply_id))
            tx.put(ANSWERS + reply_id, answered.to_map(), lease=stored.lease)
            sender = "" if record.to == waits.PERSON else record.to
            if self._has_room(record.swarm_id) and self._may_send(caller.uid):  # else it is found by `await_reply`
                body = {"reply_id": reply_id, "question": record.question[:_QUOTED], "answer": answer}
                letter = MessageRecord(
                    kind="reply", body=body, uid=caller.uid, sender=sender, at_ms=now_ms, urgent=True
                )
                self._put_message(tx, letter, record.swarm_id)
            if record.to == waits.PERSON:
                tx.publish("escalations", {"kind": "approval_ended", **_view(reply_id, record), "reason": "answered"})
            tx.detail.update(swarm=record.swarm_id, by=record.to)
            return {"question": _view(reply_id, record)}

        try:
            return await self._operations.run(caller, "coordinator.reply", reply_id, put_answer)
        except LeaseNotFound:  # of whoever asked, which is just ending
            raise await self._refuse(caller, "reply", reply_id, _no_question(reply_id, "")) from None

    async def list_questions(self, caller: Caller, *, to: str = "", after: str = "", limit: int = 50) -> Answer:
        """See `interface.Coordinator.list_questions`."""
        rules.check_limit(limit)
        await self.board.catch_up()
        questions = self.board.waits.questions.items()
        matching = sorted((reply_id, record) for reply_id, record in questions if not to or record.to == to)
        shown = [(reply_id, record) for reply_id, record in matching if reply_id > after]
        views = [_view(reply_id, record) for reply_id, record in shown[:limit]]
        views = views[: how_many_fit(views)]
        more = len(shown) > len(views)
        return {"questions": views, "total": len(matching), "next": views[-1]["reply_id"] if views and more else None}

    # --- the graph -----------------------------------------------------------------------------------

    async def waits(self, caller: Caller, *, about: str = "", limit: int = 100) -> Answer:
        """See `interface.Coordinator.waits`."""
        rules.check_limit(limit)
        await self.board.catch_up()
        edges, has_more = self._graph.look(self._node(about), limit)
        views = [edge.to_wire() for edge in edges]
        fitting = how_many_fit(views)
        best = waits.best_help(edges[:fitting])
        help_view = None if best is None else _help_view(best)
        return {"edges": views[:fitting], "has_more": has_more or fitting < len(views), "help": help_view}

    def _node(self, about: str) -> str:
        if not about or about == waits.PERSON or about.partition(":")[0] in ("task", "swarm", "resource"):
            return about
        return waits.task(about)

    async def request_help(self, caller: Caller, swarm_id: str) -> Answer:
        """See `interface.Coordinator.request_help`."""
        await self.board.catch_up()

        def send(tx: Tx) -> Answer:
            self._governor.require_owner(tx, caller, swarm_id)
            edges, _ = self._graph.look(waits.swarm(swarm_id), rules.MAX_PAGE)
            best = waits.best_help(edges)
            if best is None:
                raise InvalidRequest(
                    f"cannot call for help: nothing that {swarm_id} works on waits for anybody",
                    data={"swarm_id": swarm_id},
                    would_change=[{"by": "self", "what": "see who waits", "call": "ifbus waits"}],
                )
            edge, view = best.edge, _help_view(best)
            asked = self._helper_at(edge.target)
            wait = "task waits" if best.holds_up == 1 else "tasks wait"
            body = {**view, "reason": f"{best.holds_up} {wait} for this"}
            if asked:
                self._send(tx, caller.uid, asked, "help", body, swarm_id)
            else:
                at_ms = self._now_ms()
                tx.publish("escalations", {"kind": "help", "swarm_id": swarm_id, "at_ms": at_ms, **body})
            tx.detail.update(asked=asked or waits.PERSON, edge=f"{edge.source} -> {edge.target}", frees=len(best.frees))
            return {**view, "asked": asked or waits.PERSON}

        return await self._operations.run(caller, "coordinator.request_help", swarm_id, send)

    def _helper_at(self, node: str) -> str:
        """The swarm that can act for a node; ``""`` for a person."""
        kind, _, name = node.partition(":")
        return self.board.holder_of(name) if kind == "task" else name


def _key(reply_id: str) -> str:
    return (APPROVALS if reply_id.startswith(_FOR_PERSON) else QUESTIONS) + reply_id


def _view(reply_id: str, record: QuestionRecord) -> Answer:
    """The wire's map of an open question (`ifbus.models.Question`)."""
    view: Answer = {
        "reply_id": reply_id,
        "swarm_id": record.swarm_id,
        "to": record.to,
        "question": record.question,
        "at_ms": record.at_ms,
    }
    if record.task_id:
        view["task_id"] = record.task_id
    return view


def _help_view(found: Help) -> Answer:
    return {"edge": found.edge.to_wire(), "frees": list(found.frees[:_FREED]), "holds_up": found.holds_up}


def _no_question(reply_id: str, swarm_id: str) -> NotFound:
    whose = f" of {swarm_id}" if swarm_id else ""
    return NotFound(
        f"there is no question {reply_id:.80}{whose}: it was answered, or ended with its claim or session",
        data={"reply_id": reply_id[:80]},
        would_change=[{"by": "self", "what": "see what is open", "call": "ifbus waits"}],
    )
