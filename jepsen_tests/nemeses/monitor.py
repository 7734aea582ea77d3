"""Watches who leads, all through a run: for the proof of faults and for the timeline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cli.status import ClusterStatus
from dledger.errors import DLedgerError
from jepsen_tests.history import Note
from jepsen_tests.hosts.cluster import ClusterUnderTest

_INTERVAL_S = 0.2


@dataclass(frozen=True)
class LeaderSeen:
    """From this instant on, this replica led its group in this term."""

    t: int
    group: str
    leader: str
    term: int


class Monitor:
    """A thread that asks all replicas a few times a second."""

    def __init__(self, cluster: ClusterUnderTest, write: Callable[[Note], None]) -> None:
        """Prepares; `write` is called on the thread with a note for each new leader."""
        self._cluster = cluster
        self._write = write
        self._seen: list[LeaderSeen] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; returns when the thread has."""
        self._stopping.set()
        self._thread.join(5.0)

    @property
    def leaders(self) -> list[LeaderSeen]:
        """Every change of leader so far, in order; the first ones included."""
        return list(self._seen)

    def current(self, group: str) -> LeaderSeen | None:
        """Returns the last leader seen."""
        return next((seen for seen in reversed(self._seen) if seen.group == group), None)

    def knows(self, status: ClusterStatus) -> bool:
        """Returns whether the leaders of a status have all been seen and noted."""
        for group in status.groups:
            seen = self.current(group.name)
            if group.leader is not None and (seen is None or seen.term < (group.term or 0)):
                return False
        return True

    def changes_within(self, begin_ns: int, end_ns: int) -> list[LeaderSeen]:
        """Returns the leaders that came to lead in an interval, the very first ones not."""
        firsts = {id(next(s for s in self._seen if s.group == g)) for g in self._groups()}
        return [s for s in self._seen if begin_ns <= s.t <= end_ns and id(s) not in firsts]

    def _groups(self) -> set[str]:
        return {seen.group for seen in self._seen}

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            try:
                status = self._cluster.status(0.25)
            except (DLedgerError, OSError, RuntimeError):
                continue
            for group in status.groups:
                if group.leader is None:
                    continue
                term = group.replica(group.leader).term or 0
                last = self.current(group.name)
                if last is not None and last.term >= term:
                    continue
                seen = LeaderSeen(time.monotonic_ns(), group.name, group.leader, term)
                self._seen.append(seen)
                details = {"group": group.name, "term": term}
                self._write(Note(name="leader", t=seen.t, node=group.leader, details=details))
