"""Sends messages and consumes them as a group, with asyncio."""

import asyncio

from dledger import AsyncProducer, AsyncPushConsumer, ConsumeFrom, Message, ReceivedMessage

TOPIC = "example-hello-async"


async def main() -> None:
    async with AsyncProducer("example") as producer:
        # Batched under the hood: what is sent meanwhile travels together.
        await asyncio.gather(
            *(producer.send(Message(TOPIC, b"hello %d" % number)) for number in range(5))
        )

    bodies = []
    consumer = AsyncPushConsumer(
        "example-hello-async-readers",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
    )

    async def handle(message: ReceivedMessage) -> None:
        bodies.append(message.body.decode())  # an exception would bring it back later
        if len(bodies) == 5:
            consumer.stop()

    async with consumer:
        await consumer.run(handle, concurrency=4)
    print(*sorted(bodies), sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
