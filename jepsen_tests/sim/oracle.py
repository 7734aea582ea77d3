"""What must hold at every moment, whatever the faults: checked as it happens, not at the end."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dledger.raft.configuration import CONFIGURATION_TYPE, decode_entry
from jepsen_tests.sim.loop import VirtualLoop


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule: what, when (virtual seconds since the start), and its witnesses."""

    rule: str
    at_s: float
    text: str


class Oracle:
    """Sees every application, election and acknowledgement of a group."""

    def __init__(self, loop: VirtualLoop, start_s: float, replicas: Sequence[str]) -> None:
        self._loop = loop
        self._everybody = tuple(replicas)  # who the group begins with
        self._logs: dict[str, Any] = {}  # the newest that each replica has opened
        self._held: dict[str, dict[int, int]] = {}  # terms of the entries in each of them
        self._voters: dict[tuple[int, int], tuple[str, ...]] = {}  # by a configuration's place
        self._installed: dict[str, int] = {}  # up to where a state may be ahead of its log
        self._truncating: dict[str, int] = {}  # what a truncation under way leaves
        self._start_s = start_s
        self.violations: list[Violation] = []
        self._committed: dict[int, tuple[int, int, str]] = {}
        self._leaders: dict[int, str] = {}
        self._acknowledged: dict[int, int] = {}  # the newest entry, by the term it was stored in
        self._commit: dict[str, int] = {}
        self._terms: dict[str, int] = {}
        self.applied_count = 0
        self.elections = 0
        self.installations = 0

    def forget(self, replica: str) -> None:
        """A replica has begun anew, with nothing and as somebody else."""
        for known in (self._logs, self._held, self._installed, self._truncating, self._terms):
            known.pop(replica, None)

    def violated(self, rule: str, text: str) -> None:
        """Notes a violation; the first ones tell the story."""
        if len(self.violations) < 20:
            at_s = self._loop.time() - self._start_s
            self.violations.append(Violation(rule, round(at_s, 4), text))

    def applied(self, process: str, before: int, entries: Sequence[Any]) -> None:
        """Entries were applied: in order, and the same ones everywhere."""
        expected = max(before, 1) + 1
        committed = self._committed
        newest = None
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
                newest = entry
            elif known[0] != entry.term or known[1] != crc:
                self.violated(
                    "log-agreement",
                    f"entry {index} is of term {known[0]} on {known[2]} "
                    f"but of term {entry.term} on {process}",
                )
        if newest is not None:
            self._check_majority(newest.index, newest.term, f"{process} applied")

    def serving(self, process: str, replica: str, term: int, node: Any, log: Any) -> None:
        """A leader begins to serve: one in a term, and with everything acknowledged."""
        self.elections += 1
        other = self._leaders.setdefault(term, replica)
        if other != replica:
            self.violated("one-leader", f"{other} and {replica} lead in term {term}")
        # A leader that stood still may learn late that it was elected. It owes what was stored in
        # the terms before its own; what others stored in later ones it cannot have.
        index = max((at for of, at in self._acknowledged.items() if of < term), default=0)
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

    def opened(self, process: str, replica: str, log: Any, *, is_damaged: bool) -> None:
        """A replica has opened its log: it holds what was durable, and drops nothing committed.

        Args:
            process: Who opened it.
            replica: Whose log it is.
            log: The log.
            is_damaged: Bits were flipped in it; then it may refuse, and owes nothing here.
        """
        before, held = self._logs.get(replica), self._held.setdefault(replica, {})
        if before is not None and not is_damaged:
            last = min(before.durable_index, self._truncating.get(replica, before.durable_index))
            term = held.get(last)
            if last >= log.first_index and term is not None and log.term_at(last) != term:
                self.violated(
                    "durable-lost",
                    f"{process} has {log.last_index} entries; {last} of term {term} was durable",
                )
        for index in [index for index in held if index > log.last_index]:
            del held[index]
        self._logs[replica] = log
        self._truncating.pop(replica, None)
        self._watch(process, replica, log, held)

    def _watch(self, process: str, replica: str, log: Any, held: dict[int, int]) -> None:
        """Takes note of what a log holds, so that it can be told when its process is dead."""
        append, append_records = log.append, log.append_records
        truncate, reset = log.truncate_from, log.reset_to

        def noted_append(index: int, term: int, body: Any) -> None:
            append(index, term, body)
            self._note(index, term, body, held)

        def noted_append_records(entries: Sequence[Any]) -> None:
            append_records(entries)
            for entry in entries:
                self._note(entry.index, entry.term, entry.body, held)

        def truncate_from(index: int) -> None:
            for at in range(index, log.last_index + 1):
                known = self._committed.get(at)
                if known is not None and log.term_at(at) == known[0]:
                    self.violated("committed-dropped", f"{process} drops the committed entry {at}")
                    break
            self._truncating[replica] = index - 1
            truncate(index)
            self._truncating.pop(replica, None)
            for at in [at for at in held if at >= index]:
                del held[at]

        def reset_to(record: bytes) -> None:
            self._truncating[replica] = 0
            reset(record)
            self._truncating.pop(replica, None)
            held.clear()
            held[log.last_index] = log.last_term

        log.append, log.append_records = noted_append, noted_append_records
        log.truncate_from, log.reset_to = truncate_from, reset_to

    def _note(self, index: int, term: int, body: Any, held: dict[int, int]) -> None:
        """An entry was written; if it is a configuration, it says whose majorities count."""
        held[index] = term
        if body[0] == CONFIGURATION_TYPE:
            self._voters[index, term] = decode_entry(body, index, term).voters

    def _electorates(self, index: int, term: int) -> list[tuple[str, ...]]:
        """Returns the groups of voters of which one must have committed an entry.

        Those of the newest committed configuration, and of any uncommitted one in a log that
        holds this very entry: in its leader's log a configuration counts as soon as it is written.
        """
        committed = self._committed
        places = [at for at in self._voters if committed.get(at[0], (None,))[0] == at[1]]
        newest = max(places, default=None)
        found = [self._everybody if newest is None else self._voters[newest]]
        for held in self._held.values():
            if held.get(index) == term:
                found += [
                    voters
                    for (at, of), voters in self._voters.items()
                    if held.get(at) == of and (newest is None or at > newest[0])
                ]
        return found

    def _check_majority(self, index: int, term: int, what: str) -> None:
        """An entry that counts as committed is on the disks of a majority at that moment."""
        if not self._logs:
            return  # not logs of ours
        holders = [
            replica
            for replica, log in self._logs.items()
            if index < log.first_index
            or (log.durable_index >= index and self._held[replica].get(index) == term)
        ]
        if not any(
            2 * len(set(holders) & set(voters)) > len(voters)
            for voters in self._electorates(index, term)
        ):
            self.violated(
                "majority-durable",
                f"{what} entry {index} of term {term}, durable only on {holders}",
            )

    def installed(self, replica: str, applied_index: int) -> None:
        """A replica has replaced its state by a snapshot; its log follows."""
        self._installed[replica] = applied_index
        self.installations += 1

    def acknowledged(self, index: int, log: Any) -> None:
        """An entry's proposer was told that it is stored; `log` is its leader's."""
        known = self._committed.get(index)
        if known is not None:
            term = known[0]
        else:
            found = log.term_at(index)
            term = -1 if found is None else found
            self._check_majority(index, term, "acknowledged")
        # Its proposer led in the entry's own term, or it would not know what became of it.
        self._acknowledged[term] = max(self._acknowledged.get(term, 0), index)

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
        if node.applied_index > max(commit, 1, self._installed.get(replica, 0)):
            self.violated("applied-ahead", f"{process}: {node.applied_index} over {commit}")
        if log.durable_index > log.last_index:
            self.violated("durable-ahead", f"{process}: {log.durable_index} > {log.last_index}")
