"""The only place that reads the machine's clocks."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for what people and other machines read, monotonic time for durations."""

    def wall_ms(self) -> int:
        """Returns milliseconds since the epoch; may jump in both directions."""
        ...

    def monotonic(self) -> float:
        """Returns seconds from an arbitrary point; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        """Returns milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Returns seconds of the monotonic clock."""
        return time.monotonic()


class ManualClock:
    """A clock for tests that moves only when told to."""

    def __init__(self, wall_ms: int = 1_700_000_000_000, monotonic: float = 1000.0) -> None:
        self._wall_ms = float(wall_ms)
        self._monotonic = monotonic

    def wall_ms(self) -> int:
        """Returns the set wall time."""
        return int(self._wall_ms)

    def monotonic(self) -> float:
        """Returns the set monotonic time."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Moves both clocks forward."""
        self._monotonic += seconds
        self._wall_ms += seconds * 1000
