"""Consumers that pop, acknowledge, prolong, fail and are late: what each may count on."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.pop_state import Ack, Acked, AckMessages, Change, ChangeVisibility
from tests.support.pop_queue import PopQueue

COUNT = 24
INVISIBLE_MS = 20
TAGS = (None, frozenset({0, 1}))

steps = st.one_of(
    st.tuples(st.just("pop"), st.integers(1, 8), st.booleans()),
    st.tuples(st.just("ack"), st.integers(0, 99)),
    st.tuples(st.just("change"), st.integers(0, 99), st.integers(0, 60)),
    st.tuples(st.just("wait"), st.integers(1, 30)),
    st.tuples(st.just("arrive"), st.integers(1, 4)),
    st.tuples(st.just("crash")),
)


class Consumers:
    """Everybody's view: who holds which message until when, and what is done."""

    def __init__(self, queue: PopQueue, codes, order: bool) -> None:
        self.queue = queue
        self.codes = codes
        self.order = order
        self.now_ms = 1000
        self.held = {}  # offset -> handle, until
        self.handles = []
        self.done = set()
        self.deliveries = {}
        self.attempts = 0

    def wants(self, offset: int) -> bool:
        return self.codes is None or offset % 3 in self.codes

    def pop(self, count: int, answered: bool) -> list[int]:
        self.attempts += 1
        attempt = str(self.attempts) if self.order else ""
        choice = self.queue.choose(
            self.now_ms,
            count_max=count,
            codes=self.codes,
            order=self.order,
            attempt_id=attempt,
        )
        if choice.part is None:
            return []
        key = self.queue.give_out(
            choice, self.now_ms, invisible_ms=INVISIBLE_MS, attempt_id=attempt
        )
        offsets = [message.offset for message in choice.messages]
        if self.order and offsets:
            low = min(n for n in range(COUNT * 9) if self.wants(n) and n not in self.done)
            assert offsets[0] == low, "not in order"
        for offset in offsets:
            assert self.wants(offset) and offset not in self.done
            if offset in self.held:
                assert self.held[offset][1] <= self.now_ms, "given out while somebody holds it"
            assert choice.earlier == self.deliveries.get(offset, 0)
            self.deliveries[offset] = choice.earlier + 1
            self.held[offset] = (key, self.now_ms + INVISIBLE_MS)
            if answered:
                self.handles.append((offset, key))
        return offsets

    def ack(self, offset, key) -> None:
        place = offset - key.start
        bits = (1 << place).to_bytes(place // 8 + 1, "little")
        ((acked,),) = self.queue.machine.apply(AckMessages([Ack("g", "t", 0, key, bits)]))
        if offset in self.held and self.held[offset][0] == key:
            assert acked == Acked.DONE
            del self.held[offset]
            self.done.add(offset)
        else:
            assert acked == (Acked.BEFORE if offset in self.done else Acked.STALE)

    def change(self, offset, key, invisible_ms: int) -> None:
        change = Change("g", "t", 0, key, offset, invisible_ms)
        ((pop_ms,),) = self.queue.machine.apply(ChangeVisibility(self.now_ms, [change]))
        is_holder = offset in self.held and self.held[offset][0] == key
        assert bool(pop_ms) == is_holder
        if is_holder:
            new = type(key)(offset, pop_ms)
            self.held[offset] = (new, self.now_ms + invisible_ms)
            self.handles.append((offset, new))


@settings(max_examples=120, deadline=None)
@given(st.lists(steps, max_size=40), st.sampled_from(TAGS), st.booleans())
def test_one_holder_at_a_time_and_nothing_is_lost(script, codes, order):
    with tempfile.TemporaryDirectory() as directory:
        queue = PopQueue(Path(directory), COUNT)
        consumers = Consumers(queue, codes, order)
        for step in script:
            match step:
                case ("pop", count, answered):
                    consumers.pop(count, answered)
                case ("ack", number) if consumers.handles:
                    consumers.ack(*consumers.handles[number % len(consumers.handles)])
                case ("change", number, ms) if consumers.handles:
                    consumers.change(*consumers.handles[number % len(consumers.handles)], ms)
                case ("wait", ms):
                    consumers.now_ms += ms
                case ("arrive", count):
                    queue.bounds = (0, queue.bounds[1] + count)
                case ("crash",):
                    queue.machine.reopen()
        # Everybody comes to an end.
        wanted = {n for n in range(queue.bounds[1]) if consumers.wants(n)}
        for _ in range(4 * queue.bounds[1]):
            consumers.now_ms += 100
            for offset in consumers.pop(8, answered=True):
                consumers.ack(offset, consumers.held[offset][0])
        assert consumers.done == wanted
        consumers.pop(8, answered=True)
        assert queue.consumer_offset("g", "t", 0) == queue.bounds[1]
        assert not queue.rows.scan("pop", b"r") and not queue.rows.scan("pop", b"v")
        queue.machine.store.close()
