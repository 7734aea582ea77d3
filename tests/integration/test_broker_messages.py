"""Sending and pulling against one real replica over a real socket."""

import asyncio
import threading

import pytest

from dledger.codes import RequestCode, ResponseCode
from dledger.message import (
    Message,
    encode_batch,
    encode_properties,
    iter_stored,
    parse_offset_message_id,
)
from dledger.remoting.headers import SendMessageHeader
from tests.support.brokers import TestClient, eventually, single_broker


def bodies(answer):
    return [message.body for message in iter_stored(answer.body)]


def test_what_was_sent_is_pulled_as_it_was(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            sent = await client.send(
                "orders",
                b"hello",
                properties={"TAGS": "A", "KEYS": "k1 k2", "UNIQ_KEY": "U" * 32, "own": "x"},
                flag=7,
            )
            assert sent.code == 0, sent.remark
            assert sent.ext["queueOffset"] == "0"
            assert sent.ext["queueId"] == "0"
            assert sent.ext["transactionId"] == "U" * 32
            assert sent.ext["MSG_REGION"] == "DefaultRegion"
            assert sent.ext["TRACE_ON"] == "true"
            host, port, physical_offset = parse_offset_message_id(sent.ext["msgId"])
            assert f"{host}:{port}" == broker.address

            pulled = await client.pull("orders")
            assert pulled.code == 0
            assert pulled.remark == "FOUND"
            assert {
                name: pulled.ext[name]
                for name in ("suggestWhichBrokerId", "nextBeginOffset", "minOffset", "maxOffset")
            } == {
                "suggestWhichBrokerId": "0",
                "nextBeginOffset": "1",
                "minOffset": "0",
                "maxOffset": "1",
            }
            (message,) = iter_stored(pulled.body, verify_crc=True)
            assert (message.topic, message.body, message.flag) == ("orders", b"hello", 7)
            assert message.physical_offset == physical_offset
            assert message.queue_offset == 0
            assert message.store_host == broker.address
            assert message.born_host.startswith("127.0.0.1:")
            assert message.store_timestamp_ms > 1_700_000_000_000
            assert message.properties == {
                "TAGS": "A",
                "KEYS": "k1 k2",
                "UNIQ_KEY": "U" * 32,
                "own": "x",
                "CLUSTER": "DefaultCluster",
                "MSG_REGION": "DefaultRegion",
                "TRACE_ON": "true",
            }

    asyncio.run(run())


def test_the_long_header_and_a_missing_unique_key(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            header = SendMessageHeader(
                producer_group="p", topic="t", queue_id=-1, born_timestamp_ms=1, properties=""
            )
            sent = await client.call(RequestCode.SEND_MESSAGE, header, b"x")
            assert sent.code == 0, sent.remark
            queue_id = int(sent.ext["queueId"])
            assert 0 <= queue_id < 4
            (message,) = iter_stored((await client.pull("t", queue_id=queue_id)).body)
            assert len(message.unique_key) == 32
            assert sent.ext["transactionId"] == message.unique_key

    asyncio.run(run())


@pytest.mark.parametrize("code", [RequestCode.SEND_BATCH_MESSAGE, RequestCode.SEND_MESSAGE_V2])
def test_a_batch_becomes_neighbours_in_one_queue(tmp_path, code):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            messages = [
                Message("t", f"m{n}".encode(), tags="even" if n % 2 == 0 else "odd")
                for n in range(10)
            ]
            sent = await client.send("t", encode_batch(messages), code=code, batch=True)
            assert sent.code == 0, sent.remark
            assert sent.ext["queueOffset"] == "0"
            ids = sent.ext["msgId"].split(",")
            assert len(set(ids)) == 10
            pulled = await client.pull("t")
            assert bodies(pulled) == [f"m{n}".encode() for n in range(10)]
            assert pulled.ext["nextBeginOffset"] == "10"
            odd = await client.pull("t", expression=" odd || other ")
            assert bodies(odd) == [b"m1", b"m3", b"m5", b"m7", b"m9"]
            assert odd.ext["nextBeginOffset"] == "10"
            none = await client.pull("t", expression="nothing")
            assert none.code == ResponseCode.PULL_RETRY_IMMEDIATELY
            assert none.ext["nextBeginOffset"] == "10"

    asyncio.run(run())


def test_many_producers_at_once_keep_queue_offsets_dense(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("t", queues=2)
            sends = [client.send("t", b"%d" % n, queue_id=n % 2) for n in range(400)]
            answers = await asyncio.gather(*sends)
            assert {answer.code for answer in answers} == {0}
            for queue_id in (0, 1):
                offsets = [
                    int(a.ext["queueOffset"]) for n, a in enumerate(answers) if n % 2 == queue_id
                ]
                assert offsets == list(range(200))
                pulled = await client.pull("t", queue_id=queue_id, message_count_max=1000)
                assert bodies(pulled) == [b"%d" % n for n in range(queue_id, 400, 2)]

    asyncio.run(run())


def test_concurrent_first_sends_share_one_topic_creation(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            before = broker.raft.applied_index
            sends = [client.send("fresh", b"x", queue_id=n % 4) for n in range(50)]
            answers = await asyncio.gather(*sends)
            assert {answer.code for answer in answers} == {0}
            topic = broker.store.topic("fresh")
            assert (topic.read_queue_count, topic.write_queue_count, topic.permission) == (4, 4, 6)
            # One entry for the topic, and few for fifty messages.
            assert broker.raft.applied_index - before < 25

    asyncio.run(run())


def test_pull_limits_count_and_bytes_but_never_give_nothing(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await asyncio.gather(*(client.send("t", b"%02d" % n + bytes(10_000)) for n in range(5)))
            assert len(bodies(await client.pull("t", message_count_max=2))) == 2
            assert len(bodies(await client.pull("t", bytes_max=25_000))) == 2
            assert len(bodies(await client.pull("t", bytes_max=1))) == 1
            assert len(bodies(await client.pull("t", message_count_max=0))) == 1
            big = bytes(4 * 1024 * 1024)
            assert (await client.send("big", big)).code == 0
            assert bodies(await client.pull("big")) == [big]

    asyncio.run(run())


def test_pull_offsets_outside_the_queue(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("t")
            empty = await client.pull("t", 0)
            assert (empty.code, empty.ext["nextBeginOffset"]) == (ResponseCode.PULL_NOT_FOUND, "0")
            beyond = await client.pull("t", 5)
            assert beyond.code == ResponseCode.PULL_OFFSET_MOVED
            assert beyond.ext["nextBeginOffset"] == "0"
            await client.send("t", b"x")
            at_end = await client.pull("t", 1)
            assert (at_end.code, at_end.remark) == (19, "OFFSET_OVERFLOW_ONE")
            beyond = await client.pull("t", 7, wait_ms=20_000)
            assert (beyond.code, beyond.ext["nextBeginOffset"]) == (21, "1")
            below = await client.pull("t", -1)
            assert (below.code, below.ext["nextBeginOffset"]) == (21, "0")
            for answer in (empty, beyond, at_end, below):
                assert {"suggestWhichBrokerId", "minOffset", "maxOffset"} <= answer.ext.keys()

    asyncio.run(run())


def test_a_waiting_pull_is_answered_by_the_message(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")
            waiting = asyncio.create_task(client.pull("t", 0, wait_ms=30_000))
            parked = broker._parts.context.long_polls
            await eventually(lambda: len(parked) == 1, "the pull is parked")
            await client.send("t", b"now")
            pulled = await asyncio.wait_for(waiting, 5)
            assert bodies(pulled) == [b"now"]
            assert len(parked) == 0

    asyncio.run(run())


def test_a_waiting_pull_sleeps_through_what_its_filter_rejects(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")
            waiting = asyncio.create_task(client.pull("t", 0, expression="b", wait_ms=30_000))
            parked = broker._parts.context.long_polls
            await eventually(lambda: len(parked) == 1, "the pull is parked")
            await client.send("t", b"1", properties={"TAGS": "a"})
            await client.send("t", b"2", properties={"TAGS": "a"})
            assert not waiting.done()
            await client.send("t", b"3", properties={"TAGS": "b"})
            pulled = await asyncio.wait_for(waiting, 5)
            assert bodies(pulled) == [b"3"]
            assert pulled.ext["nextBeginOffset"] == "3"

    asyncio.run(run())


def test_pulls_that_wait_at_one_place_each_get_what_they_asked_for(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")
            wanted = {
                "all": ({}, [b"0", b"1", b"2"]),
                "also all": ({}, [b"0", b"1", b"2"]),
                "one": ({"message_count_max": 1}, [b"0"]),
                "small": ({"bytes_max": 1}, [b"0"]),
                "odd": ({"expression": "odd"}, [b"1"]),
                "odd by SQL": (
                    {"expression": "TAGS = 'odd'", "expression_type": "SQL92"},
                    [b"1"],
                ),
                "all again": ({}, [b"0", b"1", b"2"]),
            }
            waiting = [
                asyncio.create_task(client.pull("t", group=f"g{number}", wait_ms=10_000, **more))
                for number, (more, _) in enumerate(wanted.values())
            ]
            parked = broker._parts.context.long_polls
            await eventually(lambda: len(parked) == len(wanted), "the pulls are parked")
            batch = encode_batch(
                [Message("t", b"%d" % n, tags="odd" if n % 2 else "even") for n in range(3)]
            )
            sent = await client.send("t", batch, code=RequestCode.SEND_BATCH_MESSAGE, batch=True)
            assert sent.code == 0, sent.remark
            answers = await asyncio.gather(*waiting)
            found = dict(zip(wanted, map(bodies, answers), strict=True))
            assert found == {name: expected for name, (_, expected) in wanted.items()}

    asyncio.run(run())


def test_a_waiting_pull_times_out_and_says_how_far_it_looked(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")
            nothing = await client.pull("t", 0, wait_ms=50)
            assert (nothing.code, nothing.ext["nextBeginOffset"]) == (19, "0")
            waiting = asyncio.create_task(client.pull("t", 0, expression="b", wait_ms=400))
            parked = broker._parts.context.long_polls
            await eventually(lambda: len(parked) == 1, "the pull is parked")
            await client.send("t", b"1", properties={"TAGS": "a"})
            pulled = await asyncio.wait_for(waiting, 5)
            assert (pulled.code, pulled.ext["nextBeginOffset"]) == (20, "1")

    asyncio.run(run())


def test_waiting_pulls_of_lost_connections_and_deleted_topics_go(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")
            other = TestClient(client.address)
            parked = broker._parts.context.long_polls
            waiting = asyncio.create_task(client.pull("t", 0, wait_ms=30_000))
            doomed = asyncio.create_task(other.pull("t", 0, wait_ms=30_000))
            await eventually(lambda: len(parked) == 2, "both pulls are parked")
            await other.close()
            await eventually(lambda: len(parked) == 1, "the lost connection's pull is gone")
            await asyncio.gather(doomed, return_exceptions=True)
            answer = await client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "t"})
            assert answer.code == 0
            assert (await asyncio.wait_for(waiting, 5)).code == ResponseCode.TOPIC_NOT_EXIST
            assert len(parked) == 0

    asyncio.run(run())


def test_stopping_answers_waiting_pulls(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")
            waiting = asyncio.create_task(client.pull("t", 0, wait_ms=30_000))
            parked = broker._parts.context.long_polls
            await eventually(lambda: len(parked) == 1, "the pull is parked")
            await broker.stop()
            assert (await waiting).code == ResponseCode.PULL_NOT_FOUND

    asyncio.run(run())


REJECTED = [
    pytest.param({"topic": "bad name!"}, ResponseCode.INVALID_PARAMETER, id="topic characters"),
    pytest.param({"topic": "x" * 128}, ResponseCode.INVALID_PARAMETER, id="topic length"),
    pytest.param({"topic": ""}, ResponseCode.INVALID_PARAMETER, id="topic empty"),
    pytest.param(
        {"topic": "SCHEDULE_TOPIC_XXXX"}, ResponseCode.NO_PERMISSION, id="forbidden topic"
    ),
    pytest.param({"topic": "SELF_TEST_TOPIC"}, ResponseCode.NO_PERMISSION, id="self test topic"),
    pytest.param(
        {"topic": "new", "default_topic": "t"}, ResponseCode.TOPIC_NOT_EXIST, id="no template"
    ),
    pytest.param(
        {"topic": "%RETRY%nobody"}, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, id="retry topic"
    ),
    pytest.param({"queue_id": 4}, ResponseCode.INVALID_PARAMETER, id="queue id"),
    pytest.param(
        {"body": bytes(4 * 1024 * 1024 + 1)}, ResponseCode.MESSAGE_ILLEGAL, id="body length"
    ),
    pytest.param(
        {"properties": {"a": "b" * 32_700}}, ResponseCode.MESSAGE_ILLEGAL, id="properties length"
    ),
    pytest.param({"properties": {"DELAY": "x"}}, ResponseCode.MESSAGE_ILLEGAL, id="delay"),
    pytest.param(
        {"sys_flag": 4, "batch": True}, ResponseCode.NO_PERMISSION, id="batch in a transaction"
    ),
    pytest.param(
        {"sys_flag": 4, "properties": {"CHECK_IMMUNITY_TIME_IN_SECONDS": "soon"}},
        ResponseCode.MESSAGE_ILLEGAL,
        id="transaction's immunity",
    ),
    pytest.param({"batch": True, "body": b"torn"}, ResponseCode.MESSAGE_ILLEGAL, id="torn batch"),
    pytest.param({"batch": True, "body": b""}, ResponseCode.MESSAGE_ILLEGAL, id="empty batch"),
    pytest.param({"ext": {"e": "many"}}, ResponseCode.INVALID_PARAMETER, id="not a number"),
    pytest.param({"ext": {"e": str(2**40)}}, ResponseCode.INVALID_PARAMETER, id="wide number"),
]


@pytest.mark.parametrize(("fields", "code"), REJECTED)
def test_bad_sends_are_refused_and_store_nothing(tmp_path, fields, code):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t")
            applied = broker.raft.applied_index
            arguments = {"topic": "t", "body": b"x", **fields}
            answer = await client.send(**arguments)
            assert answer.code == code, answer.remark
            assert answer.ext["dlOutcome"] == "refused"
            assert answer.remark
            assert broker.raft.applied_index == applied
            assert (await client.send("t", b"fine")).ext["queueOffset"] == "0"

    asyncio.run(run())


def test_permissions_hold(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            await client.create_topic("readonly", permission=4)
            await client.create_topic("writeonly", permission=2)
            assert (await client.send("readonly", b"x")).code == ResponseCode.NO_PERMISSION
            assert (await client.send("writeonly", b"x")).code == 0
            assert (await client.pull("writeonly")).code == ResponseCode.NO_PERMISSION
            assert (await client.pull("readonly", queue_id=4)).code == 29
            assert (await client.pull("absent")).code == ResponseCode.TOPIC_NOT_EXIST
            assert (await client.pull("readonly", group="bad group")).code == 29
            unsupported = await client.pull("readonly", expression_type="XPATH", expression="a=1")
            assert unsupported.code == ResponseCode.SYSTEM_ERROR
            assert unsupported.ext["dlOutcome"] == "refused"
            bad = await client.pull("readonly", expression=" || ")
            assert bad.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED

    asyncio.run(run())


def test_without_auto_creation_unknown_topics_are_refused(tmp_path):
    async def run():
        changes = {"auto_create_topics": False, "default_queue_count": 8}
        async with single_broker_without_template(tmp_path, **changes) as (_broker, client):
            assert (await client.send("fresh", b"x")).code == ResponseCode.TOPIC_NOT_EXIST

    asyncio.run(run())


def single_broker_without_template(directory, **changes):
    return single_broker(directory, ready_topic="SELF_TEST_TOPIC", **changes)


def test_overload_is_answered_with_the_limit(tmp_path):
    async def run():
        limits = {"pending_bytes_max": 7 * 1024 * 1024}
        async with single_broker(tmp_path, limits=limits) as (broker, client):
            await client.create_topic("t")
            # Nothing becomes durable before the limit is reached, however slowly sends arrive.
            disk_goes_on, sync = threading.Event(), broker._fs.sync

            def slow_sync(file):
                disk_goes_on.wait(30)
                sync(file)

            broker._fs.sync = slow_sync
            sends = [asyncio.ensure_future(client.send("t", bytes(1024 * 1024))) for _ in range(24)]
            await asyncio.wait(sends, return_when=asyncio.FIRST_COMPLETED)
            disk_goes_on.set()
            answers = await asyncio.gather(*sends)
            codes = {answer.code for answer in answers}
            assert codes == {0, ResponseCode.SYSTEM_BUSY}
            busy = next(answer for answer in answers if answer.code == ResponseCode.SYSTEM_BUSY)
            assert "pending_bytes_max" in busy.remark
            assert busy.ext["dlOutcome"] == "refused"
            stored = sum(answer.code == 0 for answer in answers)
            topic = broker.store.topic("t")
            assert broker.store.queue_bounds(topic.topic_id, 0) == (0, stored)

    asyncio.run(run())


def test_a_full_disk_refuses_writes_and_recovers(tmp_path):
    async def run():
        timing = {"disk_check_s": 0.02}
        async with single_broker(tmp_path, timing=timing) as (broker, client):
            await client.send("t", b"before")
            gate = broker._parts.context.gate
            broker._fs.free_bytes = lambda _path: 0
            await eventually(lambda: gate.is_disk_full, "the full disk is noticed")
            refused = await client.send("t", b"x")
            assert refused.code == ResponseCode.SERVICE_NOT_AVAILABLE
            assert refused.ext["dlOutcome"] == "refused"
            assert "disk full" in refused.remark
            assert bodies(await client.pull("t")) == [b"before"]
            del broker._fs.free_bytes
            await eventually(lambda: not gate.is_disk_full, "space is noticed")
            assert (await client.send("t", b"after")).code == 0

    asyncio.run(run())


def test_unknown_codes_are_named(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            answer = await client.call(4711)
            assert answer.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
            assert answer.remark == " request type 4711 not supported"

    asyncio.run(run())


def test_a_restart_keeps_everything(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            for number in range(20):
                await client.send("t", b"%d" % number)
        async with single_broker(tmp_path) as (_broker, client):
            assert bodies(await client.pull("t")) == [b"%d" % n for n in range(20)]
            assert (await client.send("t", b"20")).ext["queueOffset"] == "20"

    asyncio.run(run())


def test_properties_without_a_last_separator_and_with_broker_names(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (_broker, client):
            raw = encode_properties({"POP_CK": "receipt", "CLUSTER": "other", "a": "b"})
            ext = {"i": raw.decode().rstrip("\x02")}
            assert (await client.send("t", b"x", ext=ext)).code == 0
            (message,) = iter_stored((await client.pull("t")).body)
            assert "POP_CK" not in message.properties
            assert message.properties["CLUSTER"] == "DefaultCluster"
            assert message.properties["a"] == "b"

    asyncio.run(run())
