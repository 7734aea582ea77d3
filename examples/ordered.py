"""Keeps the order of each key's messages, with several handler threads."""

from collections import defaultdict

from dledger import ConsumeFrom, Message, Producer, PushConsumer, ReceivedMessage

TOPIC = "example-orders"
STEPS = ["created", "paid", "shipped"]


def main() -> None:
    with Producer("example") as producer:
        for step in STEPS:
            for order in ("order-1", "order-2", "order-3"):
                # Equal keys go to the same queue.
                producer.send(Message(TOPIC, step.encode(), keys=[order]), shard_key=order)

    seen: dict[str, list[str]] = defaultdict(list)
    consumer = PushConsumer(
        "example-orders-readers",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
        ordered=True,  # one message of a queue at a time; a failure holds up its queue
    )

    def handle(message: ReceivedMessage) -> None:
        seen[message.keys[0]].append(message.body.decode())
        if sum(map(len, seen.values())) == 9:
            consumer.stop()

    with consumer:
        consumer.run(handle, threads=3)
    for order in sorted(seen):
        print(order, *seen[order])


if __name__ == "__main__":
    main()
