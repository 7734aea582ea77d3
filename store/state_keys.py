"""Keys and values of the LMDB databases, as bytes: pure functions and layouts.

All integers are big-endian, so that the byte order of keys is the order of what they mean.
docs/storage-format.md, "LMDB", has the drawings of every database.
"""

from __future__ import annotations

import hashlib
from struct import Struct
from typing import Final

# One ConsumeQueue unit, 20 bytes, as RocketMQ has it:
#
#    0          8        12         20
#    +----------+--------+----------+
#    | physical | size   | tag hash |
#    | offset   |        |          |
#    +----------+--------+----------+
#      int64      int32    int64
UNIT: Final = Struct(">qiq")
UNIT_BYTES: Final = UNIT.size

# A ConsumeQueue is stored in chunks of 32 units: value = the units of queue offsets
# [32 * n, 32 * n + 32), the last chunk of a queue being shorter. Measured against one pair per
# unit, this makes the cost of a message in the ConsumeQueue vanish next to its key index entry
# (one put per queue and batch instead of one per message) and needs half the space. 32 units are
# 640 bytes: six chunks fill a page, and a page that is split keeps little room unused.
CHUNK_UNITS: Final = 32
CHUNK_BYTES: Final = CHUNK_UNITS * UNIT_BYTES

# consume_queue: topic id, queue id, chunk number.
CHUNK_KEY: Final = Struct(">IIQ")

# queues: topic id, queue id -> first and next queue offset.
QUEUE_KEY: Final = Struct(">II")
QUEUE_BOUNDS: Final = Struct(">QQ")

# meta "applied": log index and term of the last applied entry.
APPLIED_KEY: Final = b"applied"
APPLIED: Final = Struct(">QQ")
FORMAT_KEY: Final = b"format"
FORMAT: Final = Struct(">I")
FORMAT_VERSION: Final = 1
# meta "retained": physical offset below which the log's messages are gone.
RETAINED_KEY: Final = b"retained"
RETAINED: Final = Struct(">Q")
# meta "digest": the digest now, then (log index, digest) of the latest checkpoints, oldest first.
DIGEST_KEY: Final = b"digest"
DIGEST_BYTES: Final = 16
CHECKPOINT: Final = Struct(">Q16s")
CHECKPOINTS_KEPT: Final = 8
NEXT_TOPIC_ID_KEY: Final = b"next_topic_id"
TOPIC_ID: Final = Struct(">I")

# consumer_offsets: length of the group name, group name, topic id, queue id -> queue offset.
# The length comes first so that no group's range can lie inside another's.
CONSUMER_OFFSET: Final = Struct(">Q")
NAME_BYTES_MAX: Final = 255

# key_index: topic id, kind, length of the key, key, physical offset -> store timestamp in ms.
# The part before the physical offset is the *stem*: the same for all messages with that key.
#
#    0        4      5        6          6+n       14+n
#    +--------+------+--------+----------+---------+
#    | topic  | kind | length | key bytes| physical|
#    | id     |      | n      |          | offset  |
#    +--------+------+--------+----------+---------+
#
# Unique keys of one producer are nearly sequential, and so inserts stay on one page; a hash
# would scatter them over the whole tree. Only keys longer than KEY_BYTES_MAX are hashed.
STEM_HEAD: Final = Struct(">IBB")
KEY_TAIL: Final = Struct(">QQ")  # physical offset (end of the key), store timestamp (the value)
PHYSICAL_OFFSET: Final = Struct(">Q")
STORE_TIMESTAMP: Final = Struct(">Q")
KEY_VALUE_BYTES: Final = STORE_TIMESTAMP.size
KEY_BYTES_MAX: Final = 64
INDEX_KEY_BYTES_MIN: Final = STEM_HEAD.size + 1 + PHYSICAL_OFFSET.size
INDEX_KEY_BYTES_MAX: Final = STEM_HEAD.size + KEY_BYTES_MAX + PHYSICAL_OFFSET.size

KIND_UNIQUE: Final = 1
KIND_KEY: Final = 2
_KIND_HASHED: Final = 0x80  # added to the kind of a hashed key
_HASH_BYTES: Final = 32


def key_stem(topic_id: int, key: bytes, *, unique: bool) -> bytes:
    """Returns the stem of a key's entries in the key index.

    Args:
        topic_id: The topic's replicated number.
        key: The UNIQ_KEY property, or one word of the KEYS property; not empty.
        unique: Whether `key` is a UNIQ_KEY.
    """
    kind = KIND_UNIQUE if unique else KIND_KEY
    if len(key) > KEY_BYTES_MAX:
        key = hashlib.blake2b(key, digest_size=_HASH_BYTES).digest()
        kind |= _KIND_HASHED
    return STEM_HEAD.pack(topic_id, kind, len(key)) + key


def group_prefix(group: bytes) -> bytes:
    """Returns what all consumer offset keys of a group begin with."""
    return bytes((len(group),)) + group


def consumer_offset_key(group: bytes, topic_id: int, queue_id: int) -> bytes:
    """Returns the key of one consumer offset."""
    return group_prefix(group) + QUEUE_KEY.pack(topic_id, queue_id)


def split_consumer_offset_key(key: bytes) -> tuple[bytes, int, int]:
    """Returns group name, topic id and queue id of a consumer offset's key."""
    topic_id, queue_id = QUEUE_KEY.unpack_from(key, len(key) - QUEUE_KEY.size)
    return key[1 : 1 + key[0]], topic_id, queue_id
