"""Who counts: the engine's view of the group's configuration.

The library knows `otherNodes`, which count, and `readonlyNodes`, which do not. Voters are made the
one and learners the other whenever the configuration changes, so that its commit rule, its check
quorum and its vote requests need no change and cost nothing more.

A leader is always a voter of its own configuration: it hands the leadership over before it is
removed. A replica that is being removed gets no entries any more from the moment the change is in
the leader's log, so it never holds the configuration that excludes it, and remains able to be
elected should the change not be committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pysyncobj import SyncObj
from pysyncobj.node import Node

from dledger.clock import Clock
from dledger.errors import ChangeRefusedError, DiskFullError, invariant
from dledger.raft.configuration import Configuration, encode_entry
from dledger.raft.membership import Membership, configurations_in
from dledger.raft.progress import Progress
from dledger.raft.protocols import EngineHost, LogStorage
from dledger.raft.upstream import LEADER, Peer


class Roster(SyncObj):  # type: ignore[misc]
    """The part of the engine that knows the members."""

    _clock: Clock
    _host: EngineHost
    _log: LogStorage
    _membership: Membership
    _peers: dict[str, Peer]  # of all configurations that may yet count
    _targets: dict[str, Peer]  # the other members of the current one: who is sent entries
    _lives: dict[str, int]  # incarnation of each peer
    _progress: dict[str, Progress]

    def configuration(self) -> Configuration:
        """Returns the configuration that counts."""
        return self._membership.current

    def propose_configuration(self, configuration: Configuration) -> int:
        """Appends a configuration as leader and returns its index. It counts at once.

        Raises:
            ChangeRefusedError: The disk is full. Nothing has changed.
        """
        index, term = self._log.last_index + 1, int(self._SyncObj__raftCurrentTerm)
        try:
            self._membership.append(configuration.placed(index, term))
        except DiskFullError as error:
            raise ChangeRefusedError(f"the group stays as it is: {error}") from error
        # Before it is sent: who is removed by it must not get it.
        self._members_changed()
        placed = self.propose(encode_entry(configuration))
        invariant(placed == index, "a configuration got another place", index=index)
        return index

    def propose(self, command: Any) -> int:
        """Appends a command as leader and returns its index."""
        raise NotImplementedError

    def voter_ids(self) -> list[str]:
        """Returns the other voters."""
        return [peer_id for peer_id, peer in self._targets.items() if self._counts(peer)]

    def peers_changed(self) -> None:
        """Takes note of a peer that the configurations known here do not name yet."""
        self._members_changed()

    def is_settled(self) -> bool:
        """Whether no change of the configuration is under way."""
        return self._membership.is_settled

    def connected_voters(self, configuration: Configuration) -> int:
        """Returns how many voters of a configuration can be reached, this one included."""
        connected = {peer.id for peer in self._SyncObj__connectedNodes}
        own = self._membership.identity.replica_id
        return sum(voter == own or voter in connected for voter in configuration.voters)

    def peer_progress(self) -> dict[str, dict[str, int]]:
        """Returns, on a leader, how far each follower is."""
        return {
            peer_id: {
                "match_index": int(self._SyncObj__raftMatchIndex.get(peer, 0)),
                "next_index": int(self._SyncObj__raftNextIndex.get(peer, 0)),
                "in_flight_bytes": self._progress[peer_id].in_flight_bytes,
                **self._snapshot_progress(peer_id),
                "connected": int(peer in self._SyncObj__connectedNodes),
            }
            for peer_id, peer in self._targets.items()
        }

    def confirmed_index(self, peer_id: str) -> int:
        """Returns, on a leader, up to where a peer has confirmed the log."""
        progress = self._progress.get(peer_id)
        return 0 if progress is None else progress.acked

    def last_index(self) -> int:
        """Returns the end of the log."""
        return self._log.last_index

    def _counts(self, node: Node) -> bool:
        """Whether a peer is a voter."""
        return node in self._SyncObj__otherNodes

    def _note_configurations(self, entries: Sequence[Any]) -> None:
        """Takes the configurations among entries that are about to be written.

        Raises:
            DiskFullError: None of them counts.
        """
        found = configurations_in(entries)
        if not found:
            return
        try:
            for configuration in found:
                self._membership.append(configuration)
        except DiskFullError:
            self._membership.truncated(found[0].index)
            raise
        self._members_changed()

    def _configurations_cut(self, index: int) -> None:
        """Goes back to the configuration before, if entries from `index` on held a later one."""
        try:
            self._membership.truncated(index)
        finally:
            self._members_changed()  # it is gone from the log, whether or not that was noted

    def _settle_configuration(self) -> None:
        """Takes note of a configuration that has been committed."""
        if not self._membership.is_settled and self._membership.settle(
            int(self._SyncObj__raftCommitIndex)
        ):
            self._members_changed()

    def _members_changed(self) -> None:
        """Makes what counts what the configuration says."""
        current, known = self._membership.current, self._membership.peers()
        for peer_id in [peer_id for peer_id in self._peers if peer_id not in known]:
            self._forget(peer_id)
        for peer_id, member in known.items():
            if self._lives.get(peer_id) != member.incarnation:
                self._forget(peer_id)  # somebody else under the same name
                self._peers[peer_id] = Peer(peer_id)
                self._lives[peer_id] = member.incarnation
        self._peers = {peer_id: self._peers[peer_id] for peer_id in known}
        self._targets = {
            peer_id: peer
            for peer_id, peer in self._peers.items()
            if current.has(peer_id, self._lives[peer_id])
        }
        voters = set(current.voters)
        heard = {p for i, p in self._targets.items() if i in voters}
        self._SyncObj__otherNodes = heard | self._voters_gone(current)
        self._SyncObj__readonlyNodes = {p for i, p in self._targets.items() if i not in voters}
        if self._SyncObj__raftState == LEADER:
            self._follow_targets()
        self._host.members_changed()

    def _voters_gone(self, current: Configuration) -> set[Peer]:
        """Returns stand-ins for voters whose names have another life by now.

        They count until the configuration that removed them is known here, and nobody answers for
        them. Without them who is far behind could be a majority of fewer, even of itself.
        """
        own = self._membership.identity.replica_id
        gone = {
            Peer(f"{member.id} (incarnation {member.incarnation})")
            for member in current.members
            if member.is_voter and member.id != own and member.id not in self._targets
        }
        for peer in gone:  # as a leader
            self._SyncObj__raftNextIndex.setdefault(peer, self._log.last_index + 1)
            self._SyncObj__raftMatchIndex.setdefault(peer, 0)
            self._SyncObj__lastResponseTime.setdefault(peer, float("-inf"))
        return gone

    def _forget(self, peer_id: str) -> None:
        peer = self._peers.pop(peer_id, None)
        self._lives.pop(peer_id, None)
        if peer is not None:
            self._SyncObj__connectedNodes.discard(peer)
            self._stop_sending(peer_id)

    def _follow_targets(self) -> None:
        """As leader: sends to who is a member now, and to nobody else."""
        for peer_id in [peer_id for peer_id in self._progress if peer_id not in self._targets]:
            self._stop_sending(peer_id)
        now = self._clock.monotonic()
        for peer_id, peer in self._targets.items():
            if peer_id not in self._progress:
                progress = self._progress[peer_id] = Progress()
                progress.last_progress = now
                self._SyncObj__raftNextIndex[peer] = self._log.last_index + 1
                self._SyncObj__raftMatchIndex[peer] = 0
                self._SyncObj__lastResponseTime[peer] = now

    def _stop_sending(self, peer_id: str) -> None:
        self._progress.pop(peer_id, None)
        self._drop_outgoing(peer_id)

    def _snapshot_progress(self, peer_id: str) -> dict[str, int]:
        raise NotImplementedError

    def _drop_outgoing(self, peer_id: str | None = None) -> None:
        raise NotImplementedError
