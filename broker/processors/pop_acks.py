"""ACK_MESSAGE (200051), BATCH_ACK_MESSAGE (200151) and CHANGE_MESSAGE_INVISIBLETIME (200053).

Serving leader only. A handle that is no longer the message's newest is answered with 208
(NO_MESSAGE), which clients take for "does not exist". Acknowledging what is done already succeeds.

Source: RocketMQ `AckMessageProcessor`, `ChangeInvisibleTimeProcessor`. We differ: a stale handle is
refused; there it is accepted and has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker import names
from broker.context import BrokerContext
from broker.feature_commands import encode_feature
from broker.pop_acks import PopAcks
from broker.pop_dead_letters import PopDeadLetters
from broker.pop_state import (
    SPAN_MAX,
    Ack,
    Acked,
    Change,
    ChangeVisibility,
    RunKey,
    offsets_of,
    pack_bits,
    unpack_bits,
)
from broker.processors.pop import INVISIBLE_MAX_MS
from dledger.codes import RETRY_PREFIX, ResponseCode
from dledger.errors import (
    DLedgerError,
    InvalidParameterError,
    InvariantError,
    NotLeaderError,
    RequestError,
    TopicNotFoundError,
)
from dledger.message import NORMAL_MARK, ORDER_REVIVE_QUEUE, ReceiptHandle, decode_receipt
from dledger.remoting.bodies.popping import BatchAckEntry, decode_batch_ack
from dledger.remoting.commands import Command
from dledger.remoting.headers import to_ext
from dledger.remoting.pop_headers import (
    AckMessageHeader,
    ChangeInvisibleTimeHeader,
    ChangeInvisibleTimeResponse,
)
from dledger.remoting.server import Connection


class StaleHandleError(RequestError):
    """The message was given out again, or is done with. Nothing was done."""

    response_code = ResponseCode.NO_MESSAGE


class PopAckProcessor:
    """Ends and prolongs what was given out."""

    def __init__(
        self,
        context: BrokerContext,
        acks: PopAcks,
        dead_letters: PopDeadLetters,
        *,
        on_acknowledged: Callable[[str], None],
        on_visibility: Callable[[str], None],
        redirect: Callable[[Connection, Command], None],
    ) -> None:
        """Prepares the processor.

        Args:
            context: The broker's parts.
            acks: Gathers acknowledgements.
            dead_letters: What must not be acknowledged any more.
            on_acknowledged: Called with a topic of which less is out than before.
            on_visibility: Called with a topic of which more can be popped than before.
            redirect: Takes a request that had no effect because this replica stopped leading.
        """
        self._context = context
        self._acks = acks
        self._dead_letters = dead_letters
        self._on_acknowledged = on_acknowledged
        self._on_visibility = on_visibility
        self._redirect = redirect

    def ack(self, connection: Connection, command: Command) -> None:
        """200051: one message is processed.

        Raises:
            DLedgerError: Refused; nothing was proposed.

        Durability: when answered with success, committed on a majority.
        """
        header = command.header(AckMessageHeader)
        handle = decode_receipt(header.handle, header.queue_offset)
        bits = pack_bits(1 << _place(handle, header.queue_offset))
        ack = self._checked(
            header.consumer_group,
            header.topic,
            header.queue_id,
            RunKey(handle.start, handle.pop_ms),
            bits,
        )
        self._add(connection, command, [ack], order=handle.revive_queue == ORDER_REVIVE_QUEUE)

    def batch_ack(self, connection: Connection, command: Command) -> None:
        """200151: several are; success only if none of their handles is stale."""
        body = decode_batch_ack(command.body)
        if not body.acks:
            raise InvalidParameterError("a batch of no acknowledgements")
        acks = [self._of_entry(entry) for entry in body.acks]
        order = any(entry.revive_queue == ORDER_REVIVE_QUEUE for entry in body.acks)
        self._add(connection, command, acks, order=order)

    def change(self, connection: Connection, command: Command) -> None:
        """200053: sets anew for how long a message is out; its handle is another one then."""
        header = command.header(ChangeInvisibleTimeHeader)
        if not 0 <= header.invisible_ms <= INVISIBLE_MAX_MS:
            raise InvalidParameterError(f"invisibleTime must lie in 0..{INVISIBLE_MAX_MS} ms")
        handle = decode_receipt(header.handle, header.queue_offset)
        _place(handle, header.queue_offset)
        key = RunKey(handle.start, handle.pop_ms)
        # Checked like an acknowledgement of the same message.
        self._checked(header.consumer_group, header.topic, header.queue_id, key, b"\1")
        place = (header.consumer_group, header.topic, header.queue_id, header.queue_offset)
        if self._dead_letters.is_under_way(place):
            raise StaleHandleError("the message is on its way to the dead letters")
        self._context.gate.check()
        changed = Change(*place[:3], key, header.queue_offset, header.invisible_ms)
        command_bytes = encode_feature(ChangeVisibility(self._context.clock.wall_ms(), [changed]))

        def done(result: object, error: DLedgerError | None) -> None:
            if error is not None:
                self._fail(connection, command, error)
                return
            if not isinstance(result, tuple):
                raise InvariantError(f"changing visibility returned {result!r}")
            if not result[0]:
                self._fail(connection, command, StaleHandleError("the handle is stale"))
                return
            answer = ChangeInvisibleTimeResponse(
                pop_ms=result[0],
                invisible_ms=header.invisible_ms,
                revive_queue=handle.revive_queue,
            )
            connection.reply(command, 0, to_ext(answer))
            self._on_visibility(header.topic)

        self._context.raft.propose(command_bytes, done)

    # --- inside ---------------------------------------------------------------------------------

    def _add(
        self, connection: Connection, command: Command, acks: Sequence[Ack], *, order: bool
    ) -> None:
        left = len(acks)
        worst: DLedgerError | None = None

        def done(acked: Acked | None, error: DLedgerError | None) -> None:
            nonlocal left, worst
            left -= 1
            if error is None and acked is Acked.STALE:
                error = StaleHandleError("the handle is stale, or nothing was given out by it")
            if error is not None and (worst is None or not error.definite):
                worst = error
            if left:
                return
            if worst is None:
                connection.reply(command)
            else:
                self._fail(connection, command, worst)
            notify = self._on_visibility if order else self._on_acknowledged
            for topic in dict.fromkeys(ack.topic for ack in acks):
                notify(topic)

        for ack in acks:
            try:
                self._acks.add(ack, done)
            except DLedgerError as refused:
                done(None, refused)

    def _of_entry(self, entry: BatchAckEntry) -> Ack:
        bits = pack_bits(unpack_bits(entry.bitmap()))
        topic = entry.topic
        if entry.retry_mark != NORMAL_MARK and not topic.startswith(RETRY_PREFIX):
            topic = names.retry_topic(entry.group)
        if min(entry.start, entry.pop_ms, entry.queue_id) < 0 or not bits:
            raise InvalidParameterError("a number of an acknowledgement is out of range")
        key = RunKey(entry.start, entry.pop_ms)
        return self._checked(entry.group, topic, entry.queue_id, key, bits)

    def _checked(self, group: str, topic: str, queue_id: int, key: RunKey, bits: bytes) -> Ack:
        if self._context.store.topic(topic) is None:
            raise TopicNotFoundError(f"topic {topic} does not exist")
        if not 0 < len(group.encode()) <= 255 or not 0 <= queue_id < 1 << 31:
            raise InvalidParameterError(f"group {group[:64]!r} or queue {queue_id} is out of range")
        if len(bits) > SPAN_MAX // 8 or key.start >= 1 << 62 or key.pop_ms >= 1 << 62:
            raise InvalidParameterError("the handle is out of range")
        for offset in offsets_of(key.start, unpack_bits(bits)):
            if self._dead_letters.is_under_way((group, topic, queue_id, offset)):
                raise StaleHandleError("the message is on its way to the dead letters")
        return Ack(group, topic, queue_id, key, bits)

    def _fail(self, connection: Connection, command: Command, error: DLedgerError) -> None:
        if isinstance(error, NotLeaderError):
            self._redirect(connection, command)
        else:
            connection.reply_error(command, error)


def _place(handle: ReceiptHandle, queue_offset: int) -> int:
    place = queue_offset - handle.start
    if not 0 <= place < SPAN_MAX:
        raise InvalidParameterError(f"offset {queue_offset} does not belong to the handle")
    return place
