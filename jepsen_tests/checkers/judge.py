"""Judges a whole history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jepsen_tests.checkers.verdict import Outcome, Reason, Verdict
from jepsen_tests.history import AnyRecord, read_history


def judge_file(path: Path) -> Verdict:
    """Judges a history file.

    Raises:
        HistoryFormatError: The file is not a history.
        OSError: It cannot be read.
    """
    return judge(lambda: read_history(path))


def judge_records(records: Sequence[AnyRecord]) -> Verdict:
    """Judges a history in memory."""
    return judge(lambda: records)


def judge(source: Callable[[], Iterable[AnyRecord]]) -> Verdict:
    """Judges the records that `source` gives; it is called again to look up the witnesses."""
    return Verdict(Outcome.UNKNOWN, [], [Reason("no-checker", "the checkers are not there")], {})
