"""Totals, rates and their windows."""

import pytest

from broker.statistics import SAMPLE_S, Statistics

DAY_MS = 86_400_000


def run(statistics, seconds, start_s, each=lambda: None):
    """Lets time pass with a sample every ten seconds; returns the time."""
    now_s = start_s
    for _ in range(int(seconds / SAMPLE_S)):
        each()
        now_s += SAMPLE_S
        statistics.sample(now_s, int(now_s * 1000))
    return now_s


def test_a_rate_is_that_of_its_window():
    statistics = Statistics(0.0, 0)
    now_s = run(statistics, 60, 0.0, lambda: statistics.stored("t", 100, 5_000, 0.02))
    minute = statistics.topic("t").messages.minute(now_s)
    assert minute.amount == 600
    assert minute.per_second == pytest.approx(10)
    assert minute.per_time == 100
    assert statistics.topic("t").bytes.minute(now_s).per_second == pytest.approx(500)
    assert statistics.topic("t").seconds.minute(now_s).per_time == pytest.approx(0.02)
    now_s = run(statistics, 70, now_s)
    assert statistics.topic("t").messages.minute(now_s).amount == 0
    assert statistics.topic("t").messages.hour(now_s).amount == 600
    assert statistics.topic("t").messages.amount == 600


def test_the_last_seconds_show_before_the_next_sample():
    statistics = Statistics(0.0, 0)
    now_s = run(statistics, 30, 0.0)
    statistics.fetched("g", "t", 32, 1000)
    assert statistics.group("g", "t").messages.minute(now_s + 1).amount == 32
    assert statistics.got.messages.last(now_s + 1, 10).amount == 32


def test_totals_have_windows_of_ten_seconds_and_ten_minutes():
    statistics = Statistics(0.0, 0)
    now_s = run(statistics, 600, 0.0, lambda: statistics.stored("t", 10, 10, 0.0))
    now_s = run(statistics, 10, now_s, lambda: statistics.stored("t", 1000, 10, 0.0))
    put = statistics.put.messages
    assert put.last(now_s, 10).per_second == pytest.approx(100)
    assert put.last(now_s, 60).per_second == pytest.approx((1000 + 50) / 60)
    assert put.last(now_s, 600).per_second == pytest.approx((1000 + 590) / 600)


def test_keys_are_limited_and_idle_ones_go():
    statistics = Statistics(0.0, 0, keys_max=2)
    for topic in ("a", "b", "c"):
        statistics.stored(topic, 1, 1, 0.0)
    assert [name for name, _ in statistics.topics()] == ["a", "b"]
    assert statistics.untracked == 1
    assert statistics.put.messages.amount == 3
    run(statistics, 26 * 3600, 0.0, lambda: statistics.stored("b", 1, 1, 0.0))
    assert [name for name, _ in statistics.topics()] == ["b"]
    statistics.stored("c", 1, 1, 0.0)
    assert statistics.topic("c") is not None


def test_days_begin_with_what_there_was():
    statistics = Statistics(0.0, DAY_MS - 1)
    statistics.stored("t", 7, 1, 0.0)
    statistics.sample(10.0, DAY_MS)
    statistics.stored("t", 3, 1, 0.0)
    assert (statistics.put_days.yesterday_morning, statistics.put_days.today_morning) == (0, 7)
    statistics.sample(20.0, 2 * DAY_MS)
    assert (statistics.put_days.yesterday_morning, statistics.put_days.today_morning) == (7, 10)


def test_times_fall_into_classes():
    statistics = Statistics(0.0, 0)
    for seconds in (0.0005, 0.001, 0.003, 99.0):
        statistics.stored("t", 1, 1, seconds)
    counts = statistics.put_times.counts
    assert (counts[0], counts[2], counts[-1]) == (2, 1, 1)
    assert statistics.put_times.count == 4
