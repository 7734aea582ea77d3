"""The dead letters of consumer groups: looking at them, and giving them another chance.

A dead letter that is replayed goes to the retry topic of its group by default, so that this group
gets it again, under its original topic, and no other; or to its original topic, where every group
gets it. It stays among the dead letters as well: what was replayed is remembered as an offset.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import Enum
from typing import Final

import msgspec

from dledger.client.filters import subscribe
from dledger.client.offsets import Offsets
from dledger.client.puller import Puller
from dledger.client.session import ClientSession
from dledger.codes import DEAD_LETTER_PREFIX, RETRY_PREFIX, RequestCode
from dledger.errors import NotFoundError, RouteNotFoundError
from dledger.message import Property, ReceivedMessage, encode_properties, validate_group
from dledger.model import MessageQueue, PullStatus
from dledger.remoting.headers import SendMessageHeaderV2

# Replaying keeps its place in each dead-letter topic under this group's name.
REPLAY_GROUP: Final = "CID_RMQ_SYS_DLQ_REPLAY"
_REASON: Final = "DL_RETRY_REASON"
_HISTORY: Final = "DL_RETRY_HISTORY"
_PULL_COUNT: Final = 64
_PULL_BYTES: Final = 1024 * 1024

# What brokers and consumers noted on the way; the producer's own properties are the others.
_OF_DELAYS = {
    Property.DELAY,
    Property.TIMER_DELAY_SECONDS,
    Property.TIMER_DELAY_MS,
    Property.TIMER_DELIVER_MS,
    Property.TIMER_OUT_MS,
    Property.REAL_TOPIC,
    Property.REAL_QUEUE_ID,
}
_OF_DEATH = {Property.DEAD_LETTER_ORIGIN_TOPIC, Property.DEAD_LETTER_ORIGIN_MESSAGE_ID}
_OF_RETRIES = {
    Property.RETRY_TOPIC,
    Property.ORIGIN_MESSAGE_ID,
    Property.RECONSUME_TIME,
    Property.RECONSUME_TIMES_MAX,
    _REASON,
    _HISTORY,
}


class ReplayTarget(Enum):
    """Who gets a dead letter again."""

    GROUP = "group"
    TOPIC = "topic"


class DeadLetterQueue(msgspec.Struct, frozen=True):
    """A group's dead letters in one queue.

    Attributes:
        group: The consumer group.
        queue: Where they are.
        offset_min, offset_max: The queue's bounds.
        replayed: Offset up to which they were replayed; `None` if none ever was.
    """

    group: str
    queue: MessageQueue
    offset_min: int
    offset_max: int
    replayed: int | None

    @property
    def count(self) -> int:
        """Dead letters held."""
        return self.offset_max - self.offset_min

    @property
    def waiting(self) -> int:
        """Dead letters not replayed yet."""
        return self.offset_max - max(self.offset_min, self.replayed or 0)


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that its group could not process.

    Attributes:
        message: As it lies in the dead-letter topic.
        group: The consumer group.
        original_topic: Where it was sent to.
        original_message_id: Offset id of its first copy, empty if unknown.
        reason: What the consumer said last; empty if it said nothing.
        failed_at_ms: Times of the failures, as far as they were noted.
    """

    message: ReceivedMessage
    group: str
    original_topic: str
    original_message_id: str
    reason: str
    failed_at_ms: tuple[int, ...]


class DeadLetters:
    """Reads and replays dead letters. Made by `AsyncAdmin.dead_letters`.

    Errors as `AsyncAdmin`.
    """

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._offsets = Offsets(session)
        self._puller = Puller(session, REPLAY_GROUP)

    async def queues(self, group: str) -> list[DeadLetterQueue]:
        """Returns the queues of a group's dead letters; none if it never had any."""
        validate_group(group)
        try:
            route = await self._session.route(DEAD_LETTER_PREFIX + group, refresh=True)
        except RouteNotFoundError:
            return []
        return [
            DeadLetterQueue(
                group,
                queue,
                await self._offsets.minimum(queue),
                await self._offsets.maximum(queue),
                await self._offsets.committed(REPLAY_GROUP, queue),
            )
            for queue in route.subscribe_queues
        ]

    async def read(self, queue: DeadLetterQueue, start: int = 0) -> AsyncIterator[DeadLetter]:
        """Yields the dead letters of a queue from an offset up to the end as it was.

        Args:
            queue: From `queues`.
            start: Offset of the first one wanted; by default the oldest held.
        """
        subscription = subscribe(queue.queue.topic, "*", 0)
        at = max(start, queue.offset_min)
        while at < queue.offset_max:
            result = await self._puller.pull(
                queue.queue,
                at,
                subscription,
                count_max=_PULL_COUNT,
                bytes_max=_PULL_BYTES,
                suspend_s=0,
            )
            if result.status is not PullStatus.FOUND and result.next_offset <= at:
                raise NotFoundError(f"{queue.queue.topic} ends at {at}, not {queue.offset_max}")
            for message in result.messages:
                if message.queue_offset < queue.offset_max:
                    yield dead_letter(queue.group, message)
            at = result.next_offset

    async def replay(self, letter: DeadLetter, target: ReplayTarget) -> None:
        """Sends a dead letter again, as if it had never failed.

        Durability:
            On return it is committed by a majority. After an error of unknown outcome it may be
            there all the same, and replaying again make it come twice.
        """
        message = letter.message
        dropped = _OF_DELAYS | _OF_DEATH
        if target is ReplayTarget.GROUP:
            topic = RETRY_PREFIX + letter.group
            extra = {Property.RETRY_TOPIC: letter.original_topic}
        else:
            topic, extra = letter.original_topic, {}
            dropped |= _OF_RETRIES
        kept = {name: value for name, value in message.properties.items() if name not in dropped}
        header = SendMessageHeaderV2(
            producer_group=REPLAY_GROUP,
            topic=topic,
            queue_id=-1,
            sys_flag=message.sys_flag,
            born_timestamp_ms=message.born_timestamp_ms,
            flag=message.flag,
            properties=encode_properties({**kept, **extra}).decode(),
        )
        await self._session.call_leader(
            message.broker_name, RequestCode.SEND_MESSAGE_V2, header, message.body
        )

    async def note_replayed(self, queue: DeadLetterQueue, offset: int) -> None:
        """Remembers that the dead letters before an offset were replayed.

        Durability:
            On return it is committed by a majority.
        """
        await self._offsets.commit(REPLAY_GROUP, queue.queue, offset)


def dead_letter(group: str, message: ReceivedMessage) -> DeadLetter:
    """Returns what a message in a dead-letter topic says of itself."""
    named = message.properties
    times = [word for word in named.get(_HISTORY, "").split(",") if word.isascii()]
    return DeadLetter(
        message,
        group,
        named.get(Property.DEAD_LETTER_ORIGIN_TOPIC) or named.get(Property.RETRY_TOPIC, ""),
        named.get(Property.DEAD_LETTER_ORIGIN_MESSAGE_ID)
        or named.get(Property.ORIGIN_MESSAGE_ID, ""),
        named.get(_REASON, ""),
        tuple(int(word) for word in times if word.isdigit() and len(word) < 19),
    )
