"""Prometheus metrics over HTTP, from a real replica."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.metrics_server import HEAD_BYTES_MAX
from broker.quotas import MESSAGES
from dledger.codes import RequestCode
from dledger.errors import ConfigError
from tests.support.brokers import TestClient as Client
from tests.support.brokers import broker_group, eventually, serving_leader, single_broker


async def http(port, request=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), body.decode()


async def scrape(port):
    """Returns all samples by name and labels."""
    head, body = await http(port)
    assert head.startswith("HTTP/1.1 200 OK")
    assert f"Content-Length: {len(body.encode())}" in head
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def test_what_passes_through_is_shown(tmp_path):
    async def run():
        async with single_broker(tmp_path, metrics_port=0) as (broker, client):
            await client.create_topic("t", queues=1)
            for _ in range(3):
                assert (await client.send("t", b"12345")).code == 0
            assert (await client.pull("t", group="g")).code == 0
            place = {"consumerGroup": "g", "topic": "t", "queueId": 0, "commitOffset": 2}
            assert (await client.call(RequestCode.UPDATE_CONSUMER_OFFSET, place)).code == 0
            found = await scrape(broker.metrics_port)
            topic, both = (("topic", "t"),), (("group", "g"), ("topic", "t"))
            assert found["dledger_messages_stored_total", topic] == 3
            assert found["dledger_bytes_stored_total", topic] == 15
            assert found["dledger_messages_fetched_total", both] == 3
            assert found["dledger_consumer_lag_messages", both] == 1
            assert found["dledger_send_seconds_count", ()] == 3
            assert found["dledger_send_seconds_bucket", (("le", "+Inf"),)] == 3
            assert found["dledger_send_seconds_sum", ()] > 0
            assert found["dledger_is_leader", ()] == found["dledger_is_serving", ()] == 1
            assert found["dledger_applied_index", ()] == broker.raft.applied_index
            info = [labels for name, labels in found if name == "dledger_broker_info"]
            assert dict(info[0])["replica_id"] == broker.config.replica_id

    asyncio.run(run())


def test_refusals_are_counted(tmp_path):
    async def run():
        async with single_broker(tmp_path, metrics_port=0) as (broker, client):
            await client.create_topic("t", queues=1)
            ext = {
                "topic": "t", "defaultTopic": "", "readQueueNums": 1, "writeQueueNums": 1,
                "perm": 6, "topicFilterType": "SINGLE_TAG", "order": "false",
                "attributes": f"+{MESSAGES}=1",
            }  # fmt: skip
            assert (await client.call(RequestCode.UPDATE_AND_CREATE_TOPIC, ext)).code == 0
            answers = [await client.send("t", b"x") for _ in range(4)]
            refused = sum(answer.code == 2 for answer in answers)
            assert refused > 0
            found = await scrape(broker.metrics_port)
            assert found["dledger_quota_refusals_total", ()] == refused

    asyncio.run(run())


def test_followers_show_themselves_and_the_leader_their_lag(tmp_path):
    async def run():
        async with broker_group(tmp_path, metrics_port=0) as brokers:
            leader = await serving_leader(brokers)
            client = Client(leader.address)
            await client.create_topic("t", queues=1)
            await client.close()

            async def caught_up():
                found = await scrape(leader.metrics_port)
                lags = [v for (name, _), v in found.items() if "entries_behind" in name]
                return lags == [0.0, 0.0]

            await eventually(caught_up, "both followers have everything")
            follower = next(broker for broker in brokers.values() if broker is not leader)
            found = await scrape(follower.metrics_port)
            assert found["dledger_is_leader", ()] == 0
            assert not [name for name, _ in found if name == "dledger_consumer_lag_messages"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"HEAD /metrics HTTP/1.0\r\n\r\n", "200"),
        (b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", "200"),
        (b"x" * (HEAD_BYTES_MAX + 10), ""),
    ],
)
def test_other_requests(tmp_path, request_, status):
    async def run():
        async with single_broker(tmp_path, metrics_port=0) as (broker, _client):
            try:
                head, body = await http(broker.metrics_port, request_)
            except ConnectionResetError:
                head, body = "", ""
            assert head[9:12] == status
            assert bool(body) == (status != "" and not request_.startswith(b"HEAD"))
            assert (await http(broker.metrics_port))[0][9:12] == "200"

    asyncio.run(run())


def test_without_a_port_nothing_listens_and_a_taken_one_is_an_error(tmp_path):
    async def run():
        async with single_broker(tmp_path / "a") as (broker, _client):
            assert broker.metrics_port == 0
            taken = broker.port
            with pytest.raises(ConfigError, match="metrics_port"):
                async with single_broker(tmp_path / "b", metrics_port=taken):
                    pass

    asyncio.run(run())
