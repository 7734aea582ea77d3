"""The seams of pysyncobj: its module-level names, its private members and its settings.

pysyncobj is pinned exactly. `check_upstream` and `check_fields` fail loudly if a private member
that `dledger.raft.engine` relies on is gone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pysyncobj.journal
import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION as LIBRARY_VERSION

from dledger.clock import Clock
from dledger.errors import invariant
from dledger.raft.config import RaftConfig
from dledger.raft.journal import LogJournal
from dledger.raft.protocols import LogStorage

FOLLOWER, CANDIDATE, LEADER = 0, 1, 2

LIBRARY_VERSION_EXPECTED = "0.3.17"
# Private members of SyncObj that this module reads, sets or overrides.
LIBRARY_METHODS = (
    "__onMessageReceived",
    "__getEntries",
    "__applyLogEntries",
    "__sendAppendEntries",
    "__onBecomeLeader",
    "__generateRaftTimeout",
    "__onNodeConnected",
    "__onNodeDisconnected",
    "__tryLogCompaction",
    "__doApplyCommand",
    "__parseChangeClusterRequest",
    "__setState",
    "__setCurrentTerm",
    "__onLeaderChanged",
    "__connectedToAnyone",
)
LIBRARY_FIELDS = (
    "__raftState",
    "__raftCurrentTerm",
    "__raftLeader",
    "__raftElectionDeadline",
    "__raftCommitIndex",
    "__raftLastApplied",
    "__raftNextIndex",
    "__raftMatchIndex",
    "__lastResponseTime",
    "__leaderCommitIndex",
    "__noopIDx",
    "__otherNodes",
    "__readonlyNodes",
    "__connectedNodes",
    "__newAppendEntriesTime",
    "__transferInProgress",
    "__conf",
    "__raftLog",
    "__votesCount",
)

# The clock of the engine that is running now. pysyncobj reads a module-level function; the
# simulation runs several engines, each with a clock of its own, in one process.
engine_clock: ContextVar[Clock | None] = ContextVar("dledgerengine_clock", default=None)
_library_time = library.monotonicTime
_library_create_journal = library.createJournal


def _time_of_engine() -> float:
    clock = engine_clock.get()
    return _library_time() if clock is None else clock.monotonic()  # type: ignore[no-any-return]


def _journal_of_engine(journal_file: Any = None) -> Any:
    if isinstance(journal_file, pysyncobj.journal.Journal):
        return journal_file
    return _library_create_journal(journal_file)


# Both stand-ins behave as the originals for any other user of the library in this process.
library.monotonicTime = _time_of_engine
library.createJournal = _journal_of_engine


def check_fields(engine: Any) -> None:
    """Raises InvariantError if a private field that we use is not there."""
    missing = [name for name in LIBRARY_FIELDS if f"_SyncObj{name}" not in vars(engine)]
    invariant(not missing, "pysyncobj renamed private fields", missing=missing)


def check_upstream() -> None:
    """Raises InvariantError if pysyncobj is not the version whose private members we know."""
    invariant(
        LIBRARY_VERSION == LIBRARY_VERSION_EXPECTED,
        "pysyncobj has another version than the one dledger.raft was written for",
        found=LIBRARY_VERSION,
        expected=LIBRARY_VERSION_EXPECTED,
    )
    missing = [name for name in LIBRARY_METHODS if not hasattr(SyncObj, f"_SyncObj{name}")]
    invariant(not missing, "pysyncobj renamed private methods", missing=missing)


class Peer(Node):  # type: ignore[misc]
    """A replica of the group. Hashes alike in every process, so that seeds repeat exactly."""

    def __init__(self, id: str) -> None:  # noqa: A002
        super().__init__(id)
        self._hash = zlib.crc32(id.encode())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.id == other.id


class LinkTransport(Transport):  # type: ignore[misc]
    """The library's transport seam over ours."""

    def __init__(self, send: Callable[[str, dict[str, Any]], bool]) -> None:
        super().__init__(None, None, [])
        self._send = send

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        """Sends a message to a peer."""
        return self._send(node.id, message)


class NullPoller:
    """The library polls at the end of each tick; the event loop does that for us."""

    def poll(self, timeout: float) -> None:
        """Returns at once."""


def library_settings(config: RaftConfig, log: LogStorage) -> SyncObjConf:
    """Returns the library's configuration. It ignores misspelt names, hence the one place."""
    return SyncObjConf(
        autoTick=False,
        journalFile=LogJournal(log),
        appendEntriesPeriod=config.heartbeat_ms / 1000,
        raftMinTimeout=config.election_timeout_min_ms / 1000,
        raftMaxTimeout=config.election_timeout_max_ms / 1000,
        leaderFallbackTimeout=config.check_quorum_ms / 1000,
        connectionTimeout=max(3.5, config.election_timeout_max_ms / 1000),
        commandsWaitLeader=False,
        appendEntriesBatchSizeBytes=1 << 30,  # no chunked, pickled path (defect 11)
        dynamicMembershipChange=False,
        useFork=False,
    )
