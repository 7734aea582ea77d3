"""No false alarm: simulated consumer groups that do everything right, with everything going on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from jepsen_tests.checkers import judge_records
from jepsen_tests.history import (
    AnyRecord,
    Append,
    Assign,
    Commit,
    Dead,
    Deliver,
    Done,
    Fault,
    Fetch,
    Group,
    Meta,
    Read,
    Revoke,
)

QUEUE = "t@b/0"
RETRY = "%RETRY%g@b/0"


@dataclass
class CorrectGroup:
    """One group on one queue: its owner changes, is killed, retries and commits."""

    random: Random
    ordered: bool
    tags: list[str]
    attempts_max: int = 3
    count: int = 25
    now: int = 0
    committed: int = 0
    history: list[AnyRecord] = field(default_factory=list)
    log: list[Append] = field(default_factory=list)
    retries: list[tuple[Append, int, int]] = field(default_factory=list)
    copies: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    consumer: int = 0
    faults: int = 0

    def tick(self) -> int:
        self.now += self.random.randrange(1, 4)
        return self.now

    def info(self, drained: bool | None) -> Group:
        return Group(
            group="g",
            topics=["t"],
            tags=self.tags,
            ordered=self.ordered,
            max_attempts=self.attempts_max,
            drained=drained,
        )

    def run(self) -> list[AnyRecord]:
        self.history.append(Meta(final_read_required=False))
        self.history.append(self.info(None))
        for value in range(self.count):
            if self.random.random() < 0.1:  # indeterminate, and without an effect
                ghost = Append(
                    process=0,
                    queue=QUEUE,
                    value=900 + value,
                    inv=self.tick(),
                    ret=self.tick(),
                    status="info",
                )
                self.history.append(ghost)
            message = Append(
                process=0,
                queue=QUEUE,
                value=value,
                inv=self.tick(),
                ret=self.tick(),
                status="ok",
                offset=len(self.log),
                tag=self.random.choice("ab"),
                shard=f"s{value % 3}",
            )
            self.log.append(message)
            self.history.append(message)
        while self.committed < len(self.log) or self.retries:
            self.own()
        self.history.append(self.info(True))
        return self.history

    def own(self) -> None:
        """One consumer owns the queue for a while."""
        self.consumer += 1
        me = f"c{self.consumer}"
        inv = self.tick()
        self.history.append(
            Fetch(
                process=self.consumer,
                group="g",
                queue=QUEUE,
                inv=inv,
                ret=self.tick(),
                status="ok",
                offset=self.committed or None,
            )
        )
        self.history.append(
            Assign(group="g", consumer=me, queue=QUEUE, t=self.tick(), offset=self.committed)
        )
        begin = self.now
        position = self.committed
        stop = self.random.randrange(3, 15)
        while stop and (position < len(self.log) or self.retries):
            stop -= 1
            if self.retries and self.random.random() < 0.5:
                message, number, offset = self.retries.pop(0)
                self.process(me, message, RETRY, offset, number + 1)
            elif position < len(self.log):
                position = self.from_queue(me, position)
                if self.random.random() < 0.4:
                    self.commit(me, position)
        killed = self.random.random() < 0.3
        if killed:
            self.faults += 1
            fault = Fault(
                id=self.faults,
                name="F4",
                inv=begin,
                ret=self.tick(),
                targets=[me],
                bit=True,
                proof={"pid": 1},
            )
            self.history.append(fault)
        elif position > self.committed:
            self.commit(me, position)
        self.history.append(
            Revoke(
                group="g",
                consumer=me,
                queue=QUEUE,
                t=self.tick(),
                reason="killed" if killed else "",
            )
        )

    def from_queue(self, me: str, position: int) -> int:
        """Processes one message, or a few at once if the group is not ordered."""
        together = 1 if self.ordered else self.random.randrange(1, 4)
        batch = self.log[position : position + together]
        wanted = [message for message in batch if not self.tags or message.tag in self.tags]
        self.random.shuffle(wanted)
        for message in wanted:
            self.process(
                me, message, QUEUE, message.offset or 0, self.attempts.get(message.value, 0) + 1
            )
        return position + len(batch)

    def process(self, me: str, message: Append, queue: str, offset: int, attempt: int) -> None:
        while True:
            self.deliver(me, message, queue, offset, attempt)
            failed = self.random.random() < 0.2 and attempt < 50
            if not failed:
                self.done(me, message, queue, offset, "ok")
                return
            self.done(me, message, queue, offset, "retry")
            if attempt >= self.attempts_max:
                self.history.append(Dead(group="g", value=message.value, t=self.tick()))
                return
            attempt += 1
            if not self.ordered:
                self.retries.append((message, attempt - 1, self.copies))
                self.copies += 1
                return

    def deliver(self, me: str, message: Append, queue: str, offset: int, attempt: int) -> None:
        self.history.append(
            Deliver(
                group="g",
                consumer=me,
                queue=queue,
                offset=offset,
                value=message.value,
                t=self.tick(),
                attempt=attempt,
            )
        )

    def done(self, me: str, message: Append, queue: str, offset: int, result: str) -> None:
        self.history.append(
            Done(
                group="g",
                consumer=me,
                queue=queue,
                offset=offset,
                value=message.value,
                t=self.tick(),
                result=result,
            )
        )

    def commit(self, me: str, offset: int) -> None:
        status = self.random.choice(("ok", "ok", "info", "fail"))
        if status == "ok" or (status == "info" and self.random.random() < 0.5):
            self.committed = max(self.committed, offset)
        self.history.append(
            Commit(
                process=self.consumer,
                group="g",
                queue=QUEUE,
                offset=offset,
                inv=self.tick(),
                ret=self.tick(),
                status=status,
                consumer=me,
            )
        )


def test_no_false_alarm_on_correct_consumer_groups() -> None:
    redelivered = 0
    for seed in range(600):
        random = Random(seed)
        simulated = CorrectGroup(
            random, ordered=random.random() < 0.5, tags=random.choice(([], ["a"]))
        )
        verdict = judge_records(simulated.run())
        assert (verdict.violations, verdict.reasons) == ([], []), seed
        redelivered += int(verdict.counts["duplicates"])
    assert redelivered > 1000


def two_owners(random: Random) -> tuple[list[AnyRecord], bool]:
    """Returns a queue with two owners for a while, and whether that is longer than it may be."""
    ms = 1_000_000
    overlap_ms = random.choice((0, 40, 4_999, 5_001, 60_000))
    first_end = 1_000 + overlap_ms
    early, late = random.sample(("a", "b"), 2)
    records: list[AnyRecord] = [
        Meta(final_read_required=False),
        Group(group="g", topics=["t"]),
        Append(process=0, queue=QUEUE, value=1, inv=0, ret=1, status="ok", offset=0),
        Assign(group="g", consumer=early, queue=QUEUE, t=100 * ms),
        Assign(group="g", consumer=late, queue=QUEUE, t=1_000 * ms),
        # Both within the overlap, so that no change of owners lies between.
        *[
            event
            for consumer, t in ((early, 1_000), (late, 1_000 + overlap_ms))
            for event in (
                Deliver(
                    group="g", consumer=consumer, queue=QUEUE, offset=0, value=1, t=t * ms + 1000
                ),
                Done(group="g", consumer=consumer, queue=QUEUE, offset=0, value=1, t=t * ms + 2000),
            )
        ],
        Revoke(group="g", consumer=early, queue=QUEUE, t=first_end * ms + 9000),
        Revoke(group="g", consumer=late, queue=QUEUE, t=(first_end + 5) * ms),
    ]
    has_fault = random.random() < 0.3
    if has_fault:
        inv = random.randrange(1_000 * ms, first_end * ms + 1)
        records.append(Fault(id=1, name="F1", inv=inv, ret=inv, bit=True, proof={"dropped": 1}))
    return records, overlap_ms > 4_999 and not has_fault


def test_two_owners_are_a_cause_for_as_long_as_a_rebalance_only() -> None:
    found = Counter[bool]()
    for seed in range(300):
        records, guilty = two_owners(Random(seed))
        broken = {violation.rule for violation in judge_records(records).violations}
        assert broken == ({"D7"} if guilty else set()), seed
        found[guilty] += 1
    assert min(found[True], found[False]) > 30


def test_a_final_read_is_owed_by_the_replicas_of_the_queues_own_group_and_by_all_of_them() -> None:
    lacking = Counter[bool]()
    for seed in range(300):
        random = Random(seed)
        groups = [f"broker-{letter}" for letter in "abc"[: random.randrange(1, 4)]]
        nodes = [f"{group}-{number}" for group in groups for number in range(3)]
        used = random.sample(groups, random.randrange(1, len(groups) + 1))
        skipped = random.choice([None, *nodes])
        records: list[AnyRecord] = [Meta(nodes=nodes)]
        for value, group in enumerate(used):
            queue = f"t@{group}/0"
            records.append(
                Append(process=0, queue=queue, value=value, inv=0, ret=1, status="ok", offset=0)
            )
            records += [
                Read(
                    process=9,
                    queue=queue,
                    inv=10,
                    ret=11,
                    status="ok",
                    max=9,
                    values=[value],
                    end=1,
                    final=True,
                    node=node,
                )
                for node in nodes
                if node.startswith(group) and node != skipped
            ]
        owed = skipped is not None and skipped.rpartition("-")[0] in used
        codes = {reason.code for reason in judge_records(records).reasons}
        assert codes == ({"no-final-read"} if owed else set()), seed
        lacking[owed] += 1
    assert min(lacking[True], lacking[False]) > 30
