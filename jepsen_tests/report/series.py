"""One pass over a history: rates, latencies, gaps between acknowledgements, counts."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jepsen_tests.history import (
    AnyRecord,
    Append,
    BatchAppend,
    Call,
    Commit,
    Deliver,
    Fault,
    Fetch,
    Half,
    Note,
    Phase,
    Read,
    Record,
    Send,
)

NS_PER_S = 1_000_000_000
BUCKET_NS = NS_PER_S // 4
GAP_MIN_NS = NS_PER_S // 4
GAPS_SHOWN = 40
TROUBLES_MAX = 3000


@dataclass
class Bucket:
    """What ended within a quarter of a second."""

    appends: int = 0
    reads: int = 0
    deliveries: int = 0
    info: int = 0
    fail: int = 0
    latencies_ns: list[int] = field(default_factory=list)

    def quantile_ms(self, share: float) -> float:
        """Returns a quantile of the acknowledged appends' latencies; 0 if there is none."""
        if not self.latencies_ns:
            return 0.0
        ordered = sorted(self.latencies_ns)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6


@dataclass(frozen=True)
class Gap:
    """No append was acknowledged between two instants."""

    begin_ns: int
    end_ns: int
    faults: tuple[str, ...]

    @property
    def ms(self) -> float:
        """How long it was."""
        return (self.end_ns - self.begin_ns) / 1e6


@dataclass
class Series:
    """All that the report shows of a history.

    Attributes:
        troubles: (ret, duration in ms, status) of appends that were not acknowledged.
    """

    begin_ns: int = 0
    end_ns: int = 0
    buckets: list[Bucket] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    troubles: list[tuple[int, float, str]] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    leaders: list[Note] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def at(self, ns: int) -> float:
        """Returns seconds since the beginning of the load."""
        return (ns - self.begin_ns) / NS_PER_S


def measure(records: Iterable[AnyRecord], phases: Sequence[Phase]) -> Series:
    """Reads a history once.

    Args:
        records: All of it.
        phases: Its phases: the load lies between `load` and `heal`.
    """
    times = {phase.name: phase.t for phase in phases}
    series = Series(begin_ns=times.get("load", 0), phases=list(phases))
    series.end_ns = max(times.get("heal", 0), series.begin_ns)
    acks: list[int] = []
    faults: dict[int, Fault] = {}
    for record in records:
        match record:
            case Append() | BatchAppend() | Send() | Half() | Call():
                _append(series, record, acks)
            case Read():
                _read(series, record)
            case Deliver():
                series.counts["deliveries"] += 1
                _bucket(series, record.t).deliveries += 1
            case Commit() | Fetch():
                kind = "commits" if isinstance(record, Commit) else "fetches"
                series.counts[f"{kind} {record.status}"] += 1
            case Fault():
                faults[record.id] = record
            case Note() if record.name == "leader":
                series.leaders.append(record)
            case _:
                pass
    series.faults = sorted(faults.values(), key=lambda fault: fault.inv)
    series.gaps = _gaps(series, sorted(acks))
    return series


def _bucket(series: Series, ns: int) -> Bucket:
    number = max(0, (ns - series.begin_ns) // BUCKET_NS)
    buckets = series.buckets
    while len(buckets) <= min(number, 40_000):
        buckets.append(Bucket())
    return buckets[min(number, 40_000)]


_KINDS: Mapping[type[Record], str] = {Send: "sends", Half: "halves", Call: "calls"}


def _append(
    series: Series, record: Append | BatchAppend | Send | Half | Call, acks: list[int]
) -> None:
    series.counts[f"{_KINDS.get(type(record), 'appends')} {record.status}"] += 1
    bucket = _bucket(series, record.ret)
    if record.status == "ok":
        bucket.appends += 1
        bucket.latencies_ns.append(record.ret - record.inv)
        acks.append(record.ret)
        return
    _trouble(series, bucket, record.status, record.error)
    if len(series.troubles) < TROUBLES_MAX:
        ms = (record.ret - record.inv) / 1e6
        series.troubles.append((record.ret, ms, record.status))


def _read(series: Series, record: Read) -> None:
    kind = "final reads" if record.final else ("reads" if record.max else "lengths")
    series.counts[f"{kind} {record.status}"] += 1
    if record.final:
        return
    bucket = _bucket(series, record.ret)
    if record.status == "ok":
        bucket.reads += 1
    else:
        _trouble(series, bucket, record.status, record.error)


def _trouble(series: Series, bucket: Bucket, status: str, error: str) -> None:
    if status == "info":
        bucket.info += 1
    else:
        bucket.fail += 1
    text = "".join("#" if c.isdigit() else c for c in error)
    series.errors[f"{status}: {text[:90]}"] += 1


def _gaps(series: Series, acks: list[int]) -> list[Gap]:
    """Returns the longest pauses between acknowledgements during the load, the longest first."""
    inside = acks[: bisect_right(acks, series.end_ns)]
    found = [
        Gap(a, b, _faults_between(series.faults, a, b))
        for a, b in zip([series.begin_ns, *inside], [*inside, series.end_ns], strict=True)
        if b - a >= GAP_MIN_NS
    ]
    found.sort(key=lambda gap: gap.begin_ns - gap.end_ns)
    return found[:GAPS_SHOWN]


def _faults_between(faults: Sequence[Fault], begin_ns: int, end_ns: int) -> tuple[str, ...]:
    return tuple(
        f"{fault.name} {fault.details.get('variant', '')}".strip()
        for fault in faults
        if fault.inv <= end_ns and (fault.ret is None or fault.ret >= begin_ns)
    )


def availability(series: Series) -> dict[str, float]:
    """Returns the share of the load's time with acknowledgements, and the longest pause."""
    total = max(1, series.end_ns - series.begin_ns)
    silent = sum(gap.end_ns - gap.begin_ns for gap in series.gaps)
    longest = max((gap.ms for gap in series.gaps), default=0.0)
    return {
        "shareOfTimeWithAcks": round(1 - min(total, silent) / total, 4),
        "longestAckGapMs": round(longest, 1),
    }
