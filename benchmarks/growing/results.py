"""What experiments give: points, joined to series, drawn in plots; and goals that were checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.growing.fit import PowerLaw, fit


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured point.

    Attributes:
        x, y: In the units of the plot.
        limit: What the limit program reached at that moment, in the unit of y.
        more: Whatever else is worth keeping.
    """

    x: float
    y: float
    limit: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that belong together; `fit_from`: the exponent is of those from this x on."""

    name: str
    points: Sequence[Point]
    fit_from: float = 0.0

    @property
    def law(self) -> PowerLaw | None:
        """How y grows with x, None if it cannot be told."""
        return fit([(point.x, point.y) for point in self.points if point.x >= self.fit_from])


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture.

    Attributes:
        name: Of its file.
        title, x_label, y_label: For people; labels with units.
        bound: A line that y must stay below.
        x_is_bytes: Is x a size?
        over_time: Is x just time? Then there is nothing to fit, and its scale is linear.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    bound: float | None = None
    x_is_bytes: bool = False
    over_time: bool = False


@dataclass(frozen=True, kw_only=True)
class Check:
    """A goal: `value` must be at most (or at least) `goal`."""

    name: str
    value: float
    goal: float
    at_most: bool = True

    @property
    def reached(self) -> bool:
        """Whether it holds."""
        return self.value <= self.goal if self.at_most else self.value >= self.goal


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one experiment gave."""

    plots: Sequence[Plot]
    checks: Sequence[Check] = ()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How experiments are run.

    Attributes:
        quick: Tiny: does it run?
        rounds: Times that each rate is measured; medians count.
        messages: Sent for one measurement of a rate.
        trials: Starts and fail-overs measured for one point.
        phase_s: Seconds of one measurement that is bounded by time.
        log_gb: How long the longest log becomes.
        limit_megabytes: What the limit program writes for one figure.
        directory: Where clusters live; what they leave is removed.
        say: Reports progress.
    """

    quick: bool
    rounds: int
    messages: int
    trials: int
    phase_s: float
    log_gb: float
    limit_megabytes: int
    directory: str
    say: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Something that grows; `minutes`: about how long it takes on two quiet processors."""

    name: str
    about: str
    minutes: float
    run: Callable[[Setup], Outcome]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome for JSON, with its exponents."""
    plots = []
    for plot in outcome.plots:
        content = asdict(plot)
        for series, entry in zip(plot.series, content["series"], strict=True):
            law = None if plot.over_time else series.law
            entry["law"] = None if law is None else asdict(law)
        plots.append(content)
    checks = [{**asdict(check), "reached": check.reached} for check in outcome.checks]
    return {"plots": plots, "checks": checks}


def from_json(content: Mapping[str, Any]) -> Outcome:
    """Returns the outcome that `as_json` gave."""
    plots = [
        Plot(
            **{
                **plot,
                "series": [
                    Series(
                        name=series["name"],
                        points=[Point(**point) for point in series["points"]],
                        fit_from=series["fit_from"],
                    )
                    for series in plot["series"]
                ],
            }
        )
        for plot in content["plots"]
    ]
    names = ("name", "value", "goal", "at_most")
    checks = [Check(**{name: check[name] for name in names}) for check in content["checks"]]
    return Outcome(plots=plots, checks=checks)
