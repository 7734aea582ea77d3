"""Popping over sockets: one broker, raw requests."""

import asyncio
import base64
import json
import time

import pytest

from broker import pop_choice
from dledger.codes import RequestCode
from dledger.message import iter_stored
from dledger.remoting.bodies.popping import BatchAckEntry, encode_batch_ack
from dledger.remoting.pop_headers import PeekMessageHeader, PollingInfoHeader
from tests.support.brokers import (
    TestClient,
    broker_group,
    eventually,
    serving_leader,
    single_broker,
)
from tests.support.popping import Popper


def bodies(found):
    return [message.body.decode() for message, _ in found]


def with_broker(tmp_path, scenario, *, queues=1, **changes):
    async def run():
        async with single_broker(tmp_path, **changes) as (broker, client):
            await client.create_topic("t", queues=queues)
            await scenario(broker, client, Popper(client, "t"))

    asyncio.run(run())


async def send(client, *texts, topic="t", queue_id=0, tag=None):
    for text in texts:
        properties = {"TAGS": tag} if tag else None
        answer = await client.send(topic, text.encode(), queue_id=queue_id, properties=properties)
        assert answer.code == 0, answer.remark


def test_what_is_acknowledged_never_comes_again_and_the_rest_does(tmp_path):
    async def scenario(broker, client, popper):
        await send(client, "a", "b", "c")
        found = await popper.pop(invisible_ms=200)
        assert bodies(found) == ["a", "b", "c"]
        assert await popper.pop() == []
        assert await popper.ack(found[1][1]) == 0
        again = await popper.pop(poll_ms=5000)
        assert bodies(again) == ["a", "c"]
        assert [message.reconsume_times for message, _ in again] == [1, 1]
        assert await popper.ack(found[0][1]) == 208, "a stale handle is refused"
        assert await popper.ack(found[1][1]) == 0, "a repeated one is not"
        for _, handle in again:
            assert await popper.ack(handle) == 0
        assert broker.store.consumer_offset("g", "t", 0) == 3

    with_broker(tmp_path, scenario)


def test_a_waiting_pop_gets_the_message_when_it_comes(tmp_path):
    async def scenario(broker, client, popper):
        waiting = asyncio.create_task(popper.pop(poll_ms=20_000))
        await eventually(lambda: waiting_pops(client), "the pop waits")
        started = time.monotonic()
        await send(client, "x", queue_id=1)
        assert bodies(await waiting) == ["x"]
        assert time.monotonic() - started < 5
        assert await popper.pop(poll_ms=200) == []

    async def waiting_pops(client):
        header = PollingInfoHeader(consumer_group="g", topic="t", queue_id=-1)
        answer = await client.call(RequestCode.POLLING_INFO, header)
        return answer.ext["pollingNum"] == "1"

    with_broker(tmp_path, scenario, queues=2)


def test_many_waiting_consumers_share_what_comes(tmp_path):
    async def scenario(broker, client, popper):
        tasks = [asyncio.create_task(popper.pop(poll_ms=20_000, count=1)) for _ in range(8)]
        await asyncio.sleep(0)
        await send(client, *(str(n) for n in range(8)))
        found = [body for task in tasks for body in bodies(await task)]
        assert sorted(found) == [str(n) for n in range(8)]

    with_broker(tmp_path, scenario, queues=2)


def test_queues_are_popped_together_and_groups_apart(tmp_path):
    async def scenario(broker, client, popper):
        for queue_id in range(4):
            await send(client, f"{queue_id}", queue_id=queue_id)
        answer = await popper.ask()
        assert sorted(bodies(popper.read(answer))) == ["0", "1", "2", "3"]
        assert answer.ext["msgOffsetInfo"].count(";") == 3
        assert answer.ext["reviveQid"] == "0"
        other = Popper(client, "t", group="h")
        assert len(await other.pop(count=3)) == 3
        assert len(await other.pop(queue_id=0)) <= 1

    with_broker(tmp_path, scenario, queues=4)


def test_filters(tmp_path):
    async def scenario(broker, client, popper):
        for number in range(6):
            await send(client, f"{number}", tag="even" if number % 2 == 0 else "odd")
        found = await popper.pop(expression="odd", count=2)
        assert bodies(found) == ["1", "3"]
        found += await popper.pop(expression="odd")
        assert bodies(found) == ["1", "3", "5"]
        for _, handle in found:
            assert await popper.ack(handle) == 0
        sql = Popper(client, "t", group="s")
        found = await sql.pop(expression="TAGS = 'even'", expression_type="SQL92")
        assert bodies(found) == ["0", "2", "4"]
        answer = await sql.ask(expression="TAGS = = 1", expression_type="SQL92")
        assert answer.code == 23

    with_broker(tmp_path, scenario)


