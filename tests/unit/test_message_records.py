"""The stored layout of a message."""

from __future__ import annotations

import struct

import pytest

from dledger import message as m
from dledger.errors import MessageRejectedError, RemoteProtocolError

STORED = bytes.fromhex(
    """
    00000077 daa320a7 3610a686 00000003 00000000 0000000000000005 00000000000003e8 00000000
    0000018bcfe56800 0a000001 0000c350 0000018bcfe56801 0a000002 00002a9f 00000000
    0000000000000000 00000005 68656c6c6f 09 546f70696354657374 000e
    6b0176025441475301 5461674102
    """
)

FIELDS = {
    "topic": b"TopicTest",
    "queue_id": 3,
    "flag": 0,
    "queue_offset": 5,
    "physical_offset": 1000,
    "sys_flag": 0,
    "born_timestamp_ms": 1700000000000,
    "born_host": m.pack_host("10.0.0.1", 50000),
    "store_timestamp_ms": 1700000000001,
    "store_host": m.pack_host("10.0.0.2", 10911),
    "reconsume_times": 0,
    "prepared_transaction_offset": 0,
    "body": b"hello",
    "properties": m.encode_properties({"k": "v", "TAGS": "TagA"}),
}


def test_stored_message_is_what_java_writes():
    assert m.encode_stored(**FIELDS) == STORED


def test_stored_message_decodes():
    message = m.decode_stored(STORED, verify_crc=True, broker_name="broker-a")
    assert message == m.ReceivedMessage(
        topic="TopicTest",
        body=b"hello",
        properties={"k": "v", "TAGS": "TagA"},
        queue_id=3,
        queue_offset=5,
        physical_offset=1000,
        size_bytes=119,
        born_timestamp_ms=1700000000000,
        born_host="10.0.0.1:50000",
        store_timestamp_ms=1700000000001,
        store_host="10.0.0.2:10911",
        body_crc=907060870,
        broker_name="broker-a",
    )
    assert message.tags == "TagA"
    assert message.keys == []
    assert message.unique_key == ""
    assert message.offset_message_id == "0A00000200002A9F00000000000003E8"
    assert message.message_id == message.offset_message_id


def test_unique_key_is_the_message_id():
    properties = m.encode_properties({"UNIQ_KEY": "K", "KEYS": "a b"})
    message = m.decode_stored(m.encode_stored(**{**FIELDS, "properties": properties}))
    assert message.message_id == message.unique_key == "K"
    assert message.keys == ["a", "b"]


def test_offsets_can_be_stamped():
    record = bytearray(m.encode_stored(**{**FIELDS, "queue_offset": 0, "physical_offset": 0}))
    struct.pack_into(">q", record, m.QUEUE_OFFSET_AT, 5)
    struct.pack_into(">q", record, m.PHYSICAL_OFFSET_AT, 1000)
    assert bytes(record) == STORED
    (stamp,) = struct.unpack_from(">q", record, m.STORE_TIMESTAMP_AT)
    assert stamp == 1700000000001


def test_single_fields_are_read_without_decoding():
    buffer = b"xx" + STORED
    assert m.stored_size(buffer, 2) == 119
    assert m.stored_store_timestamp(buffer, 2) == 1700000000001
    assert m.stored_properties(buffer, 2) == FIELDS["properties"]
    assert m.stored_properties(memoryview(STORED)) == FIELDS["properties"]


@pytest.mark.parametrize("length", [1, 127, 128, 255])
def test_only_long_topics_take_version_2(length):
    record = m.encode_stored(**{**FIELDS, "topic": b"t" * length})
    magic = record[4:8].hex()
    assert magic == ("daa320a7" if length <= 127 else "daa320ab")
    assert m.decode_stored(record).topic == "t" * length
    assert m.stored_properties(record) == FIELDS["properties"]


