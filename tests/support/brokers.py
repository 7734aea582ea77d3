"""Brokers in this process, over real sockets and directories, for integration tests."""

import asyncio
import contextlib
import socket
import time

from broker.config import BrokerConfig
from broker.server import Broker
from dledger.codes import RequestCode
from dledger.config import build_config
from dledger.message import encode_properties
from dledger.remoting.bodies import (
    ConsumerData,
    HeartbeatData,
    SubscriptionData,
    encode_heartbeat,
)
from dledger.remoting.client import RemotingClient
from dledger.remoting.headers import (
    CreateTopicHeader,
    PullMessageHeader,
    SendMessageHeaderV2,
    to_ext,
)

FAST_RAFT = {
    "heartbeat_ms": 20,
    "election_timeout_min_ms": 100,
    "election_timeout_max_ms": 200,
    "check_quorum_ms": 300,
}


def free_ports(count):
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def config_for(directory, replica_id, replicas, **changes):
    values = {
        "replica_id": replica_id,
        "replicas": replicas,
        "data_directory": str(directory / replica_id),
        "raft": FAST_RAFT,
        "store": {"segment_bytes": 8 * 1024 * 1024, "disk_free_min_bytes": 1},
        **changes,
    }
    return build_config(BrokerConfig, values)


def replica_entries(count):
    ports = free_ports(2 * count)
    return [
        {
            "id": f"broker-a-{number}",
            "address": f"127.0.0.1:{ports[2 * number]}",
            "raft_address": f"127.0.0.1:{ports[2 * number + 1]}",
        }
        for number in range(count)
    ]


async def eventually(condition, what, timeout_s=10.0):
    """Waits until a condition holds; fails with `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def single_broker(directory, ready_topic="TBW102", **changes):
    """One replica that serves, and a client of it."""
    (entry,) = replica_entries(1)
    broker = Broker(config_for(directory, entry["id"], [entry], **changes))
    await broker.start()
    pushed = []
    client = TestClient(entry["address"], pushed)
    try:
        await eventually(lambda: broker.raft.is_serving, "the broker serves")
        await eventually(lambda: broker.store.topic(ready_topic), "system topics exist")
        yield broker, client
        assert broker.failure is None
    finally:
        await client.close()
        await broker.stop()


@contextlib.asynccontextmanager
async def broker_group(directory, count=3, **changes):
    """Several replicas of one group; yields a dict of running brokers by id."""
    entries = replica_entries(count)
    brokers = {}
    for entry in entries:
        broker = Broker(config_for(directory, entry["id"], entries, **changes))
        await broker.start()
        brokers[entry["id"]] = broker
    try:
        yield brokers
    finally:
        await asyncio.gather(*(broker.stop() for broker in brokers.values()))


async def serving_leader(brokers):
    """Waits for the one replica that serves."""

    def leader():
        serving = [b for b in brokers.values() if b.raft.is_serving]
        return serving[0] if len(serving) == 1 else None

    return await eventually(leader, "a leader serves")


class TestClient:
    """Raw requests to one address."""

    __test__ = False

    def __init__(self, address, pushed=None):
        self.address = address
        self.pushed = [] if pushed is None else pushed
        self.remoting = RemotingClient(on_request=self._on_request)

    def _on_request(self, _connection, command):
        self.pushed.append((command.code, dict(command.ext)))

    async def close(self):
        await self.remoting.close()

    async def call(self, code, ext=None, body=b"", timeout_s=10.0):
        return await self.remoting.request(self.address, code, ext, body, timeout_s)

    async def send(
        self,
        topic,
        body,
        *,
        queue_id=0,
        code=RequestCode.SEND_MESSAGE_V2,
        properties=None,
        ext=None,
        **fields,
    ):
        header = SendMessageHeaderV2(
            producer_group="p",
            topic=topic,
            queue_id=queue_id,
            born_timestamp_ms=1_700_000_000_000,
            properties=encode_properties(properties or {}).decode(),
            **fields,
        )
        return await self.call(code, {**to_ext(header), **(ext or {})}, body)

    async def pull(
        self, topic, offset=0, *, queue_id=0, group="g", expression="*", wait_ms=0, ext=None, **more
    ):
        fields = {
            "consumer_group": group,
            "topic": topic,
            "queue_id": queue_id,
            "queue_offset": offset,
            "message_count_max": 32,
            "sys_flag": 4 | (2 if wait_ms else 0),
            "suspend_timeout_ms": wait_ms,
            "subscription": expression,
            **more,
        }
        header = PullMessageHeader(**fields)
        return await self.call(RequestCode.PULL_MESSAGE, {**to_ext(header), **(ext or {})})

    async def create_topic(self, topic, queues=4, permission=6):
        header = CreateTopicHeader(
            topic=topic, read_queue_count=queues, write_queue_count=queues, permission=permission
        )
        answer = await self.call(RequestCode.UPDATE_AND_CREATE_TOPIC, header)
        assert answer.code == 0, answer.remark

    async def heartbeat(
        self, client_id, group, topics, *, version=1, producers=(), expression_type="TAG"
    ):
        subscriptions = [
            SubscriptionData(
                topic=topic,
                expression=expression,
                version=version,
                expression_type=expression_type,
            )
            for topic, expression in topics.items()
        ]
        body = encode_heartbeat(
            HeartbeatData(
                client_id=client_id,
                producers=list(producers),
                consumers=[ConsumerData(group=group, subscriptions=subscriptions)],
            )
        )
        answer = await self.call(RequestCode.HEART_BEAT, None, body)
        assert answer.code == 0, answer.remark
        return answer
