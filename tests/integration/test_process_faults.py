"""What a cluster of real processes must stand: kills, stops, damage, full disks, strangers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec, save_layout
from dledger.client.config import ProducerConfig
from dledger.client.sync import Producer, PullConsumer
from dledger.client.sync_admin import Admin
from dledger.errors import DLedgerError
from dledger.message import Message
from dledger.model import MessageQueue
from store.record import RecordScanner, ScanStop, encode_record
from tests.support.process_cluster import (
    address_of,
    followers,
    raft_address_of,
    until,
    wait_leader,
    whole,
)
from tests.support.process_load import Load, MemoryWatch, read_numbers

MIB = 1024 * 1024
QUEUE = MessageQueue("t", "broker-a", 0)
SETTINGS = {"store": {"segment_bytes": 4 * MIB}}


@contextlib.contextmanager
def running(directory: Path, **settings: object) -> Iterator[LocalCluster]:
    spec = ClusterSpec(port_base=free_port_base(7), settings={**SETTINGS, **settings})
    with LocalCluster(directory / "data", spec) as cluster:
        with Admin(nameserver=cluster.nameserver) as admin:
            admin.create_topic("t", queue_count=1)
        yield cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with running(tmp_path) as made:
        yield made


def restart(cluster: LocalCluster, name: str) -> None:
    cluster.start_one(name)
    cluster.wait(lambda status: status.groups[0].replica(name).answers)


# --- killed and stopped -------------------------------------------------------------------------


def test_random_replicas_killed_at_random_moments_under_load(cluster: LocalCluster) -> None:
    """The leader every other time, and again before all have caught up."""
    chance = random.Random(7)
    names = [place.id for _, place in cluster.layout.replicas()]
    with Load(cluster.nameserver) as load:
        load.wait_acknowledged(100)
        for turn in range(8):
            victim = wait_leader(cluster) if turn % 2 == 0 else chance.choice(names)
            time.sleep(chance.uniform(0, 0.3))
            cluster.kill(victim)
            load.wait_acknowledged(50)
            time.sleep(chance.uniform(0, 0.3))
            restart(cluster, victim)
        load.wait_acknowledged(100)
    assert not load.refused
    load.check()
    cluster.wait(whole)


def test_all_killed_at_once_in_the_middle_of_writes_again_and_again(
    cluster: LocalCluster,
) -> None:
    chance = random.Random(8)
    names = [place.id for _, place in cluster.layout.replicas()]
    with Load(cluster.nameserver) as load:
        for _ in range(3):
            load.wait_acknowledged(200)
            time.sleep(chance.uniform(0, 0.2))
            pids = [cluster.pid(name) for name in names]
            for pid in pids:
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            until(lambda: all(cluster.pid(name) is None for name in names))
            chance.shuffle(names)
            for name in names:
                cluster.start_one(name)
                time.sleep(chance.uniform(0, 0.3))
        load.wait_acknowledged(200)
    load.check()
    cluster.wait(whole)


def test_a_stopped_follower_costs_no_memory_and_no_leader(cluster: LocalCluster) -> None:
    """benchmarks/slow_follower.py stops it for 30 s."""
    leader = wait_leader(cluster)
    leader_pid = cluster.pid(leader)
    assert leader_pid is not None
    term = cluster.status().groups[0].term
    sleeper = followers(cluster, leader)[0]
    with Load(cluster.nameserver, in_flight=500, body_bytes=4000) as load:
        load.wait_acknowledged(5000)  # caches are warm
        before = load.sent
        cluster.kill(sleeper, signal.SIGSTOP)
        try:
            with MemoryWatch(leader_pid) as memory:
                time.sleep(4)
                until(lambda: (load.sent - before) * 4000 > 80 * MIB, 60)
        finally:
            cluster.kill(sleeper, signal.SIGCONT)
        load.wait_acknowledged(100)
        cluster.wait(lambda status: _lag(status, sleeper) < 200, 60)
    assert memory.largest - memory.first < 48 * MIB, (memory.first, memory.largest)
    load.check()
    status = cluster.wait(whole)
    assert status.groups[0].leader == leader
    assert status.groups[0].term == term, "there was an election for nothing"
    assert load.longest_gap_s() < 3


def _lag(status, name: str) -> int:
    [group] = status.groups
    newest = max(replica.applied_index or 0 for replica in group.replicas)
    return newest - (group.replica(name).applied_index or 0)


def test_a_stopped_leader_is_replaced_and_follows_when_it_wakes(cluster: LocalCluster) -> None:
    with Load(cluster.nameserver) as load:
        load.wait_acknowledged(200)
        leader = wait_leader(cluster)
        cluster.kill(leader, signal.SIGSTOP)
        try:
            load.wait_acknowledged(200)
            successor = wait_leader(cluster)
            assert successor != leader
        finally:
            cluster.kill(leader, signal.SIGCONT)
        cluster.wait(lambda status: status.groups[0].replica(leader).role == "follower")
        load.wait_acknowledged(200)
    assert load.longest_gap_s() < 4
    load.check()
    assert cluster.wait(whole).groups[0].leader == successor


# --- damage -------------------------------------------------------------------------------------


def segments(cluster: LocalCluster, name: str) -> list[Path]:
    log = cluster.directory / name / "log"
    return sorted(path for path in log.iterdir() if path.name.isdigit())


def fill(cluster: LocalCluster, count: int, size: int) -> None:
    with Producer("p", nameserver=cluster.nameserver) as producer:
        futures = [
            producer.submit(Message("t", b"%d " % n + bytes(size)), queue=0) for n in range(count)
        ]
        for future in futures:
            future.result(30)


def test_a_torn_last_record_is_cut_and_comes_again_from_the_others(cluster: LocalCluster) -> None:
    with Load(cluster.nameserver) as load:
        load.wait_acknowledged(500)
        victim = wait_leader(cluster)
        cluster.kill(victim)
        segment = segments(cluster, victim)[-1]
        _tear(segment)
        restart(cluster, victim)
        assert "torn tail cut" in cluster.log_path(victim).read_text()
        load.wait_acknowledged(100)
    load.check()
    cluster.wait(whole)
    assert b"Traceback" not in cluster.log_path(victim).read_bytes()


def _tear(segment: Path) -> None:
    """Leaves half of the next record, as a crash in the middle of a write does."""
    base = int(segment.name)
    scanner = RecordScanner(
        memoryview(segment.read_bytes()), base, index=0, term=0, record_bytes_max=16 * MIB
    )
    assert scanner.advance(1 << 40) is ScanStop.BLANK
    record = encode_record(base + scanner.position, scanner.index + 1, scanner.term, b"x" * 500)
    with segment.open("r+b") as file:
        file.seek(scanner.position)
        file.write(record[: len(record) // 2])


def flip_bit(segment: Path, place: int) -> None:
    with segment.open("r+b") as file:
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def make_leader(cluster: LocalCluster, name: str) -> None:
    """Kills other leaders until this replica leads."""
    for _ in range(50):
        leader = wait_leader(cluster)
        if leader == name:
            return
        cluster.kill(leader)
        wait_leader(cluster)
        restart(cluster, leader)
        cluster.wait(whole)
    raise AssertionError(f"{name} never led")


def test_a_flipped_bit_is_refused_with_its_place_and_the_group_goes_on(
    cluster: LocalCluster,
) -> None:
    fill(cluster, 300, 1000)
    leader = wait_leader(cluster)
    cluster.kill(leader)
    [segment] = segments(cluster, leader)
    flip_bit(segment, len(segment.read_bytes().rstrip(b"\0")) // 2)
    damaged = segment.read_bytes()
    pid = cluster.start_one(leader)
    until(lambda: cluster.pid(leader) is None)
    log = cluster.log_path(leader).read_text()
    [line] = [line for line in log.splitlines() if line.startswith("error:")]
    assert str(segment) in line
    assert "physical offset" in line
    assert "Traceback" not in log
    assert cluster._supervisor.exit_code(pid) == 1
    assert segment.read_bytes() == damaged, "nothing was changed"
    with Load(cluster.nameserver, "u") as load:
        load.wait_acknowledged(100)
    load.check()
    with PullConsumer("g", nameserver=cluster.nameserver) as consumer:
        assert consumer.offset_max(QUEUE) == 300


def test_a_flipped_bit_in_an_old_segment_is_found_when_it_is_read(cluster: LocalCluster) -> None:
    """Opening reads the newest segment only. The reader gets the right bytes all the same."""
    fill(cluster, 8000, 1000)
    victim = followers(cluster, wait_leader(cluster))[0]
    cluster.kill(victim)
    segment = segments(cluster, victim)[0]
    flip_bit(segment, segment.stat().st_size // 2)
    cluster.start_one(victim)
    cluster.wait(whole)
    make_leader(cluster, victim)
    pid = cluster.pid(victim)
    assert pid is not None
    assert asyncio.run(read_numbers(cluster.nameserver, QUEUE)) == list(range(8000))
    until(lambda: cluster.pid(victim) is None)
    assert cluster._supervisor.exit_code(pid) == 1
    [line] = [line for line in cluster.log_path(victim).read_text().splitlines() if "CRIT" in line]
    assert str(segment) in line
    assert "physical offset" in line
    assert wait_leader(cluster) != victim


# --- full disk ----------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[None]:
    directory.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@contextlib.contextmanager
def cluster_on_small_disks(tmp_path: Path, names: list[str]) -> Iterator[LocalCluster]:
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(small_disk(tmp_path / "data" / name, 64 * MIB))
        store = {"segment_bytes": 4 * MIB, "disk_free_min_bytes": 2 * MIB, "map_bytes": 16 * MIB}
        cluster = stack.enter_context(running(tmp_path, store=store, timing={"disk_check_s": 0.1}))
        yield cluster


def take_space(directory: Path, leave_bytes: int) -> Path:
    """Fills the file system of a directory."""
    found = os.statvfs(directory)
    ballast = directory / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave_bytes)
    return ballast


def test_full_disks_refuse_definitely_serve_reads_and_recover(tmp_path: Path) -> None:
    names = [f"broker-a-{number}" for number in range(3)]
    with cluster_on_small_disks(tmp_path, names) as cluster:
        fill(cluster, 100, 1000)
        ballasts = [take_space(cluster.directory / name, MIB) for name in names]
        time.sleep(0.3)  # the gate has looked
        with impatient(cluster) as producer:
            with pytest.raises(DLedgerError) as caught:
                for _ in range(200):
                    producer.send(Message("t", bytes(100_000)), queue=0)
            assert caught.value.definite
            assert "disk" in str(caught.value)
            with PullConsumer("g", nameserver=cluster.nameserver) as consumer:
                messages = consumer.pull(QUEUE, timeout_s=5)
                assert messages[0].body.startswith(b"0 ")
            # A new leader can be had, and reads, on full disks as well.
            leader = wait_leader(cluster)
            cluster.kill(leader)
            assert wait_leader(cluster) != leader
            restart(cluster, leader)
            with PullConsumer("g2", nameserver=cluster.nameserver) as consumer:
                assert consumer.pull(QUEUE, timeout_s=5)
            for ballast in ballasts:
                ballast.unlink()
            until(lambda: _can_send(producer))
        assert not cluster.failures()
        cluster.wait(whole)


def impatient(cluster: LocalCluster) -> Producer:
    config = ProducerConfig(send_timeout_s=1.5)
    return Producer("p", nameserver=cluster.nameserver, config=config)


def _can_send(producer: Producer) -> bool:
    try:
        producer.send(Message("t", b"again"), queue=0)
    except DLedgerError as error:
        assert error.definite
        return False
    return True


def test_disks_that_fill_up_to_the_last_byte_under_load(tmp_path: Path) -> None:
    """Faster than anybody looks: what is committed has to wait for room to be applied."""
    names = [f"broker-a-{number}" for number in range(3)]
    with cluster_on_small_disks(tmp_path, names) as cluster:
        with Load(cluster.nameserver, send_timeout_s=2.0) as load:
            load.wait_acknowledged(2000)
            ballasts = [take_space(cluster.directory / name, 0) for name in names]
            until(lambda: len(load.refused) > 100)
            log_bytes = [replica.log_bytes for replica in cluster.status().groups[0].replicas]
            time.sleep(2)
            for replica, before in zip(cluster.status().groups[0].replicas, log_bytes, strict=True):
                assert replica.log_bytes - before < MIB, "refused, and yet the log grows"
            for ballast in ballasts:
                ballast.unlink()
            load.wait_acknowledged(200)
        load.check()
        cluster.wait(whole)
        assert not cluster.failures()


def test_a_full_disk_of_a_follower_stops_nobody_else(tmp_path: Path) -> None:
    with cluster_on_small_disks(tmp_path, ["broker-a-0"]) as cluster:
        if wait_leader(cluster) == "broker-a-0":
            cluster.kill("broker-a-0")
            assert wait_leader(cluster) != "broker-a-0"
            restart(cluster, "broker-a-0")
        leader = wait_leader(cluster)
        ballast = take_space(cluster.directory / "broker-a-0", 0)
        with Load(cluster.nameserver, body_bytes=2000, in_flight=50) as load:
            load.wait_acknowledged(5000)
            assert not load.refused
            assert wait_leader(cluster) == leader
            assert cluster.pid("broker-a-0") is not None
        ballast.unlink()
        cluster.wait(whole)
        load.check()
        assert not cluster.failures()


def test_a_leader_whose_disk_is_full_hands_over_to_one_that_has_room(tmp_path: Path) -> None:
    with cluster_on_small_disks(tmp_path, ["broker-a-0"]) as cluster:
        leader = "broker-a-0"
        make_leader(cluster, leader)
        fill(cluster, 100, 1000)
        ballast = take_space(cluster.directory / leader, 0)
        refusals = []
        with impatient(cluster) as producer:
            for _ in range(200):
                try:
                    producer.send(Message("t", bytes(100_000)), queue=0)
                except DLedgerError as error:
                    refusals.append(error)
            assert all(error.definite for error in refusals if "disk full" in str(error))
            assert wait_leader(cluster) != leader
            producer.send(Message("t", b"though one disk is full"), queue=0)
            with PullConsumer("g", nameserver=cluster.nameserver) as consumer:
                assert consumer.pull(QUEUE, timeout_s=5)
            ballast.unlink()
            until(lambda: _can_send(producer))
        assert not cluster.failures()
        cluster.wait(whole)


# --- wrong starts -------------------------------------------------------------------------------


def start_directly(cluster: LocalCluster, name: str) -> subprocess.CompletedProcess:
    config = cluster.directory / name / "broker.toml"
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli", "broker", "start", "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess, code: int) -> str:
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
    return line


def test_each_wrong_start_says_so_in_one_line_and_harms_nobody(cluster: LocalCluster) -> None:
    victim = followers(cluster, wait_leader(cluster))[0]
    config = cluster.directory / victim / "broker.toml"
    good = config.read_text()
    data = cluster.directory / victim
    with Load(cluster.nameserver, in_flight=20) as load:
        assert str(data) in complaint(start_directly(cluster, victim), 1)
        cluster.stop_one(victim)

        for address in (address_of(cluster, victim), raft_address_of(cluster, victim)):
            host, port = address.split(":")
            with socket.socket() as holder:
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                holder.bind((host, int(port)))
                holder.listen()
                assert port in complaint(start_directly(cluster, victim), 1)

        config.write_text(good.replace("segment_bytes = 4194304", "segment_bytes = 17"))
        assert "segment_bytes" in complaint(start_directly(cluster, victim), 2)
        config.write_text("colour = 'red'\n" + good)
        assert "colour" in complaint(start_directly(cluster, victim), 2)
        config.write_text(good)

        moved = data / "log-aside"
        (data / "log").rename(moved)
        (data / "log").write_text("in the way")
        assert str(data / "log") in complaint(start_directly(cluster, victim), 1)
        (data / "log").unlink()
        moved.rename(data / "log")

        restart(cluster, victim)
        load.wait_acknowledged(100)
    load.check()
    cluster.wait(whole)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "data" / "broker-a-0", MIB):
        cluster = LocalCluster(
            tmp_path / "data", ClusterSpec(replicas=1, port_base=free_port_base(3))
        )
        save_layout(cluster.directory, cluster.layout)
        place = str(cluster.directory / "broker-a-0")
        remount = ["mount", "-o", "remount,ro", place]
        subprocess.run(remount, check=True)
        line = complaint(start_directly(cluster, "broker-a-0"), 1)
        assert place in line
        assert "Read-only file system" in line


# --- strangers ----------------------------------------------------------------------------------

FRAME = struct.Struct(">II")


def garbage(chance: random.Random) -> list[bytes]:
    head = b'{"code":10,"language":"JAVA","version":0,"opaque":1,"flag":0}'
    whole_frame = FRAME.pack(4 + len(head), len(head)) + head
    return [
        chance.randbytes(3000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500),
        struct.pack(">I", 2**31 - 1) + chance.randbytes(1000),
        struct.pack(">I", 2**32 - 1) + bytes(1000),
        FRAME.pack(16 * MIB - 1, 2**24 - 1) + bytes(70_000),
        whole_frame[: len(whole_frame) // 2],
        FRAME.pack(4, 0),
        FRAME.pack(4 + 9, 9) + b"{" * 9,
        FRAME.pack(4 + 200_000, 200_000) + b"[" * 200_000,
        FRAME.pack(4 + 2, 2) + b"[]",
        whole_frame.replace(b'"opaque":1', b'"opaque":"'),
        b"\0" * 65536,
        struct.pack(">I", 4000) + chance.randbytes(4000),  # a hello of the right size
        b"",
        b"\0",
    ]


def test_strangers_on_every_port_harm_nobody(cluster: LocalCluster) -> None:
    leader = wait_leader(cluster)
    term = cluster.status().groups[0].term
    pid = cluster.pid(leader)
    assert pid is not None
    chance = random.Random(9)
    held: list[socket.socket] = []
    places = [place for _, place in cluster.layout.replicas()]
    addresses = [place.address for place in places] + [place.raft_address for place in places]
    addresses.append(cluster.nameserver)
    with Load(cluster.nameserver) as load:
        load.wait_acknowledged(500)
        with MemoryWatch(pid) as memory:
            for _ in range(6):
                for address in addresses:
                    host, port = address.split(":")
                    for data in garbage(chance):
                        peer = socket.create_connection((host, int(port)), 5)
                        with contextlib.suppress(OSError):
                            peer.sendall(data)
                        held.append(peer)
            load.wait_acknowledged(500)
        for peer in held:
            peer.close()
    assert not load.refused
    assert not load.uncertain
    assert load.longest_gap_s() < 3
    assert memory.largest - memory.first < 48 * MIB
    load.check()
    status = cluster.wait(whole)
    assert (status.groups[0].leader, status.groups[0].term) == (leader, term)
    assert not cluster.failures()
    for name in ("nameserver-0", *(place.id for place in places)):
        log = cluster.log_path(name).read_text()
        assert "Traceback" not in log
        assert " ERROR " not in log


def test_silent_strangers_on_the_raft_port_are_sent_away(cluster: LocalCluster) -> None:
    leader = wait_leader(cluster)
    host, port = raft_address_of(cluster, leader).split(":")
    peers = [socket.create_connection((host, int(port)), 5) for _ in range(50)]
    try:
        for number, peer in enumerate(peers):
            peer.sendall(bytes([0, 0, 1][: number % 4]))
            peer.settimeout(10)
        for peer in peers:
            while peer.recv(4096):
                pass
    finally:
        for peer in peers:
            peer.close()
    assert wait_leader(cluster) == leader
