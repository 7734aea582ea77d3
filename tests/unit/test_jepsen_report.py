"""What the harness says about a run: pauses, timeline, matrix, and bodies that show damage."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from jepsen_tests import matrix
from jepsen_tests.history import Append, Fault, Note, Phase
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.nemeses.registry import ALL_NAMES, NEMESES, parse_nemeses
from jepsen_tests.report.series import availability, measure
from jepsen_tests.report.timeline import Timeline
from jepsen_tests.workloads.bodies import body_of, value_of
from jepsen_tests.workloads.registry import WORKLOADS, find_workload

MS = 1_000_000
BEGIN = 5_000_000 * MS


def ack(at_ms: int, value: int) -> Append:
    ret = BEGIN + at_ms * MS
    return Append(
        process=1, queue="t@b/0", value=value, inv=ret - MS, ret=ret, status="ok", offset=value
    )


def sample() -> tuple[list[object], list[Phase]]:
    fault = Fault(
        id=1,
        name="F1",
        inv=BEGIN + 1000 * MS,
        ret=BEGIN + 2000 * MS,
        targets=["broker-a-0"],
        bit=True,
        proof={"packetsDropped": 7},
        details={"variant": "isolate <leader>"},
    )
    leader = Note(
        name="leader", t=BEGIN, node="broker-a-0", details={"group": "broker-a", "term": 1}
    )
    acks = [ack(at, at) for at in (*range(0, 1001, 100), *range(1800, 3000, 100))]
    lost = Append(
        process=2, queue="t@b/0", value=9, inv=BEGIN, ret=BEGIN + MS, status="info", error="E 12"
    )
    phases = [Phase(name="load", t=BEGIN), Phase(name="heal", t=BEGIN + 3000 * MS)]
    return [*acks, lost, fault, leader], phases


def test_the_pause_of_a_fault_is_found_with_the_fault() -> None:
    records, phases = sample()
    series = measure(records, phases)  # type: ignore[arg-type]
    assert [(round(gap.ms), gap.faults) for gap in series.gaps] == [(800, ("F1 isolate <leader>",))]
    figures = availability(series)
    assert figures["longestAckGapMs"] == 800.0
    assert figures["shareOfTimeWithAcks"] == pytest.approx(1 - 0.8 / 3, abs=1e-3)
    assert series.errors == {"info: E ##": 1}


def test_the_timeline_is_well_formed_and_shows_fault_and_leader() -> None:
    records, phases = sample()
    svg = Timeline(measure(records, phases), ["broker-a-0", "broker-a-1"]).render()  # type: ignore[arg-type]
    root = ElementTree.fromstring(svg)
    text = "".join(root.itertext())
    assert "packetsDropped 7" in text and "isolate <leader>" in text
    assert "broker-a-0 leads term 1" in text


def test_a_run_without_anything_has_a_timeline_too() -> None:
    ElementTree.fromstring(Timeline(measure([], []), []).render())


def test_a_damaged_body_is_no_value() -> None:
    body = body_of(123_456, 64)
    assert value_of(body) == 123_456
    for at in range(64):
        spoiled = bytearray(body)
        spoiled[at] ^= 4
        assert str(value_of(bytes(spoiled))).startswith("damaged:")


def test_every_fault_family_runs_or_says_what_it_waits_for() -> None:
    assert [f"F{number}" for number in range(1, 15)] == list(ALL_NAMES)
    assert set(NEMESES) == set(ALL_NAMES)
    assert parse_nemeses("f1, F4,F1") == ["F1", "F4"]
    assert parse_nemeses("none") == []
    with pytest.raises(HarnessError, match="no nemesis F99"):
        parse_nemeses("F99")


def test_a_workload_that_does_not_exist_is_refused() -> None:
    assert find_workload("w1") is WORKLOADS["W1"]
    with pytest.raises(HarnessError, match="no workload W99"):
        find_workload("W99")


def test_smoke_fits_its_budget_and_the_full_tier_has_every_cell() -> None:
    smoke = matrix.cells("smoke")
    length_s = sum(cell.time_s + matrix.OVERHEAD_S for cell in smoke)
    assert length_s <= matrix.SMOKE_BUDGET_S - matrix.SPARE_S
    log = {name for cell in smoke if cell.workload == "W1" for name in cell.nemeses}
    assert log == {"F1", "F2", "F4", "F5", "F7", "F10"}
    full = matrix.cells("full")
    assert {cell.workload for cell in full} == {f"W{number}" for number in range(1, 8)} | {
        "W2-GROUP"
    }
    assert set(ALL_NAMES) <= {name for cell in full for name in cell.nemeses}
    assert sum(cell.time_s + matrix.OVERHEAD_S for cell in full) <= 3600


def test_loads_get_shorter_when_earlier_runs_took_too_long() -> None:
    todo = [matrix.Cell("W1", ("F1",), 30), matrix.Cell("W1", ("F2",), 10)]
    assert matrix.fitted_s(todo, 100) == 30
    assert matrix.fitted_s(todo, 40 + 2 * matrix.OVERHEAD_S) == 30
    assert matrix.fitted_s(todo, 20 + 2 * matrix.OVERHEAD_S) == 15
    assert matrix.fitted_s(todo, 20 + 2 * 14, 14) == 15
    assert matrix.fitted_s(todo[1:], 5 + matrix.OVERHEAD_S) == matrix.LOAD_MIN_S
    assert matrix.fitted_s(todo, -5) == matrix.LOAD_MIN_S


def test_the_worst_run_decides_a_matrix() -> None:
    valid = matrix.CellResult(matrix.Cell("W1", ("F1",), 60), "valid", 60.0)
    unknown = matrix.CellResult(matrix.Cell("W1", ("F1",), 60), "unknown", 60.0)
    violated = matrix.CellResult(matrix.Cell("W1", ("F1",), 60), "violated", 60.0)
    assert matrix.matrix_exit_code([]) == 5
    assert matrix.matrix_exit_code([valid]) == 0
    assert matrix.matrix_exit_code([valid, unknown]) == 5
    assert matrix.matrix_exit_code([valid, unknown, violated]) == 4
