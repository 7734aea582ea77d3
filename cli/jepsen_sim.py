"""`dledger jepsen sim`: the real code on a virtual clock, network and disk, seed by seed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import say, say_json
from cli.errors import CommandError, ExitCode
from cli.options import JsonOption

if TYPE_CHECKING:
    from jepsen_tests.sim.explorer import Job, Summary
    from jepsen_tests.sim.scenario import Result


def sim(
    seeds: Annotated[int, typer.Option(help="How many seeds to run.", min=1)] = 100,
    first: Annotated[int, typer.Option(help="The first seed.", min=0)] = 0,
    jobs: Annotated[int, typer.Option(help="Processes at once.", min=1, max=64)] = 1,
    layer: Annotated[
        str,
        typer.Option(
            help="`broker`: brokers, nameserver and clients. `raft`: replicated log, transport "
            "and CommitLog only, several times faster."
        ),
    ] = "broker",
    replicas: Annotated[
        int | None, typer.Option(help="Replicas, 1, 3 or 5; by default the seed decides.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Virtual seconds under faults; else the seed decides.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Print the story of the first seed.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Where violating runs leave history and trace.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Plant a fault that must be found; `list` names them.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Simulate many runs: exit 0 if nothing was violated, 4 if something was, 5 if interrupted."""
    from jepsen_tests.sim.controls import CONTROLS
    from jepsen_tests.sim.explorer import Interrupted, Job, explore, replay

    if control == "list":
        say("\n".join(f"{name:<24} {CONTROLS[name].text}" for name in CONTROLS))
        return
    _check_usage(layer, replicas, control)
    if control is not None:
        layer = CONTROLS[control].layer
    job = Job(
        first=first,
        seeds=seeds,
        layer=layer,  # type: ignore[arg-type]
        replicas=replicas,
        seconds=seconds,
        jobs=jobs,
        out=out,
        control=control,
        stop_at_violation=control is not None,
    )
    if trace:
        result = replay(job, first)
        for violation in result.violations:
            say(f"{violation.rule} at {violation.at_s:.3f} s: {violation.text}")
        say(f"seed {first}: {'valid' if result.is_valid else 'VIOLATED'}, digest {result.digest}")
        raise typer.Exit(ExitCode.DONE if result.is_valid else ExitCode.VIOLATION)
    progress = Progress(job)
    ended = ExitCode.DONE
    try:
        summary = explore(job, progress.add)
    except Interrupted as error:
        summary, ended = error.summary, ExitCode.UNDECIDED
    progress.end()
    if json_output:
        facts = summary.to_dict(job)
        say_json({"layer": layer, "first": first, "control": control, **facts})
    else:
        _show(summary, job)
    raise typer.Exit(ExitCode.VIOLATION if summary.violating else ended)


def _check_usage(layer: str, replicas: int | None, control: str | None) -> None:
    from jepsen_tests.sim.controls import CONTROLS

    if layer not in ("raft", "broker"):
        raise CommandError("--layer must be raft or broker", ExitCode.USAGE)
    if replicas not in (None, 1, 3, 5):
        raise CommandError("--replicas must be 1, 3 or 5", ExitCode.USAGE)
    if control is not None and control not in CONTROLS:
        raise CommandError(f"no control {control}; try --control list", ExitCode.USAGE)


class Progress:
    """How far it is, on standard error, and a line for each violation.

    On a terminal one line that changes twice a second; in a file one line a minute.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._is_terminal = sys.stderr.isatty()
        self._every_s = 0.5 if self._is_terminal else 60.0
        self._done = 0
        self._violating = 0
        self._begin = self._shown = time.monotonic()

    def add(self, result: Result) -> None:
        """Counts one run."""
        self._done += 1
        if not result.is_valid:
            self._violating += 1
            first = result.violations[0]
            self._clear()
            print(f"seed {result.seed}: {first.rule}: {first.text}"[:300], file=sys.stderr)
            print(f"  again: {self._job.replay_command(result.seed)}", file=sys.stderr, flush=True)
        now = time.monotonic()
        if now - self._shown >= self._every_s:
            self._shown = now
            rate = self._done / (now - self._begin) * 3600
            left_s = (self._job.seeds - self._done) / rate * 3600
            text = (
                f"{self._done:,}/{self._job.seeds:,} seeds, {rate:,.0f}/h, "
                f"{self._violating} violating, {left_s / 60:.1f} min left"
            )
            start, end = ("\r", "\x1b[K") if self._is_terminal else ("", "\n")
            print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Removes the line."""
        self._clear()

    def _clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _show(summary: Summary, job: Job) -> None:
    facts: dict[str, Any] = summary.to_dict(job)
    if facts["seeds"] < job.seeds:
        say(f"ended after {facts['seeds']:,} of {job.seeds:,} seeds")
    say(
        f"{facts['seeds']} seeds of the {job.layer} layer: {facts['violatingSeeds']} violating; "
        f"{facts['operations']:,} operations, {facts['acknowledged']:,} acknowledged, "
        f"{facts['elections']:,} elections, {facts['snapshotsInstalled']:,} snapshots installed"
    )
    say(
        f"{facts['virtualSeconds']:,} virtual s in {facts['cpuSeconds']:,} s of processor "
        f"({facts['virtualPerCpuSecond']:g} times real time), {facts['seedsPerHour']:,} seeds/h"
    )
    say("faults: " + ", ".join(f"{name} {count}" for name, count in facts["faults"].items()))
    for found in facts["violations"]:
        for violation in found["violations"]:
            say(
                f"seed {found['seed']} at {violation['atSeconds']:.3f} s "
                f"{violation['rule']}: {violation['text']}"
            )
        say(f"  again: {found['replay']}")
    if job.out is not None and summary.violating:
        say(f"histories and traces: {job.out}")
