"""The appender against a scripted Raft: offsets without holes, every request answered once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from broker.appender import Appender, AppenderConfig, EncodedMessage
from broker.messages_command import SendIdentity, decode_messages
from broker.state_machine import MessagesApplied
from dledger.clock import ManualClock
from dledger.errors import (
    CommitTimeoutError,
    ConfigError,
    DiskFullError,
    DLedgerError,
    FlowControlError,
    InvariantError,
    LeadershipLostError,
    MessageRejectedError,
    NotLeaderError,
    OffsetOutOfRangeError,
    StaleSequenceError,
    TopicNotFoundError,
)
from dledger.model import QueueUnit, TopicConfig
from store.producer_lanes import LaneBatch, LaneLimits, Repeated

TOPIC = TopicConfig(name="t", topic_id=1)
OTHER = TopicConfig(name="u", topic_id=2)
HEADER_BYTES = 40


class FakeRaft:
    """Takes proposals into a log and decides them when told to."""

    def __init__(self) -> None:
        self.is_serving = False
        self.term = 0
        self.leader_id: str | None = None
        self.listener: Any = None
        self.offset_end = 0
        self.bodies: list[bytes] = []
        self.decisions: list[Callable[[object, DLedgerError | None], None]] = []
        self.refusal: DLedgerError | None = None

    def add_listener(self, listener: Any) -> None:
        self.listener = listener

    def serve(self, term: int) -> None:
        self.term, self.is_serving = term, True
        self.listener.on_serving(term)

    def stop_serving(self) -> None:
        self.is_serving = False
        self.listener.on_stopped_serving()

    def propose(
        self, command: Any, callback: Callable[[object, DLedgerError | None], None]
    ) -> None:
        if self.refusal is not None:
            raise self.refusal
        body = command.encode(self.offset_end + HEADER_BYTES)
        assert len(body) == command.size_bytes
        self.offset_end += HEADER_BYTES + len(body)
        self.bodies.append(bytes(body))
        self.decisions.append(callback)

    def decide(self, result: object = MessagesApplied(), error: DLedgerError | None = None) -> None:
        self.decisions.pop(0)(result, error)


class FakeStore:
    """Bounds of queues and sends as applied."""

    def __init__(self) -> None:
        self.applied: dict[tuple[int, int], int] = {}
        self.sends: dict[tuple[int, int, int, int, int], LaneBatch | Repeated] = {}
        self.first_held = 0

    def find_send(
        self, producer_id: int, topic_id: int, queue_id: int, sequence: int, count: int
    ) -> LaneBatch | Repeated:
        key = (producer_id, topic_id, queue_id, sequence, count)
        return self.sends.get(key, Repeated.NO)

    def read_units(self, topic_id: int, queue_id: int, start: int, count: int) -> list[QueueUnit]:
        if start < self.first_held:
            raise OffsetOutOfRangeError(start, self.first_held, 1000)
        return [QueueUnit(1000 + at, 100, 0) for at in range(start, start + count)]

    def queue_bounds(self, topic_id: int, queue_id: int) -> tuple[int, int]:
        return 0, self.applied.get((topic_id, queue_id), 0)


class Bench:
    """An appender with its surroundings, and the answers of its requests by name."""

    def __init__(self, **limits: Any) -> None:
        self.raft = FakeRaft()
        self.store = FakeStore()
        self.clock = ManualClock()
        self.appender = Appender(self.raft, self.store, AppenderConfig(**limits), self.clock)
        self.answers: dict[str, tuple[int, list[int], DLedgerError | None]] = {}

    def append(
        self,
        name: str,
        count: int = 1,
        *,
        queue_id: int = 0,
        topic: TopicConfig = TOPIC,
        size: int = 100,
        sequence: int | None = None,
    ) -> bool:
        def answered(first: int, offsets: list[int], error: DLedgerError | None) -> None:
            assert name not in self.answers, "answered twice"
            self.answers[name] = (first, offsets, error)

        messages = [EncodedMessage(bytes(size), 0, b"k%d" % number) for number in range(count)]
        identity = None if sequence is None else SendIdentity(7, sequence)
        return self.appender.append(topic, queue_id, messages, answered, identity)

    def runs(self, entry: int) -> list[tuple[int, int, int, int]]:
        return [
            (run.topic_id, run.queue_id, run.first_queue_offset, len(run.units) // 20)
            for run in decode_messages(self.raft.bodies[entry]).runs
        ]


async def turn() -> None:
    """Lets everything scheduled so far run."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def scripted(script: Callable[[Bench], Any], **limits: Any) -> Bench:
    async def main() -> Bench:
        bench = Bench(**limits)
        await script(bench)
        return bench

    return asyncio.run(main())


