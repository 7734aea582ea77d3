"""Rule C5 with batches: can indeterminate appends of several values fill the unknown offsets?

Without batches the j-th gap takes the j-th oldest unseen append (Hall's condition for nested
candidate sets). A batch needs a whole run of gaps at one instant, so its place is searched: among
batches of one size the oldest goes first, which keeps the search small.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence

from jepsen_tests.checkers.log_store import ALWAYS, NEVER, QueueLog

_STATES_MAX = 20_000


class BatchGaps:
    """A search for a tiling of the gaps of one queue."""

    def __init__(
        self,
        queue: QueueLog,
        gaps: Sequence[int],
        unseen: Sequence[tuple[int, int]],
        highest: array[int],
        lowest: array[int],
    ) -> None:
        self._gaps = set(gaps)
        self._order = list(gaps)
        self._size = len(lowest)
        self._highest, self._lowest = highest, lowest
        self._invs: dict[int, list[int]] = defaultdict(list)
        for inv, size in sorted(unseen):
            self._invs[size].append(inv)
        self._sizes = sorted(self._invs)
        self._reads = [read[:3] for read in queue.reads() if read[1] != NEVER]
        self._failed: set[tuple[int, tuple[int, ...]]] = set()

    def possible(self) -> bool:
        """Returns whether the gaps can be filled; True as well if the search grew too large."""
        stack = [(0, tuple(0 for _ in self._sizes))]
        while stack:
            position, used = stack.pop()
            if position >= len(self._order):
                return True
            if (position, used) in self._failed:
                continue
            self._failed.add((position, used))
            if len(self._failed) > _STATES_MAX:
                return True
            begin = self._order[position]
            for kind, size in enumerate(self._sizes):
                if used[kind] < len(self._invs[size]) and self._fits(
                    begin, begin + size, self._invs[size][used[kind]]
                ):
                    more = tuple(count + (at == kind) for at, count in enumerate(used))
                    stack.append((position + min(size, self._size - begin), more))
        return False

    def _fits(self, begin: int, end: int, inv: int) -> bool:
        inside = min(end, self._size)
        if any(offset not in self._gaps for offset in range(begin, inside)):
            return False
        latest = max(inv, self._highest[inside - 1])
        for lo, hi, read_inv in self._reads:
            if begin < lo <= hi < end:
                return False  # the read would have seen a part of the batch
            if self._size <= hi < end and read_inv != ALWAYS:
                latest = max(latest, read_inv)
        return latest <= self._lowest[begin]
