"""Subscriptions to topics: durable, so that who was away finds in its inbox what was said about them."""

from __future__ import annotations

from ifbus.models import check_identifier
from ifbusd.coordinator.core import Answer, Core, limit_exceeded
from ifbusd.coordinator.model import TOPICS
from ifbusd.identity import Caller
from ifbusd.operation import Tx


class TopicSubscriptions(Core):
    """Subscribe, unsubscribe, list."""

    async def subscribe_topic(self, caller: Caller, swarm_id: str, topic: str) -> Answer:
        """See `interface.Coordinator.subscribe_topic`."""
        check_identifier(topic, "topic")
        await self.board.show_told()

        def subscribe(tx: Tx) -> Answer:
            self._governor.require_owner(tx, caller, swarm_id)
            key = f"{TOPICS}{swarm_id}/{topic}"
            if tx.get_stored(key) is None:
                used, allowed = len(self.board.topics.topics_of(swarm_id)), self._config.topics_per_swarm
                if used >= allowed:
                    raise limit_exceeded(
                        f"subscribe to {topic}", "topics_per_swarm", used, allowed, "unsubscribe from some"
                    )
                tx.put(key, self._now_ms())
            tx.detail["topic"] = topic
            return {"topic": topic}

        return await self._operations.run(caller, "coordinator.subscribe_topic", swarm_id, subscribe)

    async def unsubscribe_topic(self, caller: Caller, swarm_id: str, topic: str) -> Answer:
        """See `interface.Coordinator.unsubscribe_topic`."""
        check_identifier(topic, "topic")

        def unsubscribe(tx: Tx) -> Answer:
            self._governor.require_owner(tx, caller, swarm_id)
            key = f"{TOPICS}{swarm_id}/{topic}"
            if tx.get_stored(key) is not None:
                tx.delete(key)
            tx.detail["topic"] = topic
            return {"topic": topic}

        return await self._operations.run(caller, "coordinator.unsubscribe_topic", swarm_id, unsubscribe)

    async def list_topics(self, caller: Caller, swarm_id: str) -> Answer:
        """See `interface.Coordinator.list_topics`."""
        await self._operations.look(lambda tx: self._governor.require_owner(tx, caller, swarm_id))
        await self.board.catch_up()
        return {"topics": self.board.topics.topics_of(swarm_id)}
