"""The table of lanes against a list of all sends, however they are cut into transactions."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from store.producer_lanes import (
    DROPPED_PER_SEND_MAX,
    LANE_KEY,
    LaneBatch,
    LaneChanges,
    LaneLimits,
    Lanes,
    Repeated,
    SendRecord,
    find_batch,
    load_lanes,
)

Lane = tuple[int, int, int]

sends = st.tuples(
    st.just("send"),
    st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(0, 1)),  # producer, topic, queue
    st.integers(1, 3),  # messages
    st.integers(0, 2),  # numbers left out before
    st.integers(-1500, 3000),  # the leader's clock goes on, or back
)
deletions = st.tuples(st.just("delete topic"), st.integers(1, 2))
limits = st.builds(
    LaneLimits,
    lanes_max=st.integers(1, 8),
    idle_s=st.integers(1, 9),
    batches_max=st.integers(1, 4),
)


class Model:
    """Lanes in the order of their last use, each with all its batches that may be remembered."""

    def __init__(self) -> None:
        self.lanes: list[tuple[Lane, int, list[LaneBatch]]] = []

    def send(self, lane: Lane, batch: LaneBatch, now_ms: int, limit: LaneLimits) -> None:
        known = next((each for each in self.lanes if each[0] == lane), None)
        batches = [] if known is None else known[2]
        self.lanes = [each for each in self.lanes if each[0] != lane]
        self.lanes.append((lane, now_ms, [*batches, batch][-limit.batches_max :]))
        for _ in range(DROPPED_PER_SEND_MAX):
            first, used_ms, _batches = self.lanes[0]
            too_many = len(self.lanes) > limit.lanes_max
            if first != lane and (too_many or used_ms + limit.idle_s * 1000 < now_ms):
                del self.lanes[0]

    def delete(self, topic: int) -> None:
        self.lanes = [each for each in self.lanes if each[0][1] != topic]

    def find(self, lane: Lane, sequence: int, count: int) -> LaneBatch | Repeated:
        for each, _, batches in self.lanes:
            if each == lane:
                for batch in batches:
                    if (batch.sequence, batch.message_count) == (sequence, count):
                        return batch
                newest = batches[-1].sequence + batches[-1].message_count
                return Repeated.NO if sequence >= newest else Repeated.TOO_OLD
        return Repeated.NO


@settings(max_examples=150, deadline=None)
@given(
    script=st.lists(st.one_of(sends, sends, sends, deletions), max_size=40),
    limit=limits,
    cuts=st.lists(st.tuples(st.integers(1, 7), st.booleans(), st.booleans()), min_size=1),
)
def test_lanes_are_what_the_log_says(
    script: list[tuple[object, ...]], limit: LaneLimits, cuts: list[tuple[int, bool, bool]]
) -> None:
    lanes: Lanes = OrderedDict()
    model = Model()
    tried: list[tuple[Lane, int, int]] = []
    sequences: dict[Lane, int] = {}
    now_ms = 50_000
    at = 0
    while at < len(script):
        size, reopened, aborted = cuts[at % len(cuts)]
        steps = list(enumerate(script[at : at + size], at))
        if aborted:  # a transaction that fails leaves no trace
            changes = LaneChanges(lanes)
            aside = SendRecord(9, 0, 1, 0, 0, 1, 0)
            changes.record([aside], limits=limit, index=0, timestamp_ms=0)
            changes.drop_topic(1)
        changes = LaneChanges(lanes)
        for index, step in steps:
            match step:
                case ("send", (int(), int(), int()) as lane, int(count), int(left_out), int(later)):
                    now_ms += later
                    sequence = sequences.get(lane, 0) + left_out
                    sequences[lane] = sequence + count
                    tried.append((lane, sequence, count))
                    batch = LaneBatch(sequence, count, index, index * 7)
                    send = SendRecord(lane[0], sequence, lane[1], lane[2], index, count, index * 7)
                    changes.record([send], limits=limit, index=index, timestamp_ms=now_ms)
                    model.send(lane, batch, now_ms, limit)
                case ("delete topic", int(topic)):
                    changes.drop_topic(topic)
                    model.delete(topic)
        changes.apply()
        at += size
        if reopened:
            lanes = load_lanes(iter(sorted(lanes.items())))
        assert [LANE_KEY.unpack(key) for key in lanes] == [each[0] for each in model.lanes]
        for lane, sequence, count in tried:
            for other in (sequence, sequence + 1):
                got = find_batch(lanes.get(LANE_KEY.pack(*lane)), other, count)
                assert got == model.find(lane, other, count)
