"""From what a client sends to what is stored."""

from dataclasses import dataclass

import pytest

from broker.intake import BATCH_COUNT_MAX, MessageIntake
from dledger.codes import PROPERTIES_BYTES_MAX
from dledger.errors import InvalidParameterError, MessageRejectedError, PermissionDeniedError
from dledger.message import (
    Message,
    decode_properties,
    decode_stored,
    encode_batch,
    encode_batch_element,
    java_hash,
    pack_host,
)

HOST = pack_host("10.0.0.1", 10911)
ADDED = {"CLUSTER": "C", "MSG_REGION": "DefaultRegion", "TRACE_ON": "true"}


@dataclass
class Header:
    sys_flag: int = 0
    born_timestamp_ms: int = 5
    flag: int = 3
    properties: str = ""
    reconsume_times: int = 0
    batch: bool = False


def encode(body=b"x", is_batch=False, **fields):
    intake = MessageIntake(cluster_name="C", store_host=HOST, new_unique_key=lambda: "NEW")
    return intake.encode(
        Header(**fields), body, topic="t", queue_id=2, born_host=bytes(8), is_batch=is_batch
    )


def test_a_message_is_complete_but_for_its_place():
    text = "TAGS\x01a\x02KEYS\x01k1 k2\x02UNIQ_KEY\x01U\x02"
    (message,), unique_key = encode(b"body", properties=text)
    assert unique_key == "U"
    assert (message.tag_hash, message.unique_key) == (java_hash("a"), b"U")
    assert list(message.keys) == [b"k1", b"k2"]
    stored = decode_stored(message.stored, verify_crc=True)
    assert (stored.topic, stored.queue_id, stored.body, stored.flag) == ("t", 2, b"body", 3)
    assert (stored.queue_offset, stored.physical_offset) == (0, 0)
    assert stored.store_host == "10.0.0.1:10911"
    assert stored.properties == {"TAGS": "a", "KEYS": "k1 k2", "UNIQ_KEY": "U", **ADDED}


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ("", {"UNIQ_KEY": "NEW"}),
        ("a\x01b", {"a": "b", "UNIQ_KEY": "NEW"}),
        ("UNIQ_KEY\x01U", {"UNIQ_KEY": "U"}),
        ("POP_CK\x01r\x02a\x01b\x02", {"a": "b", "UNIQ_KEY": "NEW"}),
        ("CLUSTER\x01other\x02TRACE_ON\x01false\x02", {"UNIQ_KEY": "NEW"}),
        ("MY_CLUSTER\x01mine\x02", {"MY_CLUSTER": "mine", "UNIQ_KEY": "NEW"}),
        ("DELAY\x010\x02", {"DELAY": "0", "UNIQ_KEY": "NEW"}),
        ("NO_DELAY\x013\x02", {"NO_DELAY": "3", "UNIQ_KEY": "NEW"}),
    ],
)
def test_properties_are_completed_and_cleaned(properties, expected):
    (message,), _ = encode(properties=properties)
    stored = decode_stored(message.stored)
    assert stored.properties == {**expected, **ADDED}


def test_the_stored_string_ends_with_the_separator():
    (message,), _ = encode(properties="a\x01b")
    assert message.stored.endswith(b"\x02")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"properties": "a\x01" + "b" * (PROPERTIES_BYTES_MAX - 20)}, MessageRejectedError),
        ({"properties": "a\x01\ud800"}, MessageRejectedError),
        ({"body": bytes(4 * 1024 * 1024 + 1)}, MessageRejectedError),
        ({"sys_flag": 4}, PermissionDeniedError),
        ({"reconsume_times": -1}, InvalidParameterError),
    ],
)
def test_what_cannot_be_kept_is_refused(fields, error):
    with pytest.raises(error):
        encode(**fields)


@pytest.mark.parametrize("name", ["DELAY", "TIMER_DELAY_SEC", "TIMER_DELAY_MS", "TIMER_DELIVER_MS"])
def test_a_delayed_message_in_a_batch_is_refused(name):
    properties = f"{name}\x013\x02".encode()
    with pytest.raises(MessageRejectedError, match="batch"):
        encode(encode_batch_element(b"x", properties), is_batch=True)


def test_address_and_transaction_bits_are_not_the_clients():
    (message,), _ = encode(sys_flag=0x30 | 0x8 | 0x1)
    assert decode_stored(message.stored, decompress=False).sys_flag == 0x1


def test_a_batch_keeps_order_flags_and_keys():
    messages = [Message("t", b"%d" % n, tags="ab"[n % 2], flag=n) for n in range(5)]
    encoded, unique_key = encode(encode_batch(messages), is_batch=True)
    assert unique_key == ""
    stored = [decode_stored(message.stored) for message in encoded]
    assert [m.body for m in stored] == [b"0", b"1", b"2", b"3", b"4"]
    assert [m.flag for m in stored] == [0, 1, 2, 3, 4]
    assert [m.tag_hash for m in encoded] == [java_hash("ab"[n % 2]) for n in range(5)]
    assert {m.unique_key for m in encoded} == {b"NEW"}


def test_batches_are_bounded_and_whole():
    one = encode_batch_element(b"x", b"")
    with pytest.raises(MessageRejectedError, match="without messages"):
        encode(b"", is_batch=True)
    with pytest.raises(MessageRejectedError, match="torn"):
        encode(one + b"torn", is_batch=True)
    with pytest.raises(MessageRejectedError, match=f"more than {BATCH_COUNT_MAX}"):
        encode(one * (BATCH_COUNT_MAX + 1), is_batch=True)
    with pytest.raises(MessageRejectedError, match="bytes"):
        encode(encode_batch_element(bytes(2**20), b"") * 5, is_batch=True)


def test_a_key_that_is_not_text_is_stored_as_it_is():
    element = encode_batch_element(b"x", b"UNIQ_KEY\x01\xff\x02")
    (message,), _ = encode(element, is_batch=True)
    assert message.unique_key == b"\xff"
    assert decode_properties(message.unique_key) == {}


def plain(intake, **fields):
    header = PlacedHeader(**fields)
    return intake.plain(intake.template("t", 0), bytes(8), header, b"body")


@dataclass
class PlacedHeader(Header):
    queue_id: int = 2


def test_a_message_like_one_before_keeps_its_own_words():
    """The first of a kind is looked at, the others are taken to be like it but for their keys."""
    intake = MessageIntake(cluster_name="C", store_host=HOST, new_unique_key=lambda: "NEW")
    for number, words in enumerate(("a b", "c", "", "d  e")):
        text = f"TAGS\x01x\x02KEYS\x01{words}\x02UNIQ_KEY\x01U{number}\x02"
        message = plain(intake, properties=text)
        general = intake.encode(
            Header(properties=text),
            b"body",
            topic="t",
            queue_id=2,
            born_host=bytes(8),
            is_batch=False,
        ).single
        assert list(message.keys) == words.encode().split() == list(general.keys)
        assert (message.stored, message.tag_hash, message.unique_key) == (
            general.stored,
            general.tag_hash,
            general.unique_key,
        )
