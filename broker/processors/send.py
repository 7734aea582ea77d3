"""SEND_MESSAGE (10), SEND_MESSAGE_V2 (310) and SEND_BATCH_MESSAGE (320).

A send is checked, encoded and handed to the appender, which makes one proposal of all that
arrived in one turn of the event loop. The answer leaves when the entry is durable on a majority
and applied here: never before.
"""

from __future__ import annotations

from collections.abc import Callable

from broker import names, retries
from broker.catalog import Catalog, definite_failure
from broker.context import BrokerContext
from broker.delays import Delays, identity_of_parked, parked
from broker.forwarding import EXT_BORN_HOST
from broker.half_messages import is_half
from broker.intake import MessageIntake
from broker.messages_command import SendIdentity
from broker.processors.short_sends import ANSWER_FIELDS, ShortSends, packed_host, peer_host
from broker.transaction_service import TransactionService
from dledger.codes import (
    DEAD_LETTER_PREFIX,
    EXT_DEDUPLICATED,
    EXT_PRODUCER_ID,
    EXT_SEQUENCE,
    RETRY_PREFIX,
    Permission,
    RequestCode,
)
from dledger.errors import (
    DLedgerError,
    GroupNotFoundError,
    InvalidParameterError,
    InvariantError,
    NotLeaderError,
    PermissionDeniedError,
    TopicNotFoundError,
)
from dledger.message import offset_message_id, offset_message_ids, validate_topic
from dledger.model import TopicConfig
from dledger.remoting.commands import Command
from dledger.remoting.headers import SendMessageHeader, SendMessageHeaderV2
from dledger.remoting.server import Connection

_FORWARDED_MARK = EXT_BORN_HOST.encode()
_Header = SendMessageHeader | SendMessageHeaderV2
_WRITE = int(Permission.WRITE)
_PRODUCER_ID_BYTES = 8
_SEQUENCE_MAX = 1 << 62


