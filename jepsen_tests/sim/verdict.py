"""Judges a run's history with the log checker."""

from __future__ import annotations

from collections.abc import Sequence

from jepsen_tests.history import Record
from jepsen_tests.sim.oracle import Violation


def judge(history: Sequence[Record], *, finished: bool) -> list[Violation]:
    """Returns what the checker found. Placeholder until the checkers land."""
    return []
