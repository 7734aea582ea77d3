"""Messages on their way to a queue, and which of them leave together: pure.

Every message queue has a *lane* with at most one request under way. What is sent meanwhile
gathers and leaves as one batch when the lane is free; so batches grow with the load by themselves,
a lone message never waits, and the order within a queue survives retries. Messages without a key
or queue of their own wait per topic and are spread over free lanes by whole batches.

Layout of a message in a batch body (big endian):

    0      4      8     12     16          20      20+n        22+n
    +------+------+------+------+----------+-------+-----------+------------+
    | size | 0    | 0    | flag | body len | body  | props len | properties |
    +------+------+------+------+----------+-------+-----------+------------+
     int32  int32  int32  int32   int32              int16
"""

from __future__ import annotations

import asyncio
import itertools
import operator
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dledger.codes import PROPERTIES_BYTES_MAX
from dledger.errors import MessageRejectedError
from dledger.model import MessageQueue

_HEAD = struct.Struct(">iiiii")
_LENGTH = struct.Struct(">h")
_FIXED_BYTES = _HEAD.size + _LENGTH.size
_is_alone = operator.attrgetter("alone")
_keys = operator.attrgetter("keys")
_KEY_MARK = "UNIQ_KEY\x01"
_KEY_BYTES = len(f"{_KEY_MARK}{'0' * 32}\x02")  # of the property; all keys are of one length

# Properties that give one message a fate of its own; a batch has one fate.
_ALONE_PROPERTIES = frozenset(
    {"DELAY", "TIMER_DELAY_SEC", "TIMER_DELAY_MS", "TIMER_DELIVER_MS", "TRAN_MSG"}
)


def wants_to_be_alone(properties: dict[str, str]) -> bool:
    """Whether a message with these properties must not share a batch."""
    return bool(properties) and not _ALONE_PROPERTIES.isdisjoint(properties)


class Pending(msgspec.Struct):
    """One message (or one user-made batch) between `send` and its result.

    Attributes:
        future: What the caller awaits; a `list` of results if `keys` is set, else one result.
        key: Unique key of the message; "" for a user-made batch, and until `give_keys`.
        body: As stored; for a user-made batch the encoded elements.
        properties: Encoded, "" for a user-made batch; without the key until `give_keys`.
        keys: Unique keys of a user-made batch's messages.
        alone: Travels in a request of its own. A user-made batch does not: a request is stored
            whole and in order, so batches that share one keep what was promised of each.
        pinned: Belongs to one queue (explicit or by shard key) and stays there.
        deadline: On the loop's clock; set when the message is under way.
        attempts, unknown, refusals: How it fared so far.
    """

    future: asyncio.Future[Any]
    key: str
    body: bytes
    properties: bytes
    flag: int = 0
    sys_flag: int = 0
    keys: tuple[str, ...] = ()
    alone: bool = False
    pinned: bool = False
    deadline: float = 0.0
    attempts: int = 0
    unknown: int = 0
    refusals: int = 0

    @property
    def count(self) -> int:
        """Messages in it."""
        return len(self.keys) or 1

    @property
    def size_bytes(self) -> int:
        """Bytes it takes in a batch body, its key included."""
        key_bytes = 0 if self.key or self.keys else _KEY_BYTES
        return _FIXED_BYTES + len(self.body) + len(self.properties) + key_bytes


def give_keys(items: Sequence[Pending], new_keys: Callable[[int], list[str]]) -> None:
    """Gives their unique keys to those that have none yet; they keep them for all attempts.

    Args:
        items: Messages, as they leave.
        new_keys: Returns so many new keys.
    """
    bare = [item for item in items if not item.key and not item.keys]
    if not bare:
        return
    keys = new_keys(len(bare))
    # One text for all, cut into pieces of one length: half the cost of one after the other.
    encoded = (_KEY_MARK + f"\x02{_KEY_MARK}".join(keys) + "\x02").encode()
    at = 0
    for item, key in zip(bare, keys, strict=True):
        item.key = key
        item.properties += encoded[at : at + _KEY_BYTES]
        at += _KEY_BYTES


