"""Pulls that wait for messages. Pure: values and `now_ms` in, lists of pulls to answer out.

A pull that finds nothing is parked under its queue until a message arrives there or its deadline
passes. The table never answers anybody; it says who is due. Deadlines lie in buckets of 50 ms, so
that parking, waking and expiring cost the same however many pulls wait, and a pull that was woken
leaves nothing behind (a heap would keep its deadline for up to a minute).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

from dledger.errors import FlowControlError, invariant

BUCKET_MS = 50


class ParkedPull:
    """One waiting pull.

    Attributes:
        owner: Number of the connection that waits.
        topic_id: Topic of the queue.
        queue_id: Queue of the topic.
        offset: First queue offset that has not been looked at. Invariant: nothing below it and
            at or above the client's own offset passes the pull's filter.
        deadline_ms: When the pull is to be answered in any case.
        request: What the shell needs for the answer.
    """

    __slots__ = ("bucket", "deadline_ms", "offset", "owner", "queue_id", "request", "topic_id")

    def __init__(
        self,
        *,
        owner: int,
        topic_id: int,
        queue_id: int,
        offset: int,
        deadline_ms: int,
        request: Any,
    ) -> None:
        self.owner = owner
        self.topic_id = topic_id
        self.queue_id = queue_id
        self.offset = offset
        self.deadline_ms = deadline_ms
        self.request = request
        self.bucket = -1  # -1: not parked

    def __repr__(self) -> str:
        where = f"topic_id={self.topic_id} queue_id={self.queue_id} offset={self.offset}"
        return f"<ParkedPull owner={self.owner} {where} deadline_ms={self.deadline_ms}>"


@dataclass(frozen=True, slots=True)
class LongPollStatistics:
    """What the table holds."""

    parked_count: int
    queue_count: int
    owner_count: int


class LongPolls:
    """The table of waiting pulls, by queue, by owner and by deadline."""

    def __init__(self, *, parked_max: int, parked_per_owner_max: int) -> None:
        self._parked_max = parked_max
        self._parked_per_owner_max = parked_per_owner_max
        # Dicts of pulls are ordered sets: a woken list must not depend on hash order.
        self._queues: dict[tuple[int, int], dict[ParkedPull, None]] = {}
        self._owners: dict[int, dict[ParkedPull, None]] = {}
        # Invariant: the heap holds each bucket of the table once. A bucket that becomes empty stays
        # until it comes to the top: there are at most (longest wait / BUCKET_MS) of them.
        self._buckets: dict[int, dict[ParkedPull, None]] = {}
        self._bucket_heap: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def park(self, pull: ParkedPull) -> None:
        """Holds a pull until it is woken, expires or is dropped.

        Raises:
            FlowControlError: A limit is reached; the text names it. Nothing was parked.
        """
        if self._count >= self._parked_max:
            raise FlowControlError(f"parked_pulls_max = {self._parked_max} is reached")
        owned = self._owners.get(pull.owner)
        if owned is not None and len(owned) >= self._parked_per_owner_max:
            limit = self._parked_per_owner_max
            raise FlowControlError(f"parked_pulls_per_connection_max = {limit} is reached")
        invariant(pull.bucket == -1, "a pull is parked twice", pull=pull)
        # Rounded up: never answered before its deadline.
        pull.bucket = -(-pull.deadline_ms // BUCKET_MS)
        bucket = self._buckets.get(pull.bucket)
        if bucket is None:
            bucket = self._buckets[pull.bucket] = {}
            heapq.heappush(self._bucket_heap, pull.bucket)
        bucket[pull] = None
        self._queues.setdefault((pull.topic_id, pull.queue_id), {})[pull] = None
        self._owners.setdefault(pull.owner, {})[pull] = None
        self._count += 1

    def arrived(self, topic_id: int, queue_id: int, offset_max: int) -> list[ParkedPull]:
        """Takes out the pulls for which a queue now holds something they have not looked at.

        Args:
            topic_id: Topic that grew.
            queue_id: Its queue.
            offset_max: One past the queue's newest message.
        """
        waiting = self._queues.get((topic_id, queue_id))
        if waiting is None:
            return []
        woken = [pull for pull in waiting if pull.offset < offset_max]
        for pull in woken:
            self._remove(pull)
        return woken

    def waiting(self, topic_id: int, queue_id: int) -> list[ParkedPull]:
        """Returns the pulls that wait at a queue; they stay."""
        return list(self._queues.get((topic_id, queue_id), ()))

    def expire(self, now_ms: int) -> list[ParkedPull]:
        """Takes out the pulls whose deadline has passed."""
        expired: list[ParkedPull] = []
        heap = self._bucket_heap
        while heap and heap[0] * BUCKET_MS <= now_ms:
            pulls = list(self._buckets[heap[0]])
            expired.extend(pulls)
            for pull in pulls:
                self._remove(pull)
            del self._buckets[heapq.heappop(heap)]
        return expired

    def drop_owner(self, owner: int) -> list[ParkedPull]:
        """Takes out the pulls of a connection that is gone."""
        return self._take(list(self._owners.get(owner, ())))

    def drop_topic(self, topic_id: int) -> list[ParkedPull]:
        """Takes out the pulls of a topic that is gone."""
        keys = [key for key in self._queues if key[0] == topic_id]
        return self._take([pull for key in keys for pull in self._queues[key]])

    def topic_ids(self) -> list[int]:
        """Returns the topics in which pulls wait, sorted."""
        return sorted({topic_id for topic_id, _ in self._queues})

    def drop_all(self) -> list[ParkedPull]:
        """Takes out everything, for a broker that stops."""
        return self._take([pull for owned in self._owners.values() for pull in owned])

    def next_deadline_ms(self) -> int | None:
        """Returns when `expire` should be called next, None if nothing waits."""
        heap = self._bucket_heap
        while heap and not self._buckets[heap[0]]:
            del self._buckets[heapq.heappop(heap)]
        return heap[0] * BUCKET_MS if heap else None

    def statistics(self) -> LongPollStatistics:
        """Returns what the table holds."""
        return LongPollStatistics(self._count, len(self._queues), len(self._owners))

    def __repr__(self) -> str:
        return f"<LongPolls parked={self._count} queues={len(self._queues)}>"

    def _take(self, pulls: list[ParkedPull]) -> list[ParkedPull]:
        for pull in pulls:
            self._remove(pull)
        return pulls

    def _remove(self, pull: ParkedPull) -> None:
        _discard(self._queues, (pull.topic_id, pull.queue_id), pull)
        _discard(self._owners, pull.owner, pull)
        del self._buckets[pull.bucket][pull]
        pull.bucket = -1
        self._count -= 1


def _discard(table: dict[Any, dict[ParkedPull, None]], key: Any, pull: ParkedPull) -> None:
    members = table[key]
    del members[pull]
    if not members:
        del table[key]