class SendProcessor:
    """Takes messages in. Runs on the serving leader only."""

    def __init__(
        self,
        context: BrokerContext,
        catalog: Catalog,
        intake: MessageIntake,
        delays: Delays,
        transactions: TransactionService,
        *,
        store_host: bytes,
        redirect: Callable[[Connection, Command], None],
    ) -> None:
        """Prepares the processor.

        Args:
            context: The broker's parts.
            catalog: Topics and groups.
            intake: Encodes messages.
            delays: Where delayed messages wait.
            transactions: Takes half messages.
            store_host: Packed address in message ids.
            redirect: Takes a request that had no effect because this replica stopped leading.
        """
        self._context = context
        self._catalog = catalog
        self._intake = intake
        self._delays = delays
        self._transactions = transactions
        self._store_host = store_host
        self._redirect = redirect
        self._next_queue = 0
        self.short = ShortSends(context, intake, store_host=store_host, fail=self._fail)

    def send(self, connection: Connection, command: Command) -> None:
        """Answers a send once its messages are committed and applied.

        Raises:
            DLedgerError: Refused; nothing was proposed.
        """
        self.short.hand_over()  # what came before on this connection comes before in its queue
        header: _Header
        if command.code == RequestCode.SEND_MESSAGE:
            header = command.header(SendMessageHeader)
        else:
            header = command.header(SendMessageHeaderV2)
        self._context.gate.check()
        if header.topic.startswith(RETRY_PREFIX):
            self._divert_dead(header)
        name = header.topic
        if name in names.FORBIDDEN_SEND_TOPICS:
            raise PermissionDeniedError(f"sending to topic {name} is forbidden")
        topic = self._context.store.topic(name)
        if topic is not None:
            self._append(connection, command, header, topic)
            return

        def created(made: TopicConfig | None, error: DLedgerError | None) -> None:
            if made is None:
                # Whether the topic will exist may be unknown; the message certainly is not stored.
                self._fail(connection, command, definite_failure(error, f"topic {name}"))
                return
            try:
                self._append(connection, command, header, made)
            except InvariantError:
                raise
            except DLedgerError as refused:
                self._fail(connection, command, refused)

        self._catalog.ensure_topic(self._new_topic(header), created)

    def _append(
        self, connection: Connection, command: Command, header: _Header, topic: TopicConfig
    ) -> None:
        if not topic.permission & _WRITE:
            raise PermissionDeniedError(
                f"the broker[{self._context.config.broker_name}] sending message to topic "
                f"{topic.name} is forbidden"
            )
        queue_id = self._choose_queue(topic, header.queue_id)
        identity = _identity(header)
        is_batch = header.batch or command.code == RequestCode.SEND_BATCH_MESSAGE
        if not is_batch and is_half(header.sys_flag, header.properties):
            now_s = self._context.clock.monotonic()
            self._context.quotas.send(topic, 1, len(command.body), now_s)
            self._open(connection, command, header, topic, queue_id)
            return
        parking = None
        if not is_batch:
            parking = self._delays.plan(header.properties, topic=topic.name, queue_id=queue_id)
        place, place_queue = topic, queue_id
        if parking is not None:
            place, place_queue = self._delays.topic_of(parking), parking.queue_id
            header.properties = parking.properties
            if identity is not None:
                identity = identity_of_parked(identity, topic.topic_id, queue_id)
        intake = self._intake.encode(
            header,
            command.body,
            topic=place.name,
            queue_id=place_queue,
            born_host=_born_host(connection, command),
            is_batch=is_batch,
        )
        if parking is not None:
            intake = parked(intake, parking)
        context = self._context
        count = len(intake.messages)
        began_s = context.clock.monotonic()
        context.quotas.send(topic, count, len(command.body), began_s)
        store_host = self._store_host

        def appended(
            queue_offset: int, physical_offsets: list[int], error: DLedgerError | None
        ) -> None:
            if error is not None:
                self._fail(connection, command, error)
                return
            if repeats:
                context.counters.deduplicated += count
            else:
                took_s = context.clock.monotonic() - began_s
                context.statistics.stored(topic.name, count, len(command.body), took_s)
            ids = offset_message_ids(store_host, physical_offsets)
            ext = _receipt(ids, queue_id, queue_offset)
            if intake.unique_key:
                ext["transactionId"] = intake.unique_key
            if identity is not None:
                ext[EXT_DEDUPLICATED] = "1" if repeats else "0"
            if parking is not None:
                ext["recallHandle"] = self._delays.recall_handle(
                    topic.name, parking, intake.unique_key
                )
            connection.reply(command, 0, ext)

        # Set before the callback: that always comes later.
        repeats = context.appender.append(place, place_queue, intake.messages, appended, identity)

    def _divert_dead(self, header: _Header) -> None:
        """Sends a message that was tried too often to the dead letters of its group."""
        group = self._context.store.group(header.topic[len(RETRY_PREFIX) :])
        if group is not None and retries.is_beyond_retries(
            group,
            reconsume_times=header.reconsume_times,
            reconsume_max=header.max_reconsume_times,
        ):
            header.topic = names.dead_letter_topic(group.name)
            header.queue_id = 0
            header.properties = retries.without_delay(header.properties)

    def _open(
        self,
        connection: Connection,
        command: Command,
        header: _Header,
        topic: TopicConfig,
        queue_id: int,
    ) -> None:
        """Stores a half message; the answer names its own places, by which it is ended."""

        def opened(
            half_offset: int, physical_offsets: list[int], error: DLedgerError | None, key: str
        ) -> None:
            if error is not None:
                self._fail(connection, command, error)
                return
            ext = {
                "msgId": offset_message_id(self._store_host, physical_offsets[0]),
                "queueId": str(queue_id),
                "queueOffset": str(half_offset),
                "transactionId": key,
                **ANSWER_FIELDS,
            }
            connection.reply(command, 0, ext)

        self._transactions.open(
            header,
            command.body,
            topic=topic.name,
            queue_id=queue_id,
            producer_group=header.producer_group,
            born_host=_born_host(connection, command),
            callback=opened,
        )

    def _fail(self, connection: Connection, command: Command, error: DLedgerError) -> None:
        if isinstance(error, NotLeaderError):
            self._redirect(connection, command)
        else:
            connection.reply_error(command, error)

    def _choose_queue(self, topic: TopicConfig, wanted: int) -> int:
        limit = max(topic.write_queue_count, topic.read_queue_count)
        if wanted >= limit:
            raise InvalidParameterError(
                f"request queueId[{wanted}] is illegal, topic {topic.name} has {limit} queues"
            )
        if wanted >= 0:
            return wanted
        # The client leaves the choice to us; taking turns spreads as well as chance does.
        self._next_queue += 1
        return self._next_queue % max(1, topic.write_queue_count)

    def _new_topic(self, header: _Header) -> TopicConfig:
        """Returns the topic that this send may create.

        Raises:
            InvalidParameterError: The name breaks the rules.
            GroupNotFoundError: A retry topic of a group that does not exist.
            TopicNotFoundError: Topics are not created by sends, or not from this template.
        """
        name = header.topic
        validate_topic(name)
        group = names.group_of_retry_topic(name)
        if group is not None:
            config = self._context.store.group(group)
            if config is None:
                raise GroupNotFoundError(f"subscription group {group} does not exist")
            return names.retry_topic_config(group, config.retry_queue_count)
        if names.is_dead_letter_topic(name):
            group = name[len(DEAD_LETTER_PREFIX) :]
            if self._context.store.group(group) is None:
                raise GroupNotFoundError(f"subscription group {group} does not exist")
            return names.dead_letter_topic_config(group)
        template = self._catalog.template(header.default_topic)
        settings = self._context.config
        if template is None or names.is_system_topic(
            name, cluster_name=settings.cluster_name, broker_name=settings.broker_name
        ):
            raise TopicNotFoundError(f"topic[{name}] not exist, apply first please!")
        count = min(max(1, header.default_topic_queue_count), template.write_queue_count)
        return TopicConfig(
            name=name,
            read_queue_count=count,
            write_queue_count=count,
            permission=template.permission & ~int(Permission.INHERIT),
        )


