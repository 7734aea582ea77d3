"""Questions that wait for an answer: request and reply over messages.

A request is an ordinary message that names the client that asks and a number of the question; the
consumer that processes it sends an answer with the same names, which the broker pushes to the
client over its own connection. Nothing of the answer is stored: a client that dies does not get it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid

import msgspec

from dledger.codes import RequestCode
from dledger.errors import DLedgerError, InvalidParameterError
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
