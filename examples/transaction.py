"""Sends messages that consumers see only if a local transaction succeeds."""

from dledger import (
    ConsumeFrom,
    Message,
    PushConsumer,
    ReceivedMessage,
    SendResult,
    TransactionProducer,
    TransactionState,
)

TOPIC = "example-bookings"
BOOKED: set[str] = set()  # stands for the application's database


def book(message: Message, half: SendResult) -> TransactionState:
    """The local transaction. The half message is stored already, and nobody sees it."""
    if message.body == b"too expensive":
        return TransactionState.ROLLBACK
    BOOKED.add(half.message_id)
    return TransactionState.COMMIT


def check(message: ReceivedMessage) -> TransactionState:
    """Asked by the broker when it was not told, after a crash of ours, say."""
    return TransactionState.COMMIT if message.message_id in BOOKED else TransactionState.UNKNOWN


def main() -> None:
    with TransactionProducer("example-bookings", checker=check) as producer:
        for body in (b"cheap", b"too expensive", b"fair"):
            result = producer.send(Message(TOPIC, body), book)
            print(body.decode(), result.state.name)

    with PushConsumer(
        "example-bookings-readers",
        subscriptions={TOPIC: "*"},
        consume_from=ConsumeFrom.EARLIEST,
    ) as consumer:
        seen = [message.body.decode() for message in consumer.messages(idle_timeout_s=1)]
    print("consumed:", *sorted(seen))


if __name__ == "__main__":
    main()
