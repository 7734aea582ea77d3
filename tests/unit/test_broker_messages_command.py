"""The MESSAGES command: where its messages say they are, and what is packed beside them."""

from __future__ import annotations

import pytest

from broker.messages_command import (
    HEAD,
    KEYS_INDEXED_MAX,
    EncodedMessage,
    MessagesBuilder,
    Part,
    decode_messages,
)
from dledger.codes import MessageFlag
from dledger.errors import InvariantError
from dledger.message import decode_stored, encode_stored, pack_host, stored_store_timestamp
from store import state_keys as keys

NOW = 1_700_000_000_123
HOST = pack_host("127.0.0.1", 10911)


def message(
    body: bytes,
    *,
    unique: bytes = b"",
    words: tuple[bytes, ...] = (),
    tag: int = 0,
    v6: bool = False,
) -> EncodedMessage:
    stored = encode_stored(
        topic=b"t",
        queue_id=0,
        flag=0,
        queue_offset=0,
        physical_offset=0,
        sys_flag=int(MessageFlag.BORN_HOST_V6) if v6 else 0,
        born_timestamp_ms=1,
        born_host=pack_host("::1", 1) if v6 else HOST,
        store_timestamp_ms=2,
        store_host=HOST,
        reconsume_times=0,
        prepared_transaction_offset=0,
        body=body,
        properties=b"",
    )
    return EncodedMessage(stored, tag, unique, words)


def build(*parts: tuple[int, int, Part]) -> MessagesBuilder:
    builder = MessagesBuilder()
    for topic_id, queue_id, part in parts:
        builder.add(topic_id, queue_id, part)
    return builder


def offsets_from(start: int) -> object:
    def take(topic_id: int, queue_id: int, count: int) -> int:
        return start + 100 * queue_id

    return take


def test_messages_say_where_they_are() -> None:
    first = Part(1, [message(b"a", tag=-7), message(b"bb" * 700, v6=True)])
    second = Part(1, [message(b"c")])
    third = Part(1, [message(b"d", tag=9)])
    builder = build((1, 0, first), (1, 5, second), (1, 0, third))
    body = builder.encode(10_000, NOW, offsets_from(40))
    assert len(body) == builder.size_bytes
    command = decode_messages(body)
    assert command.store_timestamp_ms == NOW
    assert [run[:3] for run in command.runs] == [(1, 0, 40), (1, 5, 540)]
    assert (first.first_queue_offset, third.first_queue_offset) == (40, 42)
    assert second.first_queue_offset == 540
    rows = [row for run in command.runs for row in keys.UNIT.iter_unpack(run.units)]
    assert [row[2] for row in rows] == [-7, 0, 9, 0]
    places = first.physical_offsets + third.physical_offsets + second.physical_offsets
    assert [row[0] for row in rows] == places
    for (position, size, _), queue_offset, text in zip(
        rows, [40, 41, 42, 540], [b"a", b"bb" * 700, b"d", b"c"], strict=True
    ):
        raw = body[position - 10_000 : position - 10_000 + size]
        stored = decode_stored(bytes(raw), verify_crc=True)
        assert stored.body == text
        assert (stored.queue_offset, stored.physical_offset) == (queue_offset, position)
        assert stored_store_timestamp(bytes(raw)) == NOW


def test_key_records_are_those_of_the_store() -> None:
    long = b"L" * 100
    part = Part(
        3, [message(b"a", unique=b"u1", words=(b"k", b"", b"k", long)), message(b"b", unique=b"u0")]
    )
    body = build((3, 0, part)).encode(64, NOW, offsets_from(0))
    first, second = part.physical_offsets
    records = [
        bytes(group.records[at : at + group.key_bytes + 8])
        for group in decode_messages(body).key_groups
        for at in range(0, len(group.records), group.key_bytes + 8)
    ]
    assert records == [
        keys.key_stem(3, b"k", unique=False) + keys.KEY_TAIL.pack(first, NOW),
        keys.key_stem(3, b"u0", unique=True) + keys.KEY_TAIL.pack(second, NOW),
        keys.key_stem(3, b"u1", unique=True) + keys.KEY_TAIL.pack(first, NOW),
        keys.key_stem(3, long, unique=False) + keys.KEY_TAIL.pack(first, NOW),
    ]


def test_the_number_of_keys_of_a_message_is_limited() -> None:
    words = tuple(b"%d" % number for number in range(KEYS_INDEXED_MAX + 50))
    body = build((1, 0, Part(1, [message(b"", words=words)]))).encode(0, NOW, offsets_from(0))
    groups = decode_messages(body).key_groups
    assert sum(len(group.records) // (group.key_bytes + 8) for group in groups) == KEYS_INDEXED_MAX


@pytest.mark.parametrize("unique", [b"", b"u" * 32, b"u" * 1000])
def test_size_is_known_before_encoding(unique: bytes) -> None:
    part = Part(1, [message(b"x", unique=unique, words=(b"a", b"bb"))] * 3)
    builder = build((1, 0, part))
    assert builder.size_bytes == part.command_bytes
    assert len(builder.encode(0, NOW, offsets_from(0))) == part.command_bytes


def test_nothing_to_append_and_torn_messages_are_broken_invariants() -> None:
    with pytest.raises(InvariantError):
        Part(1, [])
    with pytest.raises(InvariantError):
        Part(1, [EncodedMessage(bytes(90))])


def sample() -> bytearray:
    part = Part(1, [message(b"x", unique=b"u"), message(b"yy", unique=b"u")])
    other = Part(1, [message(b"z")])
    return build((1, 0, part), (1, 1, other)).encode(500, NOW, offsets_from(7))


@pytest.mark.parametrize("cut", [1, 10, HEAD.size, 60, 200])
def test_torn_commands_are_broken_invariants(cut: int) -> None:
    body = sample()
    with pytest.raises(InvariantError, match="malformed"):
        decode_messages(body[:-cut])
    with pytest.raises(InvariantError, match="malformed"):
        decode_messages(body + bytes(cut))


@pytest.mark.parametrize("at", [0, 1, 7, 11, 15, 24 + 15, 24 + 19, 64 + 7, 104 + 7, 104 + 11])
def test_wrong_numbers_are_broken_invariants(at: int) -> None:
    """Head, first queue offset, run counts, the first and the last unit."""
    body = sample()
    body[at] ^= 0x01 if at != 1 else 0x02
    with pytest.raises(InvariantError, match="malformed"):
        decode_messages(body)


@pytest.mark.parametrize("value", [0, 0xFFFF_FFFF])
@pytest.mark.parametrize("at", [4, 8, 12])
def test_absurd_counts_take_no_memory(at: int, value: int) -> None:
    body = sample()
    body[at : at + 4] = value.to_bytes(4, "big")
    with pytest.raises(InvariantError, match="malformed"):
        decode_messages(body)


def test_bytes_are_golden() -> None:
    stored = bytes(range(91))
    part = Part(1, [EncodedMessage(stored, 5, b"U", (b"k",))])
    body = build((1, 2, part)).encode(1000, 0x0102030405060708, offsets_from(0))
    assert body.hex() == (
        "100100000000000100000001000000010102030405060708"
        "000000010000000200000000000000c800000001"
        "000000000000045c0000005b0000000000000005"
        "000f00000002"
        "00000001010155000000000000045c0102030405060708"
        "0000000102016b000000000000045c0102030405060708"
    ) + (
        stored[:20].hex() + "00000000000000c8" + "000000000000045c"
        + stored[36:56].hex() + "0102030405060708" + stored[64:].hex()
    )  # fmt: skip
