"""Many runs, one table: the smoke tier for every change, the full tier for a release."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from jepsen_tests.checkers import Outcome
from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.options import RunOptions
from jepsen_tests.runner import RunResult, attempt, run

SMOKE_BUDGET_S = 360.0
OVERHEAD_S = 8.0  # of a run: to start, to drain, to read everything, to stop
SPARE_S = 10.0  # of the budget, for a run that takes longer than that
LOAD_MIN_S = 11.0  # for one fault, and some calm before and after


@dataclass(frozen=True)
class Cell:
    """One run of a matrix."""

    workload: str
    nemeses: tuple[str, ...]
    time_s: float
    replicas: int = 3
    groups: int = 1
    target: str = ""

    @property
    def name(self) -> str:
        """For tables."""
        size = "" if self.replicas == 3 else f" x{self.replicas}"
        groups = "" if self.groups == 1 else f" g{self.groups}"
        return f"{self.workload} {'+'.join(self.nemeses) or 'none'}{size}{groups}"


@dataclass(frozen=True)
class CellResult:
    """What came out of one run."""

    cell: Cell
    outcome: str
    seconds: float
    reasons: tuple[str, ...] = ()
    result: RunResult | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the result for programs."""
        figures = self.result.figures if self.result is not None else {}
        return {
            "cell": self.cell.name,
            "workload": self.cell.workload,
            "nemeses": list(self.cell.nemeses),
            "verdict": self.outcome,
            "reasons": list(self.reasons),
            "seconds": round(self.seconds, 1),
            "figures": figures,
            "folder": str(self.result.folder) if self.result is not None else None,
        }


# W5 is for the full tier only: its last delays are 30 s long.
_SMOKE: Final = (
    ("W1", "F1", 22.0),
    ("W1", "F2", 20.0),
    ("W1", "F4", 22.0),
    ("W1", "F5", 22.0),
    ("W1", "F7", 26.0),
    ("W1", "F10", 22.0),
    ("W2", "F1", 14.0),
    ("W3", "F4", 16.0),
    ("W4", "F1", 14.0),
    ("W6", "F5", 14.0),
    ("W7", "F1", 14.0),
)

# Retention drops messages that a slow group has not consumed: F7 goes with the log only.
_FULL: Final = {
    "W1": tuple(f"F{number}" for number in range(1, 15)),
    "W2": ("F1", "F2", "F3", "F4", "F5", "F6", "F10", "F13", "F14"),
    "W2-GROUP": ("F1", "F4", "F14"),
    "W3": ("F1", "F2", "F3", "F4", "F5", "F6", "F8", "F9", "F10", "F11", "F12", "F13", "F14"),
    "W4": ("F1", "F2", "F3", "F4", "F5", "F8", "F9", "F10", "F14"),
    "W5": ("F1", "F4", "F5", "F8", "F10", "F12", "F14"),
    "W6": ("F1", "F4", "F5", "F10", "F14"),
    "W7": ("F1", "F2", "F3", "F4", "F5", "F8", "F10", "F14"),
}
_FULL_S: Final = 36.0


def cells(tier: str) -> list[Cell]:
    """Returns the runs of a tier: `smoke` or `full`."""
    if tier == "smoke":
        return [Cell(workload, (fault,), time_s) for workload, fault, time_s in _SMOKE]
    found = [Cell(workload, (f,), _FULL_S) for workload, faults in _FULL.items() for f in faults]
    found += [Cell("W1", (f,), _FULL_S, replicas=5) for f in ("F1", "F2", "F4", "F10", "F14")]
    found += [Cell("W1", ("F7", other), 50) for other in ("F1", "F6")]
    return [*found, Cell("W1", ("F1", "F4", "F5", "F6"), 50, groups=2)]


def fitted_s(todo: Sequence[Cell], left_s: float, overhead_s: float = OVERHEAD_S) -> float:
    """Returns how long the load of the first of the runs may last, so that all fit. Pure.

    Args:
        todo: The runs that are left, this one first.
        left_s: Until all must have ended.
        overhead_s: What each takes beside its load.
    """
    loads_s = sum(cell.time_s for cell in todo)
    share = (left_s - overhead_s * len(todo)) / loads_s
    return max(LOAD_MIN_S, todo[0].time_s * min(1.0, share))


