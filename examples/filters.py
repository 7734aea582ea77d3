"""Reads only what is wanted: by tag, or by a condition on properties that the broker evaluates."""

from dledger import ConsumeFrom, Message, Producer, PushConsumer, Sql

TOPIC = "example-payments"


def consume(group: str, expression: str | Sql) -> list[str]:
    with PushConsumer(
        group, subscriptions={TOPIC: expression}, consume_from=ConsumeFrom.EARLIEST
    ) as consumer:
        return sorted(m.body.decode() for m in consumer.messages(idle_timeout_s=1))


def main() -> None:
    with Producer("example") as producer:
        for tag, amount in (("card", 5), ("cash", 50), ("card", 500), ("cheque", 5000)):
            body = f"{tag} {amount}".encode()
            producer.send(Message(TOPIC, body, tags=tag, properties={"amount": str(amount)}))

    print("card or cheque:", consume("example-by-tag", "card || cheque"))
    print("large, no cheque:", consume("example-by-sql", Sql("amount > 10 AND TAGS <> 'cheque'")))


if __name__ == "__main__":
    main()
