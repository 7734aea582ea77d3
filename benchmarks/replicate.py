"""Microseconds of processor time a message of replicating and applying, in each of three replicas.

    .venv/bin/python benchmarks/replicate.py --messages 200000 --entry 200 --window 4

Three processes with Raft, CommitLog and LMDB over TCP on loopback, but without clients and without
a broker's intake: the leader proposes MESSAGES entries that are prepared before the clock runs and
encoded when they get their places. Processor time, so that neighbours matter less; "encode" is the
part of the leader's that this takes. "sync" is the thread that calls fdatasync.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import shutil
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from broker.__main__ import GC_THRESHOLD, SWITCH_INTERVAL_S
from broker.commands import encode_put_topic
from broker.messages_command import EncodedMessage, MessagesBuilder, Part, SendIdentity
from broker.state_machine import BrokerStateMachine
from dledger.clock import SystemClock
from dledger.model import TopicConfig
from dledger.raft.config import RaftConfig
from dledger.raft.configuration import Configuration, Member
from dledger.raft.node import RaftNode
from dledger.raft.transport import TcpTransport, TransportConfig
from store.commit_log import CommitLog
from store.state_store import StateStore

QUEUES = 4
WARM_UP_ENTRIES = 20
DEADLINE_S = 60.0
STORED_OVERHEAD_BYTES = 176  # header and properties of a stored message


class Entry:
    """One prepared entry: stamped with its place when it gets one."""

    encode_s = 0.0

    def __init__(self, options: argparse.Namespace, number: int, offsets: list[int]) -> None:
        self.offsets = offsets
        builder = MessagesBuilder()
        count = options.entry // QUEUES
        body = bytes(options.size + STORED_OVERHEAD_BYTES)
        for queue in range(QUEUES):
            first = number * options.entry + queue * count
            messages = [
                EncodedMessage(body, 0, b"7F0000010000A1B2C3D4%012X" % key)
                for key in range(first, first + count)
            ]
            identity = SendIdentity(7, number * count + 1)
            builder.add(1, queue, Part(1, messages, identity))
        self.builder = builder
        self.size_bytes = builder.size_bytes

    def encode(self, body_offset: int) -> Any:
        started = time.thread_time()
        body = self.builder.encode(body_offset, 1_700_000_000_000, self.take)
        Entry.encode_s += time.thread_time() - started
        return body

    def take(self, _topic_id: int, queue_id: int, count: int) -> int:
        first = self.offsets[queue_id]
        self.offsets[queue_id] += count
        return first


def prepare(options: argparse.Namespace) -> list[Entry]:
    offsets = [0] * QUEUES
    total = options.messages // options.entry
    return [Entry(options, number, offsets) for number in range(WARM_UP_ENTRIES + total)]


class Replica:
    """One process's share."""

    def __init__(self, number: int, ports: list[int], directory: Path) -> None:
        names = [f"r{n}" for n in range(len(ports))]
        self.log = CommitLog.open(directory / "log")
        self.store = StateStore.open(directory / "state")
        self.machine = BrokerStateMachine(self.store)
        self.failure: BaseException | None = None
        config = RaftConfig()
        if number:  # the first one is in no danger of losing an election
            config = RaftConfig(
                election_timeout_min_ms=4000, election_timeout_max_ms=6000, check_quorum_ms=7000
            )
        members = [
            Member(id=name, number=n, raft_address=f"127.0.0.1:{port}")
            for n, (name, port) in enumerate(zip(names, ports, strict=True))
        ]
        transport = TransportConfig(
            cluster_name="bench",
            group_name="bench",
            replica_id=names[number],
            listen_host="127.0.0.1",
            listen_port=ports[number],
        )
        self.node = RaftNode(
            replica_id=names[number],
            bootstrap=Configuration(members=tuple(members), next_incarnation=1, index=0, term=0),
            config=config,
            log=self.log,
            machine=self.machine,
            transport=TcpTransport(transport, random.Random(number)),
            clock=SystemClock(),
            random=random.Random(number),
            on_fatal=self._fail,
        )

    def _fail(self, error: BaseException) -> None:
        self.failure = error

    async def until(self, condition: Any, poll_s: float = 0.02) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if self.failure is not None:
                raise self.failure
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.node.replica_id}: gave up waiting; {self.log!r}")
            await asyncio.sleep(poll_s)

    async def stop(self) -> None:
        await self.node.stop()
        self.log.close()
        self.store.close(clean=False)


