"""Offsets, groups, topics, queries and heartbeats against one real replica."""

import asyncio

import msgspec
import pytest

from dledger.codes import RequestCode, ResponseCode
from dledger.message import iter_stored, parse_offset_message_id
from dledger.model import GroupConfig, MessageQueue
from dledger.remoting.bodies import (
    decode_connection_list,
    decode_consume_stats,
    decode_consumer_ids,
    decode_group_config,
    decode_group_list,
    decode_group_table,
    decode_kv_table,
    decode_topic_config,
    decode_topic_list,
    decode_topic_stats,
    decode_topic_table,
    encode_group_config,
)
from dledger.remoting.headers import PullMessageHeader
from tests.support.brokers import TestClient, eventually, single_broker
from tests.support.foreign import call_as


async def commit(client, group, topic, queue_id, offset):
    return await client.call(
        RequestCode.UPDATE_CONSUMER_OFFSET,
        {"consumerGroup": group, "topic": topic, "queueId": queue_id, "commitOffset": offset},
    )


async def stored_offset(client, group, topic, queue_id, **more):
    ext = {"consumerGroup": group, "topic": topic, "queueId": queue_id, **more}
    answer = await client.call(RequestCode.QUERY_CONSUMER_OFFSET, ext)
    return int(answer.ext["offset"]) if answer.code == 0 else answer.code


def test_consumer_offsets_are_stored_and_may_go_back(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("t")
            # The beginning of a young queue counts as "still in memory" does at RocketMQ.
            assert await stored_offset(client, "g", "t", 0) == 0
            assert await stored_offset(client, "g", "t", 0, setZeroIfNotFound="false") == 22
            assert (await commit(client, "g", "t", 0, 7)).code == 0
            assert await stored_offset(client, "g", "t", 0) == 7
            assert (await commit(client, "g", "t", 0, 3)).code == 0
            assert await stored_offset(client, "g", "t", 0) == 3

    asyncio.run(run())


def test_many_commits_become_few_entries(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")
            await commit(client, "g", "t", 0, 1)
            before = broker.raft.applied_index
            answers = await asyncio.gather(
                *(commit(client, "g", "t", n % 4, n) for n in range(200))
            )
            assert {answer.code for answer in answers} == {0}
            assert broker.raft.applied_index - before <= 5
            assert [await stored_offset(client, "g", "t", q) for q in range(4)] == [
                196,
                197,
                198,
                199,
            ]

    asyncio.run(run())


def test_oneway_and_pull_commits_arrive(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("t")
            await commit(client, "g", "t", 1, 0)
            ext = {"consumerGroup": "g", "topic": "t", "queueId": 0, "commitOffset": 5}
            await client.remoting.send_oneway(
                client.address, RequestCode.UPDATE_CONSUMER_OFFSET, ext
            )

            async def arrived():
                return await stored_offset(client, "g", "t", 0) == 5

            await eventually(arrived, "the one-way commit")
            await client.pull("t", queue_id=1, sys_flag=5, commit_offset=9)

            async def carried():
                return await stored_offset(client, "g", "t", 1) == 9

            await eventually(carried, "the commit in the pull")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("g", "absent", 0, 1), ResponseCode.TOPIC_NOT_EXIST),
        (("g", "t", 4, 1), ResponseCode.INVALID_PARAMETER),
        (("g", "t", -1, 1), ResponseCode.INVALID_PARAMETER),
        (("g", "t", 0, -1), ResponseCode.INVALID_PARAMETER),
        (("bad group", "t", 0, 1), ResponseCode.INVALID_PARAMETER),
    ],
)
def test_bad_commits_are_refused(tmp_path, arguments, code):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("t")
            answer = await commit(client, *arguments)
            assert (answer.code, answer.ext["dlOutcome"]) == (code, "refused")

    asyncio.run(run())


def test_groups_are_not_created_when_that_is_switched_off(tmp_path):
    async def run():
        async with single_broker(tmp_path, auto_create_groups=False) as (broker, client):
            await client.create_topic("t")
            assert (await commit(client, "g", "t", 0, 1)).code == 26
            assert (await client.pull("t")).code == 26
            await client.heartbeat("c1", "g", {"t": "*"})
            assert broker.store.group("g") is None
            body = encode_group_config(GroupConfig(name="g"))
            code = RequestCode.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP
            assert (await client.call(code, None, body)).code == 0
            assert (await commit(client, "g", "t", 0, 1)).code == 0

    asyncio.run(run())


