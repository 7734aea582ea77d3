"""Has every consumer get every message, with asyncio."""

import asyncio
import tempfile

from dledger import (
    AsyncProducer,
    AsyncPushConsumer,
    ConsumeFrom,
    Message,
    MessageModel,
    PushConsumerConfig,
)

TOPIC = "example-news-async"


async def listen(name: str, directory: str) -> str:
    heard: set[str] = set()
    async with AsyncPushConsumer(
        "example-news-async-listeners",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
        message_model=MessageModel.BROADCASTING,
        config=PushConsumerConfig(offset_directory=directory),
    ) as consumer:
        async for message in consumer.messages(idle_timeout_s=5):
            heard.add(message.body.decode())
            if len(heard) == 2:
                break
    return " ".join([name, *sorted(heard)])


async def main() -> None:
    async with AsyncProducer("example") as producer:
        for headline in (b"one", b"two"):
            await producer.send(Message(TOPIC, headline))
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        print(*await asyncio.gather(listen("here", here), listen("there", there)), sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
