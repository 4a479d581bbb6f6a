"""The bus of one host: a table of subscribers, called in turn."""

from __future__ import annotations

from ifbusd.bus.base import Message, Sink


class LocalBus:
    """Fan-out inside one process. The mutable state is the table below, nothing else."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, dict[LocalSubscription, None]] = {}  # in order of arrival

    def publish(self, subject: str, message: Message) -> int:
        """Call the sinks of `subject` in order of subscription; how many there were."""
        subscriptions = self._subscriptions.get(subject)
        if not subscriptions:
            return 0
        told = 0
        for subscription in tuple(subscriptions):
            if subscription in subscriptions:  # a sink may end any subscription
                subscription.sink(subject, message)
                told += 1
        return told

    def subscribe(self, subject: str, sink: Sink) -> LocalSubscription:
        """Add a sink; it hears what is published from now on."""
        subscription = LocalSubscription(self, subject, sink)
        self._subscriptions.setdefault(subject, {})[subscription] = None
        return subscription

    def drop(self, subscription: LocalSubscription) -> None:
        """Take a subscription out; nothing happens if it is not in."""
        subscriptions = self._subscriptions.get(subscription.subject)
        if subscriptions is not None:
            subscriptions.pop(subscription, None)
            if not subscriptions:
                del self._subscriptions[subscription.subject]

    def statistics(self) -> dict[str, int]:
        """Numbers of subjects and sinks."""
        return {"subjects": len(self._subscriptions), "sinks": sum(map(len, self._subscriptions.values()))}


class LocalSubscription:
    """One sink in the table."""

    def __init__(self, bus: LocalBus, subject: str, sink: Sink) -> None:
        self.subject, self.sink = subject, sink
        self._bus = bus

    def close(self) -> None:
        """Take the sink out; twice is fine."""
        self._bus.drop(self)
