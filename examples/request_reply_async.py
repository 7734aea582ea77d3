"""Asks a question by message and waits for the answer, with asyncio."""

import asyncio

from dledger import (
    AsyncProducer,
    AsyncPushConsumer,
    ConsumeFrom,
    Message,
    ReceivedMessage,
)

TOPIC = "example-questions-async"


async def main() -> None:
    consumer = AsyncPushConsumer(
        "example-answerers-async",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
    )
    async with AsyncProducer("example") as producer, consumer:

        async def answer(question: ReceivedMessage) -> None:
            await producer.reply(question, question.body.upper())

        answering = asyncio.create_task(consumer.run(answer))
        reply = await producer.request(Message(TOPIC, b"how loud?"), timeout_s=10)
        print(reply.body.decode())
        consumer.stop()
        await answering


if __name__ == "__main__":
    asyncio.run(main())
