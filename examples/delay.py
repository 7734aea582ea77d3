"""Delays messages, and takes one back before its time."""

import time

from dledger import ConsumeFrom, Message, Producer, PushConsumer

TOPIC = "example-later"


def main() -> None:
    began = time.time()
    with Producer("example") as producer:
        producer.send(Message(TOPIC, b"in a second"), delay=1)  # seconds, or a timedelta
        producer.send(Message(TOPIC, b"half a second later"), deliver_at=began + 1.5)
        regretted = producer.send(Message(TOPIC, b"never"), delay=1)
        producer.recall(regretted.recall_handle)

    with PushConsumer(
        "example-later-readers",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
    ) as consumer:
        for message in consumer.messages(idle_timeout_s=3):
            assert time.time() >= began + 1, "early"
            print(message.body.decode())
            if message.body.startswith(b"half"):
                break


if __name__ == "__main__":
    main()
