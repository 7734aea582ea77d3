"""Replicas added, removed and rebuilt between real processes, with traffic."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli import probe
from cli.cluster import LocalCluster, free_port_base
from cli.errors import CommandError, UsageError
from cli.layout import ClusterSpec
from cli.members import LocalMembers
from dledger import Message, Producer, PullConsumer
from dledger.client.sync_admin import Admin
from dledger.errors import BrokerResponseError, DLedgerError
from tests.support.process_cluster import whole

GROUP = "broker-a"
SETTINGS = {"log_level": "INFO", "store": {"segment_bytes": 4 * 1024 * 1024}}


@contextmanager
def running(directory: Path, replicas: int = 3) -> Iterator[LocalCluster]:
    spec = ClusterSpec(replicas=replicas, port_base=free_port_base(20), settings=SETTINGS)
    with LocalCluster(directory, spec) as cluster:
        cluster.wait(whole)  # a leader that has not met them all refuses changes
        yield cluster


class Traffic:
    """Sends numbers, one after the other, and remembers what was acknowledged."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.acknowledged: list[int] = []
        self._cluster = cluster
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")

    def __enter__(self) -> Traffic:
        self._thread.start()
        self.grow(20)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()

    def grow(self, count: int) -> None:
        """Waits until so many more are acknowledged."""
        goal = len(self.acknowledged) + count
        wait(lambda: len(self.acknowledged) >= goal, "messages are acknowledged")

    def _run(self) -> None:
        number = 0
        with Producer("traffic", nameserver=self._cluster.nameserver) as producer:
            while not self._stopping.is_set():
                try:
                    producer.send(Message("t", b"%06d" % number + bytes(500)), shard_key="one")
                    self.acknowledged.append(number)
                except DLedgerError:
                    time.sleep(0.05)
                number += 1


