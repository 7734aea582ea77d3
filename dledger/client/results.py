"""What clients return: small immutable records."""

from __future__ import annotations

import msgspec

from dledger.message import ReceivedMessage
from dledger.model import MessageQueue, PullStatus, SendStatus


class SendResult(msgspec.Struct, frozen=True, gc=False):
    """A message that the cluster has stored.

    Attributes:
        message_id: The message's unique key; duplicates of one send share it.
        offset_message_id: Names the stored copy by replica address and physical offset.
        queue: Where it was stored.
        queue_offset: Its place there.
        status: How far it had come; from a DLedger broker always `SEND_OK`: on a majority's disks.
        outcome_unknown_attempts: Earlier attempts that were made without learning what became of
            them. For information: see `may_be_twice`.
        attempts: All attempts, this one included.
        deduplicated: One of the earlier attempts had stored the message, and the broker noticed.
        may_be_twice: An earlier attempt may have stored the message as well, because the broker
            does not recognise repeated sends (not a dledger broker, or `idempotent` is off).
            Otherwise the message is certainly there once.
        recall_handle: Takes a delayed message back before its time; empty for others.
    """

    message_id: str
    offset_message_id: str
    queue: MessageQueue
    queue_offset: int
    status: SendStatus = SendStatus.SEND_OK
    outcome_unknown_attempts: int = 0
    attempts: int = 1
    deduplicated: bool = False
    may_be_twice: bool = False
    recall_handle: str = ""


class PullResult(msgspec.Struct, frozen=True):
    """What one pull found.

    Attributes:
        status: Found, nothing new, nothing that matches the tags, or offset out of range.
        messages: In queue order, already filtered by tag.
        next_offset: Where to go on.
        offset_min, offset_max: The queue's bounds, as the answering replica knew them.
        suggested_broker_id: Which replica to ask next; 0 is the leader.
    """

    status: PullStatus
    messages: list[ReceivedMessage]
    next_offset: int
    offset_min: int
    offset_max: int
    suggested_broker_id: int = 0


class QueueProgress(msgspec.Struct, frozen=True):
    """How far a group has come in one queue; lag in messages."""

    queue: MessageQueue
    broker_offset: int
    consumer_offset: int
    last_timestamp_ms: int = 0

    @property
    def lag(self) -> int:
        """Messages not yet consumed and committed."""
        return max(0, self.broker_offset - self.consumer_offset)


class QueueBounds(msgspec.Struct, frozen=True):
    """Offsets of one queue: first readable, and one past the last."""

    queue: MessageQueue
    offset_min: int
    offset_max: int
    last_update_ms: int = 0


class TopicDescription(msgspec.Struct, frozen=True):
    """A topic as one broker group holds it."""

    name: str
    broker_name: str
    read_queue_count: int
    write_queue_count: int
    permission: int


class ProducerStatistics(msgspec.Struct, frozen=True):
    """Counters of a producer since it was made, and its present load."""

    sent: int
    failed: int
    requests: int
    retries: int
    in_flight: int
    waiting: int