def test_changing_the_time(tmp_path):
    async def scenario(broker, client, popper):
        await send(client, "a", "b")
        (_, first), (_, second) = await popper.pop(invisible_ms=300)
        longer = await popper.change(first, 60_000)
        assert await popper.change(second, 0)
        again = await popper.pop()
        assert bodies(again) == ["b"] and again[0][0].reconsume_times == 1
        assert await popper.change(second, 0) is None, "its handle is stale"
        assert await popper.ack(again[0][1]) == 0
        assert await popper.pop(poll_ms=600) == [], "the first is out for a minute"
        assert await popper.ack(longer) == 0
        assert broker.store.consumer_offset("g", "t", 0) == 2

    with_broker(tmp_path, scenario)


def test_batches_of_acknowledgements(tmp_path):
    async def scenario(broker, client, popper):
        await send(client, *"abcdefghij")
        found = await popper.pop(invisible_ms=60_000)
        handle = found[0][1]
        entry = BatchAckEntry(
            group="g",
            topic="t",
            start=handle.start,
            queue_id=0,
            pop_ms=handle.pop_ms,
            bits=base64.b64encode(b"\xff\x01").decode(),
        )
        answer = await client.call(
            RequestCode.BATCH_ACK_MESSAGE, None, encode_batch_ack("broker-a", [entry])
        )
        assert answer.code == 0
        assert broker.store.consumer_offset("g", "t", 0) == 9
        stale = BatchAckEntry(group="g", topic="t", start=40, queue_id=0, pop_ms=1, bits=entry.bits)
        answer = await client.call(
            RequestCode.BATCH_ACK_MESSAGE, None, encode_batch_ack("broker-a", [stale])
        )
        assert answer.code == 208

    with_broker(tmp_path, scenario)


def test_in_order_nothing_comes_while_something_is_out(tmp_path):
    async def scenario(broker, client, popper):
        await send(client, "a", "b", "c")
        found = await popper.pop(count=2, order=True, attempt_id="1")
        assert bodies(found) == ["a", "b"] and found[0][1].revive_queue == 999
        assert await popper.pop(order=True, attempt_id="2") == []
        same = await popper.ask(count=2, order=True, attempt_id="1")
        assert same.ext["orderCountInfo"] == "0 qo0%0 1;0 qo0%1 1"
        found = popper.read(same)
        assert bodies(found) == ["a", "b"]
        waiting = asyncio.create_task(popper.pop(order=True, attempt_id="3", poll_ms=10_000))
        assert await popper.ack(found[0][1]) == 0
        assert await popper.ack(found[1][1]) == 0
        assert bodies(await waiting) == ["c"]

    with_broker(tmp_path, scenario)


def test_too_many_deliveries_end_among_the_dead_letters(tmp_path):
    async def scenario(broker, client, popper):
        header = {"retryMaxTimes": 2, "groupName": "g"}
        await client.call(
            RequestCode.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP, None, json.dumps(header).encode()
        )
        await send(client, "bad", tag="T")
        for times in range(3):
            ((message, handle),) = await popper.pop(poll_ms=5000)
            assert message.reconsume_times == times
            assert await popper.change(handle, 0)
        assert await popper.pop() == []

        async def letters():
            return (await client.pull("%DLQ%g")).body

        (letter,) = iter_stored(await eventually(letters, "a dead letter"))
        assert letter.body == b"bad"
        assert letter.properties["DLQ_ORIGIN_TOPIC"] == "t"
        assert letter.reconsume_times == 3
        await eventually(lambda: broker.store.consumer_offset("g", "t", 0) == 1, "it is over")
        assert await popper.pop(poll_ms=300) == []

    with_broker(tmp_path, scenario)


def test_a_dead_letter_without_room_for_its_story(tmp_path):
    async def scenario(broker, client, popper):
        group = json.dumps({"retryMaxTimes": 0, "groupName": "g"}).encode()
        await client.call(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTION_GROUP, None, group)
        properties = {f"p{number}": "x" * 8000 for number in range(4)}
        answer = await client.send("t", b"fat", properties={**properties, "q": "x" * 500})
        assert answer.code == 0, answer.remark
        ((_, handle),) = await popper.pop()
        assert await popper.change(handle, 0)
        assert await popper.pop() == []
        await eventually(lambda: broker.store.consumer_offset("g", "t", 0) == 1, "it is over")
        (letter,) = iter_stored((await client.pull("%DLQ%g")).body)
        assert letter.body == b"fat" and letter.properties["p3"] == "x" * 8000
        assert "DLQ_ORIGIN_TOPIC" not in letter.properties

    with_broker(tmp_path, scenario)


def test_a_group_goes_from_pulling_to_popping_and_back(tmp_path):
    async def scenario(broker, client, popper):
        await send(client, *"abcdef")
        commit = {"consumerGroup": "g", "topic": "t", "queueId": "0"}
        await client.heartbeat("c", "g", {"t": "*"})
        code = RequestCode.UPDATE_CONSUMER_OFFSET
        assert (await client.call(code, {**commit, "commitOffset": "2"})).code == 0
        found = await popper.pop(count=3)
        assert bodies(found) == ["c", "d", "e"]
        assert await popper.ack(found[0][1]) == 0
        answer = await client.call(RequestCode.QUERY_CONSUMER_OFFSET, commit)
        assert answer.ext["offset"] == "3", "pulling goes on with what is not acknowledged"
        assert (await client.call(code, {**commit, "commitOffset": "5"})).code == 0
        assert bodies(await popper.pop()) == ["f"]

    with_broker(tmp_path, scenario)


