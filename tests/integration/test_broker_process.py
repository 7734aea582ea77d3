"""The broker as a process: exit codes, one clear line, signals, and what a failed disk does."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker.server import Broker
from dledger.codes import RequestCode
from dledger.config import render_toml
from dledger.errors import DiskFailureError
from dledger.message import iter_stored
from dledger.remoting.bodies import decode_kv_table
from store.files import OsFileSystem
from tests.support.brokers import TestClient, config_for, eventually, free_ports, replica_entries

ROOT = Path(__file__).resolve().parents[2]


def settings(directory, port, raft_port, **changes):
    return {
        "replica_id": "a-0",
        "data_directory": str(directory / "data"),
        "raft": {
            "heartbeat_ms": 20,
            "election_timeout_min_ms": 100,
            "election_timeout_max_ms": 200,
        },
        "replicas": [
            {
                "id": "a-0",
                "address": f"127.0.0.1:{port}",
                "raft_address": f"127.0.0.1:{raft_port}",
            }
        ],
        **changes,
    }


def write_config(directory, values):
    path = directory / "broker.toml"
    path.write_text(render_toml(values))
    return path


def start(config):
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "broker", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def finish(process, timeout_s=20):
    """Returns exit code and standard error; never leaves the process behind."""
    try:
        _, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, stderr


def failure(stderr):
    (line,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in stderr
    return line


def wait_until_serving(process, address, timeout_s=15):
    async def run():
        client = TestClient(address)

        async def serves():
            assert process.poll() is None, process.stderr.read()
            try:
                answer = await client.call(RequestCode.GET_BROKER_RUNTIME_INFO, timeout_s=1)
            except Exception:
                return False
            return decode_kv_table(answer.body)["raftServing"] == "true"

        try:
            await eventually(serves, "the process serves", timeout_s)
        finally:
            await client.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"store": {"flush": "maybe"}}, "store.flush"),
        ({"nonsense": 1}, "nonsense"),
        ({"replica_id": "a-9"}, "replica_id"),
        ({"limits": {"connections_max": 0}}, "limits.connections_max"),
    ],
)
def test_a_bad_value_is_named_and_ends_with_2(tmp_path, changes, expected):
    config = write_config(tmp_path, settings(tmp_path, 1, 2, **changes))
    code, stderr = finish(start(config))
    assert code == 2
    assert expected in failure(stderr)


def test_a_missing_or_torn_file_ends_with_2(tmp_path):
    code, stderr = finish(start(tmp_path / "absent.toml"))
    assert (code, "absent.toml" in failure(stderr)) == (2, True)
    torn = tmp_path / "torn.toml"
    torn.write_text("replica_id = ")
    code, stderr = finish(start(torn))
    assert (code, "not valid TOML" in failure(stderr)) == (2, True)


@pytest.mark.parametrize("which", ["address", "raft_address"])
def test_a_port_in_use_is_named(tmp_path, which):
    port, raft_port = free_ports(2)
    busy = port if which == "address" else raft_port
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", busy))
        holder.listen()
        config = write_config(tmp_path, settings(tmp_path, port, raft_port))
        code, stderr = finish(start(config))
    assert code == 1
    assert str(busy) in failure(stderr)


def test_a_directory_that_is_none_is_named(tmp_path):
    (tmp_path / "data").write_text("a file")
    config = write_config(tmp_path, settings(tmp_path, *free_ports(2)))
    code, stderr = finish(start(config))
    assert code == 1
    assert str(tmp_path / "data") in failure(stderr)


def test_a_directory_in_use_is_named_and_the_first_process_lives_on(tmp_path):
    ports = free_ports(4)
    first = start(write_config(tmp_path, settings(tmp_path, *ports[:2])))
    try:
        wait_until_serving(first, f"127.0.0.1:{ports[0]}")
        second = start(write_config(tmp_path, settings(tmp_path, *ports[2:])))
        code, stderr = finish(second)
        assert code == 1
        assert str(tmp_path / "data") in failure(stderr)
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        code, stderr = finish(first)
        assert code == 0, stderr
        assert "CRITICAL" not in stderr
    finally:
        if first.poll() is None:
            first.kill()
            first.communicate()


def send_some(address, count, size):
    async def run():
        client = TestClient(address)
        answers = await asyncio.gather(
            *(client.send("t", b"%06d" % n + bytes(size)) for n in range(count))
        )
        assert {answer.code for answer in answers} == {0}
        await client.close()

    asyncio.run(run())


def read_all(address, count):
    async def run():
        client = TestClient(address)
        found = []
        while len(found) < count:
            answer = await client.pull("t", len(found), message_count_max=1000)
            assert answer.code == 0, answer.remark
            found += [message.body[:6] for message in iter_stored(answer.body)]
        await client.close()
        return found

    return asyncio.run(run())


def test_a_killed_process_keeps_what_it_acknowledged_and_idles_small(tmp_path):
    ports = free_ports(2)
    address = f"127.0.0.1:{ports[0]}"
    config = write_config(tmp_path, settings(tmp_path, *ports))
    process = start(config)
    try:
        wait_until_serving(process, address)
        send_some(address, 300, 100)
        process.kill()
        finish(process)
        process = start(config)
        wait_until_serving(process, address)
        assert read_all(address, 300) == [b"%06d" % n for n in range(300)]
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            rss = next(line for line in status.read_text().splitlines() if "VmRSS" in line)
            assert int(rss.split()[1]) < 80 * 1024, rss
        process.send_signal(signal.SIGINT)
        code, stderr = finish(process)
        assert code == 0, stderr
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_flipped_bit_in_the_log_is_refused_and_located(tmp_path):
    ports = free_ports(2)
    address = f"127.0.0.1:{ports[0]}"
    config = write_config(tmp_path, settings(tmp_path, *ports))
    process = start(config)
    try:
        wait_until_serving(process, address)
        for _ in range(5):
            send_some(address, 20, 1000)
        process.send_signal(signal.SIGTERM)
        assert finish(process)[0] == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    (segment,) = [p for p in (tmp_path / "data" / "log").iterdir() if p.name.isdigit()]
    with segment.open("r+b") as file:
        file.seek(20_000)
        byte = file.read(1)[0]
        file.seek(20_000)
        file.write(bytes([byte ^ 0x10]))
    code, stderr = finish(start(config))
    line = failure(stderr)
    assert code == 1
    assert str(segment) in line
    assert "physical offset" in line


class FailingDisk(OsFileSystem):
    """Syncs until told otherwise."""

    def __init__(self):
        super().__init__()
        self.is_failing = False

    def sync(self, *args, **kwargs):
        if self.is_failing:
            raise OSError(errno.EIO, "Input/output error")
        return super().sync(*args, **kwargs)


def test_a_failed_sync_stops_the_replica_with_one_line(tmp_path, caplog):
    async def run():
        (entry,) = replica_entries(1)
        disk = FailingDisk()
        broker = Broker(config_for(tmp_path, entry["id"], [entry]), fs=disk)
        await broker.start()
        await eventually(lambda: broker.raft.is_serving, "the broker serves")
        client = TestClient(entry["address"])
        assert (await client.send("t", b"x")).code == 0
        disk.is_failing = True
        answer = await client.send("t", b"y")
        assert answer.code == 1
        assert answer.ext["dlOutcome"] == "unknown"
        failed = await asyncio.wait_for(broker.wait_failed(), 5)
        assert isinstance(failed, DiskFailureError)
        await client.close()
        with contextlib.suppress(DiskFailureError):
            await broker.stop()

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < 20
    critical = [r for r in caplog.records if r.levelname == "CRITICAL"]
    assert len(critical) == 1
