"""The window against a model: what may be committed is never past something unprocessed."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dledger.client.process_queue import SPAN_FACTOR, ProcessQueue
from dledger.model import MessageQueue

QUEUE = MessageQueue("t", "broker-a", 0)


@dataclass
class Stored:
    queue_offset: int
    size_bytes: int


class Window(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.window = ProcessQueue(QUEUE, 5, messages_max=20, bytes_max=1000)
        self.seen: list[int] = []
        self.open: dict[int, int] = {}
        self.end = 5

    @precondition(lambda self: not self.window.is_full)
    @rule(
        steps=st.lists(st.integers(1, 3), max_size=8),
        gap=st.integers(0, 3),
        size=st.integers(1, 90),
    )
    def pull(self, steps: list[int], gap: int, size: int) -> None:
        offsets, at = [], self.end - 1
        for step in steps:  # steps above 1: messages that the tag filter left out
            at += step
            offsets.append(at)
        next_offset = at + 1 + gap
        fresh = self.window.add([Stored(offset, size) for offset in offsets], next_offset)
        assert [message.queue_offset for message in fresh] == offsets
        self.open.update(dict.fromkeys(offsets, size))
        self.end = next_offset

    @rule(back=st.integers(1, 10))
    def pull_again_what_is_known(self, back: int) -> None:
        old = [Stored(offset, 1) for offset in range(max(0, self.end - back), self.end)]
        assert self.window.add(old, self.end - back) == []

    @precondition(lambda self: bool(self.open))
    @rule(pick=st.integers(0, 1000))
    def finish(self, pick: int) -> None:
        offset = sorted(self.open)[pick % len(self.open)]
        del self.open[offset]
        assert self.window.finish(offset)
        assert not self.window.finish(offset)

    @invariant()
    def commit_is_the_smallest_unprocessed(self) -> None:
        expected = min(self.open, default=self.end)
        assert self.window.commit_offset == expected, self.window
        assert self.window.next_offset == self.end
        assert self.window.unfinished_count == len(self.open)
        if len(self.open) >= 20 or sum(self.open.values()) >= 1000:
            assert self.window.is_full


TestWindow = Window.TestCase


@given(st.integers(2, 30))
def test_one_stuck_message_bounds_the_window(messages_max: int) -> None:
    window = ProcessQueue(QUEUE, 0, messages_max=messages_max, bytes_max=10**9)
    window.add([Stored(0, 1)], 1)
    count = 1
    while not window.is_full:
        window.add([Stored(count, 1)], count + 1)
        window.finish(count)
        count += 1
        assert count <= SPAN_FACTOR * messages_max
    assert window.commit_offset == 0
