"""Open questions, their answers, and who waits for a resource, in memory: a view like the board, which feeds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ifbusd.coordinator.model import QuestionRecord, WaitRecord
from ifbusd.coordinator.waits import rules


class Waits:
    """The mutable state is the records by id, indexes of them by node, swarm and user, and who waits for an answer."""

    def __init__(self) -> None:
        self.questions: dict[str, QuestionRecord] = {}  # that nobody has answered
        self.answers: dict[str, QuestionRecord] = {}
        self.for_resources: dict[str, WaitRecord] = {}
        self._of_node: dict[str, dict[str, None]] = {}
        self._answers_of: dict[str, dict[str, None]] = {}
        self._count_of: dict[int, int] = {}
        self._waiting: dict[str, dict[trio.Event, None]] = {}

    def clear(self) -> None:
        """Forget the records; whoever waits goes on waiting."""
        for records in (self.questions, self.answers, self.for_resources):
            records.clear()
        self._of_node.clear()
        self._answers_of.clear()
        self._count_of.clear()

    def put_question(self, question_id: str, record: QuestionRecord) -> None:
        """It is open."""
        self.drop_question(question_id)
        self.questions[question_id] = record
        self._of_node.setdefault(record.source, {})[question_id] = None
        self._count_of[record.uid] = self._count_of.get(record.uid, 0) + 1
        self._wake(question_id)

    def drop_question(self, question_id: str) -> None:
        """It was answered, or ended with what it was asked for."""
        record = self.questions.pop(question_id, None)
        if record is not None:
            self._forget(record.source, question_id)
            self._count_of[record.uid] -= 1
            if not self._count_of[record.uid]:
                del self._count_of[record.uid]
        self._wake(question_id)

    def put_answer(self, question_id: str, record: QuestionRecord) -> None:
        """It was answered."""
        self.drop_answer(question_id)
        self.answers[question_id] = record
        self._answers_of.setdefault(record.swarm_id, {})[question_id] = None
        self._wake(question_id)

    def drop_answer(self, question_id: str) -> None:
        """The answer is no longer kept."""
        record = self.answers.pop(question_id, None)
        if record is not None:
            answers = self._answers_of[record.swarm_id]
            del answers[question_id]
            if not answers:
                del self._answers_of[record.swarm_id]

    def put_wait(self, wait_id: str, record: WaitRecord) -> None:
        """Somebody waits for resources."""
        self.drop_wait(wait_id)
        self.for_resources[wait_id] = record
        self._of_node.setdefault(record.source, {})[wait_id] = None

    def drop_wait(self, wait_id: str) -> None:
        """And no longer."""
        record = self.for_resources.pop(wait_id, None)
        if record is not None:
            self._forget(record.source, wait_id)

    def _forget(self, node: str, record_id: str) -> None:
        records = self._of_node[node]
        del records[record_id]
        if not records:
            del self._of_node[node]

    @property
    def waiting_nodes(self) -> list[str]:
        """Whoever waits for a reply, an approval or a resource, in order of the first wait."""
        return list(self._of_node)

    def waits_of(self, node: str) -> list[str]:
        """The ids of a node's questions and waits."""
        return list(self._of_node.get(node, ()))

    def answers_of(self, swarm_id: str) -> list[str]:
        """The ids of the answers that a swarm has got, the oldest first."""
        return list(self._answers_of.get(swarm_id, ()))

    def count_of(self, uid: int) -> int:
        """How many open questions a user's swarms have asked."""
        return self._count_of.get(uid, 0)

    @contextmanager
    def waiting(self, question_id: str) -> Iterator[trio.Event]:
        """An event that is set when something happens to a question: look before waiting, then again."""
        event = trio.Event()
        self._waiting.setdefault(question_id, {})[event] = None
        try:
            yield event
        finally:
            events = self._waiting[question_id]
            del events[event]
            if not events:
                del self._waiting[question_id]

    def wake_all(self) -> None:
        """Everything was read anew, so something may have gone unseen: let all that wait look again."""
        for question_id in tuple(self._waiting):
            self._wake(question_id)

    def _wake(self, question_id: str) -> None:
        for event in self._waiting.get(question_id, ()):
            event.set()


def edges_of_record(record: QuestionRecord, question_id: str) -> rules.Edge:
    """What an open question makes its author wait for."""
    if record.to == rules.PERSON:
        return rules.Edge(record.source, rules.PERSON, "approval", record.at_ms, question_id)
    return rules.Edge(record.source, rules.swarm(record.to), "reply", record.at_ms, question_id)
