"""Settings of the clients: one frozen record per kind, checked when made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dledger.allocation import STRATEGIES, VIRTUAL_NODES
from dledger.codes import FRAME_BYTES_MAX, MESSAGE_BODY_BYTES_MAX
from dledger.errors import ConfigError
from dledger.model import MessageQueue

NAMESERVER_VARIABLE = "DLEDGER_NAMESERVER"


def nameserver_addresses(given: str | Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the nameservers to use: those given, else those of `DLEDGER_NAMESERVER`.

    Args:
        given: `"host:port"`, several of them joined by `;` or `,`, or a sequence of them.

    Raises:
        ConfigError: None is given and the variable is not set, or an address is not host:port.
    """
    if given is None:
        given = os.environ.get(NAMESERVER_VARIABLE, "")
        if not given.strip():
            raise ConfigError(
                "nameserver", None, f"pass nameserver='host:port' or set {NAMESERVER_VARIABLE}"
            )
    parts = given.replace(",", ";").split(";") if isinstance(given, str) else list(given)
    addresses = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not addresses:
        raise ConfigError("nameserver", given, "must name at least one host:port")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
            raise ConfigError("nameserver", address, "must be host:port with a port in 1..65535")
    return addresses


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """How a client keeps in touch with nameservers and brokers.

    Attributes:
        connect_timeout_s: Limit of one connection attempt.
        request_timeout_s: Limit of one ordinary request (not of a send or a long poll).
        operation_timeout_s: Limit of an operation with all its retries, where a call has no
            timeout of its own.
        route_poll_s: How often known routes are asked for again without a reason to.
        heartbeat_s: How often brokers are told that this client lives.
        leader_poll_s: Pause between two rounds of asking a group's replicas who leads it, while
            nobody does. It bounds what a fail-over costs beyond the election itself.
        probe_timeout_s: Limit of one such question; a stopped process must not hold up the rest.
        client_id: Identity towards brokers; made from host, process and chance when empty.
    """

    connect_timeout_s: float = 3.0
    request_timeout_s: float = 3.0
    operation_timeout_s: float = 10.0
    route_poll_s: float = 30.0
    heartbeat_s: float = 30.0
    leader_poll_s: float = 0.03
    probe_timeout_s: float = 0.5
    client_id: str = ""

    def __post_init__(self) -> None:
        """Checks every field."""
        for name in (
            "connect_timeout_s",
            "request_timeout_s",
            "operation_timeout_s",
            "route_poll_s",
            "heartbeat_s",
            "leader_poll_s",
            "probe_timeout_s",
        ):
            _require(name, getattr(self, name), getattr(self, name) > 0, "must be above 0")
        _require("client_id", self.client_id, len(self.client_id) <= 255, "at most 255 characters")


