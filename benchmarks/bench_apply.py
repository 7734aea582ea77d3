"""Microseconds a message of the broker's own work: gather, encode, apply.

Run with `python benchmarks/bench_apply.py`. One process, LMDB in a temporary directory, messages of
1,200 stored bytes. Applying is done by every replica, gathering and encoding by the leader only.
CPU time of the process, so that neighbours matter less. "numbered": the producers' messages have
numbers by which a repetition is recognised.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from broker.appender import Appender, AppenderConfig
from broker.commands import encode_put_topic
from broker.messages_command import EncodedMessage, SendIdentity
from broker.state_machine import BrokerStateMachine
from dledger.clock import SystemClock
from dledger.errors import DLedgerError
from dledger.model import TopicConfig
from store.state_store import StateStore

QUEUES = 8


class Entry(NamedTuple):
    index: int
    term: int
    body: Any


class TimedRaft:
    """Encodes and applies each proposal at once, and keeps the times."""

    is_serving, term, leader_id = True, 1, "r"

    def __init__(self, machine: BrokerStateMachine) -> None:
        self.machine = machine
        self.offset = 0
        self.encode_s = self.apply_s = 0.0
        self.entries = 0

    def add_listener(self, listener: Appender) -> None:
        listener.on_serving(1)

    def propose(
        self, command: Any, callback: Callable[[object, DLedgerError | None], None]
    ) -> None:
        started = time.process_time()
        body = command.encode(self.offset)
        encoded = time.process_time()
        entry = Entry(self.machine.applied_index + 1, 1, body)
        (result,) = self.machine.apply([entry])
        applied = time.process_time()
        self.encode_s += encoded - started
        self.apply_s += applied - encoded
        self.offset += len(body)
        self.entries += 1
        callback(result, None)


class Source:
    """Messages of several producers with near-sequential unique keys, as clients make them."""

    def __init__(self, producers: int, keyed: str) -> None:
        self.random = random.Random(1)
        self.bases = [self.random.getrandbits(60) << 64 for _ in range(producers)]
        self.keyed = keyed
        self.number = 0
        self.body = bytes(1200)

    def message(self) -> EncodedMessage:
        self.number += 1
        base = self.bases[self.number % len(self.bases)]
        words: tuple[bytes, ...] = ()
        if self.keyed == "random":
            words = (b"order-%d" % self.random.randrange(10**9),)
        elif self.keyed == "sequential":
            words = (b"order-%09d" % self.number,)
        return EncodedMessage(self.body, 5, b"%032X" % (base + self.number), words)


async def run(
    turn: int, request: int, producers: int, keyed: str, total: int, *, numbered: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = StateStore.open(directory)
        machine = BrokerStateMachine(store)
        machine.apply([Entry(1, 1, encode_put_topic(TopicConfig(name="t")))])
        topic = store.topics["t"]
        raft = TimedRaft(machine)
        appender = Appender(raft, store, AppenderConfig(), SystemClock())
        source = Source(producers, keyed)
        answered = 0

        def answer(first: int, offsets: list[int], error: DLedgerError | None) -> None:
            nonlocal answered
            answered += len(offsets)

        gather_s, done, sequence = 0.0, 0, 0
        identity = None
        while done < total:
            requests = [
                [source.message() for _ in range(request)] for _ in range(max(1, turn // request))
            ]
            started = time.process_time()
            for number, messages in enumerate(requests):
                if numbered:
                    sequence += request
                    producer = number // QUEUES % producers
                    identity = SendIdentity(producer, sequence)
                appender.append(topic, number % QUEUES, messages, answer, identity)
            gather_s += time.process_time() - started
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            done += request * len(requests)
        if answered != done:
            raise SystemExit(f"{answered} answers for {done} messages")
        micro = 1e6 / done
        print(
            f"{turn:6} {request:7} {producers:9} {keyed:>10} {numbered!s:>8} | "
            f"{gather_s * micro:6.2f} {raft.encode_s * micro:6.2f} "
            f"{raft.apply_s * micro:6.2f} us | "
            f"{store.statistics().used_bytes / done:5.0f} bytes of state a message"
        )
        store.close(clean=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    arguments = parser.parse_args()
    print("  turn request producers       keys numbered | gather encode  apply")
    for turn, request, producers, keyed in (
        (1, 1, 1, "no"),
        (10, 1, 4, "no"),
        (50, 1, 4, "no"),
        (200, 1, 4, "no"),
        (200, 32, 4, "no"),
        (200, 32, 64, "no"),
        (200, 32, 4, "sequential"),
        (200, 32, 4, "random"),
    ):
        total = min(arguments.messages, turn * 10_000)
        for numbered in (False, True):
            asyncio.run(run(turn, request, producers, keyed, total, numbered=numbered))


if __name__ == "__main__":
    main()
