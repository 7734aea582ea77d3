"""Followers that need what the leader no longer holds, on virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.support.memory_log import entry
from tests.support.one_replica import OurReplica
from tests.support.raft_group import RaftGroup
from tests.support.virtual_loop import run_virtual


async def lagging(group: RaftGroup) -> str:
    """Leaves one follower behind what the others still hold; returns it, cut off."""
    await group.start()
    await group.put(b"before")
    await group.converged()
    leader = await group.serving_leader()
    victim = next(replica for replica in group.ids if replica != leader.replica_id)
    group.network.isolate(victim)
    for number in range(50):
        await group.put(b"%d" % number)
    for replica in group.ids:
        if replica != victim:
            group.snapshots[replica].take(keep=5)
            assert group.logs[replica].first_index > 40
    return victim


@pytest.mark.parametrize("size", [3, 5])
def test_a_follower_that_is_too_far_behind_gets_a_snapshot_and_then_the_log(size: int) -> None:
    async def main() -> None:
        group = RaftGroup(size, with_snapshots=True)
        victim = await lagging(group)
        group.network.heal()
        await group.put(b"after")
        await group.converged()
        assert group.snapshots[victim].installed == 1
        assert group.logs[victim].first_index > 40
        assert len(group.machines[victim].applied) == 52
        # It holds what the leader holds, so it can lead.
        await (await group.serving_leader()).transfer_leadership(victim)
        await group.put(b"by the follower")
        await group.converged()
        assert not group.fatal
        await group.stop()

    run_virtual(main())


def test_a_log_that_gets_shorter_faster_than_answers_come_keeps_nobody_waiting() -> None:
    async def main() -> None:
        group = RaftGroup(3, with_snapshots=True, delay_s=0.02)
        victim = await lagging(group)
        leader = await group.serving_leader()
        receive = leader._engine.receive

        def shortened(peer: str, message: dict[str, Any]) -> None:
            # Whenever an answer comes, the front has moved on since the question.
            if peer == victim:
                group.snapshots[leader.replica_id].take(keep=2)
            receive(peer, message)

        leader._engine.receive = shortened  # type: ignore[method-assign]
        group.network.heal()
        for number in range(60):
            leader.propose(b"\x10%d" % number, lambda _result, _error: None)
            await asyncio.sleep(0.005)
            if group.snapshots[victim].received:
                break
        assert group.snapshots[victim].received
        await group.converged()
        await group.stop()

    run_virtual(main())


def test_a_new_replica_with_nothing_gets_everything() -> None:
    async def main() -> None:
        group = RaftGroup(3, with_snapshots=True)
        await group.start(["r0", "r1"])
        for number in range(30):
            await group.put(b"%d" % number)
        for replica in ("r0", "r1"):
            group.snapshots[replica].take()
        await group.start(["r2"])
        await group.converged()
        assert group.snapshots["r2"].installed == 1
        await group.stop()

    run_virtual(main())


def test_pieces_that_get_lost_are_sent_again_from_where_it_stopped() -> None:
    async def main() -> None:
        group = RaftGroup(3, with_snapshots=True)
        victim = await lagging(group)
        group.network.heal()
        await group.wait(lambda: group.snapshots[victim].received, poll_s=0.001)
        incoming = group.nodes[victim]._engine._incoming
        assert incoming is not None
        await group.wait(lambda: incoming.writer.position, poll_s=0.001)
        assert 0 < incoming.writer.position < 3_000_000
        group.network.isolate(victim)
        await asyncio.sleep(3.0)
        assert group.nodes[victim]._engine._incoming is incoming
        group.network.heal()
        await group.converged()
        assert group.snapshots[victim].installed == 1
        assert incoming.writer.position > 3_000_000  # nothing was begun anew
        await group.stop()

    run_virtual(main())


def test_the_leader_may_die_while_it_sends() -> None:
    async def main() -> None:
        group = RaftGroup(3, with_snapshots=True)
        victim = await lagging(group)
        group.network.heal()
        leader = await group.serving_leader()
        await group.wait(lambda: group.snapshots[victim].received)
        group.crash(leader.replica_id)
        await group.put(b"by the next one, which cannot commit without the follower", 30.0)
        await group.start([leader.replica_id])
        await group.converged()
        await group.stop()

    run_virtual(main())


def test_a_follower_that_restarts_before_its_log_has_reached_the_state_goes_on() -> None:
    async def main() -> None:
        group = RaftGroup(3, with_snapshots=True)
        victim = await lagging(group)
        group.logs[victim].sync_delay_s = 1.0  # so that the log follows slowly
        group.network.heal()
        await group.wait(lambda: group.snapshots[victim].installed)
        assert group.logs[victim].last_index < group.machines[victim].applied_index
        group.crash(victim, power_loss=True)
        group.logs[victim].sync_delay_s = 0.001
        await group.start([victim])
        await group.put(b"after")
        await group.converged()
        assert not group.fatal
        await group.stop()

    run_virtual(main())


def test_nothing_of_a_snapshot_moves_the_commit_index_before_it_is_installed() -> None:
    replica = OurReplica()
    replica.append("b", 1, (0, 0))
    replica.append("b", 1, (1, 0), [(2, 1, b"\x10own"), (3, 1, b"\x10tail")], commit=2)
    replica.tick()
    assert (replica.engine.commit_index(), replica.machine.applied_index) == (2, 2)
    record = entry(90, 2, b"\x10first").record
    piece = {
        "type": "snapshot_piece",
        "term": 2,
        "round": 1,
        "applied_index": 95,
        "size": 4,
        "crc": 1,
        "position": 0,
        "piece_crc": 0,
        "payload": b"data",
    }
    for _ in range(3):
        replica.receive("c", piece)
        end = {"type": "snapshot_end", "applied_index": 95, "crc": 1, "term": 2, "round": 1}
        replica.receive("c", {**end, "payload": record})
        replica.tick()
    assert (replica.engine.commit_index(), replica.machine.applied_index) == (2, 2)
    assert replica.log() == [(1, 0), (2, 1), (3, 1)]


@pytest.mark.parametrize("seed", range(12))
def test_nothing_acknowledged_is_lost_with_snapshots_under_partitions(seed: int) -> None:
    """P1 of the library: a partition plus compaction."""
    from tests.property.test_raft_random_faults import check, faults, produce

    async def compact(group: RaftGroup, chance: random.Random, until: float) -> None:
        while group.loop.time() < until:
            await asyncio.sleep(chance.uniform(0.1, 0.8))
            for replica in group.ids:
                # A replica rebuilt from its log after a power cut begins at its first entry.
                if chance.random() < 0.7 and replica in group.nodes:
                    group.snapshots[replica].take(keep=chance.choice([0, 0, 3, 50]))

    async def main() -> None:
        chance = random.Random(seed)
        group = RaftGroup(chance.choice([3, 5]), seed, with_snapshots=True)
        for snapshots in group.snapshots.values():
            snapshots.filler = bytes(chance.choice([10, 1_000_000, 6_000_000]))
            snapshots.install_delay_s = chance.choice([0.0, 0.05, 0.5])
        await group.start()
        acknowledged: list[bytes] = []
        until = group.loop.time() + 10.0
        kinds = ["crash", "isolate", "one-way", "heal", "isolate"]
        await asyncio.gather(
            faults(group, chance, until, kinds),
            produce(group, acknowledged, until),
            compact(group, chance, until),
        )
        group.network.heal()
        await group.put(b"alive", timeout_s=15.0)
        await group.converged(20.0)
        check(group, acknowledged)
        assert sum(snapshots.installed for snapshots in group.snapshots.values()) >= 0
        await group.stop()

    run_virtual(main())


@pytest.mark.parametrize("waiting_bytes", [1, 0])
def test_pieces_that_the_network_has_not_taken_yet_are_not_sent_again(waiting_bytes: int) -> None:
    """Over a slow link the same ones would queue up, and the follower take nothing new for long."""

    async def main() -> None:
        group = RaftGroup(3, with_snapshots=True)
        victim = await lagging(group)
        leader = await group.serving_leader()
        transport = leader._transport
        positions: list[int] = []
        send = transport.send

        def slow_link(peer_id: str, message: dict[str, Any]) -> bool:
            if peer_id == victim and message["type"] == "snapshot_piece" and message["records"][0]:
                positions.append(message["position"])
                return True  # on its way, for long
            return send(peer_id, message)

        transport.send = slow_link  # type: ignore[method-assign]
        transport.buffered_bytes = lambda _peer_id: waiting_bytes  # type: ignore[method-assign]
        group.network.heal()
        await group.wait(lambda: positions)
        await asyncio.sleep(5.0)
        again = len(positions) - len(set(positions))
        assert (again == 0) == bool(waiting_bytes), positions
        transport.send = send  # type: ignore[method-assign]
        transport.buffered_bytes = lambda _peer_id: 0  # type: ignore[method-assign]
        await group.converged()
        await group.stop()

    run_virtual(main())
