"""A Wing-Gong-Lowe search for a legal order of the operations on one small object.

The cost grows exponentially with concurrency: keep an object below about 200 operations and 10 at
once. A search that takes too long ends without an answer.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from jepsen_tests.checkers.log_store import NEVER


class Operation(NamedTuple):
    """One operation; `optional` ones (indeterminate) may have had no effect at all."""

    inv: int
    ret: int  # `NEVER` if indeterminate
    f: str
    args: tuple[Any, ...]
    result: Any
    optional: bool
    number: int = -1  # its record in the history


class Model(Protocol):
    """The sequential behaviour of an object."""

    initial: Hashable

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """Yields the states after `operation`, none if its result is impossible in `state`.

        The result of an optional operation is unknown: every possible one must be allowed.
        """
        ...


class SearchResult(NamedTuple):
    """`legal` is None when the limits ended the search. `stuck` are operations of no legal order.

    Of a violation, `stuck` is what could not be placed next in the longest order found.
    """

    legal: bool | None
    stuck: tuple[Operation, ...] = ()
    states: int = 0


def precedence(operations: Sequence[Operation]) -> list[int]:
    """Returns for each operation the bit set of those that ended before it began."""
    return [
        sum(
            1 << other
            for other, earlier in enumerate(operations)
            if earlier.ret < operation.inv and earlier.ret != NEVER
        )
        for operation in operations
    ]


def search(
    operations: Sequence[Operation],
    model: Model,
    *,
    before: Sequence[int] | None = None,
    seconds_max: float = 10.0,
    states_max: int = 2_000_000,
) -> SearchResult:
    """Searches an order that respects time and the model.

    Args:
        operations: Those that certainly failed must be left out.
        model: The object.
        before: Bit sets of what must come before each; default: `precedence`.
        seconds_max: Of real time.
        states_max: How many (done, state) pairs are remembered.
    """
    predecessors = list(before) if before is not None else precedence(operations)
    required = sum(1 << i for i, operation in enumerate(operations) if not operation.optional)
    deadline = time.monotonic() + seconds_max
    seen: set[tuple[int, Hashable]] = {(0, model.initial)}
    stack: list[tuple[int, Hashable]] = [(0, model.initial)]
    best, best_done = -1, 0
    steps = 0
    while stack:
        done, state = stack.pop()
        if done & required == required:
            return SearchResult(True, (), len(seen))
        size = (done & required).bit_count()
        if size > best:
            best, best_done = size, done
        for position, operation in enumerate(operations):
            bit = 1 << position
            if done & bit or predecessors[position] & ~done:
                continue
            for after in model.step(state, operation):
                pair = (done | bit, after)
                if pair not in seen:
                    seen.add(pair)
                    stack.append(pair)
        steps += 1
        if len(seen) > states_max or (steps & 255 == 0 and time.monotonic() > deadline):
            return SearchResult(None, (), len(seen))
    stuck = tuple(
        operation
        for position, operation in enumerate(operations)
        if not (best_done >> position & 1 or predecessors[position] & ~best_done)
        and not operation.optional
    )
    return SearchResult(False, stuck, len(seen))
