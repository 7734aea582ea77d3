"""Popping from one broker group: what a simple consumer asks of a leader, one request each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dledger.client.filters import MATCH_ALL, Subscription
from dledger.client.session import ClientSession
from dledger.codes import EXT_NO_FORWARD, RETRY_PREFIX, RequestCode, ResponseCode
from dledger.errors import (
    BrokerResponseError,
    ConnectFailedError,
    ConnectionLostError,
    DLedgerError,
    InvalidParameterError,
    ReceiptHandleError,
    RemoteProtocolError,
    RequestTimeoutError,
)
from dledger.message import (
    NORMAL_MARK,
    Property,
    ReceiptHandle,
    ReceivedMessage,
    decode_receipt,
    decode_run,
    decode_start_offsets,
    retry_mark,
)
from dledger.remoting.commands import Command
from dledger.remoting.errors import response_error
from dledger.remoting.headers import to_ext
from dledger.remoting.pop_headers import (
    AckMessageHeader,
    ChangeInvisibleTimeHeader,
    ChangeInvisibleTimeResponse,
    NotificationHeader,
    NotificationResponse,
    PopMessageHeader,
    PopMessageResponse,
)

ANY_QUEUE = -1
_GRACE_S = 5.0  # how much longer than the broker's own limit we wait for an answer
_NOTHING = frozenset(
    {ResponseCode.POLLING_TIMEOUT, ResponseCode.POLLING_FULL, ResponseCode.PULL_NOT_FOUND}
)


@dataclass(frozen=True, slots=True)
class Source:
    """A topic at one broker group."""

    topic: str
    broker_name: str


class Popper:
    """Pops for one consumer group."""

    def __init__(self, session: ClientSession, group: str) -> None:
        self._session = session
        self._group = group

    async def pop(
        self,
        source: Source,
        subscription: Subscription,
        *,
        count_max: int,
        invisible_ms: int,
        from_newest: bool,
        wait_s: float,
        timeout_s: float,
    ) -> list[ReceivedMessage]:
        """Gets messages; each has its receipt handle in the property POP_CK.

        Args:
            source: Where.
            subscription: Which are wanted.
            count_max: At most so many.
            invisible_ms: For how long nobody else gets them.
            from_newest: Where a group begins that has never been in a queue.
            wait_s: How long the broker may wait for some; 0: not at all.
            timeout_s: Limit of finding the leader.

        Raises:
            BrokerResponseError: The broker refused.
            ConnectFailedError, ConnectionLostError, RequestTimeoutError: No answer. Messages may
                have been given out; they come again when their time is over.
        """
        header = PopMessageHeader(
            consumer_group=self._group,
            topic=source.topic,
            queue_id=ANY_QUEUE,
            message_count_max=count_max,
            invisible_ms=invisible_ms,
            poll_ms=int(wait_s * 1000),
            born_ms=0,
            init_mode=1 if from_newest else 0,
            expression_type=subscription.expression_type,
            expression=subscription.expression,
        )
        answer = await self._ask(
            source, RequestCode.POP_MESSAGE, to_ext(header), wait_s=wait_s, timeout_s=timeout_s
        )
        if answer.code in _NOTHING:
            return []
        return self._messages(source, answer)

    async def wait(self, source: Source, subscription: Subscription, wait_s: float) -> bool:
        """Waits until the broker has something; whether it has. Errors as `pop`."""
        header = NotificationHeader(
            consumer_group=self._group,
            topic=source.topic,
            queue_id=ANY_QUEUE,
            poll_ms=int(wait_s * 1000),
            born_ms=0,
            expression_type=subscription.expression_type,
            expression=subscription.expression,
        )
        answer = await self._ask(
            source, RequestCode.NOTIFICATION, to_ext(header), wait_s=wait_s, timeout_s=wait_s
        )
        return answer.header(NotificationResponse).has_message

    async def ack(self, message: ReceivedMessage) -> None:
        """Takes a message for processed. Errors as `AsyncSimpleConsumer.ack`."""
        handle, topic = self._handle(message)
        header = AckMessageHeader(
            consumer_group=self._group,
            topic=topic,
            queue_id=handle.queue_id,
            handle=handle.encode(),
            queue_offset=handle.offset,
        )
        await self._settle(handle, RequestCode.ACK_MESSAGE, header)

    async def change(self, message: ReceivedMessage, invisible_ms: int) -> None:
        """Sets anew for how long nobody else gets a message, and its handle."""
        handle, topic = self._handle(message)
        header = ChangeInvisibleTimeHeader(
            consumer_group=self._group,
            topic=topic,
            queue_id=handle.queue_id,
            handle=handle.encode(),
            queue_offset=handle.offset,
            invisible_ms=invisible_ms,
        )
        answer = await self._settle(handle, RequestCode.CHANGE_MESSAGE_INVISIBLETIME, header)
        changed = answer.header(ChangeInvisibleTimeResponse)
        message.properties[Property.POP_CHECKPOINT] = handle._replace(
            start=handle.offset,
            pop_ms=changed.pop_ms,
            invisible_ms=changed.invisible_ms,
            revive_queue=changed.revive_queue,
        ).encode()

    # --- inside -------------------------------------------------------------------------------

    async def _ask(
        self,
        source: Source,
        code: RequestCode,
        ext: dict[str, str],
        *,
        wait_s: float,
        timeout_s: float,
    ) -> Command:
        session, name = self._session, source.broker_name
        deadline = asyncio.get_running_loop().time() + max(timeout_s, 0.05)
        address = await session.leader(name, deadline)
        try:
            answer = await session.long_poll(
                name, address, code, {**ext, EXT_NO_FORWARD: "1"}, timeout_s=wait_s + _GRACE_S
            )
        except (ConnectFailedError, ConnectionLostError, RequestTimeoutError) as error:
            session.note_failure(name, address, error)
            raise
        session.note_answer(name, address, answer)
        if answer.code != ResponseCode.SUCCESS and answer.code not in _NOTHING:
            raise response_error(answer, address)
        return answer

    async def _settle(
        self,
        handle: ReceiptHandle,
        code: RequestCode,
        header: AckMessageHeader | ChangeInvisibleTimeHeader,
    ) -> Command:
        try:
            return await self._session.call_leader(handle.broker_name, code, header)
        except BrokerResponseError as error:
            if error.code == ResponseCode.NO_MESSAGE:
                raise ReceiptHandleError(str(error)) from error
            raise

    def _messages(self, source: Source, answer: Command) -> list[ReceivedMessage]:
        header = answer.header(PopMessageResponse)
        starts = decode_start_offsets(header.start_offsets)
        found = decode_run(answer.body, broker_name=source.broker_name)
        for message in found:
            # Brokers that move what comes again into a topic of its own send it with its handle.
            if Property.POP_CHECKPOINT in message.properties:
                continue
            mark = retry_mark(message.topic)
            start = starts.get((mark, message.queue_id))
            if start is None:
                raise RemoteProtocolError(
                    f"queue {message.queue_id} is not in startOffsetInfo {header.start_offsets!r}"
                )
            message.properties[Property.POP_CHECKPOINT] = ReceiptHandle(
                start,
                header.pop_ms,
                header.invisible_ms,
                header.revive_queue,
                mark,
                source.broker_name,
                message.queue_id,
                message.queue_offset,
            ).encode()
            if mark != NORMAL_MARK:
                message.topic = message.properties.get(Property.RETRY_TOPIC, message.topic)
        return found

    def _handle(self, message: ReceivedMessage) -> tuple[ReceiptHandle, str]:
        text = message.properties.get(Property.POP_CHECKPOINT)
        if text is None:
            raise InvalidParameterError("the message was not received by a simple consumer")
        handle = decode_receipt(text, message.queue_offset)
        topic = message.topic
        if handle.retry_mark != NORMAL_MARK:
            topic = RETRY_PREFIX + self._group
        return handle, topic


def everything(topic: str, version: int) -> Subscription:
    """Returns a subscription to all messages of a topic, whatever its name."""
    return Subscription(topic, MATCH_ALL, (), version)


def is_lasting(error: DLedgerError) -> bool:
    """Whether asking again, here or elsewhere, will not help."""
    return isinstance(error, BrokerResponseError) and error.code in (
        ResponseCode.SUBSCRIPTION_PARSE_FAILED,
        ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
        ResponseCode.INVALID_PARAMETER,
        ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
    )
