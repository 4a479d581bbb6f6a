"""The bus of one host: a table of subscribers, called in turn."""

from __future__ import annotations

from ifbusd.bus.base import Message, Sink


class LocalBus:
    """Fan-out inside one process. The mutable state is the table below, nothing else."""

    def __init__(self) -> None:
        self._sinks: dict[str, list[Sink]] = {}

    def publish(self, subject: str, message: Message) -> int:
        """Call the sinks of `subject` in order of subscription; how many there were."""
        sinks = self._sinks.get(subject)
        if not sinks:
            return 0
        for sink in tuple(sinks):  # a sink may end its own subscription
            sink(subject, message)
        return len(sinks)

    def subscribe(self, subject: str, sink: Sink) -> LocalSubscription:
        """Add a sink; it hears what is published from now on."""
        self._sinks.setdefault(subject, []).append(sink)
        return LocalSubscription(self, subject, sink)

    def _drop(self, subject: str, sink: Sink) -> None:
        sinks = self._sinks.get(subject, [])
        if sink in sinks:
            sinks.remove(sink)
            if not sinks:
                del self._sinks[subject]

    def statistics(self) -> dict[str, int]:
        """Numbers of subjects and sinks."""
        return {"subjects": len(self._sinks), "sinks": sum(map(len, self._sinks.values()))}


class LocalSubscription:
    """One sink in the table."""

    def __init__(self, bus: LocalBus, subject: str, sink: Sink) -> None:
        self._bus, self._subject, self._sink = bus, subject, sink

    def close(self) -> None:
        """Take the sink out; twice is fine."""
        self._bus._drop(self._subject, self._sink)
