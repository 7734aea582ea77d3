"""Reading stored messages by queue offset, time, physical offset or key."""

from __future__ import annotations

import struct
from collections.abc import Callable

from broker.context import LogView
from dledger.errors import OffsetOutOfRangeError, RemoteProtocolError
from dledger.message import STORED_SIZE_MIN, decode_stored, stored_store_timestamp
from dledger.model import TopicConfig
from store.state_store import StateStore

_SIZE = struct.Struct(">I")
_SIZE_MAX = 8 * 1024 * 1024


class MessageReader:
    """Finds messages that are committed and applied on this replica."""

    def __init__(self, store: StateStore, log: LogView) -> None:
        self._store = store
        self._log = log

    def store_timestamp(self, topic_id: int, queue_id: int, queue_offset: int) -> int | None:
        """Returns when a message was stored, None if the queue does not hold it."""
        offset_min, offset_max = self._store.queue_bounds(topic_id, queue_id)
        if not offset_min <= queue_offset < offset_max:
            return None
        unit = self._store.read_units(topic_id, queue_id, queue_offset, 1)[0]
        return stored_store_timestamp(self._log.read(unit.physical_offset, unit.size_bytes))

    def search_by_time(
        self, topic: TopicConfig, queue_id: int, timestamp_ms: int, *, upper: bool
    ) -> int:
        """Returns the queue offset that belongs to a store timestamp.

        Args:
            topic: The topic.
            queue_id: Its queue.
            timestamp_ms: Store time looked for.
            upper: False: the first message stored at or after the time. True: the last one stored
                at or before it.

        Returns:
            One past the newest message if all are older; the oldest if all are newer.
        """

        def read(offset: int) -> int:
            return self.store_timestamp(topic.topic_id, queue_id, offset) or 0

        offset_min, offset_max = self._store.queue_bounds(topic.topic_id, queue_id)
        if not upper:
            return first_at_or_after(offset_min, offset_max, timestamp_ms, read)
        after = first_at_or_after(offset_min, offset_max, timestamp_ms + 1, read)
        return after if after == offset_max else max(offset_min, after - 1)

    def begins_young(self, topic_id: int, queue_id: int, young_bytes: int) -> bool:
        """Tells whether a queue holds its first message still, and that not far from the end.

        Args:
            topic_id, queue_id: The queue.
            young_bytes: How far is not far; 0: no queue is young.
        """
        if young_bytes == 0 or queue_id < 0:
            return False
        offset_min, offset_max = self._store.queue_bounds(topic_id, queue_id)
        if offset_min > 0:
            return False
        if offset_max == 0:
            return True
        unit = self._store.read_units(topic_id, queue_id, 0, 1)[0]
        return self._log.offset_end - unit.physical_offset <= young_bytes

    def view(self, physical_offset: int) -> memoryview | None:
        """Returns the stored message that begins at a physical offset, None if none does.

        The offset comes from a client and may point anywhere, even into a body that looks like a
        message. So what lies there must be a message, and its queue's unit must point back at it;
        that also shows that it has been applied here.
        """
        try:
            head = self._log.read(physical_offset, STORED_SIZE_MIN)
            (size,) = _SIZE.unpack_from(head)
            if not STORED_SIZE_MIN <= size <= _SIZE_MAX:
                return None
            data = self._log.read(physical_offset, size)
            message = decode_stored(data, decompress=False)
        except (OffsetOutOfRangeError, RemoteProtocolError):
            return None
        topic = self._store.topic(message.topic)
        if topic is None:
            return None
        offset_min, offset_max = self._store.queue_bounds(topic.topic_id, message.queue_id)
        if not offset_min <= message.queue_offset < offset_max:
            return None
        unit = self._store.read_units(topic.topic_id, message.queue_id, message.queue_offset, 1)[0]
        if (unit.physical_offset, unit.size_bytes) != (physical_offset, size):
            return None
        return data


def first_at_or_after(start: int, stop: int, time_ms: int, read: Callable[[int], int]) -> int:
    """Returns the first offset in [start, stop) whose time is not below `time_ms`, or `stop`.

    Times grow with the offset, but for a new leader whose clock is behind the old one's; there the
    search still ends, near the place.

    Cost: one read for each halving.
    """
    low, high = start, stop
    while low < high:
        middle = (low + high) // 2
        if read(middle) < time_ms:
            low = middle + 1
        else:
            high = middle
    return low
