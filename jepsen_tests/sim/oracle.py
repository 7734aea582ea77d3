"""What must hold at every moment, whatever the faults: checked as it happens, not at the end."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jepsen_tests.sim.loop import VirtualLoop


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule: what, when (virtual seconds since the start), and its witnesses."""

    rule: str
    at_s: float
    text: str


class Oracle:
    """Sees every application, election and acknowledgement of a group."""

    def __init__(self, loop: VirtualLoop, start_s: float) -> None:
        self._loop = loop
        self._start_s = start_s
        self.violations: list[Violation] = []
        self._committed: dict[int, tuple[int, int, str]] = {}
        self._leaders: dict[int, str] = {}
        self._acknowledged = 0
        self._commit: dict[str, int] = {}
        self._terms: dict[str, int] = {}
        self.applied_count = 0
        self.elections = 0

    def violated(self, rule: str, text: str) -> None:
        """Notes a violation; the first ones tell the story."""
        if len(self.violations) < 20:
            at_s = self._loop.time() - self._start_s
            self.violations.append(Violation(rule, round(at_s, 4), text))

    def applied(self, process: str, before: int, entries: Sequence[Any]) -> None:
        """Entries were applied: in order, and the same ones everywhere."""
        expected = max(before, 1) + 1
        committed = self._committed
        for entry in entries:
            index = entry.index
            if index != expected:
                self.violated("apply-order", f"{process} applied {index} instead of {expected}")
            expected = index + 1
            crc = zlib.crc32(entry.body)
            known = committed.get(index)
            if known is None:
                committed[index] = (entry.term, crc, process)
                self.applied_count += 1
            elif known[0] != entry.term or known[1] != crc:
                self.violated(
                    "log-agreement",
                    f"entry {index} is of term {known[0]} on {known[2]} "
                    f"but of term {entry.term} on {process}",
                )

    def serving(self, process: str, replica: str, term: int, node: Any, log: Any) -> None:
        """A leader begins to serve: one in a term, and with everything acknowledged."""
        self.elections += 1
        other = self._leaders.setdefault(term, replica)
        if other != replica:
            self.violated("one-leader", f"{other} and {replica} lead in term {term}")
        index = self._acknowledged
        if index > log.last_index:
            self.violated(
                "leader-complete",
                f"{process} leads term {term} with a log up to {log.last_index}, "
                f"but {index} was acknowledged",
            )
            return
        known = self._committed.get(index)
        if known is not None and log.term_at(index) not in (None, known[0]):
            self.violated("leader-complete", f"{process} leads with another entry {index}")

    def watch(self, process: str, log: Any) -> None:
        """Looks at every truncation of a log: what is committed is never dropped."""
        truncate = log.truncate_from

        def truncate_from(index: int) -> None:
            for at in range(index, log.last_index + 1):
                known = self._committed.get(at)
                if known is not None and log.term_at(at) == known[0]:
                    self.violated("committed-dropped", f"{process} drops the committed entry {at}")
                    break
            truncate(index)

        log.truncate_from = truncate_from

    def acknowledged(self, index: int) -> None:
        """An entry's proposer was told that it is stored."""
        self._acknowledged = max(self._acknowledged, index)

    def observe(self, process: str, replica: str, node: Any, log: Any) -> None:
        """Looks at a running node."""
        commit = node.commit_index
        if commit < self._commit.get(process, 0):
            self.violated(
                "commit-falls", f"{process}: {self._commit[process]} then {commit} committed"
            )
        self._commit[process] = commit
        term = node.term
        if term < self._terms.get(replica, 0):
            self.violated("term-falls", f"{process}: term {self._terms[replica]} then {term}")
        self._terms[replica] = term
        if node.applied_index > max(commit, 1):
            self.violated("applied-ahead", f"{process}: {node.applied_index} over {commit}")
        if log.durable_index > log.last_index:
            self.violated("durable-ahead", f"{process}: {log.durable_index} > {log.last_index}")
