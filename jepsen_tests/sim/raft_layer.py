"""The raft layer: `RaftNode`, `TcpTransport` and `CommitLog` under a list of numbers.

Reaches: elections, replication, durability, recovery of the log, catching up. Not: brokers,
remoting, clients, LMDB. About ten times faster than the broker layer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from dledger.errors import DLedgerError
from dledger.raft.configuration import Configuration, Member, bootstrap
from dledger.raft.node import RaftNode
from dledger.raft.transport import TcpTransport, TransportConfig
from jepsen_tests.history import Append, Read, make_value
from jepsen_tests.sim.host import Host, SimulatedSyncWorker
from jepsen_tests.sim.list_snapshots import (
    ListSnapshots,
    ListState,
    finish_installation,
    load_state,
)
from jepsen_tests.sim.world import World, definite
from store.commit_log import CommitLog
from store.config import StoreConfig
from store.simulated_files import PowerLossError

QUEUE = "log"
COMMAND = b"\x10"
RAFT_PORT = 10_912
OPERATION_TIMEOUT_S = 6.0
FLOOD_BODY_BYTES = 1_500  # a flood fills a segment, so that compaction has something to drop
DIRECTORY = Path("/data/log")


class ListMachine:
    """Appends the numbers of committed entries; its result is (offset, index)."""

    def __init__(self, state: ListState, world: World, process: str) -> None:
        self.state = state
        self._world = world
        self._process = process

    @property
    def applied_index(self) -> int:
        """Index of the last entry applied."""
        return self.state.applied_index

    def apply(self, entries: Sequence[Any]) -> list[object]:
        """Applies entries."""
        state = self.state
        self._world.oracle.applied(self._process, state.applied_index, entries)
        results: list[object] = []
        for entry in entries:
            state.applied_index = entry.index
            body = bytes(entry.body)
            if body[0] == COMMAND[0]:
                state.values.append(int.from_bytes(body[1:9], "big"))
            results.append((len(state.values) - 1, entry.index))
        return results


class RaftServer:
    """One replica's process."""

    node_class: type[RaftNode] = RaftNode
    machine_class: type[ListMachine] = ListMachine

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host
        self.node: RaftNode | None = None
        self.log: CommitLog | None = None
        self.machine: ListMachine | None = None
        self.snapshots: ListSnapshots | None = None
        self._failed: asyncio.Future[BaseException] | None = None

    def state(self) -> ListState:
        """Returns what is applied on this machine."""
        return load_state(self.host)

    def compact(self, keep: int) -> int:
        """Takes a snapshot and drops what it makes dispensable; how many segments went."""
        if self.snapshots is None:
            return 0
        try:
            return self.snapshots.compact(keep)
        except PowerLossError:  # its crash point was reached here
            return 0

    async def run(self) -> None:
        """Opens the log, joins the group, and runs until something fatal."""
        world, host = self.world, self.host
        process = host.process
        name = process.name if process else host.name
        self._failed = world.loop.create_future()
        installed = finish_installation(host, DIRECTORY, self._store_config())
        if installed is not None:
            world.oracle.installed(host.name, installed)
        log = self.log = self.open_log()
        world.oracle.opened(name, host.name, log, is_damaged=bool(host.damaged))
        self.machine = self.machine_class(self.state(), world, name)
        self.snapshots = ListSnapshots(
            host,
            log,
            self.machine.state,
            lambda applied_index: world.oracle.installed(host.name, applied_index),
        )
        random = Random(f"{world.plan.seed}/{name}")
        node = self._make_node(log, random)
        node.add_listener(Listener(world, host, node, log))
        await node.start()
        self.node = node
        raise await self._failed

    def open_log(self) -> CommitLog:
        """Opens the log as it is on the machine's disk."""
        world, host = self.world, self.host
        return CommitLog.open(
            DIRECTORY,
            self._store_config(),
            host.disk.files,
            sync_worker=SimulatedSyncWorker(world.loop, host.disk),
            clock=host.clock,
        )

    def _store_config(self) -> StoreConfig:
        return StoreConfig(segment_bytes=self.world.plan.segment_bytes, tail_cache_bytes=64 * 1024)

    def _make_node(self, log: CommitLog, random: Random) -> RaftNode:
        world, host = self.world, self.host
        transport = TcpTransport(
            TransportConfig(
                cluster_name="sim",
                group_name="sim",
                replica_id=host.name,
                listen_host=host.address,
                listen_port=RAFT_PORT,
            ),
            random,
        )
        joining: Configuration | None = getattr(host, "joining", None)
        bootstrap_ = joining or self.first_configuration()
        me = bootstrap_.member(host.name)
        return self.node_class(
            replica_id=host.name,
            bootstrap=bootstrap_,
            incarnation=0 if me is None else me.incarnation,
            config=world.raft_config(),
            log=log,
            machine=self.machine,  # type: ignore[arg-type]
            transport=transport,
            clock=host.clock,
            random=random,
            on_fatal=self._fatal,
            engine_class=world.engine_class,
            snapshots=self.snapshots,
        )

    def first_configuration(self) -> Configuration:
        """Returns whom the group began with."""
        names = [f"r{number}" for number in range(self.world.plan.replicas)]
        members = [
            Member(
                id=name,
                number=number,
                address=f"{self.world.hosts[name].address}:{RAFT_PORT}",
                raft_address=f"{self.world.hosts[name].address}:{RAFT_PORT}",
            )
            for number, name in enumerate(names)
        ]
        return bootstrap(members)

    async def stop(self) -> None:
        """Ends in order."""
        if self.node is not None and self.log is not None:
            await self.node.stop()
            self.log.close()

    def _fatal(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)

    def close_files(self) -> None:
        """Nothing is open outside of the simulation."""


