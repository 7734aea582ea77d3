"""Reads only what is wanted: by tag, or by a condition on properties, with asyncio."""

import asyncio

from dledger import AsyncProducer, AsyncPushConsumer, ConsumeFrom, Message, Sql

TOPIC = "example-payments-async"


async def consume(group: str, expression: str | Sql) -> list[str]:
    async with AsyncPushConsumer(
        group, subscriptions={TOPIC: expression}, consume_from=ConsumeFrom.EARLIEST
    ) as consumer:
        return sorted([m.body.decode() async for m in consumer.messages(idle_timeout_s=1)])


async def main() -> None:
    async with AsyncProducer("example") as producer:
        for tag, amount in (("card", 5), ("cash", 50), ("card", 500), ("cheque", 5000)):
            body = f"{tag} {amount}".encode()
            await producer.send(Message(TOPIC, body, tags=tag, properties={"amount": str(amount)}))

    by_tag, by_sql = await asyncio.gather(
        consume("example-by-tag-async", "card || cheque"),
        consume("example-by-sql-async", Sql("amount > 10 AND TAGS <> 'cheque'")),
    )
    print("card or cheque:", by_tag)
    print("large, no cheque:", by_sql)


if __name__ == "__main__":
    asyncio.run(main())
