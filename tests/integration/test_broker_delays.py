"""Delayed messages and retries over real sockets: one replica, and three whose leader dies."""

import asyncio
import time
from collections import Counter

from broker.server import Broker
from dledger.codes import (
    EXT_DEDUPLICATED,
    EXT_PRODUCER_ID,
    EXT_SEQUENCE,
    RequestCode,
    ResponseCode,
)
from dledger.message import iter_stored
from dledger.remoting.headers import ConsumerSendBackHeader, RecallMessageHeader
from tests.support.brokers import (
    TestClient,
    broker_group,
    config_for,
    eventually,
    replica_entries,
    serving_leader,
    single_broker,
)

PARKING = "rmq_sys_wheel_timer"


def messages(answer):
    return list(iter_stored(answer.body)) if answer.code == 0 else []


async def pulled(client, topic, **fields):
    """All messages of queue 0."""
    found = []
    while got := messages(await client.pull(topic, len(found), **fields)):
        found += got
    return found


async def wait_for(client, topic, count, timeout_s=10.0):
    async def there():
        found = await pulled(client, topic)
        return found if len(found) >= count else None

    return await eventually(there, f"{count} messages in {topic}", timeout_s)


async def send_back(client, group, message, **fields):
    header = ConsumerSendBackHeader(
        physical_offset=message.physical_offset, group=group, delay_level=0
    )
    for name, value in fields.items():
        setattr(header, name, value)
    return await client.call(RequestCode.CONSUMER_SEND_MESSAGE_BACK, header)


async def recall(client, topic, handle):
    header = RecallMessageHeader(topic=topic, recall_handle=handle)
    return await client.call(RequestCode.RECALL_MESSAGE, header)


async def crash(brokers, broker):
    brokers.pop(broker.config.replica_id)
    broker.raft.crash()
    await broker.stop()


def test_a_delayed_message_comes_when_it_is_due_and_not_before(tmp_path):
    async def run():
        async with single_broker(tmp_path, ready_topic=PARKING) as (_, client):
            await client.create_topic("t")
            await client.heartbeat("c", "g", {"t": "*"})
            due_ms = time.time_ns() // 1_000_000 + 400
            properties = {"TIMER_DELIVER_MS": str(due_ms), "TAGS": "a", "UNIQ_KEY": "U"}
            answer = await client.send("t", b"later", properties=properties)
            assert (answer.code, answer.ext["queueId"]) == (0, "0")
            assert answer.ext["recallHandle"]
            await client.send("t", b"now", properties={"TIMER_DELIVER_MS": "5"})
            assert [m.body for m in await pulled(client, "t")] == [b"now"]
            waiting = await client.pull("t", 1, wait_ms=5000, expression="a")
            (message,) = iter_stored(waiting.body)
            assert message.body == b"later"
            late_ms = message.store_timestamp_ms - due_ms
            assert 0 <= late_ms < 300, late_ms
            assert message.properties["REAL_TOPIC"] == "t"
            assert "TIMER_DELIVER_MS" not in message.properties
            # Found by its key once it is there, and only once.
            ext = {"topic": "t", "key": "U", "_UNIQUE_KEY_QUERY": "true"}
            found = await client.call(RequestCode.QUERY_MESSAGE, ext)
            assert [m.queue_offset for m in iter_stored(found.body)] == [1]

    asyncio.run(run())


def test_levels_wait_in_the_schedule_topic_in_order(tmp_path):
    async def run():
        changes = {"timers": {"delay_levels": "1s 2s"}}
        async with single_broker(tmp_path, ready_topic=PARKING, **changes) as (broker, client):
            sent = time.time_ns() // 1_000_000
            for number in range(20):
                delay = {"DELAY": "1" if number % 2 else "9"}
                assert (await client.send("t", b"%d" % number, properties=delay)).code == 0
            schedule = broker.store.topic("SCHEDULE_TOPIC_XXXX")
            assert [broker.store.queue_bounds(schedule.topic_id, q) for q in (0, 1)] == [
                (0, 10)
            ] * 2
            found = await wait_for(client, "t", 20)
            assert [int(m.body) for m in found] == [*range(1, 20, 2), *range(0, 20, 2)]
            for number, message in enumerate(found):
                assert message.store_timestamp_ms >= sent + (1000 if number < 10 else 2000)
            assert broker.store.timers.count() == 0

    asyncio.run(run())


