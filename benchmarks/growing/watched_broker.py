"""A broker that notes how long its event loop stands still: `python -P -m ... --config FILE`.

A timer is due every few milliseconds. What it is late by is noted: in all, without the time in
which the loop's thread was ready and others had the processors, and what of it was processor time.
The largest of each second become a line of JSON in `pauses.jsonl` in the data directory.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from broker.__main__ import main
from broker.server import Broker

INTERVAL_S = 0.002
FILE = "pauses.jsonl"


def queued_s() -> float:
    """Returns how long this thread has been ready without a processor; 0 if nobody counts it."""
    try:
        text = Path("/proc/thread-self/schedstat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(text.split()[1]) / 1e9


class Watch:
    """Looks at the loop it was made on, until that ends."""

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._file = path.open("a", buffering=1, encoding="ascii")
        self._forget()
        self._plan()

    def _forget(self) -> None:
        self._late_s = self._own_s = self._busy_s = 0.0
        self._second = int(time.monotonic())

    def _plan(self) -> None:
        self._due = time.monotonic() + INTERVAL_S
        self._used = time.thread_time()
        self._queued = queued_s()
        self._loop.call_later(INTERVAL_S, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        late = now - self._due
        self._late_s = max(self._late_s, late)
        self._own_s = max(self._own_s, late - (queued_s() - self._queued))
        self._busy_s = max(self._busy_s, time.thread_time() - self._used)
        if int(now) != self._second:
            line = {
                "second": self._second,
                "late_ms": round(self._late_s * 1000, 2),
                "own_ms": round(self._own_s * 1000, 2),
                "busy_ms": round(self._busy_s * 1000, 2),
            }
            self._file.write(json.dumps(line) + "\n")
            self._forget()
        self._plan()


class WatchedBroker(Broker):
    """The broker as it is, and a watch beside it."""

    async def start(self) -> None:
        """Starts both."""
        await super().start()
        self._watch = Watch(Path(self.config.data_directory) / FILE)


if __name__ == "__main__":
    sys.exit(main(make_broker=WatchedBroker))
