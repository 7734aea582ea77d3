"""Timers in the state machine: parked, delivered once, cancelled; the same on every replica."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from broker.commands import encode_delete_topic, encode_put_topic
from broker.messages_command import EncodedMessage, MessagesBuilder, Part
from broker.names import SCHEDULE_TOPIC
from broker.state_machine import AppliedEffects, BrokerStateMachine, MessagesApplied
from broker.timers_command import (
    TimersCancelled,
    TimersDelivered,
    deliver_prefix,
    encode_cancel,
)
from dledger.errors import InvariantError
from dledger.message import encode_stored
from dledger.model import TopicConfig
from store.state_store import StateStore
from store.timer_table import timer_key

SCHEDULE_ID, REAL_ID = 1, 2


class LogEntry(NamedTuple):
    index: int
    term: int
    body: bytes | memoryview
    record: bytes


def record(unique_key: str, body: bytes = b"x") -> bytes:
    return encode_stored(
        topic=b"any",
        queue_id=0,
        flag=0,
        queue_offset=0,
        physical_offset=0,
        sys_flag=0,
        born_timestamp_ms=0,
        born_host=bytes(8),
        store_timestamp_ms=0,
        store_host=bytes(8),
        reconsume_times=0,
        prepared_transaction_offset=0,
        body=body,
        properties=f"UNIQ_KEY\x01{unique_key}\x02".encode(),
    )


class Group:
    """Writes entries as a leader does and applies them."""

    def __init__(self, store: StateStore) -> None:
        self.store = store
        self.effects: list[AppliedEffects] = []
        self.machine = BrokerStateMachine(store, self.effects.append)
        self.next_offsets: dict[tuple[int, int], int] = {}
        self.offset = 1000

    def take(self, topic_id: int, queue_id: int, count: int) -> int:
        first = self.next_offsets.get((topic_id, queue_id), 0)
        self.next_offsets[topic_id, queue_id] = first + count
        return first

    def messages(self, topic_id: int, *messages: EncodedMessage, prefix: bytes = b"") -> bytes:
        builder = MessagesBuilder()
        part = Part(topic_id, messages)
        builder.add(topic_id, 0, part)
        body = prefix + bytes(builder.encode(self.offset + len(prefix), 50, self.take))
        self.offset += len(body) + 40
        self.places = part.physical_offsets
        return body

    def park(self, *due: int) -> list[bytes]:
        messages = [EncodedMessage(record(f"U{ms}"), ms) for ms in due]
        self.apply(self.messages(SCHEDULE_ID, *messages))
        return [timer_key(ms, place) for ms, place in zip(due, self.places, strict=True)]

    def deliver(self, *timer_keys: bytes) -> bytes:
        messages = [EncodedMessage(record("delivered")) for _ in timer_keys]
        return self.messages(REAL_ID, *messages, prefix=deliver_prefix(timer_keys))

    def apply(self, *bodies: bytes) -> list[object]:
        first = self.store.applied_index + 1
        entries = [LogEntry(first + n, 1, memoryview(b), b"") for n, b in enumerate(bodies)]
        return self.machine.apply(entries)

    def keys(self, now_ms: int = 10**15) -> list[bytes]:
        due = self.store.timers.due(now_ms, count_max=10_000, bytes_max=1 << 30)
        return [timer.key for timer in due]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    store = StateStore.open(tmp_path, map_bytes=1 << 20, boot_id=lambda: "b")
    made = Group(store)
    made.apply(
        encode_put_topic(TopicConfig(name=SCHEDULE_TOPIC)), encode_put_topic(TopicConfig(name="t"))
    )
    yield made
    store.close()


def test_a_parked_message_is_a_timer(group: Group) -> None:
    first, second = group.park(900, 300)
    assert group.keys() == [second, first]
    assert group.keys(899) == [second]
    assert group.effects[-1].timers_due_ms == 300
    timers = group.store.timers
    assert (timers.count(), timers.next_due_ms(), timers.next_due_ms(skip={second})) == (
        2,
        300,
        900,
    )
    assert [timer.key for timer in timers.find(b"U900")] == [first]
    (timer,) = timers.due(300, count_max=9, bytes_max=9)
    assert timer.deliver_ms == 300
    assert b"U300" in timer.stored
    assert timers.used_bytes() > 0
    assert group.store.queue_bounds(SCHEDULE_ID, 0) == (0, 2)


def test_a_timer_is_delivered_once(group: Group) -> None:
    first, second = group.park(100, 200)
    assert group.apply(group.deliver(first)) == [TimersDelivered(MessagesApplied())]
    assert group.store.queue_bounds(REAL_ID, 0) == (0, 1)
    assert group.keys() == [second]
    before = group.store.digest()
    index = group.store.applied_index
    # Whoever proposes it again, alone or with one that is still there, in whatever batch.
    assert (
        group.apply(group.deliver(first), group.deliver(first, second))
        == [TimersDelivered(None)] * 2
    )
    assert group.store.applied_index == index + 2
    assert group.store.queue_bounds(REAL_ID, 0) == (0, 1)
    assert group.keys() == [second]
    assert group.store.digest() != before  # the applied index is a part of it
    assert group.store.timers.find(b"U100") == []


def test_twice_within_one_transaction(group: Group) -> None:
    (key,) = group.park(100)
    once, again = group.deliver(key), group.deliver(key)
    assert group.apply(once, again) == [TimersDelivered(MessagesApplied()), TimersDelivered(None)]
    assert group.store.queue_bounds(REAL_ID, 0) == (0, 1)


def test_parked_and_delivered_within_one_transaction(group: Group) -> None:
    message = EncodedMessage(record("U1"), 100)
    parked = group.messages(SCHEDULE_ID, message)
    key = timer_key(100, group.places[0])
    assert group.apply(parked, group.deliver(key))[1] == TimersDelivered(MessagesApplied())
    assert group.keys() == []
    assert group.store.timers.find(b"U1") == []


def test_what_is_cancelled_is_not_delivered(group: Group) -> None:
    first, second = group.park(100, 200)
    assert group.apply(encode_cancel([first, timer_key(5, 5)])) == [TimersCancelled((first,))]
    assert group.apply(encode_cancel([first]), group.deliver(first)) == [
        TimersCancelled(()),
        TimersDelivered(None),
    ]
    assert group.keys() == [second]


def test_a_topic_deleted_meanwhile_takes_the_message_with_it(group: Group) -> None:
    (key,) = group.park(100)
    body = group.deliver(key)
    results = group.apply(encode_delete_topic("t"), body)
    assert results[1] == TimersDelivered(MessagesApplied((REAL_ID,)))
    assert group.keys() == []


def test_large_messages_wait_too(group: Group) -> None:
    body = bytes(4 * 1024 * 1024)
    parked = group.messages(SCHEDULE_ID, EncodedMessage(record("U1", body), 100))
    group.apply(parked)
    (timer,) = group.store.timers.due(100, count_max=1, bytes_max=1)
    assert len(timer.stored) > len(body)


def test_timers_survive_the_process(tmp_path: Path) -> None:
    store = StateStore.open(tmp_path, map_bytes=1 << 20, boot_id=lambda: "b")
    group = Group(store)
    group.apply(encode_put_topic(TopicConfig(name=SCHEDULE_TOPIC)))
    keys = group.park(*range(1000, 1500))
    store.close(clean=False)
    group.store = StateStore.open(tmp_path, map_bytes=1 << 20, boot_id=lambda: "b")
    assert group.keys() == keys
    group.store.close()


@pytest.mark.parametrize(
    "body",
    [
        b"\x20",
        b"\x20\x01\x00\x00\x00\x00\x00\x00",
        b"\x21\x02\x00\x00\x00\x00\x00\x01" + bytes(16),
        b"\x21\x01\x00\x00\x00\x00\x00\x01" + bytes(15),
        b"\x21\x01\x00\x00\x00\x00\x00\x01" + bytes(17),
        b"\x21\x01\x00\x00\x00\x00\x00\x02" + bytes(32),
        b"\x20\x01\x00\x00\x00\x00\x00\x01" + bytes(16),
        b"\x20\x01\x00\x00\xff\xff\xff\xff" + bytes(16),
    ],
)
def test_a_malformed_command_stops_the_replica(group: Group, body: bytes) -> None:
    with pytest.raises(InvariantError):
        group.apply(body)
