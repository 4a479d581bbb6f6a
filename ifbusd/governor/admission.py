"""What the coordinator asks inside its own transactions. Everything is read and written through the `Tx`, so what is decided
here holds at commit; only `rank` and its like answer from the view, and they only suggest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

import attrs

from ifbus.errors import InvalidParams, LimitExceeded, NotFound, PermissionDenied
from ifbus.models import check_capabilities, check_identifier
from ifbus.money import to_usd
from ifbusd import pause as pauses
from ifbusd.codec import unpack
from ifbusd.governor import rules
from ifbusd.governor.model import ACCOUNTS, PPM, SWARMS, TRIPPED, Account, Policy, Profile
from ifbusd.governor.registry import Registry
from ifbusd.governor.rules import Check, Event
from ifbusd.governor.view import RegistryView
from ifbusd.identity import Caller
from ifbusd.operation import Tx
from ifbusd.pause import Pause

ESCALATIONS: Final = "escalations"
MAX_MODEL_CHARS: Final = 100


class Admissions:
    """`ifbusd.coordinator.admission.Admission`, structurally. It has no state of its own beside the view."""

    def __init__(self, view: RegistryView, policy: Policy, now_ms: Callable[[], int]) -> None:
        self._view = view
        self._policy = policy
        self._now_ms = now_ms
        # Worked out once: each costs as much as a whole check.
        self._threshold = policy.exact_threshold
        self._budget_low = policy.exact_budget_low

    @property
    def _registry(self) -> Registry:
        return self._view.registry

    # --- reading and writing a swarm -----------------------------------------------------------------

    def _read_profile(self, tx: Tx, swarm_id: str) -> Profile:
        key = SWARMS + check_identifier(swarm_id, "swarm_id")
        profile = tx.read(key, lambda stored: Profile.from_stored(swarm_id, unpack(stored)))
        if profile is None:
            raise no_swarm(swarm_id)
        return profile

    def _read_account(self, tx: Tx, swarm_id: str) -> Account:
        account = tx.read(ACCOUNTS + swarm_id, lambda stored: Account.from_stored(unpack(stored)))
        return account or Account()

    def _write_account(self, tx: Tx, swarm_id: str, before: Account, after: Account, *, why: str = "") -> None:
        """Write a changed account, and tell whom it concerns what happened to it; nothing if it is as before."""
        if after == before:
            return
        tx.put(ACCOUNTS + swarm_id, after.to_stored(), decoded=after)
        event = rules.event_between(before, after, self._budget_low)
        if event is None:
            return
        message = self._describe_event(event, swarm_id, after)
        if event is Event.BREAKER_TRIPPED:
            tx.put(TRIPPED + swarm_id, rules.describe_breaker(swarm_id, after))
            tx.detail["breaker_tripped"] = after.breaker.reason
        elif event is Event.BREAKER_RESET:
            tx.delete(TRIPPED + swarm_id)
            message["reason"] = why
        tx.publish(ESCALATIONS, message)
        tx.publish(f"attention.{swarm_id}", message)

    def _describe_event(self, event: Event, swarm_id: str, account: Account) -> dict[str, Any]:
        at_ms = account.breaker.tripped_at_ms
        message = {"kind": event.value, "swarm_id": swarm_id, "at_ms": self._now_ms() if at_ms is None else at_ms}
        if event is Event.BREAKER_TRIPPED:
            check = rules.check_breaker(swarm_id, account)
            message |= {**check.data, "message": check.message}
        elif event is Event.BUDGET_LOW:
            report = rules.describe_account(swarm_id, account)
            reason = f"{report['spent_usd']} of {report['limit_usd']} USD spent"
            message |= {"reason": reason, **report, "message": f"the budget of {swarm_id} is low: {reason}"}
        return message

    # --- Admission -----------------------------------------------------------------------------------

    @property
    def max_swarms_per_task(self) -> int:
        """So many swarms are called to help with one task at a time (policy)."""
        return self._policy.max_swarms_per_task

    def require_owner(self, tx: Tx, caller: Caller, swarm_id: str) -> None:
        """Return if the swarm exists and is the caller's; else raise not_found or permission_denied."""
        require_owner(self._read_profile(tx, swarm_id), caller)

    def attention(self, tx: Tx, swarm_id: str) -> list[dict[str, Any]]:
        """What the swarm was told of its money, breaker and pause and still holds, as it was sent then."""
        account = self._read_account(tx, swarm_id)
        event = rules.event_between(Account(), account, self._budget_low)
        items = [] if event is None else [self._describe_event(event, swarm_id, account)]
        if pause := self._read_profile(tx, swarm_id).pause:
            items.append(pauses.told("swarm", swarm_id, pause, at_ms=pause["since_at_ms"]))
        return items

    def change_pause(self, tx: Tx, caller: Caller, swarm_id: str, change: Callable[[Pause], Pause]) -> Pause:
        """Change the pause of a swarm for its owner or an operator; what it is now. Raises not_found, permission_denied."""
        profile = self._read_profile(tx, swarm_id)
        if not caller.is_operator:
            require_owner(profile, caller)
        now = change(profile.pause)
        if now != profile.pause:
            tx.put(SWARMS + swarm_id, attrs.evolve(profile, pause=now).to_stored())
        return now

    def require_running(self, tx: Tx, swarm_id: str) -> None:
        """Return if the swarm's breaker is closed; else raise breaker_tripped."""
        check = rules.check_breaker(swarm_id, self._read_account(tx, swarm_id))
        if not check.ok:
            raise check.error()

    def pause_of(self, tx: Tx, swarm_id: str) -> Pause:
        """Who keeps new work from the swarm; empty while nobody does. Raises not_found."""
        return self._read_profile(tx, swarm_id).pause

    def admit(self, tx: Tx, swarm_id: str, task_id: str, capabilities: frozenset[str], estimate_micro_usd: int) -> None:
        """Check breaker, match and budget, in this order, and set the estimate aside as the claim's hold.

        Raises:
            paused, breaker_tripped, not_qualified, budget_exceeded: With figures and what would change it.
            limit_exceeded: The swarm has too many reservations.
            not_found: There is no such swarm.
        """
        profile = self._read_profile(tx, swarm_id)
        before = self._read_account(tx, swarm_id)
        # What an earlier claim of the same task left behind must not be in the way of this one.
        account, _ = rules.end_claim(before, task_id)
        self._require(profile, account, capabilities, estimate_micro_usd)
        account = rules.hold_claim(account, task_id, estimate_micro_usd)
        self._require_holds(swarm_id, account)
        self._write_account(tx, swarm_id, before, account)
        if estimate_micro_usd:
            tx.detail["reserved_usd"] = to_usd(estimate_micro_usd)

    def check_route(self, tx: Tx, swarm_id: str, capabilities: frozenset[str]) -> None:
        """As `admit` for a push: breaker and match, nothing set aside; a broke swarm is refused."""
        profile = self._read_profile(tx, swarm_id)
        self._require(profile, self._read_account(tx, swarm_id), capabilities, 0)

    def explain(
        self, tx: Tx, swarm_id: str, capabilities: frozenset[str], estimate_micro_usd: int
    ) -> list[dict[str, Any]]:
        """The checks of `admit` without stopping at the first no: ``[{"check", "ok", "message", "data", "would_change"}]``."""
        profile = self._read_profile(tx, swarm_id)
        account = self._read_account(tx, swarm_id)
        checks = [check.to_wire() for check in self._checks(profile, account, capabilities, estimate_micro_usd)]
        if profile.pause:
            refusal = pauses.refusal(f"give {swarm_id} work", "swarm", swarm_id, profile.pause)
            data = {name: value for name, value in refusal.data.items() if name != "would_change"}
            no = {"check": "swarm", "ok": False, "message": refusal.message, "data": data}
            checks.insert(0, {**no, "would_change": refusal.would_change})
        return checks

    def _require(self, profile: Profile, account: Account, capabilities: frozenset[str], amount: int) -> None:
        if profile.pause:
            raise pauses.refusal(f"give {profile.swarm_id} work", "swarm", profile.swarm_id, profile.pause)
        # The words of a no are only worked out for a no: they cost five times as much as the decision.
        if not rules.admits(profile, account, capabilities, amount, self._policy.similarity, self._threshold):
            raise next(check.error() for check in self._checks(profile, account, capabilities, amount) if not check.ok)

    def _checks(self, profile: Profile, account: Account, capabilities: frozenset[str], amount: int) -> list[Check]:
        return [
            rules.check_breaker(profile.swarm_id, account),
            rules.check_match(profile, capabilities, self._policy.similarity, self._threshold),
            rules.check_budget(profile.swarm_id, account, amount),
        ]

    def _require_holds(self, swarm_id: str, account: Account) -> None:
        allowed = self._policy.max_holds
        # Most have few: then nothing has to be counted.
        if len(account.holds) > allowed and (wanted := rules.reservations(account)) > allowed:
            raise LimitExceeded(
                f"cannot set money aside for {swarm_id}: it has {wanted - 1} reservations already",
                data={"limit": "max_holds", "used": wanted - 1, "allowed": allowed},
                would_change=[{"by": "self", "what": "settle a reservation, or end a claim that set money aside"}],
            )

    def claim_ended(self, tx: Tx, swarm_id: str, task_id: str, *, outcome: Literal["ok", "failed", "neutral"]) -> int:
        """Give back what the claim held; count failures (``failed``), which may trip the breaker, or forget them (``ok``).

        Returns:
            Micro-dollars given back.
        """
        before = self._read_account(tx, swarm_id)
        account, released = rules.end_claim(before, task_id)
        if outcome == "failed":
            account = rules.count_failure(account, task_id, self._policy.failures_to_trip, self._now_ms())
        elif outcome == "ok":
            account = rules.count_success(account)
        self._write_account(tx, swarm_id, before, account)
        return released

    def spent_on(self, tx: Tx, swarm_id: str, task_id: str) -> int:
        """Micro-dollars that the swarm has spent on a task since it claimed it; 0 once the claim has ended."""
        hold = (self._read_account(tx, swarm_id)).holds.get(task_id)
        return 0 if hold is None else hold.spent

    def save_profile(
        self,
        tx: Tx,
        caller: Caller,
        swarm_id: str,
        *,
        capabilities: frozenset[str] | None,
        cost_per_hour_micro_usd: int | None,
        budget_micro_usd: int | None,
        model: str | None,
        incarnation: int | None,
        orchestrator: bool | None,
    ) -> dict[str, Any]:
        """Create or change the profile within a registration; None keeps what was there. The `SwarmProfile` map.

        Args:
            incarnation: Of the session that goes on; None begins a new one, one more than the last.

        Raises:
            permission_denied: The name belongs to another user, or the budget would be raised or beyond the policy's bound.
            limit_exceeded: Too many swarms.
        """
        stored = tx.get(SWARMS + check_identifier(swarm_id, "swarm_id"))
        if stored is None:
            self._require_room(caller, swarm_id)
            old = None
            profile = Profile(swarm_id=swarm_id, uid=caller.uid, gid=caller.peer.gid, created_at_ms=self._now_ms())
        else:
            old = profile = Profile.from_stored(swarm_id, unpack(stored))
            require_owner(profile, caller)
        changes: dict[str, Any] = {
            "capabilities": None if capabilities is None else check_capabilities(capabilities),
            "cost_per_hour_micro_usd": cost_per_hour_micro_usd,
            "model": None if model is None else check_text(model, "model", MAX_MODEL_CHARS),
            "incarnation": profile.incarnation + 1 if incarnation is None else incarnation,
            "orchestrator": orchestrator,
        }
        profile = attrs.evolve(profile, **{name: value for name, value in changes.items() if value is not None})
        if profile != old:
            tx.put(SWARMS + swarm_id, profile.to_stored())
        before = self._read_account(tx, swarm_id)
        account = before.evolve(limit=self._own_limit(caller, swarm_id, before, budget_micro_usd))
        self._write_account(tx, swarm_id, before, account)
        return rules.describe_profile(profile, account)

    def _require_room(self, caller: Caller, swarm_id: str) -> None:
        # From the view: a few registrations that arrive together may pass the bound together, which does no harm.
        for name, count, most in (
            ("max_swarms", len(self._registry), self._policy.max_swarms),
            ("max_swarms_per_uid", self._registry.count_of_uid(caller.uid), self._policy.max_swarms_per_uid),
        ):
            if count >= most:
                raise LimitExceeded(
                    f"cannot register swarm {swarm_id}: {count} of {most} ({name})",
                    data={"limit": name, "used": count, "allowed": most},
                    would_change=[
                        {"by": "self", "what": "use a name again that is registered already"},
                        {"by": "operator", "what": f"a larger {name} in the configuration"},
                    ],
                )

    def _own_limit(self, caller: Caller, swarm_id: str, account: Account, wanted: int | None) -> int | None:
        """The budget after a registration: a user may lower an own swarm's budget, only an operator raises it."""
        most = self._policy.max_self_budget_micro_usd
        if wanted is None:
            return most if account.limit is None else account.limit
        if caller.is_operator:
            return wanted
        bound, what = (
            (most, "the most that a user may give") if account.limit is None else (account.limit, "its budget")
        )
        if bound is not None and wanted > bound:
            raise PermissionDenied(
                f"cannot give {swarm_id} a budget of {to_usd(wanted)} USD: {what} is {to_usd(bound)},"
                f" only an operator may go beyond; you are uid {caller.uid}",
                data={"swarm_id": swarm_id, "wanted_usd": to_usd(wanted), "bound_usd": to_usd(bound)},
                would_change=[
                    {"by": "self", "what": f"a budget of at most {to_usd(bound)}, or none to keep it as it is"},
                    {
                        "by": "operator",
                        "what": "a larger budget",
                        "call": f"ifbus budget set {swarm_id} {to_usd(wanted)}",
                    },
                ],
            )
        return wanted

    def set_reputation(self, tx: Tx, swarm_id: str, ratio: float) -> None:
        """Note how well a swarm has done, 0 to 1 (kept in millionths).

        Raises:
            ValueError: The ratio is not between 0 and 1.
            not_found: There is no such swarm.
        """
        if not 0 <= ratio <= 1:
            raise ValueError(f"a reputation is between 0 and 1, got {ratio}")
        profile = self._read_profile(tx, swarm_id)
        tx.put(SWARMS + swarm_id, attrs.evolve(profile, reputation_ppm=round(ratio * PPM)).to_stored())

    # --- from the view -------------------------------------------------------------------------------

    def rank(self, capabilities: frozenset[str], *, limit: int, exclude: frozenset[str] = frozenset()) -> list[str]:
        """Swarm ids fit for these capabilities, best first, from the governor's view of the registry (no I/O)."""
        ranking = self._registry.rank(
            capabilities, self._policy.similarity, self._threshold, limit=limit, exclude=exclude
        )
        return [profile.swarm_id for profile in ranking.best]

    def capabilities_of(self, swarm_id: str) -> frozenset[str] | None:
        """What a swarm can do, from the governor's view; None if unknown (no I/O)."""
        profile = self._registry.get(swarm_id)
        return None if profile is None else profile.capabilities

    def is_match(self, swarm_id: str, capabilities: frozenset[str]) -> bool:
        """Whether the swarm's overlap reaches the threshold and it is neither tripped nor broke, from the view (no I/O)."""
        return self._registry.is_match(swarm_id, capabilities, self._policy.similarity, self._threshold)

    def seen_pause(self, swarm_id: str) -> Pause:
        """Who keeps new work from the swarm, from the view (no I/O); empty while nobody does."""
        profile = self._registry.get(swarm_id)
        return {} if profile is None else profile.pause

    def orchestrators(self) -> list[str]:
        """Swarm ids registered as orchestrators, by name."""
        return self._registry.orchestrators()

    def swarms_with(self, capabilities: frozenset[str]) -> list[str]:
        """Registered swarm ids that have all of these capabilities, by name."""
        return self._registry.swarms_with(capabilities)

    def swarms_matching(self, matches: Callable[[frozenset[str]], bool]) -> list[str]:
        """Registered swarm ids whose capabilities are such, by name; asked once per different set of capabilities."""
        return self._registry.swarms_matching(matches)

    async def caught_up(self, swarm_id: str) -> None:
        """Return once the view shows this swarm as the store has it: await it between `save_profile` and the answer."""
        await self._view.caught_up(swarm_id)


def check_text(text: str, what: str, max_chars: int, *, min_chars: int = 0) -> str:
    """`text`, if its length is within these bounds.

    Raises:
        InvalidParams: It is not.
    """
    if not min_chars <= len(text.strip()) <= len(text) <= max_chars:
        raise InvalidParams(
            f"{what} has {min_chars} to {max_chars} characters, got {len(text.strip())}", data={"param": what}
        )
    return text


def no_swarm(swarm_id: str) -> NotFound:
    """The refusal for a name that nobody registered."""
    return NotFound(
        f"there is no swarm {swarm_id}",
        data={"swarm_id": swarm_id},
        would_change=[{"by": "self", "what": "register it", "call": f"ifbus swarm register {swarm_id}"}],
    )


def require_owner(profile: Profile, caller: Caller) -> None:
    if profile.uid != caller.uid:
        raise PermissionDenied(
            f"cannot act for swarm {profile.swarm_id}: it belongs to uid {profile.uid}, you are uid {caller.uid}",
            data={"swarm_id": profile.swarm_id, "owner_uid": profile.uid, "uid": caller.uid},
            would_change=[{"by": "self", "what": "register a swarm under a name of your own"}],
        )
