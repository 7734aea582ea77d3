"""Sends messages that consumers see only if a local transaction succeeds, with asyncio."""

import asyncio

from dledger import (
    AsyncPushConsumer,
    AsyncTransactionProducer,
    ConsumeFrom,
    Message,
    ReceivedMessage,
    SendResult,
    TransactionState,
)

TOPIC = "example-bookings-async"
BOOKED: set[str] = set()  # stands for the application's database


async def book(message: Message, half: SendResult) -> TransactionState:
    """The local transaction. The half message is stored already, and nobody sees it."""
    if message.body == b"too expensive":
        return TransactionState.ROLLBACK
    BOOKED.add(half.message_id)
    return TransactionState.COMMIT


async def check(message: ReceivedMessage) -> TransactionState:
    """Asked by the broker when it was not told, after a crash of ours, say."""
    return TransactionState.COMMIT if message.message_id in BOOKED else TransactionState.UNKNOWN


async def main() -> None:
    async with AsyncTransactionProducer("example-bookings-async", checker=check) as producer:
        for body in (b"cheap", b"too expensive", b"fair"):
            result = await producer.send(Message(TOPIC, body), book)
            print(body.decode(), result.state.name)

    seen = []
    async with AsyncPushConsumer(
        "example-bookings-async-readers",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
    ) as consumer:
        async for message in consumer.messages(idle_timeout_s=1):
            seen.append(message.body.decode())
    print("consumed:", *sorted(seen))


if __name__ == "__main__":
    asyncio.run(main())
