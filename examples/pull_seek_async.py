"""Reads a queue from any place: an offset, a time, its ends, with asyncio."""

import asyncio
import datetime

from dledger import AsyncAdmin, AsyncProducer, AsyncPullConsumer, Message

TOPIC = "example-journal-async"


async def main() -> None:
    async with AsyncAdmin() as admin:
        await admin.create_topic(TOPIC, queue_count=1)
    async with AsyncProducer("example") as producer:
        for number in range(3):
            await producer.send(Message(TOPIC, b"entry %d" % number))
        await asyncio.sleep(0.05)
        noon = datetime.datetime.now(datetime.UTC)
        for number in range(3, 6):
            await producer.send(Message(TOPIC, b"entry %d" % number))

    async with AsyncPullConsumer("example-journal-async-reader") as consumer:
        [queue] = await consumer.queues(TOPIC)
        consumer.seek(queue, 4)
        print("from offset 4:", [m.body.decode() for m in await consumer.pull(queue)])
        await consumer.seek_to_time(queue, noon)
        print("since noon:", [m.body.decode() for m in await consumer.pull(queue)])
        await consumer.seek_to_begin(queue)
        print("the first:", [m.body.decode() for m in await consumer.pull(queue, count_max=1)])
        await consumer.commit()
        print("committed:", await consumer.committed(queue))


if __name__ == "__main__":
    asyncio.run(main())
