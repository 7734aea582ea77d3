"""The fast controls over real processes: what is planted is found, by the rule named for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jepsen_tests.checkers import Outcome
from jepsen_tests.checkers.verdict import Verdict, Violation
from jepsen_tests.controls import CONTROLS, Control, _caught, chosen
from jepsen_tests.hosts.capabilities import Backend, probe_capabilities
from jepsen_tests.planted.clients import (
    CallsUnknownFailed,
    CommitsFirst,
    member_class,
    recorder_class,
)
from jepsen_tests.planted.parts import PLANTS
from jepsen_tests.runner import RunResult
from jepsen_tests.workloads.group_member import Member
from jepsen_tests.workloads.recorder import Recorder

FAST = [control for control in CONTROLS if control.fast]
OF_THE_HARNESS = {"K19", "K20"}


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
    assert names == set(PLANTS) | clients | OF_THE_HARNESS
    assert (member_class("K13"), recorder_class("K12")) == (CommitsFirst, CallsUnknownFailed)
    assert (member_class(""), recorder_class("")) == (Member, Recorder)


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
