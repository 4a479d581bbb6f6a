"""Letters in memory are told in order, each once, however they came."""

from hypothesis import given
from hypothesis import strategies as st

from ifbusd.coordinator.mailboxes import Listener, Mailboxes
from ifbusd.coordinator.model import MessageRecord

LETTER = MessageRecord(kind="broadcast", body={}, uid=7)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcdef"), st.integers(1, 99)),
        st.tuples(st.just("drop"), st.sampled_from("abcdef"), st.just(0)),
        st.tuples(st.just("read"), st.just(""), st.integers(0, 99)),
    ),
    max_size=40,
)


@given(STEPS)
def test_letters_are_in_order_of_seq(steps: list[tuple[str, str, int]]) -> None:
    """Whatever was put, replaced and dropped in whatever order, what is above a seq is read sorted, and counted once."""
    mail, there = Mailboxes(), {}
    for step, key, number in steps:
        if step == "put":
            mail.put("docs", key, (number, LETTER), 10)
            there[key] = number
        elif step == "drop":
            mail.drop("docs", key)
            there.pop(key, None)
        else:
            read = [seq for seq, _ in mail.letters("docs", number)]
            assert read == sorted(seq for seq in there.values() if seq > number)
        assert mail.bytes_of(7) == 10 * len(there)


def test_a_listener_hears_each_letter_once() -> None:
    """What waits above its mark at once, what comes as it comes."""
    mail, heard = Mailboxes(), []
    for seq in (5, 3, 4):  # as they are read from the store: in order of their names
        mail.put("docs", f"k{seq}", (seq, LETTER), 1)
    mail.listen("docs", Listener(tell=lambda seq, _: heard.append(seq), seen=3))
    assert heard == [4, 5]
    for seq in (6, 7):
        mail.put("docs", f"k{seq}", (seq, LETTER), 1)
        mail.deliver("docs")
    assert heard == [4, 5, 6, 7]
