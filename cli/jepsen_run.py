"""`dledger jepsen run`, `matrix` and `controls`: workloads under faults on real processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import say, say_json
from cli.errors import CommandError, UsageError
from cli.options import JsonOption

if TYPE_CHECKING:
    from jepsen_tests.hosts.capabilities import Capabilities
    from jepsen_tests.runner import RunResult

_RESULTS = Path("jepsen-results")
_REPLICA_COUNTS = (1, 3, 5)

OutOption = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Where the runs' folders go.")
]
HostsOption = Annotated[
    str,
    typer.Option(
        "--hosts",
        help="How hosts are made: netns (root), user (a user namespace), proxy (TCP proxies; fewer "
        "faults), or auto: the best of them.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of every choice that is made.")]


def run(
    workload: Annotated[
        str,
        typer.Option("--workload", help="W1 (log) to W7 (locks); W1-client, W1-wire, W2-group."),
    ] = "W1",
    nemesis: Annotated[
        str, typer.Option("--nemesis", metavar="F1,...", help="Faults, or none; default F1.")
    ] = "",
    time_s: Annotated[
        float, typer.Option("--time", metavar="SECONDS", min=1, help="Length of the load.")
    ] = 60.0,
    seed: SeedOption = 1,
    replicas: Annotated[int, typer.Option("--replicas", help="1, 3 or 5 in a group.")] = 3,
    groups: Annotated[int, typer.Option("--groups", min=1, max=8, help="Broker groups.")] = 1,
    rate: Annotated[
        float, typer.Option("--rate", min=0, help="Operations a second wanted; 0: all that go.")
    ] = 3000.0,
    target: Annotated[
        str, typer.Option("--target", help="leader, follower, minority, majority, all; client.")
    ] = "",
    nameserver: Annotated[
        str, typer.Option("--nameserver", metavar="HOST:PORT", help="A cluster of yours.")
    ] = "",
    hosts: HostsOption = "auto",
    out: OutOption = _RESULTS,
    keep_data: Annotated[
        bool, typer.Option("--keep-data", help="Keep what replicas wrote.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Run one workload under faults: exit 0 valid, 4 violated, 5 unknown."""
    from jepsen_tests.hosts.shell import HarnessError
    from jepsen_tests.nemeses.registry import parse_nemeses
    from jepsen_tests.options import RunOptions
    from jepsen_tests.runner import exit_code, say_to_stderr
    from jepsen_tests.runner import run as do_run
    from jepsen_tests.workloads.registry import find_workload

    if replicas not in _REPLICA_COUNTS:
        raise UsageError(f"--replicas must be 1, 3 or 5, not {replicas}")
    try:
        nemeses = parse_nemeses(nemesis)
        find_workload(workload)
    except HarnessError as error:
        raise UsageError(str(error)) from None
    if nameserver and nemeses:
        raise UsageError("--nemesis breaks only clusters that it has started; leave --nameserver")
    if not nemesis and not nameserver:
        nemeses = ["F1"]
    options = RunOptions(
        workload=workload,
        nemeses=nemeses,
        time_s=time_s,
        seed=seed,
        replicas=replicas,
        groups=groups,
        rate=rate,
        target=target,
        nameserver=nameserver,
        out=out,
        keep_data=keep_data,
    )
    able = None if nameserver else _prepare(hosts)
    result = do_run(options, say_to_stderr, capabilities=able)
    _show(result, json_output)
    raise typer.Exit(exit_code(result))


def matrix(
    tier: Annotated[
        str, typer.Option("--tier", help="smoke (at most 6 minutes) or full.")
    ] = "smoke",
    seed: SeedOption = 1,
    hosts: HostsOption = "auto",
    out: OutOption = _RESULTS,
    json_output: JsonOption = False,
) -> None:
    """Run many workloads under many faults: exit 0 all valid, 4 one violated, 5 one unknown."""
    if tier not in ("smoke", "full"):
        raise UsageError(f"--tier must be smoke or full, not {tier}")
    able = _prepare(hosts)
    from jepsen_tests import matrix as cells
    from jepsen_tests.runner import say_to_stderr

    results = cells.run_matrix(tier, seed, out, able, say_to_stderr)
    if json_output:
        say_json({"cells": [result.to_json() for result in results]})
    else:
        _say_table(cells.table(results))
        for result in results:
            for reason in result.reasons:
                say(f"{result.cell.name}: {result.outcome}: {reason}")
    raise typer.Exit(cells.matrix_exit_code(results))


def controls(
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="K9", help="These; more than once.")
    ] = None,
    seed: SeedOption = 1,
    hosts: HostsOption = "auto",
    out: OutOption = _RESULTS,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as it stands in the documents.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Plant faults that must be found: exit 0 all caught, 4 one was not, 5 one was not run."""
    from jepsen_tests import controls as planted
    from jepsen_tests.runner import say_to_stderr

    try:
        wanted = planted.chosen(only or [])
    except LookupError as error:
        raise UsageError(str(error)) from None
    able = _prepare(hosts)
    results = planted.run_controls(wanted, seed, out, able, say_to_stderr)
    if json_output:
        say_json({"controls": [result.to_json() for result in results]})
    elif markdown:
        rows = planted.table(results)
        lines = [f"| {' | '.join(row)} |" for row in rows]
        say("\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]]))
    else:
        _say_table(planted.table(results))
    raise typer.Exit(planted.exit_code(results))


def _say_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _prepare(hosts: str) -> Capabilities:
    """Finds out what can be done here; goes into a user namespace if that is the way to hosts."""
    from jepsen_tests.hosts.capabilities import Backend, choose_hosts, probe_capabilities
    from jepsen_tests.hosts.shell import HarnessError

    try:
        able = choose_hosts(probe_capabilities(), hosts)
    except HarnessError as error:
        raise UsageError(str(error)) from None
    if able.backend is Backend.NETNS_USER and not able.nested:
        script = 'mount -t tmpfs tmpfs /run && mkdir -p /run/netns && exec "$@"'
        again = [sys.executable, "-P", "-m", "cli", *sys.argv[1:]]
        command = ["unshare", "-rnm", "sh", "-c", script, "sh", *again]
        try:
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            raise CommandError(f"cannot run unshare: {error.strerror}") from error
    return able


def _show(result: RunResult, json_output: bool) -> None:
    if json_output:
        say_json(result.to_json())
        return
    shown = "\n".join(result.verdict.lines()) if result.verdict is not None else ""
    if shown:
        say(shown)
    for reason in result.reasons:
        if reason not in shown:
            say(f"unknown because {reason}")
    for name, reason in result.skipped.items():
        say(f"not done: {name} {reason}")
    for name, value in result.figures.items():
        say(f"  {name}: {value}")
    say(f"{result.outcome.value.upper()}  {result.folder}")
