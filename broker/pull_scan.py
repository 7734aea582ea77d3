"""Chooses the messages of a pull from ConsumeQueue units. Pure.

Messages that were stored by one entry lie side by side in the CommitLog, so that a pull of many
messages is usually a few slices: neighbours are merged here, without looking at the messages.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from broker.filters import TagCodes

# One unit: physical offset, size, tag hash; see `store.state_keys`.
_UNIT = Struct(">qiq")

# Looks at the message of (physical offset, size): whether it is wanted.
Test = Callable[[int, int], bool]


class Selection:
    """What a scan has chosen so far.

    Attributes:
        next_offset: First queue offset that was not looked at, or not taken for want of room.
        count: Messages chosen.
        size_bytes: Their stored size.
        slices: Physical offset and length of each run of neighbours.
        is_full: A limit was reached; scanning further is pointless.
    """

    __slots__ = ("count", "count_max", "is_full", "next_offset", "size_bytes", "size_max", "slices")

    def __init__(self, start: int, *, count_max: int, size_bytes_max: int) -> None:
        """Begins a selection.

        Args:
            start: Queue offset of the first unit to come.
            count_max: At most so many messages.
            size_bytes_max: At most so many bytes, but always one message.
        """
        self.next_offset = start
        self.count = 0
        self.size_bytes = 0
        self.slices: list[tuple[int, int]] = []
        self.is_full = False
        self.count_max = count_max
        self.size_max = size_bytes_max

    def add(self, units: bytes, codes: TagCodes, test: Test | None = None) -> None:
        """Looks at the next units.

        Args:
            units: Packed, of consecutive queue offsets beginning at `next_offset`.
            codes: Tag hashes that pass; None: all.
            test: What else a message must pass.
        """
        offset, count, total = self.next_offset, self.count, self.size_bytes
        slices = self.slices
        run_start, run_size = slices.pop() if slices else (0, 0)
        for physical_offset, size, tag_hash in _UNIT.iter_unpack(units):
            if (codes is None or tag_hash in codes) and (
                test is None or test(physical_offset, size)
            ):
                if count and (count >= self.count_max or total + size > self.size_max):
                    self.is_full = True
                    break
                if run_size and physical_offset == run_start + run_size:
                    run_size += size
                else:
                    if run_size:
                        slices.append((run_start, run_size))
                    run_start, run_size = physical_offset, size
                count += 1
                total += size
            offset += 1
        if run_size:
            slices.append((run_start, run_size))
        self.next_offset, self.count, self.size_bytes = offset, count, total
