"""How the members of a group get the messages of a topic: by pulling, or by popping. Pure state.

An operator sets it (SET_MESSAGE_REQUEST_MODE), a member whose queues the broker shares out learns
it with them (QUERY_ASSIGNMENT). Where nothing was set, members pull.

Row in `pop`: "m", topic id u32, group name preceded by its length (u8) -> msgpack ModeRow.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from store.state_batch import WriteBatch
from store.state_keys import TOPIC_ID, group_prefix
from store.state_rows import POP, RowChanges, RowReader

_MODES_MAX: Final = 1 << 30

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Mode = Literal["PULL", "POP"]
PULL: Final[Mode] = "PULL"
MODES: Final[dict[str, Mode]] = {"PULL": "PULL", "POP": "POP"}


class SetRequestMode(msgspec.Struct, frozen=True, array_like=True):
    """Sets the mode of a group in a topic. Result: whether the topic exists."""

    group: _Name
    topic: _Name
    mode: Mode
    share_queue_count: Annotated[int, msgspec.Meta(ge=-1, le=0x7FFF_FFFF)]


class ModeRow(msgspec.Struct, frozen=True, array_like=True):
    """A mode that was set.

    Attributes:
        mode: PULL or POP.
        share_queue_count: POP: with how many members after it a member shares its queues; 0 or
            less: everybody pops from all.
    """

    mode: Mode = "PULL"
    share_queue_count: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ModeRow).decode


def apply(batch: WriteBatch, command: SetRequestMode) -> bool:
    """Sets a mode; with a topic that does not exist (any more), nothing happens."""
    topic = batch.topic(command.topic)
    if topic is None:
        return False
    row = ModeRow(command.mode, command.share_queue_count)
    batch.rows.put(POP, _key(command.group, topic.topic_id), _encode(row))
    return True


def request_mode(rows: RowReader, group: str, topic_id: int) -> ModeRow:
    """Returns the mode of a group in a topic."""
    raw = rows.get(POP, _key(group, topic_id))
    return ModeRow() if raw is None else _decode(raw)


def drop_topic(rows: RowChanges, topic_id: int) -> None:
    """Forgets the modes in a topic that is deleted."""
    for key, _ in rows.scan(POP, b"m" + TOPIC_ID.pack(topic_id), limit=_MODES_MAX):
        rows.delete(POP, key)


def drop_group(rows: RowChanges, group: str) -> None:
    """Forgets the modes of a group that is deleted with its offsets.

    Cost: a look at all modes that were set.
    """
    name = group_prefix(group.encode())
    for key, _ in rows.scan(POP, b"m", limit=_MODES_MAX):
        if key[1 + TOPIC_ID.size :] == name:
            rows.delete(POP, key)


def _key(group: str, topic_id: int) -> bytes:
    return b"m" + TOPIC_ID.pack(topic_id) + group_prefix(group.encode())
