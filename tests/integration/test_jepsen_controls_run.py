"""The fast controls over real processes: what is planted is found, by the rule named for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jepsen_tests.checkers import Outcome
from jepsen_tests.checkers.verdict import Verdict, Violation
from jepsen_tests.controls import (
    CONTROLS,
    Control,
    ControlResult,
    _caught,
    chosen,
    exit_code,
)
from jepsen_tests.hosts.capabilities import Backend, probe_capabilities
from jepsen_tests.planted.clients import (
    CallsUnknownFailed,
    CommitsFirst,
    member_class,
    recorder_class,
)
from jepsen_tests.planted.parts import PLANTS
from jepsen_tests.planted.stock_library import run_stock
from jepsen_tests.runner import RunResult
from jepsen_tests.workloads.group_member import Member
from jepsen_tests.workloads.recorder import Recorder

FAST = [control for control in CONTROLS if control.fast]
ELSEWHERE = {"K3", "K19", "K20"}  # another library, the nemesis, the clients' limits


@pytest.mark.parametrize("control", FAST, ids=[control.name for control in FAST])
def test_a_planted_fault_is_found(control: Control, tmp_path: Path) -> None:
    able = probe_capabilities()
    if able.backend is Backend.PROXY:
        pytest.skip(f"no network namespaces here: {able.netns or able.nft}")
    command = [sys.executable, "-P", "-m", "cli", "jepsen", "controls", "--only", control.name]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert any(f" {rule} " in done.stdout for rule in control.rules)


def test_every_control_has_something_planted_and_nothing_is_planted_without_a_control() -> None:
    names = {control.name for control in CONTROLS}
    clients = {
        n for n in names if member_class(n) is not Member or recorder_class(n) is not Recorder
    }
    assert clients == {"K12", "K13"}
    assert names == set(PLANTS) | clients | ELSEWHERE
    assert (member_class("K13"), recorder_class("K12")) == (CommitsFirst, CallsUnknownFailed)
    assert (member_class(""), recorder_class("")) == (Member, Recorder)


def test_the_library_that_we_use_survives_what_its_older_version_does_not(tmp_path: Path) -> None:
    verdict = run_stock(tmp_path, Path(sys.executable), print)
    assert (verdict.outcome, verdict.violations, verdict.reasons) == ("valid", [], [])


def test_what_is_planted_has_a_place_in_the_brokers() -> None:
    # Each in a process of its own: it changes the brokers of the whole process.
    program = """
import os
from jepsen_tests.planted.parts import PLANTS
for name, plant in PLANTS.items():
    if not os.fork():
        plant()
        os._exit(0)
    assert os.wait()[1] == 0, name
"""
    subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=60)


def test_a_control_that_could_not_be_run_is_neither_caught_nor_missed() -> None:
    caught = ControlResult(CONTROLS[0], "C1", "", 1.0)
    missed = ControlResult(CONTROLS[0], "", "valid", 1.0)
    not_run = ControlResult(CONTROLS[0], "", "no pip", 1.0, was_run=False)
    assert [exit_code(r) for r in ([caught], [caught, not_run], [not_run, missed])] == [0, 5, 4]


def test_a_control_counts_as_caught_by_its_own_rule_only() -> None:
    (control,) = chosen(["k9"])
    for rule, caught in (("C2", "C2"), ("D7", "")):
        verdict = Verdict(
            Outcome.VIOLATED, [Violation(rule, "kind", "queue", "text")], reasons=[], counts={}
        )
        result = RunResult(folder=Path(), outcome=verdict.outcome, verdict=verdict)
        assert _caught(control, result)[0] == caught
    with pytest.raises(LookupError, match="no control K99"):
        chosen(["K99"])
