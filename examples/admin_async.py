"""Creates topics and groups, looks at them, and moves a group to another place; asyncio."""

import asyncio

from dledger import AsyncAdmin, AsyncProducer, ConsumeFrom, GroupConfig, Message

TOPIC = "example-admin-async"
GROUP = "example-admin-async-readers"


async def main() -> None:
    async with AsyncAdmin() as admin, AsyncProducer("example") as producer:
        await admin.create_topic(TOPIC, queue_count=2)
        await admin.create_group(GroupConfig(name=GROUP, retry_max=3))
        for number in range(6):
            message = Message(TOPIC, b"%d" % number, keys=[f"key-{number}"])
            result = await producer.send(message)
        [found] = await admin.messages_by_key(TOPIC, "key-5")
        print("found by key:", found.body.decode())
        print("found by id:", (await admin.message(result.message_id, TOPIC)).body.decode())
        print("messages:", sum(b.offset_max - b.offset_min for b in await admin.bounds(TOPIC)))
        await admin.reset_offsets(GROUP, TOPIC, ConsumeFrom.LATEST)
        print("lag:", sum(p.lag for p in await admin.consumer_progress(GROUP, TOPIC)))
        await admin.reset_offsets(GROUP, TOPIC, ConsumeFrom.EARLIEST)
        print("lag:", sum(p.lag for p in await admin.consumer_progress(GROUP, TOPIC)))
        await admin.delete_group(GROUP)
        await admin.delete_topic(TOPIC)


if __name__ == "__main__":
    asyncio.run(main())
