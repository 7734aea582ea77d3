"""Rules M1-M3: committed offsets as a max-register (the server keeps the largest), exactly.

The technique of the log checker, on values instead of offsets: let P(v) be the instant at which
the register reached v. P does not decrease in v. A commit of v that was acknowledged and a fetch
of v bound P(v) from above by their end; a fetch of v bounds the P of every larger value from below
by its beginning; and v can be fetched only after the first commit of exactly v began.
"""

from __future__ import annotations

from typing import NamedTuple

from jepsen_tests.checkers.log_store import ALWAYS, NEVER
from jepsen_tests.checkers.verdict import Violation
from jepsen_tests.history import Commit, Fetch

_NONE_YET = 0  # nothing committed and offset 0 are one state


class Bound(NamedTuple):
    """A time and the record that set it."""

    time: int
    number: int


class MaxRegister:
    """The commits and fetches of one group on one queue."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self._first_commit: dict[int, Bound] = {}  # earliest beginning, failed ones left out
        self._upper: dict[int, Bound] = {}
        self._fetched: dict[int, Bound] = {}  # latest beginning of a fetch of the value

    def add_commit(self, number: int, op: Commit) -> None:
        """Adds a commit."""
        if op.status == "fail":
            return
        self._first_commit[op.offset] = min(
            self._first_commit.get(op.offset, Bound(NEVER, -1)), Bound(op.inv, number)
        )
        if op.status == "ok":
            self._end(op.offset, op.ret, number)

    def add_fetch(self, number: int, op: Fetch) -> None:
        """Adds a fetch."""
        if op.status != "ok":
            return
        value = _NONE_YET if op.offset is None else op.offset
        self._end(value, op.ret, number)
        self._fetched[value] = max(
            self._fetched.get(value, Bound(ALWAYS, -1)), Bound(op.inv, number)
        )

    def _end(self, value: int, time: int, number: int) -> None:
        self._upper[value] = min(self._upper.get(value, Bound(NEVER, -1)), Bound(time, number))

    def judge(self) -> list[Violation]:
        """Returns the violations; at most one of each rule."""
        found: list[Violation] = []
        for value, fetch in sorted(self._fetched.items()):
            if value > _NONE_YET and value not in self._first_commit:
                text = f"offset {value} was fetched, but nobody committed it"
                found.append(Violation("M1", "phantom offset", self.subject, text, (fetch.number,)))
                break
        values = sorted(self._upper.keys() | self._first_commit.keys() | self._fetched.keys())
        lowest: dict[int, Bound] = {}
        least = Bound(NEVER, -1)
        for value in reversed(values):
            least = min(least, self._upper.get(value, least))
            lowest[value] = least
        highest, from_fetch = Bound(ALWAYS, -1), False
        for value in values:
            if value in self._fetched and value > _NONE_YET:
                own = self._first_commit.get(value, highest)
                if own > highest:
                    highest, from_fetch = own, False
            if value > _NONE_YET and highest.time > lowest[value].time:
                rule, kind = ("M2", "offset went back") if from_fetch else ("M3", "from the future")
                text = f"at offset {value}: the second began after the first had ended"
                witnesses = (lowest[value].number, highest.number)
                found.append(Violation(rule, kind, self.subject, text, witnesses))
                break
            fetch_bound = self._fetched.get(value)
            if fetch_bound is not None and fetch_bound > highest:
                highest, from_fetch = fetch_bound, True
        return found
