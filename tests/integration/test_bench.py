"""The benches run and report; figures are compared by people, in one run."""

import json

import pytest

from cli.main import run
from dledger.testing import LocalCluster


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
