"""What a history says about messages and consumers, gathered for the rules D1-D10."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from jepsen_tests.checkers.verdict import Violation
from jepsen_tests.history import (
    Append,
    Assign,
    BatchAppend,
    CheckBack,
    Commit,
    Dead,
    Deliver,
    Done,
    Fault,
    Group,
    Half,
    Meta,
    Recall,
    Resolve,
    Revoke,
    Send,
    Status,
    Value,
    topic_of,
)

NEVER = (1 << 63) - 1


@dataclass(slots=True)
class Message:
    """One attempt, as its producer knows it."""

    number: int
    value: Value
    topic: str
    queue: str  # "" if the producer was not told
    inv: int
    ret: int
    status: Status
    tag: str = ""
    shard: str = ""
    key: str = ""
    delay_ms: int = 0
    half: bool = False


class Delivery(NamedTuple):
    """One delivery; sorts by time, then by place in the history."""

    t: int
    number: int
    consumer: str
    queue: str
    offset: int
    value: Value
    attempt: int


class Ending(NamedTuple):
    """What the application did with a delivery."""

    t: int
    number: int
    consumer: str
    queue: str
    offset: int
    value: Value
    result: str


class Ownership(NamedTuple):
    """A consumer began (`begins`) or stopped to own a queue."""

    t: int
    number: int
    consumer: str
    queue: str
    begins: bool
    token: int | None


class OffsetCommit(NamedTuple):
    """A commit of a group on one queue, failed ones left out."""

    inv: int
    number: int
    ret: int
    consumer: str
    offset: int
    status: Status
    token: int | None


@dataclass(slots=True)
class GroupEvents:
    """Everything one group did; a consumer of a broadcast group counts as a group."""

    name: str
    info: Group
    deliveries: list[Delivery] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    ownership: list[Ownership] = field(default_factory=list)
    commits: dict[str, list[OffsetCommit]] = field(default_factory=lambda: defaultdict(list))
    dead: dict[Value, int] = field(default_factory=dict)  # value -> record

    def sort(self) -> None:
        """Puts all events in the order of time."""
        self.deliveries.sort()
        self.endings.sort()
        self.ownership.sort()
        for commits in self.commits.values():
            commits.sort()


@dataclass(slots=True)
class Findings:
    """Collects violations, a few of each rule, kind and subject."""

    found: list[Violation] = field(default_factory=list)
    per_kind_max: int = 3
    more: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def add(self, rule: str, kind: str, subject: str, text: str, *witnesses: int) -> None:
        """Adds a violation; beyond the limit it is only counted."""
        place = (rule, kind, subject)
        self.more[place] = self.more.get(place, 0) + 1
        if self.more[place] <= self.per_kind_max:
            known = tuple(number for number in witnesses if number >= 0)
            self.found.append(Violation(rule, kind, subject, text, known))


class ConsumerHistory:
    """Gathers messages and events; `consumers`, `ownership` and `transactions` judge them."""

    def __init__(self) -> None:
        self.meta = Meta()
        self.messages: dict[Value, Message] = {}
        self.groups: dict[str, GroupEvents] = {}
        self.resolves: dict[Value, list[tuple[int, Resolve]]] = defaultdict(list)
        self.recalls: dict[Value, list[tuple[int, Recall]]] = defaultdict(list)
        self.check_backs: list[tuple[int, CheckBack]] = []
        self.faults: list[Fault] = []
        self.log_values: dict[str, list[Value | None]] = {}  # what each queue holds, by offset
        self.first_offsets: dict[tuple[str, str], int] = {}  # (group, queue) -> of its first assign
        self._broadcast: dict[str, Group] = {}

    # --- messages ---

    def add_message(self, number: int, op: Append | BatchAppend | Send | Half) -> None:
        """Adds the messages of one operation of a producer."""
        values = op.values if isinstance(op, BatchAppend) else [op.value]
        queue = op.queue if isinstance(op, Append | BatchAppend) else ""
        topic = op.topic if isinstance(op, Send | Half) else topic_of(op.queue)
        for value in values:
            self.messages[value] = Message(
                number=number,
                value=value,
                topic=topic,
                queue=queue,
                inv=op.inv,
                ret=op.ret,
                status=op.status,
                tag=op.tag,
                shard="" if isinstance(op, Half) else op.shard,
                key=op.key if isinstance(op, Append | Send) else "",
                delay_ms=op.delay_ms if isinstance(op, Send) else 0,
                half=isinstance(op, Half),
            )

    # --- groups ---

    def add_group(self, op: Group) -> None:
        """Adds or replaces what a group is promised."""
        if op.broadcast:
            self._broadcast[op.group] = op
            for consumer in op.consumers:
                self._events(f"{op.group}/{consumer}", op).info = op
        else:
            self._events(op.group, op).info = op

    def _events(self, name: str, info: Group) -> GroupEvents:
        found = self.groups.get(name)
        if found is None:
            found = self.groups[name] = GroupEvents(name, info)
        return found

    def events_of(self, group: str, consumer: str) -> GroupEvents:
        """Returns where an event of a group belongs; an undeclared group gets no promises."""
        if group in self._broadcast:
            return self._events(f"{group}/{consumer}", self._broadcast[group])
        found = self.groups.get(group)
        return found if found is not None else self._events(group, Group(group=group, topics=[]))

    def add_delivery(self, number: int, op: Deliver) -> None:
        """Adds a delivery."""
        delivery = Delivery(op.t, number, op.consumer, op.queue, op.offset, op.value, op.attempt)
        self.events_of(op.group, op.consumer).deliveries.append(delivery)

    def add_ending(self, number: int, op: Done) -> None:
        """Adds what the application did with a message."""
        ending = Ending(op.t, number, op.consumer, op.queue, op.offset, op.value, op.result)
        self.events_of(op.group, op.consumer).endings.append(ending)

    def add_ownership(self, number: int, op: Assign | Revoke) -> None:
        """Adds the begin or end of owning a queue."""
        begins = isinstance(op, Assign)
        token = op.token if isinstance(op, Assign) else None
        owner = Ownership(op.t, number, op.consumer, op.queue, begins, token)
        events = self.events_of(op.group, op.consumer)
        events.ownership.append(owner)
        if isinstance(op, Assign) and op.offset is not None:
            self.first_offsets.setdefault((events.name, op.queue), op.offset)

    def add_dead(self, number: int, op: Dead) -> None:
        """Adds a message of a dead-letter queue."""
        self.events_of(op.group, "").dead.setdefault(op.value, number)

    def add_commit(self, number: int, op: Commit) -> None:
        """Adds a commit of an offset; one that certainly failed did nothing."""
        if op.status == "fail":
            return
        commit = OffsetCommit(op.inv, number, op.ret, op.consumer, op.offset, op.status, op.token)
        self.events_of(op.group, op.consumer).commits[op.queue].append(commit)

    def add_resolve(self, number: int, op: Resolve) -> None:
        """Adds the end of a transaction."""
        self.resolves[op.value].append((number, op))

    def add_recall(self, number: int, op: Recall) -> None:
        """Adds the recall of a delayed message; one that certainly failed did nothing."""
        if op.status != "fail":
            self.recalls[op.value].append((number, op))

    # --- what the rules ask ---

    def wants(self, info: Group, message: Message) -> bool:
        """Returns whether a group subscribes to a message."""
        return message.topic in info.topics and (not info.tags or message.tag in info.tags)

    def committed_half(self, value: Value) -> bool | None:
        """Returns whether a half message was certainly committed; None if nobody knows."""
        outcomes = self.resolves.get(value, ())
        if any(op.status == "ok" and op.decision == "commit" for _, op in outcomes):
            return True
        if any(op.status == "ok" and op.decision == "rollback" for _, op in outcomes):
            return False
        return None if any(op.status == "info" for _, op in outcomes) else False

    def fault_between(self, begin: int, end: int, target: str = "") -> bool:
        """Returns whether a fault (on `target`, if given) overlapped a time."""
        return any(
            fault.inv <= end
            and (fault.ret is None or fault.ret >= begin)
            and (not target or target in fault.targets)
            for fault in self.faults
        )
