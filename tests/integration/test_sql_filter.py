"""SQL filters on real replicas: any replica filters, also while pulls wait and after fail-over."""

import asyncio

import pytest

from dledger import Message, Sql
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import BrokerResponseError
from dledger.message import iter_stored
from tests.support.brokers import TestClient, eventually, single_broker
from tests.support.cluster import cluster


def bodies(answer):
    return [message.body for message in iter_stored(answer.body)]


def test_pulls_get_what_the_condition_lets_pass(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("t", queues=1)
            for number in range(30):
                properties = {"n": str(number), **({"TAGS": "even"} if number % 2 == 0 else {})}
                await client.send("t", b"%d" % number, properties=properties)
            sql = {"expression_type": "SQL92"}
            answer = await client.pull("t", expression="n >= 25 AND TAGS = 'even'", **sql)
            assert (answer.code, bodies(answer)) == (0, [b"26", b"28"])
            assert answer.ext["nextBeginOffset"] == "30"
            nothing = await client.pull("t", expression="n > 99", **sql)
            assert nothing.code == ResponseCode.PULL_RETRY_IMMEDIATELY
            assert nothing.ext["nextBeginOffset"] == "30"
            for wrong in ("n >", "", "n = NULL"):
                refused = await client.pull("t", expression=wrong, **sql)
                assert refused.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
            waiting = asyncio.create_task(
                client.pull("t", 30, expression="n = 31", wait_ms=20_000, **sql)
            )
            for number in (30, 31):
                await client.send("t", b"%d" % number, properties={"n": str(number)})
            assert bodies(await asyncio.wait_for(waiting, 5)) == [b"31"]

    asyncio.run(run())


def test_the_subscription_of_a_heartbeat_counts(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("t", queues=1)
            for number in range(4):
                await client.send("t", b"%d" % number, properties={"n": str(number)})
            body = (
                b'{"clientID":"c","consumerDataSet":[{"groupName":"g","subscriptionDataSet":'
                b'[{"topic":"t","subString":"n = 2","subVersion":3,"expressionType":"SQL92"}]}]}'
            )
            assert (await client.call(RequestCode.HEART_BEAT, None, body)).code == 0
            answer = await client.pull("t", sys_flag=0, expression_type="SQL92", sub_version=3)
            assert bodies(answer) == [b"2"]
            for text, code in (
                ("n = 2", 0),
                ("n = ", ResponseCode.SUBSCRIPTION_PARSE_FAILED),
            ):
                check = (
                    b'{"clientId":"c","group":"g","subscriptionData":{"topic":"t",'
                    b'"subString":"%s","expressionType":"SQL92"}}' % text.encode()
                )
                answer = await client.call(RequestCode.CHECK_CLIENT_CONFIG, None, check)
                assert answer.code == code

    asyncio.run(run())


def test_our_consumer_through_the_death_of_the_leader(tmp_path):
    async def run():
        async with cluster(tmp_path) as group:
            await group.create_topic("t", queues=2)
            wrong = group.consumer(subscriptions={"t": Sql("a >")})
            with pytest.raises(BrokerResponseError) as refused:
                await wrong.start()
            assert refused.value.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
            await wrong.close()
            consumer = group.consumer(subscriptions={"t": Sql("a > 5 AND b IS NOT NULL")})
            got = []

            async def consume():
                async for message in consumer:
                    got.append(int(message.body))

            async with group.producer() as producer:

                async def produce(numbers):
                    for number in numbers:
                        properties = {"a": str(number % 10), **({"b": "x"} if number % 2 else {})}
                        await producer.send(Message("t", b"%d" % number, properties=properties))

                await consumer.start()
                task = asyncio.create_task(consume())
                await produce(range(50))
                await group.kill_leader()
                await produce(range(50, 100))
                wanted = {n for n in range(100) if n % 10 in (7, 9)}
                await eventually(lambda: set(got) >= wanted, "all that match arrive")
                assert set(got) == wanted
            follower = next(b for b in group.brokers.values() if not b.raft.is_serving)
            client = TestClient(follower.address)
            answer = await client.pull("t", expression="a = 9", expression_type="SQL92")
            assert all(int(body) % 10 == 9 for body in bodies(answer))
            await client.close()
            consumer.stop()
            await task
            await consumer.close()

    asyncio.run(run())
