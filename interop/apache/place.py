"""A cluster to check, and what the checks of a client have in common."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from dledger import (
    AsyncAdmin,
    AsyncProducer,
    AsyncPullConsumer,
    AsyncPushConsumer,
    ConsumeFrom,
    ProducerConfig,
    PushConsumerConfig,
    ReceivedMessage,
    SessionConfig,
    Sql,
)

PATIENCE_S = 30.0

AsyncHandler = Callable[[ReceivedMessage], Awaitable[None]]


class Different(Exception):
    """The broker has this not, or in another way; the text says how, for the table."""


@dataclass
class Place:
    """A cluster to check, and names that no other check uses."""

    nameserver: str
    name: str
    is_ours: bool
    crash: Callable[[], None] | None = None  # ends the leader as kill -9 does, and starts it again
    session: SessionConfig = field(
        default_factory=lambda: SessionConfig(route_poll_s=1.0, heartbeat_s=5.0)
    )

    @property
    def topic(self) -> str:
        return f"check-{self.name}"

    @property
    def group(self) -> str:
        return f"check-{self.name}-group"

    def producer(self, **settings: Any) -> AsyncProducer:
        config = ProducerConfig(session=self.session, **settings)
        return AsyncProducer(f"{self.name}-producers", nameserver=self.nameserver, config=config)

    def puller(self, group: str = "") -> AsyncPullConsumer:
        return AsyncPullConsumer(group or self.group, nameserver=self.nameserver)

    def consumer(
        self, expression: str | Sql = "*", group: str = "", **arguments: Any
    ) -> AsyncPushConsumer:
        settings = {
            name: arguments.pop(name)
            for name in list(arguments)
            if name in PushConsumerConfig.__dataclass_fields__
        }
        settings = {"suspend_s": 1.0, "rebalance_interval_s": 2.0, **settings}
        return AsyncPushConsumer(
            group or self.group,
            subscriptions={self.topic: expression},
            nameserver=self.nameserver,
            consume_from=ConsumeFrom.EARLIEST,
            config=PushConsumerConfig(session=self.session, **settings),
            **arguments,
        )

    def admin(self) -> AsyncAdmin:
        return AsyncAdmin(nameserver=self.nameserver)

    async def create(self, queues: int = 4) -> None:
        async with self.admin() as admin:
            await admin.create_topic(self.topic, queue_count=queues)

    async def read_all(self, count: int, expression: str | Sql = "*") -> list[ReceivedMessage]:
        """The topic's messages, by queue and offset, as soon as so many can be read.

        Apache's brokers acknowledge a message a moment before it can be read.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found: list[ReceivedMessage] = []
            async with self.puller(f"{self.group}-reader") as consumer:
                for queue in await consumer.queues(self.topic):
                    end = await consumer.offset_max(queue)
                    await consumer.seek_to_begin(queue)
                    while await consumer.position(queue) < end:
                        found += await consumer.pull(queue, timeout_s=1, expression=expression)
            if len(found) >= count or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        await asyncio.sleep(0.02)


async def until_seen(seen: list[ReceivedMessage], count: int) -> None:
    await until(lambda: len(seen) >= count, f"{count} messages")


@contextlib.asynccontextmanager
async def consuming(
    consumer: AsyncPushConsumer, handle: AsyncHandler, concurrency: int = 1
) -> AsyncIterator[None]:
    """Runs a consumer beside the block."""
    async with consumer:
        assert await consumer.wait_assigned(PATIENCE_S), "no queues"
        task = asyncio.create_task(consumer.run(handle, concurrency=concurrency))
        try:
            yield
        finally:
            consumer.stop()
            await task


def collector() -> tuple[list[ReceivedMessage], AsyncHandler]:
    seen: list[ReceivedMessage] = []

    async def handle(message: ReceivedMessage) -> None:
        seen.append(message)

    return seen, handle


def bodies(messages: list[ReceivedMessage]) -> list[str]:
    return sorted(message.body.decode() for message in messages)
