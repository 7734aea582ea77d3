"""Finding single messages: 12 by key or unique key, 33 by physical offset."""

from __future__ import annotations

from broker.context import BrokerContext
from broker.messages import MessageReader
from dledger.errors import (
    InvalidParameterError,
    NotFoundError,
    RequestError,
    TopicNotFoundError,
)
from dledger.message import Property, decode_properties, stored_properties
from dledger.remoting.commands import Command
from dledger.remoting.headers import QueryMessageHeader, ViewMessageHeader
from dledger.remoting.server import Connection

QUERY_COUNT_MAX = 256
QUERY_BYTES_MAX = 4 * 1024 * 1024
KEY_LENGTH_MAX = 4096


class MessageNotFoundError(RequestError):
    """No message begins at this offset."""


class QueryProcessor:
    """Finds messages. Any replica answers from what it has applied."""

    def __init__(self, context: BrokerContext, reader: MessageReader) -> None:
        self._context = context
        self._reader = reader

    def query(self, connection: Connection, command: Command) -> None:
        """12: the newest messages of a topic with a key.

        Raises:
            NotFoundError: There is none.
        """
        header = command.header(QueryMessageHeader)
        topic = self._context.store.topic(header.topic)
        if topic is None:
            raise TopicNotFoundError(f"topic[{header.topic}] not exist")
        if not 0 < len(header.key) <= KEY_LENGTH_MAX:
            raise InvalidParameterError(f"key must have 1 to {KEY_LENGTH_MAX} characters")
        count_max = min(max(1, header.count_max), QUERY_COUNT_MAX)
        found = self._context.store.find_by_key(
            topic.topic_id,
            header.key,
            unique=header.is_unique_key,
            begin_ms=max(0, header.begin_timestamp_ms),
            end_ms=header.end_timestamp_ms if header.end_timestamp_ms > 0 else 2**63 - 1,
            limit=count_max,
        )
        body: list[memoryview] = []
        size = 0
        for physical_offset in found:
            data = self._reader.view(physical_offset)
            if data is None or not _has_key(data, header.key, unique=header.is_unique_key):
                continue
            if body and size + len(data) > QUERY_BYTES_MAX:
                break
            body.append(data)
            size += len(data)
        if not body:
            raise NotFoundError("can not find message, maybe time range not correct")
        ext = {
            "indexLastUpdateTimestamp": str(self._context.clock.wall_ms()),
            "indexLastUpdatePhyoffset": str(self._context.log.offset_end),
        }
        connection.reply(command, 0, ext, body=body)

    def view(self, connection: Connection, command: Command) -> None:
        """33: the message at a physical offset.

        Raises:
            MessageNotFoundError: None begins there.
        """
        header = command.header(ViewMessageHeader)
        if header.physical_offset < 0:
            raise InvalidParameterError("offset must not be negative")
        data = self._reader.view(header.physical_offset)
        if data is None:
            raise MessageNotFoundError(
                f"can not find message by the offset, {header.physical_offset}"
            )
        connection.reply(command, body=[data])


def _has_key(data: memoryview, key: str, *, unique: bool) -> bool:
    """Tells whether a message really has the key: the index compares long ones by hash."""
    properties = decode_properties(stored_properties(data))
    if unique:
        return properties.get(Property.UNIQUE_KEY) == key
    return key in properties.get(Property.KEYS, "").split()
