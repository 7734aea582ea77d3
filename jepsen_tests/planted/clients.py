"""Broken parts for clients."""

from __future__ import annotations

import asyncio

from dledger.client.group_reader import Delivery
from dledger.client.push_consumer import AsyncPushConsumer
from jepsen_tests.history import Append, BatchAppend, Record, Status
from jepsen_tests.workloads.group_member import Member
from jepsen_tests.workloads.recorder import Recorder


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


class CallsUnknownFailed(Recorder):
    """K12: a client that reports a time-out as a failure."""

    def note(self, kind: str, status: Status, record: Record) -> None:
        """Writes what is unknown as failed."""
        if status == "info" and isinstance(record, Append | BatchAppend):
            record.status = status = "fail"
        super().note(kind, status, record)


def recorder_class(plant: str) -> type[Recorder]:
    """Returns the class of what writes the history: a broken one if it is planted."""
    return CallsUnknownFailed if plant == "K12" else Recorder


def member_class(plant: str) -> type[Member]:
    """Returns the class of members: a broken one if it is planted."""
    return CommitsFirst if plant == "K13" else Member
