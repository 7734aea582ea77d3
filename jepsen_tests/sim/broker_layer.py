"""The broker layer: whole brokers, a nameserver and real clients.

Everything above the sockets is the product's own: `broker.server.Broker` with its processors,
`RaftNode`, `TcpTransport`, `RemotingServer`, `CommitLog`, LMDB state, `NameserverServer`,
`AsyncProducer`, `AsyncPullConsumer`. LMDB is the real one, in a directory in memory: a killed
process keeps it, and a machine that lost power has another boot id, so that the broker discards the
state and replays its log.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from broker.config import (
    BrokerConfig,
    LimitsSection,
    ReplicaConfig,
    StoreSection,
    TimingSection,
    TransactionsSection,
)
from broker.context import BrokerContext
from broker.maintenance import InlineMaintenance
from broker.server import Broker
from broker.state_machine import BrokerStateMachine
from broker.stores import Stores
from dledger.client.config import ProducerConfig, PullConsumerConfig, SessionConfig
from dledger.client.producer import AsyncProducer
from dledger.client.pull_consumer import AsyncPullConsumer
from dledger.errors import CorruptRecordError, DLedgerError
from dledger.message import Message, UniqueKeyGenerator, decode_stored
from dledger.model import MessageQueue
from dledger.raft.node import RaftNode
from jepsen_tests.history import Append, Read, Value, make_value, queue_name
from jepsen_tests.sim.features import KINDS
from jepsen_tests.sim.host import Host, SimulatedSyncWorker
from jepsen_tests.sim.loop import HostClock, Process
from jepsen_tests.sim.raft_layer import Listener
from jepsen_tests.sim.world import LivenessError, World, definite
from nameserver.server import NameserverConfig, NameserverServer
from store.commit_log import CommitLog

TOPIC = "sim"
BROKER_NAME = "broker-a"
QUEUES = 2
PORT, RAFT_PORT, NAMESERVER_PORT = 10_911, 10_912, 9_876
NAMESERVER = "10.0.1.1"
MAP_BYTES = 4 * 1024 * 1024


class ObservedMachine:
    """The broker's state machine, and the oracle's eyes on it."""

    def __init__(self, machine: BrokerStateMachine, world: World, process: str) -> None:
        self._machine = machine
        self._world = world
        self._process = process

    @property
    def applied_index(self) -> int:
        """Index of the last entry applied."""
        return self._machine.applied_index

    def apply(self, entries: Sequence[Any]) -> list[object]:
        """Applies entries."""
        before = self._machine.applied_index
        results = self._machine.apply(entries)
        self._world.oracle.applied(self._process, before, entries)
        return results


class SimulatedBroker(Broker):
    """A broker whose parts can be looked at, also while it starts."""

    def __init__(self, world: World, host: Host, config: BrokerConfig) -> None:
        name = host.process.name if host.process else host.name
        random = Random(f"{world.plan.seed}/{name}")
        super().__init__(
            config,
            clock=host.clock,
            fs=host.disk.files,
            random=random,
            sync_worker=SimulatedSyncWorker(world.loop, host.disk),
            boot_id=lambda: f"boot-{host.boots}",
            unique_keys=UniqueKeyGenerator(
                host.clock, pid=host.incarnation, ip=host.address, random_bytes=random.randbytes
            ),
            engine_class=world.engine_class,
            maintenance=InlineMaintenance(),
        )
        self.world = world
        self.host = host
        self.opened: Stores | None = None

    def _open_stores(self) -> Stores:
        self.opened = super()._open_stores()
        process = self.host.process
        self.world.oracle.opened(
            process.name if process else self.host.name,
            self.host.name,
            self.opened.log,
            is_damaged=bool(self.host.damaged),
        )
        return self.opened

    def _connect(self, context: BrokerContext, *parts: Any) -> Any:
        context.pid = self.host.incarnation  # shown to clients, so it must be the seed's
        return super()._connect(context, *parts)

    def _make_raft(self, log: CommitLog, machine: Any, installer: Any) -> RaftNode:
        process = self.host.process
        name = process.name if process else self.host.name
        observed: Any = ObservedMachine(machine, self.world, name)
        node = super()._make_raft(log, observed, installer)
        node.add_listener(Listener(self.world, self.host, node, log))
        return node


class BrokerServer:
    """One broker's process."""

    broker_class: type[SimulatedBroker] = SimulatedBroker

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host
        self.broker: SimulatedBroker | None = None
        self.node: RaftNode | None = None
        self.log: CommitLog | None = None

    async def run(self) -> None:
        """Starts the broker and waits until it must not go on."""
        broker = self.broker = self.broker_class(
            self.world, self.host, broker_config(self.world, self.host)
        )
        await broker.start()
        self.node, self.log = broker.raft, broker.log
        raise await broker.wait_failed()

    def compact(self, keep: int) -> int:
        """Does nothing yet."""
        return 0 * keep

    def close_files(self) -> None:
        """Closes LMDB without syncing, as the death of the process would."""
        if self.broker is not None and self.broker.opened is not None:
            self.broker.opened.store.close(clean=False)


