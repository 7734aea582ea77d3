"""Broken members of consumer groups."""

from __future__ import annotations

import asyncio

from dledger.client.group_reader import Delivery
from dledger.client.push_consumer import AsyncPushConsumer
from jepsen_tests.workloads.group_member import Member


class CommitsFirst(Member):
    """K13: takes a message for done, and commits, before it begins to work on it."""

    async def process(self, consumer: AsyncPushConsumer, name: str, delivery: Delivery) -> None:
        """Finishes, then works."""
        value = self.note_delivered(name, delivery)
        consumer.reader.finish(delivery)
        if delivery.message.queue_offset % 64 == 0:
            await consumer.commit()
        await asyncio.sleep(0.002)
        self.note_done(name, delivery, value, is_done=True)


def member_class(plant: str) -> type[Member]:
    """Returns the class of members: a broken one if it is planted."""
    return CommitsFirst if plant == "K13" else Member