def test_what_is_recalled_never_comes(tmp_path):
    async def run():
        async with single_broker(tmp_path, ready_topic=PARKING) as (broker, client):
            handles = []
            for number in range(3):
                answer = await client.send(
                    "t", b"%d" % number, properties={"TIMER_DELAY_MS": "500"}
                )
                handles.append((answer.ext["recallHandle"], answer.ext["transactionId"]))
            done = await recall(client, "t", handles[1][0])
            assert (done.code, done.ext["msgId"]) == (0, handles[1][1])
            again = await recall(client, "t", handles[1][0])
            assert (again.code, again.ext["dlOutcome"]) == (ResponseCode.QUERY_NOT_FOUND, "refused")
            assert (await recall(client, "t", "nonsense")).code == ResponseCode.INVALID_PARAMETER
            assert (await recall(client, "other", handles[0][0])).code != 0
            found = await wait_for(client, "t", 2)
            await eventually(lambda: broker.store.timers.count() == 0, "nothing waits")
            assert [m.body for m in await pulled(client, "t")] == [b"0", b"2"]
            assert len(found) == 2
            assert (await recall(client, "t", handles[0][0])).code == ResponseCode.QUERY_NOT_FOUND

    asyncio.run(run())


def test_limits_are_named(tmp_path):
    async def run():
        changes = {"timers": {"pending_max": 1, "delay_max_s": 60, "recall_enable": False}}
        async with single_broker(tmp_path, ready_topic=PARKING, **changes) as (_, client):
            long = await client.send("t", b"x", properties={"TIMER_DELAY_SEC": "61"})
            assert (long.code, "delay_max_s" in long.remark) == (ResponseCode.MESSAGE_ILLEGAL, True)
            one = await client.send("t", b"x", properties={"TIMER_DELAY_SEC": "60"})
            assert one.code == 0
            more = await client.send("t", b"x", properties={"TIMER_DELAY_SEC": "60"})
            assert (more.code, "pending_max" in more.remark) == (ResponseCode.SYSTEM_BUSY, True)
            assert (await recall(client, "t", one.ext["recallHandle"])).code == 16

    asyncio.run(run())


def test_timers_survive_a_restart(tmp_path):
    async def run():
        (entry,) = replica_entries(1)
        config = config_for(tmp_path, entry["id"], [entry])
        for round_number in range(2):
            broker = Broker(config)
            await broker.start()
            client = TestClient(entry["address"])
            await eventually(lambda broker=broker: broker.raft.is_serving, "the broker serves")
            await eventually(lambda broker=broker: broker.store.topic(PARKING), "topics")
            if round_number == 0:
                for delay in ("300", str(40 * 86_400_000)):
                    answer = await client.send("t", b"x", properties={"TIMER_DELAY_MS": delay})
                    assert answer.code == 0
            else:
                (message,) = await wait_for(client, "t", 1)
                assert message.body == b"x"
                assert broker.store.timers.count() == 1
            await client.close()
            await broker.stop()

    asyncio.run(run())


def test_a_message_for_a_deleted_topic_is_dropped(tmp_path):
    async def run():
        async with single_broker(tmp_path, ready_topic=PARKING) as (broker, client):
            assert (await client.send("t", b"x", properties={"TIMER_DELAY_MS": "300"})).code == 0
            answer = await client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "t"})
            assert answer.code == 0
            await eventually(lambda: broker.store.timers.count() == 0, "the timer is gone")
            assert (await client.send("u", b"x", properties={"TIMER_DELAY_MS": "1"})).code == 0
            await wait_for(client, "u", 1)

    asyncio.run(run())


def test_retries_and_the_dead_letter(tmp_path):
    async def run():
        async with single_broker(tmp_path, ready_topic=PARKING) as (broker, client):
            await client.heartbeat("c", "g", {"t": "*"})
            await eventually(lambda: broker.store.topic("%RETRY%g"), "the retry topic")
            await client.send("t", b"x", properties={"UNIQ_KEY": "U", "a": "b"})
            (message,) = await pulled(client, "t")
            first_id = message.offset_message_id
            for times in range(1, 4):
                answer = await send_back(
                    client,
                    "g",
                    message,
                    delay_ms=20 * times,
                    reason=f"no {times}",
                    max_reconsume_times=3,
                )
                assert answer.code == 0, answer.remark
                message = (await wait_for(client, "%RETRY%g", times))[times - 1]
                assert (message.reconsume_times, message.body) == (times, b"x")
                assert message.properties["RETRY_TOPIC"] == "t"
                assert message.properties["ORIGIN_MESSAGE_ID"] == first_id
            assert (await send_back(client, "g", message, max_reconsume_times=3)).code == 0
            (dead,) = await wait_for(client, "%DLQ%g", 1)
            assert (dead.body, dead.reconsume_times) == (b"x", 4)
            assert dead.properties["DLQ_ORIGIN_TOPIC"] == "t"
            assert dead.properties["DLQ_ORIGIN_MESSAGE_ID"] == first_id
            assert dead.properties["DL_RETRY_REASON"] == "no 3"
            assert dead.properties["DL_RETRY_HISTORY"].count(",") == 3
            assert (dead.unique_key, dead.properties["a"]) == ("U", "b")
            assert "DELAY" not in dead.properties

    asyncio.run(run())


