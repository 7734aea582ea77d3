"""Draws plots as SVG. The only module that needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.growing.page import short
from benchmarks.growing.results import Plot, Series

WIDTH_IN, HEIGHT_IN = 7.2, 4.3
_COLOURS = ("#1f5fa8", "#c2521a", "#2f8a4c", "#7a4fa3", "#8c6d1f")
_MARKERS = "osD^v"
_GREY = "#777777"


def draw(plot: Plot, path: Path) -> None:
    """Writes a plot. The same plot gives the same bytes."""
    # Text stays text: a tenth of the size, and it can be searched.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        axes = figure.add_subplot()
        for number, series in enumerate(plot.series):
            _draw_series(axes, plot, series, number)
        if plot.bound is not None:
            axes.axhline(plot.bound, color="#b00020", linewidth=1, label=f"goal: {plot.bound:g}")
        _scales(axes, plot)
        axes.set_title(heading(plot), fontsize=11)
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        axes.grid(which="major", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, framealpha=0.85)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def heading(plot: Plot) -> str:
    """Returns the title: with the exponent of the first series, if there is one."""
    if plot.over_time or plot.series[0].law is None:
        return plot.title
    return f"{plot.title}: exponent {plot.series[0].law}"


def _draw_series(axes: Axes, plot: Plot, series: Series, number: int) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    law = None if plot.over_time else series.law
    points = sorted(series.points, key=lambda point: point.x)
    x, y = [point.x for point in points], [point.y for point in points]
    many = len(points) > 20
    label = series.name if law is None else f"{series.name} (exponent {law})"
    axes.plot(
        *(x, y),
        color=colour,
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=2.5 if many else 6,
        linewidth=1.0 if plot.over_time else 0,
        label=label,
    )
    if law is not None:
        ends = [max(x[0], series.fit_from), x[-1]]
        heights = [law.at(value) for value in ends]
        axes.plot(ends, heights, color=colour, linewidth=1.2, linestyle="--", alpha=0.8)
    limits = [(point.x, point.limit) for point in points if point.limit is not None]
    if limits and number == 0:
        axes.plot(
            *zip(*limits, strict=True),
            color=_GREY,
            marker="_" if plot.over_time else "x",
            markersize=5,
            linewidth=0,
            label="limit program at the same moment",
        )


def _scales(axes: Axes, plot: Plot) -> None:
    formatter = FuncFormatter(lambda value, _: short(value))
    if plot.over_time:
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(formatter)
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = [point.y for series in plot.series for point in series.points]
    values += [p.limit for series in plot.series for p in series.points if p.limit is not None]
    low, high = min(values), max(values)
    # At least a factor of ten, or noise would look like a trend.
    if high < 10 * low:
        middle = (low * high) ** 0.5
        low, high = middle / 10**0.5, middle * 10**0.5
    axes.set_ylim(low / 1.4, high * 1.4)
    x = sorted({point.x for series in plot.series for point in series.points})
    if len(x) <= 10:
        axes.set_xticks(x, labels=[short(value, plot.x_is_bytes) for value in x])
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_formatter(formatter)
        axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = [
        factor * 10.0**power
        for power in range(-6, 13)
        for factor in (1, 2, 5)
        if low / 1.4 <= factor * 10.0**power <= high * 1.4
    ]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axes.set_yticks(ticks, labels=[short(value) for value in ticks])
    axes.tick_params(axis="y", which="minor", labelleft=False)
