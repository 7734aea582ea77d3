"""The leader's side of transactions: opening, ending, and asking producers that fell silent.

What is decided here is decided from applied state plus what this leader has under way, which is
kept apart: a leader serves only after it has applied everything earlier leaders can have
committed, so nothing can end a transaction behind its back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from broker import half_messages, transactions
from broker.catalog import Catalog, definite_failure
from broker.context import FATAL_ERRORS, BrokerContext
from broker.feature_commands import encode_feature
from broker.intake import MessageIntake, SendFields
from broker.requests import AppendCallback
from broker.transactions import GIVEN_UP_TOPIC, HALF_TOPIC, HalfRow, Outcome
from dledger.codes import Permission, RequestCode, ResponseCode
from dledger.errors import (
    DLedgerError,
    LeadershipLostError,
    OffsetOutOfRangeError,
    RequestError,
    TopicNotFoundError,
)
from dledger.message import (
    Property,
    ReceivedMessage,
    offset_message_id,
    pack_host,
    validate_group,
)
from dledger.model import TopicConfig

logger = logging.getLogger(__name__)

_CHECKED_AT_ONCE = 200
_POLL_MAX_S = 1.0


class TransactionStateError(RequestError):
    """The transaction cannot be ended like this."""

    response_code = ResponseCode.SYSTEM_ERROR


class ImmunityOverError(RequestError):
    """The transaction is ended later than its message allows without being asked."""

    response_code = ResponseCode.ILLEGAL_OPERATION


class Producers(Protocol):
    """Who can be asked."""

    def ask_producer(
        self, group: str, code: RequestCode, ext: dict[str, object], body: bytes
    ) -> bool:
        """Sends a one-way request to some live producer of a group; `False` if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class End:
    """What a client says about a transaction.

    Attributes:
        half_offset, physical_offset: The half message's places.
        group: Its producer group.
        is_commit: Commit, or roll back.
        is_answer: To a question of ours.
    """

    half_offset: int
    physical_offset: int
    group: str
    is_commit: bool
    is_answer: bool