def _identity(header: _Header) -> SendIdentity | None:
    """Returns by what a repetition of the request is known; None for other clients than ours.

    Raises:
        InvalidParameterError: It makes no sense.
    """
    digits = header.producer_id
    if not digits:
        return None
    sequence = header.sequence
    if sequence is None or not 0 <= sequence <= _SEQUENCE_MAX:
        raise InvalidParameterError(f"{EXT_SEQUENCE} {sequence} must lie in 0..{_SEQUENCE_MAX}")
    if header.queue_id < 0:
        raise InvalidParameterError(f"a send with {EXT_PRODUCER_ID} must name its queue")
    try:
        raw = bytes.fromhex(digits)
    except ValueError:
        raw = b""
    if len(raw) != _PRODUCER_ID_BYTES:
        raise InvalidParameterError(f"{EXT_PRODUCER_ID} must be 16 hexadecimal digits")
    return SendIdentity(int.from_bytes(raw, "big"), sequence)


def _born_host(connection: Connection, command: Command) -> bytes:
    """Returns the packed address of whoever made the message.

    A follower that forwards a request says where it came from.
    """
    raw = command.raw_ext
    # Looked for in the raw bytes first: decoding all fields once more costs what sending does.
    if raw is None or _FORWARDED_MARK in bytes(raw):
        forwarded = command.ext.get(EXT_BORN_HOST)
        if forwarded:
            return packed_host(*forwarded.rpartition(":")[::2])
    return peer_host(connection)


def _receipt(ids: str, queue_id: int, queue_offset: int) -> dict[str, str]:
    return {
        "msgId": ids,
        "queueId": str(queue_id),
        "queueOffset": str(queue_offset),
        **ANSWER_FIELDS,
    }
