"""Real replicas that drop old messages, restart, and lose their state."""

import asyncio

from broker.server import Broker
from dledger.codes import EXT_NO_FORWARD, RequestCode, ResponseCode
from dledger.message import iter_stored
from store.clean_mark import CleanMark, write_mark
from tests.support.brokers import (
    TestClient,
    broker_group,
    eventually,
    serving_leader,
    single_broker,
)

SMALL = {
    "store": {
        "segment_bytes": 64 * 1024,
        "retention_bytes": 300_000,
        "disk_free_min_bytes": 1,
        "snapshot_interval_s": 1000.0,
    },
    "timing": {"retention_check_s": 0.05, "drain_s": 0.5},
}


async def fill(client, count, topic="t"):
    for number in range(count):
        answer = await client.send(topic, b"%06d" % number + bytes(10_000))
        assert answer.code == 0, answer.remark


def test_old_messages_go_on_every_replica_and_readers_are_told(tmp_path):
    async def run():
        async with broker_group(tmp_path, **SMALL) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(leader.address)
            await fill(client, 150)
            await eventually(
                lambda: all(
                    broker.log.offset_min > 500_000 and broker.log.first_index > 1
                    for broker in brokers.values()
                ),
                "every replica has dropped old segments",
            )
            await eventually(
                lambda: len({broker.store.applied_index for broker in brokers.values()}) == 1,
                "all have applied the same",
            )
            assert len({broker.store.digest() for broker in brokers.values()}) == 1
            topic = leader.store.topic("t")
            low, high = leader.store.queue_bounds(topic.topic_id, 0)
            assert 0 < low < high == 150
            for broker in brokers.values():
                reader = TestClient(broker.address)
                answer = await reader.pull("t", 0)
                assert answer.code == ResponseCode.PULL_OFFSET_MOVED
                now_low = int(answer.ext["nextBeginOffset"])
                assert low <= now_low == int(answer.ext["minOffset"])
                found = await reader.pull("t", now_low)
                while found.code == ResponseCode.PULL_OFFSET_MOVED:  # it goes on dropping
                    now_low = int(found.ext["nextBeginOffset"])
                    found = await reader.pull("t", now_low)
                assert found.code == 0, (found.code, found.remark)
                first = next(iter(iter_stored(found.body)))
                assert (first.queue_offset, first.body[:6]) == (now_low, b"%06d" % now_low)
                await reader.close()
            ext = {"topic": "t", "queueId": 0}
            answer = await client.call(RequestCode.GET_MIN_OFFSET, ext)
            assert int(answer.ext["offset"]) >= low
            await client.close()

    asyncio.run(run())


def test_a_connected_follower_that_takes_nothing_keeps_the_log_only_so_long(tmp_path, monkeypatch):
    async def run():
        timing = {**SMALL["timing"], "retention_wait_s": 1.0}
        async with broker_group(tmp_path, **{**SMALL, "timing": timing}) as brokers:
            leader = await serving_leader(brokers)
            stuck = {"match_index": 1, "connected": 1, "snapshot_bytes": 0}
            monkeypatch.setattr(leader.raft, "peer_progress", lambda: {"stuck": stuck})
            client = TestClient(leader.address)
            begin = asyncio.get_running_loop().time()
            await fill(client, 100)
            await eventually(lambda: leader.log.first_index > 1, "old segments are gone")
            assert asyncio.get_running_loop().time() - begin >= 1.0
            await client.close()

    asyncio.run(run())


def test_a_restart_and_an_unclean_stop_of_the_machine(tmp_path):
    async def run():
        async with single_broker(tmp_path, **SMALL) as (broker, client):
            await fill(client, 150)
            await eventually(lambda: broker.log.offset_min > 500_000, "old segments are gone")
            config = broker.config
            digest, applied = broker.store.digest(), broker.store.applied_index
        # In order: nothing has changed.
        broker = Broker(config)
        await broker.start()
        assert broker.store.applied_index >= applied
        low = broker.log.first_index
        assert low > 1
        await eventually(lambda: broker.raft.is_serving, "it serves again")
        await broker.stop()
        # As after a loss of power: the state is discarded, the snapshot takes its place.
        mark = config.data_directory / "state" / "state.mark"
        write_mark(mark, CleanMark("another boot", clean=False))
        broker = Broker(config)
        await broker.start()
        assert broker.store.applied_index > 0
        await eventually(lambda: broker.raft.is_serving, "it serves after the replay")
        topic = broker.store.topic("t")
        _, high = broker.store.queue_bounds(topic.topic_id, 0)
        assert high == 150
        client = TestClient(broker.address)
        answer = await client.pull("t", 149)
        assert next(iter(iter_stored(answer.body))).body[:6] == b"000149"
        assert digest
        await client.close()
        await broker.stop()

    asyncio.run(run())


def test_a_replica_whose_log_is_behind_its_state_lets_the_leader_answer(tmp_path, monkeypatch):
    """After a snapshot: queues are known, their messages are not there yet."""

    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(leader.address)
            await fill(client, 3)
            follower = next(broker for broker in brokers.values() if broker is not leader)
            await eventually(
                lambda: follower.store.applied_index == leader.store.applied_index, "caught up"
            )
            reader = TestClient(follower.address)
            refuse = {EXT_NO_FORWARD: "1"}
            assert (await reader.pull("t", 1, ext=refuse)).code == ResponseCode.SUCCESS
            parked = asyncio.ensure_future(reader.pull("t", 3, wait_ms=5000, ext=refuse))
            await eventually(lambda: len(follower._parts.context.long_polls) == 1, "it waits")
            pulls = follower._parts.pulls
            monkeypatch.setattr(pulls, "_lacks_log", lambda: True)
            answer = await reader.pull("t", 1, ext=refuse)
            assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE, answer.remark
            forwarded = await reader.pull("t", 1)
            assert forwarded.code == ResponseCode.SUCCESS
            # One that waited meanwhile goes on waiting, and is never told of messages not here.
            await fill(client, 1)
            await eventually(
                lambda: follower.store.applied_index == leader.store.applied_index, "applied"
            )
            assert not parked.done()
            pulls.close()
            answer = await parked
            assert (answer.code, answer.ext["maxOffset"]) == (ResponseCode.PULL_NOT_FOUND, "3")
            await reader.close()
            await client.close()

    asyncio.run(run())
