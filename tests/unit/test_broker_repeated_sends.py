"""Producers that send again until they know: three replicas with real state under faults."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from broker.commands import encode_put_topic
from broker.messages_command import SendIdentity
from dledger.errors import DLedgerError
from dledger.message import decode_stored
from dledger.model import TopicConfig
from tests.support.virtual_loop import run_virtual
from tests.unit.test_broker_replicated_messages import QUEUES, Cluster, encoded

PRODUCERS = 3
ATTEMPTS_S = (0.001, 0.01, 0.7)  # most are too short for an answer: attempts overlap


class Producers:
    """Each has one request under way in each queue, and asks all replicas in turn."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.random = cluster.random
        self.places: dict[str, tuple[int, int, list[int]]] = {}
        self.repeated = 0
        self.attempts = 0
        self.stopping = False

    async def lane(self, producer: int, queue_id: int) -> None:
        sequence = 0
        while not self.stopping:
            count = self.random.randint(1, 4)
            texts = [f"p{producer}-{queue_id}-{sequence + at}" for at in range(count)]
            first, offsets = await self.send(producer, queue_id, sequence, texts)
            for at, text in enumerate(texts):
                self.places[text] = (queue_id, first + at, offsets[at : at + 1])
            sequence += count

    async def send(
        self, producer: int, queue_id: int, sequence: int, texts: list[str]
    ) -> tuple[int, list[int]]:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.random.choice([0, 0.005, 0.02]))
            replica = self.random.choice(self.cluster.group.ids)
            appender = self.cluster.appenders.get(replica)
            store = self.cluster.stores.get(replica)
            topic = store.topic("t") if store is not None else None
            if appender is None or topic is None:
                continue
            outcome: asyncio.Future[tuple[int, list[int]]] = loop.create_future()

            def answered(
                first: int,
                offsets: list[int],
                error: DLedgerError | None,
                outcome: asyncio.Future[tuple[int, list[int]]] = outcome,
            ) -> None:
                if error is None and not outcome.done():
                    outcome.set_result((first, offsets))
                elif error is not None and not outcome.done():
                    outcome.cancel()

            self.attempts += 1
            identity = SendIdentity(producer, sequence)
            messages = [encoded(text) for text in texts]
            try:
                self.repeated += appender.append(topic, queue_id, messages, answered, identity)
            except DLedgerError as error:
                assert error.definite
                continue
            await asyncio.wait({outcome}, timeout=self.random.choice(ATTEMPTS_S))
            if outcome.done() and not outcome.cancelled():
                return outcome.result()


@pytest.mark.parametrize("seed", range(8))
def test_what_is_sent_until_it_is_known_is_stored_once_and_in_order(
    tmp_path: Path, seed: int
) -> None:
    async def main() -> None:
        cluster = Cluster(tmp_path, seed)
        group = cluster.group
        for replica in group.ids:
            await cluster.start(replica)
        leader = await group.serving_leader()
        await leader.submit(encode_put_topic(TopicConfig(name="t")))
        producers = Producers(cluster)
        lanes = [
            asyncio.create_task(producers.lane(producer, queue_id))
            for producer in range(PRODUCERS)
            for queue_id in range(QUEUES)
        ]
        await cluster.disturb()
        producers.stopping = True
        await asyncio.gather(*lanes)
        await group.serving_leader()
        assert group.fatal == {}

        def settled() -> bool:
            lasts = {log.last_index for log in group.logs.values()}
            return {store.applied_index for store in cluster.stores.values()} == lasts

        await group.wait(settled)
        assert len({store.digest() for store in cluster.stores.values()}) == 1
        stored = stored_texts(cluster)
        assert Counter(text for _, _, text, _ in stored) == Counter(producers.places.keys())
        for queue_id, offset, text, physical_offset in stored:
            assert producers.places[text] == (queue_id, offset, [physical_offset])
        for producer in range(PRODUCERS):
            for queue_id in range(QUEUES):
                prefix = f"p{producer}-{queue_id}-"
                numbers = [
                    int(t.removeprefix(prefix)) for _, _, t, _ in stored if t.startswith(prefix)
                ]
                assert numbers == list(range(len(numbers)))
        assert producers.repeated > 0, "nothing was sent again: the run shows nothing"
        await group.stop()
        for store in cluster.stores.values():
            store.close(clean=False)

    run_virtual(main())


def stored_texts(cluster: Cluster) -> list[tuple[int, int, str, int]]:
    """Reads all queues of a replica: (queue id, queue offset, text, physical offset)."""
    log = b"".join(entry.record for entry in cluster.group.logs["r0"].entries)
    store = cluster.stores["r0"]
    topic_id = store.topics["t"].topic_id
    found = []
    for queue_id in range(QUEUES):
        count = store.queue_bounds(topic_id, queue_id)[1]
        for offset, unit in enumerate(store.read_units(topic_id, queue_id, 0, count)):
            at = unit.physical_offset
            message = decode_stored(log[at : at + unit.size_bytes], verify_crc=True)
            found.append((queue_id, offset, message.body.decode(), at))
    return found
