"""Which queue a message goes to: pure choice over a topic's publish list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from dledger.errors import InvalidParameterError
from dledger.message import java_hash
from dledger.model import MessageQueue


def queue_of_key(queues: Sequence[MessageQueue], shard_key: str) -> MessageQueue:
    """Returns the queue of a shard key: Java's string hash modulo the number of queues.

    All messages of a key keep their order as long as the list of queues stays the same.

    Args:
        queues: The topic's publish list, sorted; not empty.
        shard_key: Any text.
    """
    return queues[abs(java_hash(shard_key)) % len(queues)]


class PublishList:
    """A topic's publish list that finds a queue at once, however many there are."""

    def __init__(self, topic: str, queues: Sequence[MessageQueue] = ()) -> None:
        self.queues = tuple(queues)
        self.broker_names = tuple(dict.fromkeys(queue.broker_name for queue in queues))
        self._topic = topic
        self._places = {queue: place for place, queue in enumerate(self.queues)}
        # The first group that has a queue comes last here, and stays.
        self._by_id = {queue.queue_id: queue for queue in reversed(self.queues)}

    def __repr__(self) -> str:
        return f"<PublishList {self._topic} queues={len(self.queues)}>"

    def place(self, queue: MessageQueue) -> int | None:
        """Returns the position of a queue in the list, None if it is not there."""
        return self._places.get(queue)

    def explicit(self, wanted: MessageQueue | int) -> MessageQueue:
        """Returns the queue asked for; a bare id means that queue of the first broker that has it.

        Raises:
            InvalidParameterError: The topic has no such queue. Nothing was sent.
        """
        if isinstance(wanted, MessageQueue):
            if wanted in self._places:
                return wanted
        elif (queue := self._by_id.get(wanted)) is not None:
            return queue
        raise InvalidParameterError(f"topic {self._topic} has no writable queue {wanted}")


class RoundRobin:
    """Takes turns over a list that may change between calls."""

    def __init__(self, start: int = 0) -> None:
        self._next = start

    def order(self, count: int) -> Iterator[int]:
        """Returns all indexes below `count`, beginning with the one whose turn it is."""
        start = self._next % count if count else 0
        return chain(range(start, count), range(start))

    def taken(self, index: int) -> None:
        """Notes that `index` had its turn."""
        self._next = index + 1
