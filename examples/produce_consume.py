"""Sends messages and consumes them as a group. Needs DLEDGER_NAMESERVER=host:port."""

from dledger import ConsumeFrom, Message, Producer, PushConsumer

TOPIC = "example-hello"


def main() -> None:
    with Producer("example") as producer:
        for number in range(5):
            result = producer.send(Message(TOPIC, b"hello %d" % number, keys=[str(number)]))
            assert result.queue.topic == TOPIC  # committed, on a majority's disks

    with PushConsumer(
        "example-hello-readers",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
    ) as consumer:
        bodies = []
        for message in consumer:  # processed once the loop asks for the next one, or ends
            bodies.append(message.body.decode())
            if len(bodies) == 5:
                break
    print(*sorted(bodies), sep="\n")


if __name__ == "__main__":
    main()
