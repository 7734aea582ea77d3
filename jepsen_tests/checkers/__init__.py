"""Judges histories: `judge_file` and `judge_records` give a three-valued `Verdict`.

What each rule claims, and what is left unclaimed, is in `docs/testing.md`.
"""

from jepsen_tests.checkers.judge import judge, judge_file, judge_records
from jepsen_tests.checkers.verdict import Outcome, Reason, Verdict, Violation

__all__ = [
    "Outcome",
    "Reason",
    "Verdict",
    "Violation",
    "judge",
    "judge_file",
    "judge_records",
]
