"""Leases: what keeps a key alive, and what happens at its end."""

import pytest
import trio

from ifbusd.store.base import Compare, Delete, LeaseNotFound, Put, Store, Txn
from tests.conformance.backends import Backend

LONG_MS = 3_600_000


async def test_a_revoked_lease_takes_its_keys(store: Store) -> None:
    """All keys of a lease vanish in one revision, those of others stay."""
    lease, other = await store.grant(LONG_MS), await store.grant(LONG_MS)
    assert lease != other
    done = await store.txn(Txn(then=[Put("l/b", b"", lease), Put("l/a", b"", lease), Put("l/c", b"", other)]))
    async with store.watch("l/", start_revision=done.revision + 1) as changes:
        await store.revoke(lease)
        events = await anext(changes)
    assert [(event.key, event.value, event.revision) for event in events] == [
        ("l/a", None, done.revision + 1),
        ("l/b", None, done.revision + 1),
    ]
    assert [item.key for item in (await store.range("l/")).items] == ["l/c"]
    assert store.revision == done.revision + 1


async def test_an_ended_lease_is_not_found(store: Store) -> None:
    """It can be neither renewed nor written to; revoking it again is no error."""
    lease = await store.grant(LONG_MS)
    await store.revoke(lease)
    await store.revoke(lease)
    assert await store.lease_left_ms(lease) is None
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease)
    before = store.revision
    with pytest.raises(LeaseNotFound):
        await store.txn(Txn(then=[Put("l/a", b""), Put("l/b", b"", lease)]))
    assert store.revision == before
    assert await store.get("l/a") is None


async def test_only_the_branch_taken_needs_its_lease(store: Store) -> None:
    """An ended lease in the other branch is no obstacle."""
    lease = await store.grant(LONG_MS)
    await store.revoke(lease)
    done = await store.txn(Txn([Compare("l/a", 1)], [Put("l/a", b"", lease)], [Put("l/b", b"")]))
    assert not done.succeeded
    assert await store.get("l/b") is not None


async def test_a_put_replaces_the_lease(store: Store) -> None:
    """The last put decides: without a lease the key stays, and with another it goes with that."""
    first, second = await store.grant(LONG_MS), await store.grant(LONG_MS)
    await store.txn(Txn(then=[Put("l/stays", b"", first), Put("l/moves", b"", first), Put("l/gone", b"", first)]))
    await store.txn(Txn(then=[Put("l/stays", b""), Put("l/moves", b"", second), Delete("l/gone")]))
    await store.txn(Txn(then=[Put("l/gone", b"")]))
    await store.revoke(first)
    assert [(item.key, item.lease) for item in (await store.range("l/")).items] == [
        ("l/gone", 0),
        ("l/moves", second),
        ("l/stays", 0),
    ]
    await store.revoke(second)
    assert [item.key for item in (await store.range("l/")).items] == ["l/gone", "l/stays"]


async def test_a_lease_without_keys_uses_no_revision(store: Store) -> None:
    """Granting and revoking by themselves change nothing that a watch could see."""
    before = store.revision
    await store.revoke(await store.grant(LONG_MS))
    assert store.revision == before


async def test_a_lease_ends_by_itself(backend: Backend) -> None:
    """A lease that nobody renews takes its keys, in one revision, and never before its time is over."""
    store = backend.store
    started = trio.current_time()
    lease = await store.grant(backend.shortest_ttl_ms)
    done = await store.txn(Txn(then=[Put("l/b", b"", lease), Put("l/a", b"", lease)]))
    async with store.watch("l/", start_revision=done.revision + 1) as changes:
        events = await anext(changes)
    assert trio.current_time() - started >= backend.shortest_ttl_ms / 1000 * 0.9
    assert [(event.key, event.value) for event in events] == [("l/a", None), ("l/b", None)]
    assert len({event.revision for event in events}) == 1
    assert await store.lease_left_ms(lease) is None
    assert await store.get("l/a") is None


async def test_a_renewed_lease_lives_on(backend: Backend) -> None:
    """Renewing sets a lease back to its full time, which another one has used up meanwhile."""
    store = backend.store
    ttl_ms = 1000 * backend.shortest_ttl_ms  # so long that no busy disk makes it end
    kept, left = await store.grant(ttl_ms), await store.grant(backend.shortest_ttl_ms)
    done = await store.txn(Txn(then=[Put("l/kept", b"", kept), Put("l/left", b"", left)]))
    async with store.watch("l/", start_revision=done.revision + 1) as changes:
        assert [event.key for event in await anext(changes)] == ["l/left"]
    before_ms = await store.lease_left_ms(kept)
    assert await store.keep_alive(kept) == ttl_ms
    after_ms = await store.lease_left_ms(kept)
    assert before_ms is not None
    assert after_ms is not None
    assert 0 < before_ms < after_ms <= ttl_ms
    assert await store.get("l/kept") is not None


async def test_a_lease_needs_a_length(store: Store) -> None:
    """A lease of no time is refused."""
    with pytest.raises(ValueError, match="lease"):
        await store.grant(0)
