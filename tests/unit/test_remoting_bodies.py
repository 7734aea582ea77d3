"""Bodies: what we write is standard JSON, what we read is anything that Java servers write."""

from __future__ import annotations

import json
import zlib

import pytest

from dledger.errors import MalformedBodyError
from dledger.model import GroupConfig, MessageQueue, TopicConfig
from dledger.remoting import bodies as b

# --- the tolerant reader ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{0:"a",2:"b"}', {"0": "a", "2": "b"}),
        ('{-1:1,"x":[{3:null}]}', {"-1": 1, "x": [{"3": None}]}),
        ('{{"topic":"T","queueId":1}:7}', {'{"topic":"T","queueId":1}': 7}),
        ('{ {"a":{1:2}} : [ ] , b : {} }', {'{"a":{"1":2}}': [], "b": {}}),
        ('{1:1.5e3,2:-7,3:true,4:false,5:"\\u00e9\\n"}',
         {"1": 1500.0, "2": -7, "3": True, "4": False, "5": "é\n"}),
        ('{[1]:2}', {"[1]": 2}),
        ("[]", []),
        ("5", 5),
    ],
)  # fmt: skip
def test_keys_may_be_bare(text, value):
    assert b.parse_lenient_json(text.encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "{1", "{1:", "{1:2", "{1:2,", "{1:2,}", "{1:2 3}", "{1 2}", "{:1}", "{1:x}",
        "[1,", "[1 2]",
        "{1:2}x", "{'a':1}", '{1:"', '{1:"\\x"}', "{1:+1}", "{1:nan}",
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(text):
    with pytest.raises(MalformedBodyError):
        b.parse_lenient_json(text.encode())


@pytest.mark.parametrize("opening", [b"[", b"{1:", b"{", b"{{1:", b'{"a":['])
def test_deep_nesting_is_refused(opening):
    with pytest.raises(MalformedBodyError):
        b.parse_lenient_json(opening * 100_000)


def test_bytes_that_are_not_utf8_are_refused():
    with pytest.raises(MalformedBodyError):
        b.parse_lenient_json(b'{"a":"\xff"}')


# --- heartbeat ----------------------------------------------------------------------------------

HEARTBEAT = b"""{"clientID":"10.0.0.9@4711#88","heartbeatFingerprint":0,"withoutSub":false,
 "producerDataSet":[{"groupName":"pg"}],
 "consumerDataSet":[{"groupName":"cg","consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING",
   "consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","unitMode":false,
   "subscriptionDataSet":[{"topic":"T","subString":"TagA || TagB","tagsSet":["TagA","TagB"],
     "codeSet":[2598919,2598920],"subVersion":1700000000000,"expressionType":"TAG",
     "classFilterMode":false}]}]}"""


def test_heartbeat():
    heartbeat = b.decode_heartbeat(HEARTBEAT)
    assert heartbeat == b.HeartbeatData(
        client_id="10.0.0.9@4711#88",
        producers=["pg"],
        consumers=[
            b.ConsumerData(
                group="cg",
                subscriptions=[
                    b.SubscriptionData(
                        topic="T",
                        expression="TagA || TagB",
                        tags=["TagA", "TagB"],
                        codes=[2598919, 2598920],
                        version=1700000000000,
                    )
                ],
            )
        ],
    )
    assert json.loads(b.encode_heartbeat(heartbeat)) == json.loads(HEARTBEAT)


def test_heartbeat_of_an_old_client():
    heartbeat = b.decode_heartbeat(
        b'{"clientID":"c","producerDataSet":null,"consumerDataSet":[{"groupName":"g",'
        b'"subscriptionDataSet":[{"topic":"T","subString":"*","tagsSet":null,"codeSet":null,'
        b'"subVersion":"5","expressionType":null}]}]}'
    )
    [consumer] = heartbeat.consumers
    assert heartbeat.producers == []
    assert consumer.subscriptions == [b.SubscriptionData(topic="T", version=5)]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"clientID":5}', b'{"clientID":"c","consumerDataSet":[{}]}']
)
def test_bad_heartbeats(data):
    with pytest.raises(MalformedBodyError) as caught:
        b.decode_heartbeat(data)
    assert caught.value.definite


