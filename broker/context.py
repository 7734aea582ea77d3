"""What the request processors of one broker share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from broker.appender import Appender
from broker.config import BrokerConfig
from broker.consumers import ClientRegistry
from broker.gate import WriteGate
from broker.long_polls import LongPolls
from broker.quotas import Quotas
from broker.statistics import Statistics
from broker.tasks import Tasks
from dledger.clock import Clock
from dledger.errors import (
    CorruptRecordError,
    DiskFailureError,
    DLedgerError,
    InvariantError,
)
from dledger.model import Role
from dledger.raft.changes import Changes
from dledger.raft.configuration import Configuration, Member
from dledger.raft.protocols import Identity
from store.state_store import StateStore

# After these nothing of this replica is to be trusted: the process ends.
FATAL_ERRORS = (InvariantError, DiskFailureError, CorruptRecordError)


class RaftView(Protocol):
    """What the broker asks of Raft; `dledger.raft.RaftNode` is one."""

    @property
    def role(self) -> Role: ...  # noqa: D102 - as RaftNode
    @property
    def term(self) -> int: ...  # noqa: D102
    @property
    def leader_id(self) -> str | None: ...  # noqa: D102
    @property
    def is_serving(self) -> bool: ...  # noqa: D102
    @property
    def commit_index(self) -> int: ...  # noqa: D102
    @property
    def applied_index(self) -> int: ...  # noqa: D102
    @property
    def durable_index(self) -> int: ...  # noqa: D102
    @property
    def pending_bytes(self) -> int: ...  # noqa: D102

    @property
    def changes(self) -> Changes: ...  # noqa: D102
    @property
    def configuration(self) -> Configuration: ...  # noqa: D102
    @property
    def identity(self) -> Identity: ...  # noqa: D102

    def peer_progress(self) -> dict[str, dict[str, int]]:
        """On a leader: how far each follower is."""
        ...

    def propose(
        self, command: Any, callback: Callable[[object, DLedgerError | None], None]
    ) -> None:
        """Proposes a command; raises when it refuses, otherwise calls back once."""
        ...

    async def submit(self, command: Any) -> object:
        """Proposes a command and waits until it is applied."""
        ...

    async def transfer_leadership(
        self, target: str | None = None, *, timeout_s: float = ...
    ) -> str | None:
        """Hands the leadership to another replica."""
        ...

    async def read_barrier(self) -> None:
        """Waits until what is read here includes everything acknowledged before."""
        ...


class LogView(Protocol):
    """What the broker reads of the CommitLog."""

    @property
    def last_index(self) -> int:
        """Index of the newest entry."""
        ...

    @property
    def offset_min(self) -> int:
        """First physical offset held."""
        ...

    @property
    def offset_end(self) -> int:
        """Where the next record will begin."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes of the log on disk."""
        ...

    def locate(self, physical_offset: int) -> tuple[int, int] | None:
        """Returns index and term of the entry that holds a byte."""
        ...

    def read(self, physical_offset: int, size_bytes: int) -> memoryview:
        """Returns stored bytes."""
        ...


@dataclass(slots=True)
class Counters:
    """Totals since the start, of what `Statistics` does not count."""

    forwarded: int = 0
    deduplicated: int = 0


def program_version() -> str:
    """Returns the installed version of this program; empty if it was not installed."""
    try:
        return version("dledger-mq")
    except PackageNotFoundError:
        return ""


@dataclass(slots=True, kw_only=True)
class BrokerContext:
    """Everything a processor may use. One owner each; the broker makes and ends them.

    Attributes:
        config: As loaded.
        clock: Time.
        store: Replicated state as applied here.
        log: The CommitLog.
        raft: Proposals and leadership.
        appender: Collects messages into proposals.
        gate: Whether writes are accepted.
        clients: Who is connected, by group.
        long_polls: Pulls that wait.
        tasks: Owner of background work.
        on_fatal: Ends the process.
        host, port: Where clients reach this replica.
        boot_ms: When it started.
        pid: Of the process, for people.
        program_version: Of this program.
        statistics: What passes through.
        quotas: How much of it may.
        counters: What runtime information shows, by name.
    """

    config: BrokerConfig
    clock: Clock
    store: StateStore
    log: LogView
    raft: RaftView
    appender: Appender
    gate: WriteGate
    clients: ClientRegistry
    long_polls: LongPolls
    tasks: Tasks
    on_fatal: Callable[[BaseException], None]
    host: str
    port: int
    boot_ms: int
    statistics: Statistics
    quotas: Quotas = field(default_factory=Quotas)
    pid: int = field(default_factory=os.getpid)
    program_version: str = field(default_factory=program_version)
    counters: Counters = field(default_factory=Counters)

    @property
    def address(self) -> str:
        """Where clients reach this replica, as `host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def member(self) -> Member | None:
        """This replica in the group's configuration; None if it is not in it."""
        return self.raft.configuration.member(self.config.replica_id)

    @property
    def follower_broker_id(self) -> int:
        """Under which broker id this replica registers while it does not lead."""
        member = self.member
        return self.config.follower_broker_id if member is None else member.number + 1

    def address_of(self, replica_id: str | None) -> str | None:
        """Returns the client address of a replica of the group, None for an unknown one."""
        member = self.raft.configuration.member(replica_id)
        return None if member is None else member.address
