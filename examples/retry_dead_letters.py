"""Lets failed messages come again, gives one up, and gives it another chance later."""

from dledger import Admin, ConsumeFrom, Message, Producer, PushConsumer, ReceivedMessage
from dledger.client.dead_letters import ReplayTarget

TOPIC = "example-parcels"
GROUP = "example-parcels-readers"


def main() -> None:
    with Producer("example") as producer:
        for body in (b"fine", b"fails once", b"broken"):
            producer.send(Message(TOPIC, body))

    done: list[str] = []
    repaired = False
    consumer = PushConsumer(GROUP, subscriptions={TOPIC: "*"}, consume_from=ConsumeFrom.EARLIEST)

    def handle(message: ReceivedMessage) -> None:
        if message.body == b"fails once" and not message.reconsume_times:
            message.nack(delay=1, reason="not yet")  # an exception does as well: after 10 s, 30 s …
        elif message.body == b"broken" and not repaired:
            message.nack(dead_letter=True, reason="no address")
        else:
            done.append(message.body.decode())
        if len(done) == (3 if repaired else 2):
            consumer.stop()

    with consumer:
        consumer.run(handle)
    print("processed:", *sorted(done))

    with Admin() as admin:
        letters = admin.dead_letters()
        for queue in letters.queues(GROUP):
            for letter in letters.read(queue):
                print("dead letter:", letter.message.body.decode(), "-", letter.reason)
                letters.replay(letter, ReplayTarget.GROUP)
                letters.note_replayed(queue, letter.message.queue_offset + 1)

    repaired = True
    consumer = PushConsumer(GROUP, subscriptions={TOPIC: "*"})
    with consumer:
        consumer.run(handle)
    print("processed:", *sorted(done))


if __name__ == "__main__":
    main()
