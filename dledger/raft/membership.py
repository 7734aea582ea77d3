"""What one replica knows of its group and of itself, kept durable beside its vote.

The newest configuration in the log counts, committed or not. Since a change is proposed only when
the one before is committed, an uncommitted one that is truncated gives way to the one before it.
All this is known at a start without reading the log: a configuration is stored *before* its entry
is written, with the entry's index and term; at a start those whose entries are not in the log
are dropped. A committed one is never dropped: it may have come with a snapshot, ahead of the log.

The data directory has an identity too: a random number made with it. Peers remember it the first
time they meet, so an emptied directory under an old name is noticed and refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec

from dledger.errors import (
    PeerRefusedError,
    ReplicaRemovedError,
    ReplicaReplacedError,
    StoreError,
)
from dledger.raft.configuration import (
    CONFIGURATION_TYPE,
    MEMBERS_MAX,
    Configuration,
    Member,
    decode_entry,
)
from dledger.raft.protocols import Identity, LogStorage, PeerPlace

logger = logging.getLogger(__name__)

_VERSION = 1
HOW_TO_REBUILD = "rebuild it with `dledger replica rebuild`"


class _Stored(msgspec.Struct, array_like=True, kw_only=True):
    version: int
    replica_id: str
    incarnation: int
    directory_id: str
    committed: Configuration
    pending: list[Configuration]
    met: dict[str, tuple[int, str]]  # incarnation and directory of each peer
    removed: str  # why this replica must not take part any more; empty if it may


class Membership:
    """The configurations of one replica's log, and its identity."""

    def __init__(
        self,
        log: LogStorage,
        replica_id: str,
        bootstrap: Configuration,
        *,
        incarnation: int = 0,
        directory_id: str,
    ) -> None:
        """Opens what the log's directory holds, or begins with what is given.

        Args:
            log: Of this replica.
            replica_id: Its name.
            bootstrap: What the group began with, or what a replica that joins was told. Any
                configuration of the log wins over it.
            incarnation: Of a replica that joins; only for a new data directory.
            directory_id: For a new data directory.

        Raises:
            StoreError: The directory belongs to another replica, or cannot be written.
            ReplicaRemovedError: It was removed from its group.

        Durability: a new identity is stored on return.
        """
        self._log = log
        self._guests: dict[str, Member] = {}  # of configurations not known here yet
        self._is_owed = False  # the disk has not taken yet what counts here
        data = log.members
        if data is None:
            self._stored = _Stored(
                version=_VERSION,
                replica_id=replica_id,
                incarnation=incarnation,
                directory_id=directory_id,
                committed=bootstrap,
                pending=[],
                met={},
                removed="",
            )
            self._save()
        else:
            self._stored = _open(data, replica_id, bootstrap)
            self._drop_unwritten()
        if self._stored.removed:
            raise ReplicaRemovedError(self._stored.removed)

    def _drop_unwritten(self) -> None:
        """Forgets configurations whose entries never reached the log, or not this log."""
        log, stored = self._log, self._stored
        kept = [
            found
            for found in stored.pending
            if found.index > stored.committed.index
            # What was dropped at the front was committed.
            and (found.index < log.first_index or log.term_at(found.index) == found.term)
        ]
        if len(kept) < len(stored.pending):
            stored.pending = kept
            self._save()

    # --- what counts ----------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """Who this replica is."""
        stored = self._stored
        me = self.current.member(stored.replica_id)
        address = "" if me is None else me.raft_address
        return Identity(stored.replica_id, stored.incarnation, stored.directory_id, address)

    @property
    def current(self) -> Configuration:
        """The newest configuration in the log: the one that counts."""
        pending = self._stored.pending
        return pending[-1] if pending else self._stored.committed

    @property
    def committed(self) -> Configuration:
        """The newest configuration known here to be committed."""
        return self._stored.committed

    @property
    def is_settled(self) -> bool:
        """Whether the one that counts is known to be committed."""
        return not self._stored.pending

    @property
    def is_voter(self) -> bool:
        """Whether this replica counts in commits and elections."""
        stored = self._stored
        me = self.current.member(stored.replica_id)
        return me is not None and me.is_voter and me.incarnation == stored.incarnation

    def peers(self) -> dict[str, Member]:
        """Returns the other replicas of all configurations that may yet count.

        One that an uncommitted configuration removes is still heard: it may be the next leader,
        whose log does not have that configuration. So is one of a configuration that this replica
        is too far behind to know: it may be the leader that this replica gets it from.
        """
        found: dict[str, Member] = {}
        for configuration in self._all():
            for member in configuration.members:
                if member.id != self._stored.replica_id:
                    found[member.id] = member
        for guest in self._guests.values():
            if guest.incarnation >= self.current.next_incarnation:
                found[guest.id] = guest
        return dict(sorted(found.items()))

    def places(self) -> dict[str, PeerPlace]:
        """Returns where the peers are."""
        return {
            peer_id: PeerPlace(member.incarnation, member.raft_address)
            for peer_id, member in self.peers().items()
        }

    def _all(self) -> Iterator[Configuration]:
        yield self._stored.committed
        yield from self._stored.pending

    # --- what changes it ------------------------------------------------------------------------

    def append(self, configuration: Configuration) -> None:
        """Takes a configuration whose entry is about to be written.

        Raises:
            DiskFullError: Nothing has changed.
            DiskFailureError: The log has failed.

        Durability: stored on return, before the entry.
        """
        if configuration.index <= self._stored.committed.index:
            return  # known from a snapshot; the log follows
        stored = self._stored
        before = stored.committed, stored.pending
        earlier = [found for found in stored.pending if found.index < configuration.index]
        if earlier:
            # A change is proposed only when the one before is committed. So one pending is enough,
            # however many come at once to a replica that was away.
            stored.committed = earlier[-1]
        stored.pending = [configuration]
        try:
            self._save()
        except StoreError:
            stored.committed, stored.pending = before
            raise

    def truncated(self, index: int) -> bool:
        """Forgets configurations of entries from `index` on; True if that changed what counts.

        To be called after the truncation: dying in between is noticed at the next start.

        Raises:
            DiskFullError: They are forgotten here but not on the disk. `store_owed` must succeed
                before anything else is written into the log: only as long as nothing stands where
                they stood does a start tell that they never counted.
            DiskFailureError: The log has failed.
        """
        kept = [found for found in self._stored.pending if found.index < index]
        changed = len(kept) < len(self._stored.pending)
        if changed:
            self._stored.pending = kept
            self._is_owed = True
            self._save()
        return changed

    def store_owed(self) -> None:
        """Stores what `truncated` could not store for want of space. Nothing to do: no cost.

        Raises:
            DiskFullError: Still no space; nothing may be written into the log.
            DiskFailureError: The log has failed.
        """
        if self._is_owed:
            self._save()

    def settle(self, commit_index: int) -> bool:
        """Takes note of what is committed; True if a configuration is among it."""
        settled = [found for found in self._stored.pending if found.index <= commit_index]
        if not settled:
            return False
        del self._stored.pending[: len(settled)]
        self._stored.committed = settled[-1]
        return True

    def install(self, configuration: Configuration) -> None:
        """Takes the configuration that came with a snapshot, which is committed.

        What the log holds that is not committed is about to be dropped with it.

        Raises:
            DiskFullError: Nothing has changed.
            DiskFailureError: The log has failed.

        Durability: stored on return.
        """
        stored = self._stored
        before = stored.committed, stored.pending
        if configuration.index > stored.committed.index:
            stored.committed = configuration
        stored.pending = []
        try:
            self._save()
        except StoreError:
            stored.committed, stored.pending = before
            raise

    def fence(self, reason: str) -> None:
        """Remembers for good that this replica must not take part any more."""
        self._stored.removed = reason
        self._save()

    def _save(self) -> None:
        content = _encode(self._stored)
        if content != self._log.members:
            self._log.save_members(content)
        self._is_owed = False

    # --- who may talk to us ---------------------------------------------------------------------

    def admit(self, peer: Identity) -> bool:
        """Checks whether a replica that says this of itself may take part here.

        Returns:
            Whether it was not known: it belongs to a later configuration than those known here.

        Raises:
            ReplicaRemovedError: Its life in the group is over.
            ReplicaReplacedError: Its data directory is not the one it had.
            PeerRefusedError: It is not known here, at least not yet.

        Durability: who is met for the first time is remembered on return.
        """
        known = self.peers().get(peer.replica_id)
        committed = self._stored.committed
        if known is None or known.incarnation != peer.incarnation:
            if committed.index and committed.was_removed(peer.replica_id, peer.incarnation):
                raise ReplicaRemovedError(
                    f"replica {peer.replica_id} (incarnation {peer.incarnation}) was removed from "
                    f"its group; its data is of no use any more: to bring it back, {HOW_TO_REBUILD}"
                )
            self._welcome(peer)
        met = self._stored.met.get(peer.replica_id)
        if met is None or met[0] != peer.incarnation:
            self._remember(peer)
        elif met[1] != peer.directory_id:
            raise ReplicaReplacedError(
                f"replica {peer.replica_id} (incarnation {peer.incarnation}) has lost its data "
                "directory: it has voted and confirmed messages that it does not know any more; "
                + HOW_TO_REBUILD
            )
        return known is None or known.incarnation != peer.incarnation

    def _welcome(self, peer: Identity) -> None:
        """Takes in a replica whose incarnation was given out after what is known here."""
        self._guests = {
            name: guest
            for name, guest in self._guests.items()
            if guest.incarnation >= self.current.next_incarnation and name != peer.replica_id
        }
        is_later = peer.incarnation >= self.current.next_incarnation and peer.raft_address
        if not is_later or len(self._guests) >= MEMBERS_MAX:
            raise PeerRefusedError(
                f"unknown replica {peer.replica_id!r} (incarnation {peer.incarnation})"
            )
        self._guests[peer.replica_id] = Member(
            id=peer.replica_id,
            number=0,
            incarnation=peer.incarnation,
            raft_address=peer.raft_address,
            is_voter=False,
        )

    def _remember(self, peer: Identity) -> None:
        names = self.peers()
        met = {name: seen for name, seen in self._stored.met.items() if name in names}
        met[peer.replica_id] = (peer.incarnation, peer.directory_id)
        before, self._stored.met = self._stored.met, met
        try:
            self._save()
        except StoreError:
            self._stored.met = before
            raise


def _encode(stored: _Stored) -> bytes:
    return msgspec.msgpack.encode(stored)


def _open(data: bytes, replica_id: str, bootstrap: Configuration) -> _Stored:
    try:
        stored = msgspec.msgpack.decode(data, type=_Stored)
    except msgspec.DecodeError as error:
        raise StoreError(f"the members file is not one of ours: {error}") from error
    if stored.replica_id != replica_id:
        raise StoreError(
            f"the data directory belongs to replica {stored.replica_id}, not to {replica_id}"
        )
    if not stored.committed.index:
        # Addresses may be changed by hand as long as the group has never changed.
        stored.committed = bootstrap
    return stored


def configurations_in(entries: Any) -> list[Configuration]:
    """Returns the configurations among log entries."""
    return [
        decode_entry(entry.body, entry.index, entry.term)
        for entry in entries
        if entry.body[0] == CONFIGURATION_TYPE
    ]
