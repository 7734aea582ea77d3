"""Judges a run's history with the log checker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from jepsen_tests.checkers import judge_records
from jepsen_tests.history import AnyRecord, Meta, Record
from jepsen_tests.sim.oracle import Violation

# A member that is cut off goes on with what it has; so long, with the longest cut.
TWO_OWNERS_MS = 60_000


def judge(
    history: Sequence[Record], *, nodes: list[str], start_s: float, finished: bool
) -> list[Violation]:
    """Returns the rules that the history breaks.

    Args:
        history: Everything that clients did and saw.
        nodes: Who owes a final read.
        start_s: When the run began, on the virtual clock.
        finished: The run came to its final reads; without them nothing is expected of them.
    """
    meta = Meta(
        workload="W1",
        nodes=nodes if finished else [],
        final_read_required=finished,
        two_owners_ms=TWO_OWNERS_MS,
    )
    records = cast("list[AnyRecord]", [meta, *history])
    verdict: Any = judge_records(records)
    found = []
    for violation in verdict.violations:
        witnesses = [verdict.witnesses.get(number) for number in violation.witnesses]
        times = [record.inv for record in witnesses if hasattr(record, "inv")]
        at_s = max(times) / 1e9 - start_s if times else 0.0
        text = f"{violation.kind} in {violation.subject}: {violation.text}"
        found.append(Violation(violation.rule, round(at_s, 4), text))
    return found
