"""Takes delayed messages in: where each has to wait, and whether there is room for it."""

from __future__ import annotations

import hashlib
from struct import Struct

import msgspec

from broker.catalog import NotCreatedYetError
from broker.config import TimersSection
from broker.delay_rules import DelayRules, Parking, parse_levels
from broker.intake import Intake
from broker.messages_command import SendIdentity
from dledger.clock import Clock
from dledger.errors import FlowControlError
from dledger.message import RecallHandle
from dledger.model import TopicConfig
from store.state_store import StateStore

_QUEUE_OF_PRODUCER = Struct(">QII")


class Delays:
    """The delay rules of one broker group with its state, clock and limits."""

    def __init__(
        self, config: TimersSection, store: StateStore, clock: Clock, *, broker_name: str
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._broker_name = broker_name
        levels = parse_levels(config.delay_levels)
        self.rules = DelayRules(levels, delay_max_ms=config.delay_max_s * 1000)

    def plan(self, properties: str, *, topic: str, queue_id: int) -> Parking | None:
        """Returns where a message has to wait, None if it is to be stored at once.

        Raises:
            MessageRejectedError: A delay is not a number, or too long.
            FlowControlError: Too many messages wait already.
        """
        if "DELAY" not in properties and "TIMER_DELIVER" not in properties:
            return None
        parking = self.rules.plan(
            properties, topic=topic, queue_id=queue_id, now_ms=self._clock.wall_ms()
        )
        if parking is not None:
            self.check_room()
        return parking

    def check_room(self) -> None:
        """Raises FlowControlError if too many messages wait already."""
        timers, config = self._store.timers, self._config
        if timers.count() >= config.pending_max:
            raise FlowControlError(f"timers.pending_max = {config.pending_max} is reached")
        if timers.used_bytes() >= config.pending_bytes_max:
            raise FlowControlError(
                f"timers.pending_bytes_max = {config.pending_bytes_max} is reached"
            )

    def topic_of(self, parking: Parking) -> TopicConfig:
        """Returns the parking topic.

        Raises:
            NotCreatedYetError: The first leader has not created it yet.
        """
        topic = self._store.topic(parking.topic)
        if topic is None:
            raise NotCreatedYetError(f"topic {parking.topic} is not created yet; try again")
        return topic

    def recall_handle(self, topic: str, parking: Parking, unique_key: str) -> str:
        """Returns with what a client can recall the message."""
        return RecallHandle(topic, self._broker_name, parking.deliver_ms, unique_key).encode()


def parked(intake: Intake, parking: Parking) -> Intake:
    """Returns an encoded message as it waits: due at a time, and not found by its keys."""
    message = msgspec.structs.replace(
        intake.single, tag_hash=parking.deliver_ms, unique_key=b"", keys=()
    )
    return Intake([message], intake.unique_key)


def identity_of_parked(identity: SendIdentity, topic_id: int, queue_id: int) -> SendIdentity:
    """Returns by which a repeated send of a delayed message is known.

    A producer numbers its messages for each queue; parked ones of all queues share a place. So
    each queue a producer sends to counts as a producer of its own there.
    """
    packed = _QUEUE_OF_PRODUCER.pack(identity.producer_id, topic_id, queue_id)
    derived = hashlib.blake2b(packed, digest_size=8).digest()
    return SendIdentity(int.from_bytes(derived), identity.sequence)
