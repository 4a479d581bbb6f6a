"""Keys in memory against a plain model: tables and a journal that commits come to, and what is said to be ahead of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ifbusd.store.base import KeyValue
from ifbusd.store.memory import UNKNOWN, KeyMemory

KEYS = st.sampled_from([f"k{n}" for n in range(8)])
WRITES = st.dictionaries(KEYS, st.one_of(st.none(), st.tuples(st.sampled_from([1, 5000]), st.sampled_from([0, 7, 9]))))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), WRITES),
        st.tuples(st.just("read"), KEYS),
        st.tuples(st.sampled_from(["begin", "commit", "journal", "drop"]), st.none()),
    ),
    max_size=40,
)


@given(st.integers(1, 5), STEPS)
def test_what_is_found_is_how_it_stands(most: int, steps: list[tuple[str, object]]) -> None:
    """Whatever is written, committed to tables or journal, dropped and pushed out: a key is as it stands, or unknown and then in the tables."""
    memory = KeyMemory(most)
    disk: dict[str, KeyValue | None] = {}
    open_batch: dict[str, KeyValue | None] = {}
    committing: dict[str, KeyValue | None] = {}
    journal: dict[str, KeyValue | None] = {}
    revision = 0
    for step, what in steps:
        if step == "write":
            assert isinstance(what, dict)
            revision += 1
            writes = {
                key: None if form is None else KeyValue(key, bytes(form[0]), revision, revision, form[1])
                for key, form in what.items()
            }
            memory.write(writes)
            open_batch |= writes
        elif step == "read":
            assert isinstance(what, str)
            if memory.find(what) is UNKNOWN:
                memory.keep(what, disk.get(what))
        elif step == "begin" and not committing:
            committing, open_batch = open_batch, {}
        elif step == "commit":
            disk |= journal | committing
            memory.committed(journal | committing)
            journal, committing = {}, {}
        elif step == "journal":
            journal |= committing
            committing = {}
        elif step == "drop":
            memory.drop_pending(journal)
            open_batch, committing = {}, {}
        ahead = journal | committing | open_batch
        stands = disk | ahead
        pending = memory.pending("")
        # A key that is absent on the disk and is to be deleted once more need not wait for anything.
        assert pending.items() <= ahead.items()
        assert all(key in pending for key, written in ahead.items() if written != disk.get(key))
        for key in [f"k{n}" for n in range(8)]:
            found = memory.find(key)
            assert found == stands.get(key) or (found is UNKNOWN and stands.get(key) == disk.get(key))
        for lease in (7, 9):
            held = {key for key, written in ahead.items() if written is not None and written.lease == lease}
            assert set(memory.pending_of(lease)) == held
