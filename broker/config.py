"""Configuration of one broker replica, as read from `broker.toml`.

The records check themselves: a wrong value raises `ConfigError`, which names the field, the value
and the rule. Fields that must be equal on every replica of a group are marked *group*.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from broker.delay_rules import DEFAULT_LEVELS, parse_levels
from dledger.codes import FRAME_BYTES_MAX, MESSAGE_BODY_BYTES_MAX
from dledger.config import load_config
from dledger.errors import ConfigError
from dledger.raft.config import RaftConfig
from store.producer_lanes import LaneLimits

NAME = re.compile(r"[A-Za-z0-9_-]{1,127}")
# Identifiers of replicas become file and log names elsewhere: letters, digits, dots, dashes.
REPLICA_ID = re.compile(r"[A-Za-z0-9_.-]{1,127}")
GROUP_SIZE_MAX = 9


def parse_address(text: str, name: str = "address") -> tuple[str, int]:
    """Splits `host:port`.

    Raises:
        ConfigError: There is no host or no port in 0..65535.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit():
        raise ConfigError(name, text, "must be host:port")
    if int(port) > 65_535:
        raise ConfigError(name, text, "must have a port of at most 65535")
    return host, int(port)


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """One member of the Raft group.

    Attributes:
        id: Unique in the group.
        address: Where clients reach it; also part of every message id it issues.
        raft_address: Where the other replicas reach it.
    """

    id: str
    address: str
    raft_address: str

    def __post_init__(self) -> None:
        if not REPLICA_ID.fullmatch(self.id):
            raise ConfigError("id", self.id, "must be 1 to 127 letters, digits, '.', '_' or '-'")
        parse_address(self.address, "address")
        parse_address(self.raft_address, "raft_address")


@dataclass(frozen=True, kw_only=True)
class StoreSection:
    """The replica's disk.

    Attributes:
        segment_bytes: Size of one file of the CommitLog.
        flush: `sync`: a write counts as done when a majority has it on disk; `async`: when a
            majority has it in its page cache, synced every 200 ms.
        tail_cache_bytes: Newest entries kept in memory for followers.
        disk_free_min_bytes: Below this much free space writes are refused, reads go on. A new
            file of the log leaves twice as much, for everything else.
        map_bytes: First size of the LMDB map; it grows.
        retention_hours: *group*. Messages older than this may be dropped, a whole file of the log
            at a time.
        retention_bytes: *group*. Beyond this many bytes of log the oldest are dropped; 0: no limit.
        retention_free_bytes: With less free space than this the oldest are dropped as well,
            whatever their age. 0 switches this off.
        snapshot_interval_s: How often the state is copied and synced, for a restart after an
            unclean stop of the machine and for replicas that are far behind.
    """

    segment_bytes: int = 256 * 1024 * 1024
    flush: Literal["sync", "async"] = "sync"
    tail_cache_bytes: int = 16 * 1024 * 1024
    disk_free_min_bytes: int = 16 * 1024 * 1024
    map_bytes: int = 1024 * 1024 * 1024
    retention_hours: float = 72.0
    retention_bytes: int = 0
    retention_free_bytes: int = 64 * 1024 * 1024
    snapshot_interval_s: float = 300.0

    def __post_init__(self) -> None:
        _between("segment_bytes", self.segment_bytes, 64 * 1024, 2 * 1024**3)
        _between("tail_cache_bytes", self.tail_cache_bytes, 0, 16 * 1024**3)
        _at_least("disk_free_min_bytes", self.disk_free_min_bytes, 0)
        for name in ("retention_hours", "snapshot_interval_s"):
            if not 0 < getattr(self, name) <= 1_000_000:
                raise ConfigError(name, getattr(self, name), "must lie in (0, 1000000]")
        for name in ("retention_bytes", "retention_free_bytes"):
            _at_least(name, getattr(self, name), 0)
        _between("map_bytes", self.map_bytes, 1024 * 1024, 1 << 40)


