"""The benches run and report; figures are compared by people, in one run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import run
from dledger.testing import LocalCluster

ROOT = Path(__file__).resolve().parent.parent.parent


def script(name, *arguments):
    """Runs one of the benchmarks, with real processes; returns how it ended."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(replicas=1) as cluster:
        yield cluster


def test_every_case_reports(cluster, capsys):
    counts = ["--messages", "200", "--rate", "400", "--batch", "20", "--groups", "2"]
    assert run(["bench", "--nameserver", cluster.nameserver, *counts, "--json"]) == 0
    results = {entry["case"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {name: entry["messages"] for name, entry in results.items()} == {
        "send": 200,
        "batch": 200,
        "latency": 10,
        "paced": 20,
        "end-to-end": 20,
        # What the cases before have left: theirs, and one to connect in each.
        "read": 200 + 200 + 10 + 20 + 20 + 4,
        "raw": 200 + 200 + 10 + 20 + 20 + 4,
        "fan-out": 2 * 40,
    }
    assert all(entry["messages_per_s"] > 0 for entry in results.values())
    timed = ("send", "batch", "latency", "paced", "end-to-end")
    assert all(0 < results[name]["p50_ms"] <= results[name]["max_ms"] for name in timed)


def test_a_case_that_does_not_exist_is_refused(capsys):
    assert run(["bench", "nope"]) == 2
    assert "end-to-end" in capsys.readouterr().err


def test_chosen_rows_of_the_table_report(tmp_path):
    out = tmp_path / "bench.json"
    done = script("table.py", "--quick", "--rows", "read-128,batch", "--out", str(out))
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    lines = {(line["row"], line["figure"]): line for line in content["lines"]}
    assert set(lines) == {
        ("batch", "megabytes_per_s"),
        ("batch", "ratio_to_limit"),
        ("read-128", "messages_per_s"),
    }
    assert all(line["value"] > 0 for line in lines.values())
    assert {"cpu", "kernel", "python", "libraries", "commit"} <= content["machine"].keys()
    assert "| read a backlog, 128 B | messages_per_s |" in done.stdout


def test_a_row_that_does_not_exist_is_refused():
    done = script("table.py", "--rows", "nope")
    assert done.returncode == 2
    assert "send-128" in done.stderr
