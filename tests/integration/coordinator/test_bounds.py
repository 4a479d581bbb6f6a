"""What one user may make the others carry: answers stay within a message, letters and leases within their bounds."""

from pathlib import Path
from typing import Any

import pytest
import trio

from ifbus.errors import InvalidParams, LimitExceeded, PermissionDenied
from ifbusd.codec import pack
from ifbusd.coordinator.model import CoordinatorConfig
from tests.integration.coordinator.world import STRANGER, Connection, World, open_world

MESSAGE_BYTES = 64 << 10
# As many bytes as a character may have, three where JSON-like text is the rule.
WIDE = "\u4e2d"
WIDEST = "\U0001f600"


def assert_fits(answer: Any) -> None:
    """It can be sent."""
    assert len(pack(answer)) < MESSAGE_BYTES - 100


async def test_a_task_that_no_claim_could_answer_is_not_created(world: World) -> None:
    """What is too long for the answer to a claim would be claimed while nobody learns the token."""
    with pytest.raises(InvalidParams, match="40960 bytes"):
        await world.task("T-1", description=WIDE * 16_384)
    assert (await world.record())[-1]["outcome"] == "invalid_params"


async def test_the_longest_task_can_be_claimed_reported_and_ended(world: World) -> None:
    """Every answer about it is shorter than a message, with the longest note, error and result that are taken."""
    await world.swarm("docs")
    for name in ("T-1", "T-2"):
        await world.task(name, description=WIDE * 10_000, payload={"x": "y" * 9_000})
        assert_fits(await world.it.claim_task(world.me, name, "docs"))
        token = (await world.show(name))["token"]
        note = WIDE * 1_000
        assert_fits(await world.it.report_progress(world.me, name, "docs", token, 50, note=note))
        if name == "T-1":
            with pytest.raises(InvalidParams) as refusal:
                await world.it.complete_task(world.me, name, "docs", token, result="r" * 32_000)
            result = "r" * (refusal.value.data["allowed"] - 3)
            assert_fits(await world.it.complete_task(world.me, name, "docs", token, result=result))
        else:
            assert_fits(await world.it.fail_task(world.me, name, "docs", token, WIDE * 4_096))
        assert_fits(await world.it.get_task(world.me, name))


async def test_a_long_task_with_a_long_history_can_be_handed_over(world: World) -> None:
    """Attempt after attempt with the longest notes, errors and artefacts: every answer about it fits, and the holder can complete it."""
    long = {"description": WIDE * 10_000, "payload": {"x": "y" * 9_000}, "unique_key": "k" * 128}
    await world.task("T-1", max_attempts=20, backoff={"base_ms": 0}, **long)
    artefacts = [{"name": f"{n:02}" + "n" * 60, "sha256": "0" * 64, "bytes": 2**60} for n in range(16)]
    for n in range(20):
        swarm_id = f"docs-{n}"  # failures in a row trip one's breaker
        await world.swarm(swarm_id)
        claim = await world.it.claim_task(world.me, "T-1", swarm_id)
        assert_fits(claim)
        token = claim["claim"]["token"]
        report = await world.it.report_progress(
            world.me, "T-1", swarm_id, token, n, note=WIDEST * 1_000, artefacts=artefacts
        )
        assert_fits(report)
        assert_fits(await world.it.get_task(world.me, "T-1"))
        assert_fits(await world.it.fail_task(world.me, "T-1", swarm_id, token, WIDEST * 4_096))
        assert_fits(await world.it.get_task(world.me, "T-1"))
    assert_fits(await world.it.list_dead_letters(world.me))
    assert_fits(await world.it.requeue_task(world.me, "T-1"))
    await world.swarm("docs")
    claim = await world.it.claim_task(world.me, "T-1", "docs")
    assert len(claim["claim"]["handover"]["artefacts"]) == 16
    done = await world.it.complete_task(world.me, "T-1", "docs", claim["claim"]["token"], result="r" * 4_000)
    assert_fits(done)


async def test_a_result_may_be_as_long_as_ever_beside_a_short_task(world: World) -> None:
    """32 KiB, the documented bound."""
    await world.swarm("docs")
    await world.task("T-1")
    token = await world.token("T-1", "docs")
    assert_fits(await world.it.complete_task(world.me, "T-1", "docs", token, result="r" * ((32 << 10) - 3)))


