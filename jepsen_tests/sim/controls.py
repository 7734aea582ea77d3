"""Positive controls: faults planted by injected components, each of which must be found.

A check that cannot fail shows nothing. None of this is a switch in production code: engines, logs,
machines, disks and clients are replaced by subclasses that lack one rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dledger.errors import DLedgerError
from dledger.raft.engine import Engine
from dledger.raft.node import RaftNode
from jepsen_tests.history import Append
from jepsen_tests.sim.broker_controls import (
    ForgetsProducers,
    Surroundings,
    commits_early,
    delivers_early,
    shows_halves,
)
from jepsen_tests.sim.host import Host
from jepsen_tests.sim.raft_layer import (
    QUEUE,
    ListMachine,
    RaftClients,
    RaftServer,
)
from jepsen_tests.sim.scenario import Layer, Settings
from jepsen_tests.sim.stock_layer import StockServer, repeatable
from jepsen_tests.sim.world import definite
from store import record
from store.commit_log import CommitLog
from store.vote_file import Vote


@dataclass(frozen=True)
class Control:
    """One planted fault. Which faults of the network and the machines a run has is the seed's."""

    text: str
    plant: Callable[[Settings], None]
    layer: Layer = "raft"


# --- the engine without one of its mending rules ------------------------------------------------


class NextIndexGoesBack(Engine):
    """Without rule (a): a success reply moves `nextIndex` back over what is in flight."""

    def _on_success(self, node: Any, progress: Any, index: int, now: float) -> None:
        progress.confirmed(index, now)
        self._raise_match(node)
        self._SyncObj__raftNextIndex[node] = index + 1


class TruncatesOnEveryAppend(Engine):
    """Without rule (b): what an append repeats, and all after it, is cut and written again."""

    def _entries_to_write(self, entries: Any) -> Any:
        return entries

    def _cut(self, index: int) -> None:
        self._log.truncate_from(index)


class CommitsUnmatched(Engine):
    """Without rule (c): the leader's commit index counts for whatever lies in this log."""

    def _clamped_commit(self, message: dict[str, Any]) -> int:
        return int(min(message["commit_index"], self._log.last_index))


class GoesBackOneByOne(Engine):
    """Without rule (d): after a mismatch one index a heartbeat."""

    def _mismatch_hint(self, previous: int) -> int:
        return previous

    def _on_reply(self, node: Any, message: dict[str, Any]) -> None:
        if message["reset"] and message["term"] == self._SyncObj__raftCurrentTerm:
            send = self._send_to
            self.__dict__["_send_to"] = lambda _node: False
            try:
                super()._on_reply(node, message)
            finally:
                self.__dict__["_send_to"] = send
        else:
            super()._on_reply(node, message)


class BelievesOldReplies(Engine):
    """Without rule (e): replies to an earlier leadership count."""

    def _is_current(self, message: dict[str, Any]) -> bool:
        return True


class CommitsWithPieces(Engine):
    """Without rule (f): a piece of a snapshot moves the commit index, as in the library."""

    def _on_snapshot_piece(self, node: Any, message: dict[str, Any]) -> None:
        super()._on_snapshot_piece(node, message)
        if message["term"] == self._SyncObj__raftCurrentTerm:
            # The library's leader sends its commit index along; ours names a lower one.
            self._advance_commit(min(message["applied_index"], self._log.last_index))


class ConfirmsBeforeDurable(Engine):
    """Confirms what is only written."""

    def _confirm(self) -> None:
        ack = self._ack
        if ack is not None and self._SyncObj__raftLeader == ack["node"]:
            self._reply(ack["node"], ack, next_index=self._verified + 1, success=True)

    def _on_append(self, node: Any, message: Any) -> None:
        super()._on_append(node, message)
        self._confirm()


class CountsItselfUnsynced(Engine):
    """A leader counts its own log before it is durable, and so do its followers."""

    def _raise_match(self, node: Any) -> None:
        match = self._SyncObj__raftMatchIndex
        match[node] = max(match[node], self._progress[node.id].acked)


