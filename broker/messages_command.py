"""The MESSAGES command: many stored messages of many queues in one log entry.

Beside the messages it carries what applying it writes, packed ready for the store: ConsumeQueue
units and key index records. The leader builds them once; every replica copies them into LMDB
without looking at a message. All integers are big-endian.

    offset  size  field
    0       1     type 0x10
    1       1     version: 1, or 2 with sends
    2       2     reserved, 0
    4       4     run count R
    8       4     message count N
    12      4     key group count G
    16      8     store timestamp of all messages, ms
    24      20*R  runs: topic id u32, queue id u32, first queue offset u64, message count u32
    ...     20*N  ConsumeQueue units: physical offset i64, size i32, tag hash i64; run after run
    ...           key groups: key length u16, record count u32, then the records:
                  index key (see store.state_keys), store timestamp u64
    ...     16    version 2 only: send count u32, the leader's limits of the table of lanes
                  (see store.producer_lanes): lanes u32, idle seconds u32, batches u16; u16 0
    ...     44*S  version 2 only: the sends: producer id u64, sequence u64, topic id u32,
                  queue id u32, first queue offset u64, message count u32,
                  physical offset of the first message u64
    ...           the messages in the order of the units, concatenated

A run is a queue's share of the command: consecutive queue offsets. A send is one request of a
producer that numbers its messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from struct import Struct
from typing import Final, NamedTuple

import msgspec

from broker.commands import CommandType
from broker.message_run import MessageRun
from dledger.codes import MessageFlag
from dledger.errors import ConfigError, InvariantError, invariant
from store import state_keys as keys
from store.producer_lanes import LaneLimits, SendRecord

VERSION: Final = 1
VERSION_WITH_SENDS: Final = 2
HEAD: Final = Struct(">BBHIIIQ")
RUN: Final = Struct(">IIQI")
KEY_GROUP: Final = Struct(">HI")
SENDS_HEAD: Final = Struct(">IIIHH")
SEND: Final = Struct(">QQIIQIQ")
KEYS_INDEXED_MAX: Final = 128  # words of one message's KEYS that are indexed

# Places in a stored message (RocketMQ's layout): queue offset and physical offset stand side by
# side; the store timestamp comes after the host the message was born on, which may be IPv6.
_OFFSETS_AT: Final = 20
_OFFSETS: Final = Struct(">QQ")
_SYS_FLAG_LOW_BYTE_AT: Final = 39
_TIMESTAMP: Final = Struct(">Q")
_TIMESTAMP_AT: Final = 56
_TIMESTAMP_AT_V6: Final = 68
_STORED_BYTES_MIN: Final = 91
_BORN_HOST_V6: Final = int(MessageFlag.BORN_HOST_V6)

Buffer = bytes | bytearray | memoryview


class EncodedMessage(msgspec.Struct, frozen=True):
    """A stored message with its offsets still zero, and what is indexed of it.

    Attributes:
        stored: The message in RocketMQ's stored layout. Queue offset, physical offset and store
            timestamp in it are overwritten in the command.
        tag_hash: Hash of the tag, 0 without one.
        unique_key: The UNIQ_KEY property; empty if it is not to be indexed.
        keys: The words of the KEYS property; the first 128 are indexed.
    """

    stored: bytes | bytearray
    tag_hash: int = 0
    unique_key: bytes = b""
    keys: Sequence[bytes] = ()


Messages = Sequence[EncodedMessage] | MessageRun


class SendIdentity(NamedTuple):
    """By which a repeated request is known: its producer, and the number of its first message.

    A producer's messages to one queue are numbered without doubles, in the order it sends them.
    """

    producer_id: int
    sequence: int


class Part:
    """Messages of one request to one queue. After encoding: where they went.

    Attributes:
        messages: At least one.
        identity: Whose request it is, if its producer numbers its messages.
        stored_bytes: Bytes of the messages.
        size_bytes: Bytes of the messages, their units and their index records in a command.
        key_lengths: Lengths of the index keys, without the physical offset.
        first_queue_offset: Queue offset of the first; the others follow. -1 before encoding.
        physical_offsets: One for each message, in order. Empty before encoding.
    """

    __slots__ = (
        "first_queue_offset",
        "identity",
        "key_lengths",
        "messages",
        "physical_offsets",
        "size_bytes",
        "stems",
        "stored_bytes",
    )

    def __init__(
        self,
        topic_id: int,
        messages: Messages,
        identity: SendIdentity | None = None,
    ) -> None:
        invariant(messages, "no messages to append", topic_id=topic_id)
        self.messages = messages
        self.identity = identity
        self.first_queue_offset = -1
        self.physical_offsets: list[int] = []
        # (index key without the physical offset, number of the message)
        self.stems: list[tuple[bytes, int]] = []
        if isinstance(messages, MessageRun):
            self.key_lengths = frozenset((messages.stem_bytes,))
            self.stored_bytes = messages.stored_bytes
            size = len(messages) * (messages.stem_bytes + keys.KEY_TAIL.size)
        else:
            self.stored_bytes = _index(repeat(topic_id), messages, self.stems)
            lengths = [len(stem) for stem, _ in self.stems]
            self.key_lengths = frozenset(lengths)
            size = sum(lengths) + len(lengths) * keys.KEY_TAIL.size
        size += self.stored_bytes + len(messages) * keys.UNIT_BYTES
        self.size_bytes = size if identity is None else size + SEND.size

    @property
    def first_bytes(self) -> int:
        """Size of the first message."""
        messages = self.messages
        return messages.first_bytes if isinstance(messages, MessageRun) else len(messages[0].stored)

    @property
    def command_bytes(self) -> int:
        """Size of a command with nothing but this part."""
        sends_head = 0 if self.identity is None else SENDS_HEAD.size
        groups = len(self.key_lengths) * KEY_GROUP.size
        return HEAD.size + RUN.size + groups + sends_head + self.size_bytes


class Singles:
    """Single messages of many requests to many queues. After encoding: where each went.

    Attributes:
        messages: In the order in which they came; at least one.
        runs: The numbers of each queue's messages, by topic id and queue id.
        stored_bytes, size_bytes, key_lengths: As of a `Part`.
        queue_offsets, physical_offsets: Of each message.
    """

    __slots__ = (
        "key_lengths",
        "messages",
        "physical_offsets",
        "queue_offsets",
        "runs",
        "size_bytes",
        "stems",
        "stored_bytes",
    )

    def __init__(
        self, places: Sequence[tuple[int, int]], messages: Sequence[EncodedMessage]
    ) -> None:
        """Makes it of the topic id and queue id of each message."""
        self.messages = messages
        self.stems: list[tuple[bytes, int]] = []
        topic_ids = [topic_id for topic_id, _ in places]
        self.stored_bytes = _index(topic_ids, messages, self.stems)
        lengths = [len(stem) for stem, _ in self.stems]
        self.key_lengths = frozenset(lengths)
        index_bytes = sum(lengths) + len(lengths) * keys.KEY_TAIL.size
        self.size_bytes = self.stored_bytes + len(messages) * keys.UNIT_BYTES + index_bytes
        self.queue_offsets = [0] * len(messages)
        self.physical_offsets = [0] * len(messages)
        self.runs: dict[tuple[int, int], list[int]] = {}
        runs = self.runs
        for number, place in enumerate(places):
            if place in runs:
                runs[place].append(number)
            else:
                runs[place] = [number]


def _index(
    topic_ids: Iterable[int],
    messages: Sequence[EncodedMessage],
    stems: list[tuple[bytes, int]],
) -> int:
    """Adds stems of index keys, with their messages' numbers; returns the messages' bytes."""
    stored_bytes = 0
    for number, (topic_id, message) in enumerate(zip(topic_ids, messages, strict=False)):
        size = len(message.stored)
        if size < _STORED_BYTES_MIN:
            raise InvariantError(f"stored message of {size} bytes")
        stored_bytes += size
        if message.unique_key:
            stems.append((keys.key_stem(topic_id, message.unique_key, unique=True), number))
        if message.keys:
            # Without doubles, but in a fixed order: every run gives the same bytes.
            words = dict.fromkeys(message.keys[:KEYS_INDEXED_MAX])
            stems += [(keys.key_stem(topic_id, w, unique=False), number) for w in words if w]
    return stored_bytes


# Messages, and the numbers of those for one queue: of a part, all.
_Share = tuple[Part | Singles, Sequence[int]]


class MessagesBuilder:
    """Collects messages and encodes them as one command.

    Invariant: `size_bytes` is the exact length of what `encode` will return.
    """

    __slots__ = (
        "_has_sends",
        "_key_lengths",
        "_limits",
        "_runs",
        "_singles",
        "_stored_bytes",
        "size_bytes",
    )

    def __init__(self, limits: LaneLimits | None = None) -> None:
        """Makes an empty builder; `limits` go with the parts that have an identity."""
        self.size_bytes = HEAD.size
        self._limits = limits or LaneLimits()
        self._has_sends = False
        self._stored_bytes = 0
        self._singles: list[Singles] = []
        self._runs: dict[tuple[int, int], list[_Share]] = {}
        self._key_lengths: frozenset[int] = frozenset()

    def add(self, topic_id: int, queue_id: int, part: Part) -> None:
        """Adds messages at the end of a queue, behind those already added for it.

        Args:
            topic_id: The topic's number, with which the part was made.
            queue_id: The queue.
            part: The messages.
        """
        self._add_sizes(part)
        if part.identity is not None and not self._has_sends:
            self._has_sends = True
            self.size_bytes += SENDS_HEAD.size
        self._add_share((topic_id, queue_id), (part, range(len(part.messages))))

    def add_singles(self, singles: Singles) -> None:
        """Adds single messages, each behind those already added for its queue."""
        self._add_sizes(singles)
        self._singles.append(singles)
        for place, numbers in singles.runs.items():
            self._add_share(place, (singles, numbers))

    def _add_sizes(self, messages: Part | Singles) -> None:
        self._stored_bytes += messages.stored_bytes
        self.size_bytes += messages.size_bytes
        if not messages.key_lengths <= self._key_lengths:
            lengths = self._key_lengths | messages.key_lengths
            self.size_bytes += KEY_GROUP.size * (len(lengths) - len(self._key_lengths))
            self._key_lengths = lengths

    def _add_share(self, place: tuple[int, int], share: _Share) -> None:
        shares = self._runs.get(place)
        if shares is None:
            self._runs[place] = [share]
            self.size_bytes += RUN.size
        else:
            shares.append(share)

    def encode(
        self,
        body_offset: int,
        store_timestamp_ms: int,
        take_offsets: Callable[[int, int, int], int],
    ) -> bytearray:
        """Returns the command, with all offsets stamped into it and into the parts.

        Args:
            body_offset: Physical offset of the command's first byte.
            store_timestamp_ms: The leader's time.
            take_offsets: (topic id, queue id, count) to the first of so many queue offsets.

        Cost: about a microsecond a message, and one copy of its bytes.
        """
        runs: list[bytes] = []
        sends: list[bytes] = []
        encoded = _Encoded(sorted(self._key_lengths), store_timestamp_ms)
        # Messages stand at the end, after everything whose size is known by now.
        position = body_offset + self.size_bytes - self._stored_bytes
        for (topic_id, queue_id), shares in self._runs.items():
            count = 0
            for _, numbers in shares:
                count += len(numbers)
            queue_offset = take_offsets(topic_id, queue_id, count)
            runs.append(RUN.pack(topic_id, queue_id, queue_offset, count))
            for messages, numbers in shares:
                if isinstance(messages, Singles):
                    position = encoded.add_singles(messages, numbers, queue_offset, position)
                else:
                    messages.first_queue_offset = queue_offset
                    encoded.add(topic_id, messages, position)
                    position += messages.stored_bytes
                    if messages.identity is not None:
                        sends.append(_pack_send(messages, messages.identity, topic_id, queue_id))
                queue_offset += len(numbers)
        for singles in self._singles:
            encoded.index(singles)
        pieces = self._before_messages(
            store_timestamp_ms, runs, encoded.units, encoded.records, sends
        )
        pieces.extend(encoded.pieces)
        command = bytearray().join(pieces)
        invariant(
            len(command) == self.size_bytes,
            "MESSAGES command of another size than announced",
            size_bytes=len(command),
            announced=self.size_bytes,
        )
        encoded.stamp(command, body_offset)
        return command

    def _before_messages(
        self,
        store_timestamp_ms: int,
        runs: list[bytes],
        units: list[bytes],
        records: dict[int, list[bytes]],
        sends: list[bytes],
    ) -> list[Buffer]:
        """Returns everything that stands before the messages, in order."""
        head = HEAD.pack(
            CommandType.MESSAGES,
            VERSION_WITH_SENDS if sends else VERSION,
            0,
            len(runs),
            len(units),
            len(records),
            store_timestamp_ms,
        )
        pieces: list[Buffer] = [head, *runs, *units]
        for length, group in records.items():
            # In order, so that neighbours in the index follow one another.
            group.sort()
            pieces.append(KEY_GROUP.pack(length + keys.PHYSICAL_OFFSET.size, len(group)))
            pieces.extend(group)
        if sends:
            limits = self._limits
            pieces.append(
                SENDS_HEAD.pack(len(sends), limits.lanes_max, limits.idle_s, limits.batches_max, 0)
            )
            pieces.extend(sends)
        return pieces


class _Encoded:
    """Messages and their index as they stand in a command, part after part."""

    __slots__ = ("_stamps", "_time_ms", "pieces", "records", "units")

    def __init__(self, stem_lengths: Iterable[int], store_timestamp_ms: int) -> None:
        self.units: list[bytes] = []
        self.records: dict[int, list[bytes]] = {length: [] for length in stem_lengths}
        self.pieces: list[Buffer] = []
        self._stamps: list[tuple[int, int]] = []  # physical and queue offset still to be put in
        self._time_ms = store_timestamp_ms

    def add(self, topic_id: int, part: Part, position: int) -> None:
        """Adds messages that begin at a physical offset."""
        messages, time_ms = part.messages, self._time_ms
        if isinstance(messages, MessageRun):
            positions = part.physical_offsets = messages.positions(position)
            self.units.extend(messages.units(positions))
            self.pieces.extend(messages.pieces(part.first_queue_offset, positions, time_ms))
            records = messages.index_records(topic_id, positions, time_ms)
            self.records[messages.stem_bytes].extend(records)
            return
        positions = part.physical_offsets
        pack_unit = keys.UNIT.pack
        for message in messages:
            stored = message.stored
            size = len(stored)
            positions.append(position)
            self.units.append(pack_unit(position, size, message.tag_hash))
            self.pieces.append(stored)
            position += size
        first = part.first_queue_offset
        self._stamps.extend(zip(positions, range(first, first + len(positions)), strict=True))
        self.index(part)

    def add_singles(
        self, singles: Singles, numbers: Sequence[int], queue_offset: int, position: int
    ) -> int:
        """Adds those of one queue, from these offsets on; returns the physical one behind them."""
        for number in numbers:
            message = singles.messages[number]
            stored = message.stored
            size = len(stored)
            singles.physical_offsets[number] = position
            singles.queue_offsets[number] = queue_offset
            self.units.append(keys.UNIT.pack(position, size, message.tag_hash))
            self.pieces.append(stored)
            self._stamps.append((position, queue_offset))
            position += size
            queue_offset += 1
        return position

    def index(self, messages: Part | Singles) -> None:
        """Adds the index records of messages that have been added."""
        positions, records, time_ms = messages.physical_offsets, self.records, self._time_ms
        pack_tail = keys.KEY_TAIL.pack
        for stem, number in messages.stems:
            records[len(stem)].append(stem + pack_tail(positions[number], time_ms))

    def stamp(self, command: bytearray, body_offset: int) -> None:
        """Puts places and time into the messages that were encoded without them."""
        pack_offsets, pack_timestamp = _OFFSETS.pack_into, _TIMESTAMP.pack_into
        for position, queue_offset in self._stamps:
            at = position - body_offset
            pack_offsets(command, at + _OFFSETS_AT, queue_offset, position)
            v6 = command[at + _SYS_FLAG_LOW_BYTE_AT] & _BORN_HOST_V6
            timestamp_at = at + (_TIMESTAMP_AT_V6 if v6 else _TIMESTAMP_AT)
            pack_timestamp(command, timestamp_at, self._time_ms)


def _pack_send(part: Part, identity: SendIdentity, topic_id: int, queue_id: int) -> bytes:
    return SEND.pack(
        identity.producer_id,
        identity.sequence,
        topic_id,
        queue_id,
        part.first_queue_offset,
        len(part.messages),
        part.physical_offsets[0],
    )


class Run(NamedTuple):
    """A queue's share of a decoded command."""

    topic_id: int
    queue_id: int
    first_queue_offset: int
    units: bytes


