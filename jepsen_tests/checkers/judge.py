"""Judges a whole history: reads it once, hands each record to its checker, gathers the verdict."""

from __future__ import annotations

import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from jepsen_tests.checkers.consumers import RETRY_PREFIX, GroupJudge
from jepsen_tests.checkers.events import ConsumerHistory, Findings
from jepsen_tests.checkers.evidence import (
    ack_reasons,
    acks_in_faults,
    bite_reasons,
    final_read_reasons,
    lost_appends,
)
from jepsen_tests.checkers.log_rules import judge_log
from jepsen_tests.checkers.log_store import NEVER, LogHistory
from jepsen_tests.checkers.max_register import MaxRegister
from jepsen_tests.checkers.models import MODELS, settled_writes
from jepsen_tests.checkers.ownership import judge_ownership
from jepsen_tests.checkers.search import Operation, search
from jepsen_tests.checkers.transactions import (
    judge_delays,
    judge_recalls,
    judge_transactions,
    transaction_objects,
)
from jepsen_tests.checkers.verdict import Outcome, Reason, Verdict, Violation, span_of
from jepsen_tests.history import (
    AnyRecord,
    Append,
    Assign,
    BatchAppend,
    Call,
    CheckBack,
    Commit,
    Dead,
    Deliver,
    Done,
    Fault,
    Fetch,
    Group,
    Half,
    Meta,
    Read,
    Recall,
    Record,
    Resolve,
    Revoke,
    Send,
    Value,
    read_history,
)

Source: TypeAlias = Callable[[], Iterable[AnyRecord]]

_COUNTED: dict[type[Record], str] = {
    Append: "appends",
    BatchAppend: "batches",
    Send: "sends",
    Half: "halves",
    Read: "reads",
    Commit: "commits",
    Fetch: "fetches",
    Resolve: "resolves",
    Recall: "recalls",
    Call: "calls",
}
_WRITES = (Append, BatchAppend, Send, Half, Commit, Resolve, Recall, Call)
_NS_PER_MS = 1_000_000


def judge_file(path: Path) -> Verdict:
    """Judges a history file.

    Raises:
        HistoryFormatError: The file is not a history.
        OSError: It cannot be read.
    """
    return judge(lambda: read_history(path))


def judge_records(records: Sequence[AnyRecord]) -> Verdict:
    """Judges a history in memory."""
    return judge(lambda: records)


def judge(source: Source) -> Verdict:
    """Judges the records that `source` gives.

    It is called again for the witnesses of violations, and once more if there are consumers.
    """
    began = time.perf_counter()
    intake = _Intake()
    intake.read(source)
    violations, reasons = intake.judge(source)
    outcome = Outcome.VIOLATED if violations else Outcome.UNKNOWN if reasons else Outcome.VALID
    verdict = Verdict(
        outcome=outcome,
        violations=violations,
        reasons=reasons,
        counts=intake.totals(),
        faults=sorted(intake.faults.values(), key=lambda fault: fault.inv),
        witnesses=_pick(source, {n for found in violations for n in found.witnesses}),
        begin_ns=intake.begin if intake.begin != NEVER else 0,
    )
    verdict.seconds = time.perf_counter() - began
    return verdict


def _pick(source: Source, wanted: set[int]) -> dict[int, Record]:
    """Returns the records at the wanted places of the history."""
    if not wanted:
        return {}
    last = max(wanted)
    picked: dict[int, Record] = {}
    for number, record in enumerate(source()):
        if number in wanted:
            picked[number] = record
        if number == last:
            break
    return picked