@dataclass(frozen=True, kw_only=True)
class ProducerConfig:
    """How a producer sends.

    Attributes:
        send_timeout_s: From the moment a message is under way to its result, all retries included.
        attempt_timeout_s: Limit of one attempt; then its outcome is unknown and it is made again.
        retry_unknown: Send again after an attempt of unknown outcome. `False` raises instead.
        idempotent: Number the messages, so that a dledger broker stores each of them once however
            often it is sent again. Other brokers ignore the numbers: there, and with `False`, an
            attempt of unknown outcome may leave a duplicate with the same unique key, and the
            result says so.
        isolate_slow_groups: Leave a broker group that answered slowly, or not at all, alone for a
            few seconds, if others take messages; for those without queue and key.
        refusals_max: How often a message is tried elsewhere after a broker refused it for a reason
            that may not hold elsewhere (no such topic, no permission, internal error).
        in_flight_max, in_flight_bytes_max: Messages and bytes under way; others wait their turn.
        waiting_max: Messages that may wait their turn; one more is refused.
        batch_messages_max, batch_bytes_max: Bounds of one automatic batch.
        batch_messages_min: Messages a batch should have before another queue gets one as well. If
            the topic lies in several broker groups, which do not share processors: at most 32.
        compress_min_bytes: Bodies from this size on are compressed and sent alone; 0: never.
        message_bytes_max: Largest body accepted.
        default_topic_queue_count: Queues of a topic that the first send creates.
        trace: Write what was sent, when and how fast to RMQ_SYS_TRACE_TOPIC.
    """

    send_timeout_s: float = 10.0
    attempt_timeout_s: float = 3.0
    retry_unknown: bool = True
    idempotent: bool = True
    isolate_slow_groups: bool = True
    refusals_max: int = 2
    in_flight_max: int = 10_000
    in_flight_bytes_max: int = 64 * 1024 * 1024
    waiting_max: int = 1_000_000
    batch_messages_max: int = 2_000
    batch_bytes_max: int = 1024 * 1024
    batch_messages_min: int = 500
    compress_min_bytes: int = 4096
    message_bytes_max: int = MESSAGE_BODY_BYTES_MAX
    default_topic_queue_count: int = 4
    trace: bool = False
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        """Checks every field and what holds between them."""
        for name in (
            "send_timeout_s",
            "attempt_timeout_s",
            "in_flight_max",
            "in_flight_bytes_max",
            "waiting_max",
            "batch_messages_max",
            "batch_bytes_max",
            "batch_messages_min",
            "message_bytes_max",
            "default_topic_queue_count",
        ):
            _require(name, getattr(self, name), getattr(self, name) > 0, "must be above 0")
        for name in ("refusals_max", "compress_min_bytes"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "must not be negative")
        for name in ("batch_bytes_max", "message_bytes_max"):
            value = getattr(self, name)
            _require(name, value, value <= FRAME_BYTES_MAX // 2, "must fit a frame twice")
        _require(
            "batch_bytes_max",
            self.batch_bytes_max,
            self.batch_bytes_max <= MESSAGE_BODY_BYTES_MAX,
            f"brokers take at most {MESSAGE_BODY_BYTES_MAX} bytes",
        )


@dataclass(frozen=True, kw_only=True)
class PullConsumerConfig:
    """How a pull consumer reads.

    Attributes:
        pull_count_max: Messages asked for at once unless a call says otherwise.
        pull_bytes_max: Bytes asked for at once; one larger message still comes.
        pull_timeout_s: How long a pull waits for messages unless a call says otherwise.
    """

    pull_count_max: int = 256
    pull_bytes_max: int = 1024 * 1024
    pull_timeout_s: float = 20.0
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        """Checks every field."""
        _check_pull(self.pull_count_max, self.pull_bytes_max)
        _require("pull_timeout_s", self.pull_timeout_s, self.pull_timeout_s >= 0, "not negative")


@dataclass(frozen=True, kw_only=True)
class SimpleConsumerConfig:
    """How a simple consumer receives.

    Attributes:
        poll_s: How long a broker holds a question for messages; `receive` may wait for longer.
        leader_wait_s: How long a group without a leader is waited for before others are asked.
    """

    poll_s: float = 15.0
    leader_wait_s: float = 1.0
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        """Checks every field."""
        for name in ("poll_s", "leader_wait_s"):
            _require(name, getattr(self, name), getattr(self, name) > 0, "must be above 0")


@dataclass(frozen=True, kw_only=True)
class PushConsumerConfig:
    """How a push consumer reads, shares queues with its group, and commits.

    Attributes:
        pull_count_max, pull_bytes_max: Bounds of one pull.
        suspend_s: How long the broker holds a pull that finds nothing.
        queue_messages_max, queue_bytes_max: Messages read but not yet processed, per queue; above
            that the queue is not read.
        commit_interval_s: How often processed offsets are committed.
        rebalance_interval_s: How often queues are shared out without a reason to.
        drain_timeout_s: How long `close` waits for handlers under way.
        failed_messages: `broker`: a message whose handler failed goes back to the broker, comes
            again after its delay levels and ends among the dead letters. `local`: it stays here
            and holds the group's offset back until it succeeds.
        reconsume_max: Failures after which a message is a dead letter; `None`: as the group says.
        redelivery_min_s, redelivery_max_s: Pause before a message that stays here, by choice or
            because its broker does not answer, comes again: doubled with every failure.
        strategy: Who reads which queue: `AVG`, `AVG_BY_CIRCLE`, `CONSISTENT_HASH`, `MACHINE_ROOM`
            or `CONFIG`; the same for all members of the group, and what belongs to it too.
        strategy_virtual_nodes: `CONSISTENT_HASH` only: places of each member on the ring.
        strategy_rooms: `MACHINE_ROOM` only: read the queues of brokers named `room@…`, of these
            rooms.
        strategy_queues: `CONFIG` only: the queues that this member reads; of the members only this
            may differ.
        consume_timestamp_ms: Where `ConsumeFrom.TIMESTAMP` begins, in ms since the epoch.
        offset_directory: Where a broadcasting consumer keeps its offsets; `~/.dledger/offsets` if
            empty.
        trace: Write what was consumed, when and how fast to RMQ_SYS_TRACE_TOPIC.
        lock_renew_s: Ordered only: how often locks are renewed.
        lock_valid_s: Ordered only: how long an own lock counts after its renewal was asked for;
            well below the 60 s after which brokers give it to another.
    """

    pull_count_max: int = 256
    pull_bytes_max: int = 1024 * 1024
    suspend_s: float = 15.0
    queue_messages_max: int = 1000
    queue_bytes_max: int = 100 * 1024 * 1024
    commit_interval_s: float = 5.0
    rebalance_interval_s: float = 20.0
    drain_timeout_s: float = 10.0
    failed_messages: Literal["broker", "local"] = "broker"
    trace: bool = False
    reconsume_max: int | None = None
    redelivery_min_s: float = 1.0
    redelivery_max_s: float = 30.0
    strategy: str = "AVG"
    strategy_virtual_nodes: int = VIRTUAL_NODES
    strategy_rooms: Sequence[str] = ()
    strategy_queues: Sequence[MessageQueue] = ()
    consume_timestamp_ms: int = 0
    offset_directory: str = ""
    lock_renew_s: float = 20.0
    lock_valid_s: float = 30.0
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        """Checks every field."""
        _check_pull(self.pull_count_max, self.pull_bytes_max)
        for name in (
            "suspend_s",
            "queue_messages_max",
            "queue_bytes_max",
            "commit_interval_s",
            "rebalance_interval_s",
            "redelivery_min_s",
            "lock_renew_s",
        ):
            _require(name, getattr(self, name), getattr(self, name) > 0, "must be above 0")
        _require("drain_timeout_s", self.drain_timeout_s, self.drain_timeout_s >= 0, "not negative")
        _require(
            "redelivery_max_s",
            self.redelivery_max_s,
            self.redelivery_max_s >= self.redelivery_min_s,
            "must not be below redelivery_min_s",
        )
        _require(
            "failed_messages",
            self.failed_messages,
            self.failed_messages in ("broker", "local"),
            "must be 'broker' or 'local'",
        )
        _require(
            "reconsume_max",
            self.reconsume_max,
            self.reconsume_max is None or self.reconsume_max >= 0,
            "must not be negative",
        )
        _require(
            "lock_valid_s",
            self.lock_valid_s,
            self.lock_renew_s < self.lock_valid_s <= 40.0,
            "must be above lock_renew_s and at most 40",
        )
        known = f"must be one of {', '.join(STRATEGIES)}"
        _require("strategy", self.strategy, self.strategy in STRATEGIES, known)
        for strategy, name in (("MACHINE_ROOM", "strategy_rooms"), ("CONFIG", "strategy_queues")):
            rule = f"goes with the strategy {strategy}, which needs it"
            given = bool(getattr(self, name))
            _require(name, getattr(self, name), given == (self.strategy == strategy), rule)
        _require(
            "strategy_virtual_nodes",
            self.strategy_virtual_nodes,
            0 < self.strategy_virtual_nodes <= 10_000,
            "must be in 1..10000",
        )


@dataclass(frozen=True, kw_only=True)
class AdminConfig:
    """How an admin client works."""

    session: SessionConfig = field(default_factory=SessionConfig)


def _check_pull(count_max: int, bytes_max: int) -> None:
    _require("pull_count_max", count_max, 0 < count_max <= 10_000, "must be in 1..10000")
    limit = FRAME_BYTES_MAX // 2
    _require("pull_bytes_max", bytes_max, 0 < bytes_max <= limit, f"must be in 1..{limit}")


def _require(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise ConfigError(name, value, rule)