def encode_elements(items: list[Pending]) -> bytes:
    """Returns the batch body of these messages; bodies are copied once."""
    pieces: list[bytes] = []
    # Neighbours are often of one size: then their lengths are packed once.
    shape = (-1, -1, 0)
    head = length = b""
    for item in items:
        body, properties = item.body, item.properties
        if item.keys:
            pieces.append(body)
            continue
        own = (len(body), len(properties), item.flag)
        if own != shape:
            shape = own
            body_length, properties_length, flag = own
            size = _FIXED_BYTES + body_length + properties_length
            head = _HEAD.pack(size, 0, 0, flag, body_length)
            length = _LENGTH.pack(properties_length)
        pieces += (head, body, length, properties)
    return b"".join(pieces)


def encode_similar(bodies: Sequence[bytes], properties: bytes, keys: Sequence[str]) -> bytes:
    """Returns the batch body of messages that differ in body and key only, as `encode_elements`.

    Args:
        bodies: One for each message.
        properties: Encoded, without the key.
        keys: One for each message, of the length of all keys.
    """
    properties_length = len(properties) + _KEY_BYTES
    fixed = _FIXED_BYTES + properties_length
    lengths = list(map(len, bodies))
    sizes = [fixed + length for length in lengths]
    none = itertools.repeat(0)
    heads = map(_HEAD.pack, sizes, none, none, none, lengths)
    lead = itertools.repeat(_LENGTH.pack(properties_length) + properties + _KEY_MARK.encode())
    columns = zip(
        heads, bodies, lead, map(str.encode, keys), itertools.repeat(b"\x02"), strict=False
    )
    return b"".join(itertools.chain.from_iterable(columns))


def check_properties(properties: bytes) -> bytes:
    """Returns encoded properties if they fit their length field.

    Raises:
        MessageRejectedError: More than 32,767 bytes. Nothing was sent.
    """
    if len(properties) > PROPERTIES_BYTES_MAX:
        raise MessageRejectedError(
            f"properties of {len(properties)} bytes exceed {PROPERTIES_BYTES_MAX}"
        )
    return properties


class Lane:
    """One message queue: at most one request under way, the pinned rest waiting in order."""

    __slots__ = ("busy", "queue", "waiting")

    def __init__(self, queue: MessageQueue) -> None:
        self.queue = queue
        self.busy = False
        self.waiting: deque[Pending] = deque()

    def __repr__(self) -> str:
        state = "busy" if self.busy else "idle"
        return f"<Lane {self.queue.broker_name}/{self.queue.queue_id} {state} {len(self.waiting)}>"


def take_batch(waiting: deque[Pending], *, count_max: int, bytes_max: int) -> list[Pending]:
    """Takes the next messages that may leave together, in order; at least one if there is one.

    A message whose caller no longer waits (cancelled) is sent all the same.

    Args:
        waiting: Where they are taken from.
        count_max: Messages; those of a user-made batch count one by one.
        bytes_max: Of the batch body.
    """
    count = min(count_max, len(waiting))
    first = list(itertools.islice(waiting, count))
    # Nearly always all of them may: then no sizes are added up one by one.
    size = sum([len(item.body) + len(item.properties) for item in first])
    if (
        size + count * (_FIXED_BYTES + _KEY_BYTES) <= bytes_max
        and not any(map(_is_alone, first))
        and not any(map(_keys, first))
    ):
        for _ in first:
            waiting.popleft()
        return first
    batch: list[Pending] = []
    count = size = 0
    while waiting:
        item = waiting[0]
        count += item.count
        size += item.size_bytes
        if batch and (item.alone or count > count_max or size > bytes_max):
            break
        batch.append(waiting.popleft())
        if item.alone:
            break
    return batch


def put_back(waiting: deque[Pending], batch: list[Pending]) -> None:
    """Puts messages back to the front, in their order, to be tried again."""
    waiting.extendleft(reversed(batch))


def total_messages(items: Sequence[Pending]) -> int:
    """Returns the number of messages in these items; a user-made batch counts as its messages."""
    return len(items) + sum([len(item.keys) - 1 for item in items if item.keys])


def share_count(waiting: int, idle_lanes: int, *, count_min: int, count_max: int) -> int:
    """Returns how many waiting messages the next idle lane should take.

    Spreading what waits evenly keeps all lanes (and broker groups) at work; but not so thinly that
    the cost of a request is paid for a handful of messages.
    """
    even = -(-waiting // max(idle_lanes, 1))
    return max(1, min(count_max, max(even, count_min)))
