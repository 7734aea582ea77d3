"""A cluster of real processes on this machine: what `dledger up` starts, tests and benchmarks use.

    with LocalCluster(directory, ClusterSpec(replicas=3, port_base=port)) as cluster:
        cluster.kill(cluster.wait_serving().groups[0].leader)

The files in the directory are the truth: any other `LocalCluster` on the same directory (another
terminal's `dledger down`, say) sees and controls the same processes.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from cli import probe
from cli.errors import CommandError, PortTakenError, StartError, UsageError
from cli.layout import (
    ClusterSpec,
    Layout,
    ReplicaPlace,
    load_layout,
    plan,
    save_layout,
    with_group,
    with_replica,
    without_replica,
)
from cli.status import ClusterStatus, GroupStatus, ReplicaQuestion, ask_cluster
from cli.supervisor import ProcessPlan, StopResult, Supervisor, log_tail
from dledger.clock import Clock, SystemClock

START_TIMEOUT_S = 30.0
STOP_GRACE_S = 10.0
_POLL_S = 0.03
_PROBE_TIMEOUT_S = 0.5


class LocalCluster:
    """The processes of one data directory. One thread at a time."""

    def __init__(
        self, directory: str | Path, spec: ClusterSpec | None = None, *, clock: Clock | None = None
    ) -> None:
        """Takes an existing directory's plan, or makes one.

        Args:
            directory: Holds everything the cluster stores.
            spec: What to set up if the directory holds no cluster; `None` refuses then.
            clock: For deadlines.

        Raises:
            UsageError: There is no cluster here and no `spec`.
            CommandError: The directory cannot be read.
        """
        self.directory = Path(directory).resolve()
        self._clock = clock or SystemClock()
        self._supervisor = Supervisor(self._clock)
        existing = load_layout(self.directory)
        if existing is None and spec is None:
            raise UsageError(f"{self.directory} holds no cluster; start one with `dledger up`")
        self.is_new = existing is None
        self.layout: Layout = existing or plan(spec or ClusterSpec())

    def __enter__(self) -> Self:
        """Starts everything and waits until every group serves."""
        try:
            self.start()
            self.wait_serving()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Stops everything."""
        self.stop()

    @property
    def nameserver(self) -> str:
        """The nameservers as clients take them."""
        return self.layout.nameserver_addresses

    # --- processes ------------------------------------------------------------------------------

    def start(self) -> list[str]:
        """Starts the processes that do not run; returns their names.

        Raises:
            PortTakenError: A port is in use by somebody else. Nothing was started.
            CommandError: The directory cannot be written, or another `up` is at it right now.
        """
        with self._locked():
            missing = [p for p in self.plans() if self._supervisor.running_pid(p) is None]
            self._check_ports(missing)
            # An existing plan is never rewritten: a broker.toml may have been edited by hand.
            if self.is_new:
                save_layout(self.directory, self.layout)
                self.is_new = False
            for process in missing:
                self._supervisor.start(process)
        return [process.name for process in missing]

    def add_group(self, replicas: int) -> str:
        """Adds a broker group to the plan and starts it, and whatever else does not run.

        Returns:
            The group's name. It may not serve yet: see `wait_serving`.

        Raises:
            UsageError: It makes no sense.
            PortTakenError: A port is in use by somebody else. Nothing was changed.
            CommandError: The directory cannot be written.
        """
        with self._locked():
            self.refresh()
            before = self.layout
            self.layout = with_group(before, replicas)
            try:
                self._check_ports(
                    [p for p in self.plans() if self._supervisor.running_pid(p) is None]
                )
                new = [replica.id for replica in self.layout.groups[-1].replicas]
                save_layout(self.directory, self.layout, new_replicas=new)
            except BaseException:
                self.layout = before
                raise
        self.start()
        return self.layout.groups[-1].name

    def plan_replica(self, group: str) -> ReplicaPlace:
        """Adds a replica to the plan, with its configuration; it is not started.

        It belongs to the group only when the group's leader has agreed: see `cli.members`.

        Raises:
            UsageError: There is no such group, or no port is left.
            CommandError: The directory cannot be written.
        """
        with self._locked():
            self.refresh()
            layout, place = with_replica(self.layout, group)
            save_layout(self.directory, layout, new_replicas=[place.id])
            self.layout = layout
        return place

    def drop_replica(self, name: str) -> None:
        """Takes a replica that does not run out of the plan. Its directory stays."""
        with self._locked():
            self.refresh()
            layout = without_replica(self.layout, self.group_of(name), name)
            save_layout(self.directory, layout, new_replicas=[])
            self.layout = layout

    def group_of(self, name: str) -> str:
        """Returns the group of a replica.

        Raises:
            UsageError: There is no such replica.
        """
        for group, replica in self.layout.replicas():
            if replica.id == name:
                return group.name
        names = ", ".join(replica.id for _, replica in self.layout.replicas())
        raise UsageError(f"{self.directory} has no replica {name}; it has {names}")

    def refresh(self) -> None:
        """Takes note of what another command has added or removed."""
        self.layout = load_layout(self.directory) or self.layout

    def start_one(self, name: str) -> int:
        """Starts one process that does not run; returns its pid."""
        process = self._plan(name)
        running = self._supervisor.running_pid(process)
        return running if running is not None else self._supervisor.start(process)

    def stop(self, grace_s: float = STOP_GRACE_S) -> list[StopResult]:
        """Stops all: the brokers first, so that they can say goodbye to their nameservers."""
        plans = self.plans()
        results: list[StopResult] = []
        nameservers = {place.id for place in self.layout.nameservers}
        for are_nameservers in (False, True):
            chosen = [
                process for process in plans if (process.name in nameservers) is are_nameservers
            ]
            results.extend(self._supervisor.stop_all(chosen, grace_s))
        return results

    def stop_one(self, name: str, grace_s: float = STOP_GRACE_S) -> list[StopResult]:
        """Stops one process."""
        return self._supervisor.stop_all([self._plan(name)], grace_s)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends a signal to a process (SIGKILL, SIGSTOP, SIGCONT); returns its pid.

        Returns when the signal is sent and, for SIGKILL, the process has ended.

        Raises:
            CommandError: The process does not run.
        """
        process = self._plan(name)
        pid = self._supervisor.signal(process, number)
        if pid is None:
            raise CommandError(f"{name} does not run")
        if number == signal.SIGKILL:
            self._supervisor.wait_gone(process, pid, 10.0)
        return pid

    def pid(self, name: str) -> int | None:
        """Returns the pid of a running process of ours."""
        return self._supervisor.running_pid(self._plan(name))

    def log_path(self, name: str) -> Path:
        """Returns where a process's log lies."""
        return self._plan(name).log_path

    def failures(self) -> dict[str, str]:
        """Returns the processes that do not run, with how they ended and their last log lines."""
        return {
            process.name: self._describe_end(process)
            for process in self.plans()
            if self._supervisor.running_pid(process) is None
        }

    def wait_settled(self, timeout_s: float) -> ClusterStatus:
        """Waits until every replica answers or has ended, or the time is over."""
        deadline = self._clock.monotonic() + timeout_s
        while True:
            status = self.status(_PROBE_TIMEOUT_S)
            replicas = [replica for group in status.groups for replica in group.replicas]
            settled = all(replica.answers or replica.pid is None for replica in replicas)
            if settled or self._clock.monotonic() >= deadline:
                return status
            time.sleep(_POLL_S)

    def plans(self) -> list[ProcessPlan]:
        """Returns how each process is started, nameservers first."""
        plans = [
            ProcessPlan(
                name=place.id,
                module="nameserver",
                arguments=(
                    *("--listen", place.address),
                    *("--data", str(self.directory / place.id)),
                ),
                marker=str(self.directory / place.id),
                directory=self.directory / place.id,
            )
            for place in self.layout.nameservers
        ]
        for _, replica in self.layout.replicas():
            config = str(self.directory / replica.id / "broker.toml")
            plans.append(
                ProcessPlan(
                    name=replica.id,
                    module="broker",
                    arguments=("--config", config),
                    marker=config,
                    directory=self.directory / replica.id,
                )
            )
        return plans

    # --- state ----------------------------------------------------------------------------------

    def status(self, timeout_s: float = 1.0) -> ClusterStatus:
        """Asks all processes."""
        plans = {process.name: process for process in self.plans()}
        questions = [
            ReplicaQuestion(
                group=group.name,
                id=replica.id,
                address=replica.address,
                raft_address=replica.raft_address,
                pid=self._supervisor.running_pid(plans[replica.id]),
            )
            for group, replica in self.layout.replicas()
        ]
        addresses = [place.address for place in self.layout.nameservers]
        return ask_cluster(addresses, questions, timeout_s=timeout_s)

    def leader(self, group: str | None = None) -> str | None:
        """Returns the serving leader's replica id of a group (the first by default)."""
        return self._group(self.status(), group).leader

    def wait_serving(
        self,
        timeout_s: float = START_TIMEOUT_S,
        progress: Callable[[ClusterStatus], None] | None = None,
    ) -> ClusterStatus:
        """Waits until every group has a serving leader that every nameserver knows.

        A replica that ends is put up with as long as its group keeps a majority; see `failures`.

        Raises:
            StartError: Too many processes ended, or the time is over. A log is quoted.
        """
        deadline = self._clock.monotonic() + timeout_s
        while True:
            status = self.status(_PROBE_TIMEOUT_S)
            if progress is not None:
                progress(status)
            if status.is_serving and self._is_routed(status):
                return status
            self._check_children()
            if self._clock.monotonic() >= deadline:
                raise StartError(f"not ready after {timeout_s:g} s: {self._what_lacks(status)}")
            time.sleep(_POLL_S)

    def wait(
        self, condition: Callable[[ClusterStatus], bool], timeout_s: float = 30.0
    ) -> ClusterStatus:
        """Waits until the status meets a condition.

        Raises:
            CommandError: It did not in time.
        """
        deadline = self._clock.monotonic() + timeout_s
        while True:
            status = self.status(_PROBE_TIMEOUT_S)
            if condition(status):
                return status
            if self._clock.monotonic() >= deadline:
                raise CommandError(f"condition not met after {timeout_s:g} s: {status}")
            time.sleep(_POLL_S)

    # --- private --------------------------------------------------------------------------------

    def _plan(self, name: str) -> ProcessPlan:
        for process in self.plans():
            if process.name == name:
                return process
        raise UsageError(f"{self.directory} has no process {name}")

    @staticmethod
    def _group(status: ClusterStatus, name: str | None) -> GroupStatus:
        return next(group for group in status.groups if name in (None, group.name))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CommandError(f"cannot write {self.directory}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                text = f"another `dledger up` is starting the cluster in {self.directory}"
                raise CommandError(text) from error
            yield
        finally:
            os.close(handle)

    def _check_ports(self, missing: list[ProcessPlan]) -> None:
        names = {process.name for process in missing}
        for place in self.layout.nameservers:
            if place.id in names:
                check_port_free(place.address, f"for {place.id}")
        for _, replica in self.layout.replicas():
            if replica.id in names:
                check_port_free(replica.address, f"for clients of {replica.id}")
                check_port_free(replica.raft_address, f"for the peers of {replica.id}")

    def _is_routed(self, status: ClusterStatus) -> bool:
        """Whether every nameserver sends clients to the leaders: until then a send would fail."""
        leaders = {
            group.name: group.replica(group.leader).address
            for group in status.groups
            if group.leader is not None
        }
        for place in self.layout.nameservers:
            known = probe.cluster_addresses(place.address, timeout_s=_PROBE_TIMEOUT_S) or {}
            for name, address in leaders.items():
                if known.get(name, {}).get(0) != address:
                    return False
        return True

    def _check_children(self) -> None:
        """Gives up at once when too many processes have ended for the cluster to serve."""
        failures = self.failures()
        for place in self.layout.nameservers:
            if place.id in failures:
                raise StartError(failures[place.id])
        for group in self.layout.groups:
            gone = [replica.id for replica in group.replicas if replica.id in failures]
            if 2 * len(gone) >= len(group.replicas):
                raise StartError(failures[gone[0]])

    def _describe_end(self, process: ProcessPlan) -> str:
        pid = self._supervisor.last_pid(process)
        code = self._supervisor.exit_code(pid) if pid is not None else None
        how = "does not run"
        if code is not None:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited ({code})"
        tail = log_tail(process)
        return (
            f"{process.name} {how}; {process.log_path}:\n{tail}"
            if tail
            else (f"{process.name} {how}; its log is {process.log_path}")
        )

    def _what_lacks(self, status: ClusterStatus) -> str:
        silent = [n.address for n in status.nameservers if not n.alive]
        if silent:
            return f"nameserver {silent[0]} does not answer"
        for group in status.groups:
            if group.leader is None:
                states = ", ".join(f"{r.id} {r.role or 'silent'}" for r in group.replicas)
                return f"{group.name} has no serving leader ({states})"
        return "a nameserver does not know the leaders yet"


def check_port_free(address: str, what: str) -> None:
    """Refuses if a port is taken.

    Raises:
        PortTakenError: It is.
    """
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe_socket:
        # As the servers do: a port whose connections are still in TIME_WAIT is free.
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((host, int(port)))
        except OSError as error:
            raise PortTakenError(address, what) from error


def free_port_base(count: int, start: int = 20_000, stop: int = 32_000) -> int:
    """Returns the first of `count` consecutive ports that are free right now.

    For tests and the demo. Chance (the pid) spreads concurrent callers; a port may still be taken
    between this look and its use, which the start then reports.
    """
    span = stop - start - count
    first = os.getpid() * 37 % span
    for attempt in range(0, span, count):
        base = start + (first + attempt) % span
        try:
            for port in range(base, base + count):
                check_port_free(f"127.0.0.1:{port}", "")
        except PortTakenError:
            continue
        return base
    raise CommandError(f"no {count} free ports in a row between {start} and {stop}")
