"""Every swarm by what it can do, in memory, so that a match needs neither I/O nor a look at each swarm.

Swarms with the same capabilities form a group: how well they fit is worked out once for all of them, and among themselves they
stay sorted. A match looks only at groups that have enough of the required capabilities, and takes the best from the heads of
their lists; its cost grows with the number of different groups that fit, not with the number of swarms.
"""

from __future__ import annotations

import enum
import heapq
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import attrs

from ifbusd.governor import rules
from ifbusd.governor.model import Account, Profile, Similarity

_RankKey = tuple[bool, int, str]
_NOTHING: frozenset[str] = frozenset()


class Standing(enum.Enum):
    """Whether work may go to a swarm."""

    FIT = "fit"
    PAUSED = "paused"
    TRIPPED = "breaker_tripped"
    BROKE = "budget_exceeded"


def standing_of(account: Account) -> Standing:
    """The first reason not to give it work, if there is one."""
    if account.is_tripped:
        return Standing.TRIPPED
    return Standing.BROKE if account.is_broke else Standing.FIT


class Ranking(NamedTuple):
    """The swarms that qualify, best first, and how many do not, by the first reason against each."""

    best: list[Profile]
    considered: int
    refused: dict[str, int]


@attrs.define(eq=False)
class _Group:
    """Swarms with the same capabilities; `ranked` and `costs` hold only those that work may go to."""

    capabilities: frozenset[str]
    members: set[str] = attrs.field(factory=set)
    ranked: list[_RankKey] = attrs.field(factory=list)
    costs: list[int] = attrs.field(factory=list)
    tripped: int = 0
    broke: int = 0
    paused: int = 0

    def join(self, profile: Profile, standing: Standing) -> None:
        """Add a swarm."""
        self.members.add(profile.swarm_id)
        if standing is Standing.FIT:
            insort(self.ranked, _own_rank(profile))
            insort(self.costs, profile.cost_per_hour_micro_usd)
        elif standing is Standing.TRIPPED:
            self.tripped += 1
        elif standing is Standing.PAUSED:
            self.paused += 1
        else:
            self.broke += 1

    def leave(self, profile: Profile, standing: Standing) -> None:
        """Remove a swarm, as it was added."""
        self.members.remove(profile.swarm_id)
        if standing is Standing.FIT:
            del self.ranked[bisect_right(self.ranked, _own_rank(profile)) - 1]
            del self.costs[bisect_right(self.costs, profile.cost_per_hour_micro_usd) - 1]
        elif standing is Standing.TRIPPED:
            self.tripped -= 1
        elif standing is Standing.PAUSED:
            self.paused -= 1
        else:
            self.broke -= 1


