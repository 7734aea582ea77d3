"""F4 and F5: processes that die or stand still."""

from __future__ import annotations

import signal

from dledger.errors import DLedgerError
from jepsen_tests.nemeses.base import (
    ALL,
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


class PauseNemesis(Nemesis):
    """F5: SIGSTOP for longer than any time limit, then SIGCONT. Proof: the kernel's state T."""

    name = "F5"
    title = "SIGSTOP and SIGCONT"
    targets = (LEADER, LEADER, FOLLOWER, MAJORITY)

    def begin(self, bench: Bench) -> Injection:
        """Stops the target."""
        group, target = bench.group(), self.choose_target(bench)
        chosen = bench.pick(group, target)
        injection = Injection(f"pause {target}", chosen, group)
        for replica in chosen:
            bench.cluster.signal(replica, signal.SIGSTOP)
        return injection

    def end(self, bench: Bench, injection: Injection) -> None:
        """Lets the target go on."""
        states = {replica: bench.cluster.process_state(replica) for replica in injection.targets}
        failures: list[str] = []
        for replica in injection.targets:
            try:
                bench.cluster.signal(replica, signal.SIGCONT)
            except DLedgerError as error:
                failures.append(str(error))
        injection.proof["states"] = states
        if failures:
            injection.proof["failures"] = failures
        injection.bit = all(state == "T" for state in states.values())
