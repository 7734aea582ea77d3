"""Verdicts: valid, violated, or unknown, each with what a person needs to believe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from jepsen_tests.history import Fault, Record

_NS_PER_S = 1_000_000_000
_LINE_CHARS_MAX = 400


class Outcome(StrEnum):
    """Three values: absence of evidence is not evidence of absence."""

    VALID = "valid"
    VIOLATED = "violated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule, with the two operations that cannot both be.

    `witnesses` are positions of records in the history, counted from 0.
    """

    rule: str  # "C4", "D2", "M1", "W"
    kind: str  # "stale read"
    subject: str  # the queue, group or object
    text: str
    witnesses: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a run cannot count as proof: `no-bite`, `few-acks`, `no-final-read`, ..."""

    code: str
    text: str


@dataclass(slots=True)
class Verdict:
    """The judgement of one history."""

    outcome: Outcome
    violations: list[Violation]
    reasons: list[Reason]
    counts: dict[str, int | float]
    faults: list[Fault] = field(default_factory=list)
    witnesses: dict[int, Record] = field(default_factory=dict)
    begin_ns: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict for programs (JSON)."""
        return {
            "verdict": self.outcome.value,
            "violations": [
                {
                    "rule": found.rule,
                    "kind": found.kind,
                    "subject": found.subject,
                    "text": found.text,
                    "witnesses": [
                        msgspec.to_builtins(self.witnesses[number])
                        for number in found.witnesses
                        if number in self.witnesses
                    ],
                    "faults": [msgspec.to_builtins(fault) for fault in self.faults_around(found)],
                }
                for found in self.violations
            ],
            "reasons": [{"code": reason.code, "text": reason.text} for reason in self.reasons],
            "counts": self.counts,
            "checkSeconds": round(self.seconds, 3),
        }

    def faults_around(self, violation: Violation) -> list[Fault]:
        """Returns the faults active during the witnesses, and the last one that ended before."""
        spans = [span_of(self.witnesses[n]) for n in violation.witnesses if n in self.witnesses]
        if not spans:
            return []
        begin, end = min(low for low, _ in spans), max(high for _, high in spans)
        during = [f for f in self.faults if f.inv <= end and (f.ret is None or f.ret >= begin)]
        before = [f for f in self.faults if f.ret is not None and f.ret < begin]
        if before:
            during.insert(0, max(before, key=lambda fault: fault.ret or 0))
        return during

    def lines(self) -> list[str]:
        """Returns the verdict for people."""
        shown = [f"{self.outcome.value.upper()}: {self._summary()}"]
        for found in self.violations:
            shown.append("")
            shown.append(f"{found.rule} {found.kind} in {found.subject}: {found.text}")
            shown.extend(
                f"  #{number} {self._describe(self.witnesses[number])}"
                for number in found.witnesses
                if number in self.witnesses
            )
            shown.extend(
                f"  fault {self._describe_fault(fault)}" for fault in self.faults_around(found)
            )
        shown += [f"unknown because {reason.code}: {reason.text}" for reason in self.reasons]
        return shown

    def _summary(self) -> str:
        counts = self.counts
        return (
            f"{counts.get('operations', 0):,} operations, {counts.get('appends_ok', 0):,} appends "
            f"acknowledged, {counts.get('appends_info', 0):,} indeterminate, "
            f"{counts.get('reads_ok', 0):,} reads, {counts.get('deliveries', 0):,} deliveries, "
            f"{len(self.faults)} faults; judged in {self.seconds:.2f} s"
        )

    def _describe(self, record: Record) -> str:
        begin, end = span_of(record)
        facts = {
            name: value
            for name, value in msgspec.to_builtins(record).items()
            if name not in ("inv", "ret", "t", "type")
        }
        text = " ".join(f"{name}={_short(value)}" for name, value in facts.items())
        kind = record.__struct_config__.tag
        return f"[{self._at(begin)} .. {self._at(end)}] {kind} {text}"[:_LINE_CHARS_MAX]

    def _describe_fault(self, fault: Fault) -> str:
        end = "..." if fault.ret is None else self._at(fault.ret)
        bit = {True: "bit", False: "did not bite", None: "bite unproven"}[fault.bit]
        targets = ",".join(fault.targets) or "-"
        return f"[{self._at(fault.inv)} .. {end}] {fault.name} on {targets} ({bit})"

    def _at(self, ns: int) -> str:
        return f"{(ns - self.begin_ns) / _NS_PER_S:.6f}s"


def span_of(record: Record) -> tuple[int, int]:
    """Returns when a record began and ended, in its clock's nanoseconds."""
    begin: int | None = getattr(record, "inv", None)
    if begin is None:
        begin = int(getattr(record, "t", 0))
    end: int | None = getattr(record, "ret", None)
    return begin, begin if end is None else end


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 8:
        return f"[{', '.join(map(str, value[:3]))}, ... {value[-1]}] ({len(value)})"
    return str(value)
