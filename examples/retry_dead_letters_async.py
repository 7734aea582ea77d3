"""Lets failed messages come again, gives one up, and gives it another chance later; asyncio."""

import asyncio

from dledger import AsyncAdmin, AsyncProducer, AsyncPushConsumer, ConsumeFrom, Message
from dledger.client.dead_letters import ReplayTarget

TOPIC = "example-parcels-async"
GROUP = "example-parcels-async-readers"


async def consume(count: int, *, repaired: bool) -> list[str]:
    done: list[str] = []
    async with AsyncPushConsumer(
        GROUP, subscriptions={TOPIC: "*"}, consume_from=ConsumeFrom.EARLIEST
    ) as consumer:
        async for message in consumer:
            if message.body == b"fails once" and not message.reconsume_times:
                message.nack(delay=1, reason="not yet")
            elif message.body == b"broken" and not repaired:
                message.nack(dead_letter=True, reason="no address")
            else:
                done.append(message.body.decode())
            if len(done) == count:
                break
    return sorted(done)


async def main() -> None:
    async with AsyncProducer("example") as producer:
        for body in (b"broken", b"fails once", b"fine"):
            await producer.send(Message(TOPIC, body), queue=0)
    print("processed:", *await consume(2, repaired=False))

    async with AsyncAdmin() as admin:
        letters = admin.dead_letters()
        for queue in await letters.queues(GROUP):
            async for letter in letters.read(queue):
                print("dead letter:", letter.message.body.decode(), "-", letter.reason)
                await letters.replay(letter, ReplayTarget.GROUP)
                await letters.note_replayed(queue, letter.message.queue_offset + 1)
    print("processed:", *await consume(1, repaired=True))


if __name__ == "__main__":
    asyncio.run(main())
