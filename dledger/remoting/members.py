"""Who belongs to a broker group, as its replicas tell: the body of 30002, 30003 and 30004."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from dledger.errors import MalformedBodyError


class GroupMember(Struct, frozen=True, kw_only=True, rename="camel"):
    """One replica of a group.

    Attributes:
        id: Its name.
        number: Its number; a follower's broker id is one more.
        incarnation: Which life of it.
        address: Where clients reach it.
        raft_address: Where the other replicas reach it.
        is_voter: False while it catches up.
    """

    id: str
    number: int
    incarnation: int
    address: str
    raft_address: str
    is_voter: bool


class GroupConfiguration(Struct, frozen=True, kw_only=True, rename="camel"):
    """Who belongs to a group from a log entry on.

    Attributes:
        index: Of the entry; 0 if the group never changed.
        term: Of the entry.
        next_incarnation: What the next replica to be added gets.
        members: In the order of their numbers.
    """

    index: int
    term: int
    next_incarnation: int
    members: tuple[GroupMember, ...]

    def member(self, replica_id: str) -> GroupMember | None:
        """Returns a member, None if it is none."""
        return next((member for member in self.members if member.id == replica_id), None)


_decode = msgspec.json.Decoder(GroupConfiguration).decode


def encode_group_configuration(configuration: GroupConfiguration) -> bytes:
    """Returns the JSON body."""
    return msgspec.json.encode(configuration)


def decode_group_configuration(body: bytes) -> GroupConfiguration:
    """Returns what a JSON body says.

    Raises:
        MalformedBodyError: It is something else.
    """
    try:
        return _decode(body)
    except msgspec.DecodeError as error:
        raise MalformedBodyError(f"not a group configuration: {error}") from error
