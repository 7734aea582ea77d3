"""Receives messages one by one: each is acknowledged, given back, or comes again by itself."""

from dledger import Admin, Message, Producer, SimpleConsumer

TOPIC = "example-jobs"


def main() -> None:
    with Admin() as admin:
        admin.create_topic(TOPIC, queue_count=1)
    with Producer("example") as producer:
        for name in ("resize", "crash", "mail"):
            producer.send(Message(TOPIC, name.encode()))

    with SimpleConsumer("example-workers", subscriptions={TOPIC: "*"}) as consumer:
        # For a minute nobody else of the group gets what is received here.
        for message in consumer.receive(3, invisible_s=60):
            if message.body == b"crash":
                consumer.change_invisible_duration(message, 0)  # not ours: back at once
            else:
                consumer.ack(message)
                print("done:", message.body.decode())
        [again] = consumer.receive(1, invisible_s=60, wait_s=5)
        print("again:", again.body.decode(), "after", again.reconsume_times, "failure")
        consumer.ack(again)
        print("left:", len(consumer.receive(wait_s=0)))


if __name__ == "__main__":
    main()