class KeyGroup(NamedTuple):
    """Index records of one key length of a decoded command."""

    key_bytes: int
    records: memoryview


class MessagesCommand(NamedTuple):
    """A decoded command; its views lie in the entry's body."""

    store_timestamp_ms: int
    runs: list[Run]
    key_groups: list[KeyGroup]
    messages: memoryview
    sends: list[SendRecord]
    limits: LaneLimits | None  # None without sends


def decode_messages(body: Buffer) -> MessagesCommand:
    """Returns a MESSAGES command without looking at its messages.

    Raises:
        InvariantError: It is malformed or of an unknown version.

    Cost: proportional to the number of queues and key lengths, not of messages.
    """
    view = memoryview(body)
    _check(len(view) >= HEAD.size, "head", view)
    type_, version, _, run_count, message_count, group_count, timestamp = HEAD.unpack_from(view)
    known = version in (VERSION, VERSION_WITH_SENDS)
    _check(type_ == CommandType.MESSAGES and known, "version", view)
    units_at = HEAD.size + run_count * RUN.size
    at = units_at + message_count * keys.UNIT_BYTES
    _check(run_count > 0 and message_count > 0 and at < len(view), "counts", view)
    runs = []
    units = bytes(view[units_at:at])
    start, end, new_run = 0, at - units_at, Run._make
    for topic_id, queue_id, first, count in RUN.iter_unpack(view[HEAD.size : units_at]):
        stop = start + count * keys.UNIT_BYTES
        if count == 0 or stop > end:
            _check(False, "run", view)
        runs.append(new_run((topic_id, queue_id, first, units[start:stop])))
        start = stop
    _check(start == end, "run counts", view)
    groups, at = _decode_groups(view, at, group_count)
    sends: list[SendRecord] = []
    limits = None
    if version == VERSION_WITH_SENDS:
        sends, limits, at = _decode_sends(view, at)
    messages = view[at:]
    _check_places(view, runs, messages)
    return MessagesCommand(timestamp, runs, groups, messages, sends, limits)


