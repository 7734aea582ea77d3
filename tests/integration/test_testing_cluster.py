"""`dledger.testing.LocalCluster`: faults, what they do to clients, and that nothing remains."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from dledger import (
    AsyncProducer,
    ConsumeFrom,
    Message,
    Producer,
    ProducerConfig,
    PullConsumer,
    SessionConfig,
    errors,
)
from dledger.testing import AsyncLocalCluster, LocalCluster
from dledger.testing.places import Ports, TemporaryHome, remove_orphans


@pytest.fixture(scope="module")
def shared():
    with LocalCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared):
    yield shared
    shared.mend()


def send(cluster, body, topic="t"):
    with Producer("p", nameserver=cluster.nameserver) as producer:
        return producer.send(Message(topic, body))


def bodies(cluster, topic="t"):
    with PullConsumer(
        "reader", nameserver=cluster.nameserver, consume_from=ConsumeFrom.EARLIEST
    ) as consumer:
        found = []
        for queue in consumer.queues(topic):
            consumer.seek(queue, 0)
            while batch := consumer.pull(queue, timeout_s=0):
                found += [message.body for message in batch]
        return sorted(found)


def test_a_killed_leader_is_replaced_and_comes_back_with_its_data(cluster):
    cluster.create_topic("kill")
    send(cluster, b"1", "kill")
    killed = cluster.kill_leader()
    assert cluster.state(killed) == "down"
    send(cluster, b"2", "kill")
    assert cluster.leader() != killed
    assert cluster.restart() == [killed]
    cluster.wait_until_serving()
    assert bodies(cluster, "kill") == [b"1", b"2"]


def test_an_isolated_leader_is_replaced_and_follows_when_healed(cluster):
    cluster.create_topic("cut")
    old = cluster.leader()
    with cluster.partition([old]):
        send(cluster, b"in the majority", "cut")
        assert cluster.leader() != old
    cluster.wait_until_serving()
    assert bodies(cluster, "cut") == [b"in the majority"]


def test_without_a_majority_nothing_is_acknowledged(cluster):
    cluster.create_topic("split")
    islands = [[replica] for replica in cluster.replicas()]
    config = ProducerConfig(
        send_timeout_s=1.5, attempt_timeout_s=1.0, session=SessionConfig(operation_timeout_s=1.5)
    )
    with (
        cluster.partition(*islands),
        Producer("p", nameserver=cluster.nameserver, config=config) as producer,
        pytest.raises(errors.SendFailedError),
    ):
        producer.send(Message("split", b"x"))


def test_a_paused_leader_answers_nothing_until_resumed(cluster):
    cluster.create_topic("pause")
    old = cluster.leader()
    cluster.pause(old)
    assert cluster.state(old) == "paused"
    send(cluster, b"meanwhile", "pause")
    assert cluster.leader() != old
    cluster.resume(old)
    assert cluster.state(old) == "running"
    send(cluster, b"after", "pause")


def test_an_orderly_stop_hands_over_and_a_paused_replica_can_be_killed(cluster):
    old = cluster.leader()
    cluster.stop(old)
    assert cluster.leader() != old
    cluster.restart(old)
    paused = cluster.leader()
    cluster.pause(paused)
    cluster.kill(paused)
    assert cluster.state(paused) == "down"


def test_unknown_names_are_refused(cluster):
    for call in (
        lambda: cluster.kill("broker-z-9"),
        lambda: cluster.leader("broker-z"),
        lambda: cluster.partition(["nobody"]),
        lambda: LocalCluster(replicas=2),
        lambda: LocalCluster(groups=0),
        lambda: LocalCluster(groups=[1, 4]),
    ):
        with pytest.raises(errors.InvalidParameterError):
            call()
    with pytest.raises(errors.LocalProtocolError):
        LocalCluster().kill_leader()


def test_groups_of_different_size_and_one_more_while_running():
    with LocalCluster(groups=[1, 3]) as cluster:
        assert cluster.groups == ["broker-a", "broker-b"]
        assert len(cluster.replicas("broker-b")) == 3
        cluster.create_topic("t", queue_count=1)
        assert cluster.add_group(1) == "broker-c"
        cluster.create_topic("t", queue_count=1, groups=["broker-c"])
        with Producer("p", nameserver=cluster.nameserver) as producer:
            names = [queue.broker_name for queue in producer.queues("t")]
        assert names == ["broker-a", "broker-b", "broker-c"]


def test_in_an_event_loop():
    async def main():
        async with AsyncLocalCluster(replicas=3) as cluster:
            await cluster.create_topic("t")
            async with AsyncProducer("p", nameserver=cluster.nameserver) as producer:
                sends = [producer.send(Message("t", b"%d" % number)) for number in range(100)]
                killed = await cluster.kill_leader()
                await asyncio.gather(*sends)
                assert await cluster.restart() == [killed]
            return cluster.cluster

    assert bodies_of_closed(asyncio.run(main()))


def bodies_of_closed(cluster):
    return repr(cluster) == "<LocalCluster closed>"


def test_closing_leaves_no_thread_no_directory_and_no_port():
    def ours():
        return [t.name for t in threading.enumerate() if t.name.startswith("dledger-test")]

    before = ours()
    cluster = LocalCluster(replicas=1)
    with cluster:
        home = cluster._home.path
        port = int(cluster.address("broker-a-0").rpartition(":")[2])
        assert home.is_dir()
        assert len(ours()) > len(before)
    cluster.close()
    assert ours() == before
    assert not home.exists()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_a_killed_test_process_leaves_nothing_behind(tmp_path):
    program = (
        "import sys, time\n"
        "from dledger.testing import LocalCluster\n"
        "with LocalCluster(directory=sys.argv[1]) as cluster:\n"
        "    print(cluster.nameserver, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    host, _, port = process.stdout.readline().decode().strip().partition(":")
    [home] = tmp_path.iterdir()
    assert remove_orphans(tmp_path) == []  # it is in use
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody else was in its process group
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0
    TemporaryHome(tmp_path).remove()  # the next cluster cleans up
    assert list(tmp_path.iterdir()) == []
    assert not home.exists()


def test_a_taken_port_is_given_to_nobody_else():
    ports = Ports()
    try:
        taken = {ports.take() for _ in range(50)}
        assert len(taken) == 50
    finally:
        ports.release()


def test_ready_in_about_a_second():
    """The promise of the README, with room for a busy machine; typically 0.3-0.5 s."""
    began = time.monotonic()
    with LocalCluster():
        took = time.monotonic() - began
    assert took < 5


def test_servers_do_not_write_into_a_program_without_logging():
    program = """
from dledger.testing import LocalCluster

with LocalCluster(replicas=3) as cluster:
    cluster.restart(cluster.kill_leader())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
