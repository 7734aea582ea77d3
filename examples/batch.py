"""Sends messages that are stored next to each other, or not at all."""

from dledger import Message, Producer, PullConsumer

TOPIC = "example-batch"


def main() -> None:
    with Producer("example") as producer:
        results = producer.send_batch([Message(TOPIC, b"line %d" % n) for n in range(3)])
    first = results[0]
    assert [r.queue_offset - first.queue_offset for r in results] == [0, 1, 2]

    with PullConsumer("example-batch-reader") as consumer:
        consumer.seek(first.queue, first.queue_offset)
        for message in consumer.pull(first.queue):
            print(message.body.decode())


if __name__ == "__main__":
    main()
