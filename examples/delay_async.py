"""Delays messages, and takes one back before its time, with asyncio."""

import asyncio
import datetime

from dledger import AsyncProducer, AsyncPushConsumer, ConsumeFrom, Message

TOPIC = "example-later-async"


async def main() -> None:
    now = datetime.datetime.now(datetime.UTC)
    second = datetime.timedelta(seconds=1)
    async with AsyncProducer("example") as producer:
        await producer.send(Message(TOPIC, b"in a second"), delay=second)
        await producer.send(Message(TOPIC, b"half a second later"), deliver_at=now + 1.5 * second)
        regretted = await producer.send(Message(TOPIC, b"never"), delay=second)
        await producer.recall(regretted.recall_handle)

    async with AsyncPushConsumer(
        "example-later-async-readers",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
    ) as consumer:
        async for message in consumer.messages(idle_timeout_s=3):
            print(message.body.decode())
            if message.body.startswith(b"half"):
                break


if __name__ == "__main__":
    asyncio.run(main())
