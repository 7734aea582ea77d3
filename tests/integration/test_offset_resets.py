"""Resetting and cloning offsets on real replicas: with members online, offline, and fail-over."""

import asyncio
import sys

import pytest

from dledger import AsyncAdmin, ConsumeFrom, Message
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import BrokerResponseError, InvalidParameterError
from dledger.model import MessageQueue
from dledger.remoting.bodies import decode_offset_table
from tests.support.brokers import TestClient, eventually, single_broker
from tests.support.cluster import cluster

QUEUES = [MessageQueue("t", "broker-a", number) for number in range(2)]
RESET = RequestCode.INVOKE_BROKER_TO_RESET_OFFSET


async def fill(group, count=20):
    await group.create_topic("t", queues=2)
    async with group.producer() as producer:
        for number in range(count):
            for queue in range(2):
                await producer.send(Message("t", b"%d" % number), queue=queue)


def test_the_old_position_of_a_member_does_not_come_back(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t", queues=1)
            for number in range(10):
                await client.send("t", b"%d" % number)
            place = {"consumerGroup": "g", "topic": "t", "queueId": 0}

            async def committed():
                answer = await client.call(RequestCode.QUERY_CONSUMER_OFFSET, place)
                return int(answer.ext["offset"])

            async def commit(offset):
                code = RequestCode.UPDATE_CONSUMER_OFFSET
                assert (await client.call(code, {**place, "commitOffset": offset})).code == 0

            await commit(10)
            waiting = asyncio.create_task(client.pull("t", 10, wait_ms=20_000))
            long_polls = broker._parts.context.long_polls
            await eventually(lambda: len(long_polls) == 1, "the pull is parked")
            fields = {"group": "g", "topic": "t", "timestamp": 0, "isForce": "true"}
            answer = await client.call(RESET, fields)
            assert decode_offset_table(answer.body) == {QUEUES[0]: 0}
            moved = await asyncio.wait_for(waiting, 5)
            assert (moved.code, moved.ext["nextBeginOffset"]) == (21, "0")
            assert moved.remark == "OFFSET_RESET"
            await commit(10)
            assert await committed() == 0, "a commit from before is ignored"
            other = await client.pull("t", 10, group="h")
            assert other.code == ResponseCode.PULL_NOT_FOUND, "another group"
            assert (await client.pull("t", 7)).code == 21, "still"
            assert (await client.pull("t", 0)).code == 0
            await commit(4)
            assert await committed() == 4
            assert (await client.pull("t", 4)).code == 0
            await eventually(lambda: not broker.store.rows.scan("offset_resets", b""), "followed")

            last = {**fields, "timestamp": -1}
            assert decode_offset_table((await client.call(RESET, last)).body) == {QUEUES[0]: 10}
            await commit(10)
            assert (await client.pull("t", 3)).code == 0, "committing the target follows as well"
            one = {**fields, "queueId": 0, "offset": 6}
            assert decode_offset_table((await client.call(RESET, one)).body) == {QUEUES[0]: 6}
            for wrong, code in (
                ({"topic": "absent"}, ResponseCode.TOPIC_NOT_EXIST),
                ({"queueId": 5}, ResponseCode.INVALID_PARAMETER),
                ({"queueId": 0, "offset": 11}, ResponseCode.INVALID_PARAMETER),
                ({"offset": 1}, 0),  # one queue only
                ({"group": "bad group"}, ResponseCode.INVALID_PARAMETER),
            ):
                assert (await client.call(RESET, {**fields, **wrong})).code == code

    asyncio.run(run())


def test_members_online_follow_also_after_the_death_of_the_leader(tmp_path):
    async def run():
        async with cluster(tmp_path) as group:
            await fill(group)
            admin = AsyncAdmin(nameserver=group.nameserver, config=group.admin_config)
            await admin.start()
            consumer = group.consumer()
            got = []

            async def handle(message):
                got.append((message.queue_id, int(message.body)))

            await consumer.start()
            task = asyncio.create_task(consumer.run(handle))
            everything = {(queue, number) for queue in range(2) for number in range(20)}
            await eventually(lambda: set(got) == everything, "all is consumed")
            await consumer.commit()
            got.clear()
            moved = await admin.reset_offsets("cg", "t", ConsumeFrom.EARLIEST)
            assert moved == dict.fromkeys(QUEUES, 0)
            await eventually(lambda: set(got) == everything, "all comes again")
            await group.kill_leader()
            got.clear()
            await admin.move_offset("cg", QUEUES[1], 15)
            wanted = {(1, number) for number in range(15, 20)}
            await eventually(lambda: set(got) >= wanted, "one queue comes again, from there", 20)
            assert set(got) == wanted
            await eventually(
                lambda: all(
                    not b.store.rows.scan("offset_resets", b"") for b in group.brokers.values()
                ),
                "nothing stays pending",
            )
            await consumer.commit()
            for queue in QUEUES:
                assert await admin.committed("cg", queue) == 20
            consumer.stop()
            await task
            await consumer.close()
            await admin.close()

    asyncio.run(run())


def test_a_broker_that_pushes_a_reset_is_followed(tmp_path):
    """As brokers of RocketMQ do that have no pending resets of their own."""

    async def run():
        async with cluster(tmp_path, count=1) as group:
            await fill(group)
            got = []

            async def handle(message):
                got.append((message.queue_id, int(message.body)))

            consumer = group.consumer()
            await consumer.start()
            task = asyncio.create_task(consumer.run(handle))
            await eventually(lambda: len(got) == 40, "all is consumed")
            got.clear()
            leader = await group.leader()
            body = (
                b'{"offsetTable":{{"brokerName":"broker-a","queueId":1,"topic":"t"}:17,'
                b'{"brokerName":"other","queueId":1,"topic":"t"}:3}}'
            )
            fields = {"topic": "t", "timestamp": "0", "isForce": "true"}
            for name in ("someone", "cg"):
                for connection in leader._server.connections:
                    code = RequestCode.RESET_CONSUMER_CLIENT_OFFSET
                    connection.send_oneway(code, {**fields, "group": name}, body)
            await eventually(lambda: len(got) >= 3, "the tail comes again")
            assert got == [(1, 17), (1, 18), (1, 19)]
            consumer.stop()
            await task
            await consumer.close()

    asyncio.run(run())


def test_groups_that_are_not_there_are_moved_and_cloned(tmp_path):
    async def run():
        async with cluster(tmp_path, count=1) as group:
            await fill(group)
            admin = AsyncAdmin(nameserver=group.nameserver, config=group.admin_config)
            async with admin:
                leader = await group.leader()
                topic = leader.store.topic("t")
                unit = leader.store.read_units(topic.topic_id, 0, 12, 1)[0]
                client = TestClient(leader.address)
                seen = await client.pull("t", 12)
                from dledger.message import iter_stored

                message = next(iter_stored(seen.body))
                assert message.physical_offset == unit.physical_offset
                moved = await admin.reset_offsets(
                    "cg", "t", message.store_timestamp_ms, queue=QUEUES[0]
                )
                assert list(moved) == [QUEUES[0]]
                assert moved[QUEUES[0]] <= 12
                await admin.move_offset("cg", QUEUES[0], 18)
                await admin.move_offset("cg", QUEUES[1], 20)
                await admin.clone_offsets("cg", "copy")
                assert [await admin.committed("copy", queue) for queue in QUEUES] == [18, 20]
                async with group.consumer("copy") as consumer:
                    bodies = [(await consumer.poll(10)).body for _ in range(2)]
                    assert bodies == [b"18", b"19"]
                    assert await consumer.poll(0.5) is None
                with pytest.raises(BrokerResponseError):
                    await admin.move_offset("cg", QUEUES[0], 99)
                with pytest.raises(InvalidParameterError):
                    await admin.reset_offsets("cg", "t", ConsumeFrom.TIMESTAMP)
                await client.close()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "cli",
                "consumer",
                "reset",
                "--group",
                "cg",
                "--topic",
                "t",
                "--to",
                "earliest",
                "--queue",
                "1",
                "--json",
                "--nameserver",
                group.nameserver,
                stdout=asyncio.subprocess.PIPE,
                cwd=str(__import__("pathlib").Path(__file__).resolve().parents[2]),
            )
            output, _ = await process.communicate()
            assert process.returncode == 0
            assert b'"consumer_offset": 0' in output or b'"consumer_offset":0' in output

    asyncio.run(run())
