"""Makes the parts of a broker that serve requests: what they share, and one processor a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from broker.appender import Appender, AppenderConfig
from broker.catalog import Catalog
from broker.config import BrokerConfig
from broker.consumers import ClientRegistry
from broker.context import BrokerContext
from broker.delays import Delays
from broker.gate import WriteGate
from broker.intake import MessageIntake
from broker.live_settings import LiveSettings
from broker.locks import LockClock
from broker.long_polls import LongPolls
from broker.messages import MessageReader
from broker.offset_commits import OffsetCommits
from broker.parts import pack_store_host
from broker.popping import Popping, make_popping
from broker.processors.assignment import AssignmentProcessor
from broker.processors.clients import ClientProcessor
from broker.processors.groups import GroupProcessor
from broker.processors.info import InfoProcessor
from broker.processors.inspection import InspectionProcessor
from broker.processors.locks import LockProcessor
from broker.processors.offsets import OffsetProcessor
from broker.processors.pull import PullProcessor
from broker.processors.queries import QueryProcessor
from broker.processors.recall import RecallProcessor
from broker.processors.relays import RelayProcessor
from broker.processors.replicas import ReplicaProcessor
from broker.processors.reply import ReplyProcessor
from broker.processors.resets import ResetProcessor
from broker.processors.send import SendProcessor
from broker.processors.send_back import SendBackProcessor
from broker.processors.settings import SettingsProcessor
from broker.processors.statistics import StatisticsProcessor
from broker.processors.topics import TopicProcessor
from broker.processors.transactions import TransactionProcessor
from broker.routes import Processors
from broker.statistics import Statistics
from broker.stores import Stores
from broker.tasks import Tasks
from broker.timers import TimerDelivery
from broker.transaction_service import TransactionService
from dledger.clock import Clock
from dledger.message import UniqueKeyGenerator
from dledger.raft.node import RaftNode
from dledger.remoting.client import RemotingClient
from dledger.remoting.commands import Command
from dledger.remoting.server import Connection

REQUEST_BYTES_MAX = 6 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Services:
    """What several processors use; the processors among them are used by others, too."""

    context: BrokerContext
    client: RemotingClient
    catalog: Catalog
    live: LiveSettings
    commits: OffsetCommits
    reader: MessageReader
    intake: MessageIntake
    delays: Delays
    timers: TimerDelivery
    transactions: TransactionService
    lock_clock: LockClock
    clients: ClientProcessor
    resets: ResetProcessor
    popping: Popping
    store_host: bytes
    redirect: Callable[[Connection, Command], None]


def make_context(
    config: BrokerConfig,
    clock: Clock,
    stores: Stores,
    raft: RaftNode,
    tasks: Tasks,
    *,
    on_fatal: Callable[[BaseException], None],
    port: int,
    disk_free_bytes: int,
) -> BrokerContext:
    """Returns what every part of a broker knows.

    Args:
        config: Checked settings.
        clock: The broker's.
        stores: Log and state, open.
        raft: The node over them.
        tasks: The broker's background work.
        on_fatal: Ends the broker.
        port: Bound for clients.
        disk_free_bytes: Room on the data's disk now.
    """
    limits, timing = config.limits, config.timing
    host, port = config.advertised_address(port)
    gate = WriteGate(
        raft,
        disk_free_min_bytes=config.store.disk_free_min_bytes,
        pending_bytes_max=limits.pending_bytes_max,
    )
    gate.observe_disk(disk_free_bytes)
    appender_config = AppenderConfig(
        pending_bytes_max=limits.pending_bytes_max,
        request_bytes_max=min(REQUEST_BYTES_MAX, config.raft.entry_bytes_max),
        lanes=config.idempotence,
    )
    return BrokerContext(
        config=config,
        clock=clock,
        store=stores.store,
        log=stores.log,
        raft=raft,
        appender=Appender(raft, stores.store, appender_config, clock),
        gate=gate,
        clients=ClientRegistry(
            expiry_ms=int(timing.client_expiry_s * 1000),
            groups_max=limits.groups_max,
            members_max=limits.members_max,
        ),
        long_polls=LongPolls(
            parked_max=limits.parked_pulls_max,
            parked_per_owner_max=limits.parked_pulls_per_connection_max,
        ),
        tasks=tasks,
        on_fatal=on_fatal,
        host=host,
        port=port,
        boot_ms=clock.wall_ms(),
        statistics=Statistics(clock.monotonic(), clock.wall_ms()),
    )


def make_services(
    context: BrokerContext,
    stores: Stores,
    client: RemotingClient,
    catalog: Catalog,
    commits: OffsetCommits,
    *,
    unique_keys: UniqueKeyGenerator,
    redirect: Callable[[Connection, Command], None],
) -> Services:
    """Returns the services of a broker; its settings are those of the group from here on.

    Args:
        context: What every part knows.
        stores: Log and state.
        client: Speaks with other replicas and nameservers.
        catalog: Topics and groups.
        commits: Gathers consumer offsets.
        unique_keys: Ids for messages that come without one.
        redirect: Takes a request that had no effect because this replica stopped leading.
    """
    config, store = context.config, stores.store
    live = LiveSettings(config, store.rows)
    context.config = live.current()
    reader = MessageReader(store, stores.log)
    store_host = pack_store_host(context.host, context.port)
    intake = MessageIntake(
        cluster_name=config.cluster_name, store_host=store_host, new_unique_key=unique_keys
    )
    resets = ResetProcessor(context, catalog, reader)
    clients = ClientProcessor(context, catalog)
    return Services(
        context=context,
        client=client,
        catalog=catalog,
        live=live,
        commits=commits,
        reader=reader,
        intake=intake,
        delays=Delays(config.timers, store, context.clock, broker_name=config.broker_name),
        timers=TimerDelivery(
            store, context.raft, context.appender, context.clock, on_fatal=context.on_fatal
        ),
        transactions=TransactionService(context, catalog, intake, clients, store_host=store_host),
        lock_clock=LockClock(store.rows, context.clock),
        clients=clients,
        resets=resets,
        popping=make_popping(
            context, catalog, reader, resets.pending, store_host=store_host, redirect=redirect
        ),
        store_host=store_host,
        redirect=redirect,
    )


def make_processors(services: Services) -> Processors:
    """Returns one processor of each family."""
    s = services
    context, catalog, reader = s.context, s.catalog, s.reader
    offsets = OffsetProcessor(
        context, catalog, s.commits, reader, s.resets.pending, redirect=s.redirect
    )
    return Processors(
        send=SendProcessor(
            context,
            catalog,
            s.intake,
            s.delays,
            s.transactions,
            store_host=s.store_host,
            redirect=s.redirect,
        ),
        send_back=SendBackProcessor(
            context, catalog, reader, s.delays, store_host=s.store_host, redirect=s.redirect
        ),
        recall=RecallProcessor(context, s.timers),
        reply=ReplyProcessor(context, s.clients),
        pull=PullProcessor(context, catalog, offsets.commit_from_pull, s.resets.pending),
        offsets=offsets,
        clients=s.clients,
        topics=TopicProcessor(context, reader),
        groups=GroupProcessor(context),
        queries=QueryProcessor(context, reader),
        info=InfoProcessor(context),
        replicas=ReplicaProcessor(context),
        locks=LockProcessor(context, s.lock_clock),
        transactions=TransactionProcessor(context, s.transactions),
        resets=s.resets,
        assignment=AssignmentProcessor(context, catalog, s.client, s.clients.shares_changed),
        statistics=StatisticsProcessor(context, reader),
        inspection=InspectionProcessor(context, reader),
        relays=RelayProcessor(context, reader, s.clients),
        settings=SettingsProcessor(context, s.live),
        pop=s.popping.pops,
        pop_acks=s.popping.acks,
    )
