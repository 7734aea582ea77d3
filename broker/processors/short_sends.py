"""The short way of single sends: what one read brought of them is taken in one go.

Most sends are of one kind: one message, not delayed, not transactional, to a queue that exists.
For them no command, no proposal part and no callback is made for each; per queue, those of one read
become one request of the appender, and their answers are made in one go. Whatever is not certainly
of that kind is left to `SendProcessor.send`, and so is every refusal: both ways store and answer
the same bytes (tests/property/test_broker_short_sends.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

from broker import names
from broker.context import BrokerContext
from broker.half_messages import TRANSACTION_BITS
from broker.intake import REGION, MessageIntake
from broker.messages_command import EncodedMessage
from dledger.codes import Permission
from dledger.errors import DLedgerError, InvalidParameterError, InvariantError
from dledger.message import StoredTemplate, pack_host
from dledger.model import TopicConfig
from dledger.remoting.commands import Command, decode_command
from dledger.remoting.frames import Frame
from dledger.remoting.sends import SendAnswers, SendHeader, decode_send, may_be_send
from dledger.remoting.server import Connection

ANSWER_FIELDS: Mapping[str, str] = MappingProxyType(
    {"MSG_REGION": REGION, "TRACE_ON": "true"}  # what every answer says beside the place
)
RUN_BYTES_MAX = 128 * 1024  # of stored messages: as much as makes a log entry
_PLACES_MAX = 1024
_BORN_HOST = "born_host"
_UNKNOWN_HOST = bytes(8)
_WRITE = int(Permission.WRITE)

Fail = Callable[[Connection, Command, DLedgerError], None]


class _Run:
    """Sends of one connection to one queue, and where they go."""

    __slots__ = (
        "answers",
        "frames",
        "keys",
        "messages",
        "opaques",
        "queue_id",
        "sys_flag",
        "template",
        "topic",
    )

    def __init__(
        self,
        topic: TopicConfig,
        queue_id: int,
        sys_flag: int,
        template: StoredTemplate,
        answers: SendAnswers,
    ) -> None:
        self.topic = topic
        self.queue_id = queue_id
        self.sys_flag = sys_flag
        self.template = template
        self.answers = answers
        self.frames: list[Frame] = []
        self.opaques: list[int] = []
        self.keys: list[bytes] = []
        self.messages: list[EncodedMessage] = []


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
        self._host = store_host.hex().upper()
        self._fail = fail
        self._answers: dict[int, SendAnswers] = {}
        self._run_bytes_max = min(RUN_BYTES_MAX, context.appender.request_bytes_max // 2)

    def take(self, connection: Connection, frames: deque[Frame]) -> bool:
        """Takes ordinary sends from the front, as many as there are room for; whether any.

        They are answered later, once their messages are committed and applied.
        """
        if not may_be_send(frames[0]):
            return False
        try:
            self._context.gate.check()
        except DLedgerError:
            return False
        room, bytes_room = connection.room()
        runs: dict[tuple[str, int], _Run] = {}
        plain, get = self._intake.plain, runs.get
        count = size = stored_bytes = 0
        body_max, stored_max = self._run_bytes_max // 4, self._run_bytes_max
        while frames and count < room and stored_bytes < stored_max:
            frame = frames[0]
            body = frame.body
            request = decode_send(frame)
            if request is None or len(body) > body_max or size + len(body) > bytes_room:
                break
            opaque, header = request
            place = (header.topic, header.queue_id)
            run = get(place) or self._begin(connection, header)
            if (
                run is None
                or header.sys_flag != run.sys_flag
                or header.reconsume_times
                or header.producer_id
            ):
                break
            message = plain(run.template, header, body)
            if message is None:
                break
            frames.popleft()
            runs[place] = run
            run.frames.append(frame)
            run.opaques.append(opaque)
            run.keys.append(message.unique_key)
            run.messages.append(message)
            count += 1
            size += len(body)
            stored_bytes += len(message.stored)
        if not count:
            return False
        connection.took(count, size)
        for run in runs.values():
            self._append(connection, run)
        return True

    def _begin(self, connection: Connection, header: SendHeader) -> _Run | None:
        """Returns a run to a place that ordinary sends may go to."""
        name, queue_id, sys_flag = header.topic, header.queue_id, header.sys_flag
        topic = self._context.store.topic(name)
        if (
            topic is None
            or name in names.FORBIDDEN_SEND_TOPICS
            or not topic.permission & _WRITE
            or sys_flag & TRANSACTION_BITS
            or topic.attributes  # quotas are counted one by one
            or not 0 <= queue_id < max(topic.write_queue_count, topic.read_queue_count)
        ):
            return None
        try:
            template = self._intake.template(name, queue_id, sys_flag, 0, peer_host(connection))
        except DLedgerError:
            return None
        answers = self._answers.get(queue_id)
        if answers is None:
            if len(self._answers) >= _PLACES_MAX:
                self._answers.clear()
            answers = self._answers[queue_id] = SendAnswers(self._host, queue_id, ANSWER_FIELDS)
        return _Run(topic, queue_id, sys_flag, template, answers)

    def _append(self, connection: Connection, run: _Run) -> None:
        context = self._context
        began_s = context.clock.monotonic()
        count = len(run.messages)
        size = sum([len(frame.body) for frame in run.frames])

        def appended(
            queue_offset: int, physical_offsets: list[int], error: DLedgerError | None
        ) -> None:
            if error is not None:
                self._refuse(connection, run, error)
                return
            took_s = context.clock.monotonic() - began_s
            context.statistics.stored(run.topic.name, count, size, took_s, requests=count)
            answers = run.answers.encode(run.opaques, queue_offset, physical_offsets, run.keys)
            connection.reply_run(answers, count, size)

        try:
            context.appender.append(run.topic, run.queue_id, run.messages, appended)
        except InvariantError:
            raise
        except DLedgerError as refused:
            self._refuse(connection, run, refused)

    def _refuse(self, connection: Connection, run: _Run, error: DLedgerError) -> None:
        for frame in run.frames:
            self._fail(connection, decode_command(frame), error)


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
