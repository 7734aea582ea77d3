"""StateStore against a model of dicts, with aborted transactions and reopening in between."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dledger.model import GroupConfig, QueueUnit, TopicConfig
from store import state_keys as keys
from store.state_batch import ConsumerOffset, WriteBatch
from store.state_store import StateStore

names = st.sampled_from(["a", "b", "ab"])
groups = st.sampled_from(["g", "gg", "h"])
queues = st.integers(0, 1)
words = st.sampled_from(["k", "kk", "K" * 80])


class Model:
    """What the store should hold."""

    def __init__(self) -> None:
        self.topics: dict[str, TopicConfig] = {}
        self.groups: dict[str, GroupConfig] = {}
        self.next_id = 1
        self.units: dict[tuple[int, int], list[QueueUnit]] = {}
        self.offsets: dict[tuple[str, str, int], int] = {}
        self.keys: dict[tuple[int, str, bool], list[int]] = {}
        self.applied = 0
        self.position = 0


Change = tuple[Callable[[WriteBatch], object], Callable[[Model], object]]


class StateStoreModel(RuleBasedStateMachine):
    """Gathers changes into a batch; commits or aborts it; compares after every step."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.store = self.opened()
        self.model = Model()
        self.pending = deepcopy(self.model)
        self.changes: list[Callable[[WriteBatch], None]] = []

    def opened(self) -> StateStore:
        path = Path(self.directory.name)
        return StateStore.open(path, map_bytes=1 << 20, boot_id=lambda: "b")

    @rule(name=names, count=st.integers(1, 16))
    def put_topic(self, name: str, count: int) -> None:
        model = self.pending
        old = model.topics.get(name)
        topic_id = old.topic_id if old else model.next_id
        expected = TopicConfig(name=name, topic_id=topic_id, read_queue_count=count)
        model.topics[name] = expected
        model.next_id += old is None

        def change(batch: WriteBatch) -> None:
            assert batch.put_topic(TopicConfig(name=name, read_queue_count=count)) == expected

        self.changes.append(change)

    @rule(name=names)
    def delete_topic(self, name: str) -> None:
        model = self.pending
        old = model.topics.pop(name, None)
        if old:
            model.units = {k: v for k, v in model.units.items() if k[0] != old.topic_id}
            model.keys = {k: v for k, v in model.keys.items() if k[0] != old.topic_id}
            model.offsets = {k: v for k, v in model.offsets.items() if k[1] != name}

        def change(batch: WriteBatch) -> None:
            assert batch.delete_topic(name) is (old is not None)

        self.changes.append(change)

    @rule(name=groups, retry_max=st.integers(1, 9))
    def put_group(self, name: str, retry_max: int) -> None:
        config = GroupConfig(name=name, retry_max=retry_max)
        self.pending.groups[name] = config
        self.changes.append(lambda batch: batch.put_group(config) and None)

    @rule(name=groups, delete_offsets=st.booleans())
    def delete_group(self, name: str, delete_offsets: bool) -> None:
        model = self.pending
        existed = model.groups.pop(name, None) is not None
        if delete_offsets:
            model.offsets = {k: v for k, v in model.offsets.items() if k[0] != name}

        def change(batch: WriteBatch) -> None:
            assert batch.delete_group(name, delete_offsets=delete_offsets) is existed

        self.changes.append(change)

    @rule(rows=st.lists(st.tuples(groups, names, queues, st.integers(0, 1 << 40)), max_size=5))
    def commit_offsets(self, rows: list[tuple[str, str, int, int]]) -> None:
        known = [row for row in rows if row[1] in self.pending.topics]
        for group, topic, queue_id, offset in known:
            self.pending.offsets[group, topic, queue_id] = offset

        def change(batch: WriteBatch) -> None:
            assert batch.put_consumer_offsets(ConsumerOffset(*row) for row in rows) == len(known)

        self.changes.append(change)

    @rule(name=names, queue_id=queues, count=st.integers(1, 70))
    def append(self, name: str, queue_id: int, count: int) -> None:
        model = self.pending
        if name not in model.topics:
            return
        topic_id = model.topics[name].topic_id
        rows = model.units.setdefault((topic_id, queue_id), [])
        first = len(rows)
        new = [QueueUnit(model.position + n, 100 + n, n - 3) for n in range(count)]
        model.position += count
        rows += new
        data = b"".join(keys.UNIT.pack(*unit) for unit in new)

        def change(batch: WriteBatch) -> None:
            assert batch.append_units(topic_id, queue_id, first, data) == first + count

        self.changes.append(change)

    @rule(name=names, word=words, unique=st.booleans())
    def index(self, name: str, word: str, unique: bool) -> None:
        model = self.pending
        if name not in model.topics:
            return
        topic_id = model.topics[name].topic_id
        position = model.position
        model.position += 1
        model.keys.setdefault((topic_id, word, unique), []).append(position)
        stem = keys.key_stem(topic_id, word.encode(), unique=unique)
        record = stem + keys.KEY_TAIL.pack(position, 1000 + position)
        self.changes.append(lambda batch: batch.put_keys(len(stem) + 8, record))

    @rule()
    def commit(self) -> None:
        self.pending.applied += 1
        with self.store.write() as batch:
            for change in self.changes:
                change(batch)
            batch.set_applied(self.pending.applied, 1)
        self.model = deepcopy(self.pending)
        self.changes = []

    @rule()
    def abort(self) -> None:
        try:
            with self.store.write() as batch:
                for change in self.changes:
                    change(batch)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        self.pending = deepcopy(self.model)
        self.changes = []

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        digest = self.store.digest()
        self.store.close(clean=clean)
        self.store = self.opened()
        assert self.store.digest() == digest

    @invariant()
    def equal(self) -> None:
        store, model = self.store, self.model
        assert store.applied_index == model.applied
        assert dict(store.topics) == model.topics
        assert dict(store.groups) == model.groups
        for group in ("g", "gg", "h"):
            expected = {
                (topic, queue): offset
                for (owner, topic, queue), offset in model.offsets.items()
                if owner == group
            }
            assert store.consumer_offsets(group) == expected
        for topic_id in range(1, model.next_id):
            for queue_id in range(2):
                rows = model.units.get((topic_id, queue_id), [])
                assert store.queue_bounds(topic_id, queue_id) == (0, len(rows))
                assert store.read_units(topic_id, queue_id, 0, 9999) == rows
                start = len(rows) // 2
                assert store.read_units(topic_id, queue_id, start, 33) == rows[start : start + 33]
            for word in ("k", "kk", "K" * 80):
                for unique in (True, False):
                    found = store.find_by_key(topic_id, word, unique=unique, limit=10**6)
                    assert found == model.keys.get((topic_id, word, unique), [])[::-1]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close(clean=False)
            self.directory.cleanup()


StateStoreModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestStateStoreModel = StateStoreModel.TestCase
