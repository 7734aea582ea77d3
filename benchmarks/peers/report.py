"""From samples to lines, as `benchmarks/table.py` has them, and to the table in the docs. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.table import line

MARKER = "peers"  # in the page
FACTS = {
    "version": "version",
    "consensus": "consensus",
    "synced": "fsync before the acknowledgement",
    "client": "client",
}
UNITS = {"messages_per_s": "/s", "p50_ms": "p50, ms", "p99_ms": "p99, ms"}


class Sample(NamedTuple):
    """One measured value."""

    peer: str
    name: str
    figure: str
    value: float


@dataclass
class Results:
    """What a run has found.

    Attributes:
        facts: What is to be known of each peer that could run: title, version, ...
        samples: Measured values, of all rounds.
        rounds: How many were begun.
        problems: Peers that cannot run here and cases that failed, with the reason.
    """

    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rounds: int = 0


def lines(results: Results) -> list[dict[str, Any]]:
    """Returns a line per peer, row and figure: the median of its samples, and their range."""
    grouped: dict[tuple[str, str, str], list[float]] = {}
    for sample in results.samples:
        grouped.setdefault(sample[:3], []).append(sample.value)
    return [
        line(
            name,
            figure,
            statistics.median(values),
            None,
            peer=peer,
            low=round(min(values), 2),
            high=round(max(values), 2),
            samples=len(values),
            **results.facts.get(peer, {}),
        )
        for (peer, name, figure), values in grouped.items()
    ]


def markdown(found: list[dict[str, Any]], problems: Iterable[str] = ()) -> str:
    """Returns a table with a column per peer, and below it what could not be measured."""
    peers = list(dict.fromkeys(entry["peer"] for entry in found))
    about: dict[str, Mapping[str, Any]] = {entry["peer"]: entry for entry in found}
    rows = list(dict.fromkeys((entry["name"], entry["figure"]) for entry in found))
    values = {(entry["peer"], entry["name"], entry["figure"]): entry for entry in found}
    text = [
        _row("", *(about[peer].get("title", peer) for peer in peers)),
        "|---" * (len(peers) + 1) + "|",
    ]
    for key, title in FACTS.items():
        text.append(_row(title, *(about[peer].get(key, "") for peer in peers)))
    for name, figure in rows:
        cells = (_cell(values.get((peer, name, figure))) for peer in peers)
        text.append(_row(f"{name}, {UNITS.get(figure, figure)}", *cells))
    text += ["", *(f"* {problem}" for problem in problems)]
    return "\n".join(text).rstrip()


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    value = f"{entry['value']:,.0f}" if entry["value"] >= 100 else f"{entry['value']:g}"
    # Of a fail-over the range says more than the middle.
    if entry["figure"] == "s" and entry["samples"] > 1:
        return f"{value} ({entry['low']:g} to {entry['high']:g})"
    return value
