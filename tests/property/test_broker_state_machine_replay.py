"""A log gives one state, however it is cut into batches and wherever the process is killed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.commands import (
    encode_commit_offsets,
    encode_delete_group,
    encode_delete_topic,
    encode_put_group,
    encode_put_topic,
)
from broker.messages_command import EncodedMessage, MessagesBuilder, Part, SendIdentity
from broker.names import SCHEDULE_TOPIC
from broker.state_machine import BrokerStateMachine
from broker.timers_command import deliver_prefix, encode_cancel
from dledger.message import encode_stored
from dledger.model import GroupConfig, TopicConfig
from store.producer_lanes import LaneLimits
from store.state_store import StateStore
from store.timer_table import timer_key


class LogEntry(NamedTuple):
    index: int
    term: int
    body: bytes | memoryview
    record: bytes


names = st.sampled_from(["a", "b", "c"])
groups = st.sampled_from(["g", "gg"])
producers = st.one_of(st.none(), st.integers(1, 4))
requests = st.lists(
    st.tuples(names, st.integers(0, 2), st.integers(1, 40), st.booleans(), producers),
    min_size=1,
    max_size=4,
)
limits = st.builds(
    LaneLimits,
    lanes_max=st.integers(1, 6),
    idle_s=st.integers(1, 3),
    batches_max=st.integers(1, 3),
)
steps = st.one_of(
    st.tuples(st.just("send"), requests, limits),
    st.tuples(st.just("put"), names, st.integers(1, 9), st.booleans()),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("group"), groups, st.integers(1, 9)),
    st.tuples(st.just("delete group"), groups, st.booleans()),
    st.tuples(
        st.just("commit"),
        st.lists(st.tuples(groups, names, st.integers(0, 2), st.integers(0, 99)), min_size=1),
    ),
    st.tuples(st.just("park"), st.lists(st.integers(0, 50), min_size=1, max_size=4)),
    # Timers by their number: some are there, some are gone, some are named again.
    st.tuples(st.just("deliver"), names, st.sets(st.integers(0, 9), min_size=1, max_size=3)),
    st.tuples(st.just("cancel"), st.sets(st.integers(0, 9), min_size=1, max_size=3)),
    st.tuples(st.just("no-op")),
)


def parked_message(unique_key: int) -> bytes:
    return encode_stored(
        topic=SCHEDULE_TOPIC.encode(),
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
        body=b"x" * unique_key,
        properties=b"UNIQ_KEY\x01%d\x02" % unique_key,
    )


class Writer:
    """A leader that proposes before what it proposed is applied, so topic ids may be stale."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.next_id = 1
        self.next_offsets: dict[tuple[int, int], int] = {}
        self.offset = 0
        self.number = 0
        self.timers: list[bytes] = []
        self.pending: set[bytes] = set()

    def take(self, topic_id: int, queue_id: int, count: int) -> int:
        first = self.next_offsets.get((topic_id, queue_id), 0)
        self.next_offsets[topic_id, queue_id] = first + count
        return first

    def body(self, step: tuple[object, ...]) -> bytes:
        match step:
            case ("send", list(items), LaneLimits() as lane_limits):
                return self.send(items, lane_limits)
            case ("put", str(name), int(count), bool(only_create)):
                if name not in self.ids:
                    self.ids[name], self.next_id = self.next_id, self.next_id + 1
                config = TopicConfig(name=name, write_queue_count=count)
                return encode_put_topic(config, only_create=only_create)
            case ("delete", str(name)):
                # Some time passes before the senders notice: the id stays in use until then.
                if self.number % 2:
                    self.ids.pop(name, None)
                else:
                    self.stale(name)
                return encode_delete_topic(name)
            case ("group", str(name), int(retry_max)):
                return encode_put_group(GroupConfig(name=name, retry_max=retry_max))
            case ("delete group", str(name), bool(delete_offsets)):
                return encode_delete_group(name, delete_offsets=delete_offsets)
            case ("commit", list(offsets)):
                return encode_commit_offsets(offsets)
            case ("park", list(due)):
                return self.park(due)
            case ("deliver", str(name), set(numbers)):
                return self.deliver(name, self.named(numbers))
            case ("cancel", set(numbers)):
                self.pending.difference_update(self.named(numbers))
                return encode_cancel(self.named(numbers))
        return b"\x01"

    def named(self, numbers: set[int]) -> list[bytes]:
        none = [timer_key(99, number) for number in sorted(numbers)]
        return [(*self.timers, *none)[number % (len(self.timers) + 1)] for number in [*numbers][:1]]

    def park(self, due: list[int]) -> bytes:
        if SCHEDULE_TOPIC not in self.ids:
            self.ids[SCHEDULE_TOPIC], self.next_id = self.next_id, self.next_id + 1
            return encode_put_topic(TopicConfig(name=SCHEDULE_TOPIC))
        topic_id = self.ids[SCHEDULE_TOPIC]
        messages = [EncodedMessage(parked_message(ms % 7), ms) for ms in due]
        builder, part = MessagesBuilder(), Part(topic_id, messages)
        builder.add(topic_id, 0, part)
        body = bytes(builder.encode(self.offset, 5_000, self.take))
        for ms, place in zip(due, part.physical_offsets, strict=True):
            self.timers.append(timer_key(ms, place))
            self.pending.add(self.timers[-1])
        return body

    def deliver(self, name: str, timer_keys: list[bytes]) -> bytes:
        topic_id = self.ids.get(name)
        if topic_id is None:
            return b"\x03"
        builder = MessagesBuilder()
        builder.add(topic_id, 0, Part(topic_id, [EncodedMessage(bytes(99))]))
        prefix = deliver_prefix(timer_keys)
        # One that does nothing takes no queue offset for good: a leader never proposes two.
        before = dict(self.next_offsets)
        body = prefix + bytes(builder.encode(self.offset + len(prefix), 5_000, self.take))
        if not self.pending.issuperset(timer_keys):
            self.next_offsets = before
        self.pending.difference_update(timer_keys)
        return body

    def stale(self, name: str) -> None:
        if name in self.ids:
            self.ids[f"stale {name}"] = self.ids.pop(name)

    def send(
        self, items: list[tuple[str, int, int, bool, int | None]], lane_limits: LaneLimits
    ) -> bytes:
        builder = MessagesBuilder(lane_limits)
        for name, queue_id, count, keyed, producer in items:
            topic_id = self.ids.get(name, self.ids.get(f"stale {name}"))
            if topic_id is None:
                continue
            messages = []
            for _ in range(count):
                self.number += 1
                words = (b"k%d" % (self.number % 5),) if keyed else ()
                unique = b"%032d" % self.number
                messages.append(EncodedMessage(bytes(91 + count), count, unique, words))
            identity = None if producer is None else SendIdentity(producer, self.number)
            builder.add(topic_id, queue_id, Part(topic_id, messages, identity))
        if builder.size_bytes < 100:
            return b"\x02"
        return bytes(builder.encode(self.offset, 5_000 + 20 * self.number, self.take))

    def log(self, script: list[tuple[object, ...]]) -> list[LogEntry]:
        entries = []
        for index, step in enumerate(script, 1):
            body = self.body(step)
            self.offset += len(body) + 40
            entries.append(LogEntry(index, 1 + index // 5, body, b""))
        return entries


def opened(path: str) -> StateStore:
    return StateStore.open(Path(path), map_bytes=1 << 20, boot_id=lambda: "b")


@settings(max_examples=60, deadline=None)
@given(
    script=st.lists(steps, max_size=25),
    cuts=st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 3)), min_size=1),
)
def test_any_split_and_any_kill_gives_the_same_state(
    script: list[tuple[object, ...]], cuts: list[tuple[int, bool, int]]
) -> None:
    log = Writer().log(script)
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        store = opened(whole)
        results = BrokerStateMachine(store).apply(log)
        digest = store.digest()
        assert store.applied_index == len(log)
        store.close()

        store = opened(cut)
        at = 0
        replayed: list[object] = []
        while at < len(log):
            size, killed, repeated = cuts[at % len(cuts)]
            start = max(0, at - repeated)  # entries applied already come again
            got = BrokerStateMachine(store).apply(log[start : at + size])
            replayed += got[at - start :]
            at = min(at + size, len(log))
            if killed:
                store.close(clean=False)
                store = opened(cut)
            assert store.applied_index == at
        assert store.digest() == digest
        assert replayed == results
        store.close()
