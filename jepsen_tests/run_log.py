"""The harness's own part of a history, and putting all parts together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path

from jepsen_tests.history import Fault, HistoryWriter, Meta, Note, Phase, Record, encode_record
from jepsen_tests.nemeses.base import Injection

_COPY_BYTES = 1024 * 1024


class RunLog:
    """Phases, faults and notes as they happen. Any thread may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = HistoryWriter(path)
        self._lock = threading.Lock()
        self._ids = 0
        self.faults: dict[int, Fault] = {}
        self.phases: list[Phase] = []
        self.notes: list[Note] = []

    def phase(self, name: str) -> int:
        """Notes that a phase begins now; returns the time."""
        record = Phase(name=name, t=time.monotonic_ns())
        self.phases.append(record)
        self._write(record)
        return record.t

    def note(self, record: Note) -> None:
        """Writes a note."""
        self.notes.append(record)
        self._write(record)

    def begin_fault(self, name: str, injection: Injection, inv: int) -> int:
        """Writes that a fault began; returns its id."""
        self._ids += 1
        fault = Fault(
            id=self._ids,
            name=name,
            inv=inv,
            targets=list(injection.targets),
            details={"variant": injection.variant, "group": injection.group},
        )
        self.faults[fault.id] = fault
        self._write(fault)
        return fault.id

    def end_fault(self, fault_id: int, injection: Injection) -> Fault:
        """Writes that a fault ended, with its proof."""
        fault = self.faults[fault_id]
        fault.ret = time.monotonic_ns()
        fault.bit = injection.bit
        fault.proof = dict(injection.proof)
        self._write(fault)
        return fault

    def leaders_after_fault(self, fault_id: int, leaders: list[str]) -> None:
        """Adds to a fault's proof who came to lead because of it."""
        if leaders:
            fault = self.faults[fault_id]
            fault.proof["newLeaders"] = leaders
            self._write(fault)

    def close(self) -> None:
        """Ends the file."""
        with self._lock:
            self._writer.close()

    def _write(self, record: Record) -> None:
        with self._lock:
            self._writer.write(record)
            self._writer.flush()


def merge_histories(target: Path, meta: Meta, parts: Iterable[Path]) -> int:
    """Puts a history together; returns its size in bytes. A torn last line is left out."""
    with target.open("wb") as out:
        out.write(encode_record(meta) + b"\n")
        for part in parts:
            if not part.exists():
                continue
            with part.open("rb") as source:
                for line in source:
                    if line.endswith(b"\n"):
                        out.write(line)
        return out.tell()
