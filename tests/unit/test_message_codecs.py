"""Batches, properties, compression, ids, hashes and names of messages."""

from __future__ import annotations

import random
import time
import zlib

import lz4.frame
import pytest
import zstandard

from dledger import message as m
from dledger.clock import ManualClock
from dledger.errors import InvalidParameterError, MessageRejectedError, RemoteProtocolError

BATCH = bytes.fromhex(
    """
    0000002b 00000000 00000000 00000000 00000001 61 0014
    544147530154616741025741495401 7472756502
    0000002c 00000000 00000000 00000000 00000002 6263 0014
    544147530154616741025741495401 7472756502
    """
)


# --- batches ------------------------------------------------------------------------------------


def test_batch_is_what_java_writes():
    messages = [
        m.Message("T", b"a", tags="TagA"),
        m.Message("T", b"bc", tags="TagA"),
    ]
    pieces = [
        m.encode_batch_element(message.body, m.encode_properties({"TAGS": "TagA", "WAIT": "true"}))
        for message in messages
    ]
    assert b"".join(pieces) == BATCH


def test_batch_of_messages_carries_their_properties():
    body = m.encode_batch([m.Message("T", b"x", tags="t", keys=["1", "2"], properties={"p": "q"})])
    [element] = m.iter_batch(body)
    assert m.decode_properties(element.properties) == {"p": "q", "TAGS": "t", "KEYS": "1 2"}


def test_batch_decodes():
    elements = list(m.iter_batch(BATCH))
    assert [bytes(element.body) for element in elements] == [b"a", b"bc"]
    assert [element.flag for element in elements] == [0, 0]
    assert m.get_property(elements[0].properties, b"WAIT") == b"true"


@pytest.mark.parametrize("cut", range(1, len(BATCH)))
def test_torn_batch_is_refused(cut):
    if cut == 0x2B:
        assert len(list(m.iter_batch(BATCH[:cut]))) == 1
        return
    with pytest.raises(MessageRejectedError):
        list(m.iter_batch(BATCH[:cut]))


@pytest.mark.parametrize("at", [0, 16, 21])
@pytest.mark.parametrize("value", [b"\x7f\xff", b"\xff\xff"])
def test_batch_with_bad_lengths_is_refused(at, value):
    damaged = BATCH[:at] + value + BATCH[at + 2 :]
    with pytest.raises(MessageRejectedError):
        list(m.iter_batch(damaged))


def test_batch_element_refuses_what_does_not_fit():
    with pytest.raises(MessageRejectedError):
        m.encode_batch_element(b"", b"x" * 32768)
    with pytest.raises(MessageRejectedError):
        m.encode_batch_element(b"", b"", flag=2**31)


# --- properties ---------------------------------------------------------------------------------


def test_properties_round_trip():
    properties = {"k": "v", "TAGS": "中文", "e": "😀 = ; ||"}
    assert m.decode_properties(m.encode_properties(properties)) == properties
    assert m.encode_properties({}) == b""


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(b"a\x011\x02b\x012", {"a": "1", "b": "2"}, id="no trailing separator"),
        pytest.param(b"a\x011\x02nothing\x02\x02", {"a": "1"}, id="pieces without separator"),
        pytest.param(b"\x01v\x02n\x01\x02a\x011\x02", {"a": "1"}, id="empty names and values"),
        pytest.param(b"a\x01x\x01y\x02", {"a": "x\x01y"}, id="second separator"),
        pytest.param(b"a\x01\xff\x02", {"a": "�"}, id="not UTF-8"),
        pytest.param(b"", {}, id="empty"),
    ],
)
def test_properties_are_read_leniently(raw, expected):
    assert m.decode_properties(raw) == expected


@pytest.mark.parametrize(
    "properties",
    [
        {"a\x01": "b"},
        {"a": "b\x02"},
        {"": "b"},
        {"a": ""},
        {"a": "", "b": "c"},
        {"": "x", "b": "c"},
        {"b": "c", "": "x"},
        {"a": "x" * 32768},
        {"a": "\ud800"},
    ],
)
def test_properties_that_would_come_back_different_are_refused(properties):
    with pytest.raises(MessageRejectedError):
        m.encode_properties(properties)