async def lead(
    replica: Replica, options: argparse.Namespace, entries: list[Entry]
) -> dict[str, float]:
    node = replica.node
    await replica.until(lambda: node.is_serving)
    await node.submit(encode_put_topic(TopicConfig(name="t")))
    window = asyncio.Semaphore(options.window)

    async def run(batch: list[Entry]) -> None:
        for entry in batch:
            await window.acquire()
            node.propose(entry, done)

    def done(_result: object, error: Exception | None) -> None:
        if error is not None:
            replica.failure = error
        window.release()

    warm, timed = entries[:WARM_UP_ENTRIES], entries[WARM_UP_ENTRIES:]
    await run(warm)
    Entry.encode_s = 0.0
    clock = Clock(options)
    await run(timed)
    last = replica.log.last_index
    await replica.until(lambda: replica.machine.applied_index >= last)
    return {**clock.result(), "encode": Entry.encode_s * 1e6 / options.messages}


async def follow(replica: Replica, options: argparse.Namespace) -> dict[str, float]:
    first = WARM_UP_ENTRIES + 2
    await replica.until(lambda: replica.machine.applied_index >= 2)
    await replica.until(lambda: replica.machine.applied_index >= first, poll_s=0.001)
    clock = Clock(options)
    total = options.messages // options.entry
    await replica.until(lambda: replica.machine.applied_index >= first + total)
    return clock.result()


class Clock:
    """Processor time of this process since it was made."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.messages = options.messages
        self.started = (time.process_time(), time.thread_time(), time.monotonic())

    def result(self) -> dict[str, float]:
        process, loop, wall = self.started
        all_us = (time.process_time() - process) * 1e6 / self.messages
        loop_us = (time.thread_time() - loop) * 1e6 / self.messages
        seconds = time.monotonic() - wall
        return {
            "all": all_us,
            "loop": loop_us,
            "sync": all_us - loop_us,
            "messages_per_s": round(self.messages / seconds),
        }


async def take_part(number: int, ports: list[int], options: argparse.Namespace) -> dict[str, float]:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    replica = Replica(number, ports, Path(options.directory) / str(number))
    entries = prepare(options) if number == 0 else []  # takes longer than a leader may be silent
    gc.collect()
    gc.freeze()
    await replica.node.start()
    try:
        result = await (follow(replica, options) if number else lead(replica, options, entries))
        if number == 0:
            await asyncio.sleep(0.5)  # the followers have to learn of the last commit
        await replica.node.stop()
        applied = replica.store.applied_index
        return {**result, "applied": applied, "digest": replica.store.digest()}
    finally:
        await replica.stop()


def fork(number: int, ports: list[int], options: argparse.Namespace) -> tuple[int, int]:
    """Starts a replica in a process of its own; returns its pid and where its result comes from."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    code = 1
    try:
        import uvloop

        result = uvloop.run(take_part(number, ports, options))
        os.write(writer, json.dumps(result).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def measure(options: argparse.Namespace) -> list[dict[str, float]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(options.replicas)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    options.directory = tempfile.mkdtemp(prefix="dledger-replicate-")
    try:
        children = [fork(number, ports, options) for number in range(options.replicas)]
        results = []
        for pid, reader in children:
            with os.fdopen(reader, "rb") as pipe:
                text = pipe.read()
            os.waitpid(pid, 0)
            if not text:
                raise SystemExit("a replica failed")
            results.append(json.loads(text))
    finally:
        shutil.rmtree(options.directory)
    if len({result["digest"] for result in results}) != 1:
        raise SystemExit(f"replicas differ: {results}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=1024, help="bytes of a body")
    parser.add_argument("--entry", type=int, default=240, help="messages of an entry")
    parser.add_argument("--window", type=int, default=4, help="entries under way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=3)
    options = parser.parse_args()
    options.entry -= options.entry % QUEUES
    options.messages -= options.messages % options.entry
    for _ in range(options.rounds):
        leader, *followers = measure(options)
        shown = {"leader": leader, "follower": followers[0] if followers else {}}
        for role, result in shown.items():
            figures = " ".join(
                f"{name} {value:.2f}" for name, value in result.items() if name in _SHOWN
            )
            print(f"{role:>8}: {figures} us | {result.get('messages_per_s', 0)} messages/s")


_SHOWN = ("all", "loop", "sync", "encode")

if __name__ == "__main__":
    main()
