"""The benches run and report; figures are compared by people, in one run."""

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import single
from cli.main import run
from dledger import AsyncPullConsumer
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


def test_large_bodies_travel_as_large_as_they_are(cluster):
    async def stored_bytes():
        async with AsyncPullConsumer("sizes", nameserver=cluster.nameserver) as consumer:
            for queue in await consumer.queues("large"):
                for message in await consumer.pull(queue, timeout_s=0):
                    yield message.size_bytes

    async def run_all():
        return [size async for size in stored_bytes()]

    load = ["--topic", "large", "--size", "65536", "--messages", "4"]
    assert run(["bench", "send", "--nameserver", cluster.nameserver, *load]) == 0
    sizes = asyncio.run(run_all())
    assert len(sizes) == 5 and min(sizes) > 65536  # and one to connect


def test_single_sends_go_over_several_connections(cluster):
    async def send():
        address = await single.leader_of(cluster.nameserver, "single", 2)
        shape = argparse.Namespace(queues=2, size=16, messages=60, window=20)
        return await single.send(address, "single", shape, connections=single.CONNECTING_MAX + 10)

    assert asyncio.run(send())["messages_per_s"] > 0


def test_chosen_rows_of_the_table_report(tmp_path):
    out = tmp_path / "bench.json"
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- table: begin -->\nstale\n<!-- table: end -->\nafter\n")
    where = ["--out", str(out), "--page", str(page), "--write"]
    done = script("table.py", "--quick", "--rows", "read-128,batch,latency", *where)
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    lines = {(line["row"], line["figure"]): line for line in content["lines"]}
    assert set(lines) == {
        ("batch", "megabytes_per_s"),
        ("batch", "ratio_to_limit"),
        ("latency", "p50_ms"),
        ("latency", "p99_ms"),
        ("read-128", "messages_per_s"),
    }
    assert all(line["value"] > 0 < line["ratio_to_limit"] for line in lines.values())
    assert {"cpu", "kernel", "python", "libraries", "commit"} <= content["machine"].keys()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    assert "| read a backlog, 128 B | messages/s |" in text


def test_a_row_that_does_not_exist_is_refused():
    done = script("table.py", "--rows", "nope")
    assert done.returncode == 2
    assert "send-128" in done.stderr


def test_experiments_on_growth_report_and_draw(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- growth: begin -->\nstale\n<!-- growth: end -->\nafter\n")
    out = tmp_path / "build" / "growth.json"
    where = ["--out", str(out), "--page", str(page), "--directory", str(tmp_path), "--write"]
    done = script("growth.py", "--quick", "--only", "size,retention", *where)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["experiments"]
    assert list(found) == ["size", "retention"]
    [size] = found["size"]["plots"]
    assert [point["x"] for point in size["series"][0]["points"]] == [16, 1024, 4 * 1024 * 1024]
    assert all(point["y"] > 0 < point["limit"] for point in size["series"][0]["points"])
    told = {check["name"]: check["reached"] for check in found["retention"]["checks"]}
    assert told["readers of what is gone are told so (1: yes)"]
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    pictures = {path.name for path in (tmp_path / "img").iterdir()}
    assert {"size.svg", "retention-pauses.svg", "retention-space.svg"} <= pictures
    # What clusters have written is gone.
    assert not list(tmp_path.glob("dledger-growth-*"))


def test_an_experiment_that_does_not_exist_is_refused():
    done = script("growth.py", "--only", "nope")
    assert done.returncode == 2
    assert "connections" in done.stderr
