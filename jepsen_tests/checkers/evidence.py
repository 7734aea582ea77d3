"""Did the run prove anything? The reasons for which a verdict is `unknown` instead of `valid`."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from jepsen_tests.checkers.log_store import FinalRead, LogHistory
from jepsen_tests.checkers.verdict import Reason
from jepsen_tests.history import Fault, Meta, topic_of

_NEVER = (1 << 63) - 1


def bite_reasons(meta: Meta, faults: Sequence[Fault]) -> list[Reason]:
    """Every nemesis asked for must have bitten at least once, with proof."""
    reasons: list[Reason] = []
    for nemesis in meta.nemeses:
        mine = [fault for fault in faults if _is_of(fault.name, nemesis)]
        if any(fault.bit and fault.proof for fault in mine):
            continue
        if not mine:
            text = f"nemesis {nemesis} left no fault in the history"
        elif any(fault.bit is None or not fault.proof for fault in mine):
            text = f"of {len(mine)} faults of {nemesis} none has a proof that it bit"
        else:
            text = f"none of {len(mine)} faults of {nemesis} bit"
        reasons.append(Reason("no-bite", text))
    if not meta.nemeses and faults and not any(fault.bit and fault.proof for fault in faults):
        reasons.append(Reason("no-bite", f"none of {len(faults)} faults has a proof that it bit"))
    return reasons


def _is_of(name: str, nemesis: str) -> bool:
    return name == nemesis or (name.startswith(nemesis) and not name[len(nemesis)].isalnum())


def acks_in_faults(acks: array[int], faults: Iterable[Fault]) -> int:
    """Returns how many of the acknowledged operations began while a fault was active."""
    spans: list[list[int]] = []
    for begin, end in sorted((f.inv, _NEVER if f.ret is None else f.ret) for f in faults):
        if spans and begin <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([begin, end])
    ordered = sorted(acks)
    begins = array("q", ordered)
    return sum(bisect_right(begins, end) - bisect_right(begins, begin - 1) for begin, end in spans)


def ack_reasons(meta: Meta, acks: int, acks_under_faults: int) -> list[Reason]:
    """Too few acknowledgements prove nothing."""
    reasons: list[Reason] = []
    if acks < meta.acks_min:
        text = f"{acks} acknowledged operations, {meta.acks_min} are needed"
        reasons.append(Reason("few-acks", text))
    if acks_under_faults < meta.acks_in_faults_min:
        text = (
            f"{acks_under_faults} operations acknowledged during faults, "
            f"{meta.acks_in_faults_min} are needed"
        )
        reasons.append(Reason("few-acks", text))
    return reasons


def final_read_reasons(history: LogHistory) -> list[Reason]:
    """Every queue with acknowledged appends must have been read to its end, from every node."""
    meta = history.meta
    if not meta.final_read_required:
        return []
    reads: dict[tuple[str, str], list[FinalRead]] = defaultdict(list)
    for read in history.finals:
        reads[read.queue, read.node].append(read)
    known = {topic_of(name) for name in history.queues}
    reasons = [
        Reason("no-final-read", f"no queue of {topic} was read")
        for topic in sorted(history.loose - known)
    ]
    for queue in history.queues.values():
        # Of a message whose queue nobody was told, every queue of the topic may be the place.
        if not queue.acks and topic_of(queue.name) not in history.loose:
            continue
        nodes = {node for name, node in reads if name == queue.name}
        complete = {node for node in nodes if _covers(reads[queue.name, node])}
        missing = [node for node in _owing(meta, queue.name) if node not in complete]
        if missing or not complete:
            text = f"{queue.name} was not read to its end from {', '.join(missing) or 'any node'}"
            reasons.append(Reason("no-final-read", text))
    return reasons


def _owing(meta: Meta, queue: str) -> list[str]:
    """Returns the nodes that hold a queue: those named after its broker, if any are, else all."""
    broker = queue.partition("@")[2].rpartition("/")[0]
    return [node for node in meta.nodes if node.rpartition("-")[0] == broker] or meta.nodes


def _covers(reads: list[FinalRead]) -> bool:
    """Returns whether the answers of one node reach from the min offset to the end of the log."""
    ends = [read.end for read in reads if read.end is not None]
    if not ends:
        return False
    reached = max(read.low for read in reads)
    for read in sorted(reads, key=lambda read: (read.first, read.last)):
        if read.first > reached:
            return False
        reached = max(reached, read.last)
    return reached >= max(ends)


def lost_appends(history: LogHistory) -> int:
    """Returns how many acknowledged offsets lie beyond the end that the final reads show."""
    ends: dict[str, int] = {}
    for read in history.finals:
        if read.end is not None:
            ends[read.queue] = max(ends.get(read.queue, 0), read.end)
    return sum(
        sum(value != -1 for value in queue.values[ends[name] :])
        for name, queue in history.queues.items()
        if name in ends
    )
