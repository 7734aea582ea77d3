"""One message per request, many requests under way, as official clients send.

    python benchmarks/single.py --size 1024 --window 1000 --queues 4 --connections 1

The client only counts answers, so that the broker is measured. Beside the rate stands the processor
time of each process per message, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger import AsyncAdmin
from dledger.codes import RequestCode
from dledger.remoting.commands import encode_request

_LENGTH = struct.Struct(">I")
_PROPERTIES = "UNIQ_KEY\x017F000001000118B4AAC2000000000000\x02WAIT\x01true\x02TAGS\x01tag\x02"
_CODE = b'"code":0'
CONNECTING_MAX = 50


class _Sender(asyncio.Protocol):
    """Keeps `window` requests under way until `count` are answered."""

    def __init__(self, topic: str, queues: int, size: int, count: int, window: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.latencies: list[float] = []
        self._frames = [self._frame(topic, queue, size) for queue in range(queues)]
        self._left, self._window, self._count = count, window, count
        self._sent: dict[int, float] = {}
        self._opaque = 0
        self._data = bytearray()

    @staticmethod
    def _frame(topic: str, queue: int, size: int) -> tuple[bytes, bytes]:
        """Returns a request before and after its opaque, which has nine digits."""
        header = {
            "a": "bench",
            "b": topic,
            "c": "TBW102",
            "d": 4,
            "e": queue,
            "f": 0,
            "h": 0,
            "g": int(time.time() * 1000),
            "i": _PROPERTIES,
            "j": 0,
            "k": "false",
            "m": "false",
        }
        frame = encode_request(RequestCode.SEND_MESSAGE_V2, 123456789, header, bytes(size))
        before, after = bytes(frame).split(b"123456789")
        return before, after

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def begin(self) -> None:
        self._send(self._window)

    def close(self) -> None:
        self._transport.close()

    def _send(self, count: int) -> None:
        count = min(count, self._left)
        self._left -= count
        now, pieces = time.perf_counter(), []
        for _ in range(count):
            self._opaque += 1
            opaque = 100_000_000 + self._opaque
            self._sent[opaque] = now
            before, after = self._frames[self._opaque % len(self._frames)]
            pieces += (before, b"%d" % opaque, after)
        if pieces:
            self._transport.writelines(pieces)

    def data_received(self, data: bytes) -> None:
        self._data += data
        at, answered, now = 0, 0, time.perf_counter()
        while len(self._data) - at >= 4:
            (length,) = _LENGTH.unpack_from(self._data, at)
            if len(self._data) - at < 4 + length:
                break
            frame = bytes(self._data[at + 8 : at + 4 + length])
            if _CODE not in frame:
                self.done.set_exception(RuntimeError(frame.decode(errors="replace")))
                return
            opaque = int(frame.partition(b'"opaque":')[2][:9])
            self.latencies.append(now - self._sent.pop(opaque))
            at += 4 + length
            answered += 1
        del self._data[:at]
        self._send(answered)
        if len(self.latencies) == self._count:
            self.done.set_result(None)


async def send(
    address: str, topic: str, options: argparse.Namespace, connections: int = 1
) -> dict[str, float]:
    """Sends all messages, shared out to so many connections as the window is; returns figures."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    share, window = options.messages // connections, max(1, options.window // connections)

    async def connect() -> _Sender:
        _, sender = await loop.create_connection(
            lambda: _Sender(topic, options.queues, options.size, share, window), host, int(port)
        )
        return sender

    senders: list[_Sender] = []
    while len(senders) < connections:
        # No more at a time than the listener's backlog takes.
        count = min(CONNECTING_MAX, connections - len(senders))
        senders += await asyncio.gather(*(connect() for _ in range(count)))
    started = time.perf_counter()
    for sender in senders:
        sender.begin()
    await asyncio.gather(*(sender.done for sender in senders))
    seconds = time.perf_counter() - started
    for sender in senders:
        sender.close()
    latencies = sorted(latency for sender in senders for latency in sender.latencies)
    return {
        "messages_per_s": round(len(latencies) / seconds),
        "p50_ms": round(latencies[len(latencies) // 2] * 1000, 2),
        "p99_ms": round(latencies[len(latencies) * 99 // 100] * 1000, 2),
    }


def cpu_seconds(pid: int) -> float:
    """Returns the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def leader_of(nameserver: str, topic: str, queues: int) -> str:
    """Creates the topic; returns the address of its leader."""
    async with AsyncAdmin(nameserver=nameserver) as admin:
        await admin.create_topic(topic, queue_count=queues)
        cluster = await admin.cluster()
        return str(next(iter(cluster.brokers.values())).addresses[0])


def main() -> None:
    """Runs the rounds and prints their median."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--window", type=int, default=1000)
    parser.add_argument("--queues", type=int, default=4)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds = []
    settings = {"limits": {"queue_count_max": max(1024, options.queues)}}
    spec = ClusterSpec(port_base=free_port_base(8), settings=settings)
    with (
        tempfile.TemporaryDirectory(prefix="dledger-bench-") as directory,
        LocalCluster(Path(directory), spec) as cluster,
    ):
        address = asyncio.run(leader_of(cluster.nameserver, "bench", options.queues))
        names = [name for name in (f"broker-a-{n}" for n in range(3)) if cluster.pid(name)]
        for _ in range(options.rounds):
            before = {name: cpu_seconds(cluster.pid(name) or 0) for name in names}
            own = time.process_time()
            measured = asyncio.run(send(address, "bench", options, options.connections))
            spent = {
                name: round((cpu_seconds(cluster.pid(name) or 0) - before[name]) * 1e6, 1)
                for name in names
            }
            measured["cpu_us"] = {
                name: round(value / options.messages, 2) for name, value in spent.items()
            } | {"client": round((time.process_time() - own) / options.messages * 1e6, 2)}
            rounds.append(measured)
            print(json.dumps(measured), flush=True)
    median = {
        key: statistics.median(item[key] for item in rounds)
        for key in ("messages_per_s", "p50_ms", "p99_ms")
    }
    print("median", json.dumps(median))


if __name__ == "__main__":
    main()
