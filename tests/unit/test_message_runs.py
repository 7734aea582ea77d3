"""Messages that are alike are decoded together, with the same result as one after the other."""

from __future__ import annotations

import pytest

from dledger import message as m
from dledger.errors import RemoteProtocolError

HOSTS = [m.pack_host("10.0.0.1", 1), m.pack_host("10.0.0.2", 2)]
KEY = b"UNIQ_KEY\x010123456789ABCDEF0123456789ABCDE%d\x02"


def record(number: int, properties: bytes, born_host: bytes = HOSTS[0]) -> bytes:
    return m.encode_stored(
        topic=b"orders",
        queue_id=3,
        flag=7,
        queue_offset=100 + number,
        physical_offset=5000 + number,
        sys_flag=0,
        born_timestamp_ms=1_700_000_000_000 + number,
        born_host=born_host,
        store_timestamp_ms=1_700_000_001_000 + number,
        store_host=HOSTS[0],
        reconsume_times=1,
        prepared_transaction_offset=9,
        body=b"body %d" % number,
        properties=properties,
    )


def check(body: bytes) -> list[m.ReceivedMessage]:
    """Returns the messages of a run; they, or the error, are those of one after the other."""
    try:
        plain = list(m.iter_stored(body, broker_name="b"))
    except RemoteProtocolError as error:
        with pytest.raises(RemoteProtocolError) as raised:
            m.decode_run(body, broker_name="b")
        assert str(raised.value) == str(error)
        return []
    found = m.decode_run(body, broker_name="b")
    assert found == plain
    assert [list(each.properties) for each in found] == [list(each.properties) for each in plain]
    return found


@pytest.mark.parametrize("rest", [b"", b"WAIT\x01true\x02", b"TAGS\x01a"])
@pytest.mark.parametrize("change", [0x01, 0x20, 0x80, 0xFF])
def test_any_byte_may_differ_from_the_neighbours(rest: bytes, change: int) -> None:
    records = [record(number, KEY % number + rest) for number in range(5)]
    assert len(check(b"".join(records))) == 5
    for at in range(len(records[3])):
        other = bytearray(records[3])
        other[at] ^= change
        check(b"".join([*records[:3], bytes(other), records[4]]))


@pytest.mark.parametrize(
    "properties",
    [
        b"TAGS\x01%d\x02",  # none
        b"UNIQ_KEY\x0112345%d\x02",  # short
        b"UNIQ_KEY\x01%d0123456789ABCDEF0123456789ABCDEF\x02",  # long
        b"ANY_NAME" + KEY.removeprefix(b"UNIQ_KEY"),
        b"A\x01b\x02" + KEY,  # not in front
        KEY + b"UNIQ_KEY\x01again\x02",
        KEY + b"\xff\x01\xfe\x02",
    ],
)
def test_other_keys_than_ours_are_decoded_like_any(properties: bytes) -> None:
    records = [record(number, properties % number) for number in range(5)]
    # Also where one that is like ours comes before them.
    assert len(check(b"".join(records))) == 5
    assert len(check(b"".join([record(0, KEY % 0 + b"x" * 4), *records]))) == 6


def test_each_message_has_properties_of_its_own() -> None:
    messages = check(b"".join(record(number, KEY % number) for number in range(5)))
    messages[2].properties["mine"] = "1"
    assert ["mine" in each.properties for each in messages] == [False, False, True, False, False]


def test_messages_of_several_hosts_and_sizes() -> None:
    records = [
        record(number, KEY % (number % 10) + b"A\x01%s\x02" % (b"x" * (number // 12)), host)
        for number, host in enumerate(HOSTS * 24)
    ]
    messages = check(b"".join(records))
    assert [each.born_host for each in messages] == ["10.0.0.1:1", "10.0.0.2:2"] * 24


def test_properties_of_one_length_may_differ() -> None:
    others = [b"A\x01b\x02C\x01d\x02", b"A\x01b\x02C\x01e\x02", b"A\x01b\x02C\x01\x02\x02"]
    check(b"".join(record(number, KEY % number + others[number % 3]) for number in range(9)))
    again = [b"UNIQ_NOT\x01again\x02", b"UNIQ_KEY\x01again\x02"]
    check(b"".join(record(number, KEY % number + again[number // 3]) for number in range(6)))


@pytest.mark.parametrize("size", [0, 1, 40])
def test_a_body_of_negative_length_is_an_error(size: int) -> None:
    # The number fits the size, and what would then be read is the end of the message before.
    good = record(1, KEY % 1)
    wrong = bytearray(record(2, KEY % 2))
    wrong[0:4] = size.to_bytes(4, "big")
    wrong[84:88] = (size - (len(wrong) - len(b"body 2"))).to_bytes(4, "big", signed=True)
    assert check(good + good + bytes(wrong)) == []


def test_a_run_that_is_cut_off_is_an_error() -> None:
    body = b"".join(record(number, KEY % number) for number in range(5))
    for end in range(len(body)):
        check(body[:end])
