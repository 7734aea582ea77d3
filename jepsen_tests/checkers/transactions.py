"""Rules D5 (transactions) and D6 (delayed messages)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from jepsen_tests.checkers.events import NEVER, ConsumerHistory, Delivery, Findings, Message
from jepsen_tests.checkers.search import Operation
from jepsen_tests.history import Value, topic_of

_NS_PER_MS = 1_000_000


def judge_transactions(
    history: ConsumerHistory, visible: dict[Value, str], findings: Findings
) -> None:
    """Judges D5.

    Args:
        history: All messages and events.
        visible: The queue in which each value was seen in a log.
        findings: Where violations go.
    """
    deliveries: dict[Value, list[tuple[str, Delivery]]] = defaultdict(list)
    for group in history.groups.values():
        for delivery in group.deliveries:
            deliveries[delivery.value].append((group.name, delivery))
    for message in history.messages.values():
        if message.half:
            _one_ending(history, message, findings)
            _visibility(history, message, deliveries.get(message.value, []), visible, findings)
    _check_backs(history, findings)


def _one_ending(history: ConsumerHistory, message: Message, findings: Findings) -> None:
    done = [
        (number, op.decision)
        for number, op in history.resolves.get(message.value, ())
        if op.status == "ok"
    ]
    other = next((number for number, decision in done if decision != done[0][1]), None)
    if other is not None:
        text = f"transaction {message.value} was both committed and rolled back"
        findings.add("D5", "two endings", message.topic, text, done[0][0], other)


def _visibility(
    history: ConsumerHistory,
    message: Message,
    deliveries: list[tuple[str, Delivery]],
    visible: dict[Value, str],
    findings: Findings,
) -> None:
    resolves = history.resolves.get(message.value, ())
    commits = [op.inv for _, op in resolves if op.decision == "commit" and op.status != "fail"]
    first_commit = min(commits, default=NEVER)
    rolled_back = [n for n, op in resolves if op.decision == "rollback" and op.status == "ok"]
    value = message.value
    queue = visible.get(value, "")
    for group, delivery in deliveries:
        place = f"group {group}"
        if rolled_back:
            text = f"value {value} was rolled back, and delivered"
            findings.add("D5", "rolled back", place, text, rolled_back[0], delivery.number)
        elif delivery.t < first_commit:
            kind = "before commit" if commits else "nobody committed"
            text = f"value {value} was delivered before any commit began"
            findings.add("D5", kind, place, text, message.number, delivery.number)
        topic = topic_of(delivery.queue)
        if topic != message.topic and not topic.startswith("%"):
            text = f"value {value} of {message.topic} was delivered from {delivery.queue}"
            findings.add("D5", "half message visible", place, text, message.number, delivery.number)
    if queue and topic_of(queue) == message.topic and not deliveries:
        if rolled_back:
            text = f"value {value} was rolled back, and is in the log"
            findings.add("D5", "rolled back", queue, text, rolled_back[0], message.number)
        elif not commits:
            text = f"value {value} is in the log, but nobody committed it"
            findings.add("D5", "nobody committed", queue, text, message.number)


def _check_backs(history: ConsumerHistory, findings: Findings) -> None:
    grace = history.meta.check_back_grace_ms * _NS_PER_MS
    wait = history.meta.check_back_after_ms * _NS_PER_MS
    for number, check in history.check_backs:
        message = history.messages.get(check.value)
        if message is None or not message.half:
            text = f"a check-back for value {check.value}, which nobody prepared"
            findings.add("D5", "check-back", str(check.value), text, number)
            continue
        if check.t < message.inv + wait:
            text = f"value {check.value} was checked sooner than promised"
            findings.add("D5", "check-back", message.topic, text, message.number, number)
        for resolved, op in history.resolves.get(check.value, ()):
            late = op.status == "ok" and check.t > op.ret + grace
            # A leader that stands still, or is cut off, may ask what it meant to ask before.
            if late and not history.fault_between(op.ret, check.t):
                text = f"value {check.value} was decided before its check-back"
                findings.add("D5", "check-back", message.topic, text, resolved, number)
                break


def transaction_objects(history: ConsumerHistory) -> Iterator[tuple[Value, list[Operation]]]:
    """Yields, for the search, the transactions that somebody ended more than once."""
    for message in history.messages.values():
        ends = history.resolves.get(message.value, ())
        if not message.half or len(ends) < 2 or message.status == "fail":
            continue
        unknown = message.status == "info"
        ret = NEVER if unknown else message.ret
        operations = [Operation(message.inv, ret, "prepare", (), None, unknown, message.number)]
        for number, op in ends:
            if op.status != "fail":
                unknown = op.status == "info"
                ret = NEVER if unknown else op.ret
                operations.append(Operation(op.inv, ret, op.decision, (), True, unknown, number))
        yield message.value, operations


def judge_recalls(history: ConsumerHistory, visible: dict[Value, str], findings: Findings) -> None:
    """Judges D6: what was recalled comes never.

    Args:
        history: All messages and events.
        visible: The queue in which each value was seen in a log.
        findings: Where violations go.
    """
    for value, recalls in history.recalls.items():
        done = next((number for number, op in recalls if op.status == "ok"), None)
        if done is None or value not in visible:
            continue
        text = f"value {value} was recalled, and is in the log"
        findings.add("D6", "recalled", visible[value], text, done)


def judge_delays(history: ConsumerHistory, findings: Findings) -> list[int]:
    """Judges D6; returns by how many ns each first delivery was late, in order."""
    tolerance = history.meta.delay_tolerance_ms * _NS_PER_MS
    late: list[int] = []
    for group in history.groups.values():
        seen: set[Value] = set()
        for delivery in group.deliveries:
            message = history.messages.get(delivery.value)
            if message is None or not message.delay_ms or delivery.value in seen:
                continue
            seen.add(delivery.value)
            due = message.inv + message.delay_ms * _NS_PER_MS
            if delivery.t < due - tolerance:
                text = (
                    f"value {delivery.value} came {(due - delivery.t) / _NS_PER_MS:.1f} ms early "
                    f"(delay {message.delay_ms} ms, tolerance {tolerance // _NS_PER_MS} ms)"
                )
                subject = f"group {group.name}"
                findings.add("D6", "early", subject, text, message.number, delivery.number)
            late.append(delivery.t - due)
    return sorted(late)
