"""Processes are recognised by pid and command line; nothing else is ever signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.supervisor import (
    LOG_BYTES_MAX,
    ProcessPlan,
    Supervisor,
    command_line,
    is_ours,
    log_tail,
    read_pid,
)
from dledger.clock import SystemClock

# A module of the standard library that runs until it is told to stop.
STAYS = "http.server"


def plan_in(directory: Path, module: str = STAYS, *more: str) -> ProcessPlan:
    return ProcessPlan(
        name="one",
        module=module,
        arguments=("0", "--bind", "127.0.0.1", "--directory", str(directory), *more),
        marker=str(directory),
        directory=directory,
    )


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    yield Supervisor(SystemClock())


def test_start_recognise_and_stop(tmp_path: Path, supervisor: Supervisor) -> None:
    plan = plan_in(tmp_path)
    assert supervisor.running_pid(plan) is None
    pid = supervisor.start(plan)
    assert supervisor.running_pid(plan) == pid
    assert os.getsid(pid) == pid  # Ctrl-C on our terminal does not reach it
    # Another supervisor (another terminal) sees it as well.
    assert Supervisor(SystemClock()).running_pid(plan) == pid
    [result] = supervisor.stop_all([plan], grace_s=10)
    assert (result.pid, result.killed) == (pid, False)
    assert supervisor.running_pid(plan) is None
    assert supervisor.exit_code(pid) == -signal.SIGTERM
    assert not plan.pid_path.exists()
    assert supervisor.stop_all([plan], grace_s=1) == []


def test_stopped_process_ends_on_sigterm(tmp_path: Path, supervisor: Supervisor) -> None:
    plan = plan_in(tmp_path)
    supervisor.start(plan)
    supervisor.signal(plan, signal.SIGSTOP)
    [result] = supervisor.stop_all([plan], grace_s=10)
    assert not result.killed


def test_process_that_ignores_sigterm_is_killed(tmp_path: Path, supervisor: Supervisor) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import pathlib, signal, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(sys.argv[1], 'ready').touch()\n"
        "while True: signal.pause()\n"
    )
    plan = ProcessPlan(
        name="one",
        module="stubborn",
        arguments=(str(tmp_path),),
        marker=str(tmp_path),
        directory=tmp_path,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        pid = supervisor.start(plan)
    while not (tmp_path / "ready").exists():
        assert supervisor.is_running(plan, pid)
    [result] = supervisor.stop_all([plan], grace_s=0.05)
    assert result.killed
    assert supervisor.exit_code(pid) == -signal.SIGKILL


def test_a_stranger_with_the_recorded_pid_is_left_alone(
    tmp_path: Path, supervisor: Supervisor
) -> None:
    plan = plan_in(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        plan.pid_path.write_text(str(stranger.pid))
        assert supervisor.running_pid(plan) is None
        assert supervisor.signal(plan, signal.SIGKILL) is None
        assert supervisor.stop_all([plan], grace_s=1) == []
        assert stranger.poll() is None
        stranger.communicate(b"\n")


@pytest.mark.parametrize("text", ["", "x", "-5", "0", "1", "99999999999", "é"])
def test_nonsense_in_a_pid_file(text: str, tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    plan.pid_path.write_text(text, encoding="utf-8")
    assert read_pid(plan) is None


def test_zombies_and_absent_processes_have_no_command_line(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert command_line(child.pid) == []
    child.wait()
    assert command_line(child.pid) == []
    own = command_line(os.getpid())
    assert own
    assert not is_ours(plan_in(tmp_path), own)


def test_log_tail_and_rotation(tmp_path: Path, supervisor: Supervisor) -> None:
    plan = plan_in(tmp_path, "timeit")
    assert log_tail(plan) == ""
    plan.log_path.write_bytes(b"x" * (LOG_BYTES_MAX + 1) + b"\none\n\ntwo\nthree\nfour\n")
    assert log_tail(plan) == "two\nthree\nfour"
    pid = supervisor.start(plan)  # timeit refuses these arguments and ends
    supervisor.wait_gone(plan, pid, 20)
    assert plan.log_path.stat().st_size < LOG_BYTES_MAX
    assert plan.log_path.with_suffix(".log.1").exists()
    assert supervisor.exit_code(pid)
