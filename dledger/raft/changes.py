"""Changes of a group's configuration: on request, and the promotion of learners that caught up.

A leader proposes a change only when it serves (an entry of its own term is committed: without that
two leaders could build on different configurations that share no majority), when the change before
is committed, and when the configuration that results has a majority that it can reach right now.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from dledger.clock import Clock
from dledger.errors import ChangeRefusedError, DLedgerError, InvalidParameterError, NotLeaderError
from dledger.raft.config import RaftConfig
from dledger.raft.configuration import ADDRESS_BYTES_MAX, Configuration
from dledger.raft.protocols import ProposalCallback

logger = logging.getLogger(__name__)

# A learner that was refused promotion, or whose promotion failed, is looked at again after this.
_PAUSE_S = 0.5


class ChangingEngine(Protocol):
    """What a change needs of the engine."""

    def configuration(self) -> Configuration:
        """The one that counts."""
        ...

    def is_settled(self) -> bool:
        """Whether it is committed."""
        ...

    def connected_voters(self, configuration: Configuration) -> int:
        """How many voters of it can be reached, this replica included."""
        ...

    def confirmed_index(self, peer_id: str) -> int:
        """Up to where a peer has confirmed the log."""
        ...

    def last_index(self) -> int:
        """The end of this log."""
        ...


class ChangingNode(Protocol):
    """What a change needs of the node."""

    replica_id: str

    @property
    def is_serving(self) -> bool: ...  # noqa: D102 - as RaftNode
    @property
    def term(self) -> int: ...  # noqa: D102
    @property
    def leader_id(self) -> str | None: ...  # noqa: D102

    def propose_configuration(
        self, configuration: Configuration, callback: ProposalCallback
    ) -> None:
        """Proposes a configuration, as `propose` does a command."""
        ...

    async def transfer_leadership(self, target: str | None = None) -> str | None:
        """Hands the leadership over."""
        ...


class _Round:
    """One round of a learner's catching up: until it has what the log held at its beginning."""

    def __init__(self, target: int, began: float) -> None:
        self.target = target
        self.began = began


class Changes:
    """Changes one replica at a time."""

    def __init__(
        self,
        node: ChangingNode,
        engine: ChangingEngine,
        config: RaftConfig,
        clock: Clock,
        submit: Callable[[Callable[[ProposalCallback], None]], Awaitable[object]],
    ) -> None:
        """Prepares changes.

        Args:
            node: For proposing.
            engine: What is the case.
            config: A learner is caught up when a round takes less than the election timeout.
            clock: For rounds.
            submit: Turns what takes a callback into something to wait for.
        """
        self._node = node
        self._engine = engine
        self._round_s = config.election_timeout_min_ms / 1000
        self._clock = clock
        self._submit = submit
        self._rounds: dict[tuple[str, int], _Round] = {}
        self._pause_until = 0.0

    async def add(self, replica_id: str, address: str, raft_address: str) -> Configuration:
        """Makes a replica a learner; it becomes a voter by itself when it has caught up.

        Args:
            replica_id: Its name, which no member has.
            address: Where clients reach it.
            raft_address: Where the other replicas reach it.

        Returns:
            The configuration, committed. The replica's incarnation is in it.

        Raises:
            NotLeaderError: This replica does not serve.
            ChangeRefusedError: It cannot be, or not now; the text says why. Nothing has changed.
            InvalidParameterError: A name or address is empty or too long.
            LeadershipLostError, CommitTimeoutError: The outcome is unknown.
        """
        for text in (replica_id, address, raft_address):
            if not text or len(text) > ADDRESS_BYTES_MAX:
                raise InvalidParameterError(f"not a replica's name or address: {text!r}")
        self._check_possible()
        changed = self._engine.configuration().with_learner(replica_id, address, raft_address)
        return await self._propose(changed, f"adding {replica_id}")

    async def remove(self, replica_id: str) -> Configuration:
        """Removes a replica, for good: it cannot come back as who it was.

        A leader that is to remove itself hands the leadership over; the next one is to be asked.

        Returns, raises: as `add`.
        """
        self._check_possible()
        changed = self._engine.configuration().without(replica_id)
        self._check_reachable(changed, f"without {replica_id}")
        if replica_id == self._node.replica_id:
            leader = await self._node.transfer_leadership()
            raise NotLeaderError(leader, self._node.term)
        return await self._propose(changed, f"removing {replica_id}")

    def is_settled(self) -> bool:
        """Whether no change is under way, as far as this replica knows."""
        return self._engine.is_settled()

    def advance(self) -> None:
        """Promotes a learner that has caught up, if nothing else is under way. On every tick."""
        if not self._node.is_serving:
            self._rounds.clear()
            return
        configuration = self._engine.configuration()
        if not configuration.learners:
            self._rounds.clear()
            return
        now = self._clock.monotonic()
        for learner in configuration.learners:
            if self._has_caught_up(configuration, learner, now) and now >= self._pause_until:
                self._promote(configuration, learner)
                return

    def _has_caught_up(self, configuration: Configuration, learner: str, now: float) -> bool:
        member = configuration.member(learner)
        key = (learner, 0 if member is None else member.incarnation)
        round_ = self._rounds.get(key)
        if round_ is None:
            round_ = self._rounds[key] = _Round(self._engine.last_index(), now)
        if self._engine.confirmed_index(learner) < round_.target:
            return False
        self._rounds[key] = _Round(self._engine.last_index(), now)
        return now - round_.began < self._round_s

    def _promote(self, configuration: Configuration, learner: str) -> None:
        self._pause_until = self._clock.monotonic() + _PAUSE_S

        def done(_result: object, error: DLedgerError | None) -> None:
            if error is None:
                logger.info("promoted to voter: replica=%s", learner)

        try:
            self._check_possible()
            changed = configuration.with_promoted(learner)
            self._check_reachable(changed, f"with {learner}")
            self._node.propose_configuration(changed, done)
        except DLedgerError as error:
            logger.info("not promoted yet: replica=%s reason=%s", learner, error)

    def _check_possible(self) -> None:
        if not self._node.is_serving:
            raise NotLeaderError(self._node.leader_id, self._node.term)
        if not self._engine.is_settled():
            raise ChangeRefusedError("another change of the group is under way; try again")

    def _check_reachable(self, changed: Configuration, what: str) -> None:
        """Refuses what would leave the group without a majority right now."""
        reached = self._engine.connected_voters(changed)
        if reached < changed.majority:
            raise ChangeRefusedError(
                f"the group would lose its majority: {what} it needs {changed.majority} of "
                f"{len(changed.voters)} voters, and {reached} can be reached"
            )

    async def _propose(self, changed: Configuration, what: str) -> Configuration:
        logger.info("changing the group: %s", what)

        def propose(callback: ProposalCallback) -> None:
            self._node.propose_configuration(changed, callback)

        await self._submit(propose)
        return self._engine.configuration()
