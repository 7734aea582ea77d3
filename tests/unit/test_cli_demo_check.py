"""A checker that has never failed checks nothing: one bad history for each anomaly."""

from __future__ import annotations

import pytest

from cli.demo_check import compare


@pytest.mark.parametrize(
    ("sent", "acknowledged", "consumed", "expected"),
    [
        pytest.param([0, 1, 2], [0, 1, 2], [0, 1, 2], (3, 0, 0, 0, 0, False), id="all well"),
        pytest.param([0, 1, 2], [0, 1, 2], [0, 2], (2, 1, 0, 0, 0, True), id="lost"),
        pytest.param([0, 1], [0], [0], (1, 0, 0, 0, 0, False), id="not acknowledged, not there"),
        pytest.param([0, 1], [0], [0, 1], (2, 0, 0, 0, 0, False), id="not acknowledged, there"),
        pytest.param([0, 1, 2], [0, 1, 2], [0, 1, 0, 1, 2], (5, 0, 2, 0, 0, True), id="twice"),
        pytest.param([0, 1, 2], [0, 1, 2], [0, 2, 1], (3, 0, 0, 1, 0, True), id="out of order"),
        pytest.param([0], [0], [0, 7], (2, 0, 0, 0, 1, True), id="phantom"),
    ],
)
def test_compare(
    sent: list[int],
    acknowledged: list[int],
    consumed: list[int],
    expected: tuple[int, int, int, int, int, bool],
) -> None:
    found = compare({3: sent}, {3: acknowledged}, {3: consumed})
    assert (
        found.consumed,
        found.lost,
        found.duplicates,
        found.out_of_order,
        found.phantoms,
        found.is_violation,
    ) == expected


def test_wrong_queue_is_lost_and_phantom() -> None:
    found = compare({0: [1]}, {0: [1]}, {1: [1]})
    assert (found.lost, found.phantoms) == (1, 1)