def _decode_groups(view: memoryview, at: int, group_count: int) -> tuple[list[KeyGroup], int]:
    groups = []
    for _ in range(group_count):
        _check(at + KEY_GROUP.size <= len(view), "key group", view)
        key_bytes, count = KEY_GROUP.unpack_from(view, at)
        at += KEY_GROUP.size
        stop = at + count * (key_bytes + keys.KEY_VALUE_BYTES)
        _check(stop <= len(view), "key records", view)
        groups.append(KeyGroup(key_bytes, view[at:stop]))
        at = stop
    return groups, at


def _decode_sends(view: memoryview, at: int) -> tuple[list[SendRecord], LaneLimits, int]:
    _check(at + SENDS_HEAD.size <= len(view), "sends", view)
    count, lanes_max, idle_s, batches_max, _ = SENDS_HEAD.unpack_from(view, at)
    at += SENDS_HEAD.size
    stop = at + count * SEND.size
    _check(count > 0 and stop <= len(view), "send records", view)
    try:
        limits = LaneLimits(lanes_max=lanes_max, idle_s=idle_s, batches_max=batches_max)
    except ConfigError:
        _check(False, "limits of lanes", view)
        raise
    return list(map(SendRecord._make, SEND.iter_unpack(view[at:stop]))), limits, stop


def _check_places(view: memoryview, runs: list[Run], messages: memoryview) -> None:
    """Compares the units with the messages where that costs nothing: at both ends."""
    first, _, _ = keys.UNIT.unpack_from(runs[0].units)
    last, size, _ = keys.UNIT.unpack_from(runs[-1].units, len(runs[-1].units) - keys.UNIT_BYTES)
    _check(
        last + size - first == len(messages) and len(messages) >= _STORED_BYTES_MIN,
        "message bytes",
        view,
    )
    queue_offset, physical_offset = _OFFSETS.unpack_from(messages, _OFFSETS_AT)
    _check(
        physical_offset == first and queue_offset == runs[0].first_queue_offset,
        "stamped offsets",
        view,
    )


def _check(condition: bool, part: str, view: memoryview) -> None:
    if not condition:
        raise InvariantError(
            f"malformed MESSAGES command: {part}; {len(view)} bytes, head "
            f"{bytes(view[: HEAD.size]).hex()}"
        )
