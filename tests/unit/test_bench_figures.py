"""Figures of a load."""

import pytest

from dledger.bench.figures import Figures, percentile
from dledger.bench.load import Load
from dledger.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([7.0], 0.5, 7.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0, 3.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 101)], 1.0, 100.0),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(values, share, expected):
    assert percentile(values, share) == expected


def test_rates_and_latencies():
    figures = Figures.of(
        "send", messages=4, payload_bytes=8_000_000, seconds=2.0, latencies_s=[0.4, 0.1, 0.2, 0.3]
    )
    assert (figures.messages_per_s, figures.megabytes_per_s) == (2.0, 4.0)
    assert (figures.p50_ms, figures.p99_ms, figures.max_ms) == (200.0, 400.0, 400.0)
    assert figures.as_dict()["messages_per_s"] == 2


def test_without_latencies_none_are_named():
    figures = Figures.of("read", messages=1, payload_bytes=1, seconds=0.0)
    assert figures.messages_per_s == 0.0
    assert "p50_ms" not in figures.as_dict()


def test_a_load_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"bench\.messages"):
        Load(nameserver="n:1", messages=0)
