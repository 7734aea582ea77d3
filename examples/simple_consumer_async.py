"""Receives messages one by one with asyncio: acknowledged, given back, or coming again."""

import asyncio

from dledger import AsyncAdmin, AsyncProducer, AsyncSimpleConsumer, Message

TOPIC = "example-jobs-async"


async def main() -> None:
    async with AsyncAdmin() as admin:
        await admin.create_topic(TOPIC, queue_count=1)
    async with AsyncProducer("example-async") as producer:
        for name in ("resize", "crash", "mail"):
            await producer.send(Message(TOPIC, name.encode()))

    async with AsyncSimpleConsumer("example-workers-async", subscriptions={TOPIC: "*"}) as consumer:
        # For a minute nobody else of the group gets what is received here.
        for message in await consumer.receive(3, invisible_s=60):
            if message.body == b"crash":
                await consumer.change_invisible_duration(message, 0)  # not ours: back at once
            else:
                await consumer.ack(message)
                print("done:", message.body.decode())
        [again] = await consumer.receive(1, invisible_s=60, wait_s=5)
        print("again:", again.body.decode(), "after", again.reconsume_times, "failure")
        await consumer.ack(again)
        print("left:", len(await consumer.receive(wait_s=0)))


if __name__ == "__main__":
    asyncio.run(main())
