"""How far a leader's followers are."""

from __future__ import annotations

from collections import deque


class Progress:
    """What the leader knows of one follower's copy of the log."""

    __slots__ = (
        "acked",
        "floor_asked",
        "in_flight",
        "in_flight_bytes",
        "last_progress",
        "round",
        "session",
    )

    def __init__(self) -> None:
        self.session = 0  # counts restarts of sending; replies to older sessions are stale
        self.round = 0  # newest broadcast that the follower answered
        self.acked = 0  # confirmed durable there; may exceed matchIndex until durable here
        self.floor_asked = 0  # first index of our log that it was asked about
        self.in_flight: deque[tuple[int, int]] = deque()  # (last index, bytes) of each append
        self.in_flight_bytes = 0
        self.last_progress = 0.0

    def sent(self, last_index: int, size_bytes: int) -> None:
        """Notes an append on its way."""
        self.in_flight.append((last_index, size_bytes))
        self.in_flight_bytes += size_bytes

    def confirmed(self, index: int, now: float) -> None:
        """Notes that the follower holds everything up to `index`."""
        if index > self.acked:
            self.acked = index
            self.floor_asked = 0
            self.last_progress = now
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight_bytes -= self.in_flight.popleft()[1]

    def restart(self, now: float) -> None:
        """Forgets what is in flight: it is lost or will be refused."""
        self.session += 1
        self.in_flight.clear()
        self.in_flight_bytes = 0
        self.last_progress = now