# --- routes -------------------------------------------------------------------------------------

ROUTE = b.TopicRouteData(
    broker_datas=[
        b.BrokerData(
            cluster="C", broker_name="broker-a", addresses={0: "10.0.0.1:1", 2: "10.0.0.2:1"}
        )
    ],
    queue_datas=[b.QueueData(broker_name="broker-a", topic_flags=1)],
)


def test_route_is_written_for_all_clients():
    assert json.loads(b.encode_topic_route(ROUTE)) == {
        "brokerDatas": [
            {
                "brokerAddrs": {"0": "10.0.0.1:1", "2": "10.0.0.2:1"},
                "brokerName": "broker-a",
                "cluster": "C",
                "enableActingMaster": False,
            }
        ],
        "filterServerTable": {},
        "queueDatas": [
            {
                "brokerName": "broker-a",
                "perm": 6,
                "readQueueNums": 4,
                "writeQueueNums": 4,
                "topicSysFlag": 1,
                "topicSynFlag": 1,
            }
        ],
    }
    assert b.decode_topic_route(b.encode_topic_route(ROUTE)) == ROUTE


def test_order_configuration_of_a_route():
    route = b.TopicRouteData(order_topic_conf="broker-a:4")
    assert b"orderTopicConf" in b.encode_topic_route(route)
    assert b.decode_topic_route(b.encode_topic_route(route)) == route


def test_route_of_an_original_nameserver():
    route = b.decode_topic_route(
        b'{"brokerDatas":[{"brokerAddrs":{0:"10.0.0.1:1",2:"10.0.0.2:1"},"brokerName":"broker-a",'
        b'"cluster":"C","zoneName":null}],"filterServerTable":{},"orderTopicConf":null,'
        b'"queueDatas":[{"brokerName":"broker-a","perm":6,"readQueueNums":4,"writeQueueNums":4,'
        b'"topicSynFlag":1}]}'
    )
    assert route == ROUTE


def test_cluster_info():
    data = (
        b'{"brokerAddrTable":{"broker-a":{"brokerAddrs":{0:"a:1"},"brokerName":"broker-a",'
        b'"cluster":"C"}},"clusterAddrTable":{"C":["broker-a"]}}'
    )
    info = b.decode_cluster_info(data)
    assert info.brokers["broker-a"].addresses == {0: "a:1"}
    assert info.clusters == {"C": ["broker-a"]}
    assert b.decode_cluster_info(b.encode_cluster_info(info)) == info
    assert b'"0":"a:1"' in b.encode_cluster_info(info)


def test_broker_member_group():
    group = b.BrokerData(cluster="C", broker_name="b", addresses={1: "a:1"})
    assert b.decode_broker_member_group(b.encode_broker_member_group(group)) == group
    assert b.decode_broker_member_group(b"{}") is None


# --- tables -------------------------------------------------------------------------------------

REGISTRATION = b"""{"filterServerList":[],"topicConfigSerializeWrapper":{
 "dataVersion":{"counter":1,"stateVersion":0,"timestamp":1700000000000},
 "topicConfigTable":{"T":{"topicName":"T","readQueueNums":4,"writeQueueNums":4,"perm":6,
   "topicFilterType":"SINGLE_TAG","topicSysFlag":0,"order":false,"attributes":{}}},
 "mappingDataVersion":{"counter":0},"topicQueueMappingDetailMap":{},
 "topicQueueMappingInfoMap":{"x":{1:{"y":2}}}}}"""

BODY = b.RegisterBrokerBody(
    topics={"T": TopicConfig(name="T")},
    data_version=b.DataVersion(counter=1, timestamp_ms=1700000000000),
)