def wait(condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


def create_topic(cluster: LocalCluster) -> None:
    with Admin(nameserver=cluster.nameserver) as admin:
        admin.create_topic("t", queue_count=1)


def stored(cluster: LocalCluster) -> list[int]:
    """Reads everything back."""
    with PullConsumer("reader", nameserver=cluster.nameserver) as consumer:
        [queue] = consumer.queues("t")
        end = consumer.offset_max(queue)
        consumer.seek(queue, 0)
        found: list[int] = []
        while len(found) < end:
            found += [int(message.body[:6]) for message in consumer.pull(queue, timeout_s=5.0)]
        return found


def check(cluster: LocalCluster, traffic: Traffic) -> None:
    """Everything acknowledged is there, once, in order; and all logs are equal, byte by byte."""
    found = stored(cluster)
    assert len(found) == len(set(found))
    assert found == sorted(found)
    assert not set(traffic.acknowledged) - set(found)

    def equal() -> bool:
        replicas = cluster.status().groups[0].replicas
        return len({(r.applied_index, r.durable_index, r.log_bytes) for r in replicas}) == 1

    wait(equal, "all replicas have the same")
    contents = set()
    for replica in cluster.status().groups[0].replicas:
        segments = sorted((cluster.directory / replica.id / "log").glob("[0-9]" * 20))
        contents.add(b"".join(path.read_bytes().rstrip(b"\0") for path in segments))
    assert len(contents) == 1


def test_a_corrupt_replica_refuses_is_rebuilt_and_is_equal_again(tmp_path: Path) -> None:
    said: list[str] = []
    with running(tmp_path) as cluster:
        create_topic(cluster)
        with Traffic(cluster) as traffic:
            victim = next(r.id for r in cluster.status().groups[0].replicas if r.role == "follower")
            cluster.kill(victim)
            [segment] = (tmp_path / victim / "log").glob("[0-9]" * 20)
            data = bytearray(segment.read_bytes())
            data[2000] ^= 1
            segment.write_bytes(data)
            cluster.start_one(victim)
            wait(lambda: victim in cluster.failures(), "the corrupt replica refuses")
            assert "corrupt record" in cluster.failures()[victim]
            traffic.grow(20)
            LocalMembers(cluster, said.append).rebuild(victim, 60.0)
            traffic.grow(20)
        check(cluster, traffic)
        # It counts: with it and one other there is a majority.
        cluster.kill(next(r.id for r in cluster.status().groups[0].replicas if r.id != victim))
        cluster.wait_serving()
        with Producer("after", nameserver=cluster.nameserver) as producer:
            producer.send(Message("t", b"after"))
        [aside] = (tmp_path / victim).glob("old-*")
        assert (aside / "log").is_dir()
    assert any("incarnation 1" in line for line in said)
    assert said[-1] == f"{victim} has caught up and votes"


def test_an_emptied_directory_is_refused_and_names_the_command(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        victim = next(r.id for r in cluster.status().groups[0].replicas if r.role == "follower")
        cluster.kill(victim)
        for name in ("log", "state", "snapshots"):
            shutil.rmtree(tmp_path / victim / name, ignore_errors=True)
        cluster.start_one(victim)
        wait(lambda: victim in cluster.failures(), "the emptied replica refuses")
        cluster.start_one(victim)
        wait(lambda: victim in cluster.failures(), "and refuses again")
        assert "dledger replica rebuild" in cluster.failures()[victim]
        LocalMembers(cluster).rebuild(victim, 60.0)
        assert cluster.pid(victim)


def test_a_group_is_replaced_replica_by_replica_under_load(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        create_topic(cluster)
        members = LocalMembers(cluster)
        with Traffic(cluster) as traffic:
            for _ in range(2):
                members.add(GROUP, 60.0)
                traffic.grow(10)
                leader = cluster.wait_serving().groups[0].leader
                assert leader is not None
                members.remove(leader)  # it hands over first
                traffic.grow(10)
        check(cluster, traffic)
        names = {replica.id for replica in cluster.status().groups[0].replicas}
        assert len(names) == 3
        assert len(names - {"broker-a-0", "broker-a-1", "broker-a-2"}) >= 1
        # And it starts again as it is now.
        cluster.stop()
        cluster.start()
        cluster.wait_serving()
        check(cluster, traffic)


def test_what_would_cost_the_majority_is_refused(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        status = cluster.status().groups[0]
        down, other = (r.id for r in status.replicas if r.id != status.leader)
        cluster.kill(down, signal.SIGKILL)
        with pytest.raises(BrokerResponseError, match="lose its majority"):
            LocalMembers(cluster).remove(other)
        assert cluster.pid(other)
        LocalMembers(cluster).rebuild(down, 60.0)  # which is not the one that runs


def test_a_replica_that_its_group_needs_is_not_stopped_for_a_rebuild(tmp_path: Path) -> None:
    with running(tmp_path, replicas=1) as cluster:
        pid = cluster.pid("broker-a-0")
        with pytest.raises(CommandError, match="broker-a-0 is needed"):
            LocalMembers(cluster).rebuild("broker-a-0", 60.0)
        assert cluster.pid("broker-a-0") == pid
        cluster.wait_serving()


def test_no_replica_is_planned_for_a_group_that_nobody_leads(tmp_path: Path) -> None:
    with running(tmp_path, replicas=1) as cluster:
        cluster.kill("broker-a-0", signal.SIGKILL)
        with pytest.raises(DLedgerError):
            LocalMembers(cluster).add(GROUP, 60.0)
        assert [replica.id for _, replica in cluster.layout.replicas()] == ["broker-a-0"]
        with pytest.raises(UsageError, match="no broker group absent; known: broker-a"):
            LocalMembers(cluster).add("absent", 60.0)


def test_replicas_name_those_who_belong_to_the_group_now(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        gone = next(
            replica.id
            for replica in cluster.status().groups[0].replicas
            if replica.role == "follower"
        )
        LocalMembers(cluster).remove(gone)
        addresses = [replica.address for _, replica in cluster.layout.replicas()]
        assert len(addresses) == 2

        def agreed() -> bool:
            tables = [probe.broker_runtime(address) or {} for address in addresses]
            named = [
                {part.partition("=")[0] for part in table.get("raftMembers", "").split(";")}
                for table in tables
            ]
            members = {replica.id for _, replica in cluster.layout.replicas()}
            return all(names == members for names in named)

        wait(agreed, "the removed replica is not named any more")
