"""The variants of the log checker: torn batches, sessions, trimming, sums of big reads."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from jepsen_tests.checkers.log_store import ABSENT, NEVER, LogHistory, QueueLog
from jepsen_tests.checkers.verdict import Violation
from jepsen_tests.history import element_hash

_MASK_64 = (1 << 64) - 1


def torn_reads(queue: QueueLog, groups: list[tuple[int, int]]) -> list[Violation]:
    """C4: no read may see a length strictly inside a batch."""
    if not groups:
        return []
    ordered = sorted(groups)
    begins = [begin for begin, _ in ordered]
    for lo, hi, number in zip(queue.read_lo, queue.read_hi, queue.read_number, strict=True):
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
    for (process, _), reads in queue.sessions.items():
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
            if read.lo > longest:
                longest, longest_number = read.lo, read.number
    return found


def judge_lows(queue: QueueLog) -> list[Violation]:
    """C4 for trimming: the min offset never goes back, and reads below it are refused."""
    if not any(queue.trim_lo):
        return []
    rows = list(
        zip(
            queue.trim_node,
            queue.trim_lo,
            queue.trim_hi,
            queue.trim_inv,
            queue.trim_ret,
            queue.trim_number,
            strict=True,
        )
    )
    for node in set(queue.trim_node):
        mine = [row for row in rows if row[0] == node]
        ended = sorted(mine, key=lambda row: row[4])
        low, proof, position = 0, ABSENT, 0
        for _, _, hi, inv, _, number in sorted(mine, key=lambda row: row[3]):
            while position < len(ended) and ended[position][4] < inv:
                if ended[position][1] > low:
                    low, proof = ended[position][1], ended[position][5]
                position += 1
            if hi < low:
                text = f"offsets below {low} were gone, then offset {hi} was there"
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
