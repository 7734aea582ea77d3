"""How much passes through this replica: totals, rates, sizes and times. Pure.

One owner, the event loop. The hot path adds to plain numbers once per request, whatever the number
of its messages; everything else is computed when somebody asks. Every ten seconds `sample` takes
note of the totals, and a rate is the difference between two such notes.

Nothing here is replicated or stored: a new leader begins at zero, as does a restart.

Source: RocketMQ `BrokerStatsManager`, `StatsItem`: names, windows and days are theirs, but days
are those of UTC.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

SAMPLE_S: Final = 10.0
KEYS_MAX: Final = 10_000
PLACES_MAX: Final = 200_000  # of groups in queues
# Upper ends of the classes of times, in seconds; a last class holds all above.
TIME_CLASSES_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_DAY_MS: Final = 86_400_000
_MINUTE_SAMPLES: Final = 7  # 60 s and where they begin
_TOTAL_SAMPLES: Final = 61  # 600 s
_HOUR_EVERY: Final = 60  # a sample of hours per so many of ten seconds
_DAY_EVERY: Final = 360
_HOUR_SAMPLES: Final = 7
_DAY_SAMPLES: Final = 25
_WINDOW_MIN_S: Final = 1.0
_MESSAGES, _BYTES, _SECONDS, _TIMES = range(4)

Key = TypeVar("Key")


class Sample(NamedTuple):
    """Totals of a flow at a moment."""

    at_s: float
    messages: int
    bytes: int
    seconds: float
    times: int


@dataclass(frozen=True, slots=True)
class Rate:
    """What came in a window: in all, per second, and on average per time."""

    amount: float
    per_second: float
    per_time: float


class Times:
    """How long something took: a histogram."""

    __slots__ = ("count", "counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(TIME_CLASSES_S) + 1)
        self.count = 0
        self.sum_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Adds one time, or the same one several times."""
        self.counts[bisect_left(TIME_CLASSES_S, seconds)] += times
        self.count += times
        self.sum_s += seconds * times


class Flow:
    """Messages and bytes in one direction, and how long each request took."""

    __slots__ = ("_days", "_hours", "_minutes", "_now")

    def __init__(self, now_s: float, samples: int = _MINUTE_SAMPLES) -> None:
        # Totals: messages, bytes, seconds, requests. One list is the quickest to add to.
        self._now: list[float] = [0, 0, 0.0, 0]
        first = Sample(now_s, 0, 0, 0.0, 0)
        self._minutes = deque([first], maxlen=samples)
        self._hours = deque([first], maxlen=_HOUR_SAMPLES)
        self._days = deque([first], maxlen=_DAY_SAMPLES)

    def add(self, count: int, size_bytes: int, seconds: float = 0.0, requests: int = 1) -> None:
        """Adds one request, or several that took as long each."""
        now = self._now
        now[_MESSAGES] += count
        now[_BYTES] += size_bytes
        now[_SECONDS] += seconds * requests
        now[_TIMES] += requests

    @property
    def messages(self) -> Meter:
        """Messages."""
        return Meter(self, _MESSAGES)

    @property
    def bytes(self) -> Meter:
        """Bytes."""
        return Meter(self, _BYTES)

    @property
    def seconds(self) -> Meter:
        """Seconds that requests took."""
        return Meter(self, _SECONDS)

    @property
    def is_idle(self) -> bool:
        """Whether nothing has come for a day."""
        return len(self._days) == _DAY_SAMPLES and self._days[0].times == self._now[_TIMES]

    def total(self, field: int) -> float:
        """Returns one of the totals."""
        return self._now[field]

    def sample(self, now_s: float, number: int) -> None:
        """Takes note of the totals; `number` counts the samples of all flows."""
        messages, size, seconds, times = self._now
        sample = Sample(now_s, int(messages), int(size), seconds, int(times))
        self._minutes.append(sample)
        if number % _HOUR_EVERY == 0:
            self._hours.append(sample)
        if number % _DAY_EVERY == 0:
            self._days.append(sample)

    def oldest_of_hour(self) -> Sample:
        """Returns the totals of about an hour ago."""
        return self._hours[0]

    def oldest_of_day(self) -> Sample:
        """Returns the totals of about a day ago."""
        return self._days[0]

    def before(self, at_s: float) -> Sample:
        """Returns the newest totals noted by then, or the oldest that are known."""
        for sample in reversed(self._minutes):
            if sample.at_s <= at_s:
                return sample
        return self._minutes[0]


class Meter:
    """One of a flow's totals, with its recent past."""

    __slots__ = ("_field", "_flow")

    def __init__(self, flow: Flow, field: int) -> None:
        self._flow = flow
        self._field = field

    @property
    def amount(self) -> float:
        """The total."""
        return self._flow.total(self._field)

    @property
    def times(self) -> int:
        """Requests."""
        return int(self._flow.total(_TIMES))

    def minute(self, now_s: float) -> Rate:
        """Returns the last minute's rate."""
        return self.last(now_s, 60)

    def hour(self, now_s: float) -> Rate:
        """Returns the last hour's rate."""
        return self._since(self._flow.oldest_of_hour(), now_s)

    def day(self, now_s: float) -> Rate:
        """Returns the last day's rate."""
        return self._since(self._flow.oldest_of_day(), now_s)

    def last(self, now_s: float, window_s: float) -> Rate:
        """Returns the rate of about the last so many seconds."""
        return self._since(self._flow.before(now_s - window_s), now_s)

    def _since(self, begin: Sample, now_s: float) -> Rate:
        amount = self.amount - begin[1 + self._field]
        times = self.times - begin.times
        # Of a shorter time a rate would say nothing.
        seconds = max(_WINDOW_MIN_S, now_s - begin.at_s)
        return Rate(amount, amount / seconds, amount / times if times else 0.0)


