"""Writes what a run leaves behind, beside its history.

verdict.json     the judgement, with figures
faults.json      every fault with its proof
gaps.tsv         pauses between acknowledged appends
timeline.html    for people: all of it on one page
versions.json    what was run with
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jepsen_tests.history import read_history
from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.options import RunOptions
from jepsen_tests.report.page import render_page
from jepsen_tests.report.series import Series, availability, measure
from jepsen_tests.report.timeline import Timeline
from jepsen_tests.run_log import RunLog

if TYPE_CHECKING:
    from jepsen_tests.runner import RunResult


def write_report(
    result: RunResult,
    options: RunOptions,
    able: Capabilities,
    log: RunLog,
    history: Path,
    replicas: list[str],
    versions: dict[str, str],
) -> None:
    """Writes verdict, counts, gaps and timeline into the run's folder."""
    series = measure(read_history(history), log.phases)
    result.figures |= availability(series)
    folder = result.folder
    _write_json(folder / "verdict.json", {**result.to_json(), "ended": dict(series.counts)})
    _write_json(folder / "faults.json", [msgspec.to_builtins(fault) for fault in series.faults])
    facts = {"options": vars(options), "machine": able.to_json(), "versions": versions}
    _write_json(folder / "versions.json", facts)
    (folder / "gaps.tsv").write_text(_gaps_text(series), encoding="utf-8")
    page = _page(result, options, able, series, replicas, versions)
    (folder / "timeline.html").write_text(page, encoding="utf-8")


def _page(
    result: RunResult,
    options: RunOptions,
    able: Capabilities,
    series: Series,
    replicas: list[str],
    versions: dict[str, str],
) -> str:
    figures = result.figures
    lines = list(result.verdict.lines()) if result.verdict is not None else []
    lines += [f"unknown because {reason}" for reason in result.reasons if reason not in lines]
    cards = {
        "operations judged": f"{figures.get('operations', 0):,}",
        "per second": f"{figures.get('operationsPerSecond', 0):,}",
        "appends acknowledged": f"{series.counts['appends ok']:,}",
        "of unknown fate": f"{series.counts['appends info']:,}",
        "faults that bit": f"{figures.get('faultsThatBit', 0)} of {figures.get('faults', 0)}",
        "leader changes": str(figures.get("leaderChanges", 0)),
        "longest pause": f"{figures.get('longestAckGapMs', 0):,.0f} ms",
        "time with acks": f"{100 * figures.get('shareOfTimeWithAcks', 0):.1f} %",
    }
    return render_page(
        title=f"{options.workload.upper()} under {' + '.join(options.nemeses) or 'no fault'}",
        outcome=result.outcome.value,
        subtitle=f"{len(replicas)} replicas in {options.groups} group(s), "
        f"{options.time_s:g} s of load, seed {options.seed}, hosts: {able.backend.value}",
        command=command_line(options),
        cards=cards,
        svg=Timeline(series, replicas).render(),
        series=series,
        verdict_lines=lines,
        facts={**able.to_json(), **versions},
    )


def command_line(options: RunOptions) -> list[str]:
    """Returns what to type for a run like this one."""
    words = ["dledger", "jepsen", "run", "--workload", options.workload]
    words += ["--nemesis", ",".join(options.nemeses) or "none", "--time", f"{options.time_s:g}"]
    words += ["--seed", str(options.seed), "--replicas", str(options.replicas)]
    words += ["--groups", str(options.groups), "--rate", f"{options.rate:g}"]
    if options.nameserver:
        words += ["--nameserver", options.nameserver]
    return words + (["--target", options.target] if options.target else [])


def _gaps_text(series: Series) -> str:
    lines = [
        f"{gap.ms:.0f}\t{series.at(gap.begin_ns):.3f}\t{', '.join(gap.faults)}\n"
        for gap in series.gaps
    ]
    return "ms\tat_s\tfaults\n" + "".join(lines)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
