"""Do the fast checkers agree with a brute-force search?

Run as `python -m jepsen_tests.checkers.agreement`. Random short histories, legal and spoiled, are
judged twice: by the rules and by a Wing-Gong search over a model. Long histories of a correct log
must never be found guilty.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Hashable, Iterable, Sequence
from random import Random
from typing import Any

from jepsen_tests.checkers.log_rules import judge_log
from jepsen_tests.checkers.log_store import ALWAYS, NEVER, LogHistory
from jepsen_tests.checkers.max_register import MaxRegister
from jepsen_tests.checkers.random_logs import CorrectLog, Shape, mutate
from jepsen_tests.checkers.search import Operation, precedence, search
from jepsen_tests.checkers.verdict import Violation
from jepsen_tests.history import AnyRecord, Append, BatchAppend, Commit, Fetch, Meta, Read


class LogModel:
    """A log with idempotent producers, one operation at a time."""

    initial: Hashable = ((), ())

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        log, keys = state
        if operation.f == "read":
            if self._shows(log, operation.result):
                yield state
            return
        values, key = operation.args
        known = dict(keys)
        if key and key in known:
            if operation.optional or operation.result == known[key]:
                yield state
        elif operation.optional or operation.result == len(log):
            if key:
                known[key] = len(log)
            yield ((*log, *values), tuple(sorted(known.items())))

    def _shows(self, log: tuple[int, ...], read: Read) -> bool:
        if read.end is not None and read.end != len(log):
            return False
        values = tuple(read.values)
        if log[read.start : read.start + len(values)] != values:
            return False
        if read.max > 0 and read.whole:
            return log[read.start : read.start + read.max] == values
        return bool(values) or read.max == 0 or len(log) <= read.start


class MaxModel:
    """A register that keeps the largest value."""

    initial: Hashable = 0

    def step(self, state: Any, operation: Operation) -> Iterable[Hashable]:
        """See `search.Model`."""
        if operation.f == "commit":
            yield max(state, operation.args[0])
        elif operation.result == state:
            yield state


def fast_verdict(history: Sequence[AnyRecord], meta: Meta | None = None) -> list[Violation]:
    """Judges the log operations of a history by the rules."""
    gathered = LogHistory()
    gathered.meta = meta or Meta()
    for number, record in enumerate(history):
        if isinstance(record, Append):
            gathered.add_append(number, record)
        elif isinstance(record, BatchAppend):
            gathered.add_batch(number, record)
        elif isinstance(record, Read):
            gathered.add_read(number, record)
    return judge_log(gathered)


def slow_verdict(history: Sequence[AnyRecord], meta: Meta | None = None) -> bool | None:
    """Judges the log operations of one queue by brute force; None if that takes too long."""
    operations: list[Operation] = []
    records: list[Append | BatchAppend | Read] = []
    for number, record in enumerate(history):
        if not isinstance(record, Append | BatchAppend | Read) or record.status == "fail":
            continue
        info = record.status == "info"
        if isinstance(record, Read):
            if info:
                continue
            inv = ALWAYS if record.eventual else record.inv
            operations.append(Operation(inv, record.ret, "read", (), record, False, number))
        else:
            values = record.values if isinstance(record, BatchAppend) else [record.value]
            key = record.key if isinstance(record, Append) else ""
            ret = NEVER if info else record.ret
            args = (tuple(values), key)
            operations.append(
                Operation(record.inv, ret, "append", args, record.offset, info, number)
            )
        records.append(record)
    before = precedence(operations)
    for late, read in enumerate(records):
        if isinstance(read, Read) and read.eventual:
            before[late] |= _session_before(records, late, read, meta)
    return search(operations, LogModel(), before=before).legal


def _session_before(
    records: Sequence[Append | BatchAppend | Read], late: int, read: Read, meta: Meta | None
) -> int:
    """Returns what a session promises: earlier eventual reads, and own writes if promised."""
    bits = 0
    for early, record in enumerate(records):
        if early == late or record.process != read.process:
            continue
        if isinstance(record, Read):
            if record.eventual and (record.inv, early) < (read.inv, late):
                bits |= 1 << early
        elif meta and meta.read_your_writes and record.status == "ok" and record.ret < read.inv:
            bits |= 1 << early
    return bits


def random_shape(random: Random) -> Shape:
    """Returns the shape of a short history."""
    return Shape(
        operations=random.randrange(3, 13),
        processes=random.randrange(2, 6),
        info_share=random.choice((0.0, 0.2, 0.5)),
        fail_share=random.choice((0.0, 0.1)),
        batches=random.random() < 0.3,
        keys=random.choice((0, 0, 2)),
        eventual=random.random() < 0.3,
        ties=random.random() < 0.3,
    )


def compare_logs(seed: int) -> tuple[bool, bool]:
    """Judges one random history both ways; returns (agreed, legal)."""
    random = Random(seed)
    shape = random_shape(random)
    history = CorrectLog(random, shape).run()
    meta = Meta()
    for _ in range(random.choice((0, 1, 1, 2))):
        mutate(random, history)
    legal = slow_verdict(history, meta)
    if legal is None:
        return True, True
    return legal == (not fast_verdict(history, meta)), legal


def compare_registers(seed: int) -> tuple[bool, bool]:
    """Judges one random history of commits and fetches both ways; returns (agreed, legal)."""
    random = Random(seed)
    history = random_commits(random)
    register = MaxRegister("g")
    operations: list[Operation] = []
    for number, op in enumerate(history):
        info = op.status == "info"
        if isinstance(op, Commit):
            register.add_commit(number, op)
            if op.status != "fail":
                ret = NEVER if info else op.ret
                operations.append(Operation(op.inv, ret, "commit", (op.offset,), None, info))
        else:
            register.add_fetch(number, op)
            if op.status == "ok":
                result = op.offset or 0
                operations.append(Operation(op.inv, op.ret, "fetch", (), result, False))
    legal = search(operations, MaxModel()).legal
    return legal == (not register.judge()), bool(legal)


def random_commits(random: Random) -> list[Commit | Fetch]:
    """Returns a random history of one max-register, nearly legal or not."""
    history: list[Commit | Fetch] = []
    for process in range(random.randrange(2, 9)):
        inv = random.randrange(40)
        ret = inv + random.randrange(1, 20)
        status = random.choice(("ok", "ok", "ok", "info", "fail"))
        if random.random() < 0.5:
            value = random.choice((inv // 8, random.randrange(5)))
            history.append(
                Commit(
                    process=process,
                    group="g",
                    queue="q",
                    offset=value,
                    inv=inv,
                    ret=ret,
                    status=status,  # type: ignore[arg-type]
                )
            )
        else:
            seen = random.choice((None, inv // 8, ret // 8, random.randrange(5)))
            history.append(
                Fetch(
                    process=process,
                    group="g",
                    queue="q",
                    inv=inv,
                    ret=ret,
                    status="ok",
                    offset=seen,
                )
            )
    return history


def false_alarm(seed: int, operations: int = 200) -> list[Violation]:
    """Judges a long history of a correct log with heavy concurrency; must find nothing."""
    random = Random(seed)
    shape = Shape(
        operations=operations,
        processes=random.choice((4, 16, 32)),
        info_share=random.choice((0.05, 0.3, 0.6)),
        fail_share=random.choice((0.0, 0.1)),
        batches=random.random() < 0.5,
        keys=random.choice((0, 0, 20)),
        eventual=random.random() < 0.5,
        sums=random.random() < 0.3,
        ties=random.random() < 0.3,
        read_max=random.choice((4, 32)),
    )
    return fast_verdict(CorrectLog(random, shape).run())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparisons; returns 1 at the first disagreement, whose seed it prints."""
    parser = argparse.ArgumentParser(description="compares the checkers with brute force")
    parser.add_argument("--short", type=int, default=100_000, help="short log histories")
    parser.add_argument("--registers", type=int, default=100_000, help="max-register histories")
    parser.add_argument("--long", type=int, default=10_000, help="long legal histories")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    asked = parser.parse_args(arguments)
    for name, count, compare in (
        ("log", asked.short, compare_logs),
        ("max-register", asked.registers, compare_registers),
    ):
        began, legal = time.monotonic(), 0
        for seed in range(asked.first, asked.first + count):
            agreed, was_legal = compare(seed)
            legal += was_legal
            if not agreed:
                sys.stdout.write(f"{name}: seed {seed}: verdicts differ\n")
                return 1
        spent = time.monotonic() - began
        sys.stdout.write(
            f"{name}: {count:,} histories, {count - legal:,} illegal, all agreed, {spent:.0f} s\n"
        )
    began = time.monotonic()
    for seed in range(asked.first, asked.first + asked.long):
        alarms = false_alarm(seed)
        if alarms:
            sys.stdout.write(f"false alarm: seed {seed}: {alarms[0]}\n")
            return 1
    spent = time.monotonic() - began
    sys.stdout.write(f"correct log: {asked.long:,} histories, no false alarm, {spent:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
