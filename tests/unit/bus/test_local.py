"""The bus of one host."""

from typing import Any

from ifbusd.bus.local import LocalBus


def test_subscribers_hear_their_subject_in_order() -> None:
    """Each hears what is published from then on, in order of subscription, and the publisher learns how many did."""
    bus, heard = LocalBus(), list[Any]()
    assert bus.publish("a", {"n": 0}) == 0
    bus.subscribe("a", lambda subject, message: heard.append(("first", subject, message["n"])))
    bus.subscribe("a", lambda subject, message: heard.append(("second", subject, message["n"])))
    bus.subscribe("b", lambda subject, message: heard.append(("other", subject, message["n"])))
    assert bus.publish("a", {"n": 1}) == 2
    assert heard == [("first", "a", 1), ("second", "a", 1)]


def test_a_closed_subscription_hears_nothing_more() -> None:
    """Closing twice is fine and takes nobody else's subscription of the same sink away."""
    bus, heard = LocalBus(), list[int]()

    def sink(_: str, message: Any) -> None:
        heard.append(message["n"])

    first, second = bus.subscribe("a", sink), bus.subscribe("a", sink)
    first.close()
    first.close()
    assert bus.publish("a", {"n": 1}) == 1
    second.close()
    assert bus.publish("a", {"n": 2}) == 0
    assert heard == [1]
    assert bus.statistics() == {"subjects": 0, "sinks": 0}


def test_a_sink_may_end_subscriptions_while_it_is_called() -> None:
    """Its own and another's: the other is not called any more, not even for this message."""
    bus, heard = LocalBus(), list[str]()

    def end_both(_: str, message: Any) -> None:
        heard.append("first")
        first.close()
        second.close()

    first = bus.subscribe("a", end_both)
    second = bus.subscribe("a", lambda *_: heard.append("second"))
    assert bus.publish("a", {}) == 1
    assert heard == ["first"]
    assert bus.statistics()["sinks"] == 0
