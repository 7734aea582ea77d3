"""The command line over real processes: start, status, send, kill, read, stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from cli.status import ClusterStatus

COMMAND = [sys.executable, "-P", "-m", "cli"]
ROOT = Path(__file__).resolve().parents[2]


def environment(nameserver: str | None = None) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if k != "DLEDGER_NAMESERVER"}
    found["PYTHONPATH"] = str(ROOT)
    if nameserver:
        found["DLEDGER_NAMESERVER"] = nameserver
    return found


def dledger(
    *arguments: str, nameserver: str | None = None, code: int = 0, stdin: bytes = b""
) -> bytes:
    done = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        env=environment(nameserver),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    assert b"Traceback" not in done.stderr
    return done.stdout


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


def whole(status: ClusterStatus) -> bool:
    """All replicas answer, one leads, and all have applied the same."""
    [group] = status.groups
    return group.leader is not None and (
        len({(replica.applied_index, replica.answers) for replica in group.replicas}) == 1
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    settings = {"store": {"segment_bytes": 4 * 1024 * 1024}}
    spec = ClusterSpec(port_base=free_port_base(7), settings=settings)
    with LocalCluster(tmp_path / "data", spec) as made:
        yield made


def kill_leader(cluster: LocalCluster) -> str:
    leader = cluster.wait(lambda status: status.is_serving).groups[0].leader
    assert leader is not None
    cluster.kill(leader)
    return leader


def test_up_status_revive_down(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    base = free_port_base(8)
    shape = ["--nameservers", "2", "--port-base", str(base), "--data", data]
    first = json.loads(dledger("up", *shape, "--detach", "--json"))
    try:
        assert sorted(first["started"]) == [
            *("broker-a-0", "broker-a-1", "broker-a-2", "nameserver-0", "nameserver-1")
        ]
        status = json.loads(dledger("status", "--data", data, "--json"))
        assert set(status) == {"nameservers", "groups"}
        assert status["nameservers"] == [
            {"address": f"127.0.0.1:{base + number}", "alive": True} for number in (0, 1)
        ]
        [group] = status["groups"]
        assert set(group) == {"name", "term", "leader", "replicas"}
        replicas = {replica["id"]: replica for replica in group["replicas"]}
        assert sorted(replicas) == ["broker-a-0", "broker-a-1", "broker-a-2"]
        assert group["term"] >= 1
        for replica in replicas.values():
            assert set(replica) == {
                *("id", "role", "address", "raft_address", "pid", "alive"),
                *("commit_index", "applied_index", "durable_index", "log_bytes"),
                *("member", "incarnation"),
            }
            assert (replica["member"], replica["incarnation"]) == ("voter", 0)
            assert replica["alive"]
            assert replica["role"] == ("leader" if replica["id"] == group["leader"] else "follower")
            assert replica["commit_index"] >= 1
            os.kill(replica["pid"], 0)
        assert json.loads(dledger("up", "--data", data, "--detach", "--json"))["started"] == []
        dledger("up", "--data", data, "--replicas", "5", code=2)

        victim = next(name for name in replicas if name != group["leader"])
        os.kill(replicas[victim]["pid"], signal.SIGKILL)
        cluster = LocalCluster(data)
        until(lambda: not cluster.status().groups[0].replica(victim).alive)
        by_nameserver = json.loads(dledger("status", "--json", "--nameserver", cluster.nameserver))
        assert by_nameserver["groups"][0]["leader"] == group["leader"]
        again = json.loads(dledger("up", "--data", data, "--detach", "--json"))
        assert again["started"] == [victim]
        assert b"leader" in dledger("status", "--data", data)
    finally:
        dledger("down", "--data", data)
    stopped = json.loads(dledger("status", "--data", data, "--json"))
    assert not any(replica["alive"] for replica in stopped["groups"][0]["replicas"])
    assert not any(server["alive"] for server in stopped["nameservers"])
    dledger("down", "--data", data)


def test_foreground_reports_a_death_and_stops_all_on_ctrl_c(tmp_path: Path) -> None:
    data = tmp_path / "data"
    base = free_port_base(3)
    arguments = ["up", "--replicas", "1", "--port-base", str(base), "--data", str(data)]
    with (tmp_path / "err").open("w+b") as err:
        process = subprocess.Popen(
            [*COMMAND, *arguments], env=environment(), stdout=subprocess.PIPE, stderr=err
        )
        with process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline().startswith(b"ready")
                cluster = LocalCluster(data)
                cluster.kill("broker-a-0")

                def told() -> bytes:
                    return (tmp_path / "err").read_bytes()

                until(lambda: b"broker-a-0 was killed by SIGKILL" in told())
                assert json.loads(dledger("up", "--data", str(data), "--detach", "--json"))[
                    "started"
                ] == ["broker-a-0"]
                until(lambda: b"broker-a-0 runs again" in told())
            finally:
                process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    assert cluster.failures().keys() == {"broker-a-0", "nameserver-0"}


def test_nothing_is_lost_when_the_leader_dies_again_and_again(cluster: LocalCluster) -> None:
    """Numbered lines to one queue; the leader is killed three times meanwhile."""
    count = 60_000
    lines = [b"%d %s" % (number, b"x" * (number % 200)) for number in range(count)]
    producer = subprocess.Popen(
        [*COMMAND, "produce", "t", "-", "--queue", "0", "--json"],
        env=environment(cluster.nameserver),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with producer:
        assert producer.stdin is not None
        assert producer.stdout is not None
        for part in range(4):
            quarter = lines[part * count // 4 : (part + 1) * count // 4]
            producer.stdin.write(b"\n".join(quarter) + b"\n")
            producer.stdin.flush()
            if part < 3:
                victim = kill_leader(cluster)
                cluster.start_one(victim)
                cluster.wait(whole)
        producer.stdin.close()
        report = json.loads(producer.stdout.read())
        assert producer.wait(60) == 0
    assert report["lines"] == report["acknowledged"] == count
    assert report["failed"] == report["unknown"] == 0

    out = dledger(
        *("consume", "t", "--group", "g", "--from", "earliest", "--queue", "0", "--timeout", "2"),
        nameserver=cluster.nameserver,
    )
    assert report["possible_duplicates"] == 0
    assert out.splitlines() == lines, "every line once, in order"


def test_committed_offsets_survive_the_leader(cluster: LocalCluster) -> None:
    lines = [b"%d" % number for number in range(5000)]
    nameserver = cluster.nameserver
    dledger("topic", "create", "t", "--queues", "1", nameserver=nameserver)
    dledger("produce", "t", nameserver=nameserver, stdin=b"\n".join(lines))
    read = ["consume", "t", "--group", "g", "--from", "earliest", "--timeout", "3"]
    half = dledger(*read, "--count", "2500", nameserver=nameserver)
    assert half.splitlines() == lines[:2500]
    kill_leader(cluster)
    rest = dledger(*read, nameserver=nameserver)
    assert rest.splitlines() == lines[2500:]
    progress = json.loads(
        dledger("consumer", "progress", "--group", "g", "--json", nameserver=nameserver)
    )
    assert [q["consumer_offset"] for q in progress["queues"] if q["topic"] == "t"] == [5000]
    groups = json.loads(dledger("consumer", "list", "--json", nameserver=nameserver))
    assert "g" in [group["group"] for group in groups]


def test_all_replicas_killed_and_restarted(cluster: LocalCluster) -> None:
    lines = [b"%d" % number for number in range(3000)]
    nameserver = cluster.nameserver
    dledger("produce", "t", "--queue", "1", nameserver=nameserver, stdin=b"\n".join(lines))
    for _, replica in cluster.layout.replicas():
        cluster.kill(replica.id)
    started = cluster.start()
    assert sorted(started) == ["broker-a-0", "broker-a-1", "broker-a-2"]
    cluster.wait_serving()
    out = dledger(
        *("consume", "t", "--group", "g", "--from", "earliest", "--queue", "1", "--timeout", "2"),
        nameserver=nameserver,
    )
    assert out.splitlines() == lines


def test_topics_and_messages(cluster: LocalCluster) -> None:
    nameserver = cluster.nameserver
    dledger("topic", "create", "orders", "--queues", "2", nameserver=nameserver)
    listed = json.loads(dledger("topic", "list", "--json", nameserver=nameserver))
    assert listed == [
        {
            "topic": "orders",
            "broker_name": "broker-a",
            "read_queues": 2,
            "write_queues": 2,
            "permission": "rw",
        }
    ]
    everything = json.loads(dledger("topic", "list", "--all", "--json", nameserver=nameserver))
    assert "TBW102" in [topic["topic"] for topic in everything]
    data = b"one\n\n\xff\xfe two"
    dledger(
        "produce", "orders", "--shard-key", "k", "--tag", "a", nameserver=nameserver, stdin=data
    )
    shown: dict[str, Any] = json.loads(
        dledger("topic", "show", "orders", "--json", nameserver=nameserver)
    )
    assert sum(queue["offset_max"] for queue in shown["queues"]) == 3
    read = ["consume", "orders", "--group", "g", "--from", "earliest", "--count", "3"]
    messages = [
        json.loads(line)
        for line in dledger(*read, "--format", "json", nameserver=nameserver).splitlines()
    ]
    assert [message.get("body") for message in messages] == ["one", "", None]
    assert messages[2]["body_base64"] == "//4gdHdv"
    assert {message["tags"] for message in messages} == {"a"}

    message = messages[0]
    got = json.loads(
        dledger("message", "get", message["offset_message_id"], "--json", nameserver=nameserver)
    )
    assert got == message
    unique = ["message", "query", "orders", "--unique", "--key", message["message_id"]]
    assert json.loads(dledger(*unique, "--json", nameserver=nameserver)) == [message]
    assert b"one" in dledger(
        *("message", "get", message["message_id"], "--topic", "orders"), nameserver=nameserver
    )
    dledger("message", "query", "orders", "--key", "nope", nameserver=nameserver, code=1)
    dledger("topic", "delete", "orders", "--yes", nameserver=nameserver)
    dledger("topic", "show", "orders", nameserver=nameserver, code=1)
    dledger("consume", "orders", "--group", "g", "--queue", "0", nameserver=nameserver, code=1)


def test_second_process_on_a_data_directory_is_refused(cluster: LocalCluster) -> None:
    config = cluster.directory / "broker-a-0" / "broker.toml"
    done = subprocess.run(
        [*COMMAND, "broker", "start", "--config", str(config)],
        env=environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_producer_without_a_cluster_fails_definitely() -> None:
    dledger(
        *("produce", "t", "--timeout", "1", "--nameserver", "127.0.0.1:1"), stdin=b"x\n", code=1
    )


def test_nothing_to_read_is_told_from_nobody_to_ask(cluster: LocalCluster) -> None:
    nameserver = cluster.nameserver
    read = ["consume", "t", "--group", "g", "--from", "earliest", "--timeout", "0.5"]
    dledger(*read, nameserver="127.0.0.1:1", code=1)
    dledger(*read, nameserver=nameserver, code=1)  # no such topic
    dledger("topic", "create", "t", nameserver=nameserver)
    assert dledger(*read, nameserver=nameserver) == b""
    dledger("produce", "t", nameserver=nameserver, stdin=b"x\n")
    kill_leader(cluster)
    # In the middle of an election: that is waited for, whatever --timeout says of messages.
    assert dledger(*read, nameserver=nameserver) == b"x\n"


def test_demo() -> None:
    lines = dledger("demo", "--messages", "4000").splitlines()
    result = json.loads(lines[-1])
    assert set(result) == {
        *("acknowledged", "consumed", "lost", "duplicates", "out_of_order"),
        *("leader_before", "leader_after", "failover_ms", "seconds"),
    }
    assert result["acknowledged"] == 4000
    assert result["lost"] == result["duplicates"] == result["out_of_order"] == 0
    assert result["consumed"] == 4000
    assert result["leader_before"] != result["leader_after"]
    assert result["failover_ms"] > 0


def test_the_leadership_moves_on_request(cluster: LocalCluster) -> None:
    old = cluster.leader()
    target = next(replica.id for _, replica in cluster.layout.replicas() if replica.id != old)
    nameserver = cluster.layout.nameserver_addresses
    said = dledger("group", "transfer-leader", "broker-a", target, "--json", nameserver=nameserver)
    assert json.loads(said) == {"group": "broker-a", "leader": target}
    until(lambda: cluster.leader() == target)
    dledger("group", "transfer-leader", "broker-z", nameserver=nameserver, code=1)


def test_a_group_is_added_to_a_running_cluster(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    base = free_port_base(9)
    dledger("up", "--replicas", "1", "--data", data, "--port-base", str(base), "--detach")
    cluster = LocalCluster(data)
    try:
        nameserver = cluster.nameserver
        dledger("topic", "create", "t", "--queues", "2", nameserver=nameserver)
        added = json.loads(dledger("group", "add", "--replicas", "3", "--data", data, "--json"))
        assert added == {"group": "broker-b", "topics": ["t"]}
        shown = json.loads(dledger("topic", "show", "t", "--json", nameserver=nameserver))
        assert sorted(shown["groups"]) == ["broker-a", "broker-b"]
        cluster.refresh()
        assert [group.name for group in cluster.status().groups] == ["broker-a", "broker-b"]
        # The plan is the directory's from now on: nothing is missing, and all of it stops.
        again = json.loads(dledger("up", "--data", data, "--detach", "--json"))
        assert again["started"] == []
        said = dledger("topic", "extend", "--broker", "broker-b", nameserver=nameserver)
        assert said == b"broker-b: nothing was missing\n"
        dledger("topic", "extend", "--broker", "broker-z", nameserver=nameserver, code=2)
        dledger("topic", "extend", "nope", "--broker", "broker-b", nameserver=nameserver, code=2)
        order = ("topic", "order", "t")
        queues = "broker-a:2;broker-b:1"
        said = dledger(*order, "--queues", queues, nameserver=nameserver)
        assert said == b"t: keys go to 2 of broker-a, 1 of broker-b\n"
        assert dledger(*order, "--none", nameserver=nameserver) == b"t: no order topic\n"
        dledger(*order, "--queues", "broker-a", nameserver=nameserver, code=2)
        dledger("group", "add", "--replicas", "2", "--data", data, code=2)
        assert len(cluster.layout.groups) == 2
    finally:
        cluster.refresh()
        stopped = [result.name for result in cluster.stop()]
    assert sorted(stopped) == [
        "broker-a-0",
        "broker-b-0",
        "broker-b-1",
        "broker-b-2",
        "nameserver-0",
    ]
