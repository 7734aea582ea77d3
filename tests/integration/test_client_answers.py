"""What our consumers tell admin tools about themselves, asked through a broker."""

import asyncio
import contextlib
import json

import pytest

from dledger import Message
from dledger.codes import RequestCode, ResponseCode
from dledger.message import decode_stored
from dledger.model import MessageQueue
from dledger.remoting.bodies.admin import decode_direct_result, decode_running_info
from tests.support.brokers import TestClient, eventually
from tests.support.cluster import cluster


@contextlib.asynccontextmanager
async def consuming(tmp_path, handler, **settings):
    """A consumer at work on ten messages, its id, their ids, and a raw client of the leader."""
    async with cluster(tmp_path, count=1) as group:
        await group.create_topic("t", queues=2)
        async with group.producer() as producer:
            sent = [await producer.send(Message("t", b"%d" % n), queue=n % 2) for n in range(10)]
        client = TestClient((await group.leader()).address)
        async with group.consumer(**settings) as consumer:
            running = asyncio.create_task(consumer.run(handler))
            try:
                yield consumer, consumer._session.client_id, sent, client
            finally:
                consumer.stop()
                await running
                await client.close()


async def offset_id(client, sent):
    """Returns the id by which brokers find a message."""
    ext = {"topic": "t", "key": sent.message_id, "maxNum": 1, "beginTimestamp": 0}
    ext |= {"endTimestamp": 2**62, "_UNIQUE_KEY_QUERY": "true"}
    answer = await client.call(RequestCode.QUERY_MESSAGE, ext)
    return decode_stored(answer.body).offset_message_id


def test_a_consumer_says_what_it_holds(tmp_path):
    seen = []

    async def handler(message):
        seen.append(message.body)

    async def run():
        async with consuming(tmp_path, handler) as (_consumer, client_id, _sent, client):
            await eventually(lambda: len(seen) == 10, "everything is consumed")
            ext = {"consumerGroup": "cg", "clientId": client_id, "jstackEnable": "true"}
            answer = await client.call(RequestCode.GET_CONSUMER_RUNNING_INFO, ext)
            assert answer.code == 0, answer.remark
            info = decode_running_info(answer.body)
            held = {
                queue: w.commit_offset for queue, w in info.queues.items() if queue.topic == "t"
            }
            assert held == {MessageQueue("t", "broker-a", number): 5 for number in range(2)}
            assert {each.topic for each in info.subscriptions} == {"t", "%RETRY%cg"}
            assert info.properties["PROP_CONSUMEORDERLY"] == "false"
            assert int(info.properties["PROP_CONSUMER_START_TIMESTAMP"]) > 1_700_000_000_000
            assert "MainThread" in info.stacks
            ext = {"topic": "t", "group": "cg"}
            answer = await client.call(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, ext)
            table = json.loads(answer.body)["consumerTable"][client_id]
            assert sorted(table.values()) == [5, 5]

    asyncio.run(run())


@pytest.mark.parametrize("fails", [False, True])
def test_one_message_out_of_turn(tmp_path, fails):
    seen = []

    async def handler(message):
        seen.append(message.body)
        if fails and len(seen) > 10:
            raise ValueError("not this one")

    async def run():
        async with consuming(tmp_path, handler) as (consumer, client_id, sent, client):
            await eventually(lambda: len(seen) == 10, "everything is consumed")
            await consumer.commit()
            ext = {"consumerGroup": "cg", "clientId": client_id}
            ext["msgId"] = await offset_id(client, sent[3])
            answer = await client.call(RequestCode.CONSUME_MESSAGE_DIRECTLY, ext)
            assert answer.code == 0, answer.remark
            result = decode_direct_result(answer.body)
            assert seen[10:] == [b"3"]
            if fails:
                assert (result.result, result.remark) == ("CR_LATER", "ValueError: not this one")
            else:
                assert (result.result, result.remark) == ("CR_SUCCESS", None)
            await consumer.commit()
            place = {"consumerGroup": "cg", "topic": "t", "queueId": 1}
            answer = await client.call(RequestCode.QUERY_CONSUMER_OFFSET, place)
            assert answer.ext["offset"] == "5", "the group's offset stays"
            retry = {"topic": "%RETRY%cg"}
            answer = await client.call(RequestCode.GET_TOPIC_STATS_INFO, retry)
            assert b'"maxOffset":0' in answer.body, "nothing was handed back"

    asyncio.run(run())


def test_an_ordered_consumer_takes_nothing_out_of_turn(tmp_path):
    seen = []

    async def handler(message):
        seen.append(message.body)

    async def run():
        settings = {"ordered": True}
        async with consuming(tmp_path, handler, **settings) as (_consumer, client_id, sent, client):
            await eventually(lambda: len(seen) == 10, "everything is consumed")
            ext = {"consumerGroup": "cg", "clientId": client_id}
            ext["msgId"] = await offset_id(client, sent[0])
            answer = await client.call(RequestCode.CONSUME_MESSAGE_DIRECTLY, ext)
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert "out of turn" in answer.remark

    asyncio.run(run())
