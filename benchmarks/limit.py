"""The ceiling of this machine: the same bytes to two peers, fdatasynced, with nothing around them.

One process writes groups of bytes to its own file and over sockets to two other processes that
write them to theirs. A group counts when a majority, the own file among it, is fdatasynced. No
broker, no Raft, no parsing, no messages: what a replicated broker with the same durability cannot
exceed.

    .venv/bin/python benchmarks/limit.py --megabytes 500 --group-bytes 65536 --window-bytes 1048576
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from multiprocessing import Process
from pathlib import Path

FILE_BYTES = 1 << 30
READ_BYTES = 1 << 20


def sink(listener: socket.socket, directory: str, name: str) -> None:
    """A peer: receives, writes, syncs all that has arrived, confirms the total."""
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    descriptor = os.open(Path(directory, name), os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, FILE_BYTES)
    buffer = memoryview(bytearray(READ_BYTES))
    total = 0
    while size := connection.recv_into(buffer):
        os.pwrite(descriptor, buffer[:size], total % (FILE_BYTES - READ_BYTES))
        os.fdatasync(descriptor)
        total += size
        # The source leaves as soon as the other peer has confirmed everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(total.to_bytes(8, "big"))
    os.close(descriptor)


class Source:
    """The leader of this play: own file, two peers, a window."""

    def __init__(self, directory: str, peers: list[socket.socket]) -> None:
        self.descriptor = os.open(Path(directory, "own"), os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(self.descriptor, 0, FILE_BYTES)
        self.peers = peers
        self.acked = [0] * len(peers)
        self.written = 0
        self.durable = 0
        self.finished = False
        self.changed = threading.Condition()

    def committed(self) -> int:
        """What the source and as many peers as make a majority with it have on disk."""
        needed = (len(self.peers) + 1) // 2
        if not needed:
            return self.durable
        return min(self.durable, sorted(self.acked, reverse=True)[needed - 1])

    def sync_loop(self) -> None:
        while True:
            with self.changed:
                while self.durable == self.written and not self.finished:
                    self.changed.wait()
                if self.finished and self.durable == self.written:
                    return
                target = self.written
            os.fdatasync(self.descriptor)
            with self.changed:
                self.durable = target
                self.changed.notify_all()

    def ack_loop(self, number: int) -> None:
        peer = self.peers[number]
        pending = b""
        while data := peer.recv(4096):
            pending += data
            usable = len(pending) // 8 * 8
            if usable:
                value = int.from_bytes(pending[usable - 8 : usable], "big")
                pending = pending[usable:]
                with self.changed:
                    self.acked[number] = value
                    self.changed.notify_all()

    def run(self, total: int, group: bytes, window: int) -> tuple[float, list[float]]:
        threads = [threading.Thread(target=self.sync_loop)]
        threads += [
            threading.Thread(target=self.ack_loop, args=(number,), daemon=True)
            for number in range(len(self.peers))
        ]
        for thread in threads:
            thread.start()
        sent_at: list[tuple[int, float]] = []
        latencies: list[float] = []
        started = time.perf_counter()
        while self.written < total:
            with self.changed:
                while self.written - self.committed() >= window:
                    self.changed.wait()
                self._note(sent_at, latencies)
            for peer in self.peers:
                peer.sendall(group)
            os.pwrite(self.descriptor, group, self.written % (FILE_BYTES - READ_BYTES))
            with self.changed:
                self.written += len(group)
                sent_at.append((self.written, time.perf_counter()))
                self.changed.notify_all()
        with self.changed:
            while self.committed() < self.written:
                self.changed.wait()
            self._note(sent_at, latencies)
            self.finished = True
            self.changed.notify_all()
        seconds = time.perf_counter() - started
        threads[0].join()
        os.close(self.descriptor)  # a file that is open keeps its space when it is removed
        return seconds, latencies

    def _note(self, sent_at: list[tuple[int, float]], latencies: list[float]) -> None:
        now, committed = time.perf_counter(), self.committed()
        while sent_at and sent_at[0][0] <= committed:
            latencies.append(now - sent_at.pop(0)[1])


def measure(
    megabytes: int, group_bytes: int, window_bytes: int, replicas: int = 3
) -> dict[str, float]:
    """Runs the program once in a temporary directory, which takes 1 GiB for each replica."""
    with tempfile.TemporaryDirectory(prefix="dledger-limit-") as directory:
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(replicas - 1)]
        processes = [
            Process(target=sink, args=(listener, directory, f"peer-{number}"))
            for number, listener in enumerate(listeners)
        ]
        for process in processes:
            process.start()
        peers = []
        for listener in listeners:
            peer = socket.create_connection(listener.getsockname())
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peers.append(peer)
        source = Source(directory, peers)
        total = megabytes * 1_000_000 // group_bytes * group_bytes
        seconds, latencies = source.run(total, os.urandom(group_bytes), window_bytes)
        for peer in peers:
            peer.shutdown(socket.SHUT_RDWR)
        for process in processes:
            process.join(10)
        latencies.sort()
        return {
            "megabytes_per_s": round(total / 1e6 / seconds, 1),
            "messages_1k_per_s": round(total / 1024 / seconds),
            "group_p50_ms": round(latencies[len(latencies) // 2] * 1000, 2),
            "group_p99_ms": round(latencies[len(latencies) * 99 // 100] * 1000, 2),
            "seconds": round(seconds, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--group-bytes", type=int, default=64 * 1024)
    parser.add_argument("--window-bytes", type=int, default=1024 * 1024)
    parser.add_argument("--replicas", type=int, default=3)
    options = parser.parse_args()
    figures = measure(
        options.megabytes, options.group_bytes, options.window_bytes, options.replicas
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
