"""One replica of a Raft group: the engine, the log, the state machine and the network together.

Every method runs on the event loop. The node ticks when something happened (a message, a proposal,
a sync that finished) and when a timeout is due; it owns no thread.
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from dledger.clock import Clock
from dledger.errors import (
    CommitTimeoutError,
    DiskFullError,
    DLedgerError,
    FlowControlError,
    InvalidParameterError,
    InvariantError,
    LeadershipLostError,
    NotLeaderError,
    PeerRefusedError,
    ProposalRejectedError,
    ProtocolError,
    StoreError,
    TransferFailedError,
)
from dledger.model import Role
from dledger.raft.changes import Changes
from dledger.raft.config import RaftConfig
from dledger.raft.configuration import Configuration, encode_entry
from dledger.raft.engine import Engine
from dledger.raft.membership import Membership
from dledger.raft.protocols import (
    Buffer,
    Identity,
    LogStorage,
    ProposalCallback,
    RaftListener,
    RaftTransport,
    SnapshotExchange,
    StampedCommand,
    StateMachine,
)
from dledger.raft.snapshot_host import SnapshotHost
from dledger.raft.transfer import Transfer
from dledger.raft.upstream import CANDIDATE, LEADER

logger = logging.getLogger(__name__)

TICK_MIN_S = 0.002
TICK_MAX_S = 0.1
APPLY_RETRY_S = 0.5
TRANSFER_TIMEOUT_S = 2.0


class _Proposal:
    __slots__ = ("callback", "deadline", "index", "size_bytes", "term")

    def __init__(
        self, index: int, term: int, size_bytes: int, deadline: float, callback: ProposalCallback
    ) -> None:
        self.index = index
        self.term = term
        self.size_bytes = size_bytes
        self.deadline = deadline
        self.callback = callback


class RaftNode(SnapshotHost):
    """Replicates commands and applies them in the same order on every replica."""

    def __init__(
        self,
        *,
        replica_id: str,
        bootstrap: Configuration,
        config: RaftConfig,
        log: LogStorage,
        machine: StateMachine,
        transport: RaftTransport,
        clock: Clock,
        random: random_module.Random,
        on_fatal: Callable[[BaseException], None],
        engine_class: type[Engine] = Engine,
        snapshots: SnapshotExchange | None = None,
        incarnation: int = 0,
    ) -> None:
        """Prepares a node; `start` brings it to life.

        Args:
            replica_id: This replica; unique in the group.
            bootstrap: Whom the group began with, or what a replica that joins was told of it. A
                configuration in the log wins.
            config: Timing and limits.
            log: Where entries, term and vote are stored.
            machine: What committed entries do.
            transport: Carries messages to the peers.
            clock: Time for elections and deadlines.
            random: Chance for election timeouts.
            on_fatal: Called once when the node must not go on (a failed disk, a broken
                invariant). The node has stopped taking part by then.
            snapshots: For followers that need entries which a leader no longer holds; a group
                whose logs keep everything needs none.
            engine_class: For the fault-injection harness, which plants faults in subclasses.
            incarnation: Of a replica that joins; only looked at if the log is a new one.

        Raises:
            ReplicaRemovedError: It was removed from the group.
            StoreError: The log belongs to another replica, or cannot be written.
        """
        self.replica_id = replica_id
        self._config = config
        self._log = log
        self._machine = machine
        self._transport = transport
        self._clock = clock
        self._on_fatal = on_fatal
        self._snapshots = snapshots
        self._listeners: list[RaftListener] = []
        self._pending: deque[_Proposal] = deque()
        self._pending_bytes = 0
        self._barriers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._transfer: Transfer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._tick_at = 0.0  # never before the timer's time, which looks again
        self._tick_scheduled = False
        self._stopped = False
        self._serving_term: int | None = None
        self._told_leader: tuple[str | None, int] = (None, 0)
        self._apply_blocked_until = 0.0
        self._apply_error: DiskFullError | None = None  # why committed entries wait
        self._membership = Membership(
            log,
            replica_id,
            bootstrap,
            incarnation=incarnation,
            directory_id=f"{random.getrandbits(64):016x}",
        )
        self._engine = engine_class(replica_id, self._membership, config, log, self, clock, random)
        self.changes = Changes(self, self._engine, config, clock, self._wait)
        catch_up_index = 0 if snapshots is None else snapshots.catch_up_index
        self._engine.restore(machine.applied_index, catch_up_index)

    # --- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begins to take part in the group."""
        self._loop = asyncio.get_running_loop()
        self._log.subscribe_durable(self._on_durable)
        self._log.subscribe_failure(self._fatal)
        self._log.request_sync()
        await self._transport.start(self, self._membership.places())
        self._arm_timer()

    async def stop(self) -> None:
        """Stops taking part. Proposals under way end as indefinite."""
        if not self._stopped:
            self._halt(LeadershipLostError("the replica was stopped; the outcome is unknown"))
        # Also after a failure, which ends taking part but leaves the connections to this call.
        await self._transport.stop()

    def crash(self) -> None:
        """Stops as a killed process does: nobody is told anything."""
        self._stopped = True
        self._disarm()
        self._engine.close_snapshots()

    def _halt(self, error: DLedgerError) -> None:
        self._stopped = True
        self._disarm()
        self._engine.close_snapshots()
        self._fail_pending(error)
        self._fail_barriers(error)
        if self._transfer is not None:
            self._transfer.abandon()
            self._transfer = None
        if self._serving_term is not None:
            self._serving_term = None
            for listener in self._listeners:
                listener.on_stopped_serving()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fatal(self, error: BaseException) -> None:
        if self._stopped:
            return
        self._halt(LeadershipLostError(f"the replica stopped: {error}; the outcome is unknown"))
        self._on_fatal(error)

    # --- what others ask --------------------------------------------------------------------

    def add_listener(self, listener: RaftListener) -> None:
        """Tells the listener about leadership from now on."""
        self._listeners.append(listener)

    @property
    def role(self) -> Role:
        """This replica's role, as it believes."""
        state = self._engine.raft_state()
        return {LEADER: Role.LEADER, CANDIDATE: Role.CANDIDATE}.get(state, Role.FOLLOWER)

    @property
    def term(self) -> int:
        """The current term."""
        return self._engine.raft_term()

    @property
    def leader_id(self) -> str | None:
        """The known leader, perhaps this replica."""
        return self._engine.raft_leader_id()

    @property
    def is_serving(self) -> bool:
        """Whether this replica leads and has applied everything committed before its term.

        Not while it hands the leadership over: what only a leader may do then waits for the next.
        """
        # A message may have deposed this leader a moment before the listeners hear of it.
        engine, term = self._engine, self._serving_term
        return (
            term is not None
            and self._transfer is None
            and engine.raft_state() == LEADER
            and engine.raft_term() == term
        )

    @property
    def commit_index(self) -> int:
        """The highest index known here to be committed."""
        return self._engine.commit_index()

    @property
    def applied_index(self) -> int:
        """The highest index applied here."""
        return self._machine.applied_index

    @property
    def durable_index(self) -> int:
        """The highest index durable here."""
        return self._log.durable_index

    @property
    def pending_bytes(self) -> int:
        """Bytes of proposals under way."""
        return self._pending_bytes

    def peer_progress(self) -> dict[str, dict[str, int]]:
        """On a leader: each follower's match index, next index and bytes in flight."""
        return self._engine.peer_progress() if self._engine.raft_state() == LEADER else {}

    @property
    def configuration(self) -> Configuration:
        """Who belongs to the group, as far as this replica knows."""
        return self._membership.current

    @property
    def identity(self) -> Identity:
        """Who this replica is."""
        return self._membership.identity

    def propose_configuration(
        self, configuration: Configuration, callback: ProposalCallback
    ) -> None:
        """Proposes another configuration; see `changes`, which knows when that is allowed.

        Raises, calls back: as `propose`.
        """
        size = len(encode_entry(configuration))
        self._propose(size, lambda: self._engine.propose_configuration(configuration), callback)

    def propose(self, command: Buffer | StampedCommand, callback: ProposalCallback) -> None:
        """Proposes a command; the callback gets `(result, None)` or `(None, error)`, once.

        Raises, without calling back and with nothing proposed:
            NotLeaderError: This replica does not serve as leader.
            FlowControlError: Too many bytes are under way.
            ProposalRejectedError: The command is larger than `entry_bytes_max`.
            DiskFullError: No room in the log, or not for the effects of entries already committed.

        The callback's error is LeadershipLostError or CommitTimeoutError (indefinite), or
        ProposalRejectedError (definite: another entry took the place).

        Durability: on success the entry is durable on a majority and applied here.
        """
        size = command.size_bytes if hasattr(command, "size_bytes") else len(command)
        self._propose(size, lambda: self._engine.propose(command), callback)

    def _propose(self, size: int, append: Callable[[], int], callback: ProposalCallback) -> None:
        term = self._serving_term
        if term is None or self._stopped or not self.is_serving:
            raise NotLeaderError(self.leader_id, self.term)
        if size > self._config.entry_bytes_max:
            raise ProposalRejectedError(
                f"command of {size} bytes exceeds the limit of {self._config.entry_bytes_max}"
            )
        if self._pending_bytes + size > self._config.pending_bytes_max:
            raise FlowControlError(
                f"raft.pending_bytes_max: {self._pending_bytes} bytes are under way"
            )
        if self._apply_error is not None:
            # It could be committed but not answered: more of what nobody can be told of.
            raise self._apply_error
        self._log.reserve(size + self._log.record_header_bytes)
        try:
            index = append()
        except (InvariantError, StoreError) as error:
            self._fatal(error)
            raise
        deadline = self._clock.monotonic() + self._config.proposal_timeout_ms / 1000
        self._pending.append(_Proposal(index, term, size, deadline, callback))
        self._pending_bytes += size

    async def submit(self, command: Buffer | StampedCommand) -> object:
        """Proposes a command and waits for its result; raises what `propose` reports."""
        return await self._wait(lambda callback: self.propose(command, callback))

    async def _wait(self, propose: Callable[[ProposalCallback], None]) -> object:
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        def done(result: object, error: DLedgerError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        propose(done)
        return await future

    async def read_barrier(self) -> None:
        """Waits until this leader is confirmed by a majority and has applied what it knew.

        What is read here afterwards includes everything acknowledged before the call.

        Raises:
            NotLeaderError: This replica does not serve, or stopped serving meanwhile.
            DiskFullError: Committed entries cannot be applied for want of space.
        """
        # Not `_serving_term`: a message may have deposed this leader just now, and its broadcast
        # would carry the new term, as if two led in it.
        if self._stopped or not self.is_serving:
            raise NotLeaderError(self.leader_id, self.term)
        if self._apply_error is not None:
            raise self._apply_error
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        commit_index = self.commit_index
        self._barriers.append((self._engine.begin_round(), commit_index, future))
        self.wake()
        await future

    async def transfer_leadership(
        self, target: str | None = None, *, timeout_s: float = TRANSFER_TIMEOUT_S
    ) -> str | None:
        """Hands the leadership to a follower that has the whole log.

        Args:
            target: The follower; any one that is ready if None.
            timeout_s: For all of it. Meanwhile nothing can be proposed here.

        Returns:
            The new leader, this replica if it is the target; None if it is not known yet.

        Raises:
            NotLeaderError: This replica does not serve.
            InvalidParameterError: `target` is not a voter of the group.
            TransferFailedError: Nobody was ready, or one is under way already; this leader goes on.
            CommitTimeoutError: The follower was asked but did not take over in time; it still may.
        """
        if self._stopped or (not self.is_serving and self._transfer is None):
            raise NotLeaderError(self.leader_id, self.term)
        if self._transfer is not None:
            raise TransferFailedError("the leadership is being handed over already")
        if target == self.replica_id:
            return target
        peers = self._engine.voter_ids()
        if target is not None and target not in peers:
            raise InvalidParameterError(f"{target} is not a voting replica of this group")
        candidates = peers if target is None else [target]
        deadline = self._clock.monotonic() + timeout_s
        transfer = self._transfer = Transfer(candidates, self.term, deadline)
        logger.info("handing the leadership over: term=%d target=%s", self.term, target or "any")
        self.wake()
        return await transfer.result

    # --- the engine's host ------------------------------------------------------------------

    def send(self, peer_id: str, message: dict[str, Any]) -> bool:
        """Sends a message of the engine."""
        return not self._stopped and self._transport.send(peer_id, message)

    def buffered_bytes(self, peer_id: str) -> int:
        """Bytes to the peer that the network has not taken."""
        return self._transport.buffered_bytes(peer_id)

    def apply(self, entries: Sequence[Any]) -> bool:
        """Applies committed entries and answers their proposals."""
        if self._clock.monotonic() < self._apply_blocked_until:
            return False
        try:
            results = self._machine.apply(entries)
        except DiskFullError as error:
            # The log is safe; the state catches up when there is space again.
            if self._apply_error is None:
                logger.warning("cannot apply committed entries: %s", error)
            self._apply_error = error
            self._apply_blocked_until = self._clock.monotonic() + APPLY_RETRY_S
            self._fail_barriers(error)
            return False
        if self._apply_error is not None:
            self._apply_error = None
            logger.info("committed entries are applied again: applied_index=%d", self.applied_index)
        pending = self._pending
        if pending:
            for entry, result in zip(entries, results, strict=True):
                while pending and pending[0].index <= entry.index:
                    self._answer(pending.popleft(), entry, result)
        return True

    def _answer(self, proposal: _Proposal, entry: Any, result: object) -> None:
        self._pending_bytes -= proposal.size_bytes
        if proposal.index == entry.index and proposal.term == entry.term:
            proposal.callback(result, None)
        else:
            error = ProposalRejectedError("another leader's entry took the place; not stored")
            proposal.callback(None, error)

    def state_changed(self) -> None:
        """Looks at role and leader after the current call has finished."""
        self.wake()

    def members_changed(self) -> None:
        """Connects to whom the configuration names."""
        if self._loop is not None and not self._stopped:
            self._transport.set_peers(self._membership.places())

    def awaits_followers(self) -> bool:
        """Whether a barrier, a transfer or a learner waits for answers of followers."""
        return bool(self._barriers or self._transfer is not None or self.configuration.learners)

    def wake(self) -> None:
        """Ticks once, soon."""
        if self._tick_scheduled or self._stopped or self._loop is None:
            return
        self._tick_scheduled = True
        self._loop.call_soon(self._tick_if_scheduled)

    def wake_within(self, delay_s: float) -> None:
        """Ticks after so long at the latest."""
        if self._tick_scheduled or self._stopped or self._loop is None:
            return
        self._tick_at = min(self._tick_at, self._loop.time() + delay_s)
        if self._timer is None or self._tick_at < self._timer_at:
            self._set_timer()

    # --- who may talk to us -----------------------------------------------------------------

    def admit(self, peer: Identity) -> None:
        """Checks whether a replica may talk to this one; see `Membership.admit`."""
        if self._membership.admit(peer):
            self._engine.peers_changed()

    def on_refused(self, peer_id: str, error: DLedgerError) -> None:
        """Stops for good if a peer knows that this replica must not take part any more."""
        if self._stopped or isinstance(error, PeerRefusedError):
            return
        logger.critical("told by %s: %s", peer_id, error)
        try:
            self._membership.fence(str(error))
        except StoreError as failure:
            logger.error("not remembered: %s", failure)
        self._fatal(error)

    # --- events -----------------------------------------------------------------------------

    def on_message(self, peer_id: str, message: dict[str, Any]) -> None:
        """Handles a peer's message."""
        if self._stopped:
            return
        try:
            self._engine.receive(peer_id, message)
        except ProtocolError:
            raise  # the peer's fault: the transport closes that connection
        except Exception as error:
            self._fatal(error)

    def on_peer_up(self, peer_id: str) -> None:
        """Handles a new connection to a peer."""
        if not self._stopped:
            self._engine.peer_up(peer_id)
            self.wake()

    def on_peer_down(self, peer_id: str, *, reset: bool) -> None:
        """Handles a lost connection to a peer."""
        if not self._stopped:
            self._engine.peer_down(peer_id, reset=reset)
            self.wake()

    def _on_durable(self, _index: int) -> None:
        if self._stopped:
            return
        try:
            self._engine.durable_changed()
        except Exception as error:
            self._fatal(error)
        # Often the last thing that a commit has waited for: another turn of the loop first, with
        # the sync thread at the interpreter, would cost as much as the commit itself.
        self._tick_if_scheduled()

    def _tick_if_scheduled(self) -> None:
        if self._tick_scheduled:
            self._tick()

    def _tick(self) -> None:
        self._tick_scheduled = False
        if self._stopped:
            return
        try:
            self._engine.tick()
        except Exception as error:  # the top of all consensus work: nothing may pass silently
            self._fatal(error)
            return
        self._follow_leadership()
        self._expire()
        self._release_barriers()
        self._advance_transfer()
        self.changes.advance()
        self._arm_timer()

    def _arm_timer(self) -> None:
        if self._loop is None or self._stopped:
            return
        delay = self._engine.next_deadline() - self._clock.monotonic()
        self._tick_at = self._loop.time() + min(max(delay, TICK_MIN_S), TICK_MAX_S)
        # Ticks come by the thousand, and nearly all of them only put the next one off: the timer
        # is left alone then.
        if self._timer is None or self._tick_at < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        self._disarm()
        if self._loop is not None:
            self._timer_at = self._tick_at
            self._timer = self._loop.call_at(self._tick_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._loop is not None and self._tick_at - self._loop.time() > TICK_MIN_S:
            self._set_timer()
        else:
            self._tick()

    def _follow_leadership(self) -> None:
        """Tells the listeners what changed."""
        engine = self._engine
        term = engine.raft_term()
        leading = engine.raft_state() == LEADER
        if self._serving_term is not None and (not leading or term != self._serving_term):
            self._serving_term = None
            error = LeadershipLostError("leadership was lost; the outcome is unknown")
            self._fail_pending(error)
            self._fail_barriers(NotLeaderError(engine.raft_leader_id(), term))
            logger.info("stopped serving: term=%d", term)
            for listener in self._listeners:
                listener.on_stopped_serving()
        leader = (engine.raft_leader_id(), term)
        if leader != self._told_leader:
            self._told_leader = leader
            logger.info("leader changed: term=%d leader=%s", term, leader[0])
            for listener in self._listeners:
                listener.on_leader_changed(*leader)
        if self._serving_term is None and leading and engine.no_op_applied():
            self._serving_term = term
            logger.info("serving as leader: term=%d applied_index=%d", term, self.applied_index)
            for listener in self._listeners:
                listener.on_serving(term)

    def _advance_transfer(self) -> None:
        transfer = self._transfer
        if transfer is None:
            return
        is_settled = not self._pending and self.commit_index == self._log.last_index
        now = self._clock.monotonic()
        if transfer.advance(self._engine, self.replica_id, now, is_settled=is_settled):
            self._transfer = None

    def _fail_pending(self, error: DLedgerError) -> None:
        pending, self._pending = self._pending, deque()
        self._pending_bytes = 0
        for proposal in pending:
            proposal.callback(None, error)

    def _fail_barriers(self, error: DLedgerError) -> None:
        barriers, self._barriers = self._barriers, []
        for _number, _index, future in barriers:
            if not future.done():
                future.set_exception(error)

    def _expire(self) -> None:
        now = self._clock.monotonic()
        while self._pending and self._pending[0].deadline <= now:
            proposal = self._pending.popleft()
            self._pending_bytes -= proposal.size_bytes
            waited = self._config.proposal_timeout_ms
            error = CommitTimeoutError(f"no majority within {waited} ms; the outcome is unknown")
            proposal.callback(None, error)

    def _release_barriers(self) -> None:
        if not self._barriers:
            return
        waiting = []
        for number, index, future in self._barriers:
            if self._engine.round_confirmed(number) and self.applied_index >= index:
                if not future.done():
                    future.set_result(None)
            else:
                waiting.append((number, index, future))
        self._barriers = waiting
