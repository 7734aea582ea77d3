"""Compares what was acknowledged with what was consumed: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison found.

    Attributes:
        lost: Acknowledged, but not there.
        duplicates: Copies beyond the first.
        out_of_order: First copies that come after the first copy of a later message of their queue.
        phantoms: There, although never sent to that queue.
    """

    consumed: int
    lost: int
    duplicates: int
    out_of_order: int
    phantoms: int

    @property
    def is_violation(self) -> bool:
        """Whether a promise was broken."""
        return bool(self.lost or self.duplicates or self.out_of_order or self.phantoms)


def compare(
    sent: Mapping[int, Iterable[int]],
    acknowledged: Mapping[int, Iterable[int]],
    consumed: Mapping[int, Iterable[int]],
) -> Verdict:
    """Compares numbers by queue id.

    Args:
        sent: Everything that was handed to the producer, ascending per queue.
        acknowledged: The part of it that was acknowledged.
        consumed: What was read, in the order of the queue.
    """
    total = lost = duplicates = out_of_order = phantoms = 0
    for queue_id in sorted({*sent, *consumed}):
        known = set(sent.get(queue_id, ()))
        seen: set[int] = set()
        newest = -1
        for number in consumed.get(queue_id, ()):
            total += 1
            if number not in known:
                phantoms += 1
            elif number in seen:
                duplicates += 1
            else:
                seen.add(number)
                out_of_order += number < newest
                newest = max(newest, number)
        lost += len(set(acknowledged.get(queue_id, ())) - seen)
    return Verdict(
        consumed=total,
        lost=lost,
        duplicates=duplicates,
        out_of_order=out_of_order,
        phantoms=phantoms,
    )
