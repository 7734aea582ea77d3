"""pysyncobj's `SyncObj` with its defects mended, and nothing of it unpickled.

What stays the library's: roles and terms, the election, counting votes, the commit rule, check
quorum, the command queue. What is replaced here, each by one method, and why
(`docs/raft.md` has the table of defects with the tests that show them):

(a) A success reply only ever raises `matchIndex` and `nextIndex` (`_on_reply`). The library moves
    `nextIndex` back and resends what is in flight.
(b) Entries of an append that the log already holds are skipped; the log is cut only at the first
    real conflict, never by a heartbeat (`_append`). The library cuts on every append, also
    entries that are acknowledged or applied.
(c) The commit index of an append counts only as far as this log is known to match the leader's
    (`_clamped_commit`).
(d) After a mismatch the follower names the first index that may differ and the leader resends at
    once (`_mismatch_hint`, `_on_reply`). The library goes back one index a heartbeat.
(e) Every reply carries the term and is dropped when it is not the current one (`_is_current`).
(f) An append without `prevLogIdx` (a snapshot piece of the library) is refused (`_append`).

Durability: a follower confirms an entry when it is durable here; the leader counts a confirmation
only as far as its own log is durable, because the library always counts the leader itself.

Also here: a bounded window to each follower instead of the library's unbounded sends, and
application in bounded turns. Pre-vote and the transfer of leadership are in `elections`. pysyncobj
is pinned exactly; `check_upstream` fails loudly if a private member that we rely on is gone.
"""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Sequence
from typing import Any

from pysyncobj.node import Node

from dledger.clock import Clock
from dledger.errors import DiskFullError, InvariantError, invariant
from dledger.raft.catch_up import CatchUp, IncomingSnapshot, OutgoingSnapshot
from dledger.raft.config import RaftConfig
from dledger.raft.matching import check_sequence, entries_not_held, first_doubtful
from dledger.raft.membership import Membership
from dledger.raft.progress import Progress
from dledger.raft.protocols import EngineHost, LogStorage
from dledger.raft.upstream import (
    FOLLOWER,
    LEADER,
    LinkTransport,
    NullPoller,
    Peer,
    check_fields,
    check_upstream,
    engine_clock,
    library_settings,
)

logger = logging.getLogger(__name__)

NO_OP_BYTES = 64  # room that a no-op record needs at most


