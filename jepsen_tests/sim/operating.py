"""Somebody who changes the group while everything else goes wrong: replicas leave and come back.

One replica at a time is removed, loses everything it had, and joins again as somebody new, after a
while or at once. What is asked of the group is what the command line asks: `RaftNode.changes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

from dledger.errors import DLedgerError
from dledger.raft.configuration import Configuration
from jepsen_tests.sim.host import Host
from jepsen_tests.sim.list_snapshots import Shelf

if TYPE_CHECKING:
    from jepsen_tests.sim.world import World

RAFT_PORT = 10_912
OUT = "it is not in the group"
_RETRY_S = 0.1
_ANSWER_S = 6.0
REJOIN_BOUND_S = 20.0


class Operator:
    """Removes and rebuilds replicas."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random

    async def run(self, until: float) -> None:
        """Changes the group now and then until then; may leave one replica outside."""
        world, gap_s = self._world, self._world.plan.changes_gap_s
        while world.loop.time() < until:
            await asyncio.sleep(self._random.expovariate(1.0 / gap_s))
            if world.loop.time() >= until:
                return
            host = self._random.choice(list(world.hosts.values()))
            stay_away_s = self._random.choice((0.0, 0.0, 0.5, 2.0))
            if any(other.damaged for other in world.hosts.values() if other is not host):
                continue  # damage that nobody has read yet: it would be the second that is lost
            await self.rebuild(host, until, stay_away_s)
            if world.outside:
                return  # it comes back when everything is healed

    async def rebuild(self, host: Host, until: float, stay_away_s: float = 0.0) -> None:
        """Gives a replica a new life, as far as that goes until then."""
        world = self._world
        world.trace.fault("rebuild", f"{host.name}, away for {stay_away_s} s")
        world.outside.add(host.name)
        was_refused, host.refused = host.refused, OUT
        if self._random.random() < 0.5:
            world.kill(host)  # otherwise it runs until it hears of it
        if not await self._leave(host, until):
            # Perhaps it was removed all the same; then it is told so and stays outside.
            host.refused = was_refused
            world.outside.discard(host.name)
            if not was_refused:
                world.restart_later(host, 0.0)
            return
        world.kill(host)
        await asyncio.sleep(stay_away_s)
        await self.rejoin(host, until)

    async def _leave(self, host: Host, until: float) -> bool:
        found = await self._ask(
            lambda node: node.changes.remove(host.name), self._is_out, host, until
        )
        return found is not None

    async def rejoin(self, host: Host, until: float) -> None:
        """Lets a replica that was removed join with nothing; waits until it votes."""
        world = self._world
        address = f"{host.address}:{RAFT_PORT}"
        # Only who serves is asked: a replica that is behind may still know the life that is over.
        joined = await self._ask(
            lambda node: node.changes.add(host.name, address, address), self._is_in, host, until
        )
        if joined is None:
            return
        host.joining = joined  # type: ignore[attr-defined]
        self.wipe(host)
        world.start(host)
        while not self._votes(host):
            if world.loop.time() >= until:
                return
            await asyncio.sleep(_RETRY_S)
        world.outside.discard(host.name)

    def wipe(self, host: Host) -> None:
        """Takes everything from a machine that it had stored."""
        world = self._world
        world.kill(host)
        host.disk.replace(type(host.disk.files)(capacity_bytes=host.disk.files.capacity_bytes))
        host.shelf = Shelf()  # type: ignore[attr-defined]
        host.list_state = (-1, None)  # type: ignore[attr-defined]
        host.damaged = []
        host.refused = None
        world.oracle.forget(host.name)

    async def finish(self) -> None:
        """Brings back whoever is outside, when all else is healed."""
        world = self._world
        deadline = world.loop.time() + REJOIN_BOUND_S
        for name in sorted(world.outside):
            host = world.hosts[name]
            if self._newest().member(name) is not None and not self._votes(host):
                # A change that was interrupted: it may have lost what its incarnation promised.
                host.refused = OUT
                await self._leave(host, deadline)
            if not self._votes(host):
                await self.rejoin(host, deadline)

    # --- asking -----------------------------------------------------------------------------

    def _newest(self) -> Configuration:
        """Returns the configuration of who leads, or of whoever runs."""
        leader = self._world.leader()
        if leader is not None:
            return leader.app.node.configuration  # type: ignore[no-any-return]
        nodes = [h.app.node for h in self._world.hosts.values() if h.is_running and h.app.node]
        known: list[Configuration] = [node.configuration for node in nodes]
        return max(known, key=lambda found: found.index, default=Configuration(members=()))

    def _is_out(self, found: Configuration, host: Host) -> bool:
        return found.member(host.name) is None

    def _is_in(self, found: Configuration, host: Host) -> bool:
        return found.member(host.name) is not None

    def _votes(self, host: Host) -> bool:
        node = host.app.node if host.is_running else None
        leader = self._world.leader()
        if node is None or leader is None:
            return False
        found = leader.app.node.configuration.member(host.name)
        return (
            found is not None and found.is_voter and node.identity.incarnation == found.incarnation
        )

    async def _ask(
        self,
        change: Callable[[Any], Coroutine[Any, Any, Configuration]],
        is_done: Callable[[Configuration, Host], bool],
        host: Host,
        until: float,
    ) -> Configuration | None:
        """Asks whoever leads until the change is committed; returns what it led to, None if not."""
        world = self._world
        while world.loop.time() < until:
            leader = world.leader()
            if leader is not None and leader.process is not None:
                node = leader.app.node
                if is_done(node.configuration, host) and node.is_serving:
                    # Settled: what a serving leader knows to be committed.
                    if node.changes.is_settled():
                        return node.configuration  # type: ignore[no-any-return]
                else:
                    task = leader.process.spawn(_quiet(change(node)))
                    await asyncio.wait({task}, timeout=_ANSWER_S)
            await asyncio.sleep(_RETRY_S)
        return None


async def _quiet(change: Coroutine[Any, Any, Configuration]) -> str:
    try:
        await change
    except DLedgerError as error:
        return str(error)
    return ""