def test_requests_of_one_turn_become_one_entry() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.append("a", 2)
        bench.append("b", 1, queue_id=1)
        bench.append("c", 3)
        assert bench.raft.bodies == []
        await turn()
        assert bench.runs(0) == [(1, 0, 0, 5), (1, 1, 0, 1)]
        assert bench.answers == {}
        bench.raft.decide()
        assert [bench.answers[name][0] for name in "abc"] == [0, 0, 2]
        stored = bench.raft.bodies[0]
        for _, offsets, error in bench.answers.values():
            assert error is None
            for offset in offsets:
                at = offset - HEADER_BYTES
                assert int.from_bytes(stored[at + 28 : at + 36], "big") == offset
        bench.append("d")
        await turn()
        bench.raft.decide()
        assert bench.answers["d"][0] == 5
        assert bench.answers["d"][1][0] > len(stored)

    bench = scripted(script)
    assert len(bench.raft.bodies) == 2
    assert bench.appender.pending_bytes == 0


def test_offsets_go_on_from_the_store_and_count_what_is_under_way() -> None:
    async def script(bench: Bench) -> None:
        bench.store.applied[1, 0] = 10
        bench.raft.serve(1)
        for name in "abc":
            bench.append(name, 2)
            await turn()
        # The store lags behind what is under way: it must not be asked again.
        assert [bench.runs(entry)[0][2] for entry in range(3)] == [10, 12, 14]

    scripted(script)


def test_a_refused_proposal_leaves_no_hole() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.raft.refusal = DiskFullError("full")
        bench.append("a", 5)
        await turn()
        assert isinstance(bench.answers["a"][2], DiskFullError)
        assert bench.answers["a"][:2] == (-1, [])
        bench.raft.refusal = None
        bench.append("b")
        await turn()
        bench.raft.decide()
        assert bench.answers["b"][0] == 0

    bench = scripted(script)
    assert bench.appender.statistics().commands_in_flight == 0
    assert bench.appender.pending_bytes == 0


@pytest.mark.parametrize("error", [LeadershipLostError("lost"), CommitTimeoutError("late")])
def test_an_unknown_outcome_reaches_every_request_and_keeps_its_offsets(
    error: DLedgerError,
) -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.append("a", 2)
        bench.append("b", queue_id=3)
        await turn()
        bench.raft.decide(None, error)
        assert bench.answers["a"] == (-1, [], error)
        assert bench.answers["b"] == (-1, [], error)
        # The entry is still in the log and may be committed: its offsets are taken.
        bench.append("c")
        await turn()
        assert bench.runs(1) == [(1, 0, 2, 1)]

    scripted(script)


def test_a_new_term_starts_from_the_store() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.append("a", 2)
        await turn()
        bench.raft.stop_serving()
        bench.raft.decide(None, LeadershipLostError("lost"))
        with pytest.raises(NotLeaderError):
            bench.append("b")
        bench.store.applied[1, 0] = 1  # another leader's message took the place
        bench.raft.serve(3)
        bench.append("c")
        await turn()
        assert bench.runs(1) == [(1, 0, 1, 1)]

    scripted(script)


def test_a_new_term_starts_from_the_store_even_if_the_old_one_never_ended() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.append("a", 5)
        await turn()
        bench.append("late")
        bench.raft.serve(2)
        assert isinstance(bench.answers["late"][2], NotLeaderError)
        bench.append("b")
        await turn()
        assert bench.runs(1) == [(1, 0, 0, 1)]

    scripted(script)


def test_what_was_not_proposed_when_serving_ends_is_certainly_not_stored() -> None:
    async def script(bench: Bench) -> None:
        with pytest.raises(NotLeaderError):
            bench.append("early")
        bench.raft.serve(1)
        bench.append("a")
        bench.raft.stop_serving()
        error = bench.answers["a"][2]
        assert isinstance(error, NotLeaderError)
        assert error.definite
        await turn()
        assert bench.raft.bodies == []

    bench = scripted(script)
    assert bench.appender.pending_bytes == 0


