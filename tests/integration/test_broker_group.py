"""Three real replicas in one process: forwarding, fail-over, registration."""

import asyncio

import pytest

from broker.server import Broker
from dledger.codes import RequestCode, ResponseCode
from dledger.message import iter_stored
from dledger.remoting.bodies import decode_kv_table, decode_topic_route
from nameserver.server import NameserverConfig, NameserverServer
from tests.support.brokers import (
    TestClient,
    broker_group,
    eventually,
    serving_leader,
    single_broker,
)


def bodies(answer):
    return [message.body for message in iter_stored(answer.body)]


async def crash(brokers, broker):
    """Ends a replica the way a killed process ends, as far as one process can show it."""
    brokers.pop(broker.config.replica_id)
    broker.raft.crash()
    await broker.stop()


def test_what_the_leader_acknowledged_every_replica_serves(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(leader.address)
            for number in range(20):
                assert (await client.send("t", b"%d" % number)).code == 0
            for broker in brokers.values():
                reader = TestClient(broker.address)

                async def has_all(reader=reader):
                    return bodies(await reader.pull("t")) == [b"%d" % n for n in range(20)]

                await eventually(has_all, f"{broker.config.replica_id} serves all")
                await reader.close()
            await eventually(
                lambda: len({broker.store.digest() for broker in brokers.values()}) == 1,
                "all replicas hold the same state",
            )
            await client.close()

    asyncio.run(run())


def test_followers_forward_what_only_the_leader_can_do(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            follower = next(b for b in brokers.values() if b is not leader)
            client = TestClient(follower.address)
            await client.create_topic("t")
            sent = await client.send("t", b"x", properties={"UNIQ_KEY": "K"})
            assert (sent.code, sent.ext["queueOffset"]) == (0, "0")
            assert sent.ext["transactionId"] == "K"
            ext = {"consumerGroup": "g", "topic": "t", "queueId": 0}
            code = RequestCode.UPDATE_CONSUMER_OFFSET
            assert (await client.call(code, {**ext, "commitOffset": 1})).code == 0
            asked = await client.call(RequestCode.QUERY_CONSUMER_OFFSET, ext)
            assert asked.ext["offset"] == "1"
            newest = await client.call(RequestCode.GET_MAX_OFFSET, {"topic": "t", "queueId": 0})
            assert newest.ext["offset"] == "1"

            async def readable():
                return bodies(await client.pull("t")) == [b"x"]

            await eventually(readable, "the follower has applied the message")
            (message,) = iter_stored((await client.pull("t")).body)
            sockname = client.remoting.connections[0]._transport.get_extra_info("sockname")
            assert message.born_host == f"127.0.0.1:{sockname[1]}"
            info = await client.call(RequestCode.GET_BROKER_RUNTIME_INFO)
            table = decode_kv_table(info.body)
            assert (table["raftRole"], table["raftServing"]) == ("follower", "false")
            assert table["raftLeaderAddress"] == leader.address
            assert int(table["forwarded"]) >= 4
            await client.close()

    asyncio.run(run())


def test_who_asks_not_to_be_forwarded_gets_the_leaders_address(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            follower = next(b for b in brokers.values() if b is not leader)
            await eventually(lambda: follower.raft.leader_id, "the follower knows the leader")
            client = TestClient(follower.address)
            for ext in ({"dlNoForward": "1"}, {"dlForwarded": "1"}):
                answer = await client.send("t", b"x", ext=ext)
                assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
                assert answer.ext["dlOutcome"] == "refused"
                assert answer.ext["dlLeader"] == leader.address
                assert int(answer.ext["dlTerm"]) == leader.raft.term
            await client.close()

    asyncio.run(run())


def test_a_follower_holds_a_pull_from_beyond_its_end(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            follower = next(b for b in brokers.values() if b is not leader)
            client = TestClient(follower.address)
            await client.create_topic("t")
            await eventually(lambda: follower.store.topic("t"), "the follower knows the topic")
            ahead = await client.pull("t", 5)
            assert (ahead.code, ahead.ext["nextBeginOffset"]) == (19, "5")
            assert int(ahead.ext["maxOffset"]) >= 5
            waiting = asyncio.create_task(client.pull("t", 0, wait_ms=30_000))
            await eventually(
                lambda: len(follower._parts.context.long_polls) == 1, "the pull is parked"
            )
            assert (await client.send("t", b"x")).code == 0
            assert bodies(await asyncio.wait_for(waiting, 5)) == [b"x"]
            await client.close()

    asyncio.run(run())


def test_nothing_acknowledged_is_lost_when_the_leader_dies(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            follower = next(b for b in brokers.values() if b is not leader)
            client = TestClient(follower.address)
            await client.create_topic("t")
            await client.heartbeat("c1", "g", {"t": "*"})
            acknowledged = []

            async def produce():
                for number in range(400):
                    body = b"%d" % number
                    answer = await client.send("t", body)
                    if answer.code == 0:
                        acknowledged.append((int(answer.ext["queueOffset"]), body))

            producing = asyncio.create_task(produce())
            await eventually(lambda: len(acknowledged) > 50, "some are acknowledged")
            await crash(brokers, leader)
            await asyncio.wait_for(producing, 60)
            new = await serving_leader(brokers)
            assert new.raft.term > 1
            # At most what was under way may have failed; a follower waits for the new leader.
            assert len(acknowledged) > 390
            reader = TestClient(new.address)
            answer = await reader.pull("t", message_count_max=1000, bytes_max=4_000_000)
            stored = dict(enumerate(bodies(answer)))
            for offset, body in acknowledged:
                assert stored[offset] == body
            await client.close()
            await reader.close()

    asyncio.run(run())


def test_during_an_election_requests_wait_and_then_end_definitely(tmp_path):
    async def run():
        timing = {"forward_wait_s": 0.5}
        async with broker_group(tmp_path, timing=timing) as brokers:
            leader = await serving_leader(brokers)
            for broker in [b for b in list(brokers.values()) if b is not leader][:1]:
                await crash(brokers, broker)
            survivor = next(b for b in brokers.values() if b is not leader)
            await crash(brokers, leader)
            client = TestClient(survivor.address)
            answer = await client.send("t", b"x")
            assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
            assert answer.ext["dlOutcome"] == "refused"
            await client.close()

    asyncio.run(run())


def test_a_leader_without_a_majority_says_unknown_then_refuses(tmp_path):
    async def run():
        async with broker_group(tmp_path, timing={"forward_wait_s": 0.3}) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(leader.address)
            assert (await client.send("t", b"1")).code == 0
            for broker in [b for b in list(brokers.values()) if b is not leader]:
                await crash(brokers, broker)
            answer = await client.send("t", b"2")
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert answer.ext["dlOutcome"] == "unknown"
            await eventually(lambda: not leader.raft.is_serving, "it steps down")
            answer = await client.send("t", b"3")
            assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
            assert answer.ext["dlOutcome"] == "refused"
            assert bodies(await client.pull("t")) == [b"1"]
            await client.close()

    asyncio.run(run())


def test_a_leader_without_a_majority_does_not_tell_a_topics_settings_as_the_last(tmp_path):
    async def run():
        async with broker_group(tmp_path, timing={"forward_wait_s": 0.3}) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(leader.address)
            assert (await client.send("t", b"1")).code == 0
            header = {"topic": "t", "dlNoForward": "1"}
            assert (await client.call(RequestCode.GET_TOPIC_CONFIG, header)).code == 0
            for broker in [b for b in list(brokers.values()) if b is not leader]:
                await crash(brokers, broker)
            # Others may have changed them meanwhile, for all that this replica can know.
            assert leader.raft.is_serving
            answer = await client.call(RequestCode.GET_TOPIC_CONFIG, header)
            assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
            # Who asks any replica is told what this one knows.
            answer = await client.call(RequestCode.GET_TOPIC_CONFIG, {"topic": "t"})
            assert answer.code == 0
            await client.close()

    asyncio.run(run())


def test_a_killed_replica_catches_up_after_its_restart(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            victim = next(b for b in brokers.values() if b is not leader)
            client = TestClient(leader.address)
            assert (await client.send("t", b"0")).code == 0
            await crash(brokers, victim)
            for number in range(1, 50):
                assert (await client.send("t", b"%d" % number)).code == 0
            again = Broker(victim.config)
            await again.start()
            brokers[victim.config.replica_id] = again
            await eventually(
                lambda: again.raft.applied_index == leader.raft.applied_index, "it catches up"
            )
            await eventually(
                lambda: again.store.digest() == leader.store.digest(), "the states are the same"
            )
            await client.close()

    asyncio.run(run())


def test_directories_from_before_groups_could_change_are_opened(tmp_path):
    """They have no members file; the group is then the one of `broker.toml`."""

    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(leader.address)
            for number in range(10):
                assert (await client.send("t", b"%d" % number)).code == 0
            await client.close()
            configs = [broker.config for broker in brokers.values()]
            await asyncio.gather(*(broker.stop() for broker in brokers.values()))
            for config in configs:
                (config.data_directory / "log" / "members").unlink()
            brokers.clear()
            for config in configs:
                brokers[config.replica_id] = Broker(config)
                await brokers[config.replica_id].start()
            leader = await serving_leader(brokers)
            assert leader.raft.configuration.voters == tuple(c.replica_id for c in configs)
            client = TestClient(leader.address)
            assert (await client.send("t", b"10")).code == 0
            assert bodies(await client.pull("t")) == [b"%d" % number for number in range(11)]
            await eventually(
                lambda: len({b.store.digest() for b in brokers.values()}) == 1, "the same state"
            )
            await client.close()
            assert all(broker.failure is None for broker in brokers.values())

    asyncio.run(run())


def test_runtime_information_names_the_members_of_now(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            await leader.raft.changes.add("new", "127.0.0.1:1", "127.0.0.1:2")
            client = TestClient(leader.address)
            answer = await client.call(RequestCode.GET_BROKER_RUNTIME_INFO)
            assert "new=127.0.0.1:1" in decode_kv_table(answer.body)["raftMembers"].split(";")
            await client.close()

    asyncio.run(run())


@pytest.fixture
def quick_registration():
    return {"register_interval_s": 0.5, "register_timeout_s": 1.0}


async def route(address, topic):
    client = TestClient(address)
    try:
        answer = await client.call(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": topic})
        return decode_topic_route(answer.body) if answer.code == 0 else None
    finally:
        await client.close()


async def leader_in_route(address, topic):
    found = await route(address, topic)
    return found.broker_datas[0].addresses.get(0) if found else None


def test_nameservers_follow_the_leader(tmp_path, quick_registration):
    async def run():
        nameserver = NameserverServer(NameserverConfig(port=0))
        await nameserver.start()
        address = f"127.0.0.1:{nameserver.port}"
        async with broker_group(
            tmp_path, timing=quick_registration, nameservers=[address]
        ) as brokers:
            leader = await serving_leader(brokers)

            async def known(broker, topic="TBW102"):
                return await leader_in_route(address, topic) == broker.address

            await eventually(lambda: known(leader), "the leader is registered")
            client = TestClient(leader.address)
            await client.create_topic("fresh", queues=3)
            await eventually(lambda: known(leader, "fresh"), "the new topic is registered")
            found = await route(address, "fresh")
            assert found.queue_datas[0].write_queue_count == 3

            async def all_there():
                return set((await route(address, "fresh")).broker_datas[0].addresses.values()) == {
                    b.address for b in brokers.values()
                }

            await eventually(all_there, "the followers are registered")
            await crash(brokers, leader)
            new = await serving_leader(brokers)
            await eventually(lambda: known(new, "fresh"), "the new leader is registered")
            await client.close()
        await nameserver.stop()

    asyncio.run(run())


def test_a_restarted_nameserver_learns_of_the_broker_soon(tmp_path):
    async def run():
        nameserver = NameserverServer(NameserverConfig(port=0))
        await nameserver.start()
        port = nameserver.port
        address = f"127.0.0.1:{port}"
        async with single_broker(tmp_path, nameservers=[address]) as (broker, _client):

            async def known():
                return await leader_in_route(address, "TBW102") == broker.address

            await eventually(known, "the broker is registered")
            await nameserver.stop()
            nameserver = NameserverServer(NameserverConfig(port=port))
            await nameserver.start()
            # Long before the next regular registration.
            await eventually(known, "the broker is registered again", timeout_s=5)
        assert await route(address, "TBW102") is None, "a stopped broker has taken leave"
        await nameserver.stop()

    asyncio.run(run())
