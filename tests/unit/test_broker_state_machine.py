"""The state machine: results and effects of each command, exactly once, in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from broker.commands import (
    encode_commit_offsets,
    encode_delete_group,
    encode_delete_topic,
    encode_put_group,
    encode_put_topic,
)
from broker.messages_command import EncodedMessage, MessagesBuilder, Part
from broker.state_machine import AppliedEffects, BrokerStateMachine, MessagesApplied
from dledger.errors import DiskFullError, InvariantError
from dledger.model import GroupConfig, TopicConfig
from store.lmdb_env import LmdbEnvironment
from store.state_store import StateStore


class LogEntry(NamedTuple):
    index: int
    term: int
    body: bytes | memoryview
    record: bytes


NO_OP = b"\x01"
A, B = TopicConfig(name="a"), TopicConfig(name="b")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    made = StateStore.open(tmp_path, map_bytes=1 << 20, boot_id=lambda: "b")
    yield made
    made.close()


class Replica:
    """A state machine with the log position of its next entry, and the effects it reported."""

    def __init__(self, store: StateStore) -> None:
        self.store = store
        self.effects: list[AppliedEffects] = []
        self.machine = BrokerStateMachine(store, self.effects.append)

    def entries(self, *bodies: bytes, term: int = 1) -> list[LogEntry]:
        first = self.store.applied_index + 1
        return [LogEntry(first + n, term, memoryview(body), b"") for n, body in enumerate(bodies)]

    def apply(self, *bodies: bytes, term: int = 1) -> list[object]:
        return self.machine.apply(self.entries(*bodies, term=term))


@pytest.fixture
def replica(store: StateStore) -> Replica:
    return Replica(store)


def messages(*runs: tuple[int, int, int, int], key: bytes = b"") -> bytes:
    """A MESSAGES command of runs (topic id, queue id, first queue offset, count)."""
    builder = MessagesBuilder()
    for topic_id, queue_id, _, count in runs:
        message = EncodedMessage(bytes(100), 1, key)
        builder.add(topic_id, queue_id, Part(topic_id, [message] * count))
    firsts = {(topic_id, queue_id): first for topic_id, queue_id, first, _ in runs}
    return bytes(builder.encode(4096, 123, lambda topic, queue, _: firsts[topic, queue]))


def test_rafts_own_entries_only_move_the_index(replica: Replica) -> None:
    assert replica.apply(NO_OP, b"\x0f", term=3) == [None, None]
    assert (replica.machine.applied_index, replica.store.applied_term) == (2, 3)
    assert replica.effects == []


def test_topics(replica: Replica) -> None:
    wide = TopicConfig(name="a", write_queue_count=9)
    results = replica.apply(
        encode_put_topic(A),
        encode_put_topic(B),
        encode_put_topic(wide, only_create=True),
        encode_put_topic(wide),
        encode_delete_topic("b"),
        encode_delete_topic("b"),
    )
    assert [getattr(result, "topic_id", result) for result in results] == [1, 2, 1, 1, True, False]
    assert replica.store.topics["a"].write_queue_count == 9
    assert results[2] == TopicConfig(name="a", topic_id=1)
    (effects,) = replica.effects
    assert effects.topics == ["a", "b", "a", "b"]


def test_groups_and_offsets(replica: Replica) -> None:
    group = GroupConfig(name="g", retry_max=1)
    results = replica.apply(
        encode_put_topic(A),
        encode_put_group(group),
        encode_put_group(GroupConfig(name="g"), only_create=True),
        encode_commit_offsets([("g", "a", 0, 1), ("g", "a", 0, 9), ("h", "zz", 0, 1)]),
        encode_delete_group("none"),
    )
    assert results[1:] == [group, group, 2, False]
    assert replica.store.consumer_offsets("g") == {("a", 0): 9}
    (effects,) = replica.effects
    assert (effects.groups, effects.offsets_stored) == (["g"], 2)
    assert replica.apply(encode_delete_group("g")) == [True]
    assert replica.store.consumer_offsets("g") == {}


def test_messages(replica: Replica) -> None:
    results = replica.apply(
        encode_put_topic(A), messages((1, 0, 0, 3), (1, 7, 0, 1), key=b"k"), messages((1, 0, 3, 40))
    )
    assert results[1:] == [MessagesApplied(), MessagesApplied()]
    store = replica.store
    assert store.queue_bounds(1, 0) == (0, 43)
    assert store.queue_bounds(1, 7) == (0, 1)
    assert replica.effects[0].queues == {(1, 0): 43, (1, 7): 1}
    assert [unit.size_bytes for unit in store.read_units(1, 0, 0, 99)] == [100] * 43
    assert len(store.find_by_key(1, "k", unique=True)) == 4


def test_messages_of_a_deleted_topic_are_skipped(replica: Replica) -> None:
    results = replica.apply(
        encode_put_topic(A),
        encode_put_topic(B),
        messages((1, 0, 0, 2)),
        encode_delete_topic("a"),
        messages((1, 0, 2, 5), (2, 0, 0, 1), key=b"k"),
        messages((1, 0, 7, 1)),
        encode_put_topic(A),
        messages((3, 0, 0, 1)),
    )
    assert results[4:6] == [MessagesApplied((1,)), MessagesApplied((1,))]
    store = replica.store
    assert store.queue_bounds(1, 0) == (0, 0)
    assert store.queue_bounds(2, 0) == (0, 1)
    assert store.queue_bounds(3, 0) == (0, 1)
    assert replica.effects[0].queues == {(2, 0): 1, (3, 0): 1}


def test_index_records_of_a_topic_that_is_gone_are_not_stored(replica: Replica) -> None:
    """Nothing would ever remove them: what the topic had left behind is removed already."""
    replica.apply(encode_put_topic(A), encode_put_topic(B), encode_delete_topic("a"))
    replica.apply(messages((1, 0, 0, 5), (2, 0, 0, 1), key=b"k"))
    environment = replica.store._environment
    with environment.read() as transaction:
        entries = transaction.stat(environment.databases["key_index"])["entries"]
    assert entries == 1


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x10", id="torn messages"),
        pytest.param(b"\x7e\x01\x90", id="unknown type"),
        pytest.param(b"\x11\x01\x91\xa1a", id="malformed topic"),
        pytest.param(messages((1, 0, 1, 1)), id="hole in a queue"),
        pytest.param(encode_put_topic(A)[:-1], id="torn topic"),
    ],
)
def test_malformed_entries_are_never_skipped(replica: Replica, body: bytes) -> None:
    replica.apply(encode_put_topic(A))
    digest = replica.store.digest()
    with pytest.raises(InvariantError):
        replica.apply(encode_put_topic(B), body)
    assert (replica.store.digest(), replica.machine.applied_index) == (digest, 1)


def test_what_is_applied_already_is_skipped(replica: Replica) -> None:
    first = replica.entries(encode_put_topic(A), messages((1, 0, 0, 2)))
    replica.machine.apply(first)
    digest = replica.store.digest()
    assert replica.machine.apply(first) == [None, None]
    assert replica.store.digest() == digest
    following = replica.entries(messages((1, 0, 2, 1)))
    assert replica.machine.apply(first + following) == [None, None, MessagesApplied()]
    assert replica.machine.applied_index == 3


@pytest.mark.parametrize(("index", "term"), [(3, 1), (2, 0)])
def test_entries_out_of_sequence_are_broken_invariants(
    replica: Replica, index: int, term: int
) -> None:
    replica.apply(NO_OP)
    with pytest.raises(InvariantError, match="consecutive"):
        replica.machine.apply([LogEntry(index, term, NO_OP, b"")])


def test_the_first_entry_of_a_log_may_be_kept_by_raft(replica: Replica) -> None:
    replica.machine.apply([LogEntry(2, 1, encode_put_topic(A), b"")])
    assert (replica.machine.applied_index, list(replica.store.topics)) == (2, ["a"])


def test_a_full_disk_applies_nothing_and_the_call_can_be_made_again(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.apply(encode_put_topic(A), messages((1, 0, 0, 2)))
    replica.effects.clear()
    entries = replica.entries(
        messages((1, 0, 2, 40)),
        encode_delete_topic("a"),
        encode_put_topic(B),
        encode_put_group(GroupConfig(name="g")),
        messages((2, 3, 0, 1)),
    )
    digest = replica.store.digest()

    def full(*_: object, **__: object) -> None:
        raise DiskFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(LmdbEnvironment, "write", full)
        with pytest.raises(DiskFullError):
            replica.machine.apply(entries)
    assert replica.store.digest() == digest
    assert replica.machine.applied_index == 2
    assert replica.store.queue_bounds(1, 0) == (0, 2)
    assert list(replica.store.topics) == ["a"]
    assert not replica.store.groups
    assert replica.effects == []
    assert len(replica.machine.apply(entries)) == 5
    assert list(replica.store.topics) == ["b"]
    assert replica.store.queue_bounds(2, 3) == (0, 1)


def test_effects_are_reported_after_the_commit_and_before_the_results(store: StateStore) -> None:
    seen: list[int] = []
    machine = BrokerStateMachine(store, lambda _: seen.append(store.applied_index))
    machine.apply([LogEntry(1, 1, encode_put_topic(A), b"")])
    assert seen == [1]
    BrokerStateMachine(store).apply([LogEntry(2, 1, encode_put_topic(B), b"")])
    assert seen == [1]
