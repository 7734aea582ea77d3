"""Positive controls by edited histories: a valid run is spoiled, the named rule must say so.

K1, K2, K5 and K8 to K20 of the list of controls; the others need broken builds, not histories.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jepsen_tests.history import AnyRecord, Append, BatchAppend, Fault, Read, Send
from tests.support.histories import (
    MS,
    NODES,
    append,
    assign,
    commit,
    consumed,
    deliver,
    done,
    fault,
    final,
    group,
    half,
    judged,
    log_run,
    meta,
    read,
    resolve,
    rules,
    send,
)


def finals(records: list[AnyRecord]) -> list[Read]:
    return [record for record in records if isinstance(record, Read) and record.final]


def k1_ack_before_quorum() -> list[AnyRecord]:
    """The leader acknowledged three appends alone and died; the others know nothing of them."""
    records = log_run()
    for last in finals(records):
        last.values, last.end = last.values[:5], 5
    return records


def k2_stale_local_read() -> list[AnyRecord]:
    """The old leader, cut off, answers from what it had."""
    return [*log_run(), read(0, [100, 101], 8, 9, end=2)]


def k5_vote_not_persisted() -> list[AnyRecord]:
    """Two leaders of one term gave one offset away twice."""
    records = log_run()
    finals(records)[1].values[3] = 999
    return [*records, append(999, 6, 8, 3, process=5)]


def k7_accepted_corruption() -> list[AnyRecord]:
    """A flipped bit on one node is served as data."""
    records = log_run()
    finals(records)[2].values[4] = 104 ^ 1 << 40
    return records


def k8_truncating_follower() -> list[AnyRecord]:
    """A majority lost its tail; later appends took the same offsets."""
    records = log_run()
    for last in finals(records):
        last.values = [*last.values[:6], 500, 501]
    return [*records, append(500, 30, 31, 6), append(501, 32, 33, 7)]


def k8_only_one_node() -> list[AnyRecord]:
    """One node lacks the tail."""
    records = log_run()
    last = finals(records)[2]
    last.values, last.end = last.values[:6], 6
    return records


def k9_duplicate_on_retry() -> list[AnyRecord]:
    """The table of an idempotent producer did not survive the fail-over."""
    records = log_run()
    for last in finals(records):
        last.values = [*last.values, 100]
        last.end = 9
    return records


def k9_two_attempts() -> list[AnyRecord]:
    """The same with a new body: one key, two offsets."""
    return [
        append(1, 0, 1, key="k"),
        append(2, 2, 3, 1, key="k"),
        read(0, [1, 2], 4, 5),
    ]


def k10_offset_reuse() -> list[AnyRecord]:
    """An offset given before replication is given again after the fail-over."""
    return [*log_run(), append(777, 20, 21, 4)]


def k11_swapped_neighbours() -> list[AnyRecord]:
    """One node applied two entries in the other order."""
    records = log_run()
    values = finals(records)[1].values
    values[2], values[3] = values[3], values[2]
    return records


def k11_on_every_node() -> list[AnyRecord]:
    """All nodes agree, on an order against real time."""
    first, second = append(1, 0, 1, 1), append(2, 2, 3, 0)
    return [first, second, final([2, 1], 10)]


def k12_timeout_reported_as_failure() -> list[AnyRecord]:
    """The client called an indeterminate append failed."""
    records = log_run()
    victim = next(record for record in records if isinstance(record, Append))
    victim.status, victim.offset = "fail", None
    return records


def _messages() -> list[AnyRecord]:
    return [append(value, 2 * at, 2 * at + 1, at) for at, value in enumerate((10, 11, 12))]


def k13_commit_early() -> list[AnyRecord]:
    """The offset was committed before processing, then the consumer was killed."""
    return [
        *_messages(),
        group(),
        assign("c0", 19, offset=0),
        deliver(10, 0, 20),
        commit(2, 21, 22),
        fault(22, 23, "F4", targets=["c0"]),
        assign("c1", 30, offset=2),
        deliver(12, 2, 31, "c1"),
        done(12, 2, 32, "c1"),
    ]


def k14_forgotten_offset() -> list[AnyRecord]:
    """Offsets were kept on the old leader only: the next owner begins at zero."""
    return [
        meta(commit_window=1),
        *_messages(),
        group(),
        *consumed([10, 11, 12]),
        commit(3, 23, 24),
        *consumed([10, 11, 12], 40, "c1"),
    ]


def k15_two_owners() -> list[AnyRecord]:
    """A paused owner wakes up after another took over, and its commit is accepted."""
    return [
        *_messages(),
        group(ordered=True, drained=None),
        assign("c0", 19),
        deliver(10, 0, 20, "c0"),
        fault(20.5, 40, "F5", targets=["c0"]),
        assign("c1", 30),
        deliver(10, 0, 31, "c1"),
        done(10, 0, 32, "c1"),
        done(10, 0, 41, "c0"),
        commit(1, 42, 43, consumer="c0"),
    ]


def k16_rolled_back_delivered() -> list[AnyRecord]:
    """The filter was skipped for one of the half messages."""
    return [half(10, 0, 1), resolve(10, "rollback", 2, 3), group(), *consumed([10])]


def k16_half_message_visible() -> list[AnyRecord]:
    """A half message is in the log before anyone decided."""
    return [half(10, 0, 1), final([10], 5)]


def k17_early_delay() -> list[AnyRecord]:
    """The timer used a wall clock that had jumped."""
    return [send(10, 0, 5000), group(), *consumed([10], 1200)]


def k18_torn_batch() -> list[AnyRecord]:
    """A batch was applied entry by entry."""
    torn = BatchAppend(
        process=0, queue="t@b/0", values=[1, 2, 3], inv=0, ret=9 * MS, status="ok", offset=0
    )
    return [torn, read(0, [1, 2], 2, 3, end=2), final([1, 2, 3], 10)]


CONTROLS: dict[str, tuple[Callable[[], list[AnyRecord]], set[str]]] = {
    "K1": (k1_ack_before_quorum, {"C4"}),
    "K2": (k2_stale_local_read, {"C4"}),
    "K5": (k5_vote_not_persisted, {"C1"}),
    "K7": (k7_accepted_corruption, {"C1"}),
    "K8": (k8_truncating_follower, {"C1"}),
    "K8 one node": (k8_only_one_node, {"C4"}),
    "K9": (k9_duplicate_on_retry, {"C2"}),
    "K9 two attempts": (k9_two_attempts, {"C2"}),
    "K10": (k10_offset_reuse, {"C1"}),
    "K11": (k11_swapped_neighbours, {"C1"}),
    "K11 every node": (k11_on_every_node, {"C4"}),
    "K12": (k12_timeout_reported_as_failure, {"C3"}),
    "K13": (k13_commit_early, {"D2", "D1"}),
    "K14": (k14_forgotten_offset, {"D2"}),
    "K15": (k15_two_owners, {"D4"}),
    "K16": (k16_rolled_back_delivered, {"D5"}),
    "K16 half": (k16_half_message_visible, {"D5"}),
    "K17": (k17_early_delay, {"D6"}),
    "K18": (k18_torn_batch, {"C4"}),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_control_is_caught_by_its_rule(name: str) -> None:
    plant, expected = CONTROLS[name]
    verdict = judged(*plant())
    assert verdict.outcome == "violated"
    assert expected <= {rule for rule, _ in rules(verdict)}


def test_the_run_that_the_controls_spoil_is_valid() -> None:
    verdict = judged(*log_run())
    assert (verdict.outcome, verdict.violations, verdict.reasons) == ("valid", [], [])


def reasons(*records: AnyRecord) -> list[str]:
    verdict = judged(*records)
    assert verdict.violations == []
    assert verdict.outcome == ("unknown" if verdict.reasons else "valid")
    return [reason.code for reason in verdict.reasons]


@pytest.mark.parametrize("change", [{"bit": False}, {"bit": None}, {"proof": {}}])
def test_k19_a_fault_that_does_not_bite_proves_nothing(change: dict) -> None:
    records = log_run()
    for record in records:
        if isinstance(record, Fault):
            for name, value in change.items():
                setattr(record, name, value)
    assert reasons(*records) == ["no-bite"]


def test_k19_a_nemesis_without_any_fault_proves_nothing() -> None:
    records = [record for record in log_run() if not isinstance(record, Fault)]
    records[0].acks_in_faults_min = 0
    assert reasons(*records) == ["no-bite"]


def test_k20_a_dead_workload_proves_nothing() -> None:
    records: list[AnyRecord] = [log_run()[0], fault(3, 9)]
    records += [append(value, value, value + 1, status="fail") for value in range(9)]
    assert reasons(*records) == ["few-acks", "few-acks"]


def test_k20_too_few_acknowledgements_while_the_fault_was_active() -> None:
    records = log_run()
    records[0].acks_in_faults_min = 5
    assert reasons(*records) == ["few-acks"]


@pytest.mark.parametrize("lacking", NODES)
def test_a_node_that_was_not_read_to_its_end_proves_nothing(lacking: str) -> None:
    records = log_run()
    kept = [r for r in records if not (isinstance(r, Read) and r.node == lacking)]
    assert reasons(*kept) == ["no-final-read"]
    short = next(read for read in finals(records) if read.node == lacking)
    short.values = short.values[:4]
    assert reasons(*records) == ["no-final-read"]


def test_final_reads_may_come_in_pieces() -> None:
    records = log_run()
    pieces: list[AnyRecord] = []
    for at, node in enumerate(NODES):
        pieces.append(read(0, list(range(100, 105)), 200 + at, 201 + at, final=True, node=node))
        pieces.append(read(5, [105, 106, 107], 210 + at, 211 + at, final=True, node=node))
        pieces.append(read(8, [], 220 + at, 221 + at, final=True, node=node))
    assert reasons(*[r for r in records if not isinstance(r, Read)], *pieces) == []


def test_a_drain_that_did_not_end_is_not_a_loss() -> None:
    assert reasons(*_messages(), group(drained=False), *consumed([10])) == ["stuck"]
    assert reasons(*_messages(), group(drained=None), *consumed([10])) == ["no-drain"]


def test_values_written_twice_make_a_history_useless() -> None:
    again = Send(process=0, topic="t", value=10, inv=0, ret=1, status="ok")
    assert reasons(*_messages(), again) == ["malformed"]
