"""Questions that only a client can answer: 223, 307 and 309.

The broker passes them on over the connection that the client keeps, and its answer back. Any
replica does it: clients send their heartbeats to all of them.
"""

from __future__ import annotations

import asyncio

from broker.context import BrokerContext
from broker.messages import MessageReader
from broker.processors.clients import ClientProcessor, ConsumerNotOnlineError
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import (
    DLedgerError,
    InvalidParameterError,
    MalformedBodyError,
    NotFoundError,
    RequestError,
    RequestTimeoutError,
)
from dledger.message import parse_offset_message_id
from dledger.model import MessageQueue
from dledger.remoting.admin_headers import (
    ConsumeDirectlyHeader,
    GetConsumerStatusHeader,
    GetRunningInfoHeader,
)
from dledger.remoting.bodies.admin import decode_client_offsets, encode_consumer_status
from dledger.remoting.commands import Command
from dledger.remoting.headers import to_ext
from dledger.remoting.server import Connection

ANSWER_S = 10.0
STATUS_S = 3.0
CLIENTS_ASKED_MAX = 1000
# Clients before this cannot answer; RocketMQ's ordinal of 3.1.8 SNAPSHOT.
VERSION_MIN = 62


class ClientOfflineError(RequestError):
    """The client is not connected to this replica, or cannot be asked."""


class ClientSilentError(RequestError):
    """The client did not answer in time. What it was to do may have been done."""

    definite = False
    response_code = ResponseCode.CONSUME_MESSAGE_TIMEOUT


class RelayProcessor:
    """Asks clients on behalf of admin tools."""

    def __init__(
        self, context: BrokerContext, reader: MessageReader, clients: ClientProcessor
    ) -> None:
        self._context = context
        self._reader = reader
        self._clients = clients

    async def running_info(self, connection: Connection, command: Command) -> None:
        """307: what a consumer says about itself, as it says it.

        Raises:
            ClientOfflineError, ClientSilentError
        """
        header = command.header(GetRunningInfoHeader)
        await self._relay(connection, command, header.group, header.client_id, command.ext, b"")

    async def consume_directly(self, connection: Connection, command: Command) -> None:
        """309: hands one stored message to one consumer and says what became of it.

        Raises:
            NotFoundError: There is no such message.
            ClientOfflineError, ClientSilentError
        """
        header = command.header(ConsumeDirectlyHeader)
        try:
            _, _, physical_offset = parse_offset_message_id(header.message_id)
        except (DLedgerError, ValueError) as error:
            raise InvalidParameterError(f"msgId {header.message_id[:80]!r}: {error}") from error
        data = self._reader.view(physical_offset)
        if data is None:
            raise NotFoundError(f"no message has the id {header.message_id}")
        header.broker_name = self._context.config.broker_name
        body = bytes(data)
        await self._relay(connection, command, header.group, header.client_id, to_ext(header), body)

    async def consumer_status(self, connection: Connection, command: Command) -> None:
        """223: the offsets that consumers hold for the queues of a topic.

        Members that do not answer are left out.

        Raises:
            ConsumerNotOnlineError: No member is connected.
        """
        header = command.header(GetConsumerStatusHeader)
        members = [
            member
            for member in self._context.clients.consumer_members(header.group)
            if header.client_address in ("", member.client_id, member.address)
        ]
        if not members:
            raise ConsumerNotOnlineError(f"the consumer group[{header.group}] not online")
        ext = {"topic": header.topic, "group": header.group}

        async def ask(number: int) -> dict[MessageQueue, int] | None:
            target = self._clients.connection(number)
            if target is None:
                return None
            code = RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT
            try:
                answer = await target.request(code, ext, b"", STATUS_S)
                return decode_client_offsets(answer.body) if answer.code == 0 else None
            except (DLedgerError, MalformedBodyError):
                return None

        chosen = members[:CLIENTS_ASKED_MAX]
        found = await asyncio.gather(*(ask(member.connection_id) for member in chosen))
        table = {
            member.client_id: offsets
            for member, offsets in zip(chosen, found, strict=True)
            if offsets is not None
        }
        connection.reply(command, body=encode_consumer_status(table))

    async def _relay(
        self,
        connection: Connection,
        command: Command,
        group: str,
        client_id: str,
        ext: dict[str, str],
        body: bytes,
    ) -> None:
        member = next(
            (
                member
                for member in self._context.clients.consumer_members(group)
                if member.client_id == client_id
            ),
            None,
        )
        target = None if member is None else self._clients.connection(member.connection_id)
        if member is None or target is None or target.is_closing:
            raise ClientOfflineError(f"The Consumer <{group}> <{client_id}> not online")
        if member.version < VERSION_MIN:
            text = f"The Consumer <{group}> <{client_id}> is too old to be asked"
            raise ClientOfflineError(text)
        try:
            answer = await target.request(command.code, ext, body, ANSWER_S)
        except RequestTimeoutError as error:
            text = f"The Consumer <{group}> <{client_id}> did not answer in {ANSWER_S:g} s"
            raise ClientSilentError(text) from error
        connection.reply(command, answer.code, dict(answer.ext), answer.remark or None, answer.body)