@pytest.mark.parametrize("end", [b"", b"\x02"])
def test_one_property_is_found_without_decoding_the_others(end):
    raw = b"XTAGS\x01no\x02TAGS\x01TagA\x02empty\x01\x02KEYS\x01TAGS 2" + end
    assert m.get_property(raw, b"TAGS") == b"TagA"
    assert m.get_property(raw, b"XTAGS") == b"no"
    assert m.get_property(raw, b"KEYS") == b"TAGS 2"
    assert m.get_property(raw, b"empty") is None
    assert m.get_property(raw, b"AGS") is None
    assert m.get_property(b"", b"TAGS") is None


def test_reserved_names_hold_every_property_constant():
    assert {m.Property.TAGS, m.Property.UNIQUE_KEY, "BUYER_ID"} <= m.RESERVED_PROPERTIES
    assert "color" not in m.RESERVED_PROPERTIES


# --- compression --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "data"),
    [
        (0x101, "04224d186070730b0000001f7801002750787878787800000000"),
        (0x201, "28b52ffd00584400001078780100930016010000"),
        (0x301, "785eaba8a00c0000cf6d1e01"),
        (0x001, "785eaba8a00c0000cf6d1e01"),
    ],
)
def test_what_java_compressed_is_inflated(flags, data):
    assert m.decompress_body(bytes.fromhex(data), flags) == b"x" * 64


def test_our_compression_round_trips():
    body = b"abc" * 5000
    compressed, flags = m.compress_body(body)
    assert len(compressed) < len(body)
    assert flags == 0x301
    assert m.decompress_body(compressed, flags) == body


def test_what_does_not_shrink_stays():
    assert m.compress_body(b"a") == (b"a", 0)
    assert m.decompress_body(b"a", 0x300) == b"a"


COMPRESSORS = {
    0x101: lz4.frame.compress,
    0x201: zstandard.ZstdCompressor().compress,
    0x301: zlib.compress,
    "stream": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_inflating_is_limited(kind):
    flags = 0x201 if kind == "stream" else kind
    bomb = COMPRESSORS[kind](bytes(3_000_000))
    assert len(m.decompress_body(bomb, flags, bytes_max=3_000_000)) == 3_000_000
    with pytest.raises(RemoteProtocolError, match="inflates"):
        m.decompress_body(bomb, flags, bytes_max=2_999_999)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_torn_and_damaged_bodies_are_refused(kind):
    flags = 0x201 if kind == "stream" else kind
    whole = COMPRESSORS[kind](bytes(range(256)) * 20)
    for damaged in (whole[:-5], whole[:3], b"", b"\xff" * 40):
        with pytest.raises(RemoteProtocolError):
            m.decompress_body(damaged, flags)


# --- hashes and ids -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("TagA", 2598919),
        ("TagB", 2598920),
        ("中文", 646394),
        ("TopicTest#KEY1", -1656969516),
        ("", 0),
        ("😀", 0xD83D * 31 + 0xDE00),
    ],
)
def test_hashes_are_those_of_java(text, expected):
    assert m.java_hash(text) == expected
    assert m.tag_hash(text) == expected


def test_checksums():
    assert m.crc31(b"hello") == 907060870
    assert m.crc31(memoryview(b"123456789")) == 1274296614


def test_offset_message_id():
    text = "0A00000200002A9F00000000000003E8"
    assert m.offset_message_id(m.pack_host("10.0.0.2", 10911), 1000) == text
    assert m.parse_offset_message_id(text) == ("10.0.0.2", 10911, 1000)
    assert m.parse_offset_message_id(text.lower()) == ("10.0.0.2", 10911, 1000)


def test_offset_message_id_of_an_ipv6_host():
    text = m.offset_message_id(m.pack_host("fe80::1", 10911), 5)
    assert len(text) == 56
    assert m.parse_offset_message_id(text) == ("fe80::1", 10911, 5)