def test_queue_offsets_by_end_and_by_time(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")

            async def ask(code, name="offset", **more):
                answer = await client.call(code, {"topic": "t", "queueId": 0, **more})
                assert answer.code == 0, answer.remark
                return int(answer.ext[name])

            earliest = RequestCode.GET_EARLIEST_MESSAGE_STORE_TIME
            assert await ask(earliest, "timestamp") == -1
            for number in range(5):
                await client.send("t", b"%d" % number)
                before = broker._clock.wall_ms()
                await eventually(
                    lambda before=before: broker._clock.wall_ms() > before, "the clock moves"
                )
            pulled = list(iter_stored((await client.pull("t")).body))
            times = [message.store_timestamp_ms for message in pulled]
            assert len(set(times)) == 5
            assert await ask(RequestCode.GET_MAX_OFFSET) == 5
            assert await ask(RequestCode.GET_MIN_OFFSET) == 0
            assert await ask(earliest, "timestamp") == times[0]
            search = RequestCode.SEARCH_OFFSET_BY_TIMESTAMP
            assert [await ask(search, timestamp=t) for t in times] == [0, 1, 2, 3, 4]
            assert await ask(search, timestamp=times[-1] + 1) == 5
            assert await ask(search, timestamp=0) == 0
            assert await ask(search, timestamp=times[2], boundaryType="UPPER") == 2
            assert await ask(search, timestamp=0, boundaryType="UPPER") == 0
            missing = await client.call(search, {"topic": "t", "queueId": 99, "timestamp": 0})
            assert missing.code == 29

    asyncio.run(run())


def test_messages_are_found_by_offset_and_key(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            sent = await client.send("t", b"1", properties={"KEYS": "a b", "UNIQ_KEY": "K1"})
            await client.send("t", b"2", properties={"KEYS": "b", "UNIQ_KEY": "K2"})
            _, _, offset = parse_offset_message_id(sent.ext["msgId"])
            view = await client.call(RequestCode.VIEW_MESSAGE_BY_ID, {"offset": offset})
            assert [m.body for m in iter_stored(view.body)] == [b"1"]
            for wrong in (offset + 1, offset - 1, 0, 2**40):
                answer = await client.call(RequestCode.VIEW_MESSAGE_BY_ID, {"offset": wrong})
                assert answer.code == ResponseCode.SYSTEM_ERROR
                assert answer.ext["dlOutcome"] == "refused"

            async def query(key, **more):
                ext = {
                    "topic": "t",
                    "key": key,
                    "maxNum": 32,
                    "beginTimestamp": 0,
                    "endTimestamp": 2**63 - 1,
                    **more,
                }
                answer = await client.call(RequestCode.QUERY_MESSAGE, ext)
                if answer.code:
                    return answer.code
                assert int(answer.ext["indexLastUpdatePhyoffset"]) > 0
                return [message.body for message in iter_stored(answer.body)]

            assert await query("a") == [b"1"]
            assert await query("b") == [b"2", b"1"]
            assert await query("b", maxNum=1) == [b"2"]
            assert await query("K2", _UNIQUE_KEY_QUERY="true") == [b"2"]
            assert await query("K2") == 22
            assert await query("a", _UNIQUE_KEY_QUERY="true") == 22
            assert await query("b", endTimestamp=5) == 22
            assert await query("") == 29

    asyncio.run(run())


def test_a_body_that_looks_like_a_message_is_not_one(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            first = await client.send("t", b"original")
            stored = (await client.pull("t")).body
            second = await client.send("t", stored)
            _, _, offset = parse_offset_message_id(second.ext["msgId"])
            inside = offset + 88
            answer = await client.call(RequestCode.VIEW_MESSAGE_BY_ID, {"offset": inside})
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert first.code == 0

    asyncio.run(run())


def test_topics_are_created_changed_described_and_deleted(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("t", queues=3)
            await client.create_topic("t", queues=6)
            config = await client.call(RequestCode.GET_TOPIC_CONFIG, {"topic": "t", "lo": "true"})
            assert decode_topic_config(config.body).write_queue_count == 6
            await client.send("t", b"x", queue_id=5)
            stats = await client.call(RequestCode.GET_TOPIC_STATS_INFO, {"topic": "t"})
            offsets = decode_topic_stats(stats.body).offsets
            assert len(offsets) == 6
            assert offsets[MessageQueue("t", "broker-a", 5)].offset_max == 1
            assert offsets[MessageQueue("t", "broker-a", 5)].last_update_timestamp_ms > 0
            table = await client.call(RequestCode.GET_ALL_TOPIC_CONFIG)
            topics = decode_topic_table(table.body).topics
            assert {"t", "TBW102", "broker-a", "DefaultCluster", "SELF_TEST_TOPIC"} <= set(topics)
            assert topics["TBW102"].permission == 7
            system = await client.call(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER)
            assert "TBW102" in decode_topic_list(system.body).topics
            for _ in range(2):
                answer = await client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "t"})
                assert answer.code == 0
            gone = await client.call(RequestCode.GET_TOPIC_CONFIG, {"topic": "t"})
            assert gone.code == ResponseCode.TOPIC_NOT_EXIST
            assert (await client.pull("t")).code == ResponseCode.TOPIC_NOT_EXIST
            # A topic of the same name begins anew.
            sent = await client.send("t", b"new")
            assert sent.ext["queueOffset"] == "0"

    asyncio.run(run())


@pytest.mark.parametrize(
    "fields",
    [
        {"topic": "bad name"},
        {"topic": "TBW102"},
        {"topic": "broker-a"},
        {"readQueueNums": "0"},
        {"writeQueueNums": "1025"},
        {"perm": "8"},
        {"topicFilterType": "NEITHER"},
        {"attributes": "message.type=FIFO"},
        {"attributes": "+=x"},
    ],
)
def test_bad_topics_are_refused(tmp_path, fields):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            ext = {
                "topic": "t",
                "readQueueNums": "4",
                "writeQueueNums": "4",
                "perm": "6",
                "topicFilterType": "SINGLE_TAG",
                **fields,
            }
            answer = await client.call(RequestCode.UPDATE_AND_CREATE_TOPIC, ext)
            assert (answer.code, answer.ext["dlOutcome"]) == (29, "refused")

    asyncio.run(run())


def test_system_topics_are_not_deleted(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            answer = await client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "TBW102"})
            assert answer.code == 29
            assert broker.store.topic("TBW102") is not None

    asyncio.run(run())


def test_groups_are_created_described_and_deleted(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("t", queues=2)
            put = RequestCode.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP
            body = encode_group_config(GroupConfig(name="g", retry_max=3))
            assert (await client.call(put, None, body)).code == 0
            one = await client.call(RequestCode.GET_SUBSCRIPTION_GROUP_CONFIG, {"group": "g"})
            assert decode_group_config(one.body).retry_max == 3
            table = await client.call(RequestCode.GET_ALL_SUBSCRIPTION_GROUP_CONFIG)
            assert "g" in decode_group_table(table.body).groups
            await client.send("t", b"x")
            await client.send("t", b"y")
            await commit(client, "g", "t", 0, 1)
            stats = await client.call(RequestCode.GET_CONSUME_STATS, {"consumerGroup": "g"})
            offsets = decode_consume_stats(stats.body).offsets
            assert len(offsets) == 2
            queue = offsets[MessageQueue("t", "broker-a", 0)]
            assert (queue.broker_offset, queue.consumer_offset) == (2, 1)
            assert queue.last_timestamp_ms > 0
            who = await client.call(RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, {"topic": "t"})
            assert decode_group_list(who.body) == ["g"]
            ext = {"groupName": "g", "cleanOffset": "true"}
            delete = RequestCode.DELETE_SUBSCRIPTION_GROUP
            assert (await client.call(delete, ext)).code == 0
            gone = await client.call(RequestCode.GET_SUBSCRIPTION_GROUP_CONFIG, {"group": "g"})
            assert gone.code == 26
            assert await stored_offset(client, "g", "t", 0, setZeroIfNotFound="false") == 22
            bad = await client.call(put, None, b'{"groupName":"bad group"}')
            assert bad.code == 29
            torn = await client.call(put, None, b"{")
            assert torn.code != 0

    asyncio.run(run())


def test_heartbeats_register_members_and_tell_the_others(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")
            answer = await client.heartbeat("c1", "g", {"t": "a"}, producers=["p"])
            assert answer.ext["IS_SUPPORT_HEART_BEAT_V2"] == "true"
            assert answer.version >= 401
            await eventually(lambda: broker.store.group("g"), "the group is created")
            await eventually(lambda: broker.store.topic("%RETRY%g"), "its retry topic is created")
            changed = (RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": "g"})
            await eventually(lambda: changed in client.pushed, "c1 hears of itself")
            client.pushed.clear()

            other = TestClient(client.address)
            await other.heartbeat("c2", "g", {"t": "a"})
            await eventually(lambda: changed in client.pushed, "c1 hears of c2")
            listed = await client.call(
                RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": "g"}
            )
            assert decode_consumer_ids(listed.body) == ["c1", "c2"]
            connections = await client.call(
                RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": "g"}
            )
            decoded = decode_connection_list(connections.body)
            assert [c.client_id for c in decoded.connections] == ["c1", "c2"]
            assert decoded.subscriptions["t"].expression == "a"
            producers = await client.call(
                RequestCode.GET_PRODUCER_CONNECTION_LIST, {"producerGroup": "p"}
            )
            assert [c.client_id for c in decode_connection_list(producers.body).connections] == [
                "c1"
            ]
            client.pushed.clear()
            await other.close()
            await eventually(lambda: changed in client.pushed, "c1 hears that c2 has gone")
            ext = {"clientID": "c1", "consumerGroup": "g", "producerGroup": "p"}
            assert (await client.call(RequestCode.UNREGISTER_CLIENT, ext)).code == 0
            for code, field, expected in (
                (RequestCode.GET_CONSUMER_LIST_BY_GROUP, "consumerGroup", 1),
                (RequestCode.GET_CONSUMER_CONNECTION_LIST, "consumerGroup", 206),
                (RequestCode.GET_PRODUCER_CONNECTION_LIST, "producerGroup", 1),
            ):
                assert (await client.call(code, {field: "g"})).code == expected

    asyncio.run(run())


def test_pulls_use_the_subscription_of_the_heartbeat(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.send("t", b"1", properties={"TAGS": "a"})
            await client.send("t", b"2", properties={"TAGS": "b"})
            unknown = await client.pull("t", sys_flag=0)
            assert unknown.code == ResponseCode.SUBSCRIPTION_NOT_EXIST
            await client.heartbeat("c1", "g", {"t": "b"}, version=5)
            pulled = await client.pull("t", sys_flag=0, sub_version=5)
            assert [m.body for m in iter_stored(pulled.body)] == [b"2"]
            newer = await client.pull("t", sys_flag=0, sub_version=6)
            assert newer.code == ResponseCode.SUBSCRIPTION_NOT_LATEST
            other = await client.pull("SELF_TEST_TOPIC", sys_flag=0)
            assert other.code == ResponseCode.SUBSCRIPTION_NOT_EXIST
            # Java 5.x is ahead of its own heartbeat for up to 30 s, and looks at tags itself.
            header = PullMessageHeader(
                consumer_group="g",
                topic="t",
                queue_id=0,
                queue_offset=0,
                message_count_max=32,
                sub_version=6,
            )
            code = RequestCode.PULL_MESSAGE
            java = await call_as(client.address, code, header, language="JAVA")
            assert [m.body for m in iter_stored(java.body)] == [b"1", b"2"]
            go = await call_as(client.address, code, header, language="GO")
            assert go.code == ResponseCode.SUBSCRIPTION_NOT_LATEST
            await client.heartbeat("c1", "g", {"t": "a > 1"}, version=7, expression_type="SQL92")
            header = msgspec.structs.replace(header, sub_version=8)
            java = await call_as(client.address, code, header, language="JAVA")
            assert java.code == ResponseCode.SUBSCRIPTION_NOT_LATEST

    asyncio.run(run())


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"clientID":""}', b'{"clientID":"c","producerDataSet":[{}]}', b"\xff"],
)
def test_bad_heartbeats_are_refused(tmp_path, body):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            answer = await client.call(RequestCode.HEART_BEAT, None, body)
            assert answer.code != 0
            assert answer.ext["dlOutcome"] == "refused"
            assert broker._parts.context.clients.statistics().member_count == 0

    asyncio.run(run())


def test_subscriptions_are_checked_by_language(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            for kind, code in (("TAG", 0), ("XPATH", 1)):
                body = msgspec.json.encode(
                    {"clientId": "c", "group": "g", "subscriptionData": {"expressionType": kind}}
                )
                answer = await client.call(RequestCode.CHECK_CLIENT_CONFIG, None, body)
                assert answer.code == code

    asyncio.run(run())


def test_the_broker_describes_itself(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.send("t", b"x")
            info = await client.call(RequestCode.GET_BROKER_RUNTIME_INFO)
            table = decode_kv_table(info.body)
            assert table["replicaId"] == "broker-a-0"
            assert table["raftRole"] == "leader"
            assert table["raftServing"] == "true"
            assert table["raftLeader"] == "broker-a-0"
            assert int(table["appliedIndex"]) == broker.raft.applied_index
            assert int(table["logBytes"]) > 0
            assert int(table["pid"]) > 0
            assert table["msgPutTotalTodayNow"] == "1"
            config = await client.call(RequestCode.GET_BROKER_CONFIG)
            assert "store.flush=sync\n" in config.body.decode()
            assert "counter" in config.ext["version"]

    asyncio.run(run())
