"""SEND_REPLY_MESSAGE (324, 325): an answer on its way to the client that asked.

The answer is pushed (326) over the connection of the producer that asked, which names itself in the
request's REPLY_TO_CLIENT. Only the leader does this: producers send their heartbeats to leaders.

Source: RocketMQ `ReplyMessageProcessor`. We differ: answers are not stored.
"""

from __future__ import annotations

import asyncio

from broker import names
from broker.context import BrokerContext
from broker.processors.clients import ClientProcessor
from dledger.codes import MESSAGE_BODY_BYTES_MAX, RequestCode, ResponseCode
from dledger.errors import (
    DLedgerError,
    InvalidParameterError,
    MessageRejectedError,
    RequestError,
)
from dledger.message import Property, decode_properties, encode_properties
from dledger.remoting.commands import Command
from dledger.remoting.headers import SendMessageHeader, SendMessageHeaderV2
from dledger.remoting.server import Connection

_PUSH_TIMEOUT_S = 3.0
# After a change of leader clients need a moment to say that they are here.
_APPEAR_S = 0.7
_APPEAR_PAUSE_S = 0.05
_PUSH_TIME = "PUSH_REPLY_TIME"


class ReplyNotDeliveredError(RequestError):
    """The client that asked is not here, or did not take the answer."""

    response_code = ResponseCode.SYSTEM_ERROR


class ReplyProcessor:
    """Passes answers on. Runs on the serving leader only."""

    def __init__(self, context: BrokerContext, clients: ClientProcessor) -> None:
        self._context = context
        self._clients = clients

    async def reply(self, connection: Connection, command: Command) -> None:
        """Answers once the client that asked has taken the answer.

        Raises:
            ReplyNotDeliveredError: It is not connected, or did not take it in time.
            DLedgerError: Refused.
        """
        header: SendMessageHeader | SendMessageHeaderV2
        if command.code == RequestCode.SEND_REPLY_MESSAGE:
            header = command.header(SendMessageHeader)
        else:
            header = command.header(SendMessageHeaderV2)
        if header.topic != names.reply_topic(self._context.config.cluster_name):
            raise InvalidParameterError(f"{header.topic} is not the topic of replies")
        if len(command.body) > MESSAGE_BODY_BYTES_MAX:
            raise MessageRejectedError(
                f"message body of {len(command.body)} bytes exceeds {MESSAGE_BODY_BYTES_MAX}"
            )
        named = decode_properties(header.properties.encode(errors="replace"))
        client_id = named.get(Property.REPLY_TO_CLIENT, "")
        target = await self._find(client_id)
        if target is None:
            raise ReplyNotDeliveredError(
                f"push reply message fail, channel of <{client_id}> not found."
            )
        now_ms = self._context.clock.wall_ms()
        named[_PUSH_TIME] = str(now_ms)
        ext = {
            "producerGroup": header.producer_group,
            "topic": header.topic,
            "defaultTopic": header.default_topic,
            "defaultTopicQueueNums": str(header.default_topic_queue_count),
            "queueId": str(header.queue_id),
            "sysFlag": str(header.sys_flag),
            "bornTimestamp": str(header.born_timestamp_ms),
            "flag": str(header.flag),
            "properties": encode_properties(named).decode(),
            "reconsumeTimes": "0",
            "unitMode": "false",
            "bornHost": f"/{connection.peer_host}:{connection.peer_port}",
            "storeHost": f"/{self._context.address}",
            "storeTimestamp": str(now_ms),
        }
        code = RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT
        try:
            answer = await target.request(code, ext, command.body, _PUSH_TIMEOUT_S)
        except DLedgerError as error:
            raise ReplyNotDeliveredError(f"push reply message to {client_id}: {error}") from error
        if answer.code != ResponseCode.SUCCESS:
            raise ReplyNotDeliveredError(f"push reply message to {client_id}: {answer.remark}")
        fields = {"msgId": "0", "queueId": "0", "queueOffset": "0"}
        connection.reply(command, 0, {**fields, "MSG_REGION": "DefaultRegion", "TRACE_ON": "true"})

    async def _find(self, client_id: str) -> Connection | None:
        """Returns the connection of the client that asked, waiting a little for it to appear."""
        if not client_id:
            return None
        give_up = self._context.clock.monotonic() + _APPEAR_S
        while True:
            target = self._clients.connection_of_producer(client_id)
            if target is not None or self._context.clock.monotonic() >= give_up:
                return target
            await asyncio.sleep(_APPEAR_PAUSE_S)
