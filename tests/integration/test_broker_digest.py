"""Real replicas compare their states; the one that differs stops, and the others go on."""

import asyncio

from dledger.model import TopicConfig
from tests.support.brokers import TestClient, broker_group, eventually, serving_leader


def test_a_follower_whose_state_differs_fences_itself(tmp_path):
    async def run():
        async with broker_group(tmp_path, digest_entries=20) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(leader.address)
            for number in range(60):
                assert (await client.send("t", b"%d" % number)).code == 0
            assert all(broker.failure is None for broker in brokers.values())
            victim = next(broker for broker in brokers.values() if broker is not leader)
            with victim.store.write() as batch:
                batch.put_topic(TopicConfig(name="only-here"))
            await client.create_topic("next")  # gets another topic id there
            for number in range(60):
                assert (await client.send("t", b"%d" % number)).code == 0
            error = await asyncio.wait_for(victim.wait_failed(), 10)
            assert "rebuilt" in str(error)
            assert not victim.raft.is_serving
            others = [broker for broker in brokers.values() if broker is not victim]
            assert all(broker.failure is None for broker in others)
            assert (await client.send("t", b"after")).code == 0
            await eventually(
                lambda: len({broker.store.digest() for broker in others}) == 1, "they are equal"
            )
            await client.close()

    asyncio.run(run())
