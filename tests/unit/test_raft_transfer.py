"""Handing the leadership over, on virtual time."""

from __future__ import annotations

import asyncio

import pytest

from dledger.errors import (
    CommitTimeoutError,
    InvalidParameterError,
    LeadershipLostError,
    NotLeaderError,
    TransferFailedError,
)
from tests.support.one_replica import OurReplica
from tests.support.raft_group import RaftGroup
from tests.support.virtual_loop import run_virtual


@pytest.mark.parametrize("size", [3, 5])
def test_the_named_follower_leads_at_once_and_nothing_is_lost(size: int) -> None:
    async def main() -> None:
        group = RaftGroup(size)
        await group.start()
        await group.put(b"before")
        old = await group.serving_leader()
        target = next(replica for replica in group.ids if replica != old.replica_id)
        outcomes: list[object] = []
        for number in range(30):
            old.propose(b"\x10%d" % number, lambda _r, error: outcomes.append(error))
        started = group.loop.time()
        assert await old.transfer_leadership(target) == target
        # What was under way is committed before the office changes: nobody is left in doubt.
        assert outcomes == [None] * 30
        assert not old.is_serving
        new = await group.serving_leader()
        assert new.replica_id == target
        # An election timeout would take 300 ms at least.
        assert group.loop.time() - started < 0.1
        await group.put(b"after")
        await group.converged()
        assert len(group.machines["r0"].applied) == 32
        await group.stop()

    run_virtual(main())


def test_without_a_name_a_follower_that_is_ready_takes_over() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        old = await group.serving_leader()
        behind = next(replica for replica in group.ids if replica != old.replica_id)
        group.network.isolate(behind)
        await group.put(b"x")
        new = await old.transfer_leadership()
        assert new not in (None, old.replica_id, behind)
        await group.stop()

    run_virtual(main())


def test_a_leader_whose_target_is_away_goes_on() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        target = next(replica for replica in group.ids if replica != leader.replica_id)
        group.network.isolate(target)
        await group.put(b"that the target does not have")
        with pytest.raises(TransferFailedError) as caught:
            await leader.transfer_leadership(target, timeout_s=0.5)
        assert caught.value.definite
        assert leader.is_serving
        await group.put(b"and another")
        await group.stop()

    run_virtual(main())


def test_proposals_are_refused_definitely_while_handing_over() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        for other in group.ids:
            group.network.cut(leader.replica_id, other)
        leader.propose(b"\x10stuck", lambda _r, _e: None)
        transfer = asyncio.create_task(leader.transfer_leadership(timeout_s=0.3))
        await asyncio.sleep(0.01)
        assert not leader.is_serving
        with pytest.raises(NotLeaderError):
            leader.propose(b"\x10x", lambda _r, _e: None)
        with pytest.raises(TransferFailedError, match="already"):
            await leader.transfer_leadership()
        with pytest.raises(TransferFailedError):
            await transfer
        await group.stop()

    run_virtual(main())


def test_who_may_be_asked() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        follower = next(node for node in group.nodes.values() if node is not leader)
        with pytest.raises(NotLeaderError):
            await follower.transfer_leadership()
        with pytest.raises(InvalidParameterError):
            await leader.transfer_leadership("nobody")
        assert await leader.transfer_leadership(leader.replica_id) == leader.replica_id
        await group.stop()

    run_virtual(main())


def test_a_lost_request_is_indefinite_and_changes_nothing() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        target = next(replica for replica in group.ids if replica != leader.replica_id)
        await group.converged()
        send = group.transports[leader.replica_id].send
        group.transports[leader.replica_id].send = (  # type: ignore[method-assign]
            lambda peer, message: message["type"] == "timeout_now" or send(peer, message)
        )
        with pytest.raises(CommitTimeoutError) as caught:
            await leader.transfer_leadership(target, timeout_s=0.2)
        assert not caught.value.definite
        assert leader.is_serving
        await group.stop()

    run_virtual(main())


def test_a_stopping_replica_ends_its_transfer() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        outcomes: list[object] = []
        group.network.isolate(leader.replica_id)
        leader.propose(b"\x10x", lambda _r, error: outcomes.append(error))
        transfer = asyncio.create_task(leader.transfer_leadership())
        await asyncio.sleep(0)
        await leader.stop()
        with pytest.raises(TransferFailedError):
            await transfer
        assert isinstance(outcomes[0], LeadershipLostError)
        await group.stop()

    run_virtual(main())


def test_only_the_leader_of_the_term_may_order_an_election() -> None:
    replica = OurReplica()
    replica.append("b", 3, (0, 0))
    for sender, term in (("c", 3), ("b", 2), ("b", 4)):
        replica.sent.clear()
        replica.receive(sender, {"type": "timeout_now", "term": term})
        replica.tick()
        assert not replica.sent, (sender, term)
    replica.receive("b", {"type": "timeout_now", "term": 3})
    asked = [message["term"] for _, message in replica.sent if message["type"] == "request_vote"]
    assert asked == [4, 4]