class Listener:
    """Tells the oracle who leads."""

    def __init__(self, world: World, host: Host, node: RaftNode, log: Any) -> None:
        self._world = world
        self._host = host
        self._node = node
        self._log = log

    def on_serving(self, term: int) -> None:
        """Checks the new leader."""
        process = self._host.process
        name = process.name if process else self._host.name
        self._world.note("leads", name, term=term)
        self._world.oracle.serving(name, self._host.name, term, self._node, self._log)

    def on_stopped_serving(self) -> None:
        """Notes it."""
        self._world.trace.note(self._host.name, "stopped serving")

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Notes it."""
        self._world.trace.note(self._host.name, f"leader of term {term}: {leader_id}")


class RaftClients:
    """Clients that append numbers through whoever says that it leads, and read."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._next_process = 0
        self.acknowledged = 0
        self.progress_at = 0.0
        self.flooding: list[asyncio.Task[bool]] = []
        world.flood = self.flood

    def flood(self, host: Host, count: int) -> None:
        """Lets a replica that says it leads have many appends at once, each of another client."""
        size = max(self._world.plan.body_bytes // 2, FLOOD_BODY_BYTES)
        for _ in range(count):
            process = self.process()
            work = self.append(host, process, make_value(process, 1), size)
            self.flooding.append(self._world.loop.create_task(work))

    async def run(self, until: float) -> None:
        """Runs all clients until then."""
        await self._run(until)
        if self.flooding:
            await asyncio.wait(self.flooding)

    async def _run(self, until: float) -> None:
        plan = self._world.plan
        clients = [
            self._client(Random(f"client/{plan.seed}/{number}"), until)
            for number in range(plan.clients)
        ]
        await asyncio.gather(*clients)

    def process(self) -> int:
        """Returns a new process number of the history."""
        self._next_process += 1
        return self._next_process

    async def _client(self, random: Random, until: float) -> None:
        world = self._world
        process, sequence = self.process(), 0
        while world.loop.time() < until:
            await asyncio.sleep(random.expovariate(world.plan.rate / world.plan.clients))
            serving = world.serving()
            if not serving:
                await asyncio.sleep(0.01)
                continue
            host = random.choice(serving)
            if random.random() < 0.2:
                if not await self.read(host, process):
                    process = self.process()
                continue
            sequence += 1
            size = random.randrange(world.plan.body_bytes)
            if not await self.append(host, process, make_value(process, sequence), size):
                process, sequence = self.process(), 0

    async def append(self, host: Host, process: int, value: int, padding: int) -> bool:
        """Appends one number and writes the outcome down; False if it is not known."""
        world = self._world
        body = COMMAND + value.to_bytes(8, "big") + bytes(padding)
        begin = world.now_ns()
        offset, error = None, ""
        status: Any = "ok"
        try:
            offset, index = await self._in_process(host, host.app.node.submit(body))
            world.oracle.acknowledged(index, host.app.log)
            self.acknowledged += 1
            self.progress_at = world.loop.time()
            world.on_acknowledged()
        except DLedgerError as exc:
            status, error = ("fail" if definite(exc) else "info"), str(exc)
        except TimeoutError:
            status, error = "info", "no answer"
        end = world.now_ns()
        world.trace.note(f"client{process}", f"append {value} {status} {offset} {error}")
        world.history.append(
            Append(
                process=process,
                queue=QUEUE,
                value=value,
                inv=begin,
                ret=end,
                status=status,
                offset=offset,
                node=host.name,
                error=error,
            )
        )
        return bool(status != "info")

    async def read(self, host: Host, process: int) -> bool:
        """Reads the last numbers behind a read barrier."""
        world = self._world
        begin = world.now_ns()

        async def read() -> tuple[int, list[int]]:
            await self.barrier(host.app.node)
            values = host.app.machine.state.values
            return len(values), values[-5:]

        status: Any = "ok"
        length, values, error = 0, [], ""
        try:
            length, values = await self._in_process(host, read())
        except (DLedgerError, TimeoutError) as exc:
            status, error = "fail", str(exc)
        world.history.append(
            Read(
                process=process,
                queue=QUEUE,
                inv=begin,
                ret=world.now_ns(),
                status=status,
                start=length - len(values),
                max=len(values),
                values=values,
                end=length if status == "ok" else None,
                node=host.name,
                error=error,
            )
        )
        return True

    async def barrier(self, node: RaftNode) -> None:
        """Waits until a read here is linearizable."""
        await node.read_barrier()

    async def _in_process(self, host: Host, work: Any) -> Any:
        """Runs work inside the host's process; a dead one never answers."""
        process = host.process
        if process is None or not process.is_alive:
            work.close()
            raise TimeoutError
        task = process.spawn(work)
        done, _ = await asyncio.wait({task}, timeout=OPERATION_TIMEOUT_S)
        if not done or not process.is_alive:
            raise TimeoutError
        return task.result()

    async def prove_progress(self, deadline: float) -> None:
        """Appends until one is acknowledged."""
        world = self._world
        while world.loop.time() < deadline:
            before = self.acknowledged
            host = world.leader()
            if host is not None:
                await self.append(host, self.process(), make_value(self._next_process, 0), 8)
                if self.acknowledged > before:
                    return
            await asyncio.sleep(0.01)

    def final_reads(self) -> None:
        """Reads everything from every replica."""
        world = self._world
        for host in world.healthy():
            values = list(host.app.machine.state.values)
            now = world.now_ns()
            world.history.append(
                Read(
                    process=self.process(),
                    queue=QUEUE,
                    inv=now,
                    ret=now + 1,
                    status="ok",
                    start=0,
                    max=len(values) + 1,
                    values=values,
                    end=len(values),
                    whole=True,
                    final=True,
                    node=host.name,
                )
            )
