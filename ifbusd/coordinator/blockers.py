"""Blockers: a holder that cannot go on is heard at once, by those who can help and by those who decide."""

from __future__ import annotations

from itertools import islice
from typing import Any

from ifbus.errors import InvalidParams, NotFound, PermissionDenied
from ifbus.models import check_capabilities, check_identifier
from ifbusd.codec import how_many_fit, unpack
from ifbusd.coordinator import rules
from ifbusd.coordinator.core import Answer, Core, limit_exceeded
from ifbusd.coordinator.life import rules as life
from ifbusd.coordinator.model import OPEN, TASKS, BlockerRecord, MessageRecord, TaskRecord
from ifbusd.identity import Caller
from ifbusd.operation import Tx

# So many swarms hear of a blocker by letter, those that are to help first; everybody else can list it. etcd takes 128 operations,
# and a claim that is given back with all that ends with it takes 40 of them.
_LETTERS = 80
_INFO_KEYS = ("reason", "task_id", "token", "severity", "needs", "release")


class Blockers(Core):
    """Report, list, resolve."""

    async def detect_blocker(self, caller: Caller, swarm_id: str, info: dict[str, Any]) -> Answer:
        """See `interface.Coordinator.detect_blocker`."""
        blocker, release = _parse(swarm_id, info, caller.uid, self._now_ms())
        blocker_id = f"B-{self._new_id()}"

        own_lease = 0
        await self.board.show_told()

        def report(tx: Tx) -> Answer:
            nonlocal own_lease
            own_lease = 0
            self._governor.require_owner(tx, caller, swarm_id)
            for limit, used, allowed in (
                ("blockers", len(self.board.blockers), self._config.blockers),
                ("blockers_per_uid", self.board.blockers_of(caller.uid), self._config.blockers_per_uid),
            ):
                if used >= allowed:
                    remedy = "resolve some: ifbus task unblock BLOCKER"
                    raise limit_exceeded("report a blocker", limit, used, allowed, remedy)
            needs = frozenset(blocker.needs)
            if blocker.task_id:
                stored, claim = self._claims.require_holder(tx, blocker.task_id, swarm_id, blocker.token)
                task = self._task(tx, blocker.task_id)
                if release:
                    spent = self._governor.spent_on(tx, swarm_id, blocker.task_id)
                    self._governor.claim_ended(tx, swarm_id, blocker.task_id, outcome="neutral")
                    self._drop_claim(tx, blocker.task_id, claim)
                    if claim.own_lease:
                        own_lease = stored.lease
                    after = rules.after_claim(task, claim, swarm_id, blocker.token, spent)
                    note = blocker.reason[: rules.MAX_NOTE]
                    after = life.end_attempt(after, blocker.token, "blocked", blocker.reason)
                    blocked = life.move(after, "block", OPEN, blocker=blocker_id, note=note)
                    tx.put(TASKS + blocker.task_id, blocked.to_map())
            helpers = self._call_helpers(tx, swarm_id, blocker.task_id, needs) if needs else []
            due_at_ms = blocker.at_ms + self._escalation_ms(blocker.severity)
            record = blocker.evolve(helpers=helpers, due_at_ms=due_at_ms)
            tx.put(rules.blocker_key(blocker_id), record.to_map())
            alert = rules.blocker_view(blocker_id, record)
            urgent = blocker.severity in ("high", "critical")
            # One letter per inbox and revision, because the revision is its number: an orchestrator needs no call for help.
            hear = dict.fromkeys(helpers, "help") | dict.fromkeys(self._orchestrators(), "blocker")
            hear = dict(islice(hear.items(), _LETTERS))
            unheard = [name for name in hear if not (self._has_room(name) and self._may_send(caller.uid))]
            for kind in ("help", "blocker"):
                letter = MessageRecord(
                    kind=kind, body=alert, uid=caller.uid, sender=swarm_id, at_ms=blocker.at_ms, urgent=urgent
                )
                reached = [name for name in hear if hear[name] == kind and name not in unheard]
                self._put_message(tx, letter, *reached)
            tx.publish("escalations", {"kind": "blocker", **alert})
            if blocker.task_id:
                self._publish_board(tx, "blocked", blocker.task_id, swarm_id=swarm_id, reason=blocker.reason)
            tx.detail.update(swarm=swarm_id, blocker=blocker_id, severity=blocker.severity, helpers=helpers)
            return {"blocker": alert, "full_inboxes": unheard}

        target = blocker.task_id or swarm_id
        answer = await self._operations.run(caller, "coordinator.detect_blocker", target, report)
        self._store.tell()
        if own_lease:
            self._retired.add(own_lease)
        return answer

    def _call_helpers(self, tx: Tx, swarm_id: str, task_id: str, needs: frozenset[str]) -> list[str]:
        """The best qualified swarms, as many as the policy has room for on this task beside those that its other blockers called."""
        key = rules.helpers_key(swarm_id, task_id)
        stored = tx.get(key)
        called: list[str] = [] if stored is None else unpack(stored)
        room = self._governor.max_swarms_per_task - len(called)
        if room <= 0:
            return []
        helpers = self._governor.rank(needs, limit=min(room, _LETTERS), exclude=frozenset({swarm_id, *called}))
        if helpers:
            tx.put(key, [*called, *helpers])
        return helpers

    def _let_helpers_go(self, tx: Tx, blocker: BlockerRecord) -> None:
        key = rules.helpers_key(blocker.swarm_id, blocker.task_id)
        stored = tx.get(key)
        left = [] if stored is None else [name for name in unpack(stored) if name not in blocker.helpers]
        if left:
            tx.put(key, left)
        else:
            tx.delete(key)

    def _escalation_ms(self, severity: str) -> int:
        config = self._config
        by_severity = {
            "low": config.escalate_low_ms,
            "medium": config.escalate_medium_ms,
            "high": config.escalate_high_ms,
            "critical": config.escalate_critical_ms,
        }
        return by_severity[severity]

    def _orchestrators(self) -> list[str]:
        """Those that hear of a blocker by letter, the live ones first."""
        return sorted(self._governor.orchestrators(), key=lambda name: name not in self.board.sessions)

    async def resolve_blocker(self, caller: Caller, blocker_id: str, *, swarm_id: str = "", note: str = "") -> Answer:
        """See `interface.Coordinator.resolve_blocker`."""
        check_identifier(blocker_id, "blocker_id")
        rules.check_text("note", note, rules.MAX_NOTE)

        def resolve(tx: Tx) -> Answer:
            stored = tx.get(rules.blocker_key(blocker_id))
            if stored is None:
                raise NotFound(
                    f"there is no open blocker {blocker_id:.80}",
                    data={"blocker_id": blocker_id[:80], "open": len(self.board.blockers)},
                    would_change=[
                        {"by": "self", "what": "it may be resolved already", "call": "ifbus task ls --state blocked"}
                    ],
                )
            blocker = BlockerRecord.from_bytes(stored)
            if swarm_id:
                self._governor.require_owner(tx, caller, swarm_id)
            # Anybody may register as an orchestrator, to hear: that alone gives no say over another user's work.
            may = {blocker.swarm_id, *blocker.helpers}
            if not (caller.is_operator or swarm_id in may or caller.uid == blocker.uid):
                raise PermissionDenied(
                    f"cannot resolve {blocker_id}: that is for {blocker.swarm_id}, its user, its helpers and operators",
                    data={"blocker_id": blocker_id, "uid": caller.uid, "may": sorted(may)[:20]},
                    would_change=[{"by": "other", "what": "one of these resolves it, or an operator"}],
                )
            tx.delete(rules.blocker_key(blocker_id))
            if blocker.helpers:
                self._let_helpers_go(tx, blocker)
            if blocker.task_id:
                task = tx.read(TASKS + blocker.task_id, TaskRecord.from_bytes)  # None where it was removed meanwhile
                if task is not None and task.blocker == blocker_id:
                    tx.put(TASKS + blocker.task_id, task.evolve(blocker="", note=note or task.note).to_map())
                    self._publish_board(tx, "unblocked", blocker.task_id, swarm_id=swarm_id)
            alert = rules.blocker_view(blocker_id, blocker)
            letter = MessageRecord(
                kind="notice",
                body={**alert, "resolved": True, "note": note},
                uid=caller.uid,
                sender=swarm_id,
                at_ms=self._now_ms(),
            )
            if self._has_room(blocker.swarm_id) and self._may_send(caller.uid):
                self._put_message(tx, letter, blocker.swarm_id)
            tx.publish("escalations", {"kind": "blocker_resolved", **alert})
            tx.detail.update(swarm=swarm_id, note=note[:200])
            return {"blocker": alert}

        return await self._operations.run(caller, "coordinator.resolve_blocker", blocker_id[:80], resolve)

    async def list_blockers(self, caller: Caller) -> Answer:
        """See `interface.Coordinator.list_blockers`."""
        await self.board.catch_up()
        ordered = sorted(self.board.blockers.items(), key=lambda item: item[1].at_ms)
        views = [rules.blocker_view(blocker_id, blocker) for blocker_id, blocker in ordered[:100]]
        fitting = views[: how_many_fit(views)]
        return {"blockers": fitting, "has_more": len(ordered) > len(fitting)}


