"""Messages of one queue between the pull and the commit: a pure in-flight window."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypeVar

from dledger.errors import invariant
from dledger.model import MessageQueue


class Stored(Protocol):
    """What the window needs to know of a message."""

    queue_offset: int
    size_bytes: int


M = TypeVar("M", bound=Stored)

# One message that fails again and again must not let the finished ones behind it pile up for ever.
SPAN_FACTOR = 4


class ProcessQueue:
    """Knows which messages of a queue were read and which of them are processed.

    The offset to commit is the smallest one not processed, so that after a crash nothing is
    skipped; what was processed above it comes again. Messages may be finished in any order.
    Bounded by `messages_max` and `bytes_max`: `is_full` says when not to read on.
    """

    def __init__(
        self, queue: MessageQueue, start: int, *, messages_max: int, bytes_max: int
    ) -> None:
        self.queue = queue
        self.next_offset = start  # where the next pull begins
        self.committed_offset = -1  # what the broker is known to hold
        self.finished_ms = 0  # wall time at which messages were last known to be finished
        self.dropped = False  # no longer ours: nothing of it may be delivered or committed
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._order: deque[int] = deque()  # offsets read, ascending; finished ones leave in front
        self._sizes: dict[int, int] = {}  # offsets not finished -> stored bytes
        self._bytes = 0

    def __repr__(self) -> str:
        state = "dropped" if self.dropped else "full" if self.is_full else "open"
        return (
            f"<ProcessQueue {self.queue.topic}/{self.queue.broker_name}/{self.queue.queue_id} "
            f"next={self.next_offset} commit={self.commit_offset} unfinished={len(self._sizes)} "
            f"{state}>"
        )

    @property
    def is_full(self) -> bool:
        """Whether no more should be read before something is finished."""
        return (
            len(self._sizes) >= self._messages_max
            or self._bytes >= self._bytes_max
            or len(self._order) >= SPAN_FACTOR * self._messages_max
        )

    @property
    def unfinished_count(self) -> int:
        """Messages read and not finished."""
        return len(self._sizes)

    @property
    def commit_offset(self) -> int:
        """The smallest offset that is not processed: what a new owner must begin with."""
        return self._order[0] if self._order else self.next_offset

    def add(self, messages: Sequence[M], next_offset: int) -> list[M]:
        """Takes what a pull returned.

        Args:
            messages: In queue order. Those below `next_offset` as it stood were read before (the
                broker may return whole batches) and are left out.
            next_offset: Where the next pull begins; never moves back.

        Returns:
            The messages that are new, to be delivered.
        """
        position = self.next_offset
        fresh = [message for message in messages if message.queue_offset >= position]
        for message in fresh:
            self._order.append(message.queue_offset)
            self._sizes[message.queue_offset] = message.size_bytes
            self._bytes += message.size_bytes
        if fresh:
            position = fresh[-1].queue_offset + 1
        self.next_offset = max(position, next_offset)
        invariant(len(self._order) >= len(self._sizes), "window lost an offset", queue=self.queue)
        return fresh

    def finish(self, queue_offset: int) -> bool:
        """Marks a message processed; returns whether it was still open."""
        size = self._sizes.pop(queue_offset, None)
        if size is None:
            return False
        self._bytes -= size
        order, sizes = self._order, self._sizes
        while order and order[0] not in sizes:
            order.popleft()
        return True