def run_matrix(
    tier: str, seed: int, out: Path, able: Capabilities, say: Callable[[str], None]
) -> list[CellResult]:
    """Runs all cells of a tier one after the other and writes the summary.

    Raises:
        RunStoppedError: A signal ended it.
    """
    folder = (out / f"matrix-{tier}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    todo = cells(tier)
    results: list[CellResult] = []
    begin = time.monotonic()
    for number, cell in enumerate(todo):
        elapsed_s = time.monotonic() - begin
        if tier == "smoke":
            # A machine that is slow today gets shorter loads instead of a later end.
            beside = [done.seconds - done.cell.time_s for done in results]
            overhead_s = max(OVERHEAD_S, sum(beside) / max(1, len(beside)))
            left_s = SMOKE_BUDGET_S - SPARE_S - elapsed_s
            cell = replace(cell, time_s=round(fitted_s(todo[number:], left_s, overhead_s), 1))
        say(f"=== {number + 1}/{len(todo)} {cell.name}, {cell.time_s:g} s; {elapsed_s:.0f} s gone")
        results.append(_run_cell(cell, seed + number + 1, folder, able, say))
        _write(folder, tier, seed, able, results)
        say(f"=== {cell.name}: {results[-1].outcome.upper()} {'; '.join(results[-1].reasons)}")
    say(f"=== {len(todo)} runs in {time.monotonic() - begin:.0f} s; {folder}")
    return results


def _run_cell(
    cell: Cell, seed: int, folder: Path, able: Capabilities, say: Callable[[str], None]
) -> CellResult:
    options = RunOptions(
        workload=cell.workload,
        nemeses=list(cell.nemeses),
        time_s=cell.time_s,
        seed=seed,
        replicas=cell.replicas,
        groups=cell.groups,
        target=cell.target,
        out=folder,
    )
    done = attempt(lambda: run(options, say, capabilities=able))
    result = done.result
    if result is None:
        return CellResult(cell, Outcome.UNKNOWN.value, done.seconds, (done.problem,))
    outcome, reasons = result.outcome.value, list(result.reasons)
    if result.verdict is not None and result.verdict.violations:
        first = result.verdict.violations[0]
        reasons.insert(0, f"{first.rule} {first.kind}: {first.text}")
    return CellResult(cell, outcome, done.seconds, tuple(reasons), result)


def matrix_exit_code(results: Sequence[CellResult]) -> int:
    """Returns 4 if a run was violated, else 5 if one is unknown or there was none, else 0."""
    outcomes = {result.outcome for result in results}
    if Outcome.VIOLATED.value in outcomes:
        return 4
    return 5 if Outcome.UNKNOWN.value in outcomes or not outcomes else 0


def table(results: Sequence[CellResult]) -> list[tuple[str, ...]]:
    """Returns the summary: a head and a line for each cell."""
    rows: list[tuple[str, ...]] = [
        ("cell", "verdict", "operations", "faults bit", "leader changes", "longest pause", "s")
    ]
    for result in results:
        figures = result.result.figures if result.result is not None else {}
        rows.append(
            (
                result.cell.name,
                result.outcome,
                f"{figures.get('operations', 0):,}",
                f"{figures.get('faultsThatBit', 0)}/{figures.get('faults', 0)}",
                str(figures.get("leaderChanges", 0)),
                f"{figures.get('longestAckGapMs', 0):,.0f} ms",
                f"{result.seconds:.0f}",
            )
        )
    return rows


def _write(
    folder: Path, tier: str, seed: int, able: Capabilities, results: Sequence[CellResult]
) -> None:
    summary = {
        "tier": tier,
        "backend": able.backend.value,
        "seed": seed,
        "exitCode": matrix_exit_code(results),
        "cells": [result.to_json() for result in results],
    }
    (folder / "matrix.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    rows = table(results)
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    lines.insert(1, f"|{' --- |' * len(rows[0])}\n")
    (folder / "matrix.md").write_text("".join(lines), encoding="utf-8")
    _write_junit(folder / "junit.xml", tier, results)


def _write_junit(path: Path, tier: str, results: Sequence[CellResult]) -> None:
    suite = ElementTree.Element("testsuite", name=f"jepsen-{tier}", tests=str(len(results)))
    for result in results:
        attributes = {"name": result.cell.name, "classname": f"jepsen.{tier}"}
        case = ElementTree.SubElement(
            suite, "testcase", {**attributes, "time": f"{result.seconds:.1f}"}
        )
        text = "; ".join(result.reasons)
        if result.outcome != Outcome.VALID.value:
            ElementTree.SubElement(case, "failure", message=f"{result.outcome}: {text}")
    ElementTree.ElementTree(suite).write(path, encoding="unicode")