class VotesForAnyone(Engine):
    """Grants votes and pre-votes to logs that lack entries of its own."""

    def _SyncObj__onMessageReceived(self, node: Any, message: dict[str, Any]) -> None:
        if message["type"] in ("pre_vote", "request_vote"):
            message = {**message, "last_log_index": 1 << 60, "last_log_term": 1 << 60}
        super()._SyncObj__onMessageReceived(node, message)


# --- nodes, logs and machines -------------------------------------------------------------------


class EagerNode(RaftNode):
    """Acknowledges what the leader has written, without waiting for anybody."""

    async def submit(self, command: Any) -> object:
        self.propose(command, lambda _result, _error: None)
        machine: Any = self._machine
        waiting = sum(1 for proposal in self._pending if proposal.index > machine.applied_index)
        return len(machine.state.values) + waiting - 1, self._log.last_index


class EarlyOffsets(RaftNode):
    """Gives out offsets before replication and does not take back those of lost proposals."""

    _next_offset: int | None = None

    async def submit(self, command: Any) -> object:
        machine: Any = self._machine
        if self._next_offset is None or not self._pending:
            self._next_offset = max(self._next_offset or 0, len(machine.state.values))
        offset, self._next_offset = self._next_offset, self._next_offset + 1
        result: Any = await super().submit(command)
        return offset, result[1]


def _no_checksum(_data: Any, _start: int = 0) -> int:
    """Every checksum is right."""
    return 0


@contextmanager
def without_checksums() -> Iterator[None]:
    """Lets the log's records, written and read, have no checksum."""
    module: Any = record
    real, module.crc32 = module.crc32, _no_checksum
    try:
        yield
    finally:
        module.crc32 = real


class EagerServer(RaftServer):
    """Runs an `EagerNode`."""

    node_class = EagerNode


class EarlyOffsetsServer(RaftServer):
    """Runs an `EarlyOffsets` node."""

    node_class = EarlyOffsets


class ForgetsVote(RaftServer):
    """Term and vote are gone after a restart, as if never stored."""

    def open_log(self) -> CommitLog:
        log = super().open_log()
        log._vote = Vote(log.last_term, None)
        return log


class ForgetsTail(RaftServer):
    """The newest entries are gone after a restart."""

    def open_log(self) -> CommitLog:
        log = super().open_log()
        first = max(log.last_index - 4, self.state().applied_index + 1, 2)
        if first <= log.last_index:
            log.truncate_from(first)
        return log


class SwapsNeighbours(ListMachine):
    """Applies two entries of one turn in the other order, on one replica."""

    def apply(self, entries: Sequence[Any]) -> list[object]:
        results = super().apply(entries)
        values = self.state.values
        if self._process.startswith("r1") and len(entries) > 1 and len(values) > 1:
            values[-1], values[-2] = values[-2], values[-1]
        return results


class SwappingServer(RaftServer):
    """Runs a `SwapsNeighbours` machine."""

    machine_class = SwapsNeighbours


# --- clients ------------------------------------------------------------------------------------


class ReadsLocally(RaftClients):
    """Reads from whoever believes to lead, without a barrier."""

    async def barrier(self, node: RaftNode) -> None:
        if not node.is_serving:
            raise DLedgerError("does not serve")


class CallsUnknownFailed(RaftClients):
    """Reports an unknown outcome as a failure."""

    async def append(self, host: Host, process: int, value: int, padding: int) -> bool:
        known = await super().append(host, process, value, padding)
        last = self._world.history[-1]
        if not known and isinstance(last, Append):
            last.status = "fail"
        return known


class RetriesBlindly(RaftClients):
    """Sends a value again after an unknown outcome, as if nothing had happened."""

    async def append(self, host: Host, process: int, value: int, padding: int) -> bool:
        history = self._world.history
        known = await super().append(host, process, value, padding)
        leader = self._world.leader()
        if known or leader is None:
            return known
        first = history.pop()
        known = await super().append(leader, process, value, padding)
        last = history[-1]
        if isinstance(first, Append) and isinstance(last, Append):
            last.inv = first.inv
            if last.status == "fail":
                last.status = "info"  # of the first attempt
        return known