def _parse(swarm_id: str, info: dict[str, Any], uid: int, at_ms: int) -> tuple[BlockerRecord, bool]:
    unknown = sorted(set(info) - set(_INFO_KEYS))
    if unknown:
        raise InvalidParams(
            f"info knows {', '.join(_INFO_KEYS)}, got {unknown[0]!r:.40}", data={"param": f"info.{unknown[0]:.40}"}
        )
    reason, task_id, token = info.get("reason", ""), info.get("task_id", ""), info.get("token", 0)
    severity, needs, release = info.get("severity", "medium"), info.get("needs", []), info.get("release", False)
    for name, value, kind in (
        ("reason", reason, str),
        ("task_id", task_id, str),
        ("token", token, int),
        ("severity", severity, str),
        ("needs", needs, list),
        ("release", release, bool),
    ):
        if type(value) is not kind:
            raise InvalidParams(f"info.{name} must be of type {kind.__name__}", data={"param": f"info.{name}"})
    rules.check_text("info.reason", reason, rules.MAX_ERROR)
    if not reason or severity not in ("low", "medium", "high", "critical"):
        raise InvalidParams(
            "info needs a reason, and a severity among low, medium, high, critical",
            data={"param": "info.severity" if reason else "info.reason"},
        )
    half = next((name for name in ("token", "release") if info.get(name) and not task_id), "")
    if half:
        raise InvalidParams(f"info.{half} is about a task: info needs its task_id, too", data={"param": f"info.{half}"})
    check_capabilities(needs)
    record = BlockerRecord(
        swarm_id=swarm_id,
        reason=reason,
        uid=uid,
        task_id=task_id,
        token=token,
        severity=severity,
        needs=sorted(set(needs)),
        at_ms=at_ms,
    )
    return record, release
