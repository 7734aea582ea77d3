"""What our client does at brokers that know less than ours: requests refused, or misunderstood.

As found against Apache RocketMQ 4.9.4 (interop/apache).
"""

import asyncio
import contextlib

import pytest

from dledger.client.admin import AsyncAdmin
from dledger.client.config import AdminConfig, PushConsumerConfig, SessionConfig
from dledger.client.filters import Sql
from dledger.client.producer import AsyncProducer
from dledger.client.push_consumer import AsyncPushConsumer
from dledger.client.sync import PushConsumer
from dledger.codes import RequestCode, ResponseCode
from dledger.errors import (
    BrokerResponseError,
    ClientClosedError,
    InvalidParameterError,
    MessageRejectedError,
)
from dledger.message import Message
from dledger.model import ConsumeFrom, MessageQueue
from dledger.remoting.bodies import encode_kv_table
from tests.support.fake_cluster import FakeCluster

QUICK = SessionConfig(request_timeout_s=1.0, connect_timeout_s=1.0, operation_timeout_s=3.0)


@contextlib.asynccontextmanager
async def foreign(version="V4_9_4", online=False):
    """A cluster of one replica that answers as such a broker does; with an admin client."""

    def refuse(code):
        return lambda connection, command: connection.reply(command, code, remark="refused")

    async with FakeCluster(replica_count=1) as cluster:
        cluster.create_topic("t", 2)
        [replica] = cluster.group.replicas
        told = encode_kv_table({"brokerVersionDesc": version})
        replica._on_get_broker_runtime_info = lambda connection, command: connection.reply(
            command, 0, None, None, told
        )
        replica._on_get_topic_config = refuse(ResponseCode.REQUEST_CODE_NOT_SUPPORTED)
        replica._on_invoke_broker_to_reset_offset = refuse(ResponseCode.CONSUMER_NOT_ONLINE)
        replica._on_get_consumer_connection_list = refuse(
            ResponseCode.SUCCESS if online else ResponseCode.CONSUMER_NOT_ONLINE
        )
        replica._on_check_client_config = refuse(ResponseCode.SUBSCRIPTION_PARSE_FAILED)
        async with (
            AsyncProducer("p", nameserver=cluster.nameserver) as producer,
            AsyncAdmin(nameserver=cluster.nameserver, config=AdminConfig(session=QUICK)) as admin,
        ):
            for number in range(6):
                await producer.send(Message("t", b"%d" % number), queue=number % 2)
            yield cluster, replica, admin


def queue(number):
    return MessageQueue("t", "broker-a", number)


def test_a_topic_is_found_where_nobody_can_be_asked_for_a_single_one():
    async def main():
        async with foreign() as (_, _, admin):
            assert (await admin.topic("t"))["broker-a"].write_queue_count == 2

    asyncio.run(main())


def test_a_group_without_members_is_moved_by_committing():
    async def main():
        async with foreign() as (_, _, admin):
            moved = await admin.reset_offsets("g", "t", ConsumeFrom.LATEST)
            assert moved == {queue(0): 3, queue(1): 3}
            assert await admin.committed("g", queue(1)) == 3
            assert await admin.reset_offsets("g", "t", ConsumeFrom.EARLIEST) == {
                queue(0): 0,
                queue(1): 0,
            }
            assert await admin.committed("g", queue(1)) == 0

    asyncio.run(main())


def test_a_broker_that_overlooks_the_queue_is_never_asked_to_move_one():
    async def main():
        async with foreign() as (_, replica, admin):
            await admin.move_offset("g", queue(1), 2)
            assert await admin.committed("g", queue(1)) == 2
            assert await admin.committed("g", queue(0)) is None
            assert RequestCode.INVOKE_BROKER_TO_RESET_OFFSET not in replica.requests
        async with foreign(online=True) as (_, replica, admin):
            with pytest.raises(InvalidParameterError, match="online"):
                await admin.move_offset("g", queue(1), 2)
            assert await admin.committed("g", queue(1)) is None
            assert RequestCode.INVOKE_BROKER_TO_RESET_OFFSET not in replica.requests
        async with foreign(version="V5_1_4") as (_, replica, admin):
            await admin.move_offset("g", queue(1), 2)
            assert RequestCode.INVOKE_BROKER_TO_RESET_OFFSET in replica.requests

    asyncio.run(main())


def test_a_delay_that_a_broker_would_overlook_is_refused_and_nothing_sent():
    async def main():
        for version, refuses in (("V4_9_4", True), ("V5_1_4", False)):
            async with (
                foreign(version=version) as (cluster, replica, _),
                AsyncProducer("p", nameserver=cluster.nameserver) as producer,
            ):
                sends = replica.requests.count(RequestCode.SEND_MESSAGE_V2)
                if refuses:
                    with pytest.raises(MessageRejectedError, match="DELAY"):
                        await producer.send(Message("t", b"x"), delay=7)
                else:
                    await producer.send(Message("t", b"x"), delay=7)
                sent = replica.requests.count(RequestCode.SEND_MESSAGE_V2) - sends
                assert sent == (0 if refuses else 1)
                await producer.send(Message("t", b"x", properties={"DELAY": "3"}))

    asyncio.run(main())


def test_a_consumer_whose_condition_is_refused_is_closed():
    """It used to keep its connections, and a second start claimed to have succeeded."""

    async def main():
        async with foreign() as (cluster, _, _):
            consumer = AsyncPushConsumer(
                "g",
                subscriptions={"t": Sql("a >")},
                nameserver=cluster.nameserver,
                config=PushConsumerConfig(session=QUICK),
            )
            with pytest.raises(BrokerResponseError):
                await consumer.start()
            with pytest.raises(ClientClosedError):
                await consumer.start()
            await consumer.close()

            def in_a_thread():
                front = PushConsumer(
                    "g", subscriptions={"t": Sql("a >")}, nameserver=cluster.nameserver
                )
                with pytest.raises(BrokerResponseError):
                    front.start()
                assert not front._loop.is_running
                front.close()

            await asyncio.to_thread(in_a_thread)

    asyncio.run(main())
