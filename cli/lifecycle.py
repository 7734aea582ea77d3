"""`dledger up`, `down` and `status`: a whole cluster on this machine."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from cli.cluster import START_TIMEOUT_S, STOP_GRACE_S, LocalCluster
from cli.console import is_interactive, note, say, say_json, say_table
from cli.errors import CommandError, ExitCode, UsageError
from cli.layout import DEFAULT_PORT_BASE, ClusterSpec, load_layout
from cli.options import DEFAULT_DATA, DataOption, JsonOption, NameserverOption, nameserver_list
from cli.status import ClusterStatus, ask_cluster, discover

_WATCH_S = 1.0
_CHECK_S = 0.25
_SETTLE_S = 2.0  # how long `up` waits for followers once all groups serve

Groups = Annotated[
    int | None, typer.Option("--groups", help="Broker groups, each with a leader; default 1.")
]
Replicas = Annotated[
    int | None, typer.Option("--replicas", help="Replicas of each group: 1, 3 or 5; default 3.")
]
Nameservers = Annotated[int | None, typer.Option("--nameservers", help="Nameservers; default 1.")]
PortBase = Annotated[
    int | None,
    typer.Option(
        "--port-base", help=f"First of the ports, one after the other; default {DEFAULT_PORT_BASE}."
    ),
]
Flush = Annotated[
    str | None,
    typer.Option(
        "--flush",
        help="sync (default): acknowledged means on disk at a majority; async: in its page cache.",
    ),
]
Detach = Annotated[bool, typer.Option("--detach", help="Leave the processes running and return.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait for the leaders.")]
Grace = Annotated[
    float, typer.Option("--grace", help="Seconds to wait before a process is killed.")
]


def up(
    groups: Groups = None,
    replicas: Replicas = None,
    nameservers: Nameservers = None,
    data: DataOption = DEFAULT_DATA,
    port_base: PortBase = None,
    flush: Flush = None,
    detach: Detach = False,
    timeout: Timeout = START_TIMEOUT_S,
    json_output: JsonOption = False,
) -> None:
    """Start a cluster, or whatever of it does not run, and wait until it serves.

    On a directory that already holds a cluster only the missing processes are started.
    """
    asked = {
        "groups": groups,
        "replicas": replicas,
        "nameservers": nameservers,
        "port_base": port_base,
    }
    spec = _spec(data, {name: value for name, value in asked.items() if value is not None}, flush)
    began = time.monotonic()
    cluster = LocalCluster(data, spec)
    with _stop_signals(detach) as stopping:
        started = cluster.start()
        try:
            _wait(cluster, timeout, stopping)
        except BaseException:
            # What ran before stays; what we started is of no use.
            for name in started:
                cluster.stop_one(name)
            raise
        status = cluster.wait_settled(_SETTLE_S)
        took_s = time.monotonic() - began
        if json_output:
            say_json({**status.to_json(), "started": started, "seconds": round(took_s, 3)})
        else:
            _say_ready(cluster, status, started, took_s)
        failures = cluster.failures()
        for failure in failures.values():
            note(f"error: {failure}")
        if detach:
            if failures:
                raise typer.Exit(ExitCode.FAILED)
            return
        note("Ctrl-C stops the cluster.")
        _watch_processes(cluster, stopping)
        _stop(cluster, STOP_GRACE_S)


def down(data: DataOption = DEFAULT_DATA, grace: Grace = STOP_GRACE_S) -> None:
    """Stop the cluster of a data directory. What was stored stays."""
    cluster = LocalCluster(data)
    if not _stop(cluster, grace):
        note("nothing was running")


def status(
    data: DataOption = DEFAULT_DATA,
    nameserver: NameserverOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until Ctrl-C.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Show every nameserver and replica: role, term, log positions."""
    try:
        while True:
            current = _ask(data, nameserver)
            if watch and not json_output:
                say("\x1b[2J\x1b[H" if is_interactive() else "")
            if json_output:
                say_json(current.to_json())
            else:
                _say_status(current)
            if not watch:
                return
            time.sleep(_WATCH_S)
    except KeyboardInterrupt:
        return


# --- private ------------------------------------------------------------------------------------


def _spec(data: Path, asked: dict[str, int], flush: str | None) -> ClusterSpec:
    """Returns what to set up; refuses options that contradict what the directory holds."""
    if flush not in (None, "sync", "async"):
        raise UsageError(f"--flush must be sync or async, not {flush}")
    existing = load_layout(data.resolve())
    settings: dict[str, Any] = {"store": {"flush": flush}} if flush else {}
    if existing is None:
        return ClusterSpec(settings=settings, **asked)  # type: ignore[arg-type]
    for name, value in asked.items():
        has = getattr(existing.spec, name)
        if has != value:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{data} holds a cluster with {option} {has}, not {value}; "
                f"leave {option} out or choose another --data"
            )
    has_flush = existing.spec.settings.get("store", {}).get("flush", "sync")
    if flush is not None and flush != has_flush:
        raise UsageError(f"{data} holds a cluster with --flush {has_flush}, not {flush}")
    return existing.spec