class _Intake:
    """One pass over the history."""

    def __init__(self) -> None:
        self.log = LogHistory()
        self.consumers = ConsumerHistory()
        self.registers: dict[str, MaxRegister] = {}
        self.calls: dict[tuple[str, str], list[tuple[int, Call]]] = defaultdict(list)
        self.offset_calls: dict[str, list[tuple[int, Commit | Fetch]]] = defaultdict(list)
        self.faults: dict[int, Fault] = {}
        self.counts: Counter[tuple[type[Record], str]] = Counter()
        self.extra: dict[str, int | float] = {}
        self.acks = array("q")
        self.begin = NEVER
        self.has_consumers = False

    # --- reading ---

    def read(self, source: Source) -> None:
        """Feeds every record to the checkers."""
        counts, acks = self.counts, self.acks
        add_append, add_read = self.log.add_append, self.log.add_read
        handlers = self._handlers()
        appends_ok = reads_ok = 0
        begin = NEVER
        for number, record in enumerate(source()):
            # The two kinds that make up a long history come first.
            if isinstance(record, Append):
                add_append(number, record)
                if record.status == "ok":
                    appends_ok += 1
                    acks.append(record.inv)
                    continue
            elif isinstance(record, Read):
                add_read(number, record)
                if record.status == "ok":
                    reads_ok += 1
                    continue
            else:
                kind = type(record)
                if kind in handlers:
                    handlers[kind](number, record)
                if kind is not Meta and kind is not Group:  # these have no time
                    begin = min(begin, span_of(record)[0])
            status = getattr(record, "status", None)
            if status is not None:
                counts[type(record), status] += 1
                if status == "ok" and isinstance(record, _WRITES):
                    acks.append(record.inv)
        counts[Append, "ok"] += appends_ok
        counts[Read, "ok"] += reads_ok
        self.begin = min(begin, min(self.log.inv, default=NEVER))

    def _handlers(self) -> dict[type[Record], Callable[[int, AnyRecord], None]]:
        consumers = self.consumers
        table: dict[type[Record], Callable[..., None]] = {
            Meta: self._meta,
            BatchAppend: self.log.add_batch,
            Send: self._loose,
            Half: self._loose,
            Group: self._group,
            Deliver: self._deliver,
            Done: consumers.add_ending,
            Dead: consumers.add_dead,
            Assign: consumers.add_ownership,
            Revoke: consumers.add_ownership,
            Commit: self._commit,
            Fetch: self._fetch,
            Resolve: consumers.add_resolve,
            Recall: consumers.add_recall,
            CheckBack: self._check_back,
            Call: self._call,
            Fault: self._fault,
        }
        return table

    def _meta(self, number: int, record: Meta) -> None:
        self.log.meta = self.consumers.meta = record

    def _loose(self, number: int, op: Send | Half) -> None:
        self.has_consumers = True
        self.log.add_loose(number, op.value, op.topic, op.inv, op.ret, op.status)

    def _group(self, number: int, record: Group) -> None:
        self.has_consumers = True
        self.consumers.add_group(record)

    def _deliver(self, number: int, event: Deliver) -> None:
        self.has_consumers = True
        self.consumers.add_delivery(number, event)
        if not event.queue.startswith(RETRY_PREFIX):
            self.log.observe(number, event.queue, event.offset, event.value, event.t)

    def _check_back(self, number: int, event: CheckBack) -> None:
        self.has_consumers = True
        self.consumers.check_backs.append((number, event))

    def _commit(self, number: int, op: Commit) -> None:
        self.consumers.add_commit(number, op)
        self._offset_call(number, op)

    def _fetch(self, number: int, op: Fetch) -> None:
        self._offset_call(number, op)

    def _offset_call(self, number: int, op: Commit | Fetch) -> None:
        subject = f"offset of {op.group} on {op.queue}"
        if not self.log.meta.commits_monotonic:
            self.offset_calls[subject].append((number, op))
            return
        register = self.registers.get(subject)
        if register is None:
            register = self.registers[subject] = MaxRegister(subject)
        if isinstance(op, Commit):
            register.add_commit(number, op)
        else:
            register.add_fetch(number, op)

    def _call(self, number: int, op: Call) -> None:
        self.calls[op.model, op.object].append((number, op))

    def _fault(self, number: int, fault: Fault) -> None:
        self.faults[fault.id] = fault

    # --- judging ---

    def judge(self, source: Source) -> tuple[list[Violation], list[Reason]]:
        """Applies every checker that has something to judge."""
        violations = judge_log(self.log)
        for register in self.registers.values():
            violations += register.judge()
        reasons = self._evidence()
        if self.has_consumers:
            violations += self._judge_consumers(source, reasons)
        for subject, operations, model in self._searches(reasons):
            result = search(operations, MODELS[model])
            if result.legal is None:
                reasons.append(Reason("search-limit", f"{subject}: no answer in time"))
            elif not result.legal:
                text = "no legal order of its operations exists; these cannot be placed"
                stuck = tuple(operation.number for operation in result.stuck)
                violations.append(Violation("W", f"illegal {model}", subject, text, stuck))
        return violations, reasons

    def _evidence(self) -> list[Reason]:
        log, faults = self.log, list(self.faults.values())
        under_faults = acks_in_faults(self.acks, faults)
        self.extra["acks_in_faults"] = under_faults
        self.extra["lost"] = lost_appends(log)
        self.extra["sums_unchecked"] = log.sums_unchecked
        reasons = bite_reasons(log.meta, faults)
        reasons += ack_reasons(log.meta, len(self.acks), under_faults)
        reasons += final_read_reasons(log)
        if log.repeated:
            text = f"{len(log.repeated)} records write a value already written: {log.repeated[:5]}"
            reasons.append(Reason("malformed", text))
        if log.malformed:
            text = f"{len(log.malformed)} acknowledged appends lack an offset: {log.malformed[:5]}"
            reasons.append(Reason("malformed", text))
        return reasons

    def _judge_consumers(self, source: Source, reasons: list[Reason]) -> list[Violation]:
        consumers, findings = self.consumers, Findings()
        consumers.faults = list(self.faults.values())
        # Messages are objects: they are made only for histories with consumers.
        for number, record in enumerate(source()):
            if isinstance(record, Append | BatchAppend | Send | Half):
                consumers.add_message(number, record)
        visible: dict[Value, str] = {}
        for name, queue in self.log.queues.items():
            names = [None if v == -1 else self.log.value_name(v) for v in queue.values]
            consumers.log_values[name] = names
            visible.update((value, name) for value in names if value is not None)
        delivered = {d.value for group in consumers.groups.values() for d in group.deliveries}
        duplicates = 0
        for events in consumers.groups.values():
            events.sort()
            judge = GroupJudge(consumers, events, findings)
            judge.judge(set(visible), delivered)
            duplicates += judge.duplicates
            if events.info.ordered:
                judge_ownership(consumers, events, findings)
            reasons += _drain_reasons(events.name, events.info)
        judge_transactions(consumers, visible, findings)
        judge_recalls(consumers, visible, findings)
        late = judge_delays(consumers, findings)
        self._lateness(late)
        self.extra["duplicates"] = duplicates
        self.extra["deliveries"] = sum(len(g.deliveries) for g in consumers.groups.values())
        return findings.found

    def _lateness(self, late: list[int]) -> None:
        if late:
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
                place = min(len(late) - 1, int(len(late) * share))
                self.extra[f"late_ms_{name}"] = round(late[place] / _NS_PER_MS, 3)

    def _searches(self, reasons: list[Reason]) -> list[tuple[str, list[Operation], str]]:
        """Returns (subject, operations, model) of every object to be searched."""
        found: list[tuple[str, list[Operation], str]] = []
        for (model, name), calls in self.calls.items():
            if model not in MODELS:
                text = f"model {model!r} of {name} is none of {', '.join(MODELS)}"
                reasons.append(Reason("malformed", text))
                continue
            operations = [
                _operation(number, op, op.f, tuple(op.args), op.result)
                for number, op in calls
                if op.status != "fail"
            ]
            if model == "config":
                operations = settled_writes(operations)
            found.append((f"{model} {name}", operations, model))
        for subject, offsets in self.offset_calls.items():
            operations = [
                _operation(number, op, "commit", (op.offset,), None)
                if isinstance(op, Commit)
                else _operation(number, op, "fetch", (), op.offset)
                for number, op in offsets
                if op.status != "fail"
            ]
            found.append((subject, operations, "resettable_offset"))
        for value, operations in transaction_objects(self.consumers):
            found.append((f"transaction {value}", operations, "transaction"))
        return found

    def totals(self) -> dict[str, int | float]:
        """Returns the counts of the verdict."""
        counts: dict[str, int | float] = {"operations": sum(self.counts.values())}
        for kind, name in _COUNTED.items():
            for status in ("ok", "info", "fail"):
                if self.counts[kind, status]:
                    counts[f"{name}_{status}"] = self.counts[kind, status]
        counts.update(self.extra)
        return counts


def _operation(
    number: int, op: Call | Commit | Fetch, f: str, args: tuple[object, ...], result: object
) -> Operation:
    info = op.status == "info"
    return Operation(op.inv, NEVER if info else op.ret, f, args, result, info, number)


def _drain_reasons(name: str, info: Group) -> list[Reason]:
    if not info.topics or info.drained:
        return []
    if info.drained is None:
        return [Reason("no-drain", f"group {name}: nothing tells that it was drained")]
    return [Reason("stuck", f"group {name} was still progressing when the drain ended")]


__all__ = ["Source", "judge", "judge_file", "judge_records", "span_of"]
