"""Whatever is encoded decodes to the same; whatever is damaged gives the named error."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from dledger import message as m
from dledger.errors import MessageRejectedError, RemoteProtocolError

CLEAN = st.text(
    st.characters(codec="utf-8", exclude_characters="\x01\x02"), min_size=1, max_size=20
)
PROPERTIES = st.dictionaries(CLEAN, CLEAN, max_size=5)
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
HOST = st.builds(
    m.pack_host,
    st.ip_addresses().map(str),
    st.integers(0, 65535),
)
FIELDS = st.fixed_dictionaries(
    {
        "topic": st.text(st.characters(codec="utf-8"), max_size=200).map(str.encode),
        "queue_id": INT32,
        "flag": INT32,
        "queue_offset": INT64,
        "physical_offset": INT64,
        "sys_flag": st.sampled_from([0, 2, 4, 8, 0x300]),
        "born_timestamp_ms": INT64,
        "born_host": HOST,
        "store_timestamp_ms": INT64,
        "store_host": HOST,
        "reconsume_times": INT32,
        "prepared_transaction_offset": INT64,
        "body": st.binary(max_size=200),
        "properties": PROPERTIES.map(m.encode_properties),
    }
)


@given(PROPERTIES)
def test_properties_round_trip(properties):
    raw = m.encode_properties(properties)
    assert m.decode_properties(raw) == properties
    assert m.decode_properties(raw.removesuffix(b"\x02")) == properties
    for name, value in properties.items():
        assert m.get_property(raw, name.encode()) == value.encode()


@given(FIELDS)
def test_stored_messages_round_trip(fields):
    record = m.encode_stored(**fields)
    message = m.decode_stored(b"\x00" + record + b"\xff", 1, verify_crc=True)
    assert message.topic == fields["topic"].decode()
    assert message.body == fields["body"]
    assert message.properties == m.decode_properties(fields["properties"])
    assert message.size_bytes == len(record)
    for name in (
        "queue_id",
        "flag",
        "queue_offset",
        "physical_offset",
        "born_timestamp_ms",
        "store_timestamp_ms",
        "reconsume_times",
        "prepared_transaction_offset",
    ):
        assert getattr(message, name) == fields[name]
    assert message.store_host == m.format_host(fields["store_host"])
    assert message.offset_message_id == m.offset_message_id(
        fields["store_host"], fields["physical_offset"]
    )
    assert m.stored_properties(record) == fields["properties"]
    assert m.stored_store_timestamp(record) == fields["store_timestamp_ms"]


@given(FIELDS, st.data())
def test_damaged_messages_give_a_message_or_the_named_error(fields, data):
    record = bytearray(m.encode_stored(**fields))
    at = data.draw(st.integers(0, len(record) - 1))
    record[at] ^= data.draw(st.integers(1, 255))
    for read in (m.decode_stored, m.stored_properties, m.stored_store_timestamp):
        with contextlib.suppress(RemoteProtocolError):
            read(bytes(record))


@given(st.lists(st.tuples(st.binary(max_size=50), PROPERTIES, INT32), max_size=5))
def test_batches_round_trip(elements):
    body = b"".join(
        m.encode_batch_element(body, m.encode_properties(properties), flag)
        for body, properties, flag in elements
    )
    assert [
        (bytes(element.body), m.decode_properties(element.properties), element.flag)
        for element in m.iter_batch(body)
    ] == elements


@given(st.binary(max_size=120))
def test_garbage_is_no_batch(data):
    try:
        total = sum(22 + len(e.body) + len(e.properties) for e in m.iter_batch(data))
    except MessageRejectedError:
        return
    assert total == len(data)


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_java_hash_is_the_polynomial_over_utf16_units(text):
    raw = text.encode("utf-16-be")
    value = 0
    for at in range(0, len(raw), 2):
        value = value * 31 + int.from_bytes(raw[at : at + 2], "big")
    value &= 0xFFFFFFFF
    assert m.java_hash(text) == (value - 2**32 if value >= 2**31 else value)
