"""`dledger jepsen sim` itself: parallel jobs, what it prints and leaves, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jepsen_tests.sim.explorer import Job, explore, run_seed

SIM = [sys.executable, "-m", "cli", "jepsen", "sim", "--layer", "raft"]
EAGER = ["--control", "ack-before-quorum", "--seeds", "12"]


def children(pid: int) -> list[str]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return path.read_text().split() if path.exists() else []


def test_parallel_jobs_run_each_seed_once_and_alike() -> None:
    digests: dict[int, str] = {}
    job = Job(layer="raft", first=3, seeds=7, seconds=3.0, jobs=2)
    summary = explore(job, lambda result: digests.setdefault(result.seed, result.digest))
    assert summary.seeds == 7
    assert sorted(digests) == list(range(3, 10))
    assert digests[8] == run_seed(job, 8).digest


def test_a_violation_is_told_with_the_command_that_shows_it_again(tmp_path: Path) -> None:
    command = [*SIM, *EAGER, "--jobs", "2", "--out", str(tmp_path), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 4, ended.stderr
    told = json.loads(ended.stdout)
    first = told["violations"][0]
    replay = f"--layer raft --first {first['seed']} --control ack-before-quorum --trace"
    assert first["replay"].endswith(replay)
    assert replay in ended.stderr
    folder = tmp_path / f"raft-seed-{first['seed']}"
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) > 10

    again = subprocess.run(
        [*SIM, *replay.split()[2:]], capture_output=True, text=True, timeout=120, check=False
    )
    assert again.returncode == 4
    assert f"digest {first['digest']}" in again.stdout
    assert (folder / "trace.txt").read_text() in again.stdout


def runs(pid: str) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_exploration_tells_what_it_did_and_leaves_nobody(number: int) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("looks for child processes in /proc")
    command = [*SIM, "--seeds", "100000", "--jobs", "2", "--seconds", "3", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        deadline = time.monotonic() + 60
        while len(children(running.pid)) < 3:  # two workers and the resource tracker
            assert time.monotonic() < deadline, "no workers"
            time.sleep(0.05)
        workers = children(running.pid)
        time.sleep(1.0)  # any moment will do; this one is mostly in the middle of seeds
        os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
        out, errors = running.communicate(timeout=120)
    assert running.returncode == 5, errors
    assert json.loads(out)["seeds"] < 100_000
    assert "Traceback" not in errors
    while any(map(runs, workers)):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)
