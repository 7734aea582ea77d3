"""Short builders of history records for the checkers' tests. Times are in milliseconds."""

from __future__ import annotations

from typing import Any

from jepsen_tests.checkers import Verdict, judge_records
from jepsen_tests.history import (
    AnyRecord,
    Append,
    Assign,
    BatchAppend,
    Call,
    Commit,
    Deliver,
    Done,
    Fault,
    Fetch,
    Group,
    Half,
    Meta,
    Read,
    Recall,
    Resolve,
    Revoke,
    Send,
)

MS = 1_000_000
Q = "t@b/0"
NODES = ["n0", "n1", "n2"]


def append(value: Any, inv: float, ret: float, offset: int | None = None, **more: Any) -> Append:
    status = more.pop("status", "info" if offset is None else "ok")
    process = more.pop("process", 0)
    queue = more.pop("queue", Q)
    return Append(
        process=process,
        queue=queue,
        value=value,
        inv=int(inv * MS),
        ret=int(ret * MS),
        status=status,
        offset=offset,
        **more,
    )


def batch(values: list[Any], inv: float, ret: float, offset: int | None = None) -> BatchAppend:
    return BatchAppend(
        process=0,
        queue=Q,
        values=values,
        inv=int(inv * MS),
        ret=int(ret * MS),
        status="info" if offset is None else "ok",
        offset=offset,
    )


def read(start: int, values: list[Any], inv: float, ret: float, **more: Any) -> Read:
    more.setdefault("max", 100)
    process = more.pop("process", 9)
    return Read(
        process=process,
        queue=more.pop("queue", Q),
        inv=int(inv * MS),
        ret=int(ret * MS),
        status=more.pop("status", "ok"),
        start=start,
        values=values,
        **more,
    )


def final(values: list[Any], t: float, node: str = "n0", **more: Any) -> Read:
    return read(0, values, t, t + 1, end=len(values), final=True, node=node, **more)


def meta(**more: Any) -> Meta:
    more.setdefault("final_read_required", False)
    more.setdefault("acks_min", 0)
    return Meta(**more)


def fault(inv: float, ret: float, name: str = "F1", **more: Any) -> Fault:
    more.setdefault("bit", True)
    more.setdefault("proof", {"dropped": 12})
    more.setdefault("id", 1)
    return Fault(name=name, inv=int(inv * MS), ret=int(ret * MS), **more)


def group(**more: Any) -> Group:
    more.setdefault("drained", True)
    more.setdefault("topics", ["t"])
    return Group(group="g", **more)


def deliver(value: Any, offset: int, t: float, consumer: str = "c0", **more: Any) -> Deliver:
    more.setdefault("queue", Q)
    return Deliver(
        group=more.pop("group", "g"),
        consumer=consumer,
        offset=offset,
        value=value,
        t=int(t * MS),
        **more,
    )


def done(value: Any, offset: int, t: float, consumer: str = "c0", **more: Any) -> Done:
    more.setdefault("queue", Q)
    return Done(
        group=more.pop("group", "g"),
        consumer=consumer,
        offset=offset,
        value=value,
        t=int(t * MS),
        **more,
    )


def assign(consumer: str, t: float, **more: Any) -> Assign:
    more.setdefault("queue", Q)
    return Assign(group="g", consumer=consumer, t=int(t * MS), **more)


def revoke(consumer: str, t: float, **more: Any) -> Revoke:
    more.setdefault("queue", Q)
    return Revoke(group="g", consumer=consumer, t=int(t * MS), **more)


def commit(offset: int, inv: float, ret: float, status: Any = "ok", **more: Any) -> Commit:
    return Commit(
        process=1,
        group="g",
        queue=Q,
        offset=offset,
        inv=int(inv * MS),
        ret=int(ret * MS),
        status=status,
        **more,
    )


def fetch(offset: int | None, inv: float, ret: float) -> Fetch:
    return Fetch(
        process=2,
        group="g",
        queue=Q,
        inv=int(inv * MS),
        ret=int(ret * MS),
        status="ok",
        offset=offset,
    )


def resolve(
    value: Any, decision: Any, inv: float, ret: float, status: Any = "ok", **more: Any
) -> Resolve:
    return Resolve(
        process=3,
        value=value,
        decision=decision,
        inv=int(inv * MS),
        ret=int(ret * MS),
        status=status,
        **more,
    )


def half(value: int, inv: float, ret: float, status: Any = "ok") -> Half:
    return Half(
        process=0, topic="t", value=value, inv=int(inv * MS), ret=int(ret * MS), status=status
    )


def send(value: int, inv: float, delay_ms: int) -> Send:
    return Send(
        process=0,
        topic="t",
        value=value,
        inv=int(inv * MS),
        ret=int((inv + 1) * MS),
        status="ok",
        delay_ms=delay_ms,
    )


def recall(value: int, inv: float, ret: float, status: Any = "ok") -> Recall:
    return Recall(process=0, value=value, inv=int(inv * MS), ret=int(ret * MS), status=status)


def call(
    model: str, f: str, args: list[Any], result: Any, inv: float, ret: float, status: Any = "ok"
) -> Call:
    return Call(
        process=4,
        model=model,
        object="o",
        f=f,
        args=args,
        result=result,
        inv=int(inv * MS),
        ret=int(ret * MS),
        status=status,
    )


def consumed(values: list[Any], t: float = 20, consumer: str = "c0") -> list[AnyRecord]:
    """Returns the events of one consumer that gets everything in order, without mistakes."""
    events: list[AnyRecord] = [assign(consumer, t - 1, offset=0)]
    for offset, value in enumerate(values):
        events.append(deliver(value, offset, t + offset, consumer))
        events.append(done(value, offset, t + offset + 0.5, consumer))
    return events


def log_run(count: int = 8) -> list[AnyRecord]:
    """Returns a valid run: sequential appends under a fault that bit, then three final reads."""
    values = list(range(100, 100 + count))
    records: list[AnyRecord] = [
        Meta(workload="W1", nemeses=["F1"], nodes=NODES, acks_min=5, acks_in_faults_min=2)
    ]
    records += [append(value, 2 * at, 2 * at + 1, at) for at, value in enumerate(values)]
    records.append(fault(3, 9))
    records += [final(values, 100 + at * 2, node) for at, node in enumerate(NODES)]
    return records


def judged(*records: AnyRecord) -> Verdict:
    """Judges records; without a meta line nothing is asked of the run."""
    given = list(records)
    if not any(isinstance(record, Meta) for record in given):
        given.insert(0, meta())
    return judge_records(given)


def rules(verdict: Verdict) -> set[tuple[str, str]]:
    return {(found.rule, found.kind) for found in verdict.violations}
