"""The digest of the state: the same however entries are batched, another one for another state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.commands import (
    encode_commit_offsets,
    encode_delete_topic,
    encode_digest,
    encode_put_topic,
)
from broker.feature_commands import encode_feature
from broker.pop_state import Ack, AckMessages, Part, PopMessages, RunKey
from broker.state_machine import AppliedEffects, BrokerStateMachine, StateDivergedError
from dledger.model import TopicConfig
from store.state_rows import POP
from store.state_store import StateStore


class Entry:
    record = b""
    term = 1

    def __init__(self, index: int, body: bytes) -> None:
        self.index, self.body = index, body


class Replica:
    def __init__(self, path: Path, digest_entries: int = 5) -> None:
        self.path = path
        self.effects: list[AppliedEffects] = []
        self.digest_entries = digest_entries
        self.open()

    def open(self) -> None:
        self.store = StateStore.open(self.path, map_bytes=1 << 20, boot_id=lambda: "b")
        self.machine = BrokerStateMachine(
            self.store, self.effects.append, digest_entries=self.digest_entries
        )

    def restart(self) -> None:
        self.store.close(clean=False)
        self.open()

    def apply(self, *bodies: bytes) -> None:
        first = self.store.applied_index + 1
        self.machine.apply([Entry(first + n, body) for n, body in enumerate(bodies)])

    @property
    def digest(self) -> bytes:
        return self.store._tables.digest

    @property
    def checkpoints(self) -> tuple[tuple[int, bytes], ...]:
        return self.store._tables.checkpoints


BODIES: list[Callable[[], bytes]] = [
    lambda: b"\x01",
    lambda: encode_put_topic(TopicConfig(name="a")),
    lambda: encode_put_topic(TopicConfig(name="b")),
    lambda: encode_commit_offsets([("g", "a", 0, 1), ("g", "gone", 0, 1)]),
    lambda: encode_delete_topic("b"),
    lambda: encode_delete_topic("b"),
    lambda: encode_put_topic(TopicConfig(name="b")),
    lambda: b"\x01",
]


def test_it_does_not_depend_on_batches_or_restarts(tmp_path: Path) -> None:
    bodies = [make() for make in BODIES] * 4
    one, many = Replica(tmp_path / "one"), Replica(tmp_path / "many")
    one.apply(*bodies)
    for number, body in enumerate(bodies):
        many.apply(body)
        if number % 7 == 3:
            many.restart()
    assert one.digest == many.digest
    assert one.checkpoints == many.checkpoints
    assert [index for index, _ in one.checkpoints] == [5, 10, 15, 20, 25, 30]
    # Of one batch only the newest is reported, which is enough.
    assert [effect.checkpoint for effect in one.effects] == [one.checkpoints[-1]]
    assert one.store.digest() == many.store.digest()


def test_few_checkpoints_are_kept(tmp_path: Path) -> None:
    replica = Replica(tmp_path, digest_entries=1)
    replica.apply(*[b"\x01"] * 100)
    assert [index for index, _ in replica.checkpoints] == list(range(93, 101))
    assert replica.digest == bytes(16)


def test_a_replica_whose_state_differs_refuses_the_leaders_digest_for_good(tmp_path: Path) -> None:
    good, bad = Replica(tmp_path / "good"), Replica(tmp_path / "bad")
    for replica in (good, bad):
        replica.apply(encode_put_topic(TopicConfig(name="a")))
    with bad.store.write() as batch:  # what a bug or a broken disk may do
        batch.put_topic(TopicConfig(name="only here"))
    for replica in (good, bad):
        replica.apply(*[encode_put_topic(TopicConfig(name="b"))] * 4)
    (checkpoint,) = good.checkpoints
    assert bad.checkpoints != good.checkpoints
    good.apply(encode_digest(*checkpoint))
    for _ in range(2):
        with pytest.raises(StateDivergedError, match="rebuilt"):
            bad.apply(encode_digest(*checkpoint))
        assert bad.store.applied_index == 5
        bad.restart()


def test_one_that_is_not_remembered_is_not_judged(tmp_path: Path) -> None:
    replica = Replica(tmp_path)
    replica.apply(b"\x01", encode_digest(77, b"x" * 16))
    assert replica.store.applied_index == 2


def test_what_comes_of_pops_counts(tmp_path: Path) -> None:
    """A row that is missing on one replica shows itself with the next acknowledgement."""
    replicas = [Replica(tmp_path / name) for name in "ab"]
    part = Part("t", 0, -1, -1, 0, 2, 0, b"\3")
    for replica in replicas:
        pop = PopMessages("g", 1000, 10, "", [part])
        replica.apply(encode_put_topic(TopicConfig(name="t")), encode_feature(pop))
    assert replicas[0].digest == replicas[1].digest
    with replicas[1].store.write() as batch:
        for key, _ in batch.rows.scan(POP, b"r", limit=9):
            batch.rows.delete(POP, key)
    assert replicas[0].digest == replicas[1].digest
    for replica in replicas:
        ack = Ack("g", "t", 0, RunKey(0, 1000), b"\1")
        replica.apply(encode_feature(AckMessages([ack])))
    assert replicas[0].digest != replicas[1].digest
    assert replicas[0].store.digest() != replicas[1].store.digest()
