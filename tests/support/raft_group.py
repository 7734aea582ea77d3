"""A Raft group in one process on virtual time, with faults to order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from dledger.errors import DLedgerError, ReplicationError
from dledger.raft.config import RaftConfig
from dledger.raft.configuration import Configuration
from dledger.raft.engine import Engine
from dledger.raft.memory_transport import MemoryNetwork, MemoryTransport
from dledger.raft.node import RaftNode
from tests.support.memory_log import ListMachine, MemoryLog
from tests.support.memory_snapshots import MemorySnapshots
from tests.support.one_replica import group_of
from tests.support.virtual_loop import LoopClock


class RaftGroup:
    """Replicas named r0, r1, …; each with a log and a machine that survive a crash."""

    def __init__(
        self,
        size: int,
        seed: int = 1,
        *,
        config: RaftConfig | None = None,
        engine_class: type[Engine] = Engine,
        sync_delay_s: float | None = 0.001,
        delay_s: float = 0.001,
        with_snapshots: bool = False,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.random = random.Random(seed)
        self.clock = LoopClock(self.loop)  # type: ignore[arg-type]
        self.config = config or RaftConfig()
        self.engine_class = engine_class
        self.network = MemoryNetwork(lambda _a, _b: delay_s * self.random.uniform(0.5, 1.5))
        self.sync_delay_s, self.with_snapshots = sync_delay_s, with_snapshots
        self.ids = [f"r{number}" for number in range(size)]
        self.bootstrap = group_of(*self.ids)
        self.logs = {replica: MemoryLog(sync_delay_s) for replica in self.ids}
        self.machines = {replica: ListMachine() for replica in self.ids}
        self.snapshots = {
            replica: MemorySnapshots(self.logs[replica], self.machines[replica])
            for replica in (self.ids if with_snapshots else ())
        }
        self.nodes: dict[str, RaftNode] = {}
        self.transports: dict[str, MemoryTransport] = {}
        self.fatal: dict[str, BaseException] = {}
        self.joining: dict[str, Configuration] = {}  # what those that were added were told

    async def start(self, ids: Sequence[str] | None = None) -> None:
        for replica in ids or self.ids:
            self.logs[replica].unsubscribe()
            transport = MemoryTransport(self.network, replica)
            node = RaftNode(
                replica_id=replica,
                bootstrap=self.joining.get(replica, self.bootstrap),
                incarnation=self.incarnation(replica),
                config=self.config,
                log=self.logs[replica],
                machine=self.machines[replica],
                transport=transport,
                clock=self.clock,
                random=random.Random(self.random.random()),
                on_fatal=lambda error, replica=replica: self.fatal.__setitem__(replica, error),
                engine_class=self.engine_class,
                snapshots=self.snapshots.get(replica),
            )
            self.transports[replica] = transport
            self.nodes[replica] = node
            await node.start()

    def incarnation(self, replica: str) -> int:
        member = self.joining.get(replica, self.bootstrap).member(replica)
        assert member is not None
        return member.incarnation

    def prepare(self, replica: str, configuration: Configuration) -> None:
        """Makes an empty replica that joins the group as its configuration says."""
        self.joining[replica] = configuration
        if replica not in self.ids:
            self.ids.append(replica)
        self.wipe(replica)

    def wipe(self, replica: str) -> None:
        """Everything that a replica had stored is gone."""
        log, machine = MemoryLog(self.sync_delay_s), ListMachine()
        self.logs[replica], self.machines[replica] = log, machine
        if self.with_snapshots:
            self.snapshots[replica] = MemorySnapshots(log, machine)

    def crash(self, replica: str, *, power_loss: bool = False) -> None:
        self.nodes.pop(replica).crash()
        self.transports.pop(replica).crash()
        self.logs[replica].unsubscribe()
        if power_loss:
            self.logs[replica].lose_unsynced()

    async def stop(self) -> None:
        for node in list(self.nodes.values()):
            await node.stop()

    def leader(self) -> RaftNode | None:
        serving = [node for node in self.nodes.values() if node.is_serving]
        return max(serving, key=lambda node: node.term, default=None)

    async def wait(
        self, condition: Callable[[], object], timeout_s: float = 20.0, *, poll_s: float = 0.005
    ) -> None:
        deadline = self.loop.time() + timeout_s
        while not condition():
            if self.loop.time() > deadline:
                raise AssertionError("condition not reached in time")
            await asyncio.sleep(poll_s)

    async def serving_leader(self, timeout_s: float = 20.0) -> RaftNode:
        await self.wait(lambda: self.leader() is not None, timeout_s)
        leader = self.leader()
        assert leader is not None
        return leader

    async def put(self, body: bytes, timeout_s: float = 20.0) -> object:
        """Proposes until it is certain that it was committed (at least once)."""
        deadline = self.loop.time() + timeout_s
        while True:
            leader = await self.serving_leader(timeout_s)
            try:
                # A crashed node answers nothing, as a killed process.
                return await asyncio.wait_for(leader.submit(b"\x10" + body), 6.0)
            except (DLedgerError, TimeoutError):
                if self.loop.time() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def converged(self, timeout_s: float = 20.0) -> None:
        """Waits until every running replica has applied the same, and checks that it is equal."""

        def equal() -> bool:
            applied = {self.machines[replica].applied_index for replica in self.nodes}
            lasts = {self.logs[replica].last_index for replica in self.nodes}
            return len(applied) == 1 and applied == lasts

        await self.wait(equal, timeout_s)
        histories = [self.machines[replica].applied for replica in self.nodes]
        assert all(history == histories[0] for history in histories)


__all__ = ["RaftGroup", "ReplicationError"]
