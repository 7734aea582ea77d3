"""The part of docs/performance.md that `growth.py` writes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import machine
from benchmarks.growing.results import Outcome, Plot, Point, Series, from_json

MARKER = "growth"
IMAGES = "img"
POINTS_MAX = 8


def content(experiments: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what stands between the markers.

    Args:
        experiments: By name, as written to the JSON file.
    """
    outcomes = {name: from_json(entry) for name, entry in experiments.items()}
    machines = {machine.describe(entry["machine"]): [] for entry in experiments.values()}
    for name, entry in experiments.items():
        machines[machine.describe(entry["machine"])].append(name)
    parts = [
        *(f"Measured on {text} ({', '.join(names)})." for text, names in machines.items()),
        "\n".join(exponents(outcomes)),
    ]
    checked = check_table(outcomes)
    if checked:
        parts.append("\n".join(checked))
    parts += [
        f"![{plot.title}]({IMAGES}/{plot.name}.svg)"
        for outcome in outcomes.values()
        for plot in outcome.plots
    ]
    return "\n\n".join(parts)


def exponents(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Returns the table of exponents, with the points."""
    rows = [
        "| what grows | figure | points (x: figure) | exponent | part of the limit program |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes.values():
        for plot in outcome.plots:
            if not plot.over_time:
                rows += [_row(plot, series) for series in plot.series]
    return rows


def check_table(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Returns the table of goals; nothing if there are none."""
    rows = [
        f"| {check.name} | {check.value:g} | {'at most' if check.at_most else 'at least'} "
        f"{check.goal:g} | {'yes' if check.reached else 'no'} |"
        for outcome in outcomes.values()
        for check in outcome.checks
    ]
    return ["| goal | measured | bar | reached |", "|---|---|---|---|", *rows] if rows else []


def _row(plot: Plot, series: Series) -> str:
    points = sorted(series.points, key=lambda point: point.x)
    step = max(1, -(-len(points) // POINTS_MAX))
    shown = points[::step] if points[-1:] == points[::step][-1:] else [*points[::step], points[-1]]
    texts = ", ".join(f"{short(point.x, plot.x_is_bytes)}: {short(point.y)}" for point in shown)
    ratios = [_ratio(point) for point in shown if point.limit]
    share = f"{ratios[0]:.2f} to {ratios[-1]:.2f}" if ratios else ""
    law = "" if series.law is None else str(series.law)
    figure = f"{plot.title}, {series.name}, {plot.y_label}"
    return f"| {plot.x_label} | {figure} | {texts} | {law} | {share} |"


def _ratio(point: Point) -> float:
    return point.y / point.limit if point.limit else 0.0


def short(value: float, is_bytes: bool = False) -> str:
    """Returns a number as short as it is readable; of bytes with their unit."""
    unit = ""
    if is_bytes:
        for unit in ("B", "KiB", "MiB", "GiB"):
            if value < 1024 or unit == "GiB":
                break
            value /= 1024
        unit = f" {unit}"
    return f"{value:,.0f}{unit}" if abs(value) >= 10 else f"{value:.3g}{unit}"
