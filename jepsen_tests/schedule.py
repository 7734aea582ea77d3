"""Faults one after the other for as long as a run lasts, each written down with its proof."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from dledger.errors import DLedgerError
from jepsen_tests.history import Note
from jepsen_tests.nemeses.base import Bench, Injection, Nemesis
from jepsen_tests.run_log import RunLog

WARM_UP_S = 3.0
CALM_S = (1.5, 3.0)
QUIET_S = 3.0
OVERTIME_S = 10.0
_RECOVER_S = 20.0


class Schedule:
    """Injects faults in the calling thread."""

    def __init__(
        self,
        bench: Bench,
        log: RunLog,
        nemeses: Sequence[Nemesis],
        chance: random.Random,
        say: Callable[[str], None],
        check: Callable[[], None],
    ) -> None:
        """Prepares.

        Args:
            say: Shows a line of progress.
            check: Called often; raises to end the run.
        """
        self._bench = bench
        self._log = log
        self._nemeses = list(nemeses)
        self._chance = chance
        self._say = say
        self._check = check
        self._turn = 0

    def run(self, until: float) -> None:
        """Injects until a time of the monotonic clock, and leaves nothing broken.

        A run without a fault that was asked for shows nothing, so each gets its turn once: held
        as short as it may be when time is short, and up to `OVERTIME_S` late.
        """
        self._sleep(min(WARM_UP_S, max(0.0, until - time.monotonic())))
        while self._nemeses:
            nemesis = self._next()
            hold_s = self._chance.uniform(*nemesis.hold_s)
            left_s = until - QUIET_S - time.monotonic()
            if hold_s > left_s:
                if self._turn > len(self._nemeses) or left_s < -OVERTIME_S:
                    break
                hold_s = max(nemesis.hold_s[0], left_s)
            inv = time.monotonic_ns()
            fault_id = self._inject(nemesis, hold_s, inv)
            self._recover()
            if fault_id is not None:
                self._log.leaders_after_fault(fault_id, self._new_leaders(inv))
            self._sleep(self._chance.uniform(*CALM_S))
        self._sleep(max(0.0, until - time.monotonic()))

    def _next(self) -> Nemesis:
        # All in turn, so that a short run has seen each; by chance after the first round.
        self._turn += 1
        if self._turn <= len(self._nemeses):
            return self._nemeses[self._turn - 1]
        return self._chance.choice(self._nemeses)

    def _inject(self, nemesis: Nemesis, hold_s: float, inv: int) -> int | None:
        try:
            injection = nemesis.begin(self._bench)
        except (DLedgerError, OSError) as error:
            self._trouble(nemesis, "could not begin", error)
            return None
        fault_id = self._log.begin_fault(nemesis.name, injection, inv)
        self._say(f"{nemesis.name} {injection.variant}: {', '.join(injection.targets)}")
        try:
            self._sleep(hold_s)
        finally:
            self._end(nemesis, injection, fault_id)
        return fault_id

    def _end(self, nemesis: Nemesis, injection: Injection, fault_id: int) -> None:
        try:
            nemesis.end(self._bench, injection)
        except (DLedgerError, OSError) as error:
            injection.proof["failed"] = str(error)
            self._trouble(nemesis, "could not end", error)
        fault = self._log.end_fault(fault_id, injection)
        verdict = {True: "bit", False: "DID NOT BITE", None: "bite unproven"}[fault.bit]
        self._say(f"{nemesis.name} ended: {verdict} {fault.proof}")

    def _new_leaders(self, inv: int) -> list[str]:
        """Who came to lead from the beginning of a fault until the cluster had recovered."""
        seen = self._bench.monitor.changes_within(inv, time.monotonic_ns())
        return [f"{leader.leader} (term {leader.term})" for leader in seen]

    def _recover(self) -> None:
        """Waits until the cluster serves again; if it does not, the load goes on all the same."""
        begin = time.monotonic()
        while time.monotonic() - begin < _RECOVER_S:
            status = self._bench.cluster.status(0.3)
            if status.is_serving and self._bench.monitor.knows(status):
                return
            self._sleep(0.1)
        details = {"afterSeconds": _RECOVER_S}
        self._log.note(Note(name="not serving", t=time.monotonic_ns(), details=details))
        self._say(f"NOT SERVING {_RECOVER_S:g} s after a fault")

    def _trouble(self, nemesis: Nemesis, what: str, error: Exception) -> None:
        details = {"nemesis": nemesis.name, "error": str(error)}
        self._log.note(Note(name=f"nemesis {what}", t=time.monotonic_ns(), details=details))
        self._say(f"{nemesis.name} {what}: {error}")
        self._sleep(0.5)

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._check()
            time.sleep(min(0.2, left))