def test_an_entry_must_not_get_its_place_while_not_serving() -> None:
    """Offsets from a store behind the log would stop every replica."""

    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        taken: list[Any] = []
        bench.raft.propose = lambda command, callback: taken.append(command)  # type: ignore[method-assign]
        bench.append("a")
        await turn()
        bench.raft.stop_serving()
        with pytest.raises(InvariantError, match="not serving"):
            taken[0].encode(0)

    scripted(script)


def test_large_turns_become_several_entries_in_order() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        for number in range(10):
            bench.append(f"{number}", 3, size=100)
        bench.append("big", size=5000)
        bench.append("after")
        await turn()
        assert all(len(body) <= 1500 for body in bench.raft.bodies[:-2])
        assert len(bench.raft.bodies[-2]) > 5000
        firsts = [bench.runs(entry)[0] for entry in range(len(bench.raft.bodies))]
        expected = 0
        for _, _, first, count in firsts:
            assert first == expected
            expected += count
        assert expected == 32

    bench = scripted(script, command_bytes_max=1500)
    assert len(bench.raft.bodies) > 5


def test_a_full_window_gathers_larger_entries() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        for name in "abcdef":
            bench.append(name)
            await turn()
        assert len(bench.raft.bodies) == 2
        assert bench.appender.statistics().commands_waiting == 1
        bench.raft.decide()
        await turn()
        assert bench.runs(2) == [(1, 0, 2, 4)]
        while bench.raft.decisions:
            bench.raft.decide()
            await turn()
        assert [bench.answers[name][0] for name in "abcdef"] == list(range(6))

    scripted(script, commands_in_flight_max=2)


def test_too_much_under_way_is_refused_and_accepted_again() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.append("a", size=3000)
        with pytest.raises(FlowControlError, match="pending_bytes_max"):
            bench.append("b", size=3000)
        await turn()
        with pytest.raises(FlowControlError):
            bench.append("b", size=3000)
        bench.raft.decide()
        bench.append("b", size=3000)
        await turn()
        bench.raft.decide()
        with pytest.raises(MessageRejectedError, match="request_bytes_max"):
            bench.append("c", size=4001)

    bench = scripted(script, pending_bytes_max=5000, request_bytes_max=4000)
    assert set(bench.answers) == {"a", "b"}


def test_a_topic_deleted_meanwhile() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.append("a")
        bench.append("b", topic=OTHER)
        await turn()
        bench.raft.decide(MessagesApplied((1,)))
        assert isinstance(bench.answers["a"][2], TopicNotFoundError)
        assert bench.answers["b"][2] is None

    scripted(script)


def test_store_timestamps_never_go_back_within_a_term() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        start = bench.clock.wall_ms()
        for seconds in (5, -3, 1, 4):
            bench.clock.advance(seconds)
            bench.append(f"{seconds}")
            await turn()
        stamps = [decode_messages(body).store_timestamp_ms - start for body in bench.raft.bodies]
        assert stamps == [5000, 5000, 5000, 7000]

    scripted(script)


def test_one_failing_callback_does_not_cost_others_their_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        bench.appender.append(TOPIC, 0, [EncodedMessage(bytes(100))], broken)
        bench.append("a")
        await turn()
        bench.raft.decide()
        assert bench.answers["a"][0] == 1

    scripted(script)
    assert "append callback failed" in caplog.text


