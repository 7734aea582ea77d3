"""Checks of delays and of transactions; see `checks`."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from dledger import (
    AsyncTransactionProducer,
    Message,
    ProducerConfig,
    ReceivedMessage,
    SendResult,
    TransactionState,
    errors,
)
from interop.apache.place import Different, Place, bodies, collector, consuming, until


async def delay_level(place: Place) -> None:
    """Delay level (property DELAY)"""
    await place.create()
    async with place.producer() as producer:
        sent = time.time()
        await producer.send(Message(place.topic, b"x", properties={"DELAY": "1"}))
        seen, handle = collector()
        async with consuming(place.consumer(), handle):
            await until(lambda: seen, "the message")
    assert time.time() - sent >= 0.9, "early"
    assert seen[0].topic == place.topic


async def delay_any(place: Place) -> None:
    """Any delay (`delay=`, `deliver_at=`)"""
    await place.create()
    async with place.producer() as producer:
        sent = time.time()
        try:
            await producer.send(Message(place.topic, b"x"), delay=2.5)
        except errors.MessageRejectedError as error:
            raise Different(
                "no: our client refuses to send it, as it would be delivered at once; use levels"
            ) from error
        seen, handle = collector()
        async with consuming(place.consumer(), handle):
            await until(lambda: seen, "the message")
    assert time.time() - sent >= 2.4, "early"


async def recall(place: Place) -> None:
    """Recall of a delayed message"""
    await place.create()
    async with place.producer() as producer:
        try:
            result = await producer.send(Message(place.topic, b"x"), delay=3)
        except errors.MessageRejectedError as error:
            raise Different("no, nor any delay but levels") from error
        if not result.recall_handle:
            raise Different("no: results have no recall handle")
        await producer.recall(result.recall_handle)
        await asyncio.sleep(4)
    assert await place.read_all(0) == []


async def transactions(place: Place) -> None:
    """Transactions: commit, rollback, check-back"""
    await place.create()
    asked: list[bytes] = []

    async def check(message: ReceivedMessage) -> TransactionState:
        asked.append(message.body)
        is_good = message.body in (b"yes", b"forgotten")
        return TransactionState.COMMIT if is_good else TransactionState.ROLLBACK

    def decide(state: TransactionState, message: Message, half: SendResult) -> TransactionState:
        return state

    group = f"{place.name}-transactions"
    states = {
        b"yes": TransactionState.COMMIT,
        b"no": TransactionState.ROLLBACK,
        b"forgotten": TransactionState.UNKNOWN,
        b"forgotten and wrong": TransactionState.UNKNOWN,
    }
    config = ProducerConfig(session=place.session)
    seen, handle = collector()
    async with (
        AsyncTransactionProducer(
            group, checker=check, nameserver=place.nameserver, config=config
        ) as producer,
        consuming(place.consumer(), handle),
    ):
        for body, state in states.items():
            # The default immunity is for production; a check need not wait for it.
            await producer.send(Message(place.topic, body), partial(decide, state), immunity_s=1)
        forgotten = {b"forgotten", b"forgotten and wrong"}
        await until(lambda: forgotten <= set(asked), "both are asked for", 90)
        await until(lambda: len({m.body for m in seen}) >= 2, "two become visible", 60)
        await asyncio.sleep(4)  # for what should not come
    assert set(bodies(seen)) == {"forgotten", "yes"}
    if place.is_ours:
        assert (len(asked), len(seen)) == (2, 2)
    else:  # seen in some runs, in others not
        raise Different(
            "yes; for some seconds it may also ask about transactions that were ended, and an "
            "answer may store their message a second time"
        )
