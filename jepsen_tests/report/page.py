"""The page that a person opens: verdict, timeline, faults with their proof, pauses, counts."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from jepsen_tests.report.series import Series

_STYLE = """
:root { color-scheme: light dark; --fg: #1c2330; --bg: #fbfbfd; --dim: #687084; --line: #d9dde6;
  --append: #2f6fde; --read: #9dbdf5; --deliver: #46a58c; --bad: #d3472f; --p50: #2f6fde;
  --p99: #8a4fd0; --ok: #1d7f4f; --warn: #a86a00; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e8f0; --bg: #14171d; --dim: #97a0b3;
  --line: #303644; --append: #6ea0ff; --read: #34507f; --deliver: #4fb89d; --bad: #ff7a61;
  --p50: #6ea0ff; --p99: #c08bff; --ok: #4cc98a; --warn: #e0a53f; --card: #1b1f27; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 28px; max-width: 1260px; color: var(--fg);
  background: var(--bg); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 22px; margin: 0 0 4px } h2 { font-size: 16px; margin: 30px 0 8px }
.sub { color: var(--dim); margin: 0 0 18px } code, pre { font: 13px ui-monospace, monospace }
.badge { padding: 3px 12px; border-radius: 999px; color: #fff; font-weight: 600; margin-right: 8px }
.badge.valid { background: var(--ok) } .badge.violated { background: var(--bad) }
.badge.unknown { background: var(--warn) }
.cards { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0 }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 8px 16px; min-width: 120px }
.card b { display: block; font-size: 20px; font-variant-numeric: tabular-nums }
.card span { color: var(--dim); font-size: 13px }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 8px }
svg { display: block; min-width: 820px; width: 100% }
svg text { font: 11px system-ui, sans-serif; fill: var(--dim) }
svg .end { text-anchor: end } svg .mid { text-anchor: middle }
svg .axis { text-anchor: middle } svg .frame { fill: none; stroke: var(--line) }
svg .grid { stroke: var(--line); stroke-dasharray: 2 4 } svg .append { fill: var(--append) }
svg .read { fill: var(--read) } svg .deliver { fill: var(--deliver) } svg .bad { fill: var(--bad) }
svg .line { fill: none; stroke-width: 1.6 } svg .p50 { stroke: var(--p50) }
svg .p99 { stroke: var(--p99) } svg circle.info { fill: var(--bad) }
svg circle.fail { fill: var(--warn); opacity: .45 }
svg .fault rect { fill: var(--bad); opacity: .13 } svg .fault:hover rect { opacity: .28 }
svg .fault.nobite rect, svg .fault.unproven rect { fill: var(--warn) }
svg .fault text { fill: var(--bad); font-weight: 600 }
svg .lane { fill: var(--line); opacity: .35 } svg .leads { fill: var(--ok) }
svg .aimed { fill: var(--bad); opacity: .35 } svg .term { fill: #fff; font-size: 9px }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin: 0 5px 0 14px }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top } th { color: var(--dim); font-weight: 500 }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
pre { white-space: pre-wrap; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 12px }
"""
_KEYS = (
    ("append", "appends acknowledged"),
    ("read", "reads"),
    ("deliver", "deliveries"),
    ("bad", "unknown or refused"),
    ("ok", "leads (number: term)"),
)


def render_page(
    *,
    title: str,
    outcome: str,
    subtitle: str,
    command: Sequence[str],
    cards: Mapping[str, str],
    svg: str,
    series: Series,
    verdict_lines: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """Returns the page. It needs nothing from elsewhere."""
    boxes = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in cards.items()
    )
    legend = "".join(
        f'<span class="key" style="background:var(--{key})"></span>{escape(text)}'
        for key, text in _KEYS
    )
    body = [
        f'<h1><span class="badge {escape(outcome)}">{escape(outcome)}</span>{escape(title)}</h1>',
        f'<p class="sub">{escape(subtitle)}</p><div class="cards">{boxes}</div>',
        f'<div class="scroll">{svg}</div>',
        f'<p class="sub">{legend}; red bands: faults, hover for the proof</p>',
        "<h2>Verdict</h2>",
        f"<pre>{escape(chr(10).join(verdict_lines))}</pre>",
        "<h2>Faults and the proof that each bit</h2>",
        _faults(series),
        "<h2>Pauses between acknowledged appends</h2>",
        _gaps(series),
        "<h2>What ended without an acknowledgement</h2>",
        _table(
            ("count", "status: error"), [(n, text) for text, n in series.errors.most_common(15)]
        ),
        "<h2>Counts</h2>",
        _table(("count", "what"), [(n, text) for text, n in sorted(series.counts.items())]),
        "<h2>Run it again</h2>",
        f"<pre>{escape(shlex.join(command))}</pre>",
        _table(("fact", "value"), facts.items()),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )


def _faults(series: Series) -> str:
    rows = []
    for fault in series.faults:
        end = "open" if fault.ret is None else f"{series.at(fault.ret):.2f}"
        bit = {True: "yes", False: "NO", None: "unproven"}[fault.bit]
        proof = "; ".join(f"{name}: {value}" for name, value in fault.proof.items())
        name = f"{fault.name} {fault.details.get('variant', '')}"
        begin = f"{series.at(fault.inv):.2f}"
        rows.append((begin, end, name, ", ".join(fault.targets), bit, proof))
    return _table(("from s", "to s", "fault", "on", "bit", "proof"), rows)


def _gaps(series: Series) -> str:
    rows = [
        (f"{gap.ms:,.0f}", f"{series.at(gap.begin_ns):.2f}", ", ".join(gap.faults) or "no fault")
        for gap in series.gaps
    ]
    return _table(("ms", "at s", "faults meanwhile"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = []
    for row in rows:
        shown = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row]
        lines.append("".join(f"<td>{escape(cell)}</td>" for cell in shown))
    if not lines:
        return '<p class="sub">none</p>'
    return f"<table><tr>{cells}</tr><tr>{'</tr><tr>'.join(lines)}</tr></table>"