async def test_lists_of_long_rows_come_in_pages_that_fit(world: World) -> None:
    """Tasks, letters and blockers of other users: an answer has fewer than asked for and says that there is more."""
    await world.swarm("docs")
    names = [await world.task(f"{'d' * 50}-{n}") for n in range(100)]
    for _ in range(12):
        await world.task(None, depends_on=names)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await world.it.list_tasks(world.me, after=after, limit=200)
        assert_fits(page)
        assert page["total"] == 112
        seen += [task["task_id"] for task in page["tasks"]]
        after = page["next"]
    assert len(seen) == len(set(seen)) == 112

    for n in range(6):
        await world.it.broadcast(world.caller(STRANGER), f"topic-{n}", {"x": "y" * 16_000})
    letters: list[Any] = []
    has_more = True
    while has_more:
        answer = await world.it.read_inbox(world.me, "docs", after_seq=letters[-1]["seq"] if letters else 0)
        assert_fits(answer)
        letters += answer["messages"]
        has_more = answer["has_more"]
    assert [letter["body"]["topic"] for letter in letters] == [f"topic-{n}" for n in range(6)]

    for _ in range(6):
        await world.it.detect_blocker(world.me, "docs", {"reason": WIDE * 4_096})
    blockers = await world.it.list_blockers(world.me)
    assert_fits(blockers)
    assert blockers["has_more"]
    assert_fits(await world.governor.list_escalations(world.me))


async def test_a_swarm_with_many_claims_comes_back(world: World) -> None:
    """The answer to its registration has what fits; the long parts of the others are left to `get_task`."""
    token = (await world.swarm("docs"))["resume_token"]
    for n in range(60):
        await world.task(f"T-{n}", description="d" * 4_000)
        await world.token(f"T-{n}", "docs")
    answer = await world.swarm("docs", resume=token)
    assert_fits(answer)
    assert len(answer["claims"]) == 60
    assert ["description" in claim["task"] for claim in answer["claims"]] == [True] * 5 + [False] * 55
    assert_fits([await world.it.attention(world.me, "docs")])


async def test_what_became_ready_is_named_up_to_a_bound(world: World) -> None:
    """A stranger's thousand tasks that wait for this one do not keep its completion from being answered."""
    await world.swarm("docs")
    await world.task("T-1")
    for n in range(60):
        await world.task(f"{'w' * 50}-{n}", depends_on=["T-1"])
    token = await world.token("T-1", "docs")
    answer = await world.it.complete_task(world.me, "T-1", "docs", token)
    assert len(answer["unblocked"]) == 50


async def test_a_full_inbox_is_told_no_faster_than_it_is_read(world: World) -> None:
    """A backlog longer than what may wait for a reader would end each connection that subscribes, for ever."""

    class Slow(Connection):
        waiting = most = 0

        def notify(self, method: str, params: list[Any]) -> None:
            super().notify(method, params)
            self.waiting += len(pack(params))
            self.most = max(self.most, self.waiting)

        async def drained(self) -> None:
            await super().drained()
            self.waiting = 0
            if len(self.heard) == 16:  # one more while the backlog is told
                await world.it.broadcast(world.me, "last", {})

    await world.swarm("docs")
    for _ in range(100):
        await world.it.broadcast(world.me, "topic", {"x": "y" * 16_000})
    slow = Slow()
    answer = await world.it.subscribe_inbox(world.caller(session=slow), "docs")
    heard = slow.of("inbox")
    assert answer["replayed"] == len(heard) == 101
    assert [letter["seq"] for letter in heard] == sorted({letter["seq"] for letter in heard})
    assert slow.most < 1 << 19


async def test_what_one_user_sent_and_nobody_read_is_bounded(tmp_path: Path) -> None:
    """Beyond it that user's broadcasts and pushes are refused, another's are not, until somebody acknowledges."""
    async with open_world(tmp_path, config=CoordinatorConfig(letter_bytes_per_uid=64 << 10)) as world:
        await world.swarm("docs")
        await world.task("T-1")
        stranger = world.caller(STRANGER)
        for _ in range(5):
            await world.it.broadcast(stranger, "flood", {"x": "y" * 16_000})
        with pytest.raises(LimitExceeded) as refusal:
            await world.it.broadcast(stranger, "flood", {})
        assert refusal.value.data["limit"] == "letter_bytes_per_uid"
        assert refusal.value.would_change
        with pytest.raises(LimitExceeded):
            await world.it.push_task_to_swarm(stranger, "T-1", "docs")
        await world.it.broadcast(world.me, "mine", {})
    async with open_world(tmp_path, config=CoordinatorConfig(letter_bytes_per_uid=64 << 10)) as world:
        stranger = world.caller(STRANGER)
        with pytest.raises(LimitExceeded):
            await world.it.broadcast(stranger, "flood", {})
        seqs = [letter["seq"] for letter in (await world.it.read_inbox(world.me, "docs"))["messages"]]
        await world.it.acknowledge(world.me, "docs", seqs[-1])
        await world.it.push_task_to_swarm(stranger, "T-1", "docs")
        while (await world.it.read_inbox(world.me, "docs"))["messages"][0]["kind"] != "task":
            await world.it.acknowledge(world.me, "docs", 1 << 60)
        assert world.it.board.mail.bytes_of(STRANGER) < 1_000


