"""The timeline: an SVG with the load, its latency, who led, and what was broken, on one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from jepsen_tests.history import Fault
from jepsen_tests.report.series import BUCKET_NS, NS_PER_S, Series

WIDTH, LEFT, RIGHT, TOP = 1180, 92, 16, 46
RATE_H, LATENCY_H, LANE_H, GAP = 150, 150, 22, 34
_LATENCY_MS = (0.1, 10_000.0)


class Timeline:
    """Draws one run."""

    def __init__(self, series: Series, replicas: Sequence[str]) -> None:
        self._series = series
        self._replicas = list(replicas)
        self._seconds = max(1.0, series.at(series.end_ns))
        self._parts: list[str] = []
        self._rate_top = TOP
        self._latency_top = TOP + RATE_H + GAP
        self._lanes_top = self._latency_top + LATENCY_H + GAP
        self._height = self._lanes_top + LANE_H * len(self._replicas) + 34

    def render(self) -> str:
        """Returns the SVG element."""
        self._bands()
        self._rate()
        self._latency()
        self._lanes()
        self._axis()
        box = f'viewBox="0 0 {WIDTH} {self._height}" role="img"'
        return f'<svg {box} aria-label="timeline">{"".join(self._parts)}</svg>'

    # --- coordinates ------------------------------------------------------------------------------

    def _x(self, seconds: float) -> float:
        share = min(1.0, max(0.0, seconds / self._seconds))
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def _latency_y(self, ms: float) -> float:
        low, high = (math.log10(value) for value in _LATENCY_MS)
        share = (math.log10(min(max(ms, _LATENCY_MS[0]), _LATENCY_MS[1])) - low) / (high - low)
        return round(self._latency_top + LATENCY_H * (1 - share), 1)

    # --- parts ------------------------------------------------------------------------------------

    def _add(self, text: str) -> None:
        self._parts.append(text)

    def _text(self, x: float, y: float, text: str, kind: str = "") -> None:
        self._add(f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>')

    def _bands(self) -> None:
        """One translucent band for each fault through all panels; two rows of labels."""
        bottom = self._lanes_top + LANE_H * len(self._replicas)
        for number, fault in enumerate(self._series.faults):
            left, right = self._x(self._series.at(fault.inv)), self._x(self._end(fault))
            kind = {True: "bit", False: "nobite", None: "unproven"}[fault.bit]
            width = max(1.5, right - left)
            self._add(
                f'<g class="fault {kind}"><title>{escape(_tooltip(self._series, fault))}</title>'
                f'<rect x="{left}" y="{TOP - 6}" width="{width}" height="{bottom - TOP + 6}"/>'
                f'<text x="{left + 2}" y="{TOP - 12 - 14 * (number % 2)}">{escape(_label(fault))}'
                "</text></g>"
            )

    def _end(self, fault: Fault) -> float:
        return self._seconds if fault.ret is None else self._series.at(fault.ret)

    def _rate(self) -> None:
        buckets = self._series.buckets
        per_s = NS_PER_S / BUCKET_NS
        stacks = [
            (b.appends * per_s, b.reads * per_s, b.deliveries * per_s, (b.info + b.fail) * per_s)
            for b in buckets
        ]
        top = _nice(max((sum(stack) for stack in stacks), default=1.0))
        self._frame(self._rate_top, RATE_H, "per second")
        for share in (0.0, 0.5, 1.0):
            y = self._rate_top + RATE_H * (1 - share)
            self._grid(y, f"{top * share:,.0f}")
        width = max(0.6, self._x(BUCKET_NS / NS_PER_S) - LEFT - 0.3)
        for number, stack in enumerate(stacks):
            second = number * BUCKET_NS / NS_PER_S
            if second >= self._seconds:
                break
            y = float(self._rate_top + RATE_H)
            for kind, value in zip(("append", "read", "deliver", "bad"), stack, strict=True):
                height = RATE_H * value / top
                if height > 0.05:
                    y -= height
                    box = f'x="{self._x(second)}" y="{y:.1f}" width="{width:.1f}"'
                    self._add(f'<rect class="{kind}" {box} height="{height:.1f}"/>')

    def _latency(self) -> None:
        self._frame(self._latency_top, LATENCY_H, "append ms")
        for ms in (0.1, 1, 10, 100, 1000, 10_000):
            self._grid(self._latency_y(ms), f"{ms:g}")
        for share, kind in ((0.5, "p50"), (0.99, "p99")):
            path, drawing = [], False
            for number, bucket in enumerate(self._series.buckets):
                if not bucket.latencies_ns or number * BUCKET_NS / NS_PER_S > self._seconds:
                    drawing = False
                    continue
                x = self._x((number + 0.5) * BUCKET_NS / NS_PER_S)
                y = self._latency_y(bucket.quantile_ms(share))
                path.append(f"{'L' if drawing else 'M'}{x} {y}")
                drawing = True
            self._add(f'<path class="line {kind}" d="{"".join(path)}"/>')
        for ret, ms, status in self._series.troubles:
            x, y = self._x(self._series.at(ret)), self._latency_y(ms)
            self._add(f'<circle class="{status}" cx="{x}" cy="{y}" r="1.6"/>')

    def _lanes(self) -> None:
        """A lane for each replica: full while it led, crossed out while a fault aimed at it."""
        for number, replica in enumerate(self._replicas):
            y = self._lanes_top + number * LANE_H
            self._text(LEFT - 6, y + 14, replica, "end")
            self._add(
                f'<rect class="lane" x="{LEFT}" y="{y + 3}" width="{WIDTH - LEFT - RIGHT}" '
                f'height="{LANE_H - 6}"/>'
            )
            for fault in self._series.faults:
                if replica in fault.targets:
                    left, right = self._x(self._series.at(fault.inv)), self._x(self._end(fault))
                    self._add(
                        f'<rect class="aimed" x="{left}" y="{y + 3}" '
                        f'width="{max(1.5, right - left)}" height="{LANE_H - 6}"/>'
                    )
        by_group: dict[str, list[tuple[float, str, int]]] = {}
        for note in self._series.leaders:
            group = str(note.details.get("group", ""))
            entry = (self._series.at(note.t), note.node, int(note.details.get("term", 0)))
            by_group.setdefault(group, []).append(entry)
        for reigns in by_group.values():
            for (begin, node, term), following in zip(reigns, [*reigns[1:], None], strict=True):
                self._reign(begin, following[0] if following else self._seconds, node, term)

    def _reign(self, begin: float, end: float, node: str, term: int) -> None:
        if node not in self._replicas or end <= 0:
            return
        y = self._lanes_top + self._replicas.index(node) * LANE_H
        left, right = self._x(begin), self._x(end)
        self._add(
            f'<rect class="leads" x="{left}" y="{y + 6}" width="{max(1.5, right - left)}" '
            f'height="{LANE_H - 12}"><title>{escape(node)} leads term {term}</title></rect>'
        )
        self._text(left + 3, y + 15, f"{term}", "term")

    def _frame(self, top: float, height: float, label: str) -> None:
        self._add(
            f'<rect class="frame" x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{height}"/>'
        )
        self._add(
            f'<text class="axis" transform="translate(14 {top + height / 2}) rotate(-90)">'
            f"{escape(label)}</text>"
        )

    def _grid(self, y: float, label: str) -> None:
        self._add(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        self._text(LEFT - 6, y + 4, label, "end")

    def _axis(self) -> None:
        step = _step(self._seconds)
        y = self._height - 12
        second = 0.0
        while second <= self._seconds:
            self._text(self._x(second), y, f"{second:g} s", "mid")
            second += step


def _label(fault: Fault) -> str:
    variant = str(fault.details.get("variant", ""))
    return f"{fault.name} {variant}"[:24]


def _tooltip(series: Series, fault: Fault) -> str:
    end = "..." if fault.ret is None else f"{series.at(fault.ret):.2f} s"
    proof = ", ".join(f"{name} {value}" for name, value in fault.proof.items())
    targets = ", ".join(fault.targets)
    variant = fault.details.get("variant", "")
    return f"{fault.name} {variant}: {targets}\n{series.at(fault.inv):.2f} s to {end}\n{proof}"


def _nice(value: float) -> float:
    """Returns a round number of at least this value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= value)


def _step(seconds: float) -> float:
    return next((step for step in (1, 2, 5, 10, 30, 60, 300) if seconds / step <= 14), 600)
