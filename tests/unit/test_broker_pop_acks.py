"""Acknowledgements that gather while others are on their way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from broker.feature_commands import FeatureType, decode_feature
from broker.pop_acks import PLACES_MAX, PopAcks
from broker.pop_state import SPAN_MAX, Ack, Acked, RunKey, pack_bits
from dledger.errors import FlowControlError


class Raft:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.proposed: list[tuple[bytes, Callable[[Any, Any], None]]] = []

    def propose(self, command: bytes, callback: Callable[[Any, Any], None]) -> None:
        self.proposed.append((command, callback))

    async def answer_all(self) -> None:
        await asyncio.sleep(0)
        while self.proposed:
            command, callback = self.proposed.pop(0)
            assert command[0] == FeatureType.ACK_MESSAGES
            callback((int(Acked.DONE),) * len(decode_feature(command).acks), None)
            await asyncio.sleep(0)


class Gate:
    def check(self) -> None:
        pass


def ack_of(start: int, count: int = 1) -> Ack:
    return Ack("g", "t", 0, RunKey(start, 1), pack_bits((1 << count) - 1))


def test_the_work_for_each_does_not_grow_with_how_many_there_are() -> None:
    """Tens of thousands under way once cost seconds in one turn: no heartbeat left meanwhile."""

    async def main() -> None:
        raft = Raft()
        acks = PopAcks(raft, Gate())  # type: ignore[arg-type]
        done: list[Acked | None] = []
        began = time.process_time()
        for start in range(60_000):
            acks.add(ack_of(start), lambda acked, _error: done.append(acked))
        acks.add(ack_of(7), lambda acked, _error: done.append(acked))
        assert acks.is_under_way(("g", "t", 0, 7))
        await raft.answer_all()
        assert done == [Acked.DONE] * 60_001
        assert not acks.is_under_way(("g", "t", 0, 7))
        assert time.process_time() - began < 8.0

    asyncio.run(main())


def test_how_many_messages_are_under_way_is_bounded() -> None:
    async def main() -> None:
        raft = Raft()
        acks = PopAcks(raft, Gate())  # type: ignore[arg-type]
        done: list[Acked | None] = []
        with pytest.raises(FlowControlError):
            for number in range(PLACES_MAX):
                acks.add(ack_of(number * SPAN_MAX, SPAN_MAX), lambda acked, _e: done.append(acked))
        assert len(done) == 0
        await raft.answer_all()
        assert len(done) == PLACES_MAX // SPAN_MAX
        acks.add(ack_of(0), lambda acked, _error: done.append(acked))
        await raft.answer_all()
        assert len(done) == PLACES_MAX // SPAN_MAX + 1

    asyncio.run(main())
