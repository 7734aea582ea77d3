"""How figures change as the work grows: points, exponents, pictures.

    make bench-growth                              everything, about a quarter of an hour
    python benchmarks/growth.py --only queues,size
    python benchmarks/growth.py --log-gb 20 --only log
    python benchmarks/growth.py --from build/growth.json --write

Results go to build/growth.json, where an experiment replaces what it gave before, and pictures to
build/growth/. --write puts both into docs/performance.md and docs/img/. Exit code 1: an experiment
failed (the others are kept); goals that are missed are reported, not failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine
from benchmarks.growing import page, shapes
from benchmarks.growing.log_length import log_length
from benchmarks.growing.results import Experiment, Outcome, Setup, as_json, from_json
from benchmarks.growing.retention import retention
from interop.table import replace_between

PAGE = machine.ROOT / "docs" / "performance.md"

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="log",
            about="publishing, reading at the head, start and fail-over against the log's length",
            minutes=7,
            run=log_length,
        ),
        Experiment(
            name="queues",
            about="publishing, start and fail-over with 1 to 10,000 queues",
            minutes=3,
            run=shapes.queues,
        ),
        Experiment(
            name="connections", about="1 to 2,000 connections", minutes=1.5, run=shapes.connections
        ),
        Experiment(name="replicas", about="1, 3 and 5 replicas", minutes=1, run=shapes.replicas),
        Experiment(name="size", about="messages of 16 B to 4 MiB", minutes=1.5, run=shapes.sizes),
        Experiment(name="groups", about="1 to 4 broker groups", minutes=1, run=shapes.groups),
        Experiment(
            name="retention",
            about="old segments go under load: pauses, space, readers",
            minutes=2,
            run=retention,
        ),
    )
}


def chosen(text: str) -> list[str]:
    """Returns the experiments to run, in their order."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(names - EXPERIMENTS.keys())
    if unknown:
        known = ", ".join(EXPERIMENTS)
        raise argparse.ArgumentTypeError(f"no experiment {unknown[0]!r}; there are {known}")
    return [name for name in EXPERIMENTS if name in names]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=chosen, default=list(EXPERIMENTS), metavar="NAME,...")
    parser.add_argument("--list", action="store_true", help="say what there is, and how long")
    parser.add_argument("--quick", action="store_true", help="tiny: does everything run?")
    parser.add_argument("--log-gb", type=float, default=10.0, help="of each replica's log")
    parser.add_argument("--rounds", type=int, default=3, help="of each rate; medians count")
    parser.add_argument("--trials", type=int, default=3, help="starts and fail-overs of a point")
    parser.add_argument("--messages", type=int, default=100_000, help="of one measured rate")
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="for the clusters")
    parser.add_argument("--out", type=Path, default=Path("build/growth.json"))
    parser.add_argument("--from", dest="source", type=Path, help="results instead of a run")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def setup_of(options: argparse.Namespace) -> Setup:
    """Returns how the experiments are to be run."""
    quick: bool = options.quick
    return Setup(
        quick=quick,
        rounds=1 if quick else options.rounds,
        messages=1000 if quick else options.messages,
        trials=1 if quick else options.trials,
        phase_s=0.5 if quick else 3.0,
        log_gb=0.02 if quick else options.log_gb,
        limit_megabytes=10 if quick else 300,
        directory=options.directory,
        say=lambda text: print(f"  {text}", flush=True),
    )


def run_all(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Runs the chosen experiments; returns all results in the file, and how many failed."""
    machine.allow_many_files()
    setup = setup_of(options)
    results = load(options.out) if options.out.exists() else {}
    failed = 0
    for name in options.only:
        experiment = EXPERIMENTS[name]
        print(f"{name}: {experiment.about}; about {experiment.minutes:g} minutes", flush=True)
        about, begun = machine.facts(), time.monotonic()
        try:
            outcome = experiment.run(setup)
        except Exception:
            # The others are worth having, in a run of a quarter of an hour.
            traceback.print_exc()
            failed += 1
            continue
        seconds = round(time.monotonic() - begun, 1)
        results[name] = {"machine": about, "seconds": seconds, **as_json(outcome)}
        report(name, outcome, seconds)
        results = {known: results[known] for known in EXPERIMENTS if known in results}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"experiments": results}, indent=1) + "\n")
    return results, failed


def load(path: Path) -> dict[str, Any]:
    """Returns the results in a file."""
    content = json.loads(path.read_text())["experiments"]
    return {name: content[name] for name in EXPERIMENTS if name in content}


def report(name: str, outcome: Outcome, seconds: float) -> None:
    """Prints exponents and goals."""
    for plot in outcome.plots:
        for series in plot.series:
            if not plot.over_time and series.law is not None:
                print(f"  {plot.name}: {series.name}: exponent {series.law}")
    for check in outcome.checks:
        mark = "reached" if check.reached else "MISSED"
        print(f"  {check.name}: {check.value:g}, goal {check.goal:g}: {mark}")
    print(f"{name}: {seconds:.0f} s", flush=True)


def draw_all(results: dict[str, Any], directory: Path) -> None:
    """Draws every plot."""
    try:
        from benchmarks.growing.drawing import draw
    except ImportError as error:
        raise SystemExit(f"error: no pictures: {error}; pip install -e '.[bench]'") from error
    for entry in results.values():
        for plot in from_json(entry).plots:
            draw(plot, directory / f"{plot.name}.svg")


def main() -> int:
    """Runs, reports, draws; returns the exit code."""
    options = parse()
    machine.stop_when_told()
    if options.list:
        for experiment in EXPERIMENTS.values():
            print(f"{experiment.name:12} {experiment.minutes:4g} min  {experiment.about}")
        return 0
    results, failed = (load(options.source), 0) if options.source else run_all(options)
    if not results:
        return 1
    draw_all(results, options.out.parent / "growth")
    if options.write:
        draw_all(results, options.page.parent / page.IMAGES)
        text = options.page.read_text(encoding="utf-8")
        text = replace_between(text, page.MARKER, page.content(results))
        options.page.write_text(text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
