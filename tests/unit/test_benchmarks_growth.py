"""From measured points to exponents, pages and pictures."""

import math
import xml.etree.ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.growing import page
from benchmarks.growing.drawing import draw, heading
from benchmarks.growing.fit import fit
from benchmarks.growing.results import (
    Check,
    Outcome,
    Plot,
    Point,
    Series,
    as_json,
    from_json,
)
from benchmarks.machine import DiskShortError, need_disk

SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {
    "cpu": "a processor",
    "processors": 2,
    "memory_gib": 8,
    "kernel": "6.1",
    "python": "3.11",
    "libraries": {"lmdb": "1.4"},
    "commit": "abc",
    "load_average": [0.1, 0.1, 0.1],
    "measured_at": "2026-01-01 00:00:00Z",
}


@given(
    exponent=st.floats(-3, 3),
    factor=st.floats(1e-3, 1e6),
    x=st.lists(st.integers(1, 10**6), min_size=2, max_size=20, unique=True),
)
def test_points_of_a_power_law_give_it_back(exponent, factor, x):
    law = fit([(value, factor * value**exponent) for value in x])
    assert law is not None
    # Neighbours far from 1 tell little about the height there.
    assert law.exponent == pytest.approx(exponent, abs=1e-4)
    assert law.at(x[0]) == pytest.approx(factor * x[0] ** exponent, rel=1e-6)
    assert (law.error is None) == (len(x) == 2)
    assert not law.error or law.error < 1e-4


def test_the_line_goes_between_points_that_lie_on_none():
    law = fit([(1, 10), (10, 30), (100, 10)])
    assert law is not None
    assert law.exponent == pytest.approx(0)
    assert law.factor == pytest.approx(10 * 3 ** (1 / 3))
    # The residuals over the logarithms, 3 points less 2 parameters, by the spread of x.
    rest = math.log(3) ** 2 * 2 / 3
    assert law.error == pytest.approx(math.sqrt(rest / (2 * math.log(10) ** 2)))
    assert str(law) == "+0.00 ± 0.28"


def test_what_cannot_be_told_is_not_told():
    assert fit([]) is None
    assert fit([(5, 1)]) is None
    assert fit([(5, 1), (5, 2)]) is None
    assert fit([(1, 1), (0, 5), (3, 0), (-1, 2)]) is None


def plot(**changes):
    points = [Point(x=x, y=1000 * x**0.5, limit=9000.0 * x) for x in (1, 10, 100)]
    content = {
        "name": "some",
        "title": "Something",
        "x_label": "things",
        "y_label": "messages/s",
        "series": [Series(name="all of them", points=points)],
    }
    return Plot(**{**content, **changes})


def test_an_outcome_survives_its_file():
    outcome = Outcome(
        plots=[plot(bound=20.0, x_is_bytes=True), plot(over_time=True)],
        checks=[Check(name="pause", value=25, goal=20), Check(name="told", value=1, goal=1)],
    )
    content = as_json(outcome)
    assert content["plots"][0]["series"][0]["law"]["exponent"] == pytest.approx(0.5)
    assert content["plots"][1]["series"][0]["law"] is None
    assert [check["reached"] for check in content["checks"]] == [False, True]
    assert as_json(from_json(content)) == content


def test_only_points_from_where_it_is_level_are_fitted():
    points = [Point(x=x, y=min(x, 10)) for x in (1, 5, 10, 50, 100)]
    assert Series(name="s", points=points, fit_from=10).law.exponent == pytest.approx(0)
    assert Series(name="s", points=points).law.exponent > 0.3


def test_the_page_names_points_exponents_goals_and_pictures():
    outcome = Outcome(plots=[plot()], checks=[Check(name="pause, ms", value=25, goal=20)])
    text = page.content({"some": {"machine": MACHINE, **as_json(outcome)}})
    assert "2 x a processor" in text
    row = next(line for line in text.splitlines() if "all of them" in line)
    assert "1: 1,000, 10: 3,162, 100: 10,000" in row
    assert "+0.50" in row and "0.11 to 0.01" in row
    assert "| pause, ms | 25 | at most 20 | no |" in text
    assert "![Something](img/some.svg)" in text


def test_many_points_are_thinned_and_keep_the_last():
    points = [Point(x=x, y=x) for x in range(1, 101)]
    rows = page.exponents({"e": Outcome(plots=[plot(series=[Series(name="s", points=points)])])})
    cells = rows[-1].split("|")[3].split(", ")
    assert len(cells) <= page.POINTS_MAX + 1
    assert cells[0].strip() == "1: 1" and cells[-1].strip() == "100: 100"


@pytest.mark.parametrize(
    ("value", "is_bytes", "text"),
    [
        (0.0173, False, "0.0173"),
        (12345.6, False, "12,346"),
        (16, True, "16 B"),
        (4 * 1024 * 1024, True, "4 MiB"),
        (2**41, True, "2,048 GiB"),
    ],
)
def test_numbers_are_short(value, is_bytes, text):
    assert page.short(value, is_bytes) == text


def test_a_picture_has_axes_points_and_the_exponent(tmp_path):
    draw(plot(), tmp_path / "a" / "some.svg")
    root = xml.etree.ElementTree.parse(tmp_path / "a" / "some.svg").getroot()
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert "Something: exponent +0.50 ± 0.00" in texts
    assert {"things", "messages/s", "100", "limit program at the same moment"} <= set(texts)
    draw(plot(), tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "a" / "some.svg").read_bytes()
    assert heading(plot(over_time=True)) == "Something"


def test_measuring_does_not_begin_on_a_disk_that_is_too_small(tmp_path):
    need_disk(tmp_path, -1e18, "nothing")
    with pytest.raises(DiskShortError, match=r"a long log needs 1000000002.0 GB"):
        need_disk(tmp_path, 1e18, "a long log")
