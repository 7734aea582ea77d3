"""The run's story: a fingerprint always, a readable text when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from jepsen_tests.sim.loop import START_S, VirtualLoop


class Trace:
    """Notes what happens. Two runs of one seed have the same digest."""

    def __init__(self, loop: VirtualLoop, write: Callable[[str], None] | None = None) -> None:
        self._loop = loop
        self._digest = hashlib.blake2b(digest_size=8)
        self.write = write
        self.faults: list[tuple[float, str]] = []
        self.counts: dict[str, int] = {}
        self.hidden = ""  # a path that differs from run to run

    def note(self, who: str, what: str) -> None:
        """Adds a line."""
        if self.hidden:
            what = what.replace(self.hidden, "")
        line = f"{self._loop.time() - START_S:9.4f} {who:<14} {what}"
        self._digest.update(line.encode())
        if self.write is not None:
            self.write(line)

    def fault(self, kind: str, what: str) -> None:
        """Adds a fault."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.faults.append((round(self._loop.time() - START_S, 4), f"{kind}: {what}"))
        self.note("FAULT", f"{kind}: {what}")

    def digest(self, network_digest: bytes) -> str:
        """Returns the fingerprint of everything noted and delivered."""
        combined = self._digest.copy()
        combined.update(network_digest)
        return combined.hexdigest()