@pytest.mark.parametrize("born", ["10.0.0.1", "2001:db8::1"])
@pytest.mark.parametrize("store", ["10.0.0.2", "2001:db8::2"])
def test_ipv6_hosts(born, store):
    record = m.encode_stored(
        **{
            **FIELDS,
            "born_host": m.pack_host(born, 1),
            "store_host": m.pack_host(store, 2),
            "sys_flag": 0x2 | 0x30,
        }
    )
    message = m.decode_stored(record, verify_crc=True)
    shown = ["[2001:db8::1]:1" if ":" in born else "10.0.0.1:1"]
    shown += ["[2001:db8::2]:2" if ":" in store else "10.0.0.2:2"]
    assert [message.born_host, message.store_host] == shown
    assert message.sys_flag == 0x2 | (0x10 if ":" in born else 0) | (0x20 if ":" in store else 0)
    assert message.store_timestamp_ms == m.stored_store_timestamp(record) == 1700000000001
    assert m.stored_properties(record) == FIELDS["properties"]
    assert len(message.offset_message_id) == (56 if ":" in store else 32)


def test_compressed_bodies_are_inflated_and_their_bit_cleared():
    body, flags = m.compress_body(b"x" * 5000)
    record = m.encode_stored(**{**FIELDS, "body": body, "sys_flag": flags})
    message = m.decode_stored(record, verify_crc=True)
    assert message.body == b"x" * 5000
    assert message.sys_flag == 0x300
    kept = m.decode_stored(record, decompress=False)
    assert (kept.body, kept.sys_flag) == (body, 0x301)


def test_bodies_may_be_views():
    view = memoryview(b"--hello--")[2:7]
    assert m.encode_stored(**{**FIELDS, "body": view}) == STORED


def test_several_messages_follow_each_other():
    messages = list(m.iter_stored(STORED * 3, verify_crc=True, broker_name="b"))
    assert [message.broker_name for message in messages] == ["b"] * 3
    assert list(m.iter_stored(b"")) == []


@pytest.mark.parametrize("cut", range(len(STORED)))
def test_torn_messages_are_refused(cut):
    with pytest.raises(RemoteProtocolError):
        m.decode_stored(STORED[:cut])
    with pytest.raises(RemoteProtocolError):
        m.stored_properties(STORED[:cut])


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(0, b"\xff\xff\xff\xff", id="size"),
        pytest.param(0, b"\x00\x00\x00\x00", id="size zero"),
        pytest.param(0, b"\x00\x00\x00\x76", id="size too small"),
        pytest.param(4, b"\xcb\xd4\x31\x94", id="magic of a filler"),
        pytest.param(36, b"\x00\x00\x00\x30", id="hosts that are not there"),
        pytest.param(84, b"\x7f\xff\xff\xff", id="body length"),
        pytest.param(84, b"\xff\xff\xff\xff", id="negative body length"),
        pytest.param(93, b"\xff", id="topic length"),
        pytest.param(103, b"\xff\xff", id="properties length"),
        pytest.param(103, b"\x00\x00", id="properties too short"),
    ],
)
def test_damaged_messages_are_refused(at, value):
    damaged = STORED[:at] + value + STORED[at + len(value) :]
    with pytest.raises(RemoteProtocolError):
        m.decode_stored(damaged)
    with pytest.raises(RemoteProtocolError, match=f"at byte {len(STORED)} "):
        m.decode_run(STORED + damaged)


def test_a_wrong_checksum_is_found_on_request():
    damaged = STORED.replace(b"hello", b"hallo")
    assert m.decode_stored(damaged).body == b"hallo"
    with pytest.raises(RemoteProtocolError, match="checksum"):
        m.decode_stored(damaged, verify_crc=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("properties", b"x" * 32768),
        ("topic", b"t" * 32768),
        ("queue_id", 2**31),
        ("flag", -(2**31) - 1),
        ("born_timestamp_ms", 2**63),
        ("born_host", b"1234"),
    ],
)
def test_what_does_not_fit_the_layout_is_refused(field, value):
    with pytest.raises(MessageRejectedError):
        m.encode_stored(**{**FIELDS, field: value})


def test_keys_may_not_contain_spaces():
    assert m.message_properties(m.Message("T", b"", keys="one")) == {"KEYS": "one"}
    for keys in (["a b"], [""], ["a", " "]):
        with pytest.raises(MessageRejectedError):
            m.message_properties(m.Message("T", b"", keys=keys))
