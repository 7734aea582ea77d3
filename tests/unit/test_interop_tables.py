"""What is said about official clients: judged from observations, written between markers."""

import pytest

from interop.cases import CASES, Observation, Standstill, Verdict, standstill
from interop.table import (
    STANDSTILLS,
    TABLE,
    ClientRecord,
    compatibility_table,
    replace_between,
    rewrite,
    standstill_table,
)


def records():
    return {
        "one": ClientRecord(
            client="One 1.0",
            date="2026-01-02",
            verdicts={
                "send-sync": Verdict(case="send-sync", verdict="yes", detail="50"),
                "pop": Verdict(case="pop", verdict="absent", detail="no pop"),
            },
            standstills={
                "1": [
                    Standstill(send_ms=400, consume_ms=3100, failed=0, last_failure_ms=0),
                    Standstill(send_ms=900, consume_ms=3000, failed=2, last_failure_ms=50),
                    Standstill(send_ms=500, consume_ms=3200, failed=1, last_failure_ms=20),
                ]
            },
        ),
        "two": ClientRecord(
            client="Two 2.0",
            date="2026-01-03",
            verdicts={"send-sync": Verdict(case="send-sync", verdict="no", detail="it | broke")},
        ),
    }


def test_every_verdict_has_its_word_and_what_was_not_run_says_so():
    lines = compatibility_table(records()).splitlines()
    assert lines[0] == "|  | One 1.0 | Two 2.0 |"
    assert f"| {CASES['send-sync']} | yes | **no** |" in lines
    assert f"| {CASES['pop']} | not in that client | not run |" in lines
    assert f"| {CASES['transaction']} | not run | not run |" in lines
    assert "| Run on | 2026-01-02 | 2026-01-03 |" in lines
    assert lines[-1].startswith("* Two 2.0, ")
    assert lines[-1].endswith("it | broke")
    assert len([line for line in lines if line.startswith("|")]) == len(CASES) + 3


def test_standstills_are_told_by_their_median_and_the_longest():
    lines = standstill_table(records()).splitlines()
    assert len(lines) == 3
    assert lines[2] == (
        "| One 1.0 | 1 | 3 | 0.50 s, at most 0.90 s | 3.10 s, at most 3.20 s | 0 to 2 "
        "| 0.02 s, at most 0.05 s |"
    )


def test_a_page_keeps_what_stands_outside_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        f"before\n<!-- {TABLE}: begin -->\nold\n<!-- {TABLE}: end -->\nbetween\n"
        f"<!-- {STANDSTILLS}: begin -->\n<!-- {STANDSTILLS}: end -->\nafter\n"
    )
    rewrite(page, records())
    once = page.read_text()
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert once.index("One 1.0") < once.index("between") < once.index("0.50 s")
    rewrite(page, records())
    assert page.read_text() == once


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- m: begin -->",
        "<!-- m: end --><!-- m: begin -->",
        "<!-- m: begin --><!-- m: begin --><!-- m: end -->",
    ],
)
def test_a_page_without_its_markers_is_refused(text):
    with pytest.raises(ValueError, match="once each"):
        replace_between(text, "m", "content")


def test_only_known_verdicts_are_taken():
    with pytest.raises(ValueError, match="maybe"):
        Verdict(case="pop", verdict="maybe", detail="")


def seen(kind, began, ended, broker=""):
    return Observation(kind=kind, began_ms=began, ended_ms=ended, broker=broker)


def test_a_standstill_ends_with_what_began_after_the_kill():
    observations = [
        seen("sent", 990, 1005, "a"),  # under way at the kill
        seen("consumed", 990, 1010, "a"),
        seen("failed", 1010, 1400),
        seen("sent", 1410, 1500, "b"),
        seen("consumed", 1410, 1520, "b"),  # of the group that did not lose its leader
        seen("sent", 1520, 1600, "a"),
        seen("consumed", 1520, 4000, "a"),
    ]
    found = standstill(observations, 1000, "a", quiet_ms=2000)
    assert found == Standstill(send_ms=500, consume_ms=3000, failed=1, last_failure_ms=400)
    for end in range(len(observations)):
        assert standstill(observations[:end], 1000, "a", quiet_ms=2000) is None


def test_a_standstill_is_not_over_while_sends_keep_failing():
    observations = [
        seen("sent", 1010, 1100, "b"),
        seen("consumed", 1010, 1200, "a"),
        seen("failed", 9000, 9001),
        seen("sent", 9010, 9020, "b"),
    ]
    assert standstill(observations, 1000, "a", quiet_ms=2000) is None
    later = [*observations, seen("sent", 11_000, 11_010, "b")]
    found = standstill(later, 1000, "a", quiet_ms=2000)
    assert found is not None
    assert found.last_failure_ms == 8001