def test_send_back_refuses_what_it_cannot_do(tmp_path):
    async def run():
        async with single_broker(tmp_path, ready_topic=PARKING) as (broker, client):
            await client.send("t", b"x")
            (message,) = await pulled(client, "t")
            nobody = await send_back(client, "nobody", message)
            assert nobody.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST
            await client.heartbeat("c", "g", {"t": "*"})
            await eventually(lambda: broker.store.group("g"), "the group")
            for offset in (-1, message.physical_offset + 1, 2**60):
                message.physical_offset, before = offset, message.physical_offset
                lost = await send_back(client, "g", message)
                assert (lost.code, lost.ext["dlOutcome"]) == (1, "refused")
                message.physical_offset = before

    asyncio.run(run())


def test_a_send_beyond_the_maximum_goes_to_the_dead_letters(tmp_path):
    async def run():
        async with single_broker(tmp_path, ready_topic=PARKING) as (broker, client):
            await client.heartbeat("c", "g", {"t": "*"})
            await eventually(lambda: broker.store.topic("%RETRY%g"), "the retry topic")
            for times, body in ((2, b"again"), (3, b"dead")):
                answer = await client.send(
                    "%RETRY%g",
                    body,
                    reconsume_times=times,
                    max_reconsume_times=2,
                    properties={"DELAY": "1", "RETRY_TOPIC": "t"},
                )
                assert answer.code == 0, answer.remark
            assert [m.body for m in await wait_for(client, "%DLQ%g", 1)] == [b"dead"]
            assert [m.body for m in await wait_for(client, "%RETRY%g", 1)] == [b"again"]

    asyncio.run(run())


def test_each_timer_is_delivered_once_when_the_leader_dies(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            await eventually(lambda: leader.store.topic(PARKING), "the parking topics")
            follower = next(b for b in brokers.values() if b is not leader)
            client = TestClient(follower.address)
            await client.create_topic("t", queues=1)
            start = time.time_ns() // 1_000_000 + 300
            due = {}

            async def produce(number):
                # Due all around the moment of the kill.
                body = b"%d" % number
                properties = {"TIMER_DELIVER_MS": str(start + 4 * number), "UNIQ_KEY": f"U{number}"}
                answer = await client.send("t", body, properties=properties)
                if answer.code == 0:
                    due[body] = start + 4 * number

            await asyncio.gather(*(produce(number) for number in range(400)))
            assert len(due) == 400
            # On a busy machine another one may lead by now.
            await eventually(
                lambda: sum(b._parts.timers.delivered_count for b in brokers.values()) > 20,
                "a leader delivers",
            )
            await crash(brokers, await serving_leader(brokers))
            second = await serving_leader(brokers)
            await eventually(lambda: second.store.timers.count() == 0, "all are delivered")
            reader = TestClient(second.address)
            found = await wait_for(reader, "t", 400)
            await reader.close()
            assert Counter(m.body for m in found) == Counter(due.keys())
            assert [m.queue_offset for m in found] == list(range(400))
            for message in found:
                assert message.store_timestamp_ms >= due[message.body]
            await eventually(
                lambda: len({broker.store.digest() for broker in brokers.values()}) == 1,
                "all replicas hold the same state",
            )
            await client.close()

    asyncio.run(run())


def test_a_repeated_send_of_a_delayed_message_is_recognised(tmp_path):
    async def run():
        async with single_broker(tmp_path, ready_topic=PARKING) as (broker, client):
            await client.create_topic("t")

            async def send(queue_id, sequence):
                answer = await client.send(
                    "t",
                    b"x",
                    queue_id=queue_id,
                    properties={"TIMER_DELAY_SEC": "60"},
                    ext={EXT_PRODUCER_ID: "00000000000000aa", EXT_SEQUENCE: str(sequence)},
                )
                assert answer.code == 0, answer.remark
                return answer.ext[EXT_DEDUPLICATED], answer.ext["msgId"]

            # Each queue of a producer has numbers of its own, and all wait in one place.
            first = [await send(queue_id, 5) for queue_id in (0, 1)]
            assert [again for again, _ in first] == ["0", "0"]
            assert [await send(queue_id, 5) for queue_id in (0, 1)] == [("1", i) for _, i in first]
            assert (await send(1, 6))[0] == "0"
            assert broker.store.timers.count() == 3

    asyncio.run(run())
