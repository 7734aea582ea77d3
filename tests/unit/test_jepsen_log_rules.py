"""Every anomaly of the rules C1-C5, by hand; and legal histories that look bad."""

from __future__ import annotations

import pytest

from jepsen_tests.history import range_hash
from tests.support.histories import append, batch, fault, final, judged, meta, read, rules

BAD = {
    "two acks for one offset": (
        [append(1, 0, 1, 0), append(2, 2, 3, 0)],
        ("C1", "two values at one offset"),
    ),
    "two nodes disagree": (
        [append(1, 0, 9), append(2, 0, 9), read(0, [1], 1, 2), read(0, [2], 1, 2, eventual=True)],
        ("C1", "two values at one offset"),
    ),
    "one sum of a big read is wrong": (
        [
            append(1, 0, 1, 0),
            append(2, 2, 3, 1),
            read(0, [], 4, 5, count=2, sum=range_hash(0, [2, 1])),
        ],
        ("C1", "two values at one offset"),
    ),
    "acknowledged for another key": (
        [append(1, 0, 1, 0, key="a"), append(2, 2, 3, 0, key="b")],
        ("C1", "two values at one offset"),
    ),
    "a value twice in one queue": (
        [append(1, 0, 1, 0), read(0, [1, 1], 2, 3)],
        ("C2", "duplicate"),
    ),
    "a value in two queues": (
        [append(1, 0, 1, 0), read(0, [1], 2, 3, queue="t@b/1")],
        ("C2", "duplicate"),
    ),
    "a key at two offsets": (
        [append(1, 0, 1, key="k"), append(2, 2, 3, 1, key="k"), read(0, [1], 4, 5)],
        ("C2", "duplicate"),
    ),
    "a value never written": ([append(1, 0, 1, 0), read(0, [1, 7], 2, 3)], ("C3", "phantom")),
    "a failed value": (
        [append(1, 0, 1, status="fail"), read(0, [1], 2, 3)],
        ("C3", "aborted read"),
    ),
    "a value of another queue": (
        [append(1, 0, 1), read(0, [1], 2, 3, queue="t@b/1")],
        ("C3", "misplaced"),
    ),
    "appends against real time": (
        [append(1, 0, 1, 1), append(2, 2, 3, 0)],
        ("C4", "real-time order broken"),
    ),
    "stale read": (
        [append(1, 0, 1, 0), read(0, [], 2, 3), read(0, [1], 4, 5)],
        ("C4", "stale read"),
    ),
    "stale length": (
        [append(1, 0, 1, 0), read(0, [], 2, 3, max=0, end=0), read(0, [1], 4, 5)],
        ("C4", "stale read"),
    ),
    "short answer of a whole read": (
        [
            append(1, 0, 1, 0),
            append(2, 2, 3, 1),
            read(0, [1], 4, 5, whole=True),
            read(0, [1, 2], 6, 7),
        ],
        ("C4", "stale read"),
    ),
    "lost write": ([append(1, 0, 1, 0), read(0, [], 2, 3)], ("C4", "lost write")),
    "length went back": (
        [append(1, 0, 9), read(0, [1], 1, 2), read(0, [], 3, 4)],
        ("C4", "length went back"),
    ),
    "read from the future": (
        [append(1, 5, 6, 0), read(0, [1], 1, 2)],
        ("C4", "read from the future"),
    ),
    "eventual read from the future": (
        [append(1, 5, 6, 0), read(0, [1], 1, 2, eventual=True)],
        ("C4", "read from the future"),
    ),
    "more than its own end": (
        [append(1, 0, 1, 0), read(0, [1], 2, 3, end=0)],
        ("C4", "impossible read"),
    ),
    "nothing below its own end": (
        [append(1, 0, 1, 0), read(0, [], 2, 3, end=1)],
        ("C4", "impossible read"),
    ),
    "session went back": (
        [
            append(1, 0, 1, 0),
            read(0, [1], 2, 3, eventual=True, node="n1"),
            read(0, [], 4, 5, eventual=True, node="n1"),
        ],
        ("C4", "session went back"),
    ),
    "own write not read": (
        [
            meta(read_your_writes=True),
            append(1, 0, 1, 0, process=9),
            read(0, [], 2, 3, eventual=True),
        ],
        ("C4", "session went back"),
    ),
    "length inside a batch": (
        [batch([1, 2, 3], 0, 9, 0), read(0, [], 1, 2, max=0, end=2)],
        ("C4", "torn batch"),
    ),
    "batch not together": (
        [batch([1, 2], 0, 9), append(3, 0, 9), read(0, [1, 3, 2], 10, 11)],
        ("C4", "torn batch"),
    ),
    "append between two reads inside a batch": (
        [batch([1, 2], 0, 9, 0), read(0, [1], 2, 3), read(0, [1], 4, 5, whole=True)],
        ("C4", "torn batch"),
    ),
    "min offset went back": (
        [
            append(1, 0, 1, 0),
            append(2, 2, 3, 1),
            read(0, [], 4, 5, low=1, out_of_range=True),
            read(0, [1, 2], 6, 7),
        ],
        ("C4", "min offset went back"),
    ),
    "trimmed entries in an answer": (
        [append(1, 0, 1, 0), read(0, [1], 2, 3, low=1)],
        ("C4", "impossible read"),
    ),
    "refused, but not trimmed": (
        [append(1, 0, 1, 0), read(0, [], 2, 3, low=0, end=1, out_of_range=True)],
        ("C4", "impossible read"),
    ),
    "a length that no appends explain": (
        [append(1, 0, 1, 0), read(0, [], 2, 3, max=0, end=2)],
        ("C5", "unknown append"),
    ),
    "an offset that no append explains": (
        [append(1, 0, 1, 5), read(5, [1], 2, 3)],
        ("C5", "unknown append"),
    ),
    "an absurd offset costs no memory": (
        [append(1, 0, 1, 10**15)],
        ("C5", "unknown append"),
    ),
    "an absurd length costs no memory": (
        [append(1, 0, 1, 0), read(0, [], 2, 3, max=0, end=10**15)],
        ("C5", "unknown append"),
    ),
    "the only append that could explain it came later": (
        [append(1, 0, 1, 1), append(2, 5, 6), read(0, [], 2, 3, max=0, end=2)],
        ("C5", "append from the future"),
    ),
    "no batch fits the gap": (
        [batch([7, 8, 9], 0, 1), append(1, 0, 1, 1), read(1, [1], 2, 3)],
        ("C5", "unknown append"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_history_is_found_guilty_by_its_rule(name: str) -> None:
    records, expected = BAD[name]
    verdict = judged(*records)
    assert expected in rules(verdict)
    assert verdict.outcome == "violated"
    assert all(found.witnesses for found in verdict.violations)


GOOD = {
    "indeterminate append that came late": [
        append(1, 0, 1),
        read(0, [], 2, 3),
        read(0, [1], 4, 5),
    ],
    "indeterminate append that never came": [append(1, 0, 1), read(0, [], 2, 3)],
    "overlapping appends in either order": [append(1, 0, 5, 1), append(2, 1, 4, 0)],
    "overlapping reads in either order": [
        append(1, 0, 9),
        read(0, [1], 1, 5),
        read(0, [], 2, 6),
    ],
    "end and begin at one instant": [append(1, 0, 1, 1), append(2, 1, 2, 0)],
    "stale eventual read": [append(1, 0, 1, 0), read(0, [], 2, 3, eventual=True)],
    "eventual reads of two sessions": [
        append(1, 0, 1, 0),
        read(0, [1], 2, 3, eventual=True, node="n1"),
        read(0, [], 4, 5, eventual=True, node="n2"),
    ],
    "eventual reads from unknown nodes": [
        append(1, 0, 1, 0),
        read(0, [1], 2, 3, eventual=True),
        read(0, [], 4, 5, eventual=True),
    ],
    "a retry reports the first offset": [
        append(1, 0, 1, key="k"),
        append(2, 2, 3, 0, key="k"),
        read(0, [1], 4, 5),
    ],
    "a bounded read may end inside a batch": [batch([1, 2, 3], 0, 1, 0), read(0, [1, 2], 2, 3)],
    "a batch that fills a gap": [
        batch([7, 8], 0, 1),
        append(1, 0, 1, 2),
        read(2, [1], 2, 3),
    ],
    "the right sum": [
        append(1, 0, 1, 0),
        append(2, 2, 3, 1),
        read(0, [], 4, 5, count=2, sum=range_hash(0, [1, 2])),
    ],
    "trimming": [
        append(1, 0, 1, 0),
        append(2, 2, 3, 1),
        read(0, [1, 2], 4, 5),
        read(0, [], 6, 7, low=1, out_of_range=True),
        read(1, [2], 8, 9, low=1),
    ],
    "each node trims by itself": [
        append(1, 0, 1, 0),
        read(0, [], 2, 3, low=1, out_of_range=True, node="n1"),
        read(0, [1], 4, 5, node="n2"),
    ],
    "values with names": [append("a", 0, 1, 0), append("b", 2, 3, 1), read(0, ["a", "b"], 4, 5)],
}


@pytest.mark.parametrize("name", GOOD)
def test_legal_history_is_valid(name: str) -> None:
    verdict = judged(*GOOD[name])
    assert (verdict.violations, verdict.outcome) == ([], "valid")


def test_a_verdict_shows_both_witnesses_and_the_faults_around_them() -> None:
    verdict = judged(
        append(1, 0, 1, 0),
        fault(1.5, 2.5, "F1", targets=["n0"]),
        fault(0.1, 0.2, "F2", id=2),
        fault(50, 60, "F3", id=3),
        read(0, [], 2, 3),
        final([], 70),
    )
    text = "\n".join(verdict.lines())
    assert "VIOLATED" in text
    assert "C4 lost write in t@b/0" in text
    assert "append process=0" in text and "read process=9" in text
    assert "F1 on n0 (bit)" in text and "F2" in text and "F3" not in text
    told = verdict.to_dict()["violations"][0]
    assert [witness["type"] for witness in told["witnesses"]] == ["append", "read"]
    assert [around["name"] for around in told["faults"]] == ["F2", "F1"]
    assert verdict.counts["lost"] == 1
