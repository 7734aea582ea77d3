"""The variants of the log checker: torn batches, sessions, trimming, sums of big reads."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from itertools import accumulate

from jepsen_tests.checkers.log_store import ABSENT, ALWAYS, NEVER, LogHistory, LowRow, QueueLog
from jepsen_tests.checkers.verdict import Violation
from jepsen_tests.history import element_hash

_MASK_64 = (1 << 64) - 1


def torn_reads(queue: QueueLog, groups: list[tuple[int, int]]) -> list[Violation]:
    """C4: no read may see a length strictly inside a batch."""
    if not groups:
        return []
    ordered = sorted(groups)
    begins = [begin for begin, _ in ordered]
    for lo, hi, _, _, number, _, _ in queue.reads():
        if hi == NEVER:
            continue
        begin, end = ordered[max(0, bisect_right(begins, lo) - 1)]
        if begin < lo <= hi < end:
            text = f"a read saw the length {lo}, inside the batch at offsets {begin}..{end - 1}"
            writer = queue.seen[begin] if begin < len(queue.seen) else ABSENT
            return [Violation("C4", "torn batch", queue.name, text, (writer, number))]
    return []


def judge_sessions(queue: QueueLog, history: LogHistory) -> list[Violation]:
    """C4 for eventual reads: within a session the log never shrinks (and has one's own writes)."""
    found: list[Violation] = []
    for (process, node), reads in queue.sessions.items():
        own = sorted(history.own.get((queue.index, process), ()))
        longest, longest_number, position = 0, ABSENT, 0
        for read in sorted(reads):
            while position < len(own) and own[position][0] < read.inv:
                _, offset, number = own[position]
                if offset + 1 > longest:
                    longest, longest_number = offset + 1, number
                position += 1
            if read.hi < longest:
                text = f"process {process} saw {longest} entries before, now at most {read.hi}"
                witnesses = (longest_number, read.number)
                found.append(Violation("C4", "session went back", queue.name, text, witnesses))
                break
            # Of a read from nobody knows where nothing follows for the next.
            if node and read.lo > longest:
                longest, longest_number = read.lo, read.number
    return found


def judge_lows(queue: QueueLog, history: LogHistory) -> list[Violation]:
    """C4 for trimming: the min offset never goes back, and reads below it are refused."""
    if not queue.lows:
        return []
    one = history.meta.replicated_low
    told: dict[int, list[LowRow]] = defaultdict(list)
    for row in sorted(queue.lows.values()):
        told[0 if one else row.node].append(row)
    shown = sorted(
        (inv, number, at_most, 0 if one else node)
        for _, _, inv, _, number, at_most, node in queue.reads()
        if at_most != ABSENT and inv != ALWAYS
    )
    low: dict[int, tuple[int, int]] = {}
    position: dict[int, int] = defaultdict(int)
    for inv, number, at_most, node in shown:
        rows = told.get(node, [])
        while position[node] < len(rows) and rows[position[node]].ret < inv:
            row = rows[position[node]]
            low[node] = max(low.get(node, (0, ABSENT)), (row.lo, row.number))
            position[node] += 1
        least, proof = low.get(node, (0, ABSENT))
        if at_most < least:
            text = f"offsets below {least} were gone, then offset {at_most} was there"
            return [Violation("C4", "min offset went back", queue.name, text, (proof, number))]
    return []


def judge_sums(queue: QueueLog, history: LogHistory) -> list[Violation]:
    """C1 for big reads: the sum of what came back is that of the values known by now.

    A range with an offset of unknown value, or with string values, is not judged.
    """
    if not queue.sums:
        return []
    unknown = list(accumulate((value < 0 for value in queue.values), initial=0))
    sums = list(
        accumulate(
            (element_hash(offset, value) for offset, value in enumerate(queue.values)),
            lambda total, more: (total + more) & _MASK_64,
            initial=0,
        )
    )
    for first, count, told, number in queue.sums:
        last = first + count
        if first < 0 or last > len(queue.values) or unknown[last] != unknown[first]:
            history.sums_unchecked += 1
            continue
        if (sums[last] - sums[first]) & _MASK_64 != told:
            text = f"offsets {first}..{last - 1} held other values (sum {told:#x})"
            return [Violation("C1", "two values at one offset", queue.name, text, (number,))]
    return []
