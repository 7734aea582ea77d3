"""Popping, acknowledging, expiry, change of time and resets against a model of single messages."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.commands import encode_commit_offsets, encode_put_topic
from broker.pop_state import (
    Ack,
    Acked,
    AckMessages,
    Change,
    ChangeVisibility,
    Part,
    Pick,
    PopMessages,
    RunKey,
    offsets_of,
    pack_bits,
    queue_key,
    queue_row,
    run_row,
    runs_by_time,
    unpack_bits,
    valid_cursor,
)
from dledger.model import TopicConfig
from tests.support.machine import Machine

INVISIBLE_MS = 10

steps = st.one_of(
    st.tuples(st.just("pop"), st.integers(1, 15), st.integers(0, 30)),
    st.tuples(st.just("again"), st.integers(1, 4)),
    st.tuples(st.just("ack"), st.integers(0, 99), st.integers(1, 3)),
    st.tuples(st.just("change"), st.integers(0, 99), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.integers(1, 15)),
    st.tuples(st.just("reset"), st.integers(0, 20)),
    st.tuples(st.just("stale pop")),
    st.tuples(st.just("crash")),
)


class Model:
    """One group in one queue: what is out, message by message."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.now_ms = 1000
        self.cursor = -1
        self.out: dict[int, tuple[RunKey, int, int]] = {}  # offset -> handle, until, deliveries
        self.handles: list[tuple[int, RunKey]] = []
        self.queue = queue_key("g", 1, 0)

    @property
    def rows(self):
        return self.machine.store.rows

    def stored(self) -> int:
        offset = self.machine.store.consumer_offset("g", "t", 0)
        return -1 if offset is None else offset

    def seen(self) -> int:
        return valid_cursor(queue_row(self.rows, self.queue), self.stored())

    def part(self, **changes) -> Part:
        begin = max(0, self.stored())
        fields = {
            "topic": "t",
            "queue_id": 0,
            "seen_cursor": self.seen(),
            "seen_offset": self.stored(),
            "begin": begin,
            "stop": 0,
            "start": 0,
            "bits": b"",
        }
        return Part(**{**fields, **changes})

    def send(self, part: Part):
        (popped,) = self.machine.apply(PopMessages("g", self.now_ms, INVISIBLE_MS, "", [part]))
        return popped

    def give(self, start: int, pop_ms: int, bits: int, deliveries: int) -> None:
        key = RunKey(start, pop_ms)
        for offset in offsets_of(start, bits):
            assert (offset, key) not in self.handles, "a handle was given out twice"
            self.handles.append((offset, key))
            self.out[offset] = (key, self.now_ms + INVISIBLE_MS, deliveries)

    def pop(self, bits: int, skip: int) -> None:
        part = self.part()
        cursor = part.begin if part.seen_cursor < 0 else part.seen_cursor
        if part.seen_cursor < 0:
            self.out.clear()
        start = cursor + (bits & -bits).bit_length() - 1
        taken = bits >> (bits & -bits).bit_length() - 1
        stop = cursor + bits.bit_length() + skip
        popped = self.send(self.part(start=start, bits=pack_bits(taken), stop=stop))
        assert popped.accepted == (True,)
        self.cursor = stop
        self.give(start, popped.pop_ms, taken, 1)

    def again(self, count: int) -> None:
        if self.seen() < 0:
            return
        expired = [
            key for until, key in runs_by_time(self.rows, self.queue, 99) if until <= self.now_ms
        ]
        picks, offsets, deliveries = [], [], 0
        for key in expired[:2]:
            run = run_row(self.rows, self.queue, key)
            if picks and run.deliveries != deliveries:
                continue
            deliveries = run.deliveries
            chosen = offsets_of(key.start, unpack_bits(run.bits))[:count]
            offsets += chosen
            bits = sum(1 << offset - key.start for offset in chosen)
            picks.append(Pick(key, pack_bits(bits)))
        if not picks:
            return
        start = min(offsets)
        bits = sum(1 << offset - start for offset in offsets)
        popped = self.send(self.part(start=start, bits=pack_bits(bits), taken=picks))
        assert popped.accepted == (True,)
        for offset in offsets:
            assert self.out[offset][1] <= self.now_ms
        self.give(start, popped.pop_ms, bits, deliveries + 1)

    def ack(self, number: int, count: int) -> None:
        if not self.handles:
            return
        _, key = self.handles[number % len(self.handles)]
        offsets = [offset for offset, handle in self.handles if handle == key][:count]
        bits = sum(1 << offset - key.start for offset in offsets)
        ack = Ack("g", "t", 0, key, pack_bits(bits))
        before = self.seen()
        stored = self.stored()
        ((result,),) = self.machine.apply(AckMessages([ack]))
        assert before >= 0 or self.stored() == stored, "a reset was overwritten"
        if before < 0:
            return
        held = [offset for offset in offsets if self.out.get(offset, (None,))[0] == key]
        others = [offset for offset in offsets if offset in self.out and offset not in held]
        unknown = [offset for offset in offsets if offset >= self.cursor]
        if others or unknown:
            assert result == Acked.STALE
        else:
            assert result == (Acked.DONE if held else Acked.BEFORE)
        for offset in held:
            del self.out[offset]

    def change(self, number: int, invisible_ms: int) -> None:
        if not self.handles or self.seen() < 0:
            return
        offset, key = self.handles[number % len(self.handles)]
        change = Change("g", "t", 0, key, offset, invisible_ms)
        ((pop_ms,),) = self.machine.apply(ChangeVisibility(self.now_ms, [change]))
        if self.out.get(offset, (None,))[0] != key:
            assert pop_ms == 0
            return
        new = RunKey(offset, pop_ms)
        assert (offset, new) not in self.handles
        self.handles.append((offset, new))
        self.out[offset] = (new, self.now_ms + invisible_ms, self.out[offset][2])

    def check(self) -> None:
        row = queue_row(self.rows, self.queue)
        if self.seen() < 0:
            return
        held = {}
        runs = runs_by_time(self.rows, self.queue, 999)
        for until_ms, key in runs:
            run = run_row(self.rows, self.queue, key)
            assert run.until_ms == until_ms and run.bits
            for offset in offsets_of(key.start, unpack_bits(run.bits)):
                assert offset not in held, "a message is out twice"
                held[offset] = (key, until_ms, run.deliveries)
        assert held == self.out
        assert row.run_count == len(runs)
        assert row.cursor == self.cursor
        assert row.floor == self.stored() <= min(held, default=row.cursor)
        if len(runs) <= 2:
            assert row.floor == min(held, default=row.cursor)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=40))
def test_what_is_out_is_what_the_model_says(script):
    with tempfile.TemporaryDirectory() as directory:
        machine = Machine(Path(directory))
        machine.apply(encode_put_topic(TopicConfig(name="t")))
        model = Model(machine)
        for step in script:
            match step:
                case ("pop", bits, skip):
                    model.pop(bits, skip)
                case ("again", count):
                    model.again(count)
                case ("ack", number, count):
                    model.ack(number, count)
                case ("change", number, invisible_ms):
                    model.change(number, invisible_ms)
                case ("wait", ms):
                    model.now_ms += ms
                case ("reset", offset):
                    machine.apply(encode_commit_offsets([("g", "t", 0, offset)]))
                case ("stale pop",):
                    part = model.part(seen_cursor=model.seen() + 1, stop=500, bits=b"\1")
                    before = machine.store.rows.scan("pop", b"")
                    assert model.send(part).accepted == (False,)
                    assert machine.store.rows.scan("pop", b"") == before
                case ("crash",):
                    machine.reopen()
            model.check()
        machine.store.close()