def state_directory(world: World) -> Path:
    """Returns the run's directory for LMDB, in memory where the machine has such a place."""
    path: Path | None = getattr(world, "directory", None)
    if path is None:
        shared = Path("/dev/shm")  # noqa: S108
        root = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
        path = Path(tempfile.mkdtemp(prefix="dledger-sim-", dir=root))
        world.directory = path  # type: ignore[attr-defined]
        world.trace.hidden = str(path)
    return path


def broker_config(world: World, host: Host) -> BrokerConfig:
    """Returns a replica's configuration: the defaults, with small files."""
    replicas = [
        ReplicaConfig(
            id=other.name,
            address=f"{other.address}:{PORT}",
            raft_address=f"{other.address}:{RAFT_PORT}",
        )
        for other in world.hosts.values()
    ]
    return BrokerConfig(
        replica_id=host.name,
        replicas=replicas,
        data_directory=state_directory(world) / host.name,
        broker_name=BROKER_NAME,
        listen_host=host.address,
        nameservers=[f"{NAMESERVER}:{NAMESERVER_PORT}"],
        default_queue_count=QUEUES,
        raft=world.raft_config(),
        store=StoreSection(
            segment_bytes=world.plan.segment_bytes,
            tail_cache_bytes=64 * 1024,
            disk_free_min_bytes=1024 * 1024,
            map_bytes=MAP_BYTES,
        ),
        limits=LimitsSection(),
        timing=TimingSection(),
        transactions=TransactionsSection(immunity_s=2.0, check_interval_s=2.0),
    )


class Client:
    """One client machine: a producer and a consumer in one process."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        name = f"c{number}"
        world.network.add_machine(name, f"10.0.2.{number + 1}")
        self.process = Process(world.loop, name, name)
        self.clock = HostClock(world.loop)
        self.random = Random(f"client/{world.plan.seed}/{number}")
        self.nameserver = f"{NAMESERVER}:{NAMESERVER_PORT}"
        self.session = self.session_named("0")
        self.producer_config = producer_config(self.session, retries=world.plan.retries)
        self.unique_keys = UniqueKeyGenerator(
            self.clock, pid=number, ip="10.0.2.1", random_bytes=self.random.randbytes
        )
        self.producer = AsyncProducer(
            "sim-producers",
            nameserver=self.nameserver,
            config=self.producer_config,
            clock=self.clock,
            unique_keys=self.unique_keys,
        )
        self.consumer = AsyncPullConsumer(
            "sim-consumers",
            nameserver=self.nameserver,
            config=PullConsumerConfig(session=self.session),
            clock=self.clock,
        )

    def session_named(self, name: str) -> SessionConfig:
        """Returns the settings of a session that the seed names."""
        client_id = f"{self.process.name}@1#{name}"
        return SessionConfig(client_id=client_id, heartbeat_s=5.0, route_poll_s=5.0)

    async def start(self) -> None:
        """Starts both."""
        await self.producer.start()
        await self.consumer.start()


def producer_config(session: SessionConfig, *, retries: bool) -> ProducerConfig:
    """Returns the producers' settings."""
    return ProducerConfig(
        send_timeout_s=4.0,
        attempt_timeout_s=2.0,
        retry_unknown=retries,
        default_topic_queue_count=QUEUES,
        session=session,
    )


