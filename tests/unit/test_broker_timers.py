"""The leader's delivery of timers against a scripted Raft and a real state machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from broker.appender import Appender, AppenderConfig
from broker.commands import encode_put_topic
from broker.delay_rules import DelayRules
from broker.messages_command import EncodedMessage
from broker.names import TIMER_TOPIC
from broker.state_machine import AppliedEffects, BrokerStateMachine
from broker.timers import AlreadyLeavingError, TimerDelivery
from dledger.clock import ManualClock
from dledger.errors import CommitTimeoutError, DLedgerError, FlowControlError, ProposalRejectedError
from dledger.message import encode_stored
from dledger.model import TopicConfig
from store.state_store import StateStore

Decided = Callable[[object, DLedgerError | None], None]


class LogEntry(NamedTuple):
    index: int
    term: int
    body: bytes | memoryview
    record: bytes


class Bench:
    """One replica whose proposals are decided when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.store = StateStore.open(directory, map_bytes=1 << 20, boot_id=lambda: "b")
        self.machine = BrokerStateMachine(self.store, self.applied)
        self.clock = ManualClock()
        self.is_serving, self.term, self.leader_id = False, 1, None
        self.listeners: list[Any] = []
        self.log: list[tuple[bytes, Decided]] = []
        self.offset = 0
        self.refusal: DLedgerError | None = None
        self.fatal: list[BaseException] = []
        self.timers: TimerDelivery | None = None
        self.appender = Appender(self, self.store, AppenderConfig(), self.clock)
        self.timers = TimerDelivery(
            self.store, self, self.appender, self.clock, on_fatal=self.fatal.append
        )
        self.apply(encode_put_topic(TopicConfig(name=TIMER_TOPIC)))
        self.apply(encode_put_topic(TopicConfig(name="t")))
        self.serve()

    def add_listener(self, listener: Any) -> None:
        self.listeners.append(listener)

    def serve(self) -> None:
        self.is_serving = True
        for listener in (*self.listeners, self.timers):
            listener.on_serving(self.term)

    def depose(self) -> None:
        self.is_serving, self.term = False, self.term + 1
        for listener in (*self.listeners, self.timers):
            listener.on_stopped_serving()

    def applied(self, effects: AppliedEffects) -> None:
        if effects.timers_due_ms is not None and self.timers is not None:
            self.timers.parked(effects.timers_due_ms)

    def apply(self, body: bytes) -> object:
        entry = LogEntry(self.store.applied_index + 1, self.term, body, b"")
        return self.machine.apply([entry])[0]

    def propose(self, command: Any, callback: Decided) -> None:
        if self.refusal is not None:
            raise self.refusal
        body = bytes(command.encode(self.offset) if hasattr(command, "encode") else command)
        self.offset += len(body) + 40
        self.log.append((body, callback))

    def commit(self) -> None:
        body, callback = self.log.pop(0)
        callback(self.apply(body), None)

    async def park(self, *delays_ms: int) -> None:
        rules = DelayRules([1000], delay_max_ms=10**9)
        topic = self.store.topic(TIMER_TOPIC)
        assert topic is not None
        for number, delay_ms in enumerate(delays_ms):
            parking = rules.plan_exactly(
                {"UNIQ_KEY": f"U{number}"},
                topic="t",
                queue_id=0,
                delay_ms=delay_ms,
                now_ms=self.clock.wall_ms(),
            )
            record = encode_stored(
                topic=b"any",
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
                body=b"%d" % number,
                properties=parking.properties.encode(),
            )
            message = EncodedMessage(record, parking.deliver_ms)
            self.appender.append(topic, 0, [message], lambda *_: None)
        await self.turns()
        while self.log:
            self.commit()

    async def turns(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def proposals(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.log) < count:
                await asyncio.sleep(0.005)

    @property
    def delivered(self) -> int:
        topic = self.store.topic("t")
        assert topic is not None
        return self.store.queue_bounds(topic.topic_id, 0)[1]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    def run_(script: Callable[[Bench], Any]) -> None:
        async def main() -> None:
            bench = Bench(tmp_path)
            try:
                await script(bench)
                assert bench.fatal == []
            finally:
                assert bench.timers is not None
                bench.timers.close()
                bench.store.close()

        asyncio.run(main())

    return run_


def test_nothing_is_proposed_before_its_time(run: Any) -> None:
    async def script(bench: Bench) -> None:
        await bench.park(5, 10, 5000)
        await asyncio.sleep(0.03)  # longer than the delays: what counts is the wall clock
        assert bench.log == []
        bench.clock.advance(0.0101)
        await bench.proposals(1)
        bench.commit()
        await bench.turns()
        assert (bench.delivered, bench.store.timers.count(), len(bench.log)) == (2, 1, 0)

    run(script)


def test_what_is_on_its_way_is_neither_proposed_again_nor_recalled(run: Any) -> None:
    async def script(bench: Bench) -> None:
        await bench.park(5)
        (timer,) = bench.store.timers.find(b"U0")
        bench.clock.advance(1)
        await bench.proposals(1)
        await asyncio.sleep(0.05)
        assert len(bench.log) == 1
        with pytest.raises(AlreadyLeavingError):
            bench.timers.cancel([timer], lambda *_: None)  # type: ignore[union-attr]
        bench.commit()
        assert bench.delivered == 1

    run(script)


def test_an_unknown_outcome_is_waited_for_and_not_repeated(run: Any) -> None:
    async def script(bench: Bench) -> None:
        await bench.park(5, 2000)
        bench.clock.advance(1)
        await bench.proposals(1)
        ((body, callback),) = bench.log
        bench.log.clear()
        callback(None, CommitTimeoutError("late"))  # but it is in the log
        await asyncio.sleep(0.15)
        assert bench.log == []
        bench.apply(body)
        bench.clock.advance(2)
        await bench.proposals(1)
        bench.commit()
        assert (bench.delivered, bench.store.timers.count()) == (2, 0)

    run(script)


@pytest.mark.parametrize("error", [ProposalRejectedError("another"), FlowControlError("full")])
def test_a_refusal_is_tried_again(run: Any, error: DLedgerError) -> None:
    async def script(bench: Bench) -> None:
        await bench.park(5)
        bench.refusal = error
        bench.clock.advance(1)
        await asyncio.sleep(0.05)
        assert bench.log == []
        bench.refusal = None
        await bench.proposals(1)
        bench.commit()
        assert bench.delivered == 1

    run(script)


def test_the_next_term_delivers_what_the_last_one_left(run: Any) -> None:
    async def script(bench: Bench) -> None:
        await bench.park(5)
        bench.clock.advance(1)
        await bench.proposals(1)
        ((_, callback),) = bench.log
        bench.log.clear()
        bench.depose()
        await asyncio.sleep(0.03)
        assert bench.log == []
        bench.serve()
        callback(None, CommitTimeoutError("of the last term"))
        await bench.proposals(1)
        bench.commit()
        assert (bench.delivered, bench.store.timers.count()) == (1, 0)

    run(script)


def test_a_cancelled_timer_is_gone(run: Any) -> None:
    async def script(bench: Bench) -> None:
        await bench.park(5)
        (timer,) = bench.store.timers.find(b"U0")
        answers: list[tuple[int, DLedgerError | None]] = []
        assert bench.timers is not None
        bench.timers.cancel([timer], lambda *answer: answers.append(answer))
        bench.clock.advance(1)
        await asyncio.sleep(0.05)
        assert len(bench.log) == 1  # only the cancellation
        bench.commit()
        assert answers == [(1, None)]
        await asyncio.sleep(0.02)
        assert (bench.log, bench.delivered, bench.store.timers.count()) == ([], 0, 0)

    run(script)


def test_many_timers_take_several_commands(run: Any) -> None:
    async def script(bench: Bench) -> None:
        await bench.park(*[5] * 600)
        bench.clock.advance(1)
        await bench.proposals(3)
        while bench.log:
            bench.commit()
            await bench.turns()
        assert (bench.delivered, bench.store.timers.count()) == (600, 0)

    run(script)
