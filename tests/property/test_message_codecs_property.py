"""Whatever is encoded decodes to the same; whatever is damaged gives the named error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dledger import message as m
from dledger.errors import MessageRejectedError, RemoteProtocolError
from dledger.message.properties import SimilarProperties

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


UNIQUE_KEYED = st.builds(
    lambda key, rest: b"UNIQ_KEY\x01" + key + b"\x02" + rest,
    st.one_of(
        st.text("0123456789ABCDEF", min_size=32, max_size=32).map(str.encode),
        st.binary(min_size=30, max_size=33),
    ),
    st.one_of(
        st.sampled_from(
            [b"", b"TAGS\x01a\x02", b"CLUSTER\x01c\x02TAGS\x01b", b"UNIQ_KEY\x01k\x02", b"\xff\x01"]
        ),
        st.binary(max_size=20),
    ),
)


@given(st.lists(st.one_of(UNIQUE_KEYED, PROPERTIES.map(m.encode_properties)), max_size=20))
def test_similar_properties_are_decoded_like_any(raws):
    similar = SimilarProperties()
    for raw in raws * 2:
        decoded = similar.decode(raw)
        assert list(decoded.items()) == list(m.decode_properties(raw).items())
        decoded["mine"] = "a change of one message is none of another"


RUNS = st.lists(
    st.tuples(FIELDS, st.one_of(UNIQUE_KEYED, st.none()), st.booleans()), min_size=1, max_size=6
)


def encode_run(run):
    """Returns stored messages one after the other; some of them of one kind, as in an answer."""
    alike = run[0][0]
    records = []
    for own, keyed, like_the_first in run:
        fields = {**(alike if like_the_first else own), "body": own["body"]}
        records.append(m.encode_stored(**{**fields, **({"properties": keyed} if keyed else {})}))
    return b"".join(records)


@given(RUNS)
def test_a_run_is_decoded_like_one_message_after_the_other(run):
    body = encode_run(run)
    assert m.decode_run(body, broker_name="b") == list(m.iter_stored(body, broker_name="b"))


@given(FIELDS, st.integers(1, 3), st.data())
def test_a_damaged_run_ends_like_one_message_after_the_other(fields, count, data):
    plain_hosts = {name: m.pack_host("10.0.0.1", 1) for name in ("born_host", "store_host")}
    record = m.encode_stored(**{**fields, **plain_hosts})
    body = bytearray(record * count)
    match data.draw(st.sampled_from(["cut", "anywhere", "a length", "a magic number"])):
        case "cut":
            del body[data.draw(st.integers(0, len(body) - 1)) :]
        case "anywhere":
            body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
        case "a magic number":
            body[-len(record) + 7] ^= 1
        case "a length":
            # Of the last message: all of it, its body, its topic (in version 1), its properties.
            sizes = (0, 84, 88 + len(fields["body"]), len(record) - len(fields["properties"]) - 2)
            at = len(body) - len(record) + data.draw(st.sampled_from(sizes))
            width = data.draw(st.sampled_from([1, 2, 4]))
            wrong = int.from_bytes(body[at : at + width], "big") + data.draw(st.integers(-120, 120))
            wrong = data.draw(st.sampled_from([wrong, -1, 0])) % 256**width
            body[at : at + width] = wrong.to_bytes(width, "big")
    body = bytes(body)
    try:
        plain = list(m.iter_stored(body))
    except RemoteProtocolError as error:
        with pytest.raises(RemoteProtocolError) as fast:
            m.decode_run(body)
        assert str(fast.value) == str(error)
    else:
        assert m.decode_run(body) == plain


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
