"""The short way of single sends: what one turn brought of them is taken in one go.

Most sends are of one kind: one message, not delayed, not transactional, to a queue that exists.
For them no command, no proposal part and no callback is made for each: those of one turn of the
event loop, of all connections and to all queues, are one request of the appender, and the answers
to each connection leave in one go. Whatever is not certainly of that kind is left to
`SendProcessor.send`, and so is every refusal: both ways store and answer the same bytes
(tests/property/test_broker_short_sends.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from broker import names
from broker.context import BrokerContext
from broker.half_messages import TRANSACTION_BITS
from broker.intake import REGION, MessageIntake
from broker.messages_command import EncodedMessage, Singles
from dledger.codes import Permission
from dledger.errors import (
    DLedgerError,
    InvalidParameterError,
    InvariantError,
    TopicNotFoundError,
)
from dledger.message import StoredTemplate, pack_host
from dledger.model import TopicConfig
from dledger.remoting.commands import Command, decode_command
from dledger.remoting.frames import Frame
from dledger.remoting.sends import SendAnswers, decode_send, may_be_send
from dledger.remoting.server import Connection

ANSWER_FIELDS: Mapping[str, str] = MappingProxyType(
    {"MSG_REGION": REGION, "TRACE_ON": "true"}  # what every answer says beside the place
)
TURN_BYTES_MAX = 128 * 1024  # of stored messages: as much as makes a log entry
_DESTINATIONS_MAX = 1024
_BORN_HOST = "born_host"
_UNKNOWN_HOST = bytes(8)
_WRITE = int(Permission.WRITE)

Fail = Callable[[Connection, Command, DLedgerError], None]


class _Destination:
    """What sends to a topic have in common."""

    __slots__ = ("queue_count", "template", "topic", "topic_id")

    def __init__(self, topic: TopicConfig, template: StoredTemplate) -> None:
        self.topic = topic
        self.topic_id = topic.topic_id
        self.template = template
        self.queue_count = max(topic.write_queue_count, topic.read_queue_count)


class _Turn:
    """Sends of all connections, in the order in which they came, until they are answered."""

    __slots__ = (
        "began_s",
        "frames",
        "messages",
        "opaques",
        "places",
        "shares",
        "stored_bytes",
        "topics",
    )

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.stored_bytes = 0
        self.topics: dict[int, str] = {}  # names by topic id
        # One for each send.
        self.frames: list[Frame] = []
        self.opaques: list[int] = []
        self.places: list[tuple[int, int]] = []  # topic id, queue id
        self.messages: list[EncodedMessage] = []
        # Connections, how many of the sends came over each, and bytes in their bodies.
        self.shares: list[tuple[Connection, int, int]] = []


class ShortSends:
    """Takes ordinary sends in. Runs on the serving leader only."""

    def __init__(
        self, context: BrokerContext, intake: MessageIntake, *, store_host: bytes, fail: Fail
    ) -> None:
        """Prepares it.

        Args:
            context: The broker's parts.
            intake: Encodes messages.
            store_host: Packed address in message ids.
            fail: Answers a request that was refused after it was taken, or redirects it.
        """
        self._context = context
        self._intake = intake
        self._fail = fail
        self._answers = SendAnswers(store_host.hex().upper(), ANSWER_FIELDS)
        self._destinations: dict[tuple[str, int], _Destination] = {}
        self._turn: _Turn | None = None
        self._turn_bytes_max = min(TURN_BYTES_MAX, context.appender.request_bytes_max // 2)

    def take(self, connection: Connection, frames: deque[Frame]) -> bool:
        """Takes ordinary sends from the front, as many as there are room for; whether any.

        They are handed over at the end of the turn, and answered once their messages are
        committed and applied.
        """
        if not may_be_send(frames[0]):
            return False
        try:
            self._context.gate.check()
        except DLedgerError:
            return False
        turn = self._turn or self._begin()
        room, bytes_room = connection.room()
        host = peer_host(connection)
        taken, destinations = turn.frames, self._destinations
        opaques, places, messages = turn.opaques, turn.places, turn.messages
        plain, topic_of = self._intake.plain, self._context.store.topic
        first = number = len(taken)
        last = None
        size, stored_bytes = 0, turn.stored_bytes
        body_max, stored_max = self._turn_bytes_max // 4, self._turn_bytes_max
        while frames and number - first < room and stored_bytes < stored_max:
            frame = frames[0]
            body = frame.body
            request = decode_send(frame)
            if request is None or len(body) > body_max or size + len(body) > bytes_room:
                break
            opaque, header = request
            name, queue_id = header.topic, header.queue_id
            to = destinations.get((name, header.sys_flag))
            if to is None or to.topic is not topic_of(name):
                to = self._destination(name, header.sys_flag)
            if (
                to is None
                or not 0 <= queue_id < to.queue_count
                or header.reconsume_times
                or header.producer_id
            ):
                break
            message = plain(to.template, host, header, body)
            if message is None:
                break
            taken.append(frames.popleft())
            if to is not last:
                last = to
                turn.topics[to.topic_id] = name
            opaques.append(opaque)
            places.append((to.topic_id, queue_id))
            messages.append(message)
            number += 1
            size += len(body)
            stored_bytes += len(message.stored)
        if number == first:
            return False
        turn.shares.append((connection, number - first, size))
        turn.stored_bytes = stored_bytes
        connection.took(number - first, size)
        if stored_bytes >= stored_max:
            self.hand_over()
        return True

    def hand_over(self) -> None:
        """Gives the appender what was taken. What is appended after it comes behind it."""
        turn, self._turn = self._turn, None
        if turn is None or not turn.frames:
            return
        singles = Singles(turn.places, turn.messages)

        def decided(missing: Collection[int], error: DLedgerError | None) -> None:
            if error is not None:
                self._reply(turn, [], dict.fromkeys(range(len(turn.frames)), error))
            else:
                self._answer(turn, singles, missing)

        try:
            self._context.appender.append_singles(singles, decided)
        except InvariantError:
            raise
        except DLedgerError as refused:
            self._reply(turn, [], dict.fromkeys(range(len(turn.frames)), refused))

    def _begin(self) -> _Turn:
        turn = self._turn = _Turn(self._context.clock.monotonic())
        self._context.appender.before_flush(self.hand_over)
        return turn

    def _destination(self, name: str, sys_flag: int) -> _Destination | None:
        """Returns a topic that ordinary sends may go to, None if it is not certainly one."""
        topic = self._context.store.topic(name)
        if (
            topic is None
            or name in names.FORBIDDEN_SEND_TOPICS
            or not topic.permission & _WRITE
            or sys_flag & TRANSACTION_BITS
            or topic.attributes  # quotas are counted one by one
        ):
            return None
        try:
            template = self._intake.template(name, sys_flag)
        except DLedgerError:
            return None
        if len(self._destinations) >= _DESTINATIONS_MAX:
            self._destinations.clear()
        destination = self._destinations[name, sys_flag] = _Destination(topic, template)
        return destination

    def _answer(self, turn: _Turn, singles: Singles, missing: Collection[int]) -> None:
        """Answers with the places of the messages; in missing topics nothing was stored."""
        took_s = self._context.clock.monotonic() - turn.began_s
        topics = turn.topics
        counts, sizes = dict.fromkeys(topics, 0), dict.fromkeys(topics, 0)
        for (topic_id, _), frame in zip(turn.places, turn.frames, strict=True):
            counts[topic_id] += 1
            sizes[topic_id] += len(frame.body)
        refused: dict[int, DLedgerError] = {}
        for topic_id, name in topics.items():
            if topic_id in missing:
                gone = TopicNotFoundError(f"topic {name} was deleted meanwhile")
                for number, (at, _) in enumerate(turn.places):
                    if at == topic_id:
                        refused[number] = gone
            else:
                count, size = counts[topic_id], sizes[topic_id]
                self._context.statistics.stored(name, count, size, took_s, requests=count)
        answers = self._answers.encode(
            turn.opaques,
            [queue_id for _, queue_id in turn.places],
            singles.queue_offsets,
            singles.physical_offsets,
            [message.unique_key for message in turn.messages],
        )
        self._reply(turn, answers, refused)

    def _reply(self, turn: _Turn, answers: list[bytes], refused: dict[int, DLedgerError]) -> None:
        """Answers each connection's sends in one go, but for those that were refused."""
        stop = 0
        for connection, count, size in turn.shares:
            start, stop = stop, stop + count
            share = answers[start:stop]
            if refused:
                share = []
                for number in range(start, stop):
                    frame, error = turn.frames[number], refused.get(number)
                    if error is None:
                        share.append(answers[number])
                    else:
                        size -= len(frame.body)
                        self._fail(connection, decode_command(frame), error)
            if share:
                connection.reply_run(b"".join(share), len(share), size)


def peer_host(connection: Connection) -> bytes:
    """Returns the packed address of a connection's peer."""
    known = connection.context.get(_BORN_HOST)
    if isinstance(known, bytes):
        return known
    packed = packed_host(connection.peer_host, str(connection.peer_port))
    connection.context[_BORN_HOST] = packed
    return packed


def packed_host(ip: str, port: str) -> bytes:
    """Returns a packed address.

    IPv6 senders are stored as an unspecified IPv4 address, because several clients cannot read
    anything else.
    """
    try:
        packed = pack_host(ip, int(port))
    except (InvalidParameterError, ValueError):
        return _UNKNOWN_HOST
    return packed if len(packed) == 8 else _UNKNOWN_HOST
