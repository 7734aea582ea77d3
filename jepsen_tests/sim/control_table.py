"""Runs the positive controls and writes their table into `docs/simulation.md`.

    python -m jepsen_tests.sim.control_table [--jobs 2] [--write] [--check] [NAME...]

Each control is run on seeds 0, 1, 2, ... of the same mix of faults that everything else is run on,
until one of them is found guilty; that seed must be valid without the planted fault. Exit code 1 if
one is not, within `SEEDS_MAX` seeds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from jepsen_tests.sim.controls import CONTROLS
from jepsen_tests.sim.explorer import Job, run_seed

SEEDS_MAX = {"raft": 400, "broker": 60}
DOCUMENT = Path(__file__).parents[2] / "docs" / "simulation.md"
BEGIN, END = "<!-- controls: begin -->\n", "<!-- controls: end -->\n"


@dataclass(frozen=True)
class Finding:
    """What it took to find one control guilty."""

    name: str
    seed: int | None  # None: survived
    rules: tuple[str, ...]
    cpu_s: float

    def row(self) -> str:
        """Returns the control's row."""
        found = ", ".join(self.rules) if self.seed is not None else "**not found**"
        limit = SEEDS_MAX[CONTROLS[self.name].layer]
        seeds = limit if self.seed is None else self.seed + 1
        return (
            f"| {self.name} | {CONTROLS[self.name].text} | {found} | {seeds} | {self.cpu_s:.1f} |"
        )


def find(name: str) -> Finding:
    """Runs one control until it is found guilty."""
    cpu_s = 0.0
    layer = CONTROLS[name].layer
    for seed in range(SEEDS_MAX[layer]):
        result = run_seed(Job(layer=layer, control=name), seed)
        cpu_s += result.real_s
        if not result.is_valid:
            healthy = run_seed(Job(layer=layer), seed)
            if not healthy.is_valid:
                raise RuntimeError(f"seed {seed} is violated without {name}, too")
            rules = dict.fromkeys(found.rule for found in result.violations)
            return Finding(name, seed, tuple(rules), cpu_s)
    return Finding(name, None, (), cpu_s)


def stated() -> dict[str, tuple[int, float]]:
    """Returns what the document says: for each control its seeds and the processor time, in s."""
    rows = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: (int(row[3]), float(row[4])) for row in cells}


def table(findings: list[Finding]) -> str:
    """Returns the table."""
    head = "| control | planted | found by | seeds | CPU s |\n| --- | --- | --- | --- | --- |\n"
    return head + "".join(finding.row() + "\n" for finding in findings)


def main() -> int:
    """Runs them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    arguments = parser.parse_args()
    names = arguments.names or list(CONTROLS)
    findings = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        for finding in pool.map(find, names):
            print(finding.row(), flush=True)  # noqa: T201 - what was asked for
            findings.append(finding)
    if arguments.write:
        text = DOCUMENT.read_text()
        head, rest = text.split(BEGIN)
        DOCUMENT.write_text(head + BEGIN + table(findings) + END + rest.split(END)[1])
    return int(any(finding.seed is None for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
