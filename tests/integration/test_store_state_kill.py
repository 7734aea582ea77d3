"""A process killed while it applies: what it reported is stored, and nothing by halves."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from store.state_store import StateStore

# Entry n appends n % 50 + 1 units to queue 0 and commits n as a consumer offset.
CHILD = """
import sys
from broker.commands import encode_commit_offsets, encode_put_topic
from broker.messages_command import EncodedMessage, MessagesBuilder, Part
from broker.state_machine import BrokerStateMachine
from dledger.model import TopicConfig
from store.state_store import StateStore
from typing import NamedTuple

class Entry(NamedTuple):
    index: int
    term: int
    body: bytes

store = StateStore.open(sys.argv[1], boot_id=lambda: "b")
machine = BrokerStateMachine(store)
if store.applied_index == 0:
    machine.apply([Entry(1, 1, encode_put_topic(TopicConfig(name="t")))])
while True:
    n = store.applied_index + 1
    builder = MessagesBuilder()
    messages = [EncodedMessage(bytes(100), n, b"%d-%d" % (n, k)) for k in range(n % 50 + 1)]
    builder.add(1, 0, Part(1, messages))
    body = builder.encode(n, n, lambda topic, queue, count: store.queue_bounds(1, 0)[1])
    offsets = encode_commit_offsets([("g", "t", 0, n + 1)])
    machine.apply([Entry(n, 1, body), Entry(n + 1, 1, offsets)])
    print(n + 1, flush=True)
"""


def test_killed_while_applying(tmp_path: Path) -> None:
    chance = random.Random(7)
    reported = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 120)):
                reported = int(child.stdout.readline())
            child.kill()
        store = StateStore.open(tmp_path, boot_id=lambda: "b")
        applied = store.applied_index
        assert applied >= reported
        expected = sum(n % 50 + 1 for n in range(2, applied, 2))
        assert store.queue_bounds(1, 0) == (0, expected)
        assert len(store.read_unit_bytes(1, 0, 0, expected)) == expected * 20
        assert store.consumer_offset("g", "t", 0) == applied
        assert len(store.find_by_key(1, f"{applied - 1}-0", unique=True)) == 1
        store.close(clean=False)
