"""From samples of the comparison with other brokers to its lines and its table."""

from benchmarks.peers import report
from benchmarks.peers.report import Results, Sample

KILL = "kill -9 of the leader"


def results() -> Results:
    found = Results(facts={"a": {"title": "Peer A", "version": "1.2"}, "b": {"title": "Peer B"}})
    for value in (900.0, 100.0, 300.0):
        found.samples.append(Sample("a", "publish", "messages_per_s", value))
    found.samples.append(Sample("b", "publish", "messages_per_s", 12345.4))
    found.samples += [Sample("a", KILL, "s", value) for value in (0.2, 0.5, 0.1)]
    return found


def test_a_line_is_the_median_with_its_range_and_what_is_known_of_the_peer() -> None:
    line = report.lines(results())[0]
    assert line == {
        "name": "publish",
        "figure": "messages_per_s",
        "value": 300,
        "goal": None,
        "reached": None,
        "peer": "a",
        "low": 100,
        "high": 900,
        "samples": 3,
        "title": "Peer A",
        "version": "1.2",
    }


def test_the_table_has_a_column_per_peer_and_a_dash_where_nothing_was_measured() -> None:
    table = report.markdown(report.lines(results()), ["c: cannot run here: no c"]).splitlines()
    assert table[0] == "|  | Peer A | Peer B |"
    assert "| publish, /s | 300 | 12,345 |" in table
    assert "| kill -9 of the leader, s | 0.2 (0.1 to 0.5) | - |" in table
    assert table[-1] == "* c: cannot run here: no c"


def test_a_run_without_any_result_is_a_table_too() -> None:
    assert report.markdown([], ["a: cannot run here: x"]).endswith("* a: cannot run here: x")
