"""One broker replica: puts log, state, Raft and remoting server together and ends them again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random as random_module
from collections.abc import Callable

from broker.assembly import make_context, make_processors, make_services
from broker.catalog import Catalog
from broker.commands import encode_digest
from broker.config import BrokerConfig
from broker.context import BrokerContext
from broker.dispatcher import Dispatcher
from broker.forwarding import Forwarder, ForwarderLimits
from broker.full_disk import RoomQuestions, leave_full_disk
from broker.housekeeping import expire_clients, sample_statistics, watch_disk
from broker.installing import Installer
from broker.leadership import hand_over, prefer_leader
from broker.maintenance import Maintenance, MaintenanceThread
from broker.metrics import BrokerMetrics
from broker.metrics_server import MetricsServer
from broker.offset_commits import OffsetCommits
from broker.parts import BrokerNotReadyError, Parts
from broker.registration import Registrar
from broker.replication import make_raft
from broker.retention import Retention
from broker.routes import make_routes
from broker.shared_address import SharedAddress
from broker.snapshotting import Snapshotter
from broker.state_machine import AppliedEffects, BrokerStateMachine
from broker.stores import Stores, open_stores
from broker.tasks import Tasks
from dledger.clock import Clock, SystemClock
from dledger.errors import ConfigError, DiskFailureError, DLedgerError
from dledger.message import UniqueKeyGenerator
from dledger.raft.engine import Engine
from dledger.raft.node import RaftNode
from dledger.raft.transport import TcpTransport
from dledger.remoting.client import ClientConnection, RemotingClient
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection, RemotingServer, ServerConfig
from store.clean_mark import machine_boot_id
from store.commit_log import CommitLog
from store.files import FileSystem, OsFileSystem
from store.state_store import StateStore
from store.sync_worker import SyncWorker

logger = logging.getLogger(__name__)

UNREGISTER_S = 0.5


class Broker:
    """One replica. `start` it, wait for `failure`, `stop` it; each once.

    Satisfies `remoting.server.Handler` and `RaftListener`.
    """

    def __init__(
        self,
        config: BrokerConfig,
        *,
        clock: Clock | None = None,
        fs: FileSystem | None = None,
        random: random_module.Random | None = None,
        maintenance: Maintenance | None = None,
        sync_worker: SyncWorker | None = None,
        boot_id: Callable[[], str] = machine_boot_id,
        unique_keys: UniqueKeyGenerator | None = None,
        engine_class: type[Engine] = Engine,
        transport_class: type[TcpTransport] = TcpTransport,
    ) -> None:
        """Prepares a broker; nothing is opened yet.

        Args:
            config: Checked settings.
            clock: The machine's if None.
            fs: What the CommitLog writes through; the operating system's if None.
            random: For election timeouts; seeded by the operating system if None.
            maintenance: Where long work is done; a thread of its own if None.
            sync_worker: Makes the CommitLog durable; a thread if None.
            boot_id: Changes whenever the machine boots: then the state is rebuilt from the log.
            unique_keys: Ids for messages that come without one.
            engine_class: For the fault-injection harness, which plants faults in subclasses.
            transport_class: Carries Raft's messages; tests cut links in a subclass.
        """
        self.config = config
        self._clock = clock or SystemClock()
        self._fs = fs or OsFileSystem()
        self._random = random or random_module.Random()
        self._maintenance = maintenance or MaintenanceThread()
        self._sync_worker = sync_worker
        self._boot_id = boot_id
        self._unique_keys = unique_keys or UniqueKeyGenerator()
        self._engine_class = engine_class
        self._transport_class = transport_class
        self._tasks = Tasks(self._on_fatal)
        self._parts: Parts | None = None
        self._dispatcher: Dispatcher | None = None
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        limits, timing = config.limits, config.timing
        server_config = ServerConfig(
            frame_bytes_max=limits.frame_bytes_max,
            inflight_max=limits.inflight_per_connection_max,
            connections_max=limits.connections_max,
            idle_timeout_s=timing.idle_timeout_s,
        )
        self._server = RemotingServer(self, server_config)

    @property
    def port(self) -> int:
        """The port bound for clients."""
        return self._server.port

    @property
    def metrics_port(self) -> int:
        """The port bound for metrics; 0 without one."""
        return self._require().metrics.port

    @property
    def address(self) -> str:
        """Where clients reach this replica."""
        return self._require().context.address

    @property
    def raft(self) -> RaftNode:
        """This replica's part in the group."""
        return self._require().raft

    @property
    def store(self) -> StateStore:
        """The state as applied here."""
        return self._require().store

    @property
    def log(self) -> CommitLog:
        """The CommitLog."""
        return self._require().log

    @property
    def failure(self) -> BaseException | None:
        """Why this replica must not go on; None while all is well."""
        return self._failure

    async def wait_failed(self) -> BaseException:
        """Waits until the replica must not go on, and says why."""
        await self._failed.wait()
        return self._failure or DiskFailureError("unknown failure")

    # --- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens log and state, listens for clients and joins the Raft group.

        Raises:
            ConfigError: An address cannot be bound or resolved.
            DataDirectoryLockedError: Another process uses the directory.
            CorruptRecordError: The log is damaged; nothing was changed.
            StoreError: The directory cannot be used.

        On an exception everything that was opened is closed again.
        """
        config = self.config
        stores: Stores | None = None
        try:
            stores = self._open_stores()
            # Bound before Raft begins: a replica whose clients cannot reach it must not lead.
            await self._server.start(config.listen_host, config.port)
            parts = self._parts = self._assemble(stores)
            if config.metrics_port is not None:
                await parts.metrics.start(config.listen_host, config.metrics_port)
            await self._start_raft(parts)
        except BaseException:
            await self._server.stop(0)
            await self._tasks.close()
            if self._parts is not None:
                await self._parts.metrics.stop()
                await self._parts.client.close()
            self._maintenance.close()
            if stores is not None:
                stores.close(clean=True)
            raise
        self._spawn_housekeeping(parts)
        self._spawn_leadership(parts)
        self._tasks.spawn(parts.transactions.run(), "transactions")
        parts.registrar.start()
        logger.info(
            "broker ready: replica=%s address=%s raft_address=%s applied_index=%d",
            config.replica_id,
            parts.context.address,
            config.replica.raft_address,
            parts.store.applied_index,
        )

    async def stop(self) -> None:
        """Stops in the order in which nothing is lost: clients, Raft, log, state.

        After a failure nothing is marked as clean.
        """
        parts = self._parts
        if parts is None:
            return
        if self._failure is None:
            # Clients are served meanwhile; what needs a leader is forwarded to the new one.
            await hand_over(parts.raft)
            await parts.registrar.stop(UNREGISTER_S)
        await self._end(parts, is_orderly=self._failure is None)

    async def crash(self) -> None:
        """Ends as a killed process does: nobody is told, nothing is marked as clean. For tests."""
        if self._parts is not None:
            self._parts.raft.crash()
            await self._end(self._parts, is_orderly=False)

    async def _end(self, parts: Parts, *, is_orderly: bool) -> None:
        parts.pulls.close()
        parts.popping.pops.close()
        parts.commits.close()
        parts.timers.close()
        parts.clients.close()
        await self._server.stop(self.config.timing.drain_s if is_orderly else 0)
        await parts.raft.stop()
        await self._tasks.close()
        await parts.metrics.stop()
        await parts.client.close()
        await parts.installer.close()
        # A copy that is being made reads the state.
        self._maintenance.close()
        parts.stores.close(clean=is_orderly)
        self._parts = None
        logger.info("broker stopped: replica=%s", self.config.replica_id)

    # --- remoting.server.Handler --------------------------------------------------------------

    def handle(self, connection: Connection, command: Command) -> None:
        """Takes a client's request."""
        if self._dispatcher is None:
            connection.reply_error(command, BrokerNotReadyError("the broker is starting"))
        else:
            self._dispatcher.handle(connection, command)

    def connection_lost(self, connection: Connection) -> None:
        """Forgets what belonged to a connection."""
        parts = self._parts
        if parts is not None:
            parts.pulls.connection_lost(connection)
            parts.popping.pops.connection_lost(connection)
            parts.clients.connection_lost(connection)

    # --- RaftListener -------------------------------------------------------------------------

    def on_serving(self, term: int) -> None:
        """Creates the system topics that are missing and tells members whom to ask."""
        parts = self._parts
        if parts is None:
            return
        for topic in parts.catalog.system_topics():
            if parts.store.topic(topic.name) is None:
                parts.catalog.ensure_topic_soon(topic)
        parts.clients.notify_all()

    def on_stopped_serving(self) -> None:
        """Does nothing: each part listens for itself."""

    def on_leader_changed(self, leader_id: str | None, term: int) -> None:
        """Does nothing."""

    # --- inside -------------------------------------------------------------------------------

    def _require(self) -> Parts:
        if self._parts is None:
            raise BrokerNotReadyError("the broker does not run")
        return self._parts

    def _on_fatal(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            logger.critical("stopping: %s", error)
            self._failed.set()

    def _open_stores(self) -> Stores:
        return open_stores(
            self.config,
            self._fs,
            self._clock,
            sync_worker=self._sync_worker,
            boot_id=self._boot_id,
        )

    def _assemble(self, stores: Stores) -> Parts:
        config, clock = self.config, self._clock
        log, store = stores.log, stores.store
        machine = BrokerStateMachine(store, self._on_applied, digest_entries=config.digest_entries)
        installer = self._make_installer(stores)
        raft = self._make_raft(log, machine, installer)
        context = make_context(
            config,
            clock,
            stores,
            raft,
            self._tasks,
            on_fatal=self._on_fatal,
            port=self._server.port,
            disk_free_bytes=self._fs.free_bytes(config.data_directory),
        )
        return self._connect(context, raft, stores, installer)

    def _make_installer(self, stores: Stores) -> Installer:
        return Installer(
            self.config.data_directory,
            stores.log,
            stores.store,
            stores.snapshots,
            self._maintenance,
            stores.catching_up,
        )

    def _make_raft(
        self, log: CommitLog, machine: BrokerStateMachine, installer: Installer
    ) -> RaftNode:
        return make_raft(
            self.config,
            log,
            machine,
            installer,
            clock=self._clock,
            random=self._random,
            on_fatal=self._on_fatal,
            engine_class=self._engine_class,
            transport_class=self._transport_class,
        )

    def _connect(
        self, context: BrokerContext, raft: RaftNode, stores: Stores, installer: Installer
    ) -> Parts:
        config = self.config
        client = RemotingClient(on_connection_lost=self._on_client_connection_lost)
        catalog = Catalog(lambda: context.config, stores.store, raft, context.gate)
        commits = OffsetCommits(raft, context.gate, gather_ms=config.timing.offset_gather_ms)
        dispatcher = Dispatcher(
            is_serving=lambda: raft.is_serving, tasks=self._tasks, on_fatal=self._on_fatal
        )
        forwarder = self._make_forwarder(context, raft, client, dispatcher)
        services = make_services(
            context,
            stores,
            client,
            catalog,
            commits,
            unique_keys=self._unique_keys,
            redirect=dispatcher.redirect,
        )
        processors = make_processors(services)
        dispatcher.connect(make_routes(processors, dispatcher.background), forwarder)
        shared = SharedAddress(config.shared_address, self._server, self._tasks)
        registrar = Registrar(context, catalog, client, config.nameservers, shared)
        popping = services.popping
        listeners = (
            services.lock_clock,
            services.transactions,
            forwarder,
            registrar,
            shared,
            services.timers,
            services.clients,
            popping.dead_letters,
            popping.pops,
            self,
        )
        for listener in listeners:
            raft.add_listener(listener)
        self._dispatcher = dispatcher
        self._server.take_run = processors.send.short.take
        installer.on_installed(self._on_installed)
        return Parts(
            context=context,
            raft=raft,
            stores=stores,
            installer=installer,
            client=client,
            catalog=catalog,
            commits=commits,
            pulls=processors.pull,
            popping=popping,
            clients=services.clients,
            registrar=registrar,
            timers=services.timers,
            transactions=services.transactions,
            live=services.live,
            metrics=MetricsServer(BrokerMetrics(context).text),
        )

    def _on_installed(self) -> None:
        """Takes note that the whole state was replaced."""
        parts = self._parts
        if parts is not None:
            parts.context.config = parts.live.current()
            parts.registrar.topics_changed()
            parts.pulls.topics_changed()
            parts.popping.pops.topics_changed()

    def _make_forwarder(
        self,
        context: BrokerContext,
        raft: RaftNode,
        client: RemotingClient,
        dispatcher: Dispatcher,
    ) -> Forwarder:
        limits, timing = self.config.limits, self.config.timing
        return Forwarder(
            raft,
            client,
            self._tasks,
            replica_id=self.config.replica_id,
            address_of=context.address_of,
            handle_here=dispatcher.handle,
            counters=context.counters,
            limits=ForwarderLimits(
                wait_s=timing.forward_wait_s,
                timeout_s=timing.forward_timeout_s,
                count_max=limits.forwards_max,
                bytes_max=limits.forward_bytes_max,
            ),
        )

    async def _start_raft(self, parts: Parts) -> None:
        try:
            await parts.raft.start()
        except OSError as error:
            address = self.config.replica.raft_address
            raise ConfigError("raft_address", address, f"cannot listen: {error}") from error

    def _on_applied(self, effects: AppliedEffects) -> None:
        """Takes note of what an apply has changed. Called by the state machine, on the loop."""
        parts = self._parts
        if parts is None:
            return
        if effects.queues:
            parts.pulls.queues_grew(effects.queues)
            parts.popping.pops.queues_grew(effects.queues)
        if effects.checkpoint is not None:
            # Not from within an apply.
            asyncio.get_running_loop().call_soon(self._log_digest, *effects.checkpoint)
        if effects.timers_due_ms is not None:
            parts.timers.parked(effects.timers_due_ms)
        if effects.settings:
            parts.context.config = parts.live.current()
        if effects.resets or effects.topics or effects.groups:
            parts.pulls.queues_reset(effects.resets)
        if effects.topics:
            parts.registrar.topics_changed()
            parts.pulls.topics_changed()
            parts.popping.pops.topics_changed()

    def _log_digest(self, index: int, digest: bytes) -> None:
        """On the leader: lets every replica compare its state after that entry with this one's."""
        parts = self._parts
        if parts is None or not parts.raft.is_serving:
            return
        with contextlib.suppress(DLedgerError):  # the next one will do
            parts.raft.propose(encode_digest(index, digest), lambda _result, _error: None)

    def _on_client_connection_lost(self, connection: ClientConnection) -> None:
        if self._parts is not None:
            self._parts.registrar.connection_lost(connection.address)

    def _spawn_leadership(self, parts: Parts) -> None:
        config, gate = self.config, parts.context.gate
        has_room = RoomQuestions(parts.client, parts.context.address_of).has_room
        leaving = leave_full_disk(
            parts.raft, lambda: gate.has_room_to_lead, has_room, config.timing.disk_check_s
        )
        self._tasks.spawn(leaving, "leave-full-disk")
        if config.preferred_leader is not None:
            stable_s = config.timing.preferred_leader_stable_s
            preferred = prefer_leader(
                parts.raft, config.preferred_leader, self._clock, stable_s, has_room
            )
            self._tasks.spawn(preferred, "prefer-leader")

    def _spawn_housekeeping(self, parts: Parts) -> None:
        self._tasks.spawn(watch_disk(parts.context, self._fs), "watch-disk")
        self._tasks.spawn(expire_clients(parts.clients), "expire-clients")
        self._tasks.spawn(sample_statistics(parts.context), "statistics")
        snapshotter = Snapshotter(parts.stores, self._maintenance)
        interval_s = self.config.store.snapshot_interval_s
        self._tasks.spawn(snapshotter.run(interval_s), "snapshots")
        retention = Retention(parts.context, parts.stores, snapshotter, self._maintenance, self._fs)
        self._tasks.spawn(retention.run(self.config.timing.retention_check_s), "retention")