def test_registration_of_an_original_broker():
    assert b.decode_register_broker(REGISTRATION) == BODY


def test_registration_without_body():
    assert b.decode_register_broker(b"") == b.RegisterBrokerBody()
    assert b.decode_register_broker(b"{}") == b.RegisterBrokerBody()


def test_registration_with_odd_versions():
    data = REGISTRATION.replace(b'"counter":1', b'"counter":99999999999')
    assert b.decode_register_broker(data).data_version.counter == 99999999999
    data = REGISTRATION.replace(b'"counter":1', b'"counter":null')
    assert b.decode_register_broker(data).data_version.counter == 0


@pytest.mark.parametrize("compressed", [False, True])
def test_registration_round_trips(compressed):
    body = b.RegisterBrokerBody(
        topics={
            "T": TopicConfig(name="T", permission=7, attributes={"+message.type": "FIFO x"}),
            "U": TopicConfig(name="U", read_queue_count=1, write_queue_count=2),
        },
        data_version=b.DataVersion(counter=2, state_version=3, timestamp_ms=4),
        filter_servers=["f:1"],
    )
    data = b.encode_register_broker(body, compressed=compressed)
    assert b.decode_register_broker(data, compressed=compressed) == body


def compressed_registration(line: bytes) -> bytes:
    def sized(piece: bytes) -> bytes:
        return len(piece).to_bytes(4, "big") + piece

    return (
        sized(b'{"counter":1,"timestamp":1700000000000}')
        + (1).to_bytes(4, "big")
        + sized(line)
        + sized(b"[]")
    )


@pytest.mark.parametrize("end", [b"", bytes(4)])
def test_compressed_registration_of_an_original_broker(end):
    data = zlib.compress(compressed_registration(b"T 4 4 6 SINGLE_TAG {}") + end)
    assert b.decode_register_broker(data, compressed=True) == BODY


@pytest.mark.parametrize(
    "line", [b"", b"T 4 4 6", b"T x 4 6 SINGLE_TAG {}", b"T 4 4 6 S {", b"\xff"]
)
def test_bad_topic_lines(line):
    with pytest.raises(MalformedBodyError):
        b.decode_register_broker(zlib.compress(compressed_registration(line)), compressed=True)


def test_torn_compressed_registrations():
    whole = compressed_registration(b"T 4 4 6 SINGLE_TAG {}")
    for cut in range(len(whole)):
        with pytest.raises(MalformedBodyError):
            b.decode_register_broker(zlib.compress(whole[:cut]), compressed=True)
    with pytest.raises(MalformedBodyError):
        b.decode_register_broker(zlib.compress(whole)[:-3], compressed=True)
    with pytest.raises(MalformedBodyError):
        b.decode_register_broker(b"garbage", compressed=True)
    with pytest.raises(MalformedBodyError):
        b.decode_register_broker(zlib.compress(b"\xff" * 40), compressed=True)


def test_a_registration_may_not_inflate_without_limit():
    with pytest.raises(MalformedBodyError, match="inflates"):
        b.decode_register_broker(zlib.compress(bytes(40_000_000)), compressed=True)


def test_topic_and_group_tables():
    topics = b.TopicTable(topics={"T": TopicConfig(name="T", order=True)})
    assert b.decode_topic_table(b.encode_topic_table(topics)) == topics
    topic = TopicConfig(name="T", attributes={"a": "b"})
    assert b.decode_topic_config(b.encode_topic_config(topic)) == topic
    group = GroupConfig(name="g", retry_max=3, consume_enable=False)
    assert b.decode_group_config(b.encode_group_config(group)) == group
    groups = b.GroupTable(groups={"g": group})
    assert b.decode_group_table(b.encode_group_table(groups)) == groups


def test_group_of_an_original_tool():
    group = b.decode_group_config(
        b'{"groupName":"g","consumeEnable":true,"retryMaxTimes":5,"brokerId":0,'
        b'"groupRetryPolicy":{"type":"CUSTOMIZED"},"subscriptionDataSet":null,"attributes":null}'
    )
    assert group == GroupConfig(name="g", retry_max=5)


