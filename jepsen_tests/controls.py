"""Positive controls over real processes: a fault is planted in a part, and a run must find it.

A check that cannot fail shows nothing. `dledger jepsen controls` runs these; the simulator has its
own (`sim.controls`), and edited histories are in the checkers' tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepsen_tests.checkers import Outcome
from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.options import RunOptions
from jepsen_tests.planted import stock_library
from jepsen_tests.runner import RunResult, attempt, run

STOCK = "list"  # not a workload of ours: the library alone


@dataclass(frozen=True)
class Control:
    """One planted fault.

    Attributes:
        name: As in the list of controls, and what is planted.
        title: What is wrong.
        planted: How.
        workload, nemeses, target, time_s: The run that must find it.
        rules: One of these must be broken; or, if the verdict must be `unknown`, the reason.
        fast: Part of the test suite.
    """

    name: str
    title: str
    planted: str
    workload: str
    rules: tuple[str, ...]
    nemeses: tuple[str, ...] = ()
    target: str = ""
    time_s: float = 10.0
    expected: Outcome = Outcome.VIOLATED
    fast: bool = False


CONTROLS: Sequence[Control] = (
    Control(
        "K1",
        "acknowledged before a quorum",
        "engine that commits what the leader has written",
        "W1",
        ("C1", "C4", "C5"),
        ("F1",),
        "leader",
        20,
    ),
    Control(
        "K2",
        "stale local reads",
        "node without a read barrier that steps down only after a minute",
        "W1",
        ("C4",),
        ("F1",),
        "leader",
        14,
    ),
    Control(
        "K3",
        "term and vote forgotten at a restart",
        f"pysyncobj {stock_library.VERSION} as it was, with its own journal and transport",
        STOCK,
        ("C1", "C4", "C5"),
        ("kills",),
        time_s=8,
    ),
    Control(
        "K6",
        "sync swallowed",
        "disk that syncs a file only once",
        "W1",
        ("C1", "C4", "C5"),
        ("F10",),
        "all",
        20,
    ),
    Control(
        "K9",
        "idempotence lost at fail-over",
        "appender that knows only the producers of its own term",
        "W2",
        ("C2",),
        ("F4",),
        "leader",
        20,
    ),
    Control(
        "K12",
        "time-out reported as failure",
        "client that notes an unknown outcome as failed",
        "W1",
        ("C3",),
        ("F5",),
        "leader",
        14,
    ),
    Control(
        "K13",
        "offset committed before processing",
        "member of the group that finishes a message, commits, and then works on it",
        "W3",
        ("D2",),
        time_s=4,
        fast=True,
    ),
    Control(
        "K14",
        "forgotten offsets",
        "offsets kept in the memory of the replica that took them",
        "W3",
        ("M2", "D2"),
        ("F4",),
        "leader",
        14,
    ),
    Control(
        "K15",
        "two owners of an ordered queue",
        "lock table that grants every request",
        "W2-GROUP",
        ("D4",),
        time_s=8,
    ),
    Control(
        "K15-locks",
        "a lock granted twice",
        "lock table that grants every request",
        "W7",
        ("W",),
        time_s=2,
        fast=True,
    ),
    Control(
        "K16",
        "rolled back, and delivered",
        "transaction service that takes one rollback in twenty for a commit",
        "W4",
        ("D5",),
        time_s=5,
    ),
    Control(
        "K16-half",
        "half message visible",
        "transaction service that stores one half message in twenty in its topic too",
        "W4",
        ("D5",),
        time_s=5,
    ),
    Control(
        "K17",
        "early delay",
        "timers that go by a clock 0.7 s ahead",
        "W5",
        ("D6",),
        time_s=5,
    ),
    Control(
        "K18",
        "torn batch",
        "appender that stores a batch message by message",
        "W1",
        ("C4",),
        time_s=3,
        fast=True,
    ),
    Control(
        "K19",
        "a fault that does not bite",
        "cut between hosts that never talk",
        "W1",
        ("no-bite",),
        ("F1",),
        time_s=9,
        expected=Outcome.UNKNOWN,
    ),
    Control(
        "K20",
        "dead clients",
        "limit of 0.5 ms for every request",
        "W1",
        ("few-acks",),
        ("F1",),
        time_s=9,
        expected=Outcome.UNKNOWN,
    ),
)


@dataclass(frozen=True)
class ControlResult:
    """What came out of one control.

    Attributes:
        caught_by: The rule, or the reason, that caught it; empty if it was missed.
        text: What the verdict says about that.
        seconds: Of the whole run; the load was `control.time_s` of them.
        was_run: It could be done here.
    """

    control: Control
    caught_by: str
    text: str
    seconds: float
    folder: str = ""
    was_run: bool = True

    def to_json(self) -> dict[str, Any]:
        """Returns the result for programs."""
        return {
            "control": self.control.name,
            "title": self.control.title,
            "planted": self.control.planted,
            "workload": self.control.workload,
            "nemeses": list(self.control.nemeses),
            "run": self.was_run,
            "caught": bool(self.caught_by),
            "caughtBy": self.caught_by,
            "text": self.text,
            "seconds": round(self.seconds, 1),
            "loadSeconds": self.control.time_s,
            "folder": self.folder,
        }


def chosen(only: Sequence[str]) -> list[Control]:
    """Returns the controls of these names, all if there are none.

    Raises:
        LookupError: There is none of a name.
    """
    known = {control.name.upper(): control for control in CONTROLS}
    unknown = [name for name in only if name.upper() not in known]
    if unknown:
        raise LookupError(f"no control {unknown[0]}; there are {', '.join(known)}")
    return [known[name.upper()] for name in only] or list(CONTROLS)


def run_controls(
    controls: Sequence[Control],
    seed: int,
    out: Path,
    able: Capabilities,
    say: Callable[[str], None],
) -> list[ControlResult]:
    """Runs controls one after the other.

    Raises:
        RunStoppedError: A signal ended it.
    """
    results: list[ControlResult] = []
    for number, control in enumerate(controls, start=1):
        say(f"=== {number}/{len(controls)} {control.name} {control.title}")
        results.append(_run_one(control, seed, out, able, say))
        result = results[-1]
        outcome = f"caught by {result.caught_by}" if result.caught_by else f"MISSED {result.text}"
        say(f"=== {control.name}: {outcome}")
    return results


def _run_one(
    control: Control, seed: int, out: Path, able: Capabilities, say: Callable[[str], None]
) -> ControlResult:
    options = RunOptions(
        workload=control.workload,
        nemeses=list(control.nemeses),
        time_s=control.time_s,
        seed=seed,
        target=control.target,
        plant=control.name,
        label=control.name,
        out=out,
    )

    def work() -> RunResult:
        if control.workload == STOCK:
            return _run_stock(control, out, say)
        return run(options, say, capabilities=able)

    done = attempt(work)
    if done.result is None:
        return ControlResult(control, "", done.problem, done.seconds, was_run=False)
    caught_by, text = _caught(control, done.result)
    return ControlResult(control, caught_by, text, done.seconds, str(done.result.folder))


def _run_stock(control: Control, out: Path, say: Callable[[str], None]) -> RunResult:
    folder = (out / f"{time.strftime('%Y%m%d-%H%M%S')}-{control.name}").absolute()
    out.mkdir(parents=True, exist_ok=True)
    verdict = stock_library.run_stock(folder, stock_library.interpreter(out.absolute()), say)
    return RunResult(folder=folder, outcome=verdict.outcome, verdict=verdict)


def exit_code(results: Sequence[ControlResult]) -> int:
    """Returns 0 if all were caught, 4 if one was missed, 5 if one could not be run."""
    if any(result.was_run and not result.caught_by for result in results):
        return 4
    return 0 if all(result.was_run for result in results) else 5


def _caught(control: Control, result: RunResult) -> tuple[str, str]:
    """Returns which of the named rules caught a control, and in which words."""
    verdict = result.verdict
    if verdict is None:
        return "", "; ".join(result.reasons)
    if control.expected is Outcome.UNKNOWN:
        found = [(reason.code, reason.text) for reason in verdict.reasons]
    else:
        found = [(v.rule, f"{v.kind}: {v.text}") for v in verdict.violations]
    for rule, text in found:
        if rule in control.rules and result.outcome is control.expected:
            return rule, text
    others = ", ".join(sorted({rule for rule, _ in found}))
    return "", f"{result.outcome.value}; {others or 'nothing'} instead of {control.rules}"


def table(results: Sequence[ControlResult]) -> list[tuple[str, ...]]:
    """Returns the summary: a head and a line for each control."""
    rows: list[tuple[str, ...]] = [
        ("control", "planted how", "run", "caught by", "load, s", "in all, s")
    ]
    for result in results:
        control = result.control
        faults = "+".join(control.nemeses) or "no fault"
        kind = result.text.partition(":")[0] if result.caught_by else result.text
        caught = f"{result.caught_by} {kind}" if result.caught_by else f"MISSED ({kind})"
        if not result.was_run:
            caught = f"not run: {result.text}"
        if control.expected is Outcome.UNKNOWN and result.caught_by:
            caught = f"`unknown`: {result.caught_by}"
        rows.append(
            (
                f"{control.name} {control.title}",
                control.planted,
                f"{control.workload} {faults}",
                caught,
                f"{control.time_s:g}",
                f"{result.seconds:.0f}",
            )
        )
    return rows
