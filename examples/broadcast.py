"""Has every consumer get every message. Each keeps its offsets in a local file."""

import tempfile

from dledger import (
    ConsumeFrom,
    Message,
    MessageModel,
    Producer,
    PushConsumer,
    PushConsumerConfig,
)

TOPIC = "example-news"


def listener(directory: str) -> PushConsumer:
    return PushConsumer(
        "example-news-listeners",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
        message_model=MessageModel.BROADCASTING,
        config=PushConsumerConfig(offset_directory=directory),  # by default ~/.dledger/offsets
    )


def main() -> None:
    with Producer("example") as producer:
        for headline in (b"one", b"two"):
            producer.send(Message(TOPIC, headline))

    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        for name, directory in (("here", here), ("there", there)):
            with listener(directory) as consumer:
                heard = set()
                for message in consumer.messages(idle_timeout_s=5):
                    heard.add(message.body.decode())
                    if len(heard) == 2:
                        break
            print(name, *sorted(heard))


if __name__ == "__main__":
    main()
