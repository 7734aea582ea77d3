"""Random histories of a simulated correct log, and ways to spoil them: to test the checkers."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import msgspec

from jepsen_tests.history import AnyRecord, Append, BatchAppend, Read, range_hash

_Operation = Append | BatchAppend | Read


@dataclass(slots=True)
class Shape:
    """What a random history looks like."""

    operations: int = 8
    processes: int = 3
    info_share: float = 0.2
    fail_share: float = 0.05
    read_share: float = 0.5
    batches: bool = False
    keys: int = 0  # idempotent producers draw from so many keys
    eventual: bool = False
    sums: bool = False
    ties: bool = False  # several events at one instant
    read_max: int = 4
    queue: str = "t@b/0"


@dataclass(slots=True)
class _Pending:
    """An operation under way."""

    operation: _Operation
    effective: bool = False
    ended: bool = False  # answered or given up
    doomed: bool = False  # will never take effect


@dataclass(slots=True)
class CorrectLog:
    """A log that does what it should, under operations that overlap in every way."""

    random: Random
    shape: Shape
    log: list[int] = field(default_factory=list)
    key_offsets: dict[str, int] = field(default_factory=dict)
    history: list[AnyRecord] = field(default_factory=list)
    _lengths: list[int] = field(default_factory=lambda: [0])
    _now: int = 0
    _value: int = 0
    _next_process: int = 0
    _sessions: dict[int, int] = field(default_factory=dict)
    _pending: list[_Pending] = field(default_factory=list)
    _idle: list[int] = field(default_factory=list)

    def run(self) -> list[AnyRecord]:
        """Returns a history of the shape; it is legal."""
        self._next_process = self.shape.processes
        self._idle = list(range(self.shape.processes))
        started = 0
        while started < self.shape.operations or any(not p.ended for p in self._pending):
            self._now += self.random.randrange(2) if self.shape.ties else 1
            choice = self.random.random()
            if choice < 0.4 and self._idle and started < self.shape.operations:
                self._start()
                started += 1
            elif self._pending:
                pending = self.random.choice(self._pending)
                if not pending.effective and not pending.doomed:
                    self._take_effect(pending)
                elif not pending.ended:
                    self._end(pending)
                else:
                    self._pending.remove(pending)
            if self.random.random() < self.shape.info_share * 0.2:
                self._give_up()
        return self.history

    def _start(self) -> None:
        random, shape = self.random, self.shape
        process = self._idle.pop(random.randrange(len(self._idle)))
        operation: _Operation
        if random.random() < shape.read_share:
            operation = self._read(process)
        elif shape.batches and random.random() < 0.4:
            values = [self._new_value() for _ in range(random.randrange(1, 4))]
            operation = BatchAppend(
                process=process,
                queue=shape.queue,
                values=list(values),
                inv=self._now,
                ret=0,
                status="ok",
            )
        else:
            key = f"k{random.randrange(shape.keys)}" if shape.keys else ""
            operation = Append(
                process=process,
                queue=shape.queue,
                value=self._new_value(),
                inv=self._now,
                ret=0,
                status="ok",
                key=key,
            )
        doomed = not isinstance(operation, Read) and random.random() < shape.fail_share
        self._pending.append(_Pending(operation, doomed=doomed))

    def _read(self, process: int) -> Read:
        random = self.random
        length_only = random.random() < 0.15
        start = random.randrange(len(self.log) + 2)
        return Read(
            process=process,
            queue=self.shape.queue,
            inv=self._now,
            ret=0,
            status="ok",
            start=0 if length_only else start,
            max=0 if length_only else random.randrange(1, self.shape.read_max + 1),
            end=0 if length_only or random.random() < 0.4 else None,
            whole=random.random() < 0.5,
            eventual=self.shape.eventual and random.random() < 0.5,
            node="n1",
        )

    def _new_value(self) -> int:
        self._value += 1
        return self._value

    def _take_effect(self, pending: _Pending) -> None:
        pending.effective = True
        operation = pending.operation
        if isinstance(operation, Read):
            self._answer_read(operation)
        elif isinstance(operation, BatchAppend):
            operation.offset = len(self.log)
            self.log += [int(value) for value in operation.values]
        elif operation.key and operation.key in self.key_offsets:
            operation.offset = self.key_offsets[operation.key]
        else:
            operation.offset = len(self.log)
            self.log.append(int(operation.value))
            if operation.key:
                self.key_offsets[operation.key] = operation.offset
        if self._lengths[-1] != len(self.log):
            self._lengths.append(len(self.log))

    def _answer_read(self, read: Read) -> None:
        length = len(self.log)
        if read.eventual:
            least = self._sessions.get(read.process, 0)
            # A follower has whole batches or nothing of them.
            length = self.random.choice([at for at in self._lengths if at >= least])
            self._sessions[read.process] = length
        if read.end is not None:
            read.end = length
        got = self.log[read.start : min(length, read.start + read.max)]
        if got and not read.whole:
            got = got[: self.random.randrange(1, len(got) + 1)]
        if self.shape.sums and got and self.random.random() < 0.5:
            read.count, read.sum = len(got), range_hash(read.start, got)
        else:
            read.values = list(got)

    def _end(self, pending: _Pending) -> None:
        """Answers, or lets the client give up."""
        operation = pending.operation
        pending.ended = True
        operation.ret = self._now
        info = self.random.random() < self.shape.info_share
        if pending.doomed and not info:
            operation.status = "fail"
        elif info:
            self._forget(operation)
        else:
            self._idle.append(operation.process)
            self.history.append(operation)
            return
        self._replace_process()
        self.history.append(operation)

    def _give_up(self) -> None:
        """A client times out before anything happened; the append may still come later."""
        waiting = [p for p in self._pending if not p.ended and not p.effective]
        if not waiting:
            return
        pending = self.random.choice(waiting)
        pending.ended = True
        operation = pending.operation
        operation.ret = self._now
        self._forget(operation)
        self.history.append(msgspec.structs.replace(operation))
        self._replace_process()
        if isinstance(operation, Read):
            self._pending.remove(pending)

    def _forget(self, operation: _Operation) -> None:
        operation.status = "info"
        if isinstance(operation, Read):
            operation.values, operation.end = [], None
            operation.count = operation.sum = None
        else:
            operation.offset = None

    def _replace_process(self) -> None:
        self._idle.append(self._next_process)
        self._next_process += 1


def mutate(random: Random, history: list[AnyRecord]) -> None:
    """Spoils one operation in a random way; what results may still be legal."""
    reads = [op for op in history if isinstance(op, Read) and op.status == "ok"]
    appends = [op for op in history if isinstance(op, Append)]
    done = [op for op in appends if op.status == "ok"]
    kind = random.randrange(9)
    if kind == 0 and reads:
        _mutate_values(random, random.choice(reads), appends)
    elif kind == 1 and reads:
        read = random.choice(reads)
        base = read.end if read.end is not None else read.start + len(read.values)
        read.end = max(0, base + random.choice((-2, -1, 0, 1)))
    elif kind == 2 and history:
        _mutate_times(random, random.choice(history))
    elif kind == 3 and len(done) >= 2:
        one, other = random.sample(done, 2)
        one.offset, other.offset = other.offset, one.offset
    elif kind == 4 and done:
        append = random.choice(done)
        append.offset = max(0, (append.offset or 0) + random.choice((-1, 1)))
    elif kind == 5 and appends:
        append = random.choice(appends)
        append.status, append.offset = random.choice(("info", "fail")), None
    elif kind == 6 and appends:
        history.remove(random.choice(appends))
    elif kind == 7 and len(appends) >= 2:
        _swap_values(random, appends, reads)
    elif kind == 8 and reads:
        read = random.choice(reads)
        read.whole = not read.whole


def _mutate_values(random: Random, read: Read, appends: list[Append]) -> None:
    values = list(read.values)
    choice = random.randrange(4)
    if choice == 0 and values:
        values.pop(random.choice((0, -1)))
    elif choice == 1 and appends:
        values.append(random.choice(appends).value)
    elif choice == 2 and values and appends:
        values[random.randrange(len(values))] = random.choice(appends).value
    elif choice == 3 and len(values) >= 2:
        at = random.randrange(len(values) - 1)
        values[at], values[at + 1] = values[at + 1], values[at]
    if len(values) <= max(read.max, 0):
        read.values = values


def _mutate_times(random: Random, record: AnyRecord) -> None:
    if isinstance(record, Append | BatchAppend | Read):
        by = random.choice((-12, -6, -3, 3, 6, 12))
        record.inv += by
        record.ret += by


def _swap_values(random: Random, appends: list[Append], reads: list[Read]) -> None:
    """Two values change places in all reads, as if every node had them so."""
    one, other = (append.value for append in random.sample(appends, 2))
    swapped = {one: other, other: one}
    for read in reads:
        read.values = [swapped.get(value, value) for value in read.values]
