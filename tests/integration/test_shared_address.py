"""How clients that are not ours find the next leader, and pull from it."""

import asyncio
import socket

from dledger.codes import RequestCode
from dledger.errors import DLedgerError
from dledger.model import MessageQueue
from dledger.remoting.bodies import (
    LockBatchBody,
    decode_consumer_ids,
    decode_topic_route,
    encode_lock_batch,
)
from tests.support.brokers import TestClient, eventually
from tests.support.cluster import cluster
from tests.support.foreign import call_as


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def leader_address(nameserver, **ext):
    code = RequestCode.GET_ROUTEINFO_BY_TOPIC
    answer = await call_as(nameserver, code, {"topic": "t", **ext}, language="JAVA")
    if answer.code != 0:
        return None
    return decode_topic_route(answer.body).broker_datas[0].addresses.get(0)


async def sent(client, body):
    """Sends as soon as somebody listens at the client's address."""

    async def is_sent():
        try:
            return (await client.send("t", body)).code == 0
        except DLedgerError:
            return False

    await eventually(is_sent, "a leader is found at the address")


def test_whoever_leads_listens_on_the_shared_address(tmp_path):
    async def run():
        shared = free_address()
        async with cluster(tmp_path, shared_address=shared) as group:
            await group.create_topic("t")
            foreign = TestClient(shared)
            for number in range(2):
                leader = await group.leader()

                async def is_known(leader=leader):
                    own = await leader_address(group.nameserver, dlOwnAddresses="true")
                    return (
                        own == leader.address and await leader_address(group.nameserver) == shared
                    )

                await eventually(is_known, "the nameserver knows both addresses")
                await sent(foreign, b"%d" % number)
                if number == 0:
                    await group.kill_leader()

                    await sent(foreign, b"again")
            await foreign.close()

    asyncio.run(run())


def test_a_leader_that_does_not_get_the_address_is_found_at_its_own(tmp_path):
    async def run():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            shared = f"127.0.0.1:{taken.getsockname()[1]}"
            async with cluster(tmp_path, shared_address=shared) as group:
                await group.create_topic("t")
                leader = await group.leader()

                async def is_known():
                    return await leader_address(group.nameserver) == leader.address

                await eventually(is_known, "the leader's own address is given")
                taken.close()

                async def is_taken():
                    return await leader_address(group.nameserver) == shared

                await eventually(is_taken, "the address is taken when it is free")

    asyncio.run(run())


def test_a_deposed_leader_leaves_the_address(tmp_path):
    async def run():
        shared = free_address()
        async with cluster(tmp_path, shared_address=shared) as group:
            await group.create_topic("t")
            leader = await group.leader()
            foreign = TestClient(shared)
            await sent(foreign, b"1")
            await leader.raft.transfer_leadership()
            successor = await group.leader()
            assert successor is not leader
            # What is connected to the old one stays connected, and is forwarded.
            assert (await foreign.send("t", b"2")).code == 0
            await foreign.close()
            newcomer = TestClient(shared)

            async def is_at_the_successor():
                try:
                    answer = await newcomer.call(RequestCode.GET_BROKER_RUNTIME_INFO)
                except DLedgerError:
                    return False  # between the two nobody listens
                return successor.config.replica_id.encode() in answer.body

            await eventually(is_at_the_successor, "newcomers reach the new leader")
            await newcomer.close()

    asyncio.run(run())


async def member_ids(address, group, language):
    code = RequestCode.GET_CONSUMER_LIST_BY_GROUP
    answer = await call_as(address, code, {"consumerGroup": group}, language=language)
    return decode_consumer_ids(answer.body) if answer.code == 0 else None


def test_members_give_their_queues_back_when_a_leader_died_and_take_them_anew(tmp_path):
    async def run():
        async with cluster(tmp_path) as group:
            await group.create_topic("t")
            clients = [TestClient(broker.address) for broker in group.brokers.values()]
            for client in clients:
                await client.heartbeat("c1", "free", {"t": "*"})
                await client.heartbeat("c1", "ordered", {"t": "*"})
            body = LockBatchBody(
                consumer_group="ordered",
                client_id="c1",
                queues=[MessageQueue("t", "broker-a", 0)],
            )
            code = RequestCode.LOCK_BATCH_MQ
            answer = await clients[0].call(code, None, encode_lock_batch(body))
            assert answer.code == 0, answer.remark
            leader = await group.kill_leader()
            assert await member_ids(leader.address, "free", "GO") == ["nobody"]
            assert await member_ids(leader.address, "free", "PYTHON") == ["c1"]
            assert await member_ids(leader.address, "free", "JAVA") == ["c1"]  # 5.3.3
            assert await member_ids(leader.address, "ordered", "GO") == ["c1"]

            async def is_back():
                return await member_ids(leader.address, "free", "GO") == ["c1"]

            await eventually(is_back, "the members are shown again")
            [mine] = [client for client in clients if client.address == leader.address]
            told = (RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": "free"})
            await eventually(
                lambda: mine.pushed.count(told) >= 2, "members are told before and after"
            )
            for client in clients:
                await client.close()

    asyncio.run(run())


def test_members_keep_their_queues_when_a_leader_hands_over(tmp_path):
    async def run():
        async with cluster(tmp_path) as group:
            await group.create_topic("t")
            clients = [TestClient(broker.address) for broker in group.brokers.values()]
            for client in clients:
                await client.heartbeat("c1", "free", {"t": "*"})
            leader = await group.leader()
            await leader.raft.transfer_leadership()
            successor = await group.leader()
            assert successor is not leader
            assert await member_ids(successor.address, "free", "GO") == ["c1"]
            for client in clients:
                await client.close()

    asyncio.run(run())
