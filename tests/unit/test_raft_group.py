"""A group of real nodes on virtual time: elections, replication, fail-over, durability."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dledger.errors import (
    CommitTimeoutError,
    DiskFailureError,
    DiskFullError,
    InvariantError,
    LeadershipLostError,
    NotLeaderError,
)
from dledger.model import Role
from dledger.raft.config import RaftConfig
from dledger.raft.node import TICK_MAX_S
from tests.support.raft_group import RaftGroup
from tests.support.virtual_loop import run_virtual


@pytest.mark.parametrize("size", [1, 3, 5])
def test_elects_one_leader_and_replicates(size: int) -> None:
    async def main() -> None:
        group = RaftGroup(size)
        await group.start()
        for number in range(20):
            await group.put(b"%d" % number)
        await group.converged()
        bodies = [body[1:] for _, _, body in group.machines["r0"].applied]
        assert bodies == [b"%d" % number for number in range(20)]
        assert sum(node.role is Role.LEADER for node in group.nodes.values()) == 1
        await group.stop()

    run_virtual(main())


def test_a_killed_leader_is_replaced_at_once() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await group.put(b"before")
        old = await group.serving_leader()
        started = group.loop.time()
        group.crash(old.replica_id)
        new = await group.serving_leader()
        assert new.term > old.term
        # The connection was reset, so nobody waits for the election timeout.
        assert group.loop.time() - started < 0.3
        await group.put(b"after")
        await group.start([old.replica_id])
        await group.converged()
        await group.stop()

    run_virtual(main())


def test_a_silently_isolated_leader_steps_down_and_its_tail_is_replaced() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await group.put(b"agreed")
        old = await group.serving_leader()
        group.network.isolate(old.replica_id)
        outcomes: list[object] = []
        for number in range(50):
            old.propose(b"\x10lost%d" % number, lambda _r, error: outcomes.append(error))
        await group.wait(lambda: not old.is_serving, 2.0)
        assert len(outcomes) == 50
        assert all(isinstance(error, LeadershipLostError) for error in outcomes)
        assert not any(error.definite for error in outcomes)  # type: ignore[attr-defined]
        with pytest.raises(NotLeaderError):
            old.propose(b"\x10no", lambda _r, _e: None)
        await group.put(b"by the new leader")
        group.network.heal()
        await group.converged(5.0)
        bodies = [body[1:] for _, _, body in group.machines[old.replica_id].applied]
        assert bodies == [b"agreed", b"by the new leader"]
        await group.stop()

    run_virtual(main())


def test_a_returning_replica_does_not_depose_a_healthy_leader() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        term = leader.term
        other = next(replica for replica in group.ids if replica != leader.replica_id)
        group.network.isolate(other)
        await asyncio.sleep(10)
        group.network.heal()
        await asyncio.sleep(5)
        assert leader.is_serving
        assert leader.term == term
        await group.stop()

    run_virtual(main())


def test_nothing_is_acknowledged_before_a_majority_is_durable() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await group.put(b"first")
        leader = await group.serving_leader()
        for log in group.logs.values():
            log.sync_delay_s = None
        outcome: list[object] = []
        leader.propose(b"\x10x", lambda _result, error: outcome.append(error))
        index = group.logs[leader.replica_id].last_index
        followers = [replica for replica in group.ids if replica != leader.replica_id]
        await asyncio.sleep(0.2)
        assert not outcome
        # Both followers durable, the leader not: the library would count the leader itself.
        for replica in followers:
            assert group.logs[replica].last_index == index
            group.logs[replica].sync()
        await asyncio.sleep(0.2)
        assert not outcome
        group.logs[leader.replica_id].sync()
        await asyncio.sleep(0.1)
        assert outcome == [None]
        await group.stop()

    run_virtual(main())


def test_leader_and_no_follower_durable_is_not_enough() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await group.put(b"first")
        leader = await group.serving_leader()
        for log in group.logs.values():
            log.sync_delay_s = None
        outcome: list[object] = []
        leader.propose(b"\x10x", lambda _result, error: outcome.append(error))
        group.logs[leader.replica_id].sync()
        await asyncio.sleep(0.3)
        assert not outcome
        await asyncio.sleep(6)  # the proposal deadline: indefinite
        assert isinstance(outcome[0], CommitTimeoutError)
        assert leader.is_serving  # heartbeats are answered although the disks are slow
        await group.stop()

    run_virtual(main())


def test_a_single_replica_commits_only_what_is_durable() -> None:
    async def main() -> None:
        group = RaftGroup(1)
        await group.start()
        leader = await group.serving_leader()
        group.logs["r0"].sync_delay_s = None
        outcome: list[object] = []
        leader.propose(b"\x10x", lambda _result, error: outcome.append(error))
        await asyncio.sleep(1)
        assert not outcome
        group.logs["r0"].sync()
        await asyncio.sleep(0.01)
        assert outcome == [None]
        await group.stop()

    run_virtual(main())


def test_restart_applies_nothing_twice() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        for number in range(10):
            await group.put(b"%d" % number)
        await group.converged()
        for replica in group.ids:
            group.crash(replica)
        await group.start()  # ListMachine refuses an index it has already applied
        await group.put(b"again")
        await group.converged()
        assert len(group.machines["r1"].applied) == 11
        assert not group.fatal
        await group.stop()

    run_virtual(main())


def test_power_loss_of_all_keeps_everything_acknowledged() -> None:
    async def main() -> None:
        group = RaftGroup(3, sync_delay_s=0.004)
        await group.start()
        acknowledged: list[bytes] = []

        async def produce() -> None:
            for number in range(300):
                await group.put(b"%d" % number)
                acknowledged.append(b"%d" % number)

        task = asyncio.get_running_loop().create_task(produce())
        await asyncio.sleep(1.0)
        for replica in group.ids:
            group.crash(replica, power_loss=True)
        for machine in group.machines.values():
            machine.applied.clear()
            machine.applied_index = 0
        before = list(acknowledged)
        assert len(before) > 20
        await group.start()
        await task
        await group.converged()
        bodies = [body[1:] for _, _, body in group.machines["r2"].applied]
        assert [body for body in bodies if body in before][: len(before)] == before
        await group.stop()

    run_virtual(main())


def test_a_full_disk_refuses_definitely_and_recovers() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await group.put(b"a")
        leader = await group.serving_leader()
        group.logs[leader.replica_id].full = True
        with pytest.raises(DiskFullError):
            leader.propose(b"\x10x", lambda _r, _e: None)
        assert leader.is_serving
        group.logs[leader.replica_id].full = False
        # A follower without room does not confirm; the others go on; later it catches up.
        follower = next(r for r in group.ids if r != leader.replica_id)
        group.logs[follower].full = True
        for number in range(10):
            await group.put(b"%d" % number)
        assert group.logs[follower].last_index < group.logs[leader.replica_id].last_index
        group.logs[follower].full = False
        await group.converged(5.0)
        await group.stop()

    run_virtual(main())


def test_a_state_machine_without_room_applies_later() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        group.machines[leader.replica_id].full = True
        outcome: list[object] = []
        leader.propose(b"\x10x", lambda _result, error: outcome.append(error))
        await asyncio.sleep(1)
        assert not outcome
        group.machines[leader.replica_id].full = False
        await asyncio.sleep(1)
        assert outcome == [None]
        await group.stop()

    run_virtual(main())


def test_while_committed_entries_cannot_be_applied_all_else_is_refused_definitely() -> None:
    """They were taken, committed, and ended as unknown when their time was up."""

    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        group.machines[leader.replica_id].full = True
        outcome: list[object] = []
        leader.propose(b"\x10x", lambda _result, error: outcome.append(error))
        barrier = asyncio.ensure_future(leader.read_barrier())
        await asyncio.sleep(0.2)
        last_index = group.logs[leader.replica_id].last_index
        for _ in range(40):
            with pytest.raises(DiskFullError):
                leader.propose(b"\x10y", lambda _result, _error: None)
            with pytest.raises(DiskFullError):
                await leader.read_barrier()
            await asyncio.sleep(0.05)
        # One taken in the same turn sees all that was acknowledged; it may end either way.
        assert barrier.done()
        barrier.exception()
        assert group.logs[leader.replica_id].last_index == last_index
        assert not outcome
        assert leader.is_serving
        group.machines[leader.replica_id].full = False
        await asyncio.sleep(1)
        assert outcome == [None]
        await leader.read_barrier()
        await leader.submit(b"\x10z")
        await group.converged()
        await group.stop()

    run_virtual(main())


def test_a_failed_disk_stops_the_replica() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        group.logs[leader.replica_id].fail(DiskFailureError("fdatasync: EIO"))
        assert isinstance(group.fatal[leader.replica_id], DiskFailureError)
        assert not leader.is_serving
        group.crash(leader.replica_id)
        new = await group.serving_leader()
        assert new.replica_id != leader.replica_id
        await group.stop()

    run_virtual(main())


def test_read_barrier_needs_a_majority() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        await group.put(b"a")
        leader = await group.serving_leader()
        await asyncio.wait_for(leader.read_barrier(), 1)
        group.network.isolate(leader.replica_id)
        with pytest.raises(NotLeaderError):
            await asyncio.wait_for(leader.read_barrier(), 5)
        await group.stop()

    run_virtual(main())


def test_a_slow_follower_has_a_bounded_window_and_catches_up() -> None:
    async def main() -> None:
        group = RaftGroup(3)
        await group.start()
        leader = await group.serving_leader()
        slow = next(r for r in group.ids if r != leader.replica_id)
        group.network.cut(slow, leader.replica_id)  # it receives, but its replies are lost
        body = b"\x10" + b"x" * 100_000
        for _ in range(300):
            await leader.submit(body)
        assert leader.peer_progress()[slow]["in_flight_bytes"] < 8 * 1024 * 1024 + 1_100_000
        group.network.heal()
        await group.converged(10.0)
        await group.stop()

    run_virtual(main())


def test_state_ahead_of_the_log_is_refused() -> None:
    async def main() -> None:
        group = RaftGroup(1)
        group.machines["r0"].applied_index = 99
        with pytest.raises(InvariantError):
            await group.start()

    run_virtual(main())


def test_a_tick_that_only_puts_the_next_one_off_leaves_the_timer_alone() -> None:
    async def main() -> None:
        # Nothing but heartbeats and elections is waited for.
        group = RaftGroup(3, config=RaftConfig(commit_notice_ms=1000, apply_delay_ms=1000))
        await group.start()
        leader = await group.serving_leader()
        counts = {"tick": 0, "timer": 0}

        def counted(name: str, call: Any) -> Any:
            def count() -> None:
                counts[name] += 1
                call()

            return count

        for node in group.nodes.values():
            node._tick = counted("tick", node._tick)  # type: ignore[method-assign]
            node._set_timer = counted("timer", node._set_timer)  # type: ignore[method-assign]
        for number in range(300):
            await group.put(b"%d" % number)
        assert counts["timer"] < counts["tick"] / 4, counts
        # But nobody sleeps for longer than before.
        before = dict(counts)
        await asyncio.sleep(10 * TICK_MAX_S)
        assert counts["timer"] - before["timer"] >= 30, (before, counts)
        assert counts["tick"] - before["tick"] >= 30, (before, counts)
        group.crash(leader.replica_id)
        await group.put(b"by another leader")
        await group.stop()

    run_virtual(main())


def test_a_commit_is_told_by_the_next_entry_or_a_little_later() -> None:
    async def main() -> None:
        group = RaftGroup(3, delay_s=0.0005)
        await group.start()
        leader = await group.serving_leader()
        await group.put(b"first")
        await group.converged()
        sent = {"entries": 0, "none": 0}
        transport = group.transports[leader.replica_id]
        send = transport.send

        def counted(peer_id: str, message: Any) -> bool:
            sent["entries" if "records" in message else "none"] += 1
            return send(peer_id, message)

        transport.send = counted  # type: ignore[method-assign]
        began = group.loop.time()
        for number in range(20):
            await leader.submit(b"\x10%d" % number)
        beats = (group.loop.time() - began) * 1000 / group.config.heartbeat_ms
        assert sent["entries"] == 40
        assert sent["none"] <= 2 * (beats + 1), (sent, beats)
        # Nothing follows the last one, so it is told, long before a heartbeat is due.
        await asyncio.sleep(0.03)
        applied = {machine.applied_index for machine in group.machines.values()}
        assert applied == {leader.applied_index}
        await group.stop()

    run_virtual(main())


def test_a_follower_applies_together_what_is_committed_within_a_moment() -> None:
    async def main() -> None:
        group = RaftGroup(3, delay_s=0.0002, sync_delay_s=0.0002)
        await group.start()
        leader = await group.serving_leader()
        calls = dict.fromkeys(group.ids, 0)
        for replica in group.ids:
            machine = group.machines[replica]

            def apply(entries: Any, replica: str = replica, call: Any = machine.apply) -> Any:
                calls[replica] += 1
                return call(entries)

            machine.apply = apply  # type: ignore[method-assign]
        for number in range(100):
            await leader.submit(b"\x10%d" % number)
        await group.converged()
        assert calls.pop(leader.replica_id) == 100  # each is answered as soon as it can be
        assert all(count < 50 for count in calls.values()), calls
        await group.stop()

    run_virtual(main())