def test_data_version():
    version = b.DataVersion(counter=1, state_version=2, timestamp_ms=3)
    assert b.decode_data_version(b.encode_data_version(version)) == version


# --- lists, connections, locks, stats -----------------------------------------------------------


def test_lists():
    assert b.encode_consumer_ids(["a"]) == b'{"consumerIdList":["a"]}'
    assert b.decode_consumer_ids(b'{"consumerIdList":["a"]}') == ["a"]
    assert b.decode_consumer_ids(b'{"consumerIdList":null}') == []
    assert b.encode_topic_list(["T"]) == b'{"topicList":["T"]}'
    assert b.decode_topic_list(b.encode_topic_list(["T"], "a:1")) == b.TopicList(
        topics=["T"], broker_address="a:1"
    )
    assert b.decode_group_list(b.encode_group_list(["g"])) == ["g"]
    assert b.decode_kv_table(b.encode_kv_table({"a": "b"})) == {"a": "b"}


def test_connection_lists():
    producers = b.ConnectionList(
        connections=[
            b.ConnectionInfo(client_id="c", client_address="a:1", language="JAVA", version=477)
        ]
    )
    assert json.loads(b.encode_connection_list(producers)) == {
        "connectionSet": [
            {"clientId": "c", "clientAddr": "a:1", "language": "JAVA", "version": 477}
        ],
        "subscriptionTable": {},
    }
    consumers = b.ConnectionList(
        consume_type="CONSUME_PASSIVELY",
        message_model="CLUSTERING",
        consume_from="CONSUME_FROM_LAST_OFFSET",
        subscriptions={"T": b.SubscriptionData(topic="T")},
    )
    assert b.decode_connection_list(b.encode_connection_list(consumers)) == consumers


def test_locks_echo_queues():
    queue = MessageQueue("T", "broker-a", 1)
    body = b.LockBatchBody(consumer_group="g", client_id="c", queues=[queue])
    assert json.loads(b.encode_lock_batch(body)) == {
        "consumerGroup": "g",
        "clientId": "c",
        "mqSet": [{"topic": "T", "brokerName": "broker-a", "queueId": 1}],
        "onlyThisBroker": False,
    }
    assert b.decode_lock_batch(b.encode_lock_batch(body)) == body
    assert b.decode_locked_queues(b.encode_locked_queues([queue])) == [queue]


def test_stats_have_queues_as_keys():
    queue = MessageQueue("T", "broker-a", 1)
    stats = b.ConsumeStats(offsets={queue: b.OffsetWrapper(broker_offset=5, consumer_offset=3)})
    data = b.encode_consume_stats(stats)
    [key] = json.loads(data)["offsetTable"]
    assert json.loads(key) == {"topic": "T", "brokerName": "broker-a", "queueId": 1}
    assert b.decode_consume_stats(data) == stats
    topic_stats = b.TopicStats(offsets={queue: b.TopicOffset(offset_min=1, offset_max=2)})
    assert b.decode_topic_stats(b.encode_topic_stats(topic_stats)) == topic_stats


def test_stats_of_an_original_broker():
    stats = b.decode_topic_stats(
        b'{"offsetTable":{{"brokerName":"broker-a","queueId":1,"topic":"T"}:{"lastUpdateTimestamp":9,'
        b'"maxOffset":2,"minOffset":1}},"topicPutTps":0.0}'
    )
    assert stats.offsets == {
        MessageQueue("T", "broker-a", 1): b.TopicOffset(
            offset_min=1, offset_max=2, last_update_timestamp_ms=9
        )
    }


@pytest.mark.parametrize("key", ["x", "{}", '{"topic":"T"}', "5"])
def test_bad_queue_keys(key):
    with pytest.raises(MalformedBodyError):
        b.decode_consume_stats(json.dumps({"offsetTable": {key: {}}}).encode())
