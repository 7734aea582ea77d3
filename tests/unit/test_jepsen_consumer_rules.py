"""Every anomaly of the rules D1-D10, of committed offsets and of small objects, by hand."""

from __future__ import annotations

import pytest

from jepsen_tests.history import Assign, CheckBack, Dead
from tests.support.histories import (
    MS,
    append,
    assign,
    call,
    commit,
    consumed,
    deliver,
    done,
    fault,
    fetch,
    final,
    group,
    half,
    judged,
    meta,
    recall,
    resolve,
    revoke,
    rules,
    send,
)

SENT = [append(value, 2 * at, 2 * at + 1, at) for at, value in enumerate((10, 11, 12, 13))]
ALL = [10, 11, 12, 13]
RETRY = "%RETRY%g@b/0"


def without(records: list, *values: int) -> list:
    return [record for record in records if getattr(record, "value", None) not in values]


BAD = {
    "D1 lost prefix": ([*SENT, group(), *without(consumed(ALL), 10)], ("D1", "lost prefix")),
    "D1 lost middle": ([*SENT, group(), *without(consumed(ALL), 11)], ("D1", "lost middle")),
    "D1 lost suffix": ([*SENT, group(), *without(consumed(ALL), 13)], ("D1", "lost suffix")),
    "D1 seen by the other group only": (
        [
            append(10, 0, 1),
            group(),
            group().__class__(group="h", topics=["t"], drained=True),
            deliver(10, 0, 20),
            done(10, 0, 21),
        ],
        ("D1", "lost message"),
    ),
    "D2 committed before done": (
        [*SENT, group(drained=None), deliver(10, 0, 20), commit(1, 21, 22), done(10, 0, 23)],
        ("D2", "committed before done"),
    ),
    "D2 committed what was never delivered": (
        [*SENT, group(drained=None), deliver(10, 0, 20), done(10, 0, 21), commit(3, 22, 23)],
        ("D2", "committed before done"),
    ),
    "D2 a new owner skips": (
        [
            *SENT,
            group(ordered=True, drained=None),
            *consumed([10]),
            commit(1, 22, 23),
            assign("c1", 30),
            deliver(12, 2, 31, "c1"),
        ],
        ("D2", "skipped on assign"),
    ),
    "D2 a new owner goes far back": (
        [
            meta(commit_window=1),
            *SENT,
            group(drained=None),
            *consumed([10, 11, 12]),
            commit(3, 25, 26),
            assign("c1", 30),
            deliver(10, 0, 31, "c1"),
        ],
        ("D2", "forgotten offset"),
    ),
    "D3 jump forward": (
        [*SENT, group(ordered=True, drained=None), deliver(10, 0, 20), deliver(12, 2, 21)],
        ("D3", "jump forward"),
    ),
    "D3 jump back": (
        [
            *SENT,
            group(ordered=True, drained=None),
            deliver(10, 0, 20),
            deliver(11, 1, 21),
            deliver(10, 0, 22),
        ],
        ("D3", "jump back"),
    ),
    "D3 shard out of order": (
        [
            append(10, 0, 1, 0, shard="s"),
            append(11, 2, 3, 0, shard="s", queue="t@b/1"),
            group(ordered=True, drained=None),
            deliver(11, 0, 20, queue="t@b/1"),
            deliver(10, 0, 21),
        ],
        ("D3", "shard out of order"),
    ),
    "D4 two owners": (
        [
            *SENT,
            group(ordered=True, drained=None),
            deliver(10, 0, 20, "c0"),
            deliver(11, 1, 21, "c1"),
            done(11, 1, 22, "c1"),
            done(10, 0, 23, "c0"),
        ],
        ("D4", "two owners"),
    ),
    "D4 stale commit by token": (
        [
            *SENT,
            group(ordered=True, drained=None),
            assign("c0", 19, token=1),
            deliver(10, 0, 20, "c0"),
            done(10, 0, 21, "c0"),
            assign("c1", 30, token=2),
            commit(1, 31, 32, consumer="c0", token=1),
        ],
        ("D4", "stale commit accepted"),
    ),
    "D5 before commit": (
        [
            half(10, 0, 1),
            group(drained=None),
            deliver(10, 0, 5),
            resolve(10, "commit", 8, 9),
        ],
        ("D5", "before commit"),
    ),
    "D5 nobody committed": (
        [half(10, 0, 1), group(drained=None), deliver(10, 0, 5)],
        ("D5", "nobody committed"),
    ),
    "D5 rolled back": (
        [half(10, 0, 1), resolve(10, "rollback", 2, 3), group(drained=None), deliver(10, 0, 5)],
        ("D5", "rolled back"),
    ),
    "D5 two endings": (
        [half(10, 0, 1), resolve(10, "commit", 2, 3), resolve(10, "rollback", 4, 5)],
        ("D5", "two endings"),
    ),
    "D5 half message visible": (
        [
            half(10, 0, 1),
            resolve(10, "commit", 2, 3),
            group(drained=None),
            deliver(10, 0, 5, queue="RMQ_SYS_TRANS_HALF_TOPIC@b/0"),
        ],
        ("D5", "half message visible"),
    ),
    "D5 committed, not delivered": (
        [half(10, 0, 1), resolve(10, "commit", 2, 3), group()],
        ("D1", "lost message"),
    ),
    "D5 check-back of a decided transaction": (
        [
            meta(check_back_grace_ms=5),
            half(10, 0, 1),
            resolve(10, "rollback", 2, 3),
            CheckBack(process=3, value=10, t=20 * MS),
        ],
        ("D5", "check-back"),
    ),
    "D5 check-back too soon": (
        [
            meta(check_back_after_ms=1000),
            half(10, 0, 1),
            CheckBack(process=3, value=10, t=20 * MS),
        ],
        ("D5", "check-back"),
    ),
    "D6 early": ([send(10, 0, 500), group(), *consumed([10], 400)], ("D6", "early")),
    "D6 recalled": (
        [send(10, 0, 500), recall(10, 2, 3), group(), *consumed([10], 900)],
        ("D6", "recalled"),
    ),
    "D6 recalled, and nobody looked": (
        [send(10, 0, 500), recall(10, 2, 3), final([10], 900)],
        ("D6", "recalled"),
    ),
    "D7 two owners that stay": (
        [
            *SENT[:1],
            group(drained=None),
            assign("c0", 10),
            assign("c1", 11),
            *consumed([10])[1:],
            deliver(10, 0, 30, "c1"),
            revoke("c0", 6000),
        ],
        ("D7", "duplicate without cause"),
    ),
    "D7 duplicate without cause": (
        [*SENT, group(drained=None), *consumed([10]), deliver(10, 0, 30)],
        ("D7", "duplicate without cause"),
    ),
    "D7 too many duplicates": (
        [
            meta(duplicates_max=0),
            *SENT,
            group(drained=None),
            *consumed([10]),
            fault(25, 26),
            deliver(10, 0, 30),
        ],
        ("D7", "too many duplicates"),
    ),
    "D7 handed back twice without a fault": (
        [
            append(10, 0, 1, 0),
            group(drained=None),
            deliver(10, 0, 20),
            done(10, 0, 21, result="retry"),
            deliver(10, 0, 30, queue=RETRY, attempt=2),
            done(10, 0, 31, queue=RETRY),
            deliver(10, 1, 40, queue=RETRY, attempt=2),
        ],
        ("D7", "duplicate without cause"),
    ),
    "D8 too many attempts": (
        [
            *SENT,
            group(drained=None, max_attempts=1),
            deliver(10, 0, 20),
            done(10, 0, 21, result="retry"),
            deliver(10, 0, 30, queue=RETRY, attempt=2),
        ],
        ("D8", "too many attempts"),
    ),
    "D8 too many attempts of one owner": (
        [
            append(10, 0, 1, 0),
            group(drained=None, max_attempts=3),
            assign("c0", 0),
            assign("c1", 10),
            deliver(10, 0, 20),
            done(10, 0, 21, result="retry"),
            deliver(10, 0, 30, queue=RETRY, attempt=2),
            done(10, 0, 31, queue=RETRY, result="retry"),
            deliver(10, 1, 40, queue=RETRY, attempt=3),
            done(10, 1, 41, queue=RETRY, result="retry"),
            deliver(10, 2, 50, queue=RETRY, attempt=4),
            done(10, 2, 51, queue=RETRY),
            revoke("c0", 60),
        ],
        ("D8", "too many attempts"),
    ),
    "D8 consumed and dead": (
        [*SENT, group(drained=None), *consumed([10])[1:], Dead(group="g", value=10, t=50 * MS)],
        ("D8", "consumed and dead"),
    ),
    "D8 vanished": (
        [append(10, 0, 1, 0), group(), deliver(10, 0, 20), done(10, 0, 21, result="retry")],
        ("D8", "vanished"),
    ),
    "D9 one consumer of a broadcast misses": (
        [
            append(10, 0, 1, 0),
            group(broadcast=True, consumers=["c0", "c1"]),
            *consumed([10], consumer="c0"),
        ],
        ("D9/D1", "lost message"),
    ),
    "D10 phantom": ([group(drained=None), deliver(99, 0, 20)], ("D10", "phantom")),
    "D10 failed": (
        [append(10, 0, 1, status="fail"), group(drained=None), deliver(10, 0, 20)],
        ("D10", "aborted delivery"),
    ),
    "D10 not subscribed": (
        [append(10, 0, 1, 0, tag="a"), group(drained=None, tags=["b"]), deliver(10, 0, 20)],
        ("D10", "not subscribed"),
    ),
    "a delivery from the future": (
        [append(10, 30, 31, 0), group(drained=None), deliver(10, 0, 20)],
        ("C4", "read from the future"),
    ),
    "M1 phantom offset": ([commit(3, 0, 1), fetch(4, 2, 3)], ("M1", "phantom offset")),
    "M2 offset went back": ([commit(3, 0, 1), fetch(None, 2, 3)], ("M2", "offset went back")),
    "M3 from the future": ([fetch(3, 0, 1), commit(3, 2, 3)], ("M3", "from the future")),
    "W two winners of one compare-and-set": (
        [
            call("register", "write", [0], None, 0, 1),
            call("register", "cas", [0, 1], True, 2, 5),
            call("register", "cas", [0, 2], True, 2, 5),
        ],
        ("W", "illegal register"),
    ),
    "W a lock given twice": (
        [call("lock", "acquire", ["a"], 1, 0, 1), call("lock", "acquire", ["b"], 2, 2, 3)],
        ("W", "illegal lock"),
    ),
    "W a stale token accepted": (
        [
            call("lock", "acquire", ["a"], 1, 0, 1),
            call("lock", "expire", [], None, 2, 3),
            call("lock", "acquire", ["b"], 2, 4, 5),
            call("lock", "guarded", [1], True, 6, 7),
        ],
        ("W", "illegal lock"),
    ),
    "W a transaction with two ends": (
        [
            call("transaction", "prepare", [], None, 0, 1),
            call("transaction", "commit", [], True, 2, 3),
            call("transaction", "rollback", [], True, 4, 5),
        ],
        ("W", "illegal transaction"),
    ),
    "W a repeated sequence number at a new offset": (
        [call("sequence", "send", [1], 0, 0, 1), call("sequence", "send", [1], 1, 2, 3)],
        ("W", "illegal sequence"),
    ),
    "W a queue's lock given to two": (
        [
            call("queue_lock", "lock", ["a"], True, 0, 1),
            call("queue_lock", "lock", ["b"], True, 2, 3),
        ],
        ("W", "illegal queue_lock"),
    ),
    "W a queue's lock refused to its owner": (
        [
            call("queue_lock", "lock", ["a"], True, 0, 1),
            call("queue_lock", "lock", ["a"], False, 2, 3),
        ],
        ("W", "illegal queue_lock"),
    ),
    "W a topic's settings from before": (
        [call("config", "write", [7], None, 0, 1), call("config", "read", [], 0, 2, 3)],
        ("W", "illegal config"),
    ),
    "W a transaction ended before it began": (
        [half(10, 10, 11), resolve(10, "commit", 2, 3), resolve(10, "commit", 12, 13)],
        ("W", "illegal transaction"),
    ),
    "W a lost update of a configuration": (
        [
            call("versioned", "put", ["a", 0], 1, 0, 5),
            call("versioned", "put", ["b", 0], 1, 0, 5),
        ],
        ("W", "illegal versioned"),
    ),
    "W a reset forgotten": (
        [
            call("resettable_offset", "commit", [9], None, 0, 1),
            call("resettable_offset", "reset", [2], None, 2, 3),
            call("resettable_offset", "fetch", [], 9, 4, 5),
        ],
        ("W", "illegal resettable_offset"),
    ),
    "W a member added twice": (
        [
            call("membership", "add", ["n"], True, 0, 1),
            call("membership", "add", ["n"], True, 2, 3),
        ],
        ("W", "illegal membership"),
    ),
    "W a non-monotonic offset": (
        [meta(commits_monotonic=False), commit(3, 0, 1), fetch(2, 2, 3)],
        ("W", "illegal resettable_offset"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_history_is_found_guilty_by_its_rule(name: str) -> None:
    records, expected = BAD[name]
    verdict = judged(*records)
    assert expected in rules(verdict)
    assert verdict.outcome == "violated"


GOOD = {
    "all in order": [*SENT, group(ordered=True), *consumed(ALL)],
    "commits after done": [
        *SENT,
        group(ordered=True),
        *consumed(ALL),
        commit(2, 21.6, 22),
        commit(4, 30, 31),
    ],
    "redelivery to a new owner": [
        *SENT,
        group(ordered=True),
        *consumed([10, 11]),
        commit(1, 22, 23),
        revoke("c0", 25, reason="killed"),
        assign("c1", 30),
        *[event for event in consumed(ALL, 40, "c1") if getattr(event, "offset", 0) >= 1],
    ],
    "retry, then dead": [
        append(10, 0, 1, 0),
        group(max_attempts=2),
        deliver(10, 0, 20),
        done(10, 0, 21, result="retry"),
        deliver(10, 0, 30, queue=RETRY, attempt=2),
        done(10, 0, 31, queue=RETRY, result="retry"),
        Dead(group="g", value=10, t=50 * MS),
    ],
    "a retry delivered again to a new owner of the retries": [
        append(10, 0, 1, 0),
        group(max_attempts=2),
        assign("c0", 10, queue="%RETRY%g@b/0"),
        deliver(10, 0, 20),
        done(10, 0, 21, result="retry"),
        deliver(10, 0, 30, queue="%RETRY%g@b/0", attempt=2),
        done(10, 0, 31, queue="%RETRY%g@b/0"),
        assign("c1", 32, queue="%RETRY%g@b/0"),
        deliver(10, 0, 33, "c1", queue="%RETRY%g@b/0", attempt=2),
        done(10, 0, 34, "c1", queue="%RETRY%g@b/0"),
        revoke("c0", 35, queue="%RETRY%g@b/0"),
    ],
    "filtered by tag": [
        append(10, 0, 1, 0, tag="a"),
        append(11, 2, 3, 1, tag="b"),
        append(12, 4, 5, 2, tag="a"),
        group(ordered=True, tags=["a"]),
        deliver(10, 0, 20),
        done(10, 0, 21),
        deliver(12, 2, 22),
        done(12, 2, 23),
        commit(3, 24, 25),
    ],
    "a transaction committed, one rolled back, one unknown": [
        half(10, 0, 1),
        half(11, 0, 1),
        half(12, 0, 1),
        resolve(10, "commit", 2, 3),
        resolve(11, "rollback", 2, 3),
        resolve(12, "commit", 2, 3, status="info"),
        group(),
        deliver(10, 0, 20),
        done(10, 0, 21),
    ],
    "retried by one of two owners, processed by the other": [
        append(10, 0, 1, 0),
        group(max_attempts=3),
        assign("c0", 0),
        assign("c1", 10),
        deliver(10, 0, 20),
        done(10, 0, 21),
        deliver(10, 0, 22, "c1"),
        done(10, 0, 23, "c1", result="retry"),
        deliver(10, 0, 30, queue=RETRY, attempt=2),
        done(10, 0, 31, queue=RETRY, result="retry"),
        deliver(10, 1, 40, queue=RETRY, attempt=3),
        done(10, 1, 41, queue=RETRY),
        revoke("c0", 50),
    ],
    "handed back twice, because a fault hid the first answer": [
        append(10, 0, 1, 0),
        group(max_attempts=3),
        deliver(10, 0, 20),
        done(10, 0, 21, result="retry"),
        fault(20, 25, "F4"),
        deliver(10, 0, 30, queue=RETRY, attempt=2),
        done(10, 0, 31, queue=RETRY),
        deliver(10, 1, 40, queue=RETRY, attempt=2),
        done(10, 1, 41, queue=RETRY),
    ],
    "the retry queue changes hands too": [
        append(10, 0, 1, 0),
        group(max_attempts=2),
        deliver(10, 0, 20),
        done(10, 0, 21, result="retry"),
        deliver(10, 0, 30, queue=RETRY, attempt=2),
        Assign(group="g", consumer="c1", queue=RETRY, t=35 * MS),
        deliver(10, 0, 40, "c1", queue=RETRY, attempt=2),
        done(10, 0, 41, "c1", queue=RETRY),
    ],
    "recalled, and not delivered": [send(10, 0, 500), recall(10, 2, 3), group()],
    "a recall that nobody knows of": [
        send(10, 0, 500),
        recall(10, 2, 3, "info"),
        group(),
        *consumed([10], 900),
    ],
    "a queue that changes hands": [
        *SENT[:1],
        group(),
        assign("c0", 10),
        assign("c1", 11),
        *consumed([10])[1:],
        deliver(10, 0, 30, "c1"),
        done(10, 0, 31, "c1"),
        revoke("c0", 5000),
    ],
    "a queue's lock goes from hand to hand": [
        call("queue_lock", "lock", ["a"], True, 0, 1),
        call("queue_lock", "lock", ["b"], False, 2, 3),
        call("queue_lock", "unlock", ["b"], None, 4, 5),
        call("queue_lock", "lock", ["a"], True, 6, 7),
        call("queue_lock", "unlock", ["a"], None, 8, 9, "info"),
        call("queue_lock", "lock", ["b"], True, 10, 11),
    ],
    "a transaction ended twice in one way": [
        half(10, 0, 1),
        resolve(10, "commit", 2, 3, status="info"),
        resolve(10, "commit", 4, 5),
        resolve(10, "rollback", 6, 7, status="info"),
    ],
    "a check-back that a leader sends after it stood still": [
        meta(check_back_grace_ms=10),
        half(10, 0, 1),
        resolve(10, "rollback", 2, 3),
        fault(2, 50, "F5"),
        CheckBack(process=3, value=10, t=52 * MS),
    ],
    "late is not early": [send(10, 0, 500), group(), *consumed([10], 900)],
    "overlapping owners while one is paused": [
        *SENT[:2],
        group(ordered=True),
        fault(20.5, 40, "F5", targets=["c0"]),
        assign("c0", 19, offset=0),
        deliver(10, 0, 20, "c0"),
        revoke("c0", 29, reason="expired"),
        assign("c1", 30),
        deliver(10, 0, 31, "c1"),
        done(10, 0, 32, "c1"),
        deliver(11, 1, 33, "c1"),
        done(11, 1, 34, "c1"),
        done(10, 0, 45, "c0"),
    ],
    "commits of a group that says nothing of consuming": [append(10, 0, 1, 0), commit(9, 2, 3)],
    "commits that overlap": [commit(3, 0, 5), commit(2, 1, 6), fetch(3, 7, 8), fetch(3, 9, 10)],
    "an indeterminate commit": [commit(3, 0, 5, "info"), fetch(None, 7, 8), fetch(3, 9, 10)],
    "compare-and-set": [
        call("register", "write", [0], None, 0, 1),
        call("register", "cas", [0, 1], True, 2, 5),
        call("register", "cas", [1, 2], None, 2, 5, "info"),
        call("register", "read", [], 2, 6, 7),
    ],
    "a sequence number told late": [
        call("sequence", "send", [1], None, 0, 1, "info"),
        call("sequence", "send", [1], 0, 2, 3),
        call("sequence", "send", [2], 1, 4, 5),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_legal_history_is_valid(name: str) -> None:
    verdict = judged(*GOOD[name])
    assert (verdict.violations, verdict.reasons) == ([], [])


def test_lateness_and_duplicates_are_counted() -> None:
    verdict = judged(
        send(10, 0, 500), group(), *consumed([10], 900), fault(901, 902), deliver(10, 0, 950)
    )
    assert verdict.counts["late_ms_max"] == 400
    assert verdict.counts["duplicates"] == 1
