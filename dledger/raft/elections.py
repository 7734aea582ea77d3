"""How a replica comes to lead: pre-vote, and leadership handed over on request.

A replica answers whoever asks for its vote: that it is asked means that somebody counts it, and a
learner may not have heard yet that it was promoted. Who counts an answer looks at its own
configuration. A learner never asks.

The election itself (terms, votes, counting) stays the library's. Added here: a pre-vote before the
library may raise the term, and a `timeout_now` that is obeyed only if it comes from the leader of
this very term.
"""

from __future__ import annotations

import random as random_module
from typing import Any

from pysyncobj.node import Node

from dledger.raft.config import RaftConfig
from dledger.raft.roster import Roster
from dledger.raft.upstream import FOLLOWER, LEADER


class Elections(Roster):
    """The part of the engine that is about becoming and ceasing to be the leader."""

    _SyncObj__raftElectionDeadline: float
    _config: RaftConfig
    _random: random_module.Random
    _pre_votes: set[str] | None
    _last_leader_contact: float

    def _campaign_if_due(self) -> None:
        """Holds a pre-vote before the library may raise the term (defect 8).

        Without it a replica that was cut off comes back with a higher term and deposes a healthy
        leader.
        """
        now = self._clock.monotonic()
        if self._SyncObj__raftElectionDeadline >= now or self._SyncObj__transferInProgress:
            return
        if not self._membership.is_voter:
            # The library would stand for election.
            self._SyncObj__raftElectionDeadline = now + self._SyncObj__generateRaftTimeout()
            return
        if not self._SyncObj__otherNodes or not self._SyncObj__connectedToAnyone():
            return
        # A pre-vote changes nothing, so it may be repeated soon when there is no leader to disturb:
        # the others may notice a little later that its connection was closed.
        leader_gone = self._last_leader_contact == float("-inf")
        self._SyncObj__raftElectionDeadline = now + (
            self._short_delay() if leader_gone else self._SyncObj__generateRaftTimeout()
        )
        self._pre_votes = set()
        for peer_id in self.voter_ids():
            self._host.send(
                peer_id,
                {
                    "type": "pre_vote",
                    "term": self._SyncObj__raftCurrentTerm + 1,
                    "last_log_index": self._log.last_index,
                    "last_log_term": self._log.last_term,
                },
            )

    def _SyncObj__connectedToAnyone(self) -> bool:
        """Whether an election makes sense: learners do not vote.

        The library asks right before it stands for election, a moment after `_campaign_if_due`.
        """
        voters = self._SyncObj__otherNodes
        return self._membership.is_voter and (
            not voters or not voters.isdisjoint(self._SyncObj__connectedNodes)
        )

    def _on_pre_vote(self, node: Node, message: dict[str, Any]) -> None:
        current = self._SyncObj__raftCurrentTerm
        theirs = (message["last_log_term"], message["last_log_index"])
        silence = self._clock.monotonic() - self._last_leader_contact
        granted = (
            message["term"] > current
            and theirs >= (self._log.last_term, self._log.last_index)
            and self._SyncObj__raftState != LEADER
            and silence * 1000 >= self._config.election_timeout_min_ms
        )
        self._host.send(
            node.id,
            {
                "type": "pre_vote_response",
                "term": message["term"],
                "current_term": current,
                "granted": granted,
            },
        )

    def _on_pre_vote_response(self, node: Node, message: dict[str, Any]) -> None:
        if self._SyncObj__raftState == LEADER:
            return
        if message["current_term"] > self._SyncObj__raftCurrentTerm:
            self._step_down(message["current_term"])
            return
        if (
            self._pre_votes is None
            or not self._counts(node)
            or not message["granted"]
            or message["term"] != self._SyncObj__raftCurrentTerm + 1
        ):
            return
        self._pre_votes.add(node.id)
        if (len(self._pre_votes) + 1) * 2 > len(self._SyncObj__otherNodes) + 1:
            self._pre_votes = None
            self._SyncObj__raftElectionDeadline = float("-inf")
            self._onTick(0)
            self._host.wake()

    def _step_down(self, term: int) -> None:
        """Enters a later term as a follower without a leader."""
        self._SyncObj__setCurrentTerm(term, None)
        self._SyncObj__setState(FOLLOWER)
        self._SyncObj__raftLeader = None
        self._pre_votes = None
        self._host.state_changed()

    def _state_changed(self, _old: int, _new: int) -> None:
        self._pre_votes = None
        self._host.state_changed()

    def _SyncObj__generateRaftTimeout(self) -> float:
        config = self._config
        return (
            self._random.uniform(config.election_timeout_min_ms, config.election_timeout_max_ms)
            / 1000
        )

    def _short_delay(self) -> float:
        return self._random.uniform(0.005, self._config.reset_election_max_ms / 1000)

    # --- handing over ----------------------------------------------------------------------

    def is_caught_up(self, peer_id: str) -> bool:
        """Whether, on a leader, a connected follower has confirmed the whole log."""
        peer, progress = self._targets.get(peer_id), self._progress.get(peer_id)
        return (
            peer is not None
            and progress is not None
            and peer in self._SyncObj__connectedNodes
            and progress.acked == self._log.last_index
        )

    def send_timeout_now(self, peer_id: str) -> bool:
        """Asks a follower to hold an election at once; False if it could not be sent."""
        message = {"type": "timeout_now", "term": self._SyncObj__raftCurrentTerm}
        return self._host.send(peer_id, message)

    def _on_timeout_now(self, node: Node, message: dict[str, Any]) -> None:
        """Holds an election without a pre-vote: the leader itself wants to be replaced.

        One that was late, or that comes from somebody else, is ignored: it would depose a healthy
        leader.
        """
        leader = self._SyncObj__raftLeader
        if (
            message["term"] != self._SyncObj__raftCurrentTerm
            or self._SyncObj__raftState != FOLLOWER
            or leader is None
            or leader != node
            or not self._membership.is_voter
        ):
            return
        self._pre_votes = None
        self._SyncObj__raftElectionDeadline = float("-inf")
        self._onTick(0)
        self._host.state_changed()
        self._host.wake()
