"""The CommitLog against a model: any operations, any crashes, and still nothing durable is lost."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.commit_log import CommitLog
from store.config import KIB, StoreConfig
from store.record import HEADER_BYTES, decode_records, encode_record
from store.simulated_files import PowerLossError, SimulatedFileSystem
from store.sync_worker import ManualSyncWorker

DIRECTORY = Path("/log")

Entry = tuple[int, int, bytes]
Step = tuple[str, int, int]

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 6), st.sampled_from([0, 50, 900, 9000, 30000])),
        st.tuples(st.just("receive"), st.integers(1, 6), st.sampled_from([0, 50, 900, 9000])),
        st.tuples(st.just("request"), st.just(0), st.just(0)),
        st.tuples(st.just("work"), st.just(0), st.just(0)),
        st.tuples(st.just("sync"), st.just(0), st.just(0)),
        st.tuples(st.just("truncate"), st.integers(0, 100), st.just(0)),
        st.tuples(st.just("vote"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("read"), st.integers(0, 100), st.integers(1, 50_000)),
        st.tuples(st.just("idle"), st.just(0), st.just(0)),
    ),
    max_size=30,
)
LIVES = st.lists(
    st.tuples(
        STEPS,
        st.one_of(st.none(), st.integers(1, 60)),  # crash at this call, if not earlier at the end
        st.sampled_from(["power", "process", "close"]),
    ),
    min_size=1,
    max_size=4,
)


@dataclass
class Model:
    entries: list[Entry] = field(default_factory=list)
    durable: int = 0
    written: int = 0  # after the death of a process that many must be found
    dropping: list[Entry] = field(default_factory=list)
    term: int = 1
    votes: set[tuple[int, str | None]] = field(default_factory=lambda: {(0, None)})


class Life:
    """Runs steps on an open log and keeps the model in step with it."""

    def __init__(self, fs: SimulatedFileSystem, config: StoreConfig, model: Model) -> None:
        self.model = model
        self.worker = ManualSyncWorker()
        self.log = CommitLog.open(DIRECTORY, config, fs, sync_worker=self.worker)
        self.check()
        self.log.subscribe_durable(self._on_durable)

    def _on_durable(self, index: int) -> None:
        assert index == self.log.durable_index
        self.model.durable = index

    def check(self) -> None:
        """Compares what was found on opening with the model, and goes on from there."""
        model, log = self.model, self.log
        found = read_all(log)
        assert len(found) == log.last_index == log.durable_index
        assert len(found) >= max(model.durable, model.written)
        assert found in (model.entries[: len(found)], model.dropping[: len(found)])
        vote = (log.term, log.voted_for)
        assert vote in model.votes or vote == (log.last_term, None)
        model.entries, model.dropping, model.votes = found, [], {vote}
        model.durable, model.written = len(found), 0

    def step(self, name: str, a: int, b: int) -> None:
        getattr(self, f"do_{name}")(a, b)

    def do_append(self, count: int, size: int) -> None:
        for _ in range(count):
            self._append(size)

    def _append(self, size: int) -> None:
        index = len(self.model.entries) + 1
        body = Random(index * 7919 + self.model.term).randbytes(size)
        self.model.entries.append((index, self.model.term, body))
        self.log.append(index, self.model.term, body)

    def do_receive(self, count: int, size: int) -> None:
        data, offset = b"", self.log.offset_end
        for _ in range(count):
            index = len(self.model.entries) + 1
            body = Random(index * 7919 + self.model.term).randbytes(size)
            self.model.entries.append((index, self.model.term, body))
            data += encode_record(offset + len(data), index, self.model.term, body)
        self.log.append_records(self.log.decode_records(memoryview(data)))

    def do_request(self, _a: int, _b: int) -> None:
        self.log.request_sync()

    def do_work(self, _a: int, _b: int) -> None:
        self.worker.run_pending()

    def do_sync(self, _a: int, _b: int) -> None:
        self.log.sync()
        assert self.log.durable_index == len(self.model.entries)
        self.model.durable = self.log.durable_index

    def do_truncate(self, percent: int, _b: int) -> None:
        model = self.model
        index = 1 + len(model.entries) * percent // 100
        model.dropping = list(model.entries)
        model.durable = min(model.durable, index - 1)
        del model.entries[index - 1 :]
        model.term += 1
        self.log.truncate_from(index)
        model.dropping = []
        assert self.log.last_index == len(model.entries)
        if index <= self.log.last_index:
            model.durable = self.log.durable_index

    def do_vote(self, raised: int, _b: int) -> None:
        vote = (self.log.term + raised, f"replica-{raised}")
        self.model.votes.add(vote)
        self.log.save_vote(*vote)
        self.model.votes = {vote}
        self.model.term = max(self.model.term, vote[0])

    def do_read(self, percent: int, bytes_max: int) -> None:
        entries = self.model.entries
        first = 1 + len(entries) * percent // 100
        found = self.log.read_entries(first, 3, bytes_max)
        assert [(e.index, e.term, bytes(e.body)) for e in found] == entries[
            first - 1 : first - 1 + len(found)
        ]
        assert bool(found) == (first <= len(entries))
        buffers, last = self.log.read_records(first, bytes_max)
        data = memoryview(b"".join(buffers))
        decoded = decode_records(data, 1 << 30)
        assert [(e.index, e.term, bytes(e.body)) for e in decoded] == entries[first - 1 : last]
        assert self.log.term_at(first) == (entries[first - 1][1] if first <= len(entries) else None)
        offset = sum(HEADER_BYTES + len(entry[2]) for entry in entries[: first - 1])
        if first <= len(entries) and entries[first - 1][2]:
            body = entries[first - 1][2]
            assert self.log.read(offset + HEADER_BYTES, len(body)) == body
            assert self.log.read(offset + HEADER_BYTES + len(body) - 1, 1) == body[-1:]

    def do_idle(self, _a: int, _b: int) -> None:
        self.worker.run_idle()


def read_all(log: CommitLog) -> list[Entry]:
    found: list[Entry] = []
    index = log.first_index
    while index <= log.last_index:
        entries = log.read_entries(index, 1000, 1 << 30)
        found += [(entry.index, entry.term, bytes(entry.body)) for entry in entries]
        index = entries[-1].index + 1
    return found


@given(
    lives=LIVES,
    seed=st.integers(0, 1 << 32),
    cache=st.sampled_from([0, 5_000, 1 << 24]),
    mapped=st.sampled_from([1, 2, 8]),
)
@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_log_against_model(
    lives: list[tuple[list[Step], int | None, str]], seed: int, cache: int, mapped: int
) -> None:
    config = StoreConfig(
        segment_bytes=64 * KIB,
        disk_free_bytes_min=0,
        tail_cache_bytes=cache,
        segments_mapped_max=mapped,
    )
    random = Random(seed)
    fs, model = SimulatedFileSystem(), Model()
    for steps, crash_at, ending in lives:
        if crash_at is not None:

            def on_call(
                operation: str, path: Path, fs: SimulatedFileSystem = fs, at: int = crash_at
            ) -> None:
                if fs.calls >= at:
                    raise PowerLossError

            fs.on_call = on_call
        with contextlib.suppress(PowerLossError):
            life = Life(fs, config, model)
            for step in steps:
                life.step(*step)
            if ending == "close":
                life.log.close()
                model.durable = len(model.entries)
        if ending == "power":
            fs = fs.power_loss(random)
            model.written = 0
        else:
            before = fs
            fs = fs.process_death()
            if before.on_call is None and not model.dropping:
                # The death of a process loses nothing that was written, synced or not.
                model.written = len(model.entries)
    Life(fs, config, model).log.close()


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_bytes_are_decoded_or_refused(data: st.DataObject) -> None:
    """`decode_records` takes bytes from a peer: whatever they are, it raises or is right."""
    from dledger.errors import RemoteProtocolError

    bodies = data.draw(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
    raw = b""
    for index, body in enumerate(bodies, 5):
        raw += encode_record(1000 + len(raw), index, 3, body)
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = damaged[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else damaged
    try:
        entries = decode_records(memoryview(bytes(cut)), 1 << 20)
    except RemoteProtocolError:
        assert bytes(cut) != raw
        return
    assert raw.startswith(bytes(cut))
    assert [bytes(entry.body) for entry in entries] == bodies[: len(entries)]
