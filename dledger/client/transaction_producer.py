"""Sends messages that become visible only if a local transaction succeeds.

How it goes: the message is stored as a *half message*, which no consumer sees; then the local
transaction runs; then its state is told to the broker, which makes the message visible or forgets
it. If the broker is not told, because the producer died, say, or did not know, it asks a live
producer of the group, whose *checker* must find out.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum

import msgspec

from dledger.client.config import ProducerConfig
from dledger.client.encoding import refuse_delay
from dledger.client.producer import AsyncProducer
from dledger.client.results import SendResult
from dledger.client.topics import Target
from dledger.clock import Clock
from dledger.codes import MessageFlag, RequestCode, ResponseCode
from dledger.errors import DLedgerError, InvalidParameterError
from dledger.lifetime import AsyncLifetime
from dledger.message import (
    Message,
    Property,
    ReceivedMessage,
    UniqueKeyGenerator,
    decode_stored,
    parse_offset_message_id,
)
from dledger.model import MessageQueue, SendStatus
from dledger.remoting.client import ClientConnection
from dledger.remoting.commands import Command
from dledger.remoting.errors import response_error
from dledger.remoting.headers import EndTransactionHeader, to_ext

logger = logging.getLogger(__name__)

CHECKS_AT_ONCE_MAX = 256
_CHECKS_RUNNING_MAX = 16
_CLOSE_CHECKS_S = 3.0


class TransactionState(Enum):
    """What is known of a local transaction."""

    COMMIT = int(MessageFlag.TRANSACTION_COMMIT)
    ROLLBACK = int(MessageFlag.TRANSACTION_ROLLBACK)
    UNKNOWN = 0


class TransactionResult(msgspec.Struct, frozen=True):
    """What became of a message sent in a transaction.

    Attributes:
        half: Where the half message was stored; `half.message_id` is the real message's id as well.
        state: What the local transaction came to.
        is_ended: The broker has confirmed the end. Without that, and for `UNKNOWN`, it asks later.
    """

    half: SendResult
    state: TransactionState
    is_ended: bool


AsyncLocalTransaction = Callable[
    [Message, SendResult], TransactionState | Awaitable[TransactionState]
]
AsyncChecker = Callable[[ReceivedMessage], TransactionState | Awaitable[TransactionState]]


class AsyncTransactionProducer(AsyncLifetime):
    """Sends messages in transactions from an asyncio program.

    Use as `async with AsyncTransactionProducer("group", checker=...) as producer`, or call `start`
    and `close`. Several processes may share a group; each must be able to check what another began.

    Concurrency:
        Methods belong to the loop that `start` ran on.
    """

    def __init__(
        self,
        group: str,
        *,
        checker: AsyncChecker,
        nameserver: str | Sequence[str] | None = None,
        config: ProducerConfig | None = None,
        clock: Clock | None = None,
        unique_keys: UniqueKeyGenerator | None = None,
    ) -> None:
        """Checks the arguments; connects to nothing.

        Args:
            group: Producer group, by which brokers find somebody to ask.
            checker: Says what became of the local transaction of a half message, which comes under
                its real topic. May be asked several times, for transactions of other processes, and
                while the local transaction still runs: then the answer is `UNKNOWN`. An exception
                counts as `UNKNOWN`.
            nameserver, config, clock, unique_keys: As `AsyncProducer`.

        Raises:
            ConfigError, InvalidParameterError: An argument is wrong.
        """
        self._checker = checker
        self._producer = AsyncProducer(
            group, nameserver=nameserver, config=config, clock=clock, unique_keys=unique_keys
        )
        self._session = self._producer.session
        self._session.request_handlers[RequestCode.CHECK_TRANSACTION_STATE] = self._asked
        self._checks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(_CHECKS_RUNNING_MAX)

    @property
    def group(self) -> str:
        """The producer group."""
        return self._producer.group

    @property
    def producer(self) -> AsyncProducer:
        """The producer below, for messages without a transaction."""
        return self._producer

    async def start(self) -> None:
        """Makes the producer ready, also to be asked."""
        await self._producer.start()

    async def close(self) -> None:
        """Waits for sends under way and, for a moment, for checks under way; then disconnects."""
        self._session.request_handlers.pop(RequestCode.CHECK_TRANSACTION_STATE, None)
        if self._checks:
            await asyncio.wait(self._checks, timeout=_CLOSE_CHECKS_S)
        for task in self._checks:
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)
        await self._producer.close()

    async def send(
        self,
        message: Message,
        local: AsyncLocalTransaction,
        *,
        queue: Target = None,
        shard_key: str | None = None,
        immunity_s: int | None = None,
    ) -> TransactionResult:
        """Sends a message that becomes visible if a local transaction succeeds.

        Args:
            message: What to send; without a delay.
            local: The local transaction; called once the half message is committed. Its state
                decides; an exception counts as `UNKNOWN` and is raised after the broker keeps the
                message for a check.
            queue, shard_key: As `AsyncProducer.send`.
            immunity_s: The broker asks nobody before the half message is this old, and refuses a
                later end that is no answer; by default its own setting and no such refusal.

        Raises:
            As `AsyncProducer.send`: the half message was not stored (or, if not definite, may be,
            and will be checked); `local` was not called.

        Durability:
            With `is_ended`, the end is committed by a majority.
        """
        half = await self.prepare(message, queue=queue, shard_key=shard_key, immunity_s=immunity_s)
        if half.status is not SendStatus.SEND_OK:
            return await self.finish(half, TransactionState.ROLLBACK)
        return await self.finish(half, await _awaited(local(message, half)))

    async def prepare(
        self,
        message: Message,
        *,
        queue: Target = None,
        shard_key: str | None = None,
        immunity_s: int | None = None,
    ) -> SendResult:
        """Stores the half message only; `finish` is still to be called. See `send`."""
        if immunity_s is not None and immunity_s < 0:
            raise InvalidParameterError("immunity_s must not be negative")
        refuse_delay(message)  # brokers of Apache RocketMQ lose it
        extra = {Property.TRANSACTION_PREPARED: "true", Property.PRODUCER_GROUP: self.group}
        if immunity_s is not None:
            extra[Property.CHECK_IMMUNITY_SECONDS] = str(immunity_s)
        return await self._producer.send_half(message, extra, queue=queue, shard_key=shard_key)

    async def finish(self, half: SendResult, state: TransactionState) -> TransactionResult:
        """Tells the broker what became of a local transaction; repeating it is harmless."""
        if state is TransactionState.UNKNOWN:
            return TransactionResult(half, state, is_ended=False)
        _, _, physical_offset = parse_offset_message_id(half.offset_message_id)
        header = EndTransactionHeader(
            producer_group=self.group,
            queue_offset=half.queue_offset,
            physical_offset=physical_offset,
            commit_or_rollback=state.value,
            message_id=half.message_id,
            transaction_id=half.message_id,
            topic=half.queue.topic,
        )
        try:
            await self._session.call_leader(
                half.queue.broker_name, RequestCode.END_TRANSACTION, header
            )
        except DLedgerError as error:
            logger.warning("transaction not ended yet id=%s error=%s", half.message_id, error)
            return TransactionResult(half, state, is_ended=False)
        return TransactionResult(half, state, is_ended=True)

    # --- checks -------------------------------------------------------------------------------

    def _asked(self, connection: ClientConnection, command: Command) -> None:
        if len(self._checks) >= CHECKS_AT_ONCE_MAX:
            logger.warning("check left for later: %d are under way", len(self._checks))
            return  # the broker asks again
        task = asyncio.get_running_loop().create_task(self._check(connection, command))
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _check(self, connection: ClientConnection, command: Command) -> None:
        async with self._room:
            ext = command.ext
            try:
                message = decode_stored(command.body, broker_name=ext.get("bname", ""))
                half_offset = int(ext["tranStateTableOffset"])
                physical_offset = int(ext["commitLogOffset"])
            except (DLedgerError, KeyError, ValueError) as error:
                logger.warning("malformed check address=%s error=%r", connection.address, error)
                return
            if message.properties.get(Property.PRODUCER_GROUP, self.group) != self.group:
                return
            try:
                state = await _awaited(self._checker(message))
            except Exception:
                logger.exception("checker failed id=%s", message.unique_key)
                return
            if state is TransactionState.UNKNOWN:
                return
            header = EndTransactionHeader(
                producer_group=self.group,
                queue_offset=half_offset,
                physical_offset=physical_offset,
                commit_or_rollback=state.value,
                message_id=ext.get("msgId", ""),
                transaction_id=ext.get("transactionId", ""),
                from_transaction_check=True,
                topic=message.topic,
            )
            try:
                response = await self._session.remoting.request(
                    connection.address, RequestCode.END_TRANSACTION, to_ext(header)
                )
                if response.code != ResponseCode.SUCCESS:
                    raise response_error(response, connection.address)
            except DLedgerError as error:
                logger.info("answer not taken, asked again later error=%s", error)

    async def queues(self, topic: str) -> list[MessageQueue]:
        """Returns the topic's writable queues, sorted. See `AsyncProducer.queues`."""
        return await self._producer.queues(topic)


async def _awaited(state: TransactionState | Awaitable[TransactionState]) -> TransactionState:
    if inspect.isawaitable(state):
        state = await state
    if not isinstance(state, TransactionState):
        raise InvalidParameterError(f"a local transaction returned {state!r}, no state")
    return state