def _wait(cluster: LocalCluster, timeout: float, stopping: threading.Event) -> None:
    """Waits until the cluster serves, telling a person how far it is.

    Raises:
        CommandError: It does not serve in time, or Ctrl-C came first.
    """
    spinner = None
    if is_interactive():
        from rich.console import Console

        spinner = Console(stderr=True).status("starting ...")

    def show(current: ClusterStatus) -> None:
        if stopping.is_set():
            raise CommandError("stopped before the cluster served")
        if spinner is not None:
            answering = sum(r.answers for group in current.groups for r in group.replicas)
            leaders = sum(group.leader is not None for group in current.groups)
            spinner.update(
                f"{answering} replicas answer, {leaders} of {len(current.groups)} groups serve"
            )

    with spinner or contextlib.nullcontext():
        cluster.wait_serving(timeout, show)


def _say_ready(
    cluster: LocalCluster, status: ClusterStatus, started: list[str], took_s: float
) -> None:
    what = f"processes started: {len(started)}" if started else "everything was running"
    say(f"ready after {took_s:.2f} s ({what}); data in {cluster.directory}")
    say(f"nameserver  {cluster.nameserver}")
    for group in status.groups:
        for replica in group.replicas:
            say(f"{replica.id:<11} {replica.address}  {replica.role or 'down'}")
    if cluster.nameserver != f"127.0.0.1:{DEFAULT_PORT_BASE}":
        say(f"export DLEDGER_NAMESERVER='{cluster.nameserver}'")


@contextmanager
def _stop_signals(detach: bool) -> Iterator[threading.Event]:
    """In the foreground Ctrl-C and SIGTERM ask for an orderly stop; the second Ctrl-C interrupts.

    The processes are in sessions of their own, so a Ctrl-C reaches only us.
    """
    stopping = threading.Event()
    if detach or threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch_processes(cluster: LocalCluster, stopping: threading.Event) -> None:
    """Reports processes that end and those that another `up` brings back, until asked to stop."""
    down_now = set(cluster.failures())
    while not stopping.wait(_CHECK_S):
        cluster.refresh()
        failures = cluster.failures()
        for name in sorted(down_now - failures.keys()):
            note(f"{name} runs again")
        for name in sorted(failures.keys() - down_now):
            note(failures[name])
            note(f"start it again with: dledger up --detach --data {cluster.directory}")
        down_now = set(failures)


def _stop(cluster: LocalCluster, grace: float) -> bool:
    """Stops everything; returns whether something ran."""
    cluster.refresh()
    results = cluster.stop(grace)
    for result in results:
        if result.killed:
            note(f"{result.name} (pid {result.pid}) did not stop within {grace:g} s: killed")
        else:
            note(f"{result.name} stopped")
    return bool(results)


def _ask(data: Path, nameserver: str | None) -> ClusterStatus:
    """Asks the cluster of the data directory, or the one that a nameserver knows."""
    if nameserver is None and load_layout(data.resolve()) is not None:
        return LocalCluster(data).status()
    addresses = nameserver_list(nameserver, data)
    current = ask_cluster(addresses, discover(addresses))
    if not any(server.alive for server in current.nameservers):
        text = f"no nameserver answers at {';'.join(addresses)}"
        raise CommandError(text, ExitCode.FAILED)
    return current


def _say_status(status: ClusterStatus) -> None:
    say_table(
        ["nameserver", "state"],
        [[server.address, "alive" if server.alive else "down"] for server in status.nameservers],
    )
    for group in status.groups:
        say_table(
            [
                "replica",
                "role",
                "member",
                "address",
                "raft",
                "pid",
                "commit",
                "applied",
                "durable",
                "log MB",
            ],
            [
                [
                    replica.id,
                    replica.role or ("silent" if replica.alive else "down"),
                    replica.member or "-",
                    replica.address,
                    replica.raft_address,
                    str(replica.pid or "-"),
                    replica.commit_index,
                    replica.applied_index,
                    replica.durable_index,
                    None if replica.log_bytes is None else replica.log_bytes / 1e6,
                ]
                for replica in group.replicas
            ],
            title=f"{group.name}  term {group.term or '-'}  leader {group.leader or 'none'}",
        )
