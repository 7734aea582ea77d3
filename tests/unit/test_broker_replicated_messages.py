"""Three replicas of raft, state machine and appender on virtual time, with leaders that go away.

Raft's log is in memory; the state is in LMDB. A real CommitLog takes its place in the integration
tests of the broker.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from broker.appender import Appender, AppenderConfig
from broker.commands import encode_delete_topic, encode_put_topic
from broker.messages_command import EncodedMessage
from broker.state_machine import BrokerStateMachine
from dledger.errors import DLedgerError
from dledger.message import decode_stored, encode_stored
from dledger.model import TopicConfig
from store.state_store import StateStore
from tests.support.raft_group import RaftGroup
from tests.support.virtual_loop import run_virtual

QUEUES = 3


def encoded(text: str) -> EncodedMessage:
    stored = encode_stored(
        topic=b"t",
        queue_id=0,
        flag=0,
        queue_offset=0,
        physical_offset=0,
        sys_flag=0,
        born_timestamp_ms=1,
        born_host=bytes(8),
        store_timestamp_ms=1,
        store_host=bytes(8),
        reconsume_times=0,
        prepared_transaction_offset=0,
        body=text.encode(),
        properties=b"",
    )
    return EncodedMessage(stored, 0, text.encode())


class Cluster:
    """A group whose replicas have real state, and what their senders were told."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.random = random.Random(seed)
        self.group = RaftGroup(3, seed)
        self.stores: dict[str, StateStore] = {}
        self.appenders: dict[str, Appender] = {}
        self.acknowledged: dict[str, tuple[int, int, int]] = {}
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self.number = 0
        self.sending = True

    async def start(self, replica: str) -> None:
        store = StateStore.open(self.directory / replica, map_bytes=1 << 20, boot_id=lambda: "b")
        self.stores[replica] = store
        self.group.machines[replica] = BrokerStateMachine(store)  # type: ignore[assignment]
        await self.group.start([replica])
        node = self.group.nodes[replica]
        self.appenders[replica] = Appender(node, store, AppenderConfig(), self.group.clock)

    def crash(self, replica: str) -> None:
        self.group.crash(replica)
        self.appenders.pop(replica)
        self.stores.pop(replica).close(clean=False)

    async def send(self) -> None:
        """Sends from every replica in every few turns, so that none of their moments is missed."""
        while self.sending:
            for replica in list(self.appenders):
                self.send_one(replica)
            await asyncio.sleep(self.random.choice([0, 0.01, 0.02]))

    def send_one(self, replica: str) -> None:
        text = f"m{self.number}"
        self.number += 1
        queue_id = self.random.randrange(QUEUES)
        topic = self.stores[replica].topic("t")
        if topic is None:
            return

        def answered(first: int, offsets: list[int], error: DLedgerError | None) -> None:
            if error is None:
                self.acknowledged[text] = (queue_id, first, offsets[0])
            else:
                (self.refused if error.definite else self.unknown).add(text)

        try:
            self.appenders[replica].append(topic, queue_id, [encoded(text)], answered)
        except DLedgerError as error:
            assert error.definite
            self.refused.add(text)

    async def disturb(self) -> None:
        group = self.group
        for _ in range(4):
            leader = (await group.serving_leader(60)).replica_id
            match self.random.randrange(3):
                case 0:
                    self.crash(leader)
                    await asyncio.sleep(self.random.uniform(0.2, 2))
                    await self.start(leader)
                case 1:
                    group.network.isolate(leader)
                    await asyncio.sleep(self.random.uniform(0.2, 3))
                    group.network.heal()
                case 2:
                    other = self.random.choice([name for name in group.ids if name != leader])
                    group.network.cut(leader, other)
                    await asyncio.sleep(self.random.uniform(0.2, 2))
                    group.network.heal()
            await asyncio.sleep(self.random.uniform(0, 0.5))

    def stored(self, replica: str) -> dict[str, tuple[int, int, int]]:
        """Reads every message through ConsumeQueue units from the bytes of the log."""
        log = b"".join(entry.record for entry in self.group.logs[replica].entries)
        store = self.stores[replica]
        topic = store.topics["t"]
        found = {}
        for queue_id in range(QUEUES):
            count = store.queue_bounds(topic.topic_id, queue_id)[1]
            for offset, unit in enumerate(store.read_units(topic.topic_id, queue_id, 0, count)):
                at = unit.physical_offset
                message = decode_stored(log[at : at + unit.size_bytes], verify_crc=True)
                assert (message.queue_offset, message.physical_offset) == (offset, at)
                text = message.body.decode()
                assert text not in found
                found[text] = (queue_id, offset, at)
                assert store.find_by_key(topic.topic_id, text, unique=True) == [at]
        return found


@pytest.mark.parametrize("seed", range(10))
def test_acknowledged_messages_are_where_the_answer_said(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        cluster = Cluster(tmp_path, seed)
        group = cluster.group
        for replica in group.ids:
            await cluster.start(replica)
        leader = await group.serving_leader()
        await leader.submit(encode_put_topic(TopicConfig(name="x")))
        await leader.submit(encode_delete_topic("x"))
        await leader.submit(encode_put_topic(TopicConfig(name="t")))
        sender = asyncio.create_task(cluster.send())
        await cluster.disturb()
        cluster.sending = False
        await sender
        await group.serving_leader()
        assert group.fatal == {}

        def settled() -> bool:
            lasts = {log.last_index for log in group.logs.values()}
            return {store.applied_index for store in cluster.stores.values()} == lasts

        await group.wait(settled)
        assert len({store.digest() for store in cluster.stores.values()}) == 1
        stored = cluster.stored("r0")
        assert cluster.acknowledged.items() <= stored.items()
        assert not cluster.refused & stored.keys()
        assert stored.keys() <= cluster.acknowledged.keys() | cluster.unknown | lost_answers(
            cluster
        )
        assert len(cluster.acknowledged) > 50
        assert all(appender.pending_bytes == 0 for appender in cluster.appenders.values())
        await group.stop()
        for store in cluster.stores.values():
            store.close(clean=False)

    run_virtual(main())


def lost_answers(cluster: Cluster) -> set[str]:
    """Messages whose process was killed before it could answer."""
    told = cluster.acknowledged.keys() | cluster.refused | cluster.unknown
    return {f"m{number}" for number in range(cluster.number)} - told
