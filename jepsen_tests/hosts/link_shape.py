"""What a bad link does to each frame: late, twice, out of order, damaged or not at all. Pure."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

QUEUED_MAX = 20_000
_IP_PROTOCOL_AT = 14 + 9
_TCP = 6
_PAYLOAD_AT = 14 + 20 + 20  # Ethernet, IPv4 and TCP without options


@dataclass(frozen=True, kw_only=True)
class LinkShape:
    """How bad one direction between two hosts is.

    Attributes:
        delay_ms: Every frame is this late.
        jitter_ms: And up to this much earlier or later; the order is kept.
        loss: Share of frames that never arrive.
        duplicate: Share of frames that arrive twice.
        reorder: Share of frames that overtake those under way.
        corrupt: Share of TCP frames with a flipped bit of the payload; checksums turn it into loss.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Returns the shape for another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> LinkShape:
        """Reads what `to_json` wrote."""
        return cls(**{name: float(value) for name, value in table.items()})


class ShapedLink:
    """One direction between two hosts: frames go in, and come out when it is their time.

    The order of frames is kept but for those that overtake, as on a real path. Every choice comes
    from one seeded source, so equal seeds and equal frames have equal fates.
    """

    def __init__(self, shape: LinkShape, chance: random.Random) -> None:
        self._shape = shape
        self._chance = chance
        self._heap: list[tuple[float, int, bytes]] = []
        self._numbers = itertools.count()
        self._last = 0.0
        self.counts: Counter[str] = Counter()

    def put(self, frame: bytes, now: float) -> None:
        """Takes a frame.

        Args:
            frame: From the Ethernet header on.
            now: Seconds of any clock that never goes back.
        """
        shape, chance, counts = self._shape, self._chance, self.counts
        counts["seen"] += 1
        if shape.loss and chance.random() < shape.loss:
            counts["lost"] += 1
            return
        if shape.corrupt and chance.random() < shape.corrupt and is_tcp_payload(frame):
            frame = flip_bit(frame, chance)
            counts["corrupted"] += 1
        self._schedule(frame, now)
        if shape.duplicate and chance.random() < shape.duplicate:
            counts["duplicated"] += 1
            self._schedule(frame, now)

    def _schedule(self, frame: bytes, now: float) -> None:
        shape, chance = self._shape, self._chance
        if len(self._heap) >= QUEUED_MAX:
            self.counts["overflowed"] += 1
            return
        late_ms = shape.delay_ms
        if shape.jitter_ms:
            late_ms += chance.uniform(-shape.jitter_ms, shape.jitter_ms)
        due = now + max(0.0, late_ms) / 1000
        if shape.reorder and chance.random() < shape.reorder:
            if self._heap:
                self.counts["overtook"] += 1
            due = now
        else:
            due = self._last = max(due, self._last)
        if due > now:
            self.counts["delayed"] += 1
        heapq.heappush(self._heap, (due, next(self._numbers), frame))

    def take(self, now: float) -> list[bytes]:
        """Returns the frames whose time has come, in their order."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            found.append(heapq.heappop(self._heap)[2])
        return found

    def next_due(self) -> float | None:
        """Returns when the next frame leaves; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def drain(self) -> list[bytes]:
        """Returns all frames under way, in their order; for when the link gets well."""
        return self.take(float("inf"))


def is_tcp_payload(frame: bytes) -> bool:
    """Whether a frame is IPv4 and TCP and carries data behind the headers."""
    return (
        len(frame) > _PAYLOAD_AT + 12
        and frame[12:14] == b"\x08\x00"
        and frame[_IP_PROTOCOL_AT] == _TCP
    )


def flip_bit(frame: bytes, chance: random.Random) -> bytes:
    """Returns the frame with one bit of its TCP payload flipped."""
    damaged = bytearray(frame)
    damaged[chance.randrange(_PAYLOAD_AT + 12, len(frame))] ^= 1 << chance.randrange(8)
    return bytes(damaged)