class BrokerClients:
    """All clients, the nameserver, and what they saw."""

    client_class: type[Client] = Client

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged = 0
        self.progress_at = 0.0
        self._next_process = 0
        world.network.add_machine("ns", NAMESERVER)
        self._nameserver = Process(world.loop, "ns", "ns")
        self.clients = [self.client_class(world, number) for number in range(world.plan.clients)]
        self._features = [KINDS[name](self) for name in self._chosen()]
        self.queues = [MessageQueue(TOPIC, BROKER_NAME, number) for number in range(QUEUES)]

    def close_files(self) -> None:
        """Removes the directory of the LMDB environments."""
        path = getattr(self.world, "directory", None)
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)

    async def prepare(self) -> None:
        """Starts nameserver and clients, and sends the message that creates the topic."""
        world = self.world
        nameserver = NameserverServer(
            NameserverConfig(host=NAMESERVER, port=NAMESERVER_PORT), HostClock(world.loop)
        )
        await self._nameserver.spawn(nameserver.start())
        for client in self.clients:
            await client.process.spawn(client.start())
        deadline = world.loop.time() + 20.0
        while not self.acknowledged:
            if world.loop.time() > deadline:
                raise LivenessError("no first message was acknowledged within 20 s")
            await self._run(self.clients[0], self._append(self.clients[0], self.process(), 0, 0))
            await asyncio.sleep(0.05)
        for feature in self._features:
            await feature.start()

    def _chosen(self) -> list[str]:
        plan = self.world.plan
        # A delay counts by the clock of the leader: with jumping clocks nothing can be demanded.
        jumps = "clock-jump" in plan.weights
        chosen = {name for name in plan.features if not (jumps and name == "delays")}
        if "delays" in chosen:
            chosen.add("group")  # when a message comes, only who waits for it can tell
        return sorted(chosen, key=("offsets", "transactions", "delays", "group").index)

    def topics(self) -> list[str]:
        """Returns the topics of the run."""
        return [TOPIC, *(topic for feature in self._features for topic in feature.topics)]

    def process(self) -> int:
        """Returns a new process number of the history."""
        self._next_process += 1
        return self._next_process

    async def run(self, until: float) -> None:
        """Runs all clients until then."""
        lanes = [
            client.process.spawn(self._lane(client, lane, until))
            for client in self.clients
            for lane in range(self.world.plan.window)
        ]
        lanes += [
            client.process.spawn(work)
            for feature in self._features
            for client, work in feature.work(until)
        ]
        await asyncio.gather(*lanes)

    async def settle(self) -> None:
        """Brings to an end what clients do beside sending and reading."""
        for feature in self._features:
            try:
                await feature.settle()
            except LivenessError as error:
                self.world.oracle.violated("liveness", str(error))  # what it left is still read

    async def _lane(self, client: Client, lane: int, until: float) -> None:
        """One operation after another."""
        world, plan = self.world, self.world.plan
        random = Random(f"lane/{plan.seed}/{client.process.name}/{lane}")
        process, sequence = self.process(), 0
        while world.loop.time() < until:
            await asyncio.sleep(random.expovariate(plan.rate / (plan.clients * plan.window)))
            choice = random.random()
            queue = random.randrange(QUEUES)
            if choice < 0.15:
                await self._length(client, process, queue)
            elif choice < 0.3 and lane == 0:
                await self._pull(client, process, queue, random)
            else:
                sequence += 1
                padding = random.randrange(plan.body_bytes)
                if not await self._append(client, process, sequence, padding, queue):
                    process, sequence = self.process(), 0

    async def _append(
        self, client: Client, process: int, sequence: int, padding: int, queue: int = 0
    ) -> bool:
        world = self.world
        value = make_value(process, sequence)
        begin = world.now_ns()
        offset, error = None, ""
        status: Any = "ok"
        body = value.to_bytes(8, "big") + bytes(padding)
        try:
            result = await client.producer.send(Message(TOPIC, body), queue=self.queues[queue])
            offset = result.queue_offset
            self.acknowledged += 1
            self.progress_at = world.loop.time()
            world.on_acknowledged()
        except DLedgerError as exc:
            status, error = ("fail" if definite(exc) else "info"), f"{type(exc).__name__}: {exc}"
        world.trace.note(client.process.name, f"send {value} {queue} {status} {offset} {error}")
        world.history.append(
            Append(
                process=process,
                queue=self._name(queue),
                value=value,
                inv=begin,
                ret=world.now_ns(),
                status=status,
                offset=offset,
                error=error,
            )
        )
        return bool(status != "info")

    async def _length(self, client: Client, process: int, queue: int) -> None:
        """Asks the leader how long a queue is; linearizable."""
        world = self.world
        begin = world.now_ns()
        end, error = None, ""
        status: Any = "ok"
        try:
            end = await client.consumer.offset_max(self.queues[queue])
        except DLedgerError as exc:
            status, error = "fail", str(exc)
        world.history.append(
            Read(
                process=process,
                queue=self._name(queue),
                inv=begin,
                ret=world.now_ns(),
                status=status,
                end=end,
                error=error,
            )
        )

    async def _pull(self, client: Client, process: int, queue: int, random: Random) -> None:
        """Pulls from any replica: may be stale, never from the future, never uncommitted."""
        world = self.world
        begin = world.now_ns()
        consumer, name = client.consumer, self.queues[queue]
        status: Any = "ok"
        start, first, error = 0, None, ""
        values: list[Value] = []
        try:
            consumer.seek(name, await consumer.position(name))
            start = await consumer.position(name)
            if random.random() < 0.5:
                start = random.randrange(start + 1)
                consumer.seek(name, start)
            messages = await consumer.pull(name, count_max=32, timeout_s=0.2)
            values = [int.from_bytes(message.body[:8], "big") for message in messages]
            first = messages[0].queue_offset if messages else None
        except DLedgerError as exc:
            status, error = "fail", str(exc)
        world.history.append(
            Read(
                process=process,
                queue=self._name(queue),
                inv=begin,
                ret=world.now_ns(),
                status=status,
                start=start,
                max=32,
                first=first,
                values=values,
                eventual=True,
                error=error,
            )
        )

    async def prove_progress(self, deadline: float) -> None:
        """Sends from every client until each was acknowledged once, or time is over."""
        world = self.world

        async def prove(client: Client) -> None:
            while world.loop.time() < deadline:
                if await self._append(client, self.process(), 0, 8):
                    last = world.history[-1]
                    if isinstance(last, Append) and last.status == "ok":
                        return
                await asyncio.sleep(0.05)
            raise LivenessError(f"{client.process.name} got nothing acknowledged after healing")

        for client in self.clients:
            await self._run(client, prove(client))

    async def _run(self, client: Client, work: Any) -> Any:
        return await client.process.spawn(work)

    async def final_reads(self) -> None:
        """Reads every queue from every replica's state and log, and compares their states."""
        world = self.world
        digests = {}
        for host in world.healthy():
            try:
                digests[host.name] = self._read_all(host)
            except CorruptRecordError as error:
                if not host.damaged:
                    raise
                host.refused = str(error)  # a sealed segment is checked when it is read
        if len(set(digests.values())) > 1:
            world.oracle.violated("state-digest", f"replicas differ: {digests}")

    def _read_all(self, host: Host) -> str:
        """Reads every queue of a replica; returns the digest of its state."""
        store = host.app.broker.store
        for name in self.topics():
            topic = store.topic(name)
            for queue in range(QUEUES if topic is not None else 0):
                self._read_queue(host, name, topic, queue)
        return str(store.digest())

    def _read_queue(self, host: Host, name: str, topic: Any, queue: int) -> None:
        world = self.world
        store, log = host.app.broker.store, host.app.broker.log
        low, high = store.queue_bounds(topic.topic_id, queue)
        units = store.read_units(topic.topic_id, queue, low, high - low) if high > low else []
        values: list[Value] = [
            _value_of(log.read(unit.physical_offset, unit.size_bytes)) for unit in units
        ]
        now = world.now_ns()
        world.history.append(
            Read(
                process=self.process(),
                queue=queue_name(name, BROKER_NAME, queue),
                inv=now,
                ret=now + 1,
                status="ok",
                start=low,
                max=len(values) + 1,
                values=values,
                end=high,
                whole=True,
                final=True,
                node=host.name,
            )
        )

    def _name(self, queue: int) -> str:
        return queue_name(TOPIC, BROKER_NAME, queue)


def _value_of(data: memoryview) -> int:
    return int.from_bytes(decode_stored(data, verify_crc=True).body[:8], "big")
