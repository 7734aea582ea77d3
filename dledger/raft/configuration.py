"""The configuration of a group: who belongs to it, and who of them votes. Pure.

A configuration is a log entry of Raft's own. One replica changes at a time, so that the majorities
of two neighbouring configurations always share a replica (Ongaro's thesis, chapter 4):

    (not a member) --added--> learner --promoted--> voter
    learner or voter --removed--> (not a member)

A learner gets the log and confirms it, but does not count: neither for commits nor in elections.

Each life of a replica has an incarnation, a number that the group never gives out twice. A replica
that lost its data has forgotten its vote and what it had confirmed; it must not come back under
the incarnation that made these promises. So it is removed and added again, as somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dledger.errors import ChangeRefusedError, InvariantError, RemoteProtocolError
from dledger.raft.protocols import Buffer

# Types below 16 are Raft's own; 1 is the no-op, and 0 to 3 have a meaning in the library.
CONFIGURATION_TYPE = 0x04
MEMBERS_MAX = 9
ADDRESS_BYTES_MAX = 255


class Member(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One replica of a group.

    Attributes:
        id: Its name; that of a replica that was removed may be given again.
        number: Unique in a configuration, from 0; the broker id of a follower is one more.
        incarnation: Which life of it; 0 for those the group began with.
        address: Where clients reach it.
        raft_address: Where the other replicas reach it.
        is_voter: Whether it counts; a learner does not.
    """

    id: str
    number: int
    incarnation: int = 0
    address: str = ""
    raft_address: str = ""
    is_voter: bool = True


class Configuration(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Who belongs to a group from a log entry on.

    Attributes:
        members: In the order of their numbers.
        next_incarnation: What the next replica to be added gets.
        index: Of the entry; 0 for the configuration that the group began with.
        term: Of the entry.
    """

    members: tuple[Member, ...]
    next_incarnation: int = 1
    index: int = 0
    term: int = 0

    @property
    def voters(self) -> tuple[str, ...]:
        """The replicas that count."""
        return tuple(member.id for member in self.members if member.is_voter)

    @property
    def learners(self) -> tuple[str, ...]:
        """The replicas that are catching up."""
        return tuple(member.id for member in self.members if not member.is_voter)

    @property
    def majority(self) -> int:
        """How many voters decide."""
        return len(self.voters) // 2 + 1

    def member(self, replica_id: str | None) -> Member | None:
        """Returns a member, None if it is none."""
        for member in self.members:
            if member.id == replica_id:
                return member
        return None

    def has(self, replica_id: str, incarnation: int) -> bool:
        """Whether this very life of a replica belongs to the group."""
        member = self.member(replica_id)
        return member is not None and member.incarnation == incarnation

    def was_removed(self, replica_id: str, incarnation: int) -> bool:
        """Whether a life of a replica is over: it was known and is not a member any more.

        One that is not known yet, because this configuration is older than it, was not removed.
        """
        return incarnation < self.next_incarnation and not self.has(replica_id, incarnation)

    # --- changes, one replica each --------------------------------------------------------------

    def with_learner(self, replica_id: str, address: str, raft_address: str) -> Configuration:
        """Returns the configuration with one more learner.

        Raises:
            ChangeRefusedError: The name or an address is taken, or the group is full.
        """
        if self.member(replica_id) is not None:
            raise ChangeRefusedError(f"{replica_id} is a replica of the group already")
        if len(self.members) >= MEMBERS_MAX:
            raise ChangeRefusedError(f"a group has at most {MEMBERS_MAX} replicas")
        for member in self.members:
            taken = {address, raft_address} & {member.address, member.raft_address} - {""}
            if taken:
                raise ChangeRefusedError(f"{member.id} has the address {taken.pop()} already")
        numbers = {member.number for member in self.members}
        learner = Member(
            id=replica_id,
            number=next(number for number in range(MEMBERS_MAX) if number not in numbers),
            incarnation=self.next_incarnation,
            address=address,
            raft_address=raft_address,
            is_voter=False,
        )
        return self._with((*self.members, learner), self.next_incarnation + 1)

    def with_promoted(self, replica_id: str) -> Configuration:
        """Returns the configuration in which a learner has become a voter.

        Raises:
            ChangeRefusedError: It is not a learner.
        """
        member = self.member(replica_id)
        if member is None or member.is_voter:
            raise ChangeRefusedError(f"{replica_id} is not a learner of the group")
        promoted = msgspec.structs.replace(member, is_voter=True)
        others = tuple(other for other in self.members if other.id != replica_id)
        return self._with((*others, promoted), self.next_incarnation)

    def without(self, replica_id: str) -> Configuration:
        """Returns the configuration without a replica.

        Raises:
            ChangeRefusedError: It is not a member, or the only voter.
        """
        if self.member(replica_id) is None:
            raise ChangeRefusedError(
                f"{replica_id} is not a replica of the group; it has "
                + ", ".join(member.id for member in self.members)
            )
        others = tuple(other for other in self.members if other.id != replica_id)
        if not any(other.is_voter for other in others):
            raise ChangeRefusedError(f"{replica_id} is the only voter of the group")
        return self._with(others, self.next_incarnation)

    def _with(self, members: Sequence[Member], next_incarnation: int) -> Configuration:
        ordered = tuple(sorted(members, key=lambda member: member.number))
        return Configuration(members=ordered, next_incarnation=next_incarnation)

    def placed(self, index: int, term: int) -> Configuration:
        """Returns the same configuration as the content of an entry."""
        return msgspec.structs.replace(self, index=index, term=term)


def bootstrap(members: Sequence[Member]) -> Configuration:
    """Returns the configuration that a group begins with."""
    return Configuration(members=tuple(members))


def encode_entry(configuration: Configuration) -> bytes:
    """Returns the log entry of a configuration. Its place is the entry's own."""
    content = (configuration.members, configuration.next_incarnation)
    return bytes([CONFIGURATION_TYPE]) + msgspec.msgpack.encode(content)


def decode_entry(body: Buffer, index: int, term: int) -> Configuration:
    """Returns the configuration in a log entry.

    Raises:
        InvariantError: It is malformed, though the checksums of message and record are right.
    """
    try:
        members, next_incarnation = _decode_content(memoryview(body)[1:])
    except msgspec.DecodeError as error:
        raise InvariantError(f"entry {index} is no configuration: {error}") from error
    return Configuration(members=members, next_incarnation=next_incarnation, index=index, term=term)


def encode_configuration(configuration: Configuration) -> bytes:
    """Returns a configuration with its place, for a message or a file."""
    return msgspec.msgpack.encode(configuration)


def decode_configuration(data: Buffer) -> Configuration:
    """Returns what `encode_configuration` was given.

    Raises:
        RemoteProtocolError: It is malformed.
    """
    try:
        return _decode_configuration(data)
    except msgspec.DecodeError as error:
        raise RemoteProtocolError(f"not a configuration: {error}") from error


_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode
_decode_content = msgspec.msgpack.Decoder(tuple[tuple[Member, ...], int]).decode
