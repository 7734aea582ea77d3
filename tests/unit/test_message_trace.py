"""The records of RocketMQ's message trace."""

from cli.trace import story
from dledger.message.trace import (
    FAILED,
    Delivered,
    Delivering,
    Published,
    decode_trace,
    encode_trace,
)

PUBLISHED = Published(
    time_ms=1_700_000_000_000,
    group="pg",
    topic="t",
    message_id="ID1",
    tags="a",
    keys="k1 k2",
    store_host="10.0.0.1:10911",
    size_bytes=5,
    took_ms=3,
    offset_message_id="OFF",
)
DELIVERING = Delivering(
    time_ms=1_700_000_000_010, group="cg", request_id="R1", message_id="ID1", retries=2, keys="k1"
)
DELIVERED = Delivered(
    request_id="R1",
    message_id="ID1",
    took_ms=7,
    success=False,
    keys="k1",
    outcome=FAILED,
    time_ms=1_700_000_000_017,
    group="cg",
)
# As the original's encoder lays them out.
WIRE = (
    b"Pub\x011700000000000\x01DefaultRegion\x01pg\x01t\x01ID1\x01a\x01k1 k2\x0110.0.0.1:10911"
    b"\x015\x013\x010\x01OFF\x01true\x02"
    b"SubBefore\x011700000000010\x01DefaultRegion\x01cg\x01R1\x01ID1\x012\x01k1\x02"
    b"SubAfter\x01R1\x01ID1\x017\x01false\x01k1\x014\x011700000000017\x01cg\x02"
)


def test_records_as_they_stand_on_the_wire():
    assert encode_trace([PUBLISHED, DELIVERING, DELIVERED]) == WIRE
    assert decode_trace(WIRE) == [PUBLISHED, DELIVERING, DELIVERED]


def test_no_field_is_empty_at_the_end_of_a_record():
    """Java's reader drops such a field and fails for want of it."""
    bare = [
        Published(time_ms=1, group="g", topic="t", message_id="I"),
        Delivering(time_ms=1, group="g", request_id="R", message_id="I"),
        Delivered(request_id="R", message_id="I", time_ms=1, group="g"),
    ]
    body = encode_trace(bare)
    assert b"\x01\x02" not in body
    assert body.split(b"\x02")[1] == b"SubBefore\x011\x01DefaultRegion\x01g\x01R\x01I\x010\x01null"
    assert decode_trace(body) == bare


def test_older_and_newer_senders():
    old = b"Pub\x011\x01R\x01pg\x01t\x01ID\x01\x01\x01h:1\x015\x013\x010\x01true\x02"
    (found,) = decode_trace(old)
    assert (found.success, found.offset_message_id) == (True, "")
    newer = WIRE.replace(b"\x01true\x02", b"\x01true\x01more\x02")
    assert decode_trace(newer)[0] == PUBLISHED
    (short,) = decode_trace(b"SubAfter\x01R1\x01ID1\x017\x01true\x01k\x02")
    assert (short.time_ms, short.group, short.success) == (0, "", True)


def test_what_is_torn_or_unknown_is_left_out():
    assert decode_trace(b"") == []
    assert decode_trace(b"EndTransaction\x011\x02Recall\x01\x02Pub\x011\x02\xff\xfe\x02") == []
    assert len(decode_trace(WIRE + b"Pub\x01")) == 3


def test_separators_in_tags_and_keys_do_no_harm():
    odd = Published(time_ms=1, group="g", topic="t", message_id="I", tags="a\x01b", keys="c\x02d")
    (found,) = decode_trace(encode_trace([odd]))
    assert (found.tags, found.keys, found.message_id) == ("a b", "c d", "I")


def test_the_story_of_a_message():
    other = Delivering(time_ms=5, group="x", request_id="R9", message_id="ID9")
    open_ = Delivering(time_ms=1_700_000_000_020, group="cg", request_id="R2", message_id="ID1")
    rows = story("ID1", [DELIVERED, other, open_, DELIVERING, PUBLISHED, PUBLISHED])
    assert [(row["what"], row["success"]) for row in rows] == [
        ("sent", True),
        ("consumed", False),
        ("handed out", None),
    ]
    assert (rows[1]["attempt"], rows[1]["took_ms"], rows[1]["group"]) == (2, 7, "cg")
    assert [row["what"] for row in story("k1", [PUBLISHED, DELIVERED])] == ["sent", "consumed"]
    assert story("nothing", [PUBLISHED]) == []
