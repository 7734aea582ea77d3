"""Which queue a message goes to: pure choice over a topic's publish list."""

from __future__ import annotations

from collections.abc import Sequence

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


def explicit_queue(
    queues: Sequence[MessageQueue], topic: str, wanted: MessageQueue | int
) -> MessageQueue:
    """Returns the queue asked for; a bare id means that queue of the first broker that has it.

    Raises:
        InvalidParameterError: The topic has no such queue. Nothing was sent.
    """
    if isinstance(wanted, MessageQueue):
        if wanted in queues:
            return wanted
    else:
        for queue in queues:
            if queue.queue_id == wanted:
                return queue
    raise InvalidParameterError(f"topic {topic} has no writable queue {wanted}")


class RoundRobin:
    """Takes turns over a list that may change between calls."""

    def __init__(self, start: int = 0) -> None:
        self._next = start

    def order(self, count: int) -> range | list[int]:
        """Returns all indexes below `count`, beginning with the one whose turn it is."""
        start = self._next % count if count else 0
        return [*range(start, count), *range(start)]

    def taken(self, index: int) -> None:
        """Notes that `index` had its turn."""
        self._next = index + 1
