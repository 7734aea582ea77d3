"""From counts and times to figures. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the value that this share of the values does not exceed (nearest rank).

    Args:
        ordered: At least one value, in ascending order.
        share: Between 0 and 1.
    """
    rank = max(1, -(-len(ordered) * round(share * 10_000) // 10_000))
    return ordered[min(rank, len(ordered)) - 1]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a load measured.

    Attributes:
        case: Its name.
        messages, payload_bytes: How much went through.
        seconds: In how long.
        p50_ms, p99_ms, max_ms: Latency, where one was measured.
    """

    case: str
    messages: int
    payload_bytes: int
    seconds: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None

    @classmethod
    def of(
        cls,
        case: str,
        *,
        messages: int,
        payload_bytes: int,
        seconds: float,
        latencies_s: Sequence[float] = (),
    ) -> Figures:
        """Returns the figures of a load with its latencies in seconds, in any order."""
        if not latencies_s:
            return cls(case=case, messages=messages, payload_bytes=payload_bytes, seconds=seconds)
        ordered = sorted(latencies_s)
        return cls(
            case=case,
            messages=messages,
            payload_bytes=payload_bytes,
            seconds=seconds,
            p50_ms=round(percentile(ordered, 0.5) * 1000, 3),
            p99_ms=round(percentile(ordered, 0.99) * 1000, 3),
            max_ms=round(ordered[-1] * 1000, 3),
        )

    @property
    def messages_per_s(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds if self.seconds > 0 else 0.0

    @property
    def megabytes_per_s(self) -> float:
        """Payload in MB (10^6 bytes) per second."""
        return self.payload_bytes / self.seconds / 1e6 if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, object]:
        """Returns the figures for JSON; latencies only where they were measured."""
        content: dict[str, object] = {
            "case": self.case,
            "messages": self.messages,
            "seconds": round(self.seconds, 3),
            "messages_per_s": round(self.messages_per_s),
            "megabytes_per_s": round(self.megabytes_per_s, 2),
        }
        if self.p50_ms is not None:
            content |= {"p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "max_ms": self.max_ms}
        return content
