"""The fence: nobody but the current holder of a task acts on it (promise 1)."""

from __future__ import annotations

from ifbus.errors import NotOwner, StaleToken
from ifbus.models import check_identifier
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import CLAIMS, OPEN, SESSIONS, TASKS, ClaimRecord, SessionRecord, TaskRecord
from ifbusd.operation import Tx
from ifbusd.store.base import KeyValue


class Claims:
    """Reads claims inside other components' transactions; its reads become their compares, so the fence holds at commit."""

    def require_holder(self, tx: Tx, task_id: str, swarm_id: str, token: int) -> tuple[KeyValue, ClaimRecord]:
        """The claim, if `token` is its fencing token and `swarm_id` its holder.

        Raises:
            StaleToken: The claim of this token has ended; the figures say who holds the task now.
            NotOwner: The token is current and belongs to another swarm.
            InvalidParams: No task can have such an id.
        """
        check_identifier(task_id, "task_id")
        stored = tx.get_stored(CLAIMS + task_id)
        claim = tx.read(CLAIMS + task_id, ClaimRecord.from_bytes)
        if stored is None or claim is None:
            task = tx.read(TASKS + task_id, TaskRecord.from_bytes)
            why = life.why_ended(task, token)
            told = f" ({life.in_words(why)})" if why else ""
            is_over = task is not None and task.state != OPEN
            raise StaleToken(
                f"cannot act on {task_id}@{token}: that claim has ended{told} and nobody holds {task_id} now; nothing was written",
                data={"task_id": task_id, "token": token, "owner": None, **why},
                would_change=[
                    {"by": "self", "what": "stop this work and take another task", "call": "ifbus task next"}
                    if is_over
                    else {
                        "by": "self",
                        "what": "stop this work; claim the task again",
                        "call": f"ifbus task claim {task_id}",
                    }
                ],
            )
        if stored.create_revision != token:
            raise StaleToken(
                f"cannot act on {task_id}@{token}: that claim has ended, the task is now {task_id}@{stored.create_revision}"
                f" of {claim.swarm_id}; nothing was written",
                data={
                    "task_id": task_id,
                    "token": token,
                    "owner": claim.swarm_id,
                    "owner_token": stored.create_revision,
                },
                would_change=[
                    {"by": "self", "what": "stop this work and take another task", "call": "ifbus task next"}
                ],
            )
        if claim.swarm_id != swarm_id:
            raise NotOwner(
                f"cannot act on {task_id}@{token} as {swarm_id}: {claim.swarm_id} holds it",
                data={"task_id": task_id, "token": token, "owner": claim.swarm_id},
                would_change=[{"by": "other", "what": f"{claim.swarm_id} completes it or lets it go"}],
            )
        if claim.incarnation:
            # The lease of a session that was replaced may still live: from the new one's first commit on it counts no more.
            session = tx.read(SESSIONS + swarm_id, SessionRecord.from_bytes)
            newest = 0 if session is None else session.incarnation
            if newest > claim.incarnation:
                raise StaleToken(
                    f"cannot act on {task_id}@{token}: it was claimed by incarnation {claim.incarnation} of {swarm_id},"
                    f" which was registered anew as {newest}; nothing was written",
                    data={
                        "task_id": task_id,
                        "token": token,
                        "owner": swarm_id,
                        "incarnation": claim.incarnation,
                        "owner_incarnation": newest,
                    },
                    would_change=[
                        {
                            "by": "self",
                            "what": "stop this work; claim the task again",
                            "call": f"ifbus task claim {task_id}",
                        }
                    ],
                )
        return stored, claim