@dataclass(frozen=True, kw_only=True)
class LimitsSection:
    """A bound for everything that grows. A request beyond one is refused, naming the limit.

    Attributes:
        frame_bytes_max: Largest frame a client may send.
        connections_max: Client connections.
        inflight_per_connection_max: Unanswered requests of one connection, parked pulls included;
            beyond it the connection is not read.
        pending_bytes_max: Bytes of messages on their way to a majority.
        parked_pulls_max: Pulls waiting for messages.
        parked_pulls_per_connection_max: The same of one connection.
        pull_bytes_max: Largest body of a pull's answer that a client may ask for.
        pull_count_max: Most messages of a pull's answer that a client may ask for.
        queue_count_max: Queues of one topic.
        topics_max: Topics, retry topics included.
        groups_max: Consumer groups, and producer groups known from heartbeats.
        members_max: Registrations of clients in groups.
        forwards_max: Requests a follower holds or has forwarded at once.
        forward_bytes_max: The bytes of these.
    """

    frame_bytes_max: int = FRAME_BYTES_MAX
    connections_max: int = 4096
    inflight_per_connection_max: int = 4096
    pending_bytes_max: int = 32 * 1024 * 1024
    parked_pulls_max: int = 20_000
    parked_pulls_per_connection_max: int = 2048
    pull_bytes_max: int = 4 * 1024 * 1024
    pull_count_max: int = 4096
    queue_count_max: int = 1024
    topics_max: int = 20_000
    groups_max: int = 20_000
    members_max: int = 100_000
    forwards_max: int = 10_000
    forward_bytes_max: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _at_least(name, value, 1)
        # A frame holds a batch of messages, its header and the properties.
        floor = MESSAGE_BODY_BYTES_MAX + 64 * 1024
        if not floor <= self.frame_bytes_max <= FRAME_BYTES_MAX:
            rule = f"must lie in {floor}..{FRAME_BYTES_MAX}"
            raise ConfigError("frame_bytes_max", self.frame_bytes_max, rule)
        if self.parked_pulls_per_connection_max >= self.inflight_per_connection_max:
            # Otherwise parked pulls alone could stop a connection's heartbeats from being read.
            rule = "must be less than inflight_per_connection_max"
            value = self.parked_pulls_per_connection_max
            raise ConfigError("parked_pulls_per_connection_max", value, rule)


@dataclass(frozen=True, kw_only=True)
class TimingSection:
    """Intervals and deadlines.

    Attributes:
        register_interval_s: How often the replica registers with each nameserver.
        register_timeout_s: How long one registration may take.
        forward_wait_s: How long a follower holds a request while there is no leader.
        forward_timeout_s: How long it waits for the leader's answer.
        offset_gather_ms: Consumer offsets gather this long before they become one entry.
        client_expiry_s: A client without a heartbeat for this long has left.
        idle_timeout_s: A connection without traffic for this long is closed.
        suspend_max_s: Longest time a pull is held, whatever the client asks.
        disk_check_s: How often free disk space is looked at.
        preferred_leader_stable_s: A preferred leader that came back leads again when it has been
            connected and caught up for this long.
        retention_check_s: How often old messages are looked for.
        retention_wait_s: A connected replica that has not taken the oldest of them for this long
            is not waited for any longer; it gets a snapshot when it goes on.
        drain_s: How long a stopping broker waits for requests under way.
    """

    register_interval_s: float = 10.0
    register_timeout_s: float = 3.0
    forward_wait_s: float = 2.0
    forward_timeout_s: float = 5.0
    offset_gather_ms: float = 3.0
    client_expiry_s: float = 120.0
    idle_timeout_s: float = 180.0
    suspend_max_s: float = 60.0
    disk_check_s: float = 1.0
    preferred_leader_stable_s: float = 10.0
    retention_check_s: float = 10.0
    retention_wait_s: float = 60.0
    drain_s: float = 2.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value <= 86_400_000:
                raise ConfigError(name, value, "must be greater than 0 and at most a day")
        if self.suspend_max_s >= self.idle_timeout_s:
            raise ConfigError(
                "suspend_max_s", self.suspend_max_s, "must be less than idle_timeout_s"
            )


