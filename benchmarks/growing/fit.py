"""How a figure grows with what it depends on: y = factor * x ** exponent. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PowerLaw:
    """The straight line through points on two logarithmic scales.

    Attributes:
        exponent: 0: does not depend on x; 1: in proportion to it; -1: inversely.
        error: Standard error of the exponent; None with two points, which always fit.
        factor: y at x = 1.
    """

    exponent: float
    error: float | None
    factor: float

    def at(self, x: float) -> float:
        """Returns the y of the line."""
        return float(self.factor * x**self.exponent)

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.exponent:+.2f}"
        return f"{self.exponent:+.2f} ± {self.error:.2f}"


def fit(points: Sequence[tuple[float, float]]) -> PowerLaw | None:
    """Returns the law that fits best: least squares over the logarithms.

    Points at or below 0 have no logarithm and do not count.

    Returns:
        None if fewer than two different x are left.
    """
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    count = len(logs)
    mean_x = math.fsum(x for x, _ in logs) / count
    mean_y = math.fsum(y for _, y in logs) / count
    spread = math.fsum((x - mean_x) ** 2 for x, _ in logs)
    exponent = math.fsum((x - mean_x) * (y - mean_y) for x, y in logs) / spread
    height = mean_y - exponent * mean_x
    error = None
    if count > 2:
        rest = math.fsum((y - height - exponent * x) ** 2 for x, y in logs)
        error = math.sqrt(rest / (count - 2) / spread)
    return PowerLaw(exponent, error, math.exp(height))
