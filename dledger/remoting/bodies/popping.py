"""Bodies of popping and of server-side assignment: 200151, 400 and 401."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import msgspec
from msgspec import Struct, field

from dledger.errors import MalformedBodyError
from dledger.model import MessageQueue
from dledger.remoting.bodies.codec import decode_json

ACKS_MAX = 4096
_BITS_TEXT_MAX = 4096


class BatchAckEntry(Struct, kw_only=True):
    """Messages of one queue that were popped together. Bit n of `bits` is offset `start` + n."""

    group: str = field(name="c")
    topic: str = field(name="t")
    retry_mark: str = field(name="r", default="0")
    start: int = field(name="so")
    queue_id: int = field(name="q")
    revive_queue: int = field(name="rq", default=0)
    pop_ms: int = field(name="pt")
    invisible_ms: int = field(name="it", default=0)
    bits: str = field(name="b")

    def bitmap(self) -> bytes:
        """Returns the bitmap, its lowest bit first.

        Raises:
            MalformedBodyError: It is not base64, or too long.
        """
        if len(self.bits) > _BITS_TEXT_MAX:
            raise MalformedBodyError(f"bit set of {len(self.bits)} characters")
        try:
            return base64.b64decode(self.bits, validate=True)
        except (ValueError, binascii.Error) as exc:
            raise MalformedBodyError(f"bit set {self.bits[:64]!r} is not base64") from exc


class BatchAck(Struct, kw_only=True):
    """BATCH_ACK_MESSAGE."""

    broker_name: str = field(name="brokerName", default="")
    acks: list[BatchAckEntry] = []


class QueryAssignment(Struct, kw_only=True):
    """QUERY_ASSIGNMENT: which queues does this member get?"""

    topic: str
    group: str = field(name="consumerGroup")
    client_id: str = field(name="clientId")
    strategy: str = field(name="strategyName", default="AVG")
    message_model: str = field(name="messageModel", default="CLUSTERING")


class QueueJson(Struct, kw_only=True, frozen=True):
    """A queue as JSON has it."""

    topic: str
    broker_name: str = field(name="brokerName")
    queue_id: int = field(name="queueId")


class Assignment(Struct, kw_only=True, frozen=True):
    """A queue, and whether it is pulled or popped; queue id -1: all of its broker."""

    mode: str
    queue: QueueJson = field(name="messageQueue")


class Assignments(Struct, kw_only=True):
    """The answer; `None`: nothing can be said now, the member keeps what it has."""

    assignments: list[Assignment] | None = field(name="messageQueueAssignments", default=None)


class RequestMode(Struct, kw_only=True):
    """SET_MESSAGE_REQUEST_MODE: `mode` is PULL or POP."""

    topic: str
    group: str = field(name="consumerGroup")
    mode: str
    share_queue_count: int = field(name="popShareQueueNum", default=0)


def decode_batch_ack(data: bytes) -> BatchAck:
    """Decodes a batch of acknowledgements.

    Raises:
        MalformedBodyError: It is malformed, or has more than 4,096 entries.
    """
    body = decode_json(data, BatchAck)
    if len(body.acks) > ACKS_MAX:
        raise MalformedBodyError(f"{len(body.acks)} acknowledgements; at most {ACKS_MAX}")
    return body


def encode_batch_ack(broker_name: str, acks: Sequence[BatchAckEntry]) -> bytes:
    """Returns the body of BATCH_ACK_MESSAGE."""
    return msgspec.json.encode(BatchAck(broker_name=broker_name, acks=list(acks)))


def decode_query_assignment(data: bytes) -> QueryAssignment:
    """Decodes a question for queues."""
    return decode_json(data, QueryAssignment)


def encode_assignments(queues: Sequence[MessageQueue] | None, mode: str) -> bytes:
    """Returns the body that answers QUERY_ASSIGNMENT; `None`: nothing can be said now."""
    if queues is None:
        return b"{}"
    entries = [
        Assignment(
            mode=mode,
            queue=QueueJson(
                topic=queue.topic, broker_name=queue.broker_name, queue_id=queue.queue_id
            ),
        )
        for queue in queues
    ]
    return msgspec.json.encode(Assignments(assignments=entries))


def decode_assignments(data: bytes) -> Assignments:
    """Decodes the answer to QUERY_ASSIGNMENT."""
    return decode_json(data, Assignments)


def decode_request_mode(data: bytes) -> RequestMode:
    """Decodes SET_MESSAGE_REQUEST_MODE."""
    return decode_json(data, RequestMode)


def encode_request_mode(mode: RequestMode) -> bytes:
    """Returns the body of SET_MESSAGE_REQUEST_MODE."""
    return msgspec.json.encode(mode)