async def test_a_broadcast_that_some_have_got_says_how_many_have_not(tmp_path: Path) -> None:
    """The sender's bound is reached in the middle: the rest is left out like full inboxes, and the next broadcast is refused."""
    async with open_world(tmp_path, config=CoordinatorConfig(letter_bytes_per_uid=64 << 10)) as world:
        for n in range(250):
            await world.profile(f"s{n:03d}")
        answer = await world.it.broadcast(world.me, "news", {"x": "y" * 1_000})
        assert (answer["broadcast"]["delivered_to"], answer["full"], answer["full_inboxes"][0]) == (100, 150, "s100")
        assert world.it.statistics().letters == 100
        with pytest.raises(LimitExceeded):
            await world.it.broadcast(world.me, "news", {})


async def test_a_letter_says_whose_it_is_and_what_its_topic_is(world: World) -> None:
    """The kernel's uid and the topic of the call stand, whatever the body says."""
    await world.swarm("docs")
    await world.it.broadcast(world.caller(STRANGER), "news", {"topic": "payday", "uid": 0})
    [letter] = await world.inbox("docs")
    assert (letter["uid"], letter["body"]["topic"]) == (STRANGER, "news")


async def test_registering_again_and_again_takes_one_lease(world: World) -> None:
    """The lease of a session that was replaced ends with it: else one user takes all leases, a day long each."""
    await world.swarm("docs", lease_ms=86_400_000)
    before = world.store.statistics().leases
    for _ in range(5):
        await world.swarm("docs", lease_ms=86_400_000)
    assert world.store.statistics().leases == before


async def test_a_registration_that_is_refused_after_all_takes_no_lease(world: World) -> None:
    """What is decided again, and otherwise, when its lease has been granted gives that back."""
    await world.task()  # over etcd, what is told to other hosts has a lease
    before = world.store.statistics().leases
    grant = world.store.grant

    async def grant_late(ttl_ms: int, *, ends: bool = False) -> int:
        lease = await grant(ttl_ms, ends=ends)
        world.store.grant = grant  # type: ignore[method-assign]
        await world.swarm("docs", uid=STRANGER)
        return lease

    world.store.grant = grant_late  # type: ignore[method-assign]
    with pytest.raises(PermissionDenied):
        await world.swarm("docs")
    with trio.fail_after(60):
        while world.store.statistics().leases > before + 1:  # the stranger's session
            await trio.sleep(0.01)


async def test_one_user_takes_only_so_many_leases(tmp_path: Path) -> None:
    """Sessions and claims on leases of their own count, also after a restart; registering again and others go on."""
    config = CoordinatorConfig(leases_per_uid=3)
    async with open_world(tmp_path, config=config) as world:
        names = [await world.task(f"T-{n}") for n in range(4)]
        await world.swarm("docs", lease_ms=60_000)
        await world.token("T-0", "docs", lease_ms=60_000)
        token = await world.token("T-1", "docs", lease_ms=60_000)
        await world.it.report_progress(world.me, "T-1", "docs", token, 10)
    async with open_world(tmp_path, config=config) as world:
        for refused in (world.it.claim_task(world.me, names[2], "docs", lease_ms=60_000), world.swarm("more")):
            with pytest.raises(LimitExceeded) as refusal:
                await refused
            assert refusal.value.data == {"limit": "leases_per_uid", "used": 3, "allowed": 3} | {
                name: refusal.value.data[name] for name in ("would_change", "receipt")
            }
        await world.token("T-2", "docs")
        await world.swarm("docs")
        await world.swarm("other", uid=STRANGER)
        await world.it.release_task(world.me, "T-3", "docs", await world.token("T-3", "docs", lease_ms=60_000))


async def test_one_user_reports_only_so_many_blockers(tmp_path: Path) -> None:
    """Another user's are heard all the same."""
    async with open_world(tmp_path, config=CoordinatorConfig(blockers_per_uid=1)) as world:
        await world.swarm("docs")
        await world.swarm("other", uid=STRANGER)
        await world.it.detect_blocker(world.me, "docs", {"reason": "no key"})
        with pytest.raises(LimitExceeded, match="blockers_per_uid"):
            await world.it.detect_blocker(world.me, "docs", {"reason": "no key"})
        await world.it.detect_blocker(world.caller(STRANGER), "other", {"reason": "no key"})