class TransactionService:
    """Opens, ends and checks transactions. Satisfies `RaftListener`. Loop only."""

    def __init__(
        self,
        context: BrokerContext,
        catalog: Catalog,
        intake: MessageIntake,
        producers: Producers,
        *,
        store_host: bytes,
    ) -> None:
        self._context = context
        self._catalog = catalog
        self._intake = intake
        self._producers = producers
        self._store_host = store_host
        self._config = context.config.transactions
        # Half offsets whose end this leader has proposed. Invariant: while an offset is in it,
        # no second end of it is proposed.
        self._ending: dict[int, asyncio.Event] = {}

    # --- opening ------------------------------------------------------------------------------

    def open(
        self,
        header: SendFields,
        body: bytes,
        *,
        topic: str,
        queue_id: int,
        producer_group: str,
        born_host: bytes,
        callback: Callable[[int, list[int], DLedgerError | None, str], None],
    ) -> None:
        """Stores a half message, which opens its transaction.

        Args:
            header: Of the send.
            body: Of the message.
            topic, queue_id: Where the message will go when it is committed.
            producer_group: Of the send, if the message names none.
            born_host: Packed address of the sender.
            callback: As an append's, with the unique key; the offsets are the half message's.

        Raises:
            DLedgerError: Refused; nothing was stored.
        """
        properties, group, immunity_s = half_messages.half_properties(
            header.properties, topic=topic, queue_id=queue_id, producer_group=producer_group
        )
        validate_group(group)  # it may be the message's own
        header.properties = properties
        header.sys_flag &= ~half_messages.TRANSACTION_BITS
        intake = self._intake.encode(
            header, body, topic=HALF_TOPIC, queue_id=0, born_host=born_host, is_batch=False
        )
        # Not in the key index: nobody is to find it.
        messages = [self._intake.hidden(intake.single)]
        immunity_ms = int((self._config.immunity_s if immunity_s is None else immunity_s) * 1000)
        rider = transactions.open_rider(group, immunity_ms)

        def made(half_topic: TopicConfig | None, error: DLedgerError | None) -> None:
            def appended(first: int, offsets: list[int], failure: DLedgerError | None) -> None:
                callback(first, offsets, failure, intake.unique_key)

            if half_topic is None:
                appended(-1, [], definite_failure(error, f"topic {HALF_TOPIC}"))
                return
            try:
                self._context.appender.append(half_topic, 0, messages, appended, rider=rider)
            except FATAL_ERRORS:
                raise
            except DLedgerError as refused:
                appended(-1, [], refused)

        self._catalog.ensure_topic(half_topic_config(), made)

    # --- ending -------------------------------------------------------------------------------

    async def end(self, end: End) -> None:
        """Ends a transaction as its producer says. Repeating it has no further effect.

        Raises:
            TransactionStateError: There is no such transaction, it belongs to another group, or
                it ended the other way.
            ImmunityOverError: Too late without being asked, and its message wants that refused.
            TopicNotFoundError: The topic is gone; the transaction stays open.
            LeadershipLostError, CommitTimeoutError: The outcome is unknown.

        Durability: on return the end, and with it the message, is committed and applied here.
        """
        wanted = Outcome.COMMITTED if end.is_commit else Outcome.ROLLED_BACK
        while True:
            under_way = self._ending.get(end.half_offset)
            half = transactions.open_half(self._context.store.rows, end.half_offset)
            if half is None:
                self._check_ended(end, wanted)
                return
            if half.physical_offset != end.physical_offset or half.group != end.group:
                raise TransactionStateError(
                    f"half message {end.half_offset} is not at {end.physical_offset} or not of "
                    f"producer group {end.group}"
                )
            if under_way is None:
                break
            await under_way.wait()
            if self._ending.get(end.half_offset) is under_way:
                raise LeadershipLostError("an earlier end is under way; the outcome is unknown")
        message = self._read(half)
        if message is None:
            raise TransactionStateError(f"half message {end.half_offset} is gone")
        if not end.is_answer:
            self._check_immunity(message)
        if end.is_commit:
            await self._commit(end.half_offset, message)
        else:
            await self._end_without(end.half_offset, Outcome.ROLLED_BACK)

    def _check_ended(self, end: End, wanted: Outcome) -> None:
        row = transactions.ended_half(self._context.store.rows, end.half_offset)
        if row is None or row.physical_offset != end.physical_offset:
            raise TransactionStateError(f"no open transaction of half message {end.half_offset}")
        if row.outcome != wanted:
            name = Outcome(row.outcome).name.lower().replace("_", " ")
            raise TransactionStateError(f"transaction {end.half_offset} was {name} already")

    def _check_immunity(self, message: ReceivedMessage) -> None:
        text = message.properties.get(Property.CHECK_IMMUNITY_SECONDS)
        if text is None or float(text) < 0:
            return
        age_ms = self._context.clock.wall_ms() - message.born_timestamp_ms
        if age_ms > float(text) * 1000:
            raise ImmunityOverError(
                f"{age_ms} ms after it was born, a transaction with "
                f"{Property.CHECK_IMMUNITY_SECONDS}={text} ends by an answer only"
            )

    async def _commit(self, half_offset: int, half: ReceivedMessage) -> None:
        name, queue_id = half_messages.real_place(half)
        topic = self._context.store.topic(name)
        if topic is None:
            raise TopicNotFoundError(f"topic {name} of the transaction is gone")
        record, properties = half_messages.committed(half, store_host=self._store_host)
        message = self._intake.indexed(record, properties)
        rider = transactions.end_rider(half_offset, Outcome.COMMITTED)
        began_s = self._context.clock.monotonic()
        await self._under_way(
            half_offset,
            lambda done: self._context.appender.append(
                topic, queue_id, [message], done, rider=rider
            ),
        )
        took_s = self._context.clock.monotonic() - began_s
        self._context.statistics.stored(name, 1, len(half.body), took_s)

    async def _end_without(self, half_offset: int, outcome: Outcome) -> None:
        command = encode_feature(
            transactions.EndHalves(self._context.clock.wall_ms(), [(half_offset, int(outcome))])
        )

        def propose(done: AppendCallback) -> None:
            self._context.raft.propose(command, lambda _result, error: done(-1, [], error))

        await self._under_way(half_offset, propose)

    async def _under_way(
        self, half_offset: int, propose: Callable[[AppendCallback], object]
    ) -> None:
        """Proposes the end of a transaction and waits for it."""
        event = self._ending[half_offset] = asyncio.Event()
        decided: asyncio.Future[DLedgerError | None]
        decided = asyncio.get_running_loop().create_future()

        def done(_first: int, _offsets: list[int], error: DLedgerError | None) -> None:
            # After an error of unknown outcome the entry may be in the log still: no second end
            # may follow it in this term. A new term begins with an empty table.
            if (error is None or error.definite) and self._ending.get(half_offset) is event:
                del self._ending[half_offset]
            event.set()
            if not decided.done():
                decided.set_result(error)

        try:
            propose(done)
        except DLedgerError:
            del self._ending[half_offset]
            event.set()
            raise
        error = await decided
        if error is not None:
            raise error

    def _read(self, half: HalfRow) -> ReceivedMessage | None:
        try:
            stored = self._context.log.read(half.physical_offset, half.size_bytes)
        except OffsetOutOfRangeError:
            return None  # retention has taken it
        return half_messages.decode_half(stored)

    # --- checking -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Asks producers about due transactions until cancelled. Does nothing on followers."""
        shortest = min(self._config.immunity_s, self._config.check_interval_s)
        pause_s = max(0.02, min(_POLL_MAX_S, shortest / 4))
        while True:
            await asyncio.sleep(pause_s)
            if not self._context.raft.is_serving:
                continue
            try:
                while await self._check_some() == _CHECKED_AT_ONCE:
                    pass
            except FATAL_ERRORS:
                raise
            except DLedgerError as error:
                logger.info("transactions not checked: %s", error)

    async def _check_some(self) -> int:
        now_ms = self._context.clock.wall_ms()
        due = transactions.due_halves(self._context.store.rows, now_ms, _CHECKED_AT_ONCE)
        if not due:
            return 0
        self._context.gate.check()
        later: list[tuple[int, bool]] = []
        for half_offset, half in due:
            is_over = (
                half.checks >= self._config.check_max
                or now_ms - half.stored_ms > self._config.age_max_s * 1000
            )
            try:
                if half_offset in self._ending:
                    later.append((half_offset, False))
                elif is_over:
                    await self._give_up(half_offset, half)
                else:
                    later.append((half_offset, self._ask(half_offset, half)))
            except FATAL_ERRORS:
                raise
            except DLedgerError as error:
                # One that cannot be dealt with must not hold up those behind it.
                logger.warning("transaction not checked: half=%d error=%s", half_offset, error)
                later.append((half_offset, True))
        if later:
            due_ms = now_ms + int(self._config.check_interval_s * 1000)
            await self._context.raft.submit(encode_feature(transactions.ChecksSent(due_ms, later)))
        return len(due)

    def _ask(self, half_offset: int, half: HalfRow) -> bool:
        message = self._read(half)
        if message is None:
            return True
        host, _, port = message.store_host.rpartition(":")
        unique_key = message.unique_key
        ext: dict[str, object] = {
            "tranStateTableOffset": half_offset,
            "commitLogOffset": half.physical_offset,
            "msgId": unique_key,
            "transactionId": unique_key,
            "offsetMsgId": offset_message_id(
                pack_host(host.strip("[]"), int(port)), half.physical_offset
            ),
            "topic": half_messages.real_place(message)[0],
            "bname": self._context.config.broker_name,
        }
        body = half_messages.question(message, half.checks)
        return self._producers.ask_producer(
            half.group, RequestCode.CHECK_TRANSACTION_STATE, ext, body
        )

    async def _give_up(self, half_offset: int, half: HalfRow) -> None:
        """Takes a half message that nobody answers for out of the way, where people can find it."""
        message = self._read(half)
        logger.warning(
            "transaction given up: half_offset=%d group=%s checks=%d found=%s",
            half_offset,
            half.group,
            half.checks,
            message is not None,
        )
        if message is None:
            await self._end_without(half_offset, Outcome.GIVEN_UP)
            return
        topic = await self._given_up_topic()
        record, properties = half_messages.given_up(
            message, GIVEN_UP_TOPIC, store_host=self._store_host
        )
        rider = transactions.end_rider(half_offset, Outcome.GIVEN_UP)
        encoded = self._intake.indexed(record, properties)
        await self._under_way(
            half_offset,
            lambda done: self._context.appender.append(topic, 0, [encoded], done, rider=rider),
        )

    async def _given_up_topic(self) -> TopicConfig:
        future: asyncio.Future[TopicConfig] = asyncio.get_running_loop().create_future()

        def made(topic: TopicConfig | None, error: DLedgerError | None) -> None:
            if future.done():
                return
            if topic is None:
                future.set_exception(definite_failure(error, f"topic {GIVEN_UP_TOPIC}"))
            else:
                future.set_result(topic)

        self._catalog.ensure_topic(_topic_config(GIVEN_UP_TOPIC, int(Permission.READ)), made)
        return await future

    # --- RaftListener -------------------------------------------------------------------------

    def on_serving(self, term: int) -> None:
        """Begins a term: everything that earlier ones proposed has been applied, or never will."""
        self._ending.clear()

    def on_stopped_serving(self) -> None:
        """Does nothing: proposals under way are answered by themselves."""

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Does nothing."""


def half_topic_config() -> TopicConfig:
    """Returns the topic of half messages: without permissions, so that nobody can read it."""
    return _topic_config(HALF_TOPIC, 0)


def _topic_config(name: str, permission: int) -> TopicConfig:
    return TopicConfig(name=name, read_queue_count=1, write_queue_count=1, permission=permission)
