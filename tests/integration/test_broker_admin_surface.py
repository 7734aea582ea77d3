"""What admin tools and dashboards ask, on the wire: one request of each code, and its refusals."""

import asyncio
import json
import logging

import pytest

from broker.quotas import MESSAGES
from dledger.codes import RequestCode, ResponseCode
from dledger.model import GroupConfig, MessageQueue
from dledger.remoting.bodies import (
    decode_consume_stats,
    decode_kv_table,
    decode_topic_list,
    decode_topic_stats,
    encode_group_config,
)
from dledger.remoting.bodies.admin import (
    decode_broker_statistics,
    decode_differences,
    encode_client_offsets,
)
from tests.support.brokers import (
    TestClient,
    broker_group,
    eventually,
    serving_leader,
    single_broker,
)


async def filled(client, topic="t", count=5, group="g"):
    """A topic with messages in queue 0, of which a group has consumed three."""
    await client.create_topic(topic, queues=2)
    for number in range(count):
        answer = await client.send(
            topic, b"x" * 100, properties={"TAGS": "even" if number % 2 == 0 else "odd"}
        )
        assert answer.code == 0, answer.remark
    await client.pull(topic, group=group)
    ext = {"consumerGroup": group, "topic": topic, "queueId": 0, "commitOffset": 3}
    await eventually(lambda: committed(client, ext), "the offset is stored")


async def committed(client, ext):
    return (await client.call(RequestCode.UPDATE_CONSUMER_OFFSET, ext)).code == 0


async def table(client):
    return decode_kv_table((await client.call(RequestCode.GET_BROKER_RUNTIME_INFO)).body)


def test_runtime_info_has_rates_and_totals(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await filled(client)
            found = await table(client)
            assert found["msgPutTotalTodayNow"] == "5"
            assert found["msgGetTotalTodayNow"] == "5"
            assert len(found["putTps"].split()) == 3
            assert float(found["putTps"].split()[0]) > 0
            # mqadmin before 5.0 asks by this name and fails without it.
            assert found["getTransferedTps"] == found["getTransferredTps"]
            assert float(found["getTotalTps"].split()[2]) > 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "key", "total"),
    [
        ("TOPIC_PUT_NUMS", "t", 5),
        ("TOPIC_PUT_SIZE", "t", 500),
        ("GROUP_GET_NUMS", "t@g", 5),
        ("BROKER_PUT_NUMS", "DefaultCluster", 5),
        ("BROKER_GET_NUMS", "DefaultCluster", 5),
    ],
)
def test_statistics_by_name(tmp_path, name, key, total):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await filled(client)
            ext = {"statsName": name, "statsKey": key}
            answer = await client.call(RequestCode.VIEW_BROKER_STATS_DATA, ext)
            assert answer.code == 0, answer.remark
            found = decode_broker_statistics(answer.body)
            assert found.minute.sum == found.hour.sum == found.day.sum == total
            assert found.minute.tps > 0
            raw = json.loads(answer.body)
            assert set(raw) == {"statsMinute", "statsHour", "statsDay"}
            assert set(raw["statsDay"]) == {"sum", "tps", "avgpt"}

    asyncio.run(run())


