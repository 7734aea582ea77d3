"""Questions that wait for an answer: request and reply over messages.

A request is an ordinary message that names the client that asks and a number of the question; the
consumer that processes it sends an answer with the same names, which the broker pushes to the
client over its own connection. Nothing of the answer is stored: a client that dies does not get it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from dledger.codes import RequestCode
from dledger.errors import DLedgerError, InvalidParameterError, RequestTimeoutError
from dledger.message import (
    Message,
    Property,
    ReceivedMessage,
    decode_properties,
    decompress_body,
    encode_properties,
)
from dledger.model import MessageQueue
from dledger.remoting.commands import Command
from dledger.remoting.headers import ReplyMessageHeader, SendMessageHeaderV2

if TYPE_CHECKING:
    from dledger.client.results import SendResult
    from dledger.client.session import ClientSession

logger = logging.getLogger(__name__)

_MESSAGE_TYPE = "MSG_TYPE"
_COMPRESSED = 1


class Requests:
    """The questions of one client that wait. Belongs to its loop."""

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id
        self._waiting: dict[str, asyncio.Future[ReceivedMessage]] = {}

    def open(self, message: Message, timeout_s: float) -> tuple[str, Message]:
        """Returns the name of a new question and the message that asks it."""
        name = str(uuid.uuid4())
        self._waiting[name] = asyncio.get_running_loop().create_future()
        properties = {
            **message.properties,
            Property.CORRELATION_ID: name,
            Property.REPLY_TO_CLIENT: self._client_id,
            Property.TTL: str(max(1, round(timeout_s * 1000))),
        }
        return name, msgspec.structs.replace(message, properties=properties)

    async def answer(self, name: str) -> ReceivedMessage:
        """Waits for the answer to a question."""
        return await self._waiting[name]

    def close(self, name: str) -> None:
        """Forgets a question."""
        future = self._waiting.pop(name, None)
        if future is not None:
            future.cancel()

    def received(self, command: Command) -> None:
        """Takes an answer that a broker pushes; one that nobody waits for is dropped.

        Raises:
            DLedgerError: It is malformed.
        """
        header = command.header(ReplyMessageHeader)
        named = decode_properties(header.properties.encode())
        future = self._waiting.get(named.get(Property.CORRELATION_ID, ""))
        if future is None or future.done():
            logger.info("answer to nobody correlation_id=%s", named.get(Property.CORRELATION_ID))
            return
        body, sys_flag = command.body, header.sys_flag
        if sys_flag & _COMPRESSED:
            body, sys_flag = decompress_body(body, sys_flag), sys_flag & ~_COMPRESSED
        future.set_result(
            ReceivedMessage(
                topic=header.topic,
                body=bytes(body),
                properties=named,
                queue_id=header.queue_id,
                flag=header.flag,
                sys_flag=sys_flag,
                born_timestamp_ms=header.born_timestamp_ms,
                born_host=header.born_host.lstrip("/"),
                store_timestamp_ms=header.store_timestamp_ms,
                store_host=header.store_host.lstrip("/"),
            )
        )


def reply_header(
    request: ReceivedMessage,
    group: str,
    queue: MessageQueue,
    properties: dict[str, str],
    now_ms: int,
) -> SendMessageHeaderV2:
    """Returns the header of an answer.

    Raises:
        InvalidParameterError: The message is no request.
    """
    named = request.properties
    client_id = named.get(Property.REPLY_TO_CLIENT, "")
    name = named.get(Property.CORRELATION_ID, "")
    if not client_id or not name:
        raise InvalidParameterError("the message is not a request: it does not say who asks")
    merged = {
        **properties,
        _MESSAGE_TYPE: "reply",
        Property.CORRELATION_ID: name,
        Property.REPLY_TO_CLIENT: client_id,
        Property.TTL: named.get(Property.TTL, "3000"),
    }
    return SendMessageHeaderV2(
        producer_group=group,
        topic=queue.topic,
        queue_id=queue.queue_id,
        born_timestamp_ms=now_ms,
        properties=encode_properties(merged).decode(),
    )


def reply_topic(request: ReceivedMessage) -> str:
    """Returns the topic to which answers go.

    Raises:
        InvalidParameterError: The message does not name its cluster.
    """
    cluster = request.properties.get(Property.CLUSTER)
    if not cluster:
        raise InvalidParameterError("the message does not name the cluster it came from")
    return f"{cluster}_REPLY_TOPIC"


def handle_push(requests: Requests | None, command: Command) -> DLedgerError | None:
    """Takes a pushed answer; returns what is wrong with it."""
    if requests is None or command.code != RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT:
        return InvalidParameterError("nobody asked")
    try:
        requests.received(command)
    except DLedgerError as error:
        return error
    return None


class Question:
    """One request and the wait for its answer."""

    def __init__(self, session: ClientSession, message: Message, timeout_s: float) -> None:
        if session.requests is None:
            session.requests = Requests(session.client_id)
        self._session = session
        self._requests = session.requests
        self._timeout_s = timeout_s
        self._name, self._message = self._requests.open(message, timeout_s)

    async def ask(
        self, send: Callable[[Message], Awaitable[SendResult]], *, guess_queues: int
    ) -> ReceivedMessage:
        """Sends the question and returns the answer; once only.

        Raises:
            RequestTimeoutError: No answer in time.
            Otherwise as `send`.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._be_known(guess_queues)
                result = await send(self._message)
                if result.attempts > 1:
                    # Another leader, perhaps, who does not know us yet.
                    await self._session.heartbeat_now()
                return await self._requests.answer(self._name)
        except TimeoutError:
            text = f"no answer to {self._name} within {self._timeout_s} s"
            raise RequestTimeoutError(text) from None
        finally:
            self._requests.close(self._name)

    async def _be_known(self, guess_queues: int) -> None:
        """Sees to it that the brokers of the topic know where to push answers to."""
        route = await self._session.route(self._message.topic, guess_queues=guess_queues)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        for name in sorted({queue.broker_name for queue in route.publish_queues}):
            await self._session.leader(name, deadline)
        await self._session.heartbeat_now()


async def send_reply(
    session: ClientSession,
    group: str,
    request: ReceivedMessage,
    body: bytes,
    properties: dict[str, str],
    now_ms: int,
) -> None:
    """Sends the answer to a request; see `AsyncProducer.reply`."""
    queue = MessageQueue(reply_topic(request), request.broker_name, 0)
    header = reply_header(request, group, queue, properties, now_ms)
    await session.route(queue.topic)
    await session.call_leader(queue.broker_name, RequestCode.SEND_REPLY_MESSAGE_V2, header, body)
