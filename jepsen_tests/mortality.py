"""Client processes that are killed in the middle of their work, and come back as others."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Collection

from jepsen_tests.nemeses.base import Injection
from jepsen_tests.run_log import RunLog
from jepsen_tests.worker_pool import WorkerPool, WorkerProcess
from jepsen_tests.workloads.plan import WorkerPlan

_LIFE_S = (4.0, 9.0)
_FIRST_INDEX, _INDEX_MAX = 20, 89


class Mortality:
    """Kills workers of some kinds now and then, and starts others in their place."""

    def __init__(
        self,
        pool: WorkerPool,
        log: RunLog,
        kinds: Collection[str],
        chance: random.Random,
        plan: Callable[[str, int, str], WorkerPlan],
    ) -> None:
        """Prepares.

        Args:
            pool: All workers.
            log: Where each death is written as a fault.
            kinds: The activities that may die.
            chance: When.
            plan: Makes a plan from kind, index and host.
        """
        self._pool = pool
        self._log = log
        self._kinds = kinds
        self._chance = chance
        self._plan = plan
        self._next_index = itertools.count(_FIRST_INDEX)
        self._due = time.monotonic() + chance.uniform(*_LIFE_S)

    def tick(self) -> WorkerProcess | None:
        """Kills one if it is time; returns who came in its place. Call it often."""
        if not self._kinds or time.monotonic() < self._due:
            return None
        self._due = time.monotonic() + self._chance.uniform(*_LIFE_S)
        mortals = [w for w in self._pool.workers if w.is_running and w.plan.kind in self._kinds]
        index = next(self._next_index)
        if not mortals or index > _INDEX_MAX:
            return None
        victim = self._chance.choice(mortals)
        injection = Injection(f"kill {victim.plan.kind}", [victim.plan.host])
        fault_id = self._log.begin_fault("client-kill", injection, time.monotonic_ns())
        victim.kill()
        injection.proof["gone"] = injection.bit = not victim.is_running
        injection.proof["pid"] = victim.pid
        self._log.end_fault(fault_id, injection)
        plan = self._plan(victim.plan.kind, index, victim.plan.host)
        return self._pool.replace(victim, plan)
