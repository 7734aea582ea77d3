"""`dledger doctor`, `config show`, `message explain`, quotas and guard: real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger import Admin, Message, Producer, PushConsumer
from dledger.model import GroupConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("doctor") / "cluster"
    spec = ClusterSpec(replicas=3, port_base=free_port_base(7))
    with LocalCluster(directory, spec) as started:
        yield started


def run(*arguments: str, code: int = 0) -> Any:
    environment = {k: v for k, v in os.environ.items() if k != "DLEDGER_NAMESERVER"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli", *arguments, "--json"],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout[-3000:], done.stderr[-2000:])
    return json.loads(done.stdout)


def until(condition: Any, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.05)


def levels(report: Any) -> dict[str, str]:
    worst: dict[str, str] = {}
    rank = ["good", "warning", "problem"]
    for finding in report["findings"]:
        old = worst.get(finding["check"], "good")
        worst[finding["check"]] = max(old, finding["level"], key=rank.index)
    return worst


def test_a_healthy_cluster_then_one_without_a_replica(cluster: LocalCluster) -> None:
    cluster.wait_settled(10)
    report = run("doctor", "--data", str(cluster.directory))
    assert report["healthy"], report
    assert set(levels(report).values()) == {"good"}
    victim = next(r.id for r in cluster.status().groups[0].replicas if r.role == "follower")
    cluster.kill(victim)
    report = run("doctor", "--data", str(cluster.directory), code=4)
    assert levels(report)["quorum"] == "problem"
    # Without the data directory, the others name the one that is missing.
    report = run("doctor", "--nameserver", cluster.nameserver, code=4)
    assert levels(report)["quorum"] == "problem"
    cluster.start_one(victim)
    until(lambda: all(r.answers for r in cluster.status().groups[0].replicas))


def test_members_that_subscribe_to_different_things(cluster: LocalCluster) -> None:
    with Admin(nameserver=cluster.nameserver) as admin:
        admin.create_topic("t")

    def consumer(expression: str) -> PushConsumer:
        return PushConsumer("g", subscriptions={"t": expression}, nameserver=cluster.nameserver)

    with consumer("a") as one, consumer("b") as other:
        assert one.wait_assigned() and other.wait_assigned()
        report = run("doctor", "--nameserver", cluster.nameserver, code=4)
        assert levels(report)["subscriptions"] == "problem"
        (text,) = [f["text"] for f in report["findings"] if f["check"] == "subscriptions"]
        assert "members of g" in text and "t a" in text and "t b" in text


def test_without_a_nameserver_there_is_no_diagnosis(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli", "doctor", "--nameserver", "127.0.0.1:1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert b"no nameserver answers" in done.stderr


def test_settings_of_running_replicas_and_of_files(cluster: LocalCluster) -> None:
    status = cluster.status().groups[0]
    leader = status.replica(status.leader or "").address
    (settings,) = run("config", "show", "--nameserver", cluster.nameserver).values()
    assert settings["store.flush"] == "sync"
    assert settings["limits.topics_max"] == "20000"
    found = run("config", "show", "--address", leader, "--changed")[leader]
    assert "limits.topics_max" not in found
    file = str(cluster.directory / "broker-a-0" / "broker.toml")
    assert run("config", "show", "--config", file)[file]["replica_id"] == "broker-a-0"


def test_quotas_and_the_guard(cluster: LocalCluster) -> None:
    place = ("--nameserver", cluster.nameserver)
    with Admin(nameserver=cluster.nameserver) as admin:
        admin.create_topic("limited", queue_count=1)
        admin.create_group(GroupConfig(name="guarded"))
    none = {"messages_per_second": None, "bytes_per_second": None}
    assert run("topic", "quota", "limited", *place) == {"broker-a": none}
    found = run("topic", "quota", "limited", "--messages", "5", "--bytes", "1e6", *place)
    assert found == {"broker-a": {"messages_per_second": 5.0, "bytes_per_second": 1e6}}
    found = run("topic", "quota", "limited", "--messages", "off", *place)
    assert found == {"broker-a": {"messages_per_second": None, "bytes_per_second": 1e6}}
    found = run("consumer", "quota", "--group", "guarded", "--messages", "7", *place)
    assert found["guarded"]["messages_per_second"] == 7
    assert run("consumer", "guard", "--group", "guarded", *place)["guard"] == "warn"
    assert run("consumer", "guard", "--group", "guarded", "refuse", *place)["guard"] == "refuse"
    assert run("consumer", "guard", "--group", "guarded", *place)["guard"] == "refuse"
    with Admin(nameserver=cluster.nameserver) as admin:
        (config,) = [group for group in admin.groups() if group.name == "guarded"]
    assert len(config.attributes) == 2, "neither has taken away the other"


@pytest.mark.parametrize(
    "arguments",
    [
        ["consumer", "progress", "--group", "absent"],
        ["consumer", "clone", "--from-group", "absent", "--to-group", "other"],
    ],
)
def test_a_group_that_does_not_exist_is_not_one_without_lag(
    cluster: LocalCluster, arguments: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli", *arguments, "--nameserver", cluster.nameserver],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.decode() == "error: no broker has consumer group absent\n"


def test_a_message_is_explained(cluster: LocalCluster) -> None:
    with Admin(nameserver=cluster.nameserver) as admin:
        admin.create_topic("told", queue_count=1)
    with Producer(nameserver=cluster.nameserver) as producer:
        sent = producer.send(Message("told", b"x"))
    place = ("--nameserver", cluster.nameserver)

    def explained() -> Any:
        return run("message", "explain", sent.message_id, "--topic", "told", *place)

    until(lambda: all(copy["holds"] and copy["durable"] for copy in explained()["replicas"]))
    found = explained()
    assert len(found["replicas"]) == 3
    assert found["log_index"] > 0 and found["log_term"] > 0
    assert found["groups"] == []
