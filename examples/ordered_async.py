"""Keeps the order of each key's messages, with several handlers at a time."""

import asyncio
from collections import defaultdict

from dledger import AsyncProducer, AsyncPushConsumer, ConsumeFrom, Message, ReceivedMessage

TOPIC = "example-orders-async"
STEPS = ["created", "paid", "shipped"]


async def main() -> None:
    async with AsyncProducer("example") as producer:
        # Stored in the order of these calls, though none waits for the one before.
        await asyncio.gather(
            *(
                producer.send(Message(TOPIC, step.encode(), keys=[order]), shard_key=order)
                for step in STEPS
                for order in ("order-1", "order-2", "order-3")
            )
        )

    seen: dict[str, list[str]] = defaultdict(list)
    consumer = AsyncPushConsumer(
        "example-orders-async-readers",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
        ordered=True,
    )

    async def handle(message: ReceivedMessage) -> None:
        seen[message.keys[0]].append(message.body.decode())
        if sum(map(len, seen.values())) == 9:
            consumer.stop()

    async with consumer:
        await consumer.run(handle, concurrency=3)
    for order in sorted(seen):
        print(order, *seen[order])


if __name__ == "__main__":
    asyncio.run(main())