@pytest.mark.parametrize("text", ["", "0A", "g" * 32, "0" * 31, "0" * 57, "0" * 34, " " * 32])
def test_other_texts_are_no_message_ids(text):
    with pytest.raises(InvalidParameterError):
        m.parse_offset_message_id(text)


@pytest.mark.parametrize(
    ("ip", "size", "shown"),
    [
        ("10.0.0.2", 8, "10.0.0.2:7"),
        ("::1", 20, "[::1]:7"),
        ("::ffff:10.0.0.2", 8, "10.0.0.2:7"),
        ("fe80::1%eth0", 20, "[fe80::1]:7"),
    ],
)
def test_hosts_are_packed(ip, size, shown):
    host = m.pack_host(ip, 7)
    assert len(host) == size
    assert m.format_host(host) == shown


@pytest.mark.parametrize(
    ("ip", "port"), [("nowhere", 1), ("", 1), ("10.0.0.1", 65536), ("::1", -1)]
)
def test_bad_hosts_are_refused(ip, port):
    with pytest.raises(InvalidParameterError):
        m.pack_host(ip, port)


def test_bad_packed_hosts_are_refused():
    with pytest.raises(InvalidParameterError):
        m.unpack_host(b"123")


def test_unique_keys_have_the_layout_and_never_repeat():
    clock = ManualClock()
    drawn = iter(range(1, 100))
    keys = m.UniqueKeyGenerator(
        clock, pid=0x12345, ip="10.0.0.9", random_bytes=lambda n: next(drawn).to_bytes(n, "big")
    )
    first = keys()
    assert len(first) == 32
    assert first.startswith("0A000009" + "2345" + "00000001")
    seen = {first}
    for step in (0, 0, 0.001, -5, 0.5, 10, 40 * 86400, 0, -40 * 86400):
        clock.advance(step)
        for _ in range(50):
            key = keys()
            assert key not in seen
            assert key == key.upper()
            seen.add(key)


def test_unique_keys_count_milliseconds_of_the_local_month():
    import datetime

    start = datetime.datetime(2024, 2, 1).astimezone()
    clock = ManualClock(wall_ms=int(start.timestamp() * 1000) + 86_400_123)
    keys = m.UniqueKeyGenerator(clock, pid=1, ip="127.0.0.1")
    assert int(keys()[20:28], 16) == 86_400_123
    clock.advance(28 * 86400)
    assert int(keys()[20:28], 16) == 123


def test_unique_keys_survive_a_counter_overflow_within_a_millisecond():
    keys = m.UniqueKeyGenerator(ManualClock(), pid=1, ip="127.0.0.1")
    assert len({keys() for _ in range(70_000)}) == 70_000


def test_many_unique_keys_are_those_of_many_calls():
    """Over the end of a counter, of a month, and with a clock that goes back."""
    start = int(time.mktime((2024, 2, 29, 23, 59, 59, 0, 0, -1)) * 1000) + 990
    clocks = [ManualClock(wall_ms=start) for _ in range(2)]
    one, many = (
        m.UniqueKeyGenerator(clock, pid=1, ip="127.0.0.1", random_bytes=random.Random(7).randbytes)
        for clock in clocks
    )
    for step, count in ((0, 0), (0, 1), (0, 300), (0.002, 70_000), (-5, 2000), (0.02, 500)):
        for clock in clocks:
            clock.advance(step)
        assert many.take(count) == [one() for _ in range(count)]
        assert many() == one()


def test_unique_keys_differ_between_processes_by_default():
    assert m.UniqueKeyGenerator()()[:20] != m.UniqueKeyGenerator()()[:20]


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "T_1-x", "%RETRY%g", "a|b", "x" * 127, "%DLQ%" + "g" * 250])
def test_good_topics(name):
    m.validate_topic(name)


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "..", "é", "x" * 128, "%DLQ%" + "g" * 251, "a\n", "٣", "a\x00"]
)
def test_bad_topics(name):
    with pytest.raises(InvalidParameterError):
        m.validate_topic(name)


def test_groups():
    m.validate_group("g" * 120)
    for name in ("", "g" * 121, "a b", "a\n"):
        with pytest.raises(InvalidParameterError):
            m.validate_group(name)