@dataclass(slots=True)
class DayTotals:
    """Messages since the start as they stood when days began."""

    yesterday_morning: int = 0
    today_morning: int = 0


class Statistics:
    """What one replica has taken in and handed out."""

    def __init__(self, now_s: float, now_ms: int, *, keys_max: int = KEYS_MAX) -> None:
        self._sampled_s = now_s
        self._number = 0
        self._day = now_ms // _DAY_MS
        self._keys_max = keys_max
        self.put = Flow(now_s, _TOTAL_SAMPLES)
        self.got = Flow(now_s, _TOTAL_SAMPLES)
        self.missed = Flow(now_s, _TOTAL_SAMPLES)
        self.put_times = Times()
        self.put_days = DayTotals()
        self.got_days = DayTotals()
        self.untracked = 0  # requests of topics and groups beyond `keys_max`
        self._topics: dict[str, Flow] = {}
        self._groups: dict[tuple[str, str], Flow] = {}
        self._returns: dict[tuple[str, str], Flow] = {}
        self._places: dict[tuple[str, int, int], int] = {}

    # --- the hot path -----------------------------------------------------------------------

    def stored(
        self, topic: str, count: int, size_bytes: int, seconds: float, requests: int = 1
    ) -> None:
        """Notes sends that were answered with success.

        Args:
            topic: Where to.
            count: Messages in all.
            size_bytes: Of all.
            seconds: How long each request took.
            requests: How many there were.
        """
        self.put.add(count, size_bytes, seconds, requests)
        self.put_times.add(seconds, requests)
        flow = self._topics.get(topic) or self._admit(self._topics, topic)
        if flow is not None:
            flow.add(count, size_bytes, seconds, requests)

    def fetched(self, group: str, topic: str, count: int, size_bytes: int) -> None:
        """Notes a pull that found messages."""
        self.got.add(count, size_bytes)
        key = (group, topic)
        flow = self._groups.get(key) or self._admit(self._groups, key)
        if flow is not None:
            flow.add(count, size_bytes)

    def read_to(self, group: str, topic_id: int, queue_id: int, offset: int) -> None:
        """Notes how far a group has been given a queue, whether or not it has consumed that."""
        places, place = self._places, (group, topic_id, queue_id)
        if place in places or len(places) < PLACES_MAX:
            places[place] = offset

    def found_nothing(self) -> None:
        """Notes a pull that was answered without a message."""
        self.missed.add(1, 0)

    def returned(self, group: str, topic: str) -> None:
        """Notes a message that a consumer could not process."""
        key = (group, topic)
        flow = self._returns.get(key) or self._admit(self._returns, key)
        if flow is not None:
            flow.add(1, 0)

    # --- looking ----------------------------------------------------------------------------

    def topic(self, name: str) -> Flow | None:
        """Returns what was stored in a topic."""
        return self._topics.get(name)

    def group(self, name: str, topic: str) -> Flow | None:
        """Returns what a group took from a topic."""
        return self._groups.get((name, topic))

    def returns(self, name: str, topic: str) -> Flow | None:
        """Returns what a group handed back of a topic."""
        return self._returns.get((name, topic))

    def place(self, group: str, topic_id: int, queue_id: int) -> int | None:
        """Returns how far a group was given a queue by this replica, None if it was not."""
        return self._places.get((group, topic_id, queue_id))

    def topics(self) -> Iterator[tuple[str, Flow]]:
        """Yields all topics."""
        yield from sorted(self._topics.items())

    def groups(self) -> Iterator[tuple[tuple[str, str], Flow]]:
        """Yields all (group, topic)."""
        yield from sorted(self._groups.items())

    def returned_flows(self) -> Iterator[tuple[tuple[str, str], Flow]]:
        """Yields all (group, topic) of which messages were handed back."""
        yield from sorted(self._returns.items())

    # --- time -------------------------------------------------------------------------------

    def sample(self, now_s: float, now_ms: int) -> None:
        """Takes note of all totals; to be called every `SAMPLE_S`."""
        self._number += 1
        for flow in (self.put, self.got, self.missed):
            flow.sample(now_s, self._number)
        self._sample_all(self._topics, now_s)
        self._sample_all(self._groups, now_s)
        self._sample_all(self._returns, now_s)
        self._sampled_s = now_s
        day = now_ms // _DAY_MS
        if day != self._day:
            self._day = day
            for days, flow in ((self.put_days, self.put), (self.got_days, self.got)):
                days.yesterday_morning = days.today_morning
                days.today_morning = int(flow.messages.amount)

    def _sample_all(self, flows: dict[Key, Flow], now_s: float) -> None:
        for flow in flows.values():
            flow.sample(now_s, self._number)
        for key in [key for key, flow in flows.items() if flow.is_idle]:
            del flows[key]

    def _admit(self, flows: dict[Key, Flow], key: Key) -> Flow | None:
        if len(flows) >= self._keys_max:
            self.untracked += 1
            return None
        # As if there had been nothing at the last sample: the first rate is then one of a while.
        flow = flows[key] = Flow(self._sampled_s)
        return flow
