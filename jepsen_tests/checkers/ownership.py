"""Rule D4: an ordered queue has one consumer at a time, and a stale owner is shut out."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from jepsen_tests.checkers.events import ConsumerHistory, Findings, GroupEvents, Ownership


class _Interval(NamedTuple):
    begin: int
    end: int
    consumer: str
    number: int


def judge_ownership(history: ConsumerHistory, events: GroupEvents, findings: Findings) -> None:
    """Judges D4 of an ordered group."""
    by_queue: dict[str, list[_Interval]] = defaultdict(list)
    for interval, queue in _intervals(events):
        by_queue[queue].append(interval)
    subject = f"group {events.name}"
    for queue, intervals in by_queue.items():
        latest: dict[str, _Interval] = {}
        for interval in sorted(intervals):
            for other in latest.values():
                if other.consumer == interval.consumer or other.end <= interval.begin:
                    continue
                if history.fault_between(other.begin, interval.begin, other.consumer):
                    # Nobody can stop a paused process from going on with what it has. Its commit
                    # must be refused: judged below.
                    continue
                text = f"{queue}: {other.consumer} and {interval.consumer} at the same time"
                findings.add("D4", "two owners", subject, text, other.number, interval.number)
            known = latest.get(interval.consumer)
            if known is None or interval.end > known.end:
                latest[interval.consumer] = interval
    _stale_commits(events, findings)


def _intervals(events: GroupEvents) -> list[tuple[_Interval, str]]:
    """Returns when each delivered message was being processed."""
    ends: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for ending in events.endings:
        ends[ending.consumer, ending.queue, ending.offset].append(ending.t)
    for owner in events.ownership:
        if not owner.begins:
            ends[owner.consumer, owner.queue, -1].append(owner.t)
    found: list[tuple[_Interval, str]] = []
    for delivery in events.deliveries:
        done = ends.get((delivery.consumer, delivery.queue, delivery.offset), [])
        gone = ends.get((delivery.consumer, delivery.queue, -1), [])
        after = [t for t in done if t >= delivery.t] or [t for t in gone if t >= delivery.t]
        # Without a known end it is not known to last.
        end = min(after, default=delivery.t)
        interval = _Interval(delivery.t, end, delivery.consumer, delivery.number)
        found.append((interval, delivery.queue))
    return found


def _stale_commits(events: GroupEvents, findings: Findings) -> None:
    """An acknowledged commit by a consumer after another one has become the owner."""
    owners: dict[str, list[Ownership]] = defaultdict(list)
    for owner in events.ownership:
        if owner.begins:
            owners[owner.queue].append(owner)
    for queue, commits in events.commits.items():
        begins = owners.get(queue, [])
        position = 0
        current: Ownership | None = None
        past: set[str] = set()
        for commit in commits:
            while position < len(begins) and begins[position].t < commit.inv:
                if current is not None:
                    past.add(current.consumer)
                current = begins[position]
                past.discard(current.consumer)
                position += 1
            if current is None or commit.status != "ok":
                continue
            if commit.token is not None and current.token is not None:
                stale = commit.token < current.token
            else:
                stale = commit.consumer in past
            if stale:
                text = (
                    f"{queue}: {commit.consumer} committed {commit.offset} "
                    f"while {current.consumer} owned the queue"
                )
                subject = f"group {events.name}"
                kind = "stale commit accepted"
                findings.add("D4", kind, subject, text, current.number, commit.number)
