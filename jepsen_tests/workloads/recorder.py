"""Counts and writes what the processes of one worker do."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from dledger.errors import DLedgerError
from jepsen_tests.history import HistoryWriter, Record, Status, make_value

PROCESSES_PER_WORKER = 1_000_000
_ERROR_CHARACTERS = 120

now_ns = time.monotonic_ns


class Process:
    """One sequential process. It gets a new number after an operation of unknown outcome."""

    __slots__ = ("_recorder", "_sequence", "number")

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._sequence = 0
        self.number = recorder.new_number()

    def new_value(self) -> int:
        """Returns a value that no other append of the run writes."""
        self._sequence += 1
        return make_value(self.number, self._sequence)

    def crashed(self) -> None:
        """Notes that an operation ended as `info`."""
        self.number = self._recorder.new_number()
        self._sequence = 0


class Recorder:
    """One history file with its counters. For one event loop."""

    def __init__(self, path: Path, index: int, replicas: Mapping[str, str]) -> None:
        self._writer = HistoryWriter(path)
        self._next_number = index * PROCESSES_PER_WORKER
        self._names = {address.rpartition(":")[0]: name for name, address in replicas.items()}
        self.counts: Counter[str] = Counter()

    def new_number(self) -> int:
        """Returns a process number that nobody had."""
        self._next_number += 1
        return self._next_number

    def note(self, kind: str, status: Status, record: Record) -> None:
        """Writes an operation."""
        self.counts[f"{kind}-{status}"] += 1
        self._writer.write(record)

    def event(self, record: Record) -> None:
        """Writes something that is not an operation."""
        self._writer.write(record)

    def node_of(self, offset_message_id: str) -> str:
        """Returns which replica stored a message, as its offset id tells."""
        raw = offset_message_id[:8]
        try:
            ip = ".".join(str(part) for part in bytes.fromhex(raw))
        except ValueError:
            return ""
        return self._names.get(ip, ip)

    def flush(self) -> None:
        """Hands all lines to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def status_of(error: BaseException) -> Status:
    """Returns what is known of an operation that ended with an error."""
    return "fail" if isinstance(error, DLedgerError) and error.definite else "info"


def short(error: BaseException) -> str:
    """Returns an error's text, cut to what a person reads."""
    return f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS]