def test_where_a_group_begins(tmp_path):
    async def scenario(broker, client, popper):
        await send(client, "old")
        newest = Popper(client, "t", group="n")
        assert await newest.pop(init_mode=1) == []
        await send(client, "new")
        assert bodies(await newest.pop(init_mode=1)) == ["new"]
        assert bodies(await popper.pop(init_mode=0)) == ["old", "new"]

    with_broker(tmp_path, scenario, young_queue_bytes=0)


def test_notification_and_peek(tmp_path):
    async def scenario(broker, client, popper):
        assert not await popper.has_messages()
        waiting = asyncio.create_task(popper.has_messages(poll_ms=20_000))
        await send(client, "a")
        assert await waiting
        header = PeekMessageHeader(consumer_group="g", topic="t", queue_id=0, message_count_max=32)
        for _ in range(2):
            answer = await client.call(RequestCode.PEEK_MESSAGE, header)
            assert [message.body for message in iter_stored(answer.body)] == [b"a"]
        assert bodies(await popper.pop()) == ["a"]
        assert not await popper.has_messages()

    with_broker(tmp_path, scenario)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"topic": "no"}, 17),
        ({"queueId": "7"}, 29),
        ({"invisibleTime": "0"}, 29),
        ({"maxMsgNums": "0"}, 29),
        ({"consumerGroup": "a b"}, 29),
        ({"exp": "||"}, 23),
    ],
)
def test_bad_pops_are_refused(tmp_path, change, code):
    async def scenario(broker, client, popper):
        answer = await popper.ask(ext=change)
        assert answer.code == code, answer.remark

    with_broker(tmp_path, scenario)


def test_a_deleted_topic_ends_waiting_pops_and_their_state(tmp_path):
    async def scenario(broker, client, popper):
        await send(client, "a")
        ((_, handle),) = await popper.pop()
        waiting = asyncio.create_task(popper.ask(poll_ms=20_000))
        await eventually(lambda: broker._parts.popping.pops._polls.topic_ids(), "the pop waits")
        answer = await client.call(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "t"})
        assert answer.code == 0
        assert (await waiting).code == 17
        assert await popper.ack(handle) == 17
        assert broker.store.rows.scan("pop", b"") == []

    with_broker(tmp_path, scenario)


def test_a_reset_moves_popping_at_once(tmp_path):
    async def scenario(broker, client, popper):
        await send(client, "a", "b")
        for _, handle in await popper.pop():
            assert await popper.ack(handle) == 0
        answer = await client.call(
            RequestCode.INVOKE_BROKER_TO_RESET_OFFSET,
            {"group": "g", "topic": "t", "timestamp": "0", "queueId": "0", "offset": "1"},
        )
        assert answer.code == 0, answer.remark
        assert bodies(await popper.pop()) == ["b"]
        await eventually(
            lambda: not broker.store.rows.scan("offset_resets", b""), "the reset is followed"
        )

    with_broker(tmp_path, scenario)


def test_what_is_acknowledged_makes_room_for_what_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr(pop_choice, "RUNS_MAX", 1)

    async def scenario(broker, client, popper):
        await send(client, "a", "b")
        ((_, handle),) = await popper.pop(count=1)
        waiting = asyncio.create_task(popper.pop(poll_ms=20_000))
        await eventually(lambda: broker._parts.popping.pops._full, "the pop waits")
        assert await popper.ack(handle) == 0
        assert bodies(await waiting) == ["b"]

    with_broker(tmp_path, scenario)


def test_a_follower_hands_pops_on_and_the_next_leader_knows_what_is_out(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(leader.address)
            await eventually(lambda: leader.store.topic("TBW102"), "system topics exist")
            await client.create_topic("t", queues=1)
            await send(client, "a", "b", "c")
            others = [broker for broker in brokers.values() if broker is not leader]
            elsewhere = TestClient(others[0].address)
            popper = Popper(elsewhere, "t")
            found = await popper.pop(invisible_ms=8000)
            assert bodies(found) == ["a", "b", "c"]
            assert await popper.ack(found[0][1]) == 0
            waiting = asyncio.create_task(popper.ask(poll_ms=2000))
            await leader.raft.transfer_leadership()
            await eventually(lambda: not leader.raft.is_serving, "another replica leads")
            # The pop that waited at the old leader goes to the new one, or ends with nothing.
            assert (await waiting).code in (0, 210)
            assert await popper.ack(found[1][1]) == 0
            again = await popper.pop(poll_ms=10_000)
            while not again:
                again = await popper.pop(poll_ms=10_000)
            assert bodies(again) == ["c"]
            assert await popper.ack(again[0][1]) == 0

            def are_equal():
                return len({broker.store.digest() for broker in brokers.values()}) == 1

            await eventually(are_equal, "all replicas have the same state")
            for each in (client, elsewhere):
                await each.close()

    asyncio.run(run())