def _engine(engine_class: type[Engine]) -> Callable[[Settings], None]:
    def plant(settings: Settings) -> None:
        settings.engine_class = engine_class

    return plant


def _server(server_class: type[Any]) -> Callable[[Settings], None]:
    def plant(settings: Settings) -> None:
        settings.server_class = server_class

    return plant


def _clients(clients_class: type[Any]) -> Callable[[Settings], None]:
    def plant(settings: Settings) -> None:
        settings.clients_class = clients_class

    return plant


def _ignore_syncs(settings: Settings) -> None:
    settings.ignores_sync = True


def _no_checksums(settings: Settings) -> None:
    settings.surroundings = without_checksums


def _around(surroundings: Surroundings) -> Callable[[Settings], None]:
    def plant(settings: Settings) -> None:
        settings.surroundings = surroundings

    return plant


def _forget_producers(settings: Settings) -> None:
    settings.server_class = ForgetsProducers


def _stock(settings: Settings) -> None:
    settings.server_class = StockServer
    settings.surroundings = repeatable


CONTROLS: dict[str, Control] = {
    "stock-pysyncobj": Control("K4: pysyncobj 0.3.17 as it comes, in place of ours", _stock),
    "rule-a": Control("(a): a success reply moves nextIndex back", _engine(NextIndexGoesBack)),
    "rule-b": Control("(b): every append cuts the log", _engine(TruncatesOnEveryAppend)),
    "rule-c": Control("(c): commit index not clamped to what matches", _engine(CommitsUnmatched)),
    "rule-d": Control("(d): after a mismatch one index a heartbeat", _engine(GoesBackOneByOne)),
    "rule-e": Control("(e): replies of earlier terms count", _engine(BelievesOldReplies)),
    "rule-f": Control("(f): a snapshot piece moves the commit index", _engine(CommitsWithPieces)),
    "confirm-unsynced": Control(
        "followers confirm what is only written", _engine(ConfirmsBeforeDurable)
    ),
    "count-unsynced": Control(
        "the leader counts itself before it is durable there", _engine(CountsItselfUnsynced)
    ),
    "vote-anyone": Control("votes whatever the candidate's log", _engine(VotesForAnyone)),
    "ack-before-quorum": Control("K1: acknowledges what is written locally", _server(EagerServer)),
    "local-read": Control("K2: reads without a barrier", _clients(ReadsLocally)),
    "vote-forgotten": Control("K5: term and vote gone after a restart", _server(ForgetsVote)),
    "sync-swallowed": Control("K6: the disks report syncs they have not done", _ignore_syncs),
    "no-checksums": Control("K7: records without CRC", _no_checksums),
    "tail-forgotten": Control("K8: newest entries gone after a restart", _server(ForgetsTail)),
    "blind-retry": Control("K9: a retry that duplicates", _clients(RetriesBlindly)),
    "offset-reuse": Control(
        "K10: offsets given out before replication", _server(EarlyOffsetsServer)
    ),
    "swapped": Control("K11: one replica applies neighbours swapped", _server(SwappingServer)),
    "unknown-as-failed": Control(
        "K12: unknown outcomes called failures", _clients(CallsUnknownFailed)
    ),
    "producers-forgotten": Control(
        "K9: the table of producers' sends is lost at a change of leader",
        _forget_producers,
        "broker",
    ),
    "commit-early": Control(
        "K14: a committed offset is answered before it is replicated",
        _around(commits_early),
        "broker",
    ),
    "half-visible": Control(
        "K16: one half message of eight is stored as an ordinary one",
        _around(shows_halves),
        "broker",
    ),
    "delay-early": Control(
        "K17: the leader takes timers for due 400 ms early", _around(delivers_early), "broker"
    ),
}

__all__ = ["CONTROLS", "QUEUE", "Control", "definite"]
