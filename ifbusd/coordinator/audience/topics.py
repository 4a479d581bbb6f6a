"""Who subscribed to which topic, in memory: a view like the board, which feeds it."""

from __future__ import annotations


class Topics:
    """The mutable state is the subscriptions by topic and by swarm."""

    def __init__(self) -> None:
        self._swarms: dict[str, set[str]] = {}
        self._topics: dict[str, set[str]] = {}

    def clear(self) -> None:
        """Forget all."""
        self._swarms.clear()
        self._topics.clear()

    def put(self, swarm_id: str, topic: str) -> None:
        """A swarm subscribed."""
        self._swarms.setdefault(topic, set()).add(swarm_id)
        self._topics.setdefault(swarm_id, set()).add(topic)

    def drop(self, swarm_id: str, topic: str) -> None:
        """And no longer."""
        for index, key, value in ((self._swarms, topic, swarm_id), (self._topics, swarm_id, topic)):
            found = index.get(key)
            if found is not None:
                found.discard(value)
                if not found:
                    del index[key]

    def subscribers(self, topic: str) -> list[str]:
        """The swarms that subscribed to a topic, by name."""
        return sorted(self._swarms.get(topic, ()))

    def topics_of(self, swarm_id: str) -> list[str]:
        """What a swarm subscribed to, by name."""
        return sorted(self._topics.get(swarm_id, ()))