@pytest.mark.parametrize(
    "limits",
    [{"command_bytes_max": 0}, {"request_bytes_max": 2000, "pending_bytes_max": 1000}],
)
def test_limits_are_checked(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        AppenderConfig(**limits)


# --- repeated sends -----------------------------------------------------------------------------


def test_a_numbered_request_is_noted_in_its_entry() -> None:
    async def script(bench: Bench) -> None:
        bench.store.applied[1, 0] = 5
        bench.raft.serve(1)
        bench.append("plain")
        assert not bench.append("a", 2, sequence=10)
        await turn()
        bench.append("only plain")
        await turn()

    limits = LaneLimits(lanes_max=3, idle_s=4, batches_max=5)
    bench = scripted(script, lanes=limits)
    command = decode_messages(bench.raft.bodies[0])
    (send,) = command.sends
    assert send[:6] == (7, 10, 1, 0, 6, 2)
    stored_at = send.physical_offset - HEADER_BYTES
    assert bench.raft.bodies[0][stored_at + 20 : stored_at + 28] == (6).to_bytes(8, "big")
    assert command.limits == limits
    assert bench.raft.bodies[0][1] == 2
    assert bench.raft.bodies[1][1] == 1


def test_a_repetition_waits_for_the_first_attempt() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        assert not bench.append("first", 2, sequence=0)
        assert bench.append("gathering", 2, sequence=0)
        await turn()
        assert bench.append("proposed", 2, sequence=0)
        assert not bench.append("next", 1, sequence=2)
        assert not bench.append("other queue", 2, queue_id=1, sequence=0)
        await turn()
        assert bench.answers == {}
        bench.raft.decide()
        assert bench.answers["first"][0] == 0
        assert bench.answers["first"] == bench.answers["gathering"] == bench.answers["proposed"]
        bench.raft.decide()
        assert bench.answers["next"][0] == 2

    bench = scripted(script)
    assert [run for entry in range(2) for run in bench.runs(entry)] == [
        *[(1, 0, 0, 2), (1, 0, 2, 1), (1, 1, 0, 2)],
    ]


def test_a_stored_request_is_answered_with_its_place() -> None:
    async def script(bench: Bench) -> None:
        bench.store.sends[7, 1, 0, 4, 2] = LaneBatch(4, 2, 30, 1030)
        bench.raft.serve(1)
        assert bench.append("again", 2, sequence=4)
        assert bench.answers == {}
        await turn()
        assert bench.answers["again"] == (30, [1030, 1031], None)
        bench.store.first_held = 31
        assert bench.append("trimmed", 2, sequence=4)
        await turn()
        assert bench.answers["trimmed"] == (30, [1030], None)
        assert bench.raft.bodies == []
        assert bench.appender.pending_bytes == 0

    scripted(script)


@pytest.mark.parametrize("error", [NotLeaderError(), DiskFullError("full")])
def test_a_refused_request_may_come_again(error: DLedgerError) -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.raft.refusal = error
        bench.append("first", sequence=0)
        bench.append("waiting", sequence=0)
        await turn()
        assert bench.answers["first"][2] is bench.answers["waiting"][2] is error
        bench.raft.refusal = None
        assert not bench.append("again", sequence=0)
        await turn()
        bench.raft.decide()
        assert bench.answers["again"][0] == 0

    scripted(script)


def test_what_another_term_left_under_way_is_not_waited_for() -> None:
    """The new term's store has it, or it is gone."""

    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.append("first", sequence=0)
        bench.append("later", sequence=1)
        await turn()
        bench.raft.decide(None, LeadershipLostError("lost"))
        bench.raft.stop_serving()
        bench.raft.serve(2)
        assert not bench.append("again", sequence=0)
        await turn()
        bench.raft.decide()
        assert bench.answers["again"][2] is None

    scripted(script)


def test_an_overdue_request_is_not_appended_again_in_its_term() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.append("first", sequence=0)
        bench.append("other", queue_id=1, sequence=0)
        await turn()
        bench.raft.decide(None, CommitTimeoutError("slow"))
        assert bench.append("again", sequence=0)
        await turn()
        assert "again" not in bench.answers, "it would be asked again at once"
        await asyncio.sleep(0.6)
        answer = bench.answers["again"][2]
        assert isinstance(answer, CommitTimeoutError)
        assert bench.append("applied meanwhile", sequence=0)
        bench.store.sends[7, 1, 0, 0, 1] = LaneBatch(0, 1, 0, 1000)
        await asyncio.sleep(0.6)
        assert bench.answers["applied meanwhile"] == (0, [1000], None)
        # A later proposal applied means that the overdue ones are: only the store counts now.
        bench.append("later")
        await turn()
        bench.raft.decide()
        assert not bench.append("not applied", queue_id=1, sequence=0)

    scripted(script)


def test_stragglers_are_refused() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.store.sends[7, 1, 1, 3, 1] = Repeated.TOO_OLD
        with pytest.raises(StaleSequenceError, match="0000000000000007"):
            bench.append("a", queue_id=1, sequence=3)
        bench.append("b", 2, sequence=10)
        for sequence, count in ((9, 1), (10, 1), (11, 1), (8, 5)):
            with pytest.raises(StaleSequenceError):
                bench.append("c", count, sequence=sequence)
        assert not bench.append("d", sequence=12)
        assert bench.raft.bodies == []

    scripted(script)


def test_a_request_to_a_deleted_topic_may_come_again() -> None:
    async def script(bench: Bench) -> None:
        bench.raft.serve(1)
        bench.append("first", sequence=0)
        await turn()
        bench.raft.decide(MessagesApplied((1,)))
        assert isinstance(bench.answers["first"][2], TopicNotFoundError)
        assert not bench.append("again", sequence=0)

    scripted(script)
