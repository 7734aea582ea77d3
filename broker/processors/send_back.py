"""CONSUMER_SEND_MESSAGE_BACK (36): a consumer could not process a message."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

from broker import names, retries
from broker.catalog import Catalog, definite_failure
from broker.context import BrokerContext
from broker.copies import copy_of
from broker.delay_rules import Parking
from broker.delays import Delays, parked
from broker.intake import Intake
from broker.messages import MessageReader
from broker.messages_command import EncodedMessage
from dledger.errors import (
    DLedgerError,
    GroupNotFoundError,
    InvalidParameterError,
    InvariantError,
    NotLeaderError,
    RequestError,
)
from dledger.message import (
    Property,
    decode_stored,
    encode_properties,
)
from dledger.model import GroupConfig, TopicConfig
from dledger.remoting.commands import Command
from dledger.remoting.headers import ConsumerSendBackHeader
from dledger.remoting.server import Connection

logger = logging.getLogger(__name__)


class NoSuchMessageError(RequestError):
    """The message to be sent back is not held here (any more). Nothing was done."""


class SendBackProcessor:
    """Stores failed messages for their group to get again, or for nobody. Serving leader only."""

    def __init__(
        self,
        context: BrokerContext,
        catalog: Catalog,
        reader: MessageReader,
        delays: Delays,
        *,
        store_host: bytes,
        redirect: Callable[[Connection, Command], None],
    ) -> None:
        """Prepares the processor.

        Args:
            context: The broker's parts.
            catalog: Topics and groups.
            reader: Finds the messages.
            delays: Where they wait.
            store_host: Packed address in message ids.
            redirect: Takes a request that had no effect because this replica stopped leading.
        """
        self._context = context
        self._catalog = catalog
        self._reader = reader
        self._delays = delays
        self._store_host = store_host
        self._redirect = redirect
        self._turn = itertools.count()

    def send_back(self, connection: Connection, command: Command) -> None:
        """Answers once the message is committed where it waits.

        Raises:
            DLedgerError: Refused; nothing was proposed.
        """
        header = command.header(ConsumerSendBackHeader)
        self._context.gate.check()
        group = self._context.store.group(header.group)
        if group is None:
            raise GroupNotFoundError(f"subscription group {header.group} does not exist")
        if group.retry_queue_count <= 0:
            connection.reply(command)
            return
        data = self._reader.view(header.physical_offset) if header.physical_offset >= 0 else None
        if data is None:
            text = f"look message by offset failed, {header.physical_offset}"
            raise NoSuchMessageError(text)
        stored = bytes(data)
        message = decode_stored(stored, decompress=False)
        back = retries.send_back(
            message,
            group,
            delay_level=header.delay_level,
            reconsume_max=header.max_reconsume_times,
            reason=header.reason,
            now_ms=self._context.clock.wall_ms(),
        )
        topic = self._context.store.topic(back.topic)
        source = (group.name, message.topic)

        def created(made: TopicConfig | None, error: DLedgerError | None) -> None:
            if made is None:
                failure = definite_failure(error, f"topic {back.topic}")
                self._fail(connection, command, failure)
                return
            try:
                encoded = self._encode(stored, back, header, made)
                self._append(connection, command, encoded, source)
            except InvariantError:
                raise
            except DLedgerError as refused:
                self._fail(connection, command, refused)

        if topic is None:
            self._catalog.ensure_topic(_config_of(back, group), created)
        else:
            encoded = self._encode(stored, back, header, topic)
            self._append(connection, command, encoded, source)

    def _encode(
        self,
        stored: bytes,
        back: retries.SendBack,
        header: ConsumerSendBackHeader,
        topic: TopicConfig,
    ) -> tuple[TopicConfig, int, EncodedMessage]:
        """Returns the copy to store, and where."""
        queue_id = next(self._turn) % max(1, topic.write_queue_count)
        parking = self._parking(back, header, queue_id)
        properties = back.properties
        place, place_queue = topic, queue_id
        raw = encode_properties(properties)
        if parking is not None:
            place, place_queue = self._delays.topic_of(parking), parking.queue_id
            raw = parking.properties.encode()
        encoded = copy_of(
            decode_stored(stored, decompress=False),
            topic=place.name,
            queue_id=place_queue,
            reconsume_times=back.reconsume_times,
            properties=properties,
            raw=raw,
            store_host=self._store_host,
        )
        if parking is not None:
            encoded = parked(Intake([encoded], ""), parking).single
        return place, place_queue, encoded

    def _parking(
        self, back: retries.SendBack, header: ConsumerSendBackHeader, queue_id: int
    ) -> Parking | None:
        if back.is_dead:
            return None
        self._delays.check_room()
        rules, now_ms = self._delays.rules, self._context.clock.wall_ms()
        if header.delay_ms is not None:
            if header.delay_ms < 0:
                raise InvalidParameterError("dlDelayMs must not be negative")
            if header.delay_ms == 0:
                back.properties.pop(Property.DELAY, None)
                return None
            return rules.plan_exactly(
                back.properties,
                topic=back.topic,
                queue_id=queue_id,
                delay_ms=header.delay_ms,
                now_ms=now_ms,
            )
        properties = encode_properties(back.properties).decode()
        return rules.plan(properties, topic=back.topic, queue_id=queue_id, now_ms=now_ms)

    def _append(
        self,
        connection: Connection,
        command: Command,
        target: tuple[TopicConfig, int, EncodedMessage],
        source: tuple[str, str],
    ) -> None:
        topic, queue_id, encoded = target

        def appended(_offset: int, _places: list[int], error: DLedgerError | None) -> None:
            if error is not None:
                self._fail(connection, command, error)
            else:
                self._context.statistics.returned(*source)
                connection.reply(command)

        self._context.appender.append(topic, queue_id, [encoded], appended)

    def _fail(self, connection: Connection, command: Command, error: DLedgerError) -> None:
        if isinstance(error, NotLeaderError):
            self._redirect(connection, command)
        else:
            connection.reply_error(command, error)


def _config_of(back: retries.SendBack, group: GroupConfig) -> TopicConfig:
    if back.is_dead:
        return names.dead_letter_topic_config(group.name)
    return names.retry_topic_config(group.name, group.retry_queue_count)
