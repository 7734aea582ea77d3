"""Sends messages that are stored next to each other, or not at all, with asyncio."""

import asyncio

from dledger import AsyncProducer, AsyncPullConsumer, Message

TOPIC = "example-batch-async"


async def main() -> None:
    async with AsyncProducer("example") as producer:
        results = await producer.send_batch([Message(TOPIC, b"line %d" % n) for n in range(3)])
    first = results[0]
    assert [r.queue_offset - first.queue_offset for r in results] == [0, 1, 2]

    async with AsyncPullConsumer("example-batch-async-reader") as consumer:
        consumer.seek(first.queue, first.queue_offset)
        for message in await consumer.pull(first.queue):
            print(message.body.decode())


if __name__ == "__main__":
    asyncio.run(main())
