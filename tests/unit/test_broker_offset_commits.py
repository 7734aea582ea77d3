"""Gathering consumer offsets into one entry."""

import asyncio

import pytest

from broker.commands import decode_control, offsets_of
from broker.gate import WriteGate
from broker.offset_commits import GATHER_MAX, OffsetCommits
from dledger.errors import (
    CommitTimeoutError,
    FlowControlError,
    NotLeaderError,
)


class ScriptedRaft:
    """Takes proposals and answers them when told."""

    is_serving = True
    leader_id = None
    term = 1
    pending_bytes = 0

    def __init__(self):
        self.proposals = []
        self.refusal = None

    def propose(self, command, callback):
        if self.refusal is not None:
            raise self.refusal
        self.proposals.append((offsets_of(decode_control(command)), callback))


def commits_for(raft, gather_ms=5):
    gate = WriteGate(raft, disk_free_min_bytes=0, pending_bytes_max=100)
    return OffsetCommits(raft, gate, gather_ms=gather_ms)


def test_what_gathers_becomes_one_entry_and_the_last_offset_counts():
    async def run():
        raft, answers = ScriptedRaft(), []
        commits = commits_for(raft)
        for offset in (1, 2, 3):
            commits.add("g", "t", 0, offset, answers.append)
        commits.add("g", "t", 1, 9)
        assert raft.proposals == []
        async with asyncio.timeout(5):
            while not raft.proposals:
                await asyncio.sleep(0.001)
        ((offsets, callback),) = raft.proposals
        assert [tuple(o) for o in offsets] == [("g", "t", 0, 3), ("g", "t", 1, 9)]
        assert answers == []
        callback(2, None)
        assert answers == [None, None, None]

    asyncio.run(run())


def test_a_full_gathering_does_not_wait():
    async def run():
        raft = ScriptedRaft()
        commits = commits_for(raft, gather_ms=60_000)
        for queue_id in range(GATHER_MAX):
            commits.add("g", "t", queue_id, 0)
        assert [len(offsets) for offsets, _ in raft.proposals] == [GATHER_MAX]
        commits.close()

    asyncio.run(run())


def test_errors_reach_everybody_who_waits():
    async def run():
        raft, answers = ScriptedRaft(), []
        commits = commits_for(raft)
        commits.add("g", "t", 0, 1, answers.append)
        commits.flush()
        error = CommitTimeoutError("no majority")
        raft.proposals[0][1](None, error)
        raft.refusal = NotLeaderError("b", 2)
        commits.add("g", "t", 0, 2, answers.append)
        commits.add("g", "t", 1, 2)
        commits.flush()
        assert answers == [error, raft.refusal]
        commits.flush()
        assert len(answers) == 2

    asyncio.run(run())


def test_a_closed_gate_refuses_at_once():
    async def run():
        raft = ScriptedRaft()
        commits = commits_for(raft)
        raft.is_serving = False
        with pytest.raises(NotLeaderError):
            commits.add("g", "t", 0, 1)
        raft.is_serving, raft.pending_bytes = True, 100
        with pytest.raises(FlowControlError):
            commits.add("g", "t", 0, 1)
        commits.flush()
        assert raft.proposals == []

    asyncio.run(run())
