"""The address that a group's leader takes over, as clients that are not ours see it."""

import asyncio
import socket

from dledger.codes import RequestCode
from dledger.remoting.bodies import decode_topic_route
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
                answer = await foreign.send("t", b"%d" % number)
                assert answer.code == 0, answer.remark
                if number == 0:
                    await group.kill_leader()

                    async def is_there():
                        try:
                            return (await foreign.send("t", b"again")).code == 0
                        except OSError:
                            return False

                    await eventually(is_there, "the next leader is found at the same address")
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
            assert (await foreign.send("t", b"1")).code == 0
            await leader.raft.transfer_leadership()
            successor = await group.leader()
            assert successor is not leader
            # What is connected to the old one stays connected, and is forwarded.
            assert (await foreign.send("t", b"2")).code == 0
            await foreign.close()
            newcomer = TestClient(shared)

            async def is_at_the_successor():
                answer = await newcomer.call(RequestCode.GET_BROKER_RUNTIME_INFO)
                return successor.config.replica_id.encode() in answer.body

            await eventually(is_at_the_successor, "newcomers reach the new leader")
            await newcomer.close()

    asyncio.run(run())