def test_an_unknown_statistic_is_an_error(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            for name, key in (
                ("TOPIC_PUT_NUMS", "nothing"),
                ("NO_SUCH", "t"),
                ("GROUP_GET_NUMS", ""),
            ):
                ext = {"statsName": name, "statsKey": key}
                answer = await client.call(RequestCode.VIEW_BROKER_STATS_DATA, ext)
                assert answer.code == ResponseCode.SYSTEM_ERROR
                assert "not exist" in answer.remark

    asyncio.run(run())


def test_rates_of_topics_and_groups(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await filled(client)
            answer = await client.call(RequestCode.GET_TOPIC_STATS_INFO, {"topic": "t"})
            assert decode_topic_stats(answer.body).put_tps > 0
            answer = await client.call(RequestCode.GET_CONSUME_STATS, {"consumerGroup": "g"})
            stats = decode_consume_stats(answer.body)
            assert stats.consume_tps > 0
            first = stats.offsets[MessageQueue("t", "broker-a", 0)]
            assert (first.consumer_offset, first.pull_offset, first.broker_offset) == (3, 5, 5)
            second = stats.offsets[MessageQueue("t", "broker-a", 1)]
            assert (second.consumer_offset, second.pull_offset) == (0, 0)
            answer = await client.call(RequestCode.GET_BROKER_CONSUME_STATS, {"isOrder": "false"})
            body = json.loads(answer.body)
            assert (body["totalDiff"], body["totalInflightDiff"]) == (2, 2)
            assert list(body["consumeStatsList"][0]) == ["g"]
            assert body["brokerAddr"] == client.address

    asyncio.run(run())


def test_looking_into_queues(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await filled(client)
            answer = await client.call(
                RequestCode.QUERY_CONSUME_TIME_SPAN, {"topic": "t", "group": "g"}
            )
            spans = json.loads(answer.body)["consumeTimeSpanSet"]
            assert [span["messageQueue"]["queueId"] for span in spans] == [0, 1]
            first = spans[0]
            assert 0 < first["minTimeStamp"] <= first["consumeTimeStamp"] <= first["maxTimeStamp"]
            assert spans[1]["delayTime"] == 0
            await client.heartbeat("c1", "g", {"t": "even"})
            ext = {"topic": "t", "queueId": 0, "index": 1, "count": 2, "consumerGroup": "g"}
            body = json.loads((await client.call(RequestCode.QUERY_CONSUME_QUEUE, ext)).body)
            assert (body["minQueueIndex"], body["maxQueueIndex"]) == (0, 5)
            assert [row["eval"] for row in body["queueData"]] == [False, True]
            assert body["subscriptionData"]["subString"] == "even"
            ext["queueId"] = 9
            assert (await client.call(RequestCode.QUERY_CONSUME_QUEUE, ext)).code == 29
            ext = {"topic": "none", "group": "g"}
            assert (await client.call(RequestCode.QUERY_CONSUME_TIME_SPAN, ext)).code == 17

    asyncio.run(run())


def test_who_consumes_what(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await filled(client)
            await client.heartbeat("c1", "g", {"other": "a || b"}, producers=["p1", "p2"])
            answer = await client.call(RequestCode.QUERY_TOPICS_BY_CONSUMER, {"group": "g"})
            assert decode_topic_list(answer.body).topics == ["other", "t"]
            ext = {"group": "g", "topic": "other"}
            answer = await client.call(RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER, ext)
            assert json.loads(answer.body)["subscriptionData"]["subString"] == "a || b"
            answer = await client.call(RequestCode.GET_ALL_PRODUCER_INFO)
            producers = json.loads(answer.body)["data"]
            assert set(producers) == {"p1", "p2"}
            assert producers["p1"][0]["clientId"] == "c1"
            answer = await client.call(RequestCode.GET_ALL_CONSUMER_OFFSET)
            assert json.loads(answer.body)["offsetTable"]["t@g"] == {"0": 3}

    asyncio.run(run())


def test_a_topic_quota_refuses_and_names_itself(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            ext = {
                "topic": "t", "defaultTopic": "TBW102", "readQueueNums": 1, "writeQueueNums": 1,
                "perm": 6, "topicFilterType": "SINGLE_TAG", "topicSysFlag": 0, "order": "false",
                "attributes": f"+{MESSAGES}=3",
            }  # fmt: skip
            assert (await client.call(RequestCode.UPDATE_AND_CREATE_TOPIC, ext)).code == 0
            answers = [await client.send("t", b"x") for _ in range(5)]
            refused = [answer for answer in answers if answer.code]
            assert refused
            assert {answer.code for answer in refused} == {ResponseCode.SYSTEM_BUSY}
            assert "topic t: quota.messages_per_second = 3" in refused[0].remark
            assert refused[0].ext["dlOutcome"] == "refused"
            assert int((await table(client))["quotaRefused"]) == len(refused)
            half = {"TRAN_MSG": "true", "PGROUP": "p"}
            answer = await client.send("t", b"x", properties=half, sys_flag=4)
            assert answer.code == ResponseCode.SYSTEM_BUSY, "a transaction is no way around it"
            ext["attributes"] = f"+{MESSAGES}=-3"
            answer = await client.call(RequestCode.UPDATE_AND_CREATE_TOPIC, ext)
            assert answer.code == ResponseCode.INVALID_PARAMETER

    asyncio.run(run())


def test_a_group_quota_slows_pulls(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await filled(client)
            group = GroupConfig(name="g", attributes={MESSAGES: "2"})
            code = RequestCode.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP
            assert (await client.call(code, None, encode_group_config(group))).code == 0
            assert (await client.pull("t")).code == 0
            answer = await client.pull("t")
            assert answer.code == ResponseCode.FLOW_CONTROL
            assert "group g: quota.messages_per_second = 2" in answer.remark
            bad = encode_group_config(GroupConfig(name="g", attributes={MESSAGES: "much"}))
            assert (await client.call(code, None, bad)).code == ResponseCode.INVALID_PARAMETER

    asyncio.run(run())


async def differences(client):
    answer = await client.call(RequestCode.GET_SUBSCRIPTION_DIFFERENCES)
    assert answer.code == 0, answer.remark
    return decode_differences(answer.body)


def test_members_that_differ_are_shown(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            other = TestClient(client.address)
            await client.heartbeat("c1", "g", {"t": "a"})
            assert (await differences(client)).groups == {}
            await other.heartbeat("c2", "g", {"t": "b"})
            found = await differences(client)
            wanted = [(member.client_id, member.topics) for member in found.groups["g"]]
            assert wanted == [("c1", {"t": "a"}), ("c2", {"t": "b"})]
            assert found.detected == 1
            assert (await table(client))["subscriptionDifferences"] == "1"
            await other.close()
            await eventually(lambda: no_difference(client), "the member has left")

    asyncio.run(run())


async def no_difference(client):
    return not (await differences(client)).groups


def test_a_group_may_refuse_members_that_differ(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            code = RequestCode.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP
            group = GroupConfig(name="g", attributes={"subscription.guard": "refuse"})
            assert (await client.call(code, None, encode_group_config(group))).code == 0
            await client.heartbeat("c1", "g", {"t": "a"})
            other = TestClient(client.address)
            with pytest.raises(AssertionError, match=r"subscription\.guard=refuse"):
                await other.heartbeat("c2", "g", {"t": "b"})
            assert (await differences(client)).refused == 1
            await other.heartbeat("c2", "g", {"t": "a"})
            await other.close()
            bad = GroupConfig(name="g", attributes={"subscription.guard": "maybe"})
            answer = await client.call(code, None, encode_group_config(bad))
            assert answer.code == ResponseCode.INVALID_PARAMETER

    asyncio.run(run())


async def settings(client):
    answer = await client.call(RequestCode.GET_BROKER_CONFIG)
    return dict(line.split("=", 1) for line in answer.body.decode().splitlines())


async def change(client, text):
    return await client.call(RequestCode.UPDATE_BROKER_CONFIG, None, text.encode())


def test_settings_of_a_replica_change_at_once_and_end_with_it(tmp_path):
    async def run():
        level = logging.getLogger().level
        try:
            async with single_broker(tmp_path) as (_broker, client):
                assert (await change(client, "limits.pull_count_max=2")).code == 0
                assert (await settings(client))["limits.pull_count_max"] == "2"
                await filled(client)
                pulled = await client.pull("t")
                assert pulled.ext["nextBeginOffset"] == "2"
                assert (await change(client, "log_level=ERROR")).code == 0
                assert logging.getLogger().level == logging.ERROR
                assert (await change(client, "limits.pull_count_max=default")).code == 0
                assert (await settings(client))["limits.pull_count_max"] == "4096"
        finally:
            logging.getLogger().setLevel(level)

    asyncio.run(run())


def test_what_cannot_change_is_refused_and_says_what_can(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            before = await settings(client)
            for text in ("store.segment_bytes=1", "x", "auto_create_topics=2", "", "a=\xff"):
                answer = await client.call(
                    RequestCode.UPDATE_BROKER_CONFIG, None, text.encode("latin-1")
                )
                assert answer.code == ResponseCode.INVALID_PARAMETER, text
            answer = await change(client, "store.segment_bytes=1")
            assert "store.retention_hours" in answer.remark
            assert await settings(client) == before

    asyncio.run(run())


def test_settings_of_the_group_hold_everywhere_and_after_a_restart(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            follower = next(b for b in brokers.values() if b is not leader)
            # Asked of a follower, it goes to the leader.
            client = TestClient(follower.address)
            assert (await change(client, "auto_create_topics=false")).code == 0
            for broker in brokers.values():
                each = TestClient(broker.address)

                async def holds(each=each):
                    return (await settings(each))["auto_create_topics"] == "false"

                await eventually(holds, "the setting holds")
                await each.close()
            assert (await client.send("unknown", b"x")).code == ResponseCode.TOPIC_NOT_EXIST
            await client.close()

    asyncio.run(run())


def test_settings_of_the_group_survive_a_restart(tmp_path):
    async def first():
        async with single_broker(tmp_path) as (_broker, client):
            assert (await change(client, "young_queue_bytes=7")).code == 0

    async def second():
        async with single_broker(tmp_path) as (_broker, client):
            assert (await settings(client))["young_queue_bytes"] == "7"
            assert (await change(client, "young_queue_bytes=default")).code == 0
            assert (await settings(client))["young_queue_bytes"] == str(1024**3)

    asyncio.run(first())
    asyncio.run(second())


class Consumer(TestClient):
    """A consumer that answers what it is asked."""

    __test__ = False

    def __init__(self, address, silent=False):
        super().__init__(address)
        self.silent = silent
        self.asked = []

    def _on_request(self, connection, command):
        self.asked.append((command.code, dict(command.ext), bytes(command.body)))
        if self.silent or command.is_oneway:
            return
        if command.code == RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT:
            offsets = {MessageQueue("t", "broker-a", 0): 4}
            connection.reply(command, body=encode_client_offsets(offsets))
        else:
            connection.reply(command, body=b'{"from":"the client"}')


def test_questions_to_clients_are_passed_on(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await filled(client)
            sent = await client.send("t", b"this one")
            consumer = Consumer(client.address)
            await consumer.heartbeat("c1", "g", {"t": "*"})
            ext = {"consumerGroup": "g", "clientId": "c1", "jstackEnable": "true"}
            answer = await client.call(RequestCode.GET_CONSUMER_RUNNING_INFO, ext)
            assert (answer.code, answer.body) == (0, b'{"from":"the client"}')
            assert consumer.asked[-1][1]["jstackEnable"] == "true"
            ext = {"consumerGroup": "g", "clientId": "c1", "msgId": sent.ext["msgId"]}
            answer = await client.call(RequestCode.CONSUME_MESSAGE_DIRECTLY, ext)
            assert answer.code == 0, answer.remark
            _, header, body = consumer.asked[-1]
            assert header["brokerName"] == "broker-a"
            assert b"this one" in body
            ext = {"topic": "t", "group": "g"}
            answer = await client.call(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, ext)
            (key,) = json.loads(answer.body)["consumerTable"]["c1"]
            assert json.loads(key)["queueId"] == 0
            await consumer.close()

    asyncio.run(run())


def test_questions_to_clients_that_cannot_be_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr("broker.processors.relays.ANSWER_S", 0.1)
    monkeypatch.setattr("broker.processors.relays.STATUS_S", 0.1)

    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await filled(client)
            ext = {"consumerGroup": "g", "clientId": "c1"}
            answer = await client.call(RequestCode.GET_CONSUMER_RUNNING_INFO, ext)
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert "not online" in answer.remark
            status = {"topic": "t", "group": "g"}
            answer = await client.call(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, status)
            assert answer.code == ResponseCode.CONSUMER_NOT_ONLINE
            silent = Consumer(client.address, silent=True)
            await silent.heartbeat("c1", "g", {"t": "*"})
            answer = await client.call(RequestCode.GET_CONSUMER_RUNNING_INFO, ext)
            assert answer.code == ResponseCode.CONSUME_MESSAGE_TIMEOUT
            answer = await client.call(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, status)
            assert json.loads(answer.body)["consumerTable"] == {}
            for bad in ("", "nonsense", "7F00000100002A9F00000000000000FF"):
                ext["msgId"] = bad
                answer = await client.call(RequestCode.CONSUME_MESSAGE_DIRECTLY, ext)
                assert answer.code in (ResponseCode.INVALID_PARAMETER, ResponseCode.QUERY_NOT_FOUND)
            await silent.close()

    asyncio.run(run())