class Registry:
    """The index. Its mutable state is the tables below; only `put_profile`, `put_standing` and `remove` change them."""

    def __init__(self) -> None:
        self._profiles: dict[str, Profile] = {}
        self._standings: dict[str, Standing] = {}  # only those that are not fit
        self._groups: dict[frozenset[str], _Group] = {}
        # All swarms once more, for tasks that need nothing: whoever they are, they fit equally well.
        self._everybody = _Group(_NOTHING)
        self._groups_with: dict[str, set[frozenset[str]]] = {}
        self._orchestrators: set[str] = set()
        self._count_of_uid: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._profiles)

    def get(self, swarm_id: str) -> Profile | None:
        """A swarm's profile, None if unknown."""
        return self._profiles.get(swarm_id)

    def count_of_uid(self, uid: int) -> int:
        """How many swarms belong to a user."""
        return self._count_of_uid.get(uid, 0)

    def orchestrators(self) -> list[str]:
        """Swarms registered as orchestrators, by name."""
        return sorted(self._orchestrators)

    def swarms_with(self, capabilities: frozenset[str]) -> list[str]:
        """Swarms that have all of these, by name."""
        if not capabilities:
            return sorted(self._profiles)
        rarest = min((self._groups_with.get(one, set()) for one in capabilities), key=len)
        return sorted(name for group in rarest if capabilities <= group for name in self._groups[group].members)

    def swarms_matching(self, matches: Callable[[frozenset[str]], bool]) -> list[str]:
        """Swarms whose capabilities are such, by name; asked once per different set of capabilities."""
        return sorted(
            name for capabilities, group in self._groups.items() if matches(capabilities) for name in group.members
        )

    def is_match(self, swarm_id: str, required: frozenset[str], similarity: Similarity, threshold: Fraction) -> bool:
        """Whether the swarm fits and work may go to it."""
        profile = self._profiles.get(swarm_id)
        return (
            profile is not None
            and swarm_id not in self._standings
            and not profile.pause
            and rules.overlap(profile.capabilities, required).reaches(similarity, threshold)
        )

    def rank(
        self,
        required: frozenset[str],
        similarity: Similarity,
        threshold: Fraction,
        *,
        limit: int,
        exclude: frozenset[str] = _NOTHING,
        max_cost: int | None = None,
    ) -> Ranking:
        """The best `limit` swarms that qualify and cost at most `max_cost` micro-dollars an hour."""
        matched = [
            (fit, group)
            for group in self._candidates(required, threshold)
            if (fit := rules.overlap(group.capabilities, required)).reaches(similarity, threshold)
        ]
        best: list[Profile] = []
        for _, _, swarm_id in heapq.merge(*(self._ranked(group, fit, similarity) for fit, group in matched)):
            if len(best) >= limit:
                break
            profile = self._profiles[swarm_id]
            if swarm_id not in exclude and (max_cost is None or profile.cost_per_hour_micro_usd <= max_cost):
                best.append(profile)
        too_expensive = 0
        if max_cost is not None:
            too_expensive = sum(len(group.costs) - bisect_right(group.costs, max_cost) for _, group in matched)
        return Ranking(
            best,
            len(self._profiles),
            {
                "not_qualified": len(self._profiles) - sum(len(group.members) for _, group in matched),
                "paused": sum(group.paused for _, group in matched),
                "breaker_tripped": sum(group.tripped for _, group in matched),
                "budget_exceeded": sum(group.broke for _, group in matched),
                "too_expensive": too_expensive,
            },
        )

    def _candidates(self, required: frozenset[str], threshold: Fraction) -> Iterator[_Group]:
        if not required:
            yield self._everybody
            return
        # By either measure a group that fits has at least `enough` of the required capabilities, so it has one of any
        # (required - enough + 1) of them: the rarest ones give the fewest groups to look at.
        enough = -(-len(required) * threshold.numerator // threshold.denominator)
        by_rarity = sorted((self._groups_with.get(one, set()) for one in required), key=len)
        for capabilities in set[frozenset[str]]().union(*by_rarity[: len(required) - enough + 1]):
            yield self._groups[capabilities]

    def _ranked(self, group: _Group, fit: rules.Overlap, similarity: Similarity) -> Iterator[_RankKey]:
        # Within a group all have the same overlap, so the group's own order is the right one already.
        for _, _, swarm_id in group.ranked:
            yield rules.rank_key(fit, similarity, self._profiles[swarm_id])

    def put_profile(self, profile: Profile) -> None:
        """Add a swarm, or put a changed profile in place of the old one."""
        standing = self._standings.get(profile.swarm_id, Standing.FIT)
        old = self._profiles.get(profile.swarm_id)
        if old is not None:
            self._leave(old, standing)
        self._profiles[profile.swarm_id] = profile
        self._join(profile, standing)

    def put_standing(self, swarm_id: str, standing: Standing) -> None:
        """Note how a swarm's account stands; a swarm whose profile is still to come is remembered."""
        old = self._standings.get(swarm_id, Standing.FIT)
        if standing is old:
            return
        profile = self._profiles.get(swarm_id)
        if profile is not None:
            self._leave(profile, old)
        if standing is Standing.FIT:
            del self._standings[swarm_id]
        else:
            self._standings[swarm_id] = standing
        if profile is not None:
            self._join(profile, standing)

    def remove(self, swarm_id: str) -> None:
        """Forget a swarm's profile; no error if it is unknown."""
        profile = self._profiles.pop(swarm_id, None)
        if profile is not None:
            self._leave(profile, self._standings.get(swarm_id, Standing.FIT))

    def _join(self, profile: Profile, standing: Standing) -> None:
        group = self._groups.get(profile.capabilities)
        if group is None:
            group = self._groups[profile.capabilities] = _Group(profile.capabilities)
            for one in profile.capabilities:
                self._groups_with.setdefault(one, set()).add(profile.capabilities)
        standing = _effective(profile, standing)
        group.join(profile, standing)
        self._everybody.join(profile, standing)
        if profile.orchestrator:
            self._orchestrators.add(profile.swarm_id)
        self._count_of_uid[profile.uid] = self._count_of_uid.get(profile.uid, 0) + 1

    def _leave(self, profile: Profile, standing: Standing) -> None:
        group = self._groups[profile.capabilities]
        standing = _effective(profile, standing)
        group.leave(profile, standing)
        self._everybody.leave(profile, standing)
        if not group.members:
            del self._groups[profile.capabilities]
            for one in profile.capabilities:
                having = self._groups_with[one]
                having.remove(profile.capabilities)
                if not having:
                    del self._groups_with[one]
        self._orchestrators.discard(profile.swarm_id)
        self._count_of_uid[profile.uid] -= 1
        if not self._count_of_uid[profile.uid]:
            del self._count_of_uid[profile.uid]


def _effective(profile: Profile, standing: Standing) -> Standing:
    # A breaker needs an operator, and money too: what a pause adds to that is no news.
    return Standing.PAUSED if standing is Standing.FIT and profile.pause else standing


def _own_rank(profile: Profile) -> _RankKey:
    return rules.rank_key(rules.overlap(_NOTHING, _NOTHING), "jaccard", profile)