class Engine(CatchUp):
    """One replica's consensus. Driven by `tick` and `receive`; owns no thread, socket or timer."""

    def __init__(
        self,
        replica_id: str,
        membership: Membership,
        config: RaftConfig,
        log: LogStorage,
        host: EngineHost,
        clock: Clock,
        random: random_module.Random,
    ) -> None:
        check_upstream()
        # Set before the library's constructor, which already calls some of our overrides.
        self._config = config
        self._log = log
        self._host = host
        self._clock = clock
        self._random = random
        self._progress: dict[str, Progress] = {}
        self._verified = 0  # entries up to here match those of the leader of `_verified_term`
        self._verified_term = 0
        self._ack: dict[str, Any] | None = None  # the confirmation owed to the leader
        self._last_ack = 0.0
        self._last_leader_contact = float("-inf")
        self._round = 0
        self._pre_votes: set[str] | None = None
        self._membership = membership
        self._peers = {}
        self._targets = {}
        self._lives = {}
        self._commit_told = 0
        self._notice_at = float("inf")  # when followers are told of a commit, if nothing else does
        self._outgoing: dict[str, OutgoingSnapshot] = {}
        self._incoming: IncomingSnapshot | None = None
        engine_clock.set(clock)
        super().__init__(
            Peer(replica_id),
            [],
            conf=library_settings(config, log),
            nodeClass=Peer,
            transport=LinkTransport(host.send),
        )
        check_fields(self)
        self.conf.onStateChanged = self._state_changed
        self._poller = NullPoller()
        self._members_changed()

    def restore(self, applied_index: int, catch_up_index: int = 0) -> None:
        """Starts from the state machine's durable applied index; nothing is applied twice.

        Args:
            applied_index: Of the state machine.
            catch_up_index: How far the state machine may be ahead of the log.
        """
        applied = max(1, applied_index)
        invariant(
            applied <= max(self._log.last_index, catch_up_index),
            "the state machine is ahead of the log",
            applied_index=applied,
            last_index=self._log.last_index,
        )
        self._SyncObj__raftLastApplied = applied
        # After the installation of a snapshot the log follows until it has reached the state; what
        # it holds before that is committed.
        self._SyncObj__raftCommitIndex = min(applied, self._log.last_index)

    # --- what the node calls ---------------------------------------------------------------

    def tick(self) -> None:
        """Runs timeouts, the commit rule, application and sending once."""
        engine_clock.set(self._clock)
        if self._SyncObj__raftState != LEADER:
            self._campaign_if_due()
        self._onTick(0)
        self._settle_configuration()
        if self._SyncObj__raftState == LEADER:
            self._tell_commit_if_idle()

    def receive(self, peer_id: str, message: dict[str, Any]) -> None:
        """Handles one message of a peer."""
        engine_clock.set(self._clock)
        peer = self._peers.get(peer_id)
        if peer is not None:
            self._SyncObj__onMessageReceived(peer, message)

    def propose(self, command: Any) -> int:
        """Appends a command as leader and returns its index. The room was reserved before."""
        engine_clock.set(self._clock)
        self._applyCommand(command, None)
        before = self._log.last_index
        super()._checkCommandsToApply()
        invariant(self._log.last_index == before + 1, "a proposal was not appended")
        self._log.request_sync()
        for peer in self._targets.values():
            self._send_to(peer)
        return before + 1

    def durable_changed(self) -> None:
        """The own log became durable further: confirm to the leader, or count confirmations."""
        engine_clock.set(self._clock)
        if self._SyncObj__raftState == LEADER:
            for peer in self._targets.values():
                self._raise_match(peer)
            if self.can_commit():
                self._host.wake()
        else:
            self._confirm()
            if self._SyncObj__raftCommitIndex > self._SyncObj__raftLastApplied:
                self._host.wake_within(self._config.apply_delay_ms / 1000)

    def can_commit(self) -> bool:
        """Whether a leader's next tick may find something to commit or to apply."""
        commit = self._SyncObj__raftCommitIndex
        if self._SyncObj__raftLastApplied < commit:
            return True
        match = self._SyncObj__raftMatchIndex
        others = self._SyncObj__otherNodes
        confirmed = [peer for peer in others if match[peer] > commit]
        return len(confirmed) * 2 >= len(others)

    def peer_up(self, peer_id: str) -> None:
        """A peer can be reached; sending restarts from what it has confirmed."""
        engine_clock.set(self._clock)
        peer = self._peers.get(peer_id)
        if peer is None:
            return
        self._SyncObj__onNodeConnected(peer)
        if self._SyncObj__raftState == LEADER and peer_id in self._targets:
            self._restart_sending(peer)
            self._send_to(peer)

    def peer_down(self, peer_id: str, *, reset: bool) -> None:
        """A peer cannot be reached. If it was the leader and its process died, do not wait."""
        engine_clock.set(self._clock)
        if peer_id in self._peers:
            self._SyncObj__onNodeDisconnected(self._peers[peer_id])
        leader = self._SyncObj__raftLeader
        if reset and leader is not None and leader.id == peer_id:
            self._last_leader_contact = float("-inf")
            self._SyncObj__raftElectionDeadline = min(
                self._SyncObj__raftElectionDeadline, self._clock.monotonic() + self._short_delay()
            )

    def begin_round(self) -> int:
        """Broadcasts a heartbeat and returns its number, for a read barrier."""
        engine_clock.set(self._clock)
        invariant(self._SyncObj__raftState == LEADER, "only a leader may broadcast")
        self._SyncObj__sendAppendEntries()
        return self._round

    def round_confirmed(self, number: int) -> bool:
        """Whether a majority, this replica included, answered that broadcast or a later one."""
        answers = 1 + sum(self._progress[voter].round >= number for voter in self.voter_ids())
        return answers * 2 > len(self._SyncObj__otherNodes) + 1

    def next_deadline(self) -> float:
        """Returns the monotonic time of the next thing to do without a message."""
        if self._SyncObj__raftState == LEADER:
            return min(float(self._SyncObj__newAppendEntriesTime), self._notice_at)
        return float(self._SyncObj__raftElectionDeadline)

    def raft_state(self) -> int:
        """Returns FOLLOWER, CANDIDATE or LEADER."""
        return int(self._SyncObj__raftState)

    def raft_term(self) -> int:
        """Returns the current term."""
        return int(self._SyncObj__raftCurrentTerm)

    def raft_leader_id(self) -> str | None:
        """Returns the known leader, which may be this replica."""
        leader = self._SyncObj__raftLeader
        return None if leader is None else str(leader.id)

    def no_op_applied(self) -> bool:
        """Whether everything committed before this leader's term is applied."""
        no_op = self._SyncObj__noopIDx
        return no_op is not None and self._SyncObj__raftLastApplied >= no_op

    def commit_index(self) -> int:
        """Returns the highest index known to be committed."""
        return int(self._SyncObj__raftCommitIndex)

    # --- leading ---------------------------------------------------------------------------

    def _SyncObj__onBecomeLeader(self) -> None:
        try:
            self._log.reserve(NO_OP_BYTES)
            self._membership.store_owed()
        except DiskFullError as error:
            # Without room for the no-op of the term this replica could never commit anything.
            logger.warning("will not lead: %s", error)
            self._SyncObj__setState(FOLLOWER)
            return
        now = self._clock.monotonic()
        self._progress = {peer_id: Progress() for peer_id in self._targets}
        for progress in self._progress.values():
            progress.last_progress = now
        self._ack = None
        self._drop_outgoing()
        self._commit_told = 0
        super()._SyncObj__onBecomeLeader()
        self._log.request_sync()
        self._host.state_changed()

    # --- messages --------------------------------------------------------------------------

    def _SyncObj__onMessageReceived(self, node: Node, message: dict[str, Any]) -> None:
        type_ = message["type"]
        if type_ == "append_entries":
            self._on_append(node, message)
        elif type_ == "next_node_idx":
            self._on_reply(node, message)
        elif type_ == "pre_vote":
            self._on_pre_vote(node, message)
        elif type_ == "pre_vote_response":
            self._on_pre_vote_response(node, message)
        elif type_ == "snapshot_piece":
            self._on_snapshot_piece(node, message)
        elif type_ == "snapshot_end":
            self._on_snapshot_end(node, message)
        elif type_ == "snapshot_reply":
            self._on_snapshot_reply(node, message)
        elif type_ == "timeout_now":
            self._on_timeout_now(node, message)
        elif type_ == "request_vote" or (type_ == "response_vote" and self._counts(node)):
            super()._SyncObj__onMessageReceived(node, message)
            self._host.state_changed()
            self._host.wake()

    def _on_append(self, node: Node, message: dict[str, Any]) -> None:
        term = self._SyncObj__raftCurrentTerm
        if message["term"] < term:
            # A deposed leader learns of the later term and steps down.
            self._reply(node, message, next_index=self._log.last_index + 1, success=False)
            return
        self._follow(node, message["term"])
        if self._append(node, message):
            self._advance_commit(self._clamped_commit(message))
            self._ack = {"node": node, "session": message["session"], "round": message["round"]}
            # Entries are confirmed when they are durable; a heartbeat, and a leader that has not
            # heard from us for the time of one, is answered at once.
            silent_ms = (self._clock.monotonic() - self._last_ack) * 1000
            if not message["payload"] or silent_ms >= self._config.heartbeat_ms:
                self._confirm()

    def _follow(self, node: Node, term: int) -> None:
        """Accepts the sender as leader of its term and restarts the election timeout."""
        now = self._clock.monotonic()
        self._last_leader_contact = now
        if term > self._SyncObj__raftCurrentTerm:
            self._SyncObj__transferInProgress = False
            self._SyncObj__setCurrentTerm(term, None)
        else:
            invariant(
                self._SyncObj__raftState != LEADER,
                "two leaders in one term",
                term=term,
                other=node.id,
            )
        if not self._SyncObj__transferInProgress:
            self._SyncObj__raftElectionDeadline = now + self._SyncObj__generateRaftTimeout()
        self._drop_outgoing()
        changed = self._SyncObj__raftLeader != node
        self._SyncObj__raftLeader = node
        self._SyncObj__setState(FOLLOWER)
        if self._verified_term != term:
            self._verified_term = term
            self._verified = 0
        if changed:
            self._host.state_changed()

    def _append(self, node: Node, message: dict[str, Any]) -> bool:
        """Adds the entries of an append; False if it was refused or dropped. Rules (b), (d), (f).

        Nothing is confirmed here.
        """
        log = self._log
        previous = message.get("prevLogIdx")
        if previous is None:
            return False
        if previous > log.last_index or log.term_at(previous) != message["prevLogTerm"]:
            self._reply(
                node, message, next_index=self._mismatch_hint(previous), success=False, reset=True
            )
            return False
        entries = log.decode_records(memoryview(message["payload"])) if message["payload"] else ()
        check_sequence(entries, previous, message["term"])
        fresh = self._entries_to_write(entries)
        if fresh:
            try:
                log.reserve(sum(len(entry.record) for entry in fresh))
                if fresh[0].index <= log.last_index:
                    self._cut(fresh[0].index)
                    self._configurations_cut(fresh[0].index)
                self._membership.store_owed()
                self._note_configurations(fresh)
            except DiskFullError as error:
                # Not confirmed, so the leader will send it again; the others may go on.
                logger.warning("entries from the leader not stored: %s", error)
                return False
            log.append_records(fresh)
            log.request_sync()
        self._verified = max(self._verified, previous + len(entries))
        return True

    def _entries_to_write(self, entries: Sequence[Any]) -> Sequence[Any]:
        """Returns the entries from the first that the log does not hold (rule b)."""
        return entries_not_held(self._log, entries)

    def _cut(self, index: int) -> None:
        """Removes a tail that conflicts with the leader's log."""
        invariant(
            index > self._SyncObj__raftCommitIndex and index > self._SyncObj__raftLastApplied,
            "a committed entry would be truncated",
            index=index,
            commit_index=self._SyncObj__raftCommitIndex,
            applied_index=self._SyncObj__raftLastApplied,
        )
        logger.info(
            "truncating entries that were never committed: first_index=%d last_index=%d",
            index,
            self._log.last_index,
        )
        self._log.truncate_from(index)

    def _mismatch_hint(self, previous: int) -> int:
        """Returns the index from which the leader should send (rule d)."""
        return first_doubtful(self._log, previous, self._SyncObj__raftCommitIndex)

    def _clamped_commit(self, message: dict[str, Any]) -> int:
        """Returns how much of the leader's commit index this log is known to hold (rule c)."""
        return int(min(message["commit_index"], self._verified))

    def _advance_commit(self, index: int) -> None:
        self._SyncObj__leaderCommitIndex = index
        if index > self._SyncObj__raftCommitIndex:
            self._SyncObj__raftCommitIndex = index
            # Nobody waits for it here, but the leader, and producers, for what this replica syncs
            # and confirms: so it is applied a little later, together with what comes meanwhile.
            self._host.wake_within(self._config.apply_delay_ms / 1000)

    def _confirm(self) -> None:
        """Tells the leader how much of its log is durable here."""
        ack = self._ack
        if ack is None or self._SyncObj__raftLeader != ack["node"]:
            return
        self._last_ack = self._clock.monotonic()
        durable = min(self._verified, self._log.durable_index)
        if durable > 0:
            self._reply(ack["node"], ack, next_index=durable + 1, success=True)

    def _reply(
        self,
        node: Node,
        message: dict[str, Any],
        *,
        next_index: int,
        success: bool,
        reset: bool = False,
    ) -> None:
        self._host.send(
            node.id,
            {
                "type": "next_node_idx",
                "term": self._SyncObj__raftCurrentTerm,
                "next_node_idx": next_index,
                "success": success,
                "reset": reset,
                "session": message["session"],
                "round": message["round"],
            },
        )

    # --- the leader's side -----------------------------------------------------------------

    def _on_reply(self, node: Node, message: dict[str, Any]) -> None:
        if message["term"] > self._SyncObj__raftCurrentTerm:
            self._step_down(message["term"])
            return
        if self._SyncObj__raftState != LEADER or not self._is_current(message):
            return
        progress = self._progress.get(node.id)
        if progress is None:
            return
        now = self._clock.monotonic()
        self._heard_from(node, message["round"], now)
        if message["success"]:
            self._on_success(node, progress, message["next_node_idx"] - 1, now)
        elif message["reset"] and message["session"] == progress.session:
            match = self._SyncObj__raftMatchIndex[node]
            progress.restart(now)
            next_index = max(match + 1, message["next_node_idx"])
            self._SyncObj__raftNextIndex[node] = next_index
            if self._needs_snapshot(node, next_index):
                self._pump_snapshot(node)
        self._send_to(node)
        if self.can_commit() or not message["success"] or self._host.awaits_followers():
            self._host.wake()

    def _is_current(self, message: dict[str, Any]) -> bool:
        """Whether a reply belongs to this leadership (rule e)."""
        return bool(message["term"] == self._SyncObj__raftCurrentTerm)

    def _on_success(self, node: Node, progress: Progress, index: int, now: float) -> None:
        """Counts a confirmation; indexes only ever rise (rule a)."""
        progress.confirmed(index, now)
        self._raise_match(node)
        next_index = self._SyncObj__raftNextIndex
        next_index[node] = max(next_index[node], index + 1)

    def _raise_match(self, node: Node) -> None:
        """Counts what is durable on the follower *and* here, because the leader counts itself."""
        match = self._SyncObj__raftMatchIndex
        durable = min(self._progress[node.id].acked, self._log.durable_index)
        if durable > match[node]:
            match[node] = durable

    def _restart_sending(self, node: Node) -> None:
        progress = self._progress[node.id]
        progress.restart(self._clock.monotonic())
        # What was confirmed but is not yet counted need not be sent again either.
        confirmed = max(progress.acked, self._SyncObj__raftMatchIndex[node])
        if confirmed:
            self._SyncObj__raftNextIndex[node] = confirmed + 1
        if node.id in self._outgoing:
            self._outgoing[node.id].restart(self._clock.monotonic())

    def _SyncObj__sendAppendEntries(self) -> None:
        now = self._clock.monotonic()
        self._SyncObj__newAppendEntriesTime = now + self._config.heartbeat_ms / 1000
        self._round += 1
        for peer_id, peer in self._targets.items():
            if peer not in self._SyncObj__connectedNodes:
                continue
            progress = self._progress[peer_id]
            if peer_id in self._outgoing:
                self._pump_snapshot(peer, heartbeat=True)
                continue
            if progress.in_flight and self._is_stalled(peer_id, progress, now):
                self._restart_sending(peer)
            if not self._send_to(peer):
                self._send_append(peer, progress, entries=False)
        self._commit_told = self._SyncObj__raftCommitIndex
        self._log.request_sync()

    def _is_stalled(self, peer_id: str, progress: Progress, now: float) -> bool:
        """Whether what was sent got lost on the other side (a full disk there, for instance)."""
        silent_ms = (now - progress.last_progress) * 1000
        return silent_ms >= self._config.retransmit_ms and not self._host.buffered_bytes(peer_id)

    def _send_to(self, node: Node) -> bool:
        """Sends entries as far as the follower's window allows; False if none was due."""
        if node not in self._SyncObj__connectedNodes or node.id in self._outgoing:
            return False
        if node.id not in self._targets:
            return False  # it is being removed
        progress = self._progress[node.id]
        sent = False
        while (
            self._SyncObj__raftNextIndex[node] <= self._log.last_index
            and progress.in_flight_bytes < self._config.window_bytes
        ):
            if not self._send_append(node, progress, entries=True):
                break
            sent = True
        return sent

    def _send_append(self, node: Node, progress: Progress, *, entries: bool) -> bool:
        log = self._log
        if self._SyncObj__raftNextIndex[node] <= log.first_index and log.first_index > 1:
            # What it needs next was dropped here meanwhile.
            self._ask_floor(node)
        next_index = self._SyncObj__raftNextIndex[node]
        if not entries and progress.acked >= log.first_index:
            # A heartbeat names an entry that the follower is known to have, if there is one.
            next_index = progress.acked + 1
        previous_term = log.term_at(next_index - 1)
        invariant(
            previous_term is not None, "the leader's log lacks an entry", index=next_index - 1
        )
        message: dict[str, Any] = {
            "type": "append_entries",
            "term": self._SyncObj__raftCurrentTerm,
            "commit_index": self._SyncObj__raftCommitIndex,
            "prevLogIdx": next_index - 1,
            "prevLogTerm": previous_term,
            "session": progress.session,
            "round": self._round,
        }
        if not entries:
            return self._host.send(node.id, message)
        records, last_index = log.read_records(next_index, self._config.append_bytes_max)
        message["records"] = records
        if not self._host.send(node.id, message):
            return False
        if not progress.in_flight:
            progress.last_progress = self._clock.monotonic()
        progress.sent(last_index, sum(map(len, records)))
        self._SyncObj__raftNextIndex[node] = last_index + 1
        return True

    def _tell_commit_if_idle(self) -> None:
        """Broadcasts a new commit index when for a while no entries came that carry it.

        At once, it would cost all replicas a message and an answer just when the leader answers
        the producer, who often sends again soon.
        """
        commit = self._SyncObj__raftCommitIndex
        if commit <= self._commit_told or commit < self._log.last_index:
            self._notice_at = float("inf")
            return
        now = self._clock.monotonic()
        self._notice_at = min(self._notice_at, now + self._config.commit_notice_ms / 1000)
        if now >= self._notice_at:
            self._SyncObj__sendAppendEntries()
            self._notice_at = float("inf")

    # --- applying --------------------------------------------------------------------------

    def _SyncObj__applyLogEntries(self) -> bool:
        config = self._config
        applied = self._SyncObj__raftLastApplied
        # Never ahead of the own disk: after a power cut the state machine must not know entries
        # that the log lost.
        ready = min(self._SyncObj__raftCommitIndex, self._log.durable_index)
        if ready > applied:
            count = min(ready - applied, config.apply_count_max)
            entries = self._log.read_entries(applied + 1, count, config.apply_bytes_max)
            invariant(entries, "a committed entry is not in the log", index=applied + 1)
            if not self._host.apply(entries):
                return False
            self._SyncObj__raftLastApplied = entries[-1].index
            if entries[-1].index < ready:
                self._host.wake()
        # The library would broadcast after each application; entries on their way carry the
        # commit index, and `_tell_commit_if_idle` does it when there are none.
        return False

    def _SyncObj__getEntries(
        self, fromIDx: int | None, count: int | None = None, maxSizeBytes: int | None = None
    ) -> list[tuple[bytes, int, int]]:
        """Answers the commit rule, which asks for one entry and reads only its term.

        In a group of one it gets nothing that is not durable: it counts the leader in any case.
        """
        invariant(count == 1 and fromIDx is not None, "the library asked for a range of entries")
        if not self._SyncObj__otherNodes and (fromIDx or 0) > self._log.durable_index:
            return []
        term = self._log.term_at(fromIDx or 0)
        return [] if term is None else [(b"", fromIDx or 0, term)]

    def _SyncObj__onNodeConnected(self, node: Node) -> None:
        self._SyncObj__connectedNodes.add(node)

    def _SyncObj__onNodeDisconnected(self, node: Node) -> None:
        self._SyncObj__connectedNodes.discard(node)

    def _checkCommandsToApply(self) -> None:
        """On every tick; but `propose` leaves nothing waiting in the library's queue."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """The log is compacted by whole segments elsewhere, never by the library."""

    def _SyncObj__doApplyCommand(self, command: Any) -> None:
        raise InvariantError("the library wanted to unpickle a command")

    def _SyncObj__parseChangeClusterRequest(self, command: Any) -> None:
        """Membership changes never arrive as pickles."""
