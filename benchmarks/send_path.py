"""What one message a request costs a replica, in microseconds of processor time, without sockets.

    python benchmarks/send_path.py [--requests 100000] [--connections 1] [--profile]

One replica in this process takes frames as an official client sends them and answers them: frame,
header, checks, encoding, log, fdatasync, LMDB, answer. Other work on the machine hardly changes the
figure, so two versions can be compared in turns on a busy one. Followers are not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broker.__main__ import GC_THRESHOLD, SWITCH_INTERVAL_S
from broker.config import BrokerConfig
from broker.server import Broker
from cli.cluster import free_port_base
from dledger.codes import RequestCode
from dledger.config import build_config
from dledger.model import TopicConfig
from dledger.remoting.commands import encode_request

READ_BYTES = 256 * 1024  # what one read of the event loop brings


class Transport(asyncio.Transport):
    """Counts the answers."""

    def __init__(self, progress: asyncio.Event) -> None:
        super().__init__()
        self.answered = 0
        self._progress = progress

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes answers."""
        self.answered += bytes(data).count(b'{"code":0,')
        self._progress.set()

    def writelines(self, list_of_data: object) -> None:
        """Takes answers."""
        self.write(b"".join(list_of_data))  # type: ignore[arg-type,call-overload]

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits."""


def frames(count: int, size: int) -> list[bytes]:
    """Returns requests as the Java client sends them, to four queues."""
    body = bytes(size)
    key = "UNIQ_KEY\x017F000001000118B4AAC2"
    return [
        encode_request(
            RequestCode.SEND_MESSAGE_V2,
            number,
            {
                "a": "group",
                "b": "bench",
                "c": "TBW102",
                "d": 4,
                "e": number % 4,
                "f": 0,
                "g": 1_700_000_000_000 + number,
                "h": 0,
                "i": f"{key}{number:012X}\x02WAIT\x01true\x02TAGS\x01a\x02",
                "j": 0,
                "k": "false",
                "m": "false",
            },
            body,
            language="JAVA",
        )
        for number in range(count)
    ]


def reads(sent: list[bytes]) -> list[bytes]:
    """Returns what is sent, cut as reads bring it."""
    data = b"".join(sent)
    return [data[at : at + READ_BYTES] for at in range(0, len(data), READ_BYTES)]


async def window(
    broker: Broker, sent: list[list[bytes]], transports: list[Transport], progress: asyncio.Event
) -> None:
    """Sends a window over each connection and waits for all of its answers."""
    wanted = sum(len(each) for each in sent) + sum(each.answered for each in transports)
    connections = broker._server.connections
    for connection, each in zip(connections, sent, strict=True):
        for data in reads(each):
            connection.data_received(data)
    while sum(each.answered for each in transports) < wanted:
        progress.clear()
        await asyncio.wait_for(progress.wait(), 10)
        if broker.failure is not None:
            raise broker.failure


async def run(options: argparse.Namespace, directory: str) -> list[float]:
    """Returns microseconds a request of each window."""
    port = free_port_base(2)
    replica = {
        "id": "r",
        "address": f"127.0.0.1:{port}",
        "raft_address": f"127.0.0.1:{port + 1}",
    }
    values = {"replica_id": "r", "replicas": [replica], "data_directory": directory}
    broker = Broker(build_config(BrokerConfig, values | {"listen_port": 0}))
    await broker.start()
    try:
        while not broker.raft.is_serving or not broker.store.topic("TBW102"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        topic = TopicConfig(name="bench", read_queue_count=4, write_queue_count=4)
        created = asyncio.get_running_loop().create_future()
        broker._require().catalog.ensure_topic(topic, lambda *_: created.set_result(None))
        await created
        progress = asyncio.Event()
        transports = [Transport(progress) for _ in range(options.connections)]
        for transport in transports:
            broker._server._new_connection().connection_made(transport)
        per_connection = max(1, options.window // options.connections)
        requests = frames(per_connection * options.connections, options.size)
        sent = [requests[n :: options.connections] for n in range(options.connections)]
        await window(broker, sent, transports, progress)
        sys.setswitchinterval(SWITCH_INTERVAL_S)  # as `python -m broker` does
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 20)
        profile = cProfile.Profile() if options.profile else None
        if profile is not None:
            profile.enable()
        spent: list[float] = []
        while len(spent) * len(requests) < options.requests:
            began = time.process_time()
            await window(broker, sent, transports, progress)
            spent.append((time.process_time() - began) / len(requests) * 1e6)
        if profile is not None:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
        return spent
    finally:
        for connection in broker._server.connections:
            connection.connection_lost(None)
        await broker.stop()


def main() -> None:
    """Prints the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--window", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="dledger-bench-") as directory,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        spent = runner.run(run(options, directory))
    print(f"median {statistics.median(spent):.2f}, best window {min(spent):.2f} µs a request")


if __name__ == "__main__":
    main()
