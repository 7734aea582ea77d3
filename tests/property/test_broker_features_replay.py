"""Locks, transactions, resets: one log gives one state and the same results on any replay."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.commands import (
    encode_commit_offsets,
    encode_delete_group,
    encode_delete_topic,
    encode_put_topic,
)
from broker.feature_commands import encode_feature
from broker.locks import LockQueues, UnlockQueues
from broker.messages_command import EncodedMessage, MessagesBuilder, Part
from broker.offset_resets import ResetOffsets, ResetsFollowed
from broker.pop_state import (
    Ack,
    AckMessages,
    Change,
    ChangeVisibility,
    PopMessages,
    RunKey,
)
from broker.pop_state import Part as PopPart
from broker.request_modes import SetRequestMode
from broker.riders import encode_prefix, prefix_bytes
from broker.transactions import (
    ChecksSent,
    EndHalves,
    Outcome,
    due_halves,
    end_rider,
    ended_half,
    open_half,
    open_rider,
)
from dledger.model import TopicConfig
from tests.support.machine import LogEntry, Machine

HALF, REAL = 1, 2
clients = st.sampled_from(["a", "b"])
queues = st.lists(st.tuples(st.just("real"), st.integers(0, 2)), max_size=3)
times = st.integers(0, 200_000)
offsets = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=3)
steps = st.one_of(
    st.tuples(st.just("lock"), clients, times, queues),
    st.tuples(st.just("unlock"), clients, queues),
    st.tuples(st.just("open"), times),
    st.tuples(st.just("commit"), times),
    st.tuples(st.just("roll back"), times),
    st.tuples(st.just("check"), times, st.booleans()),
    st.tuples(st.just("reset"), offsets),
    st.tuples(st.just("follow"), offsets),
    st.tuples(st.just("offsets"), st.integers(0, 9)),
    st.tuples(st.just("pop"), times, st.integers(1, 7), st.integers(0, 3)),
    st.tuples(st.just("ack"), times, st.integers(1, 7)),
    st.tuples(st.just("change"), times, st.integers(0, 3)),
    st.tuples(st.just("mode"), st.sampled_from(["PULL", "POP"])),
    st.tuples(st.just("delete group")),
    st.tuples(st.just("delete")),
)


class Leader:
    """Writes the log a leader would: it ends only what is open, each half message once."""

    def __init__(self) -> None:
        self.position = 0
        self.next: dict[tuple[int, int], int] = {}
        self.open: list[int] = []
        self.is_deleted = False

    def take(self, topic_id: int, queue_id: int, count: int) -> int:
        first = self.next.get((topic_id, queue_id), 0)
        self.next[topic_id, queue_id] = first + count
        return first

    def messages(self, now_ms: int, topic_id: int, rider: Any) -> bytes:
        builder, part = MessagesBuilder(), Part(topic_id, [EncodedMessage(bytes(95))])
        builder.add(topic_id, 0, part)
        riders = [(rider, part, topic_id)]
        body = builder.encode(self.position + prefix_bytes(riders), now_ms, self.take)
        return encode_prefix(riders, now_ms) + body

    def command(self, step: tuple[Any, ...]) -> bytes:
        match step:
            case ("lock", client, now_ms, wanted):
                return encode_feature(LockQueues("g", client, now_ms, wanted))
            case ("unlock", client, wanted):
                return encode_feature(UnlockQueues("g", client, wanted))
            case ("open", now_ms):
                self.open.append(self.next.get((HALF, 0), 0))
                return self.messages(now_ms, HALF, open_rider("pg", 50))
            case ("commit", now_ms) if self.open:
                half = self.open[0] if self.is_deleted else self.open.pop(0)
                return self.messages(now_ms, REAL, end_rider(half, Outcome.COMMITTED))
            case ("roll back", now_ms) if self.open:
                ends = [(self.open.pop(), int(Outcome.ROLLED_BACK)), (999, 2)]
                return encode_feature(EndHalves(now_ms, ends))
            case ("check", now_ms, counts):
                return encode_feature(ChecksSent(now_ms, [(n, counts) for n in range(4)]))
            case ("pop", now_ms, bits, start):
                # A leader names what it has seen; some of these parts fit by chance.
                parts = [
                    PopPart(
                        "real", 0, cursor, offset, max(0, offset), start + 3, start, bytes([bits])
                    )
                    for cursor, offset in ((-1, -1), (-1, start), (start, start), (3, 0))
                ]
                return encode_feature(PopMessages("g", now_ms, 100, "", parts))
            case ("ack", now_ms, bits):
                acks = [Ack("g", "real", 0, RunKey(n, now_ms), bytes([bits])) for n in range(4)]
                return encode_feature(AckMessages(acks))
            case ("change", now_ms, offset):
                changes = [Change("g", "real", 0, RunKey(n, now_ms), offset, 50) for n in range(4)]
                return encode_feature(ChangeVisibility(now_ms, changes))
            case ("mode", mode):
                return encode_feature(SetRequestMode("g", "real", mode, 0))
            case ("delete group",):
                return encode_delete_group("g")
            case ("reset", where):
                return encode_feature(ResetOffsets("g", "real", where))
            case ("follow", where):
                return encode_feature(ResetsFollowed("g", REAL, where))
            case ("offsets", offset):
                return encode_commit_offsets([("g", "real", 0, offset)])
            case ("delete",):
                self.is_deleted = True
                return encode_delete_topic("real")
        return b"\x02"

    def log(self, script: list[tuple[Any, ...]]) -> list[LogEntry]:
        bodies = [encode_put_topic(TopicConfig(name=name)) for name in ("half", "real")]
        for step in script:
            bodies.append(self.command(step))
            self.position += len(bodies[-1]) + 40
        return [LogEntry(index, 1, body) for index, body in enumerate(bodies, 1)]


@settings(max_examples=80, deadline=None)
@given(
    script=st.lists(steps, max_size=30),
    cuts=st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 3)), min_size=1),
)
def test_any_split_and_any_kill_gives_the_same_state(
    script: list[tuple[Any, ...]], cuts: list[tuple[int, bool, int]]
) -> None:
    leader = Leader()
    log = leader.log(script)
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        one = Machine(Path(whole))
        results = one.machine.apply(log)
        rows = one.store.rows
        # What the leader thinks is what was applied.
        for half in range(leader.next.get((HALF, 0), 0)):
            assert (open_half(rows, half) is not None) == (half in leader.open)
            assert (ended_half(rows, half) is None) == (half in leader.open)
        assert sorted(n for n, _ in due_halves(rows, 1 << 50, 1000)) == leader.open
        two = Machine(Path(parts))
        replayed: list[object] = []
        at = 0
        while at < len(log):
            size, is_killed, repeated = cuts[at % len(cuts)]
            start = max(0, at - repeated)
            replayed += two.machine.apply(log[start : at + size])[at - start :]
            at = min(at + size, len(log))
            if is_killed:
                two.reopen()
        assert replayed == results
        assert two.store.digest() == one.store.digest()
        one.store.close()
        two.store.close()
