"""Buckets of messages and bytes."""

import pytest

from broker.quotas import (
    BYTES,
    MESSAGES,
    PullQuotaExceededError,
    QuotaExceededError,
    Quotas,
    parse_quotas,
)
from dledger.errors import InvalidParameterError
from dledger.model import GroupConfig, TopicConfig


def test_without_quota_everything_passes():
    quotas = Quotas()
    for _ in range(1000):
        quotas.send(TopicConfig(name="t"), 10_000, 10**9, 0.0)


def test_a_second_holds_what_the_quota_says_and_refills():
    quotas = Quotas()
    topic = TopicConfig(name="t", attributes={MESSAGES: "10"})
    for _ in range(10):
        quotas.send(topic, 1, 100, 5.0)
    with pytest.raises(QuotaExceededError, match=r"topic t: quota.messages_per_second = 10 is"):
        quotas.send(topic, 1, 100, 5.0)
    with pytest.raises(QuotaExceededError):
        quotas.send(topic, 1, 100, 5.05)
    quotas.send(topic, 1, 100, 5.1)
    with pytest.raises(QuotaExceededError):
        quotas.send(topic, 1, 100, 5.1)
    assert quotas.refused == 3


def test_what_is_larger_than_the_quota_passes_and_is_paid_for():
    quotas = Quotas()
    topic = TopicConfig(name="t", attributes={BYTES: "1000"})
    quotas.send(topic, 1, 5000, 0.0)
    with pytest.raises(QuotaExceededError, match="bytes_per_second"):
        quotas.send(topic, 1, 1, 3.9)
    quotas.send(topic, 1, 1, 4.1)


def test_a_refused_send_takes_nothing():
    quotas = Quotas()
    topic = TopicConfig(name="t", attributes={MESSAGES: "1", BYTES: "1000"})
    quotas.send(topic, 1, 500, 0.0)
    for _ in range(100):
        with pytest.raises(QuotaExceededError):
            quotas.send(topic, 1, 500, 0.5)
    quotas.send(topic, 1, 500, 1.1)


def test_a_changed_quota_holds_at_once():
    quotas = Quotas()
    quotas.send(TopicConfig(name="t", attributes={MESSAGES: "1"}), 5, 1, 0.0)
    quotas.send(TopicConfig(name="t", attributes={MESSAGES: "100"}), 50, 1, 0.0)


def test_groups_are_checked_before_and_charged_after():
    quotas = Quotas()
    group = GroupConfig(name="g", attributes={MESSAGES: "5"})
    quotas.check_pull(group, 0.0)
    quotas.pulled(group, 32, 1000, 0.0)
    with pytest.raises(PullQuotaExceededError, match="group g"):
        quotas.check_pull(group, 1.0)
    quotas.check_pull(group, 6.0)
    quotas.check_pull(None, 0.0)


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "nan", "inf", "1e13"])
def test_a_quota_is_a_positive_number(text):
    with pytest.raises(InvalidParameterError, match=r"quota\.bytes_per_second"):
        parse_quotas({BYTES: text})