@dataclass(frozen=True, kw_only=True)
class TimersSection:
    """Delayed messages.

    Attributes:
        delay_levels: *group*. Delays of levels 1, 2, …: numbers with a unit of s, m, h or d.
        delay_max_s: *group*. Longest delay that is not a level.
        pending_max: Messages that may wait at once; more are refused.
        pending_bytes_max: The room they may take in the state.
        recall_enable: Whether a waiting message may be taken back.
    """

    delay_levels: str = DEFAULT_LEVELS
    delay_max_s: int = 45 * 86_400
    pending_max: int = 10_000_000
    pending_bytes_max: int = 16 * 1024**3
    recall_enable: bool = True

    def __post_init__(self) -> None:
        parse_levels(self.delay_levels)
        _between("delay_max_s", self.delay_max_s, 1, 400 * 86_400)
        _at_least("pending_max", self.pending_max, 0)
        _at_least("pending_bytes_max", self.pending_bytes_max, 0)


@dataclass(frozen=True, kw_only=True)
class TransactionsSection:
    """When producers are asked about transactions that they have not ended.

    Attributes:
        immunity_s: Not before the half message is this old, unless it says otherwise.
        check_interval_s: And this long after the last time.
        check_max: So many questions that were sent; then it is given up, and its message moved to
            TRANS_CHECK_MAX_TIME_TOPIC.
        age_max_s: It is given up at this age too, whether or not there was anybody to ask.
    """

    immunity_s: float = 6.0
    check_interval_s: float = 30.0
    check_max: int = 15
    age_max_s: float = 72 * 3600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value <= 86_400_000:
                raise ConfigError(name, value, "must be greater than 0 and at most 86400000")


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """All that one replica needs to know.

    Attributes:
        cluster_name: *group*. The cluster this group belongs to.
        broker_name: *group*. The identity of this group of replicas towards clients.
        replica_id: Which of `replicas` this process is.
        replicas: *group*. Whom the group begins with, in the same order everywhere: the position is
            the number. Once the group has changed, its log says who belongs to it; a replica
            that was added later has itself here as well.
        data_directory: Holds `log/` and `state/`; one process at a time.
        listen_host: Address to bind for clients. Loopback unless told otherwise.
        listen_port: Port to bind for clients; 0 takes a free one (single replica only).
        metrics_port: Port on which Prometheus finds `/metrics`, at `listen_host`; none by default,
            0 takes a free one.
        advertised_host: Host in routes and message ids; by default the one in `replicas`.
        shared_address: *group*. An address that the leader takes over from the one before it, for
            clients that are not ours; none by default. It must be able to move: between processes
            of one machine, or with a virtual address.
        nameservers: Each is registered with on its own.
        auto_create_topics: *group*. A send may create its topic.
        auto_create_groups: *group*. A heartbeat may create its consumer groups.
        default_queue_count: *group*. Queues of the template topic TBW102.
        young_queue_bytes: A group without an offset starts at 0 rather than at the end of a queue
            whose first message lies within this many newest bytes of the log, as clients of
            RocketMQ expect ("still in memory" there). 0 switches this off.
        preferred_leader: *group*. The replica that should lead whenever it can, so that several
            groups spread their leaders; none by default.
        digest_entries: *group*. So many log entries lie between two comparisons of the replicas'
            states.
        log_level: Of the process's log on standard error.
        idempotence: What is remembered of producers. The leader's values hold for the group.
    """

    replica_id: str
    replicas: list[ReplicaConfig]
    data_directory: Path
    cluster_name: str = "DefaultCluster"
    broker_name: str = "broker-a"
    listen_host: str = "127.0.0.1"
    listen_port: int | None = None
    metrics_port: int | None = None
    advertised_host: str | None = None
    shared_address: str | None = None
    nameservers: list[str] = field(default_factory=list)
    auto_create_topics: bool = True
    auto_create_groups: bool = True
    default_queue_count: int = 8
    young_queue_bytes: int = 1024 * 1024 * 1024
    preferred_leader: str | None = None
    digest_entries: int = 1000
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    store: StoreSection = field(default_factory=StoreSection)
    raft: RaftConfig = field(default_factory=RaftConfig)
    limits: LimitsSection = field(default_factory=LimitsSection)
    timing: TimingSection = field(default_factory=TimingSection)
    timers: TimersSection = field(default_factory=TimersSection)
    transactions: TransactionsSection = field(default_factory=TransactionsSection)
    idempotence: LaneLimits = field(default_factory=LaneLimits)

    def __post_init__(self) -> None:
        for name in ("cluster_name", "broker_name"):
            if not NAME.fullmatch(getattr(self, name)):
                rule = "must be 1 to 127 letters, digits, '_' or '-'"
                raise ConfigError(name, getattr(self, name), rule)
        self._check_replicas()
        for name in ("listen_port", "metrics_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= 65_535:
                raise ConfigError(name, port, "must lie in 0..65535")
        if self.shared_address is not None:
            parse_address(self.shared_address, "shared_address")
        for nameserver in self.nameservers:
            parse_address(nameserver, "nameservers")
        if len(set(self.nameservers)) != len(self.nameservers):
            raise ConfigError("nameservers", self.nameservers, "must not name one twice")
        _at_least("digest_entries", self.digest_entries, 1)
        _at_least("young_queue_bytes", self.young_queue_bytes, 0)
        if not 1 <= self.default_queue_count <= self.limits.queue_count_max:
            rule = "must lie in 1..limits.queue_count_max"
            raise ConfigError("default_queue_count", self.default_queue_count, rule)

    def _check_replicas(self) -> None:
        if not 1 <= len(self.replicas) <= GROUP_SIZE_MAX:
            rule = f"must be 1 to {GROUP_SIZE_MAX} replicas (1, 3 or 5 make sense to begin with)"
            raise ConfigError("replicas", len(self.replicas), rule)
        ids = [replica.id for replica in self.replicas]
        if self.replica_id not in ids:
            rule = f"must be one of the replicas: {', '.join(ids)}"
            raise ConfigError("replica_id", self.replica_id, rule)
        if self.preferred_leader is not None and self.preferred_leader not in ids:
            rule = f"must be one of the replicas: {', '.join(ids)}"
            raise ConfigError("preferred_leader", self.preferred_leader, rule)
        if len(set(ids)) != len(ids):
            raise ConfigError("replicas", ids, "must have different ids")
        addresses = [r.address for r in self.replicas] + [r.raft_address for r in self.replicas]
        fixed = [address for address in addresses if not address.endswith(":0")]
        if len(set(fixed)) != len(fixed):
            raise ConfigError("replicas", addresses, "must have different addresses")
        if len(self.replicas) > 1 and len(fixed) != len(addresses):
            raise ConfigError("replicas", addresses, "must have fixed ports in a group of several")

    @property
    def replica(self) -> ReplicaConfig:
        """This process's entry of `replicas`."""
        return self.replicas[self.number]

    @property
    def number(self) -> int:
        """Position of this replica in `replicas`, from 0."""
        return [replica.id for replica in self.replicas].index(self.replica_id)

    @property
    def follower_broker_id(self) -> int:
        """Broker id under which this replica registers while it does not lead: number + 1."""
        return self.number + 1

    @property
    def port(self) -> int:
        """Port to bind for clients."""
        if self.listen_port is not None:
            return self.listen_port
        return parse_address(self.replica.address)[1]

    def advertised_address(self, bound_port: int) -> tuple[str, int]:
        """Returns the host and port that clients are told.

        Args:
            bound_port: The port really bound, for when the configured one is 0.
        """
        host, port = parse_address(self.replica.address)
        return self.advertised_host or host, port or bound_port


def load_broker_config(path: str | Path) -> BrokerConfig:
    """Reads `broker.toml`; `DLEDGER_BROKER__STORE__FLUSH=async` and the like override it.

    Raises:
        ConfigError: The file or a value in it is wrong; the text names both.
    """
    return load_config(BrokerConfig, path, env_prefix="DLEDGER_BROKER")


def _at_least(name: str, value: int, floor: int) -> None:
    if value < floor:
        raise ConfigError(name, value, f"must be at least {floor}")


def _between(name: str, value: int, floor: int, ceiling: int) -> None:
    if not floor <= value <= ceiling:
        raise ConfigError(name, value, f"must lie in {floor}..{ceiling}")
