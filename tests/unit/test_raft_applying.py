"""Followers apply, and are told of commits, in strides; nothing is acknowledged later by that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from dledger.raft.applying import Stride
from dledger.raft.config import RaftConfig
from tests.support.raft_group import RaftGroup
from tests.support.virtual_loop import run_virtual

GATHER_MS = 50
PUTS = 100


class Watched:
    """How often each replica applied, and when; and how many appends without entries were sent."""

    def __init__(self, group: RaftGroup) -> None:
        self.applied_at: dict[str, list[float]] = {name: [] for name in group.ids}
        self.empty_appends = 0
        for name in group.ids:
            self._watch_machine(group, name)
            self._watch_transport(group, name)

    def _watch_machine(self, group: RaftGroup, name: str) -> None:
        machine = group.machines[name]
        apply = machine.apply

        def counted(entries: Sequence[Any]) -> list[object]:
            self.applied_at[name].append(group.loop.time())
            return apply(entries)

        machine.apply = counted  # type: ignore[method-assign]

    def _watch_transport(self, group: RaftGroup, name: str) -> None:
        transport = group.transports[name]
        send = transport.send

        def counted(peer_id: str, message: dict[str, Any]) -> bool:
            if message["type"] == "append_entries" and "records" not in message:
                self.empty_appends += 1
            return send(peer_id, message)

        transport.send = counted  # type: ignore[method-assign]


def test_a_stride_lets_the_first_pass_and_then_pauses() -> None:
    stride = Stride(10)
    assert stride.due_at < 0.0
    stride.done(5.0)
    assert stride.due_at == pytest.approx(5.010)


async def busy_group(gather_ms: int) -> tuple[RaftGroup, Watched, str, float]:
    """Returns a group after so many writes, one after the other, and how long they took."""
    group = RaftGroup(3, config=RaftConfig(gather_ms=gather_ms))
    await group.start()
    await group.put(b"first")
    leader = (await group.serving_leader()).replica_id
    await asyncio.sleep(0.3)
    watched = Watched(group)
    started = group.loop.time()
    for number in range(PUTS):
        await group.put(b"%d" % number)
    return group, watched, leader, group.loop.time() - started


def test_under_load_followers_apply_in_strides_and_the_leader_each_entry() -> None:
    async def main() -> None:
        group, watched, leader, seconds = await busy_group(GATHER_MS)
        # One for each pause, and one at once before the first.
        strides = seconds * 1000 / GATHER_MS + 2
        assert strides < PUTS / 4
        for name, times in watched.applied_at.items():
            assert len(times) == PUTS if name == leader else len(times) <= strides
        # Each of two followers is told so often, and by the heartbeats that are due anyway.
        assert watched.empty_appends <= 2 * (strides + seconds * 1000 / group.config.heartbeat_ms)
        await group.converged(timeout_s=3 * GATHER_MS / 1000)
        await group.stop()

    run_virtual(main())


def test_strides_do_not_delay_what_is_acknowledged() -> None:
    async def main(gather_ms: int) -> float:
        group, _, _, seconds = await busy_group(gather_ms)
        await group.stop()
        return seconds

    assert run_virtual(main(GATHER_MS)) == pytest.approx(run_virtual(main(1)), rel=0.1)


def test_after_a_pause_followers_apply_at_once() -> None:
    async def main() -> None:
        group = RaftGroup(3, config=RaftConfig(gather_ms=GATHER_MS))
        await group.start()
        await group.put(b"first")
        await asyncio.sleep(0.5)
        watched = Watched(group)
        await group.put(b"second")
        acknowledged = group.loop.time()
        await group.converged()
        # One way to the followers, not a stride.
        assert all(
            at < acknowledged + 0.01 for times in watched.applied_at.values() for at in times
        )
        await group.stop()

    run_virtual(main())


def test_a_follower_that_becomes_leader_applies_without_waiting() -> None:
    async def main() -> None:
        # So long that nothing would be applied twice within the test if new leaders waited too.
        group = RaftGroup(3, config=RaftConfig(gather_ms=60_000))
        await group.start()
        for number in range(5):
            await group.put(b"%d" % number)
        old = await group.serving_leader()
        group.crash(old.replica_id)
        started = group.loop.time()
        new = await group.serving_leader()
        assert new.replica_id != old.replica_id
        assert group.loop.time() - started < 10.0
        bodies = [body[1:] for _, _, body in group.machines[new.replica_id].applied]
        assert bodies == [b"%d" % number for number in range(5)]
        await group.stop()

    run_virtual(main())


def test_a_follower_without_space_does_not_spin() -> None:
    async def main() -> None:
        group, watched, leader, _ = await busy_group(GATHER_MS)
        full = next(name for name in group.ids if name != leader)
        group.machines[full].full = True
        await group.put(b"more")
        before = len(watched.applied_at[full])
        await asyncio.sleep(5.0)
        assert len(watched.applied_at[full]) - before <= 12  # every half second
        group.machines[full].full = False
        await group.converged()
        await group.stop()

    run_virtual(main())
