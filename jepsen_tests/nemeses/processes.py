"""F4 and F5: processes that die or stand still."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Protocol

from dledger.errors import DLedgerError
from jepsen_tests.hosts.cluster import process_state
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.nemeses.base import (
    ALL,
    CLIENT,
    FOLLOWER,
    LEADER,
    MAJORITY,
    Bench,
    Injection,
    Nemesis,
)


class KillNemesis(Nemesis):
    """F4: SIGKILL, and a restart some time later. Proof: the pid is gone, another one serves."""

    name = "F4"
    title = "kill -9 and restart"
    targets = (LEADER, LEADER, FOLLOWER, MAJORITY, ALL)
    hold_s = (0.5, 3.0)

    def begin(self, bench: Bench) -> Injection:
        """Kills the target."""
        group, target = bench.group(), self.choose_target(bench)
        chosen = bench.pick(group, target)
        injection = Injection(f"kill {target}", chosen, group)
        pids = {replica: bench.cluster.pid(replica) for replica in chosen}
        for replica in chosen:
            bench.cluster.signal(replica, signal.SIGKILL)
        for replica in chosen:
            bench.cluster.wait_gone(replica, 10.0)
        injection.details["pids"] = pids
        injection.proof["gone"] = all(bench.cluster.pid(replica) is None for replica in chosen)
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Starts the target again."""
        new = {replica: bench.cluster.start(replica) for replica in injection.targets}
        old = injection.details.pop("pids")
        injection.proof["pids"] = {replica: [old[replica], new[replica]] for replica in new}
        injection.bit = bool(injection.proof["gone"]) and all(
            new[replica] != old[replica] for replica in new
        )


class Signalled(Protocol):
    """What sends signals to replicas."""

    def signal(self, replica: str, number: signal.Signals) -> int:
        """Sends one; returns the process id. Raises a HarnessError if it does not run."""
        ...


def stop_all(cluster: Signalled, replicas: Sequence[str]) -> dict[str, int]:
    """Stops these replicas with SIGSTOP, or none of them; returns their process ids.

    Raises:
        DLedgerError: One does not run, because another fault has killed it. A replica that stayed
            stopped with nobody to wake it would be taken for one that hangs.
    """
    stopped: dict[str, int] = {}
    try:
        for replica in replicas:
            stopped[replica] = cluster.signal(replica, signal.SIGSTOP)
    except DLedgerError:
        for replica in stopped:
            cluster.signal(replica, signal.SIGCONT)
        raise
    return stopped


class PauseNemesis(Nemesis):
    """F5: SIGSTOP for longer than any time limit, then SIGCONT. Proof: the kernel's state T.

    Also of a client, be it a producer or the members of a consumer group in that process: they
    wake up with what they held, believing that no time has passed.
    """

    name = "F5"
    title = "SIGSTOP and SIGCONT"
    targets = (LEADER, LEADER, FOLLOWER, MAJORITY, CLIENT)

    def begin(self, bench: Bench) -> Injection:
        """Stops the target."""
        target = self.choose_target(bench)
        if target == CLIENT:
            return self._begin_client(bench)
        group = bench.group()
        chosen = bench.pick(group, target)
        pids = stop_all(bench.cluster, chosen)
        return Injection(f"pause {target}", chosen, group, {"pids": pids})

    @staticmethod
    def _begin_client(bench: Bench) -> Injection:
        pids = bench.worker_pids()
        if not pids:
            raise HarnessError("no client process runs")
        host = bench.chance.choice(sorted(pids))
        os.kill(pids[host], signal.SIGSTOP)
        return Injection(f"pause client {host}", [host], "", {"pids": {host: pids[host]}})

    def end(self, bench: Bench, injection: Injection) -> None:
        """Lets the target go on."""
        pids = injection.details.pop("pids")
        states = {name: process_state(pid) for name, pid in pids.items()}
        failures: list[str] = []
        for name, pid in pids.items():
            try:
                # Known to be the same process as before: it has not been waited for.
                os.kill(pid, signal.SIGCONT)
            except OSError as error:
                failures.append(f"{name}: {error.strerror}")
        injection.proof["states"] = states
        if failures:
            injection.proof["failures"] = failures
        injection.bit = all(state == "T" for state in states.values())
