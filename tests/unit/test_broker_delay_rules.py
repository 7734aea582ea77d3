"""Which messages wait, where, until when; and what they look like afterwards."""

from __future__ import annotations

import pytest

from broker.delay_rules import (
    DEFAULT_LEVELS,
    DelayRules,
    delivered,
    is_delayed,
    parse_levels,
)
from dledger.errors import ConfigError, InvalidParameterError, MessageRejectedError
from dledger.message import (
    RecallHandle,
    decode_handle,
    decode_properties,
    decode_stored,
    encode_properties,
    encode_stored,
    pack_host,
    tag_hash,
)

NOW = 1_700_000_000_000
DAY = 86_400_000
RULES = DelayRules(parse_levels(DEFAULT_LEVELS), delay_max_ms=40 * DAY)


def plan(**properties: str):
    text = encode_properties(properties).decode()
    return RULES.plan(text, topic="t", queue_id=3, now_ms=NOW)


def test_the_default_table_has_rocketmqs_18_levels() -> None:
    levels = parse_levels(DEFAULT_LEVELS)
    assert len(levels) == 18
    assert levels[0], levels[2] == (1000, 10_000)
    assert levels[-1] == 7_200_000


@pytest.mark.parametrize("text", ["", "1", "0s", "1w", "-1s", "1s,5s", "401d", "1s " * 65])
def test_a_bad_table_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="delay_levels"):
        parse_levels(text)


@pytest.mark.parametrize(
    ("level", "queue_id", "delay_ms"), [("1", 0, 1000), ("3", 2, 10_000), ("99", 17, 7_200_000)]
)
def test_a_level_waits_in_its_queue_of_the_schedule_topic(
    level: str, queue_id: int, delay_ms: int
) -> None:
    parking = plan(DELAY=level, TIMER_DELAY_MS="5", a="b")
    assert parking[:3] == ("SCHEDULE_TOPIC_XXXX", queue_id, NOW + delay_ms)
    named = decode_properties(parking.properties.encode())
    assert named["REAL_TOPIC"], named["REAL_QID"] == ("t", "3")
    assert named["a"] == "b"
    assert "TIMER_DELAY_MS" not in named


@pytest.mark.parametrize(
    ("properties", "delay_ms"),
    [
        ({"TIMER_DELAY_SEC": "5"}, 5000),
        ({"TIMER_DELAY_MS": "7"}, 7),
        ({"TIMER_DELIVER_MS": str(NOW + 40 * DAY)}, 40 * DAY),
        ({"DELAY": "0", "TIMER_DELAY_MS": "1"}, 1),
    ],
)
def test_any_other_time_waits_in_the_timer_topic(properties: dict[str, str], delay_ms: int) -> None:
    parking = plan(**properties)
    assert parking[:3] == ("rmq_sys_wheel_timer", 0, NOW + delay_ms)


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"DELAY": "0"},
        {"DELAY": "-1"},
        {"TIMER_DELIVER_MS": str(NOW)},
        {"TIMER_DELIVER_MS": "5"},
        {"TIMER_DELAY_SEC": "-9"},
        {"MY_DELAY": "3"},
        {"note": "no DELAY here"},
    ],
)
def test_what_is_due_is_not_delayed(properties: dict[str, str]) -> None:
    assert plan(**properties) is None


@pytest.mark.parametrize(
    "properties",
    [
        {"DELAY": "soon"},
        {"TIMER_DELAY_MS": "1.5"},
        {"TIMER_DELIVER_MS": "9" * 30},
        {"TIMER_DELAY_MS": str(40 * DAY + 1)},
    ],
)
def test_what_makes_no_sense_is_refused(properties: dict[str, str]) -> None:
    with pytest.raises(MessageRejectedError):
        plan(**properties)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", False),
        (b"DELAY\x010\x02", False),
        (b"NO_DELAY\x013\x02", False),
        (b"DELAY\x013\x02", True),
        (b"a\x01b\x02TIMER_DELIVER_MS\x015\x02", True),
    ],
)
def test_is_delayed(raw: bytes, expected: bool) -> None:
    assert is_delayed(raw) is expected


def stored(properties: str) -> bytes:
    return encode_stored(
        topic=b"SCHEDULE_TOPIC_XXXX",
        queue_id=2,
        flag=7,
        queue_offset=5,
        physical_offset=99,
        sys_flag=0x301,
        born_timestamp_ms=NOW - 3,
        born_host=pack_host("10.1.2.3", 4000),
        store_timestamp_ms=NOW,
        store_host=pack_host("10.0.0.1", 10911),
        reconsume_times=2,
        prepared_transaction_offset=0,
        body=b"as it came",
        properties=properties.encode(),
    )


def test_a_delivered_message_is_the_one_sent() -> None:
    parking = plan(DELAY="3", TAGS="a", KEYS="k1 k2", UNIQ_KEY="U")
    topic, queue_id, message = delivered(stored(parking.properties))
    assert (topic, queue_id) == ("t", 3)
    assert (message.tag_hash, message.unique_key, list(message.keys)) == (
        tag_hash("a"),
        b"U",
        [b"k1", b"k2"],
    )
    result = decode_stored(message.stored, decompress=False, verify_crc=True)
    assert (result.topic, result.queue_id, result.flag, result.sys_flag) == ("t", 3, 7, 0x301)
    assert (result.born_timestamp_ms, result.born_host) == (NOW - 3, "10.1.2.3:4000")
    assert (result.body, result.reconsume_times) == (b"as it came", 2)
    assert result.properties == {
        "TAGS": "a",
        "KEYS": "k1 k2",
        "UNIQ_KEY": "U",
        "REAL_TOPIC": "t",
        "REAL_QID": "3",
    }


def test_a_parked_message_without_a_target_is_refused() -> None:
    with pytest.raises(InvalidParameterError):
        delivered(stored("a\x01b\x02"))


def test_handles() -> None:
    handle = RecallHandle("topic", "broker-a", NOW, "U" * 32)
    assert decode_handle(handle.encode()) == handle
    assert decode_handle(handle.encode().rstrip("=")) == handle


@pytest.mark.parametrize("text", ["", "!", "djEgYQ==", "ü", RecallHandle("t", "b", 1, "")[0]])
def test_a_bad_handle_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameterError, match="handle"):
        decode_handle(text)
