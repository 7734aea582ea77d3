"""What becomes of a message that a consumer could not process."""

from __future__ import annotations

import pytest

from broker.retries import clean_reason, is_beyond_retries, send_back, without_delay
from dledger.message import ReceivedMessage
from dledger.model import GroupConfig

GROUP = GroupConfig(name="g", retry_max=3)


def message(reconsume_times: int = 0, **properties: str) -> ReceivedMessage:
    return ReceivedMessage(
        topic="t",
        body=b"x",
        properties=dict(properties),
        reconsume_times=reconsume_times,
        store_host="10.0.0.1:10911",
        physical_offset=77,
    )


def back(
    received: ReceivedMessage,
    delay_level: int = 0,
    reconsume_max: int | None = None,
    reason: str = "",
    group: GroupConfig = GROUP,
):
    return send_back(
        received,
        group,
        delay_level=delay_level,
        reconsume_max=reconsume_max,
        reason=reason,
        now_ms=5,
    )


@pytest.mark.parametrize(("times", "wanted", "level"), [(0, 0, 3), (2, 0, 5), (2, 9, 9)])
def test_it_comes_again_later_and_later(times: int, wanted: int, level: int) -> None:
    result = back(message(times, UNIQ_KEY="U"), wanted)
    assert (result.topic, result.delay_level, result.reconsume_times, result.is_dead) == (
        "%RETRY%g",
        level,
        times + 1,
        False,
    )
    assert result.properties["DELAY"] == str(level)
    assert result.properties["RETRY_TOPIC"] == "t"
    assert result.properties["ORIGIN_MESSAGE_ID"] == message().offset_message_id


def test_the_first_topic_and_id_stay() -> None:
    result = back(message(1, RETRY_TOPIC="first", ORIGIN_MESSAGE_ID="id", REAL_TOPIC="%RETRY%g"))
    assert result.properties["RETRY_TOPIC"] == "first"
    assert result.properties["ORIGIN_MESSAGE_ID"] == "id"


@pytest.mark.parametrize(
    ("times", "wanted", "reconsume_max"), [(3, 0, None), (3, 5, None), (0, -1, None), (1, 0, 1)]
)
def test_a_dead_letter_says_where_it_came_from(
    times: int, wanted: int, reconsume_max: int | None
) -> None:
    result = back(message(times, RETRY_TOPIC="first", DELAY="3"), wanted, reconsume_max)
    assert (result.topic, result.delay_level, result.is_dead) == ("%DLQ%g", 0, True)
    assert "DELAY" not in result.properties
    assert result.properties["DLQ_ORIGIN_TOPIC"] == "first"
    assert result.properties["DLQ_ORIGIN_MESSAGE_ID"] == message().offset_message_id


def test_the_consumers_own_maximum_counts() -> None:
    assert not back(message(3), reconsume_max=4).is_dead
    assert back(message(3), reconsume_max=-1).is_dead
    assert not back(message(99), group=GroupConfig(name="g", retry_max=-1)).is_dead


def test_reasons_and_times_are_kept() -> None:
    first = back(message(), reason="a\nb\x01c" + "d" * 999).properties
    assert first["DL_RETRY_REASON"].startswith("a b cddd")
    assert len(first["DL_RETRY_REASON"]) == 512
    assert first["DL_RETRY_HISTORY"] == "5"
    second = back(message(1, **first)).properties
    assert second["DL_RETRY_HISTORY"] == "5,5"
    assert second["DL_RETRY_REASON"] == first["DL_RETRY_REASON"]
    long = back(message(1, DL_RETRY_HISTORY=",".join("1" * 50))).properties
    assert long["DL_RETRY_HISTORY"].count(",") == 31


def test_a_reason_is_text() -> None:
    assert clean_reason(" \ud800 \x00 x ") == "? x"


def test_sends_to_the_retry_topic_end_after_the_maximum() -> None:
    assert not is_beyond_retries(GROUP, reconsume_times=3, reconsume_max=None)
    assert is_beyond_retries(GROUP, reconsume_times=4, reconsume_max=None)
    assert not is_beyond_retries(GROUP, reconsume_times=4, reconsume_max=16)
    assert without_delay("DELAY\x013\x02a\x01b\x02") == "a\x01b\x02"
