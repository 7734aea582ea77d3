"""The producer against a scripted cluster on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dledger.client.config import ProducerConfig, SessionConfig
from dledger.client.producer import AsyncProducer
from dledger.client.results import SendResult
from dledger.codes import RequestCode
from dledger.errors import (
    BrokerResponseError,
    ClientClosedError,
    FlowControlError,
    InvalidParameterError,
    MessageRejectedError,
    RouteNotFoundError,
    SendFailedError,
)
from dledger.message import Message, decode_stored, java_hash
from dledger.model import MessageQueue
from tests.support.fake_cluster import FakeCluster, Fault

QUICK = SessionConfig(request_timeout_s=1.0, connect_timeout_s=1.0, operation_timeout_s=2.0)


def config(**settings: object) -> ProducerConfig:
    return ProducerConfig(session=QUICK, **settings)  # type: ignore[arg-type]


def run(
    scenario: Callable[[FakeCluster, AsyncProducer], Awaitable[None]],
    settings: ProducerConfig | None = None,
    **cluster_settings: object,
) -> None:
    async def main() -> None:
        async with FakeCluster(**cluster_settings) as cluster:  # type: ignore[arg-type]
            cluster.create_topic("t")
            producer = AsyncProducer(
                "pg", nameserver=cluster.nameserver, config=settings or config()
            )
            async with asyncio.timeout(20), producer:
                await scenario(cluster, producer)

    asyncio.run(main())


def distinct(bodies: list[bytes]) -> list[bytes]:
    return list(dict.fromkeys(bodies))


def test_send_says_where_the_message_is() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        result = await producer.send(
            Message("t", b"hello", tags="a", keys=["k"], properties={"p": "q"}, flag=9), queue=2
        )
        stored = decode_stored(cluster.group.log["t", 2][0].raw)
        assert result.queue == MessageQueue("t", "broker-a", 2)
        assert result.queue_offset == 0
        assert result.message_id == stored.unique_key
        assert result.offset_message_id == stored.offset_message_id
        assert (result.attempts, result.outcome_unknown_attempts) == (1, 0)
        assert (stored.body, stored.tags, stored.keys, stored.flag) == (b"hello", "a", ["k"], 9)
        assert stored.properties["p"] == "q"

    run(scenario)


def test_messages_batch_by_themselves_and_every_result_is_its_own() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        results = await asyncio.gather(
            *(producer.send(Message("t", b"%d" % n, flag=n), queue=1) for n in range(3000))
        )
        assert cluster.group.bodies("t", 1) == [b"%d" % n for n in range(3000)]
        assert [result.queue_offset for result in results] == list(range(3000))
        assert len({result.message_id for result in results}) == 3000
        keys = [message.unique_key for message in cluster.group.log["t", 1]]
        assert keys == [result.message_id for result in results]
        assert len(cluster.group.batch_sizes) < 10

    run(scenario)


def test_messages_for_any_queue_are_spread_by_batches() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await asyncio.gather(*(producer.send(Message("t", b"x")) for _ in range(1000)))
        sizes = [len(cluster.group.log["t", number]) for number in range(4)]
        assert sizes == [250, 250, 250, 250]
        assert cluster.group.batch_sizes == [250, 250, 250, 250]

    run(scenario)


def test_topics_of_one_turn_are_sent_in_the_order_of_their_first_messages() -> None:
    """Not in that of a set, which another process has in another order."""
    names = [f"topic-{number}" for number in (5, 1, 7, 2, 8, 3)]

    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        for name in names:
            cluster.create_topic(name)
            await producer.send(Message(name, b"so that its route is known"), queue=0)
        await asyncio.gather(*(producer.send(Message(name, b"m"), queue=1) for name in names))
        assert [topic for topic, queue in cluster.group.log if queue == 1] == names

    run(scenario)


def test_lone_messages_take_turns_over_the_queues() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        results = [await producer.send(Message("t", b"x")) for _ in range(8)]
        assert [result.queue.queue_id for result in results] == [0, 1, 2, 3, 0, 1, 2, 3]
        assert RequestCode.SEND_MESSAGE_V2 in cluster.group.replicas[0].requests
        assert RequestCode.SEND_BATCH_MESSAGE not in cluster.group.replicas[0].requests

    run(scenario)


def test_a_key_keeps_its_queue() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        results = await asyncio.gather(
            *(producer.send(Message("t", b"x"), shard_key=f"k{n % 7}") for n in range(70))
        )
        for number, result in enumerate(results):
            assert result.queue.queue_id == abs(java_hash(f"k{number % 7}")) % 4

    run(scenario)


def test_large_messages_are_compressed_and_come_back() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        body = b"abcdefgh" * 10_000
        await asyncio.gather(
            producer.send(Message("t", b"small"), queue=0),
            producer.send(Message("t", body), queue=0),
            producer.send(Message("t", b"after"), queue=0),
        )
        stored = [message.raw for message in cluster.group.log["t", 0]]
        assert len(stored[1]) < 2000
        assert [decode_stored(raw).body for raw in stored] == [b"small", body, b"after"]

    run(scenario)


def test_send_batch_is_stored_together() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        results = await producer.send_batch([Message("t", b"%d" % n) for n in range(5)], queue=3)
        assert [result.queue_offset for result in results] == [0, 1, 2, 3, 4]
        assert cluster.group.batch_sizes == [5]
        assert len({result.offset_message_id for result in results}) == 5
        with pytest.raises(MessageRejectedError):
            await producer.send_batch([])
        with pytest.raises(MessageRejectedError):
            await producer.send_batch([Message("t", b""), Message("u", b"")])

    run(scenario)


def test_oneway_arrives() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send_oneway(Message("t", b"x"), queue=0)
        async with asyncio.timeout(5):
            while not cluster.group.log["t", 0]:
                await asyncio.sleep(0.005)

    run(scenario)


# --- failures ---------------------------------------------------------------------------------


def test_a_not_leader_answer_is_followed_at_once() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        group = cluster.group
        cluster.stale_leader["broker-a"] = group.replicas[0].address
        group.elect(2)
        result = await producer.send(Message("t", b"x"), queue=0)
        assert result.attempts == 2
        assert result.outcome_unknown_attempts == 0  # a refusal is definite
        assert group.bodies("t", 0) == [b"x"]
        assert RequestCode.SEND_MESSAGE_V2 not in group.replicas[1].requests

    run(scenario)


def test_fail_over_needs_little_more_than_the_election() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        loop = asyncio.get_running_loop()
        group = cluster.group
        await producer.send(Message("t", b"before"), queue=0)
        group.hint_of_the_dead = group.replicas[0].address
        group.leader = None
        await group.replicas[0].kill()
        begin = loop.time()
        loop.call_later(0.3, group.elect, 1)
        results = await asyncio.gather(
            *(producer.send(Message("t", b"%d" % n), queue=0) for n in range(100))
        )
        took = loop.time() - begin
        assert took < 0.3 + 0.3, took
        assert group.bodies("t", 0) == [b"before", *(b"%d" % n for n in range(100))]
        assert all(result.queue_offset == n + 1 for n, result in enumerate(results))

    run(scenario)


def test_a_leader_that_is_not_ready_is_asked_again_but_not_with_the_batch() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        group = cluster.group
        await producer.send(Message("t", b"before"), queue=0)
        group.elect(1)
        group.replicas[1].serving = False
        loop = asyncio.get_running_loop()
        loop.call_later(0.4, setattr, group.replicas[1], "serving", True)
        result = await producer.send(Message("t", b"x"), queue=0)
        assert group.bodies("t", 0) == [b"before", b"x"]
        assert result.attempts <= 5
        assert result.outcome_unknown_attempts == 0

    run(scenario)


@pytest.mark.parametrize("recognises", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_order_is_kept_when_connections_break_under_batches(stored: bool, recognises: bool) -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        group = cluster.group
        group.send_delay_s = 0.002
        faults = group.replicas[0].faults
        futures: list[asyncio.Future[SendResult]] = []
        for round_number in range(30):
            if round_number % 5 == 2:
                faults.append(Fault(store=stored, close=True))
            for _ in range(20):
                number = len(futures)
                futures.append(producer.send(Message("t", b"%d" % number), queue=0))
            await asyncio.sleep(0.003)
        results = await asyncio.gather(*futures)
        bodies = group.bodies("t", 0)
        assert distinct(bodies) == [b"%d" % n for n in range(len(futures))]
        # Whatever is there twice was announced as possibly there twice.
        unknown = {b"%d" % n for n, result in enumerate(results) if result.outcome_unknown_attempts}
        assert unknown
        twice = {body for body in bodies if bodies.count(body) > 1}
        assert twice <= unknown
        assert bool(twice) is (stored and not recognises)
        announced = {b"%d" % n for n, result in enumerate(results) if result.may_be_twice}
        assert announced == (set() if recognises else unknown)
        noticed = {b"%d" % n for n, result in enumerate(results) if result.deduplicated}
        assert noticed == (unknown if stored and recognises else set())
        keys: dict[bytes, set[str]] = {}
        for message in group.log["t", 0]:
            keys.setdefault(message.body, set()).add(message.unique_key)
        assert all(len(found) == 1 for found in keys.values())

    run(scenario, recognises=recognises)


def test_attempts_of_one_batch_have_one_number_and_batches_do_not_share_any() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        group = cluster.group
        group.replicas[0].faults += [Fault(store=True, close=True), Fault(store=True, close=True)]
        results = await asyncio.gather(
            *(producer.send(Message("t", b"%d" % n), queue=1) for n in range(3))
        )
        assert {result.outcome_unknown_attempts for result in results} == {2}
        assert [result.queue_offset for result in results] == [0, 1, 2]
        await producer.send(Message("t", b"x"), queue=1)
        await producer.send(Message("t", b"y"), queue=2)
        (producer_id,) = {send[0] for send in group.sends}
        assert len(bytes.fromhex(producer_id)) == 8
        assert [send[2:] for send in group.sends] == [
            *[(1, 0, 3)] * 3,
            *[(1, 3, 1), (2, 0, 1)],
        ]
        assert group.bodies("t", 1) == [b"0", b"1", b"2", b"x"]

    run(scenario, recognises=True)


def test_a_batch_that_may_be_stored_stays_together_when_its_first_message_expires() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        group = cluster.group
        await producer.send(Message("t", b"a"), queue=0)
        group.send_delay_s = 0.7
        slow = producer.send(Message("t", b"b"), queue=0)
        await asyncio.sleep(0.01)
        early = producer.send(Message("t", b"c"), queue=0)
        await asyncio.sleep(0.6)
        late = producer.send(Message("t", b"d"), queue=0)
        # Both leave together after `slow`; the first two attempts are stored, but not answered.
        group.send_delay_s = 0.0
        group.replicas[0].faults += [Fault(store=True), Fault(store=True)]
        assert (await slow).queue_offset == 1
        with pytest.raises(SendFailedError) as caught:
            await early
        assert caught.value.outcome_unknown_attempts
        result = await late
        assert (result.queue_offset, result.deduplicated) == (3, True)
        assert group.bodies("t", 0) == [b"a", b"b", b"c", b"d"]
        statistics = producer.statistics()
        assert (statistics.sent, statistics.failed) == (3, 1)

    settings = config(send_timeout_s=2.0, attempt_timeout_s=0.8)
    run(scenario, settings, recognises=True)


def test_a_batch_that_may_be_stored_waits_for_its_group_and_others_do_not() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await asyncio.gather(*(producer.send(Message("t", b"x")) for _ in range(500)))
        group = cluster.groups["broker-a"]
        group.replicas[0].faults += [Fault(store=True, close=True)]
        group.leader = 0
        sends = [producer.send(Message("t", b"%d" % n)) for n in range(500)]
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, group.elect, 1)
        results = await asyncio.gather(*sends)
        everywhere = [
            body
            for each in cluster.groups.values()
            for queue_id in range(4)
            for body in each.bodies("t", queue_id)
            if body != b"x"
        ]
        assert sorted(everywhere) == sorted(b"%d" % n for n in range(500))
        assert any(result.deduplicated for result in results)

    run(scenario, group_names=("broker-a", "broker-b"), recognises=True)


def test_a_producer_may_send_without_numbers() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        cluster.group.replicas[0].faults.append(Fault(store=True, close=True))
        result = await producer.send(Message("t", b"x"), queue=0)
        assert result.may_be_twice
        assert not result.deduplicated
        assert {send[0] for send in cluster.group.sends} == {""}
        assert cluster.group.bodies("t", 0) == [b"x", b"x"]

    run(scenario, config(idempotent=False), recognises=True)


def test_an_unknown_outcome_may_be_raised_instead() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        group = cluster.group
        group.replicas[0].faults.append(Fault(store=True, close=True))
        with pytest.raises(SendFailedError) as caught:
            await producer.send(Message("t", b"x"), queue=0)
        assert not caught.value.definite
        assert caught.value.outcome_unknown_attempts == 1
        group.replicas[0].faults.append(Fault(code=1, ext={"dlOutcome": "unknown"}))
        with pytest.raises(SendFailedError) as caught:
            await producer.send(Message("t", b"x"), queue=0)
        assert not caught.value.definite
        assert group.bodies("t", 0) == [b"x"]

    run(scenario, config(retry_unknown=False))


def test_a_definite_refusal_after_an_unknown_attempt_is_not_definite() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        faults = cluster.group.replicas[0].faults
        faults += [Fault(store=True, close=True), Fault(code=13, ext={"dlOutcome": "refused"})]
        with pytest.raises(SendFailedError) as caught:
            await producer.send(Message("t", b"x"), queue=0)
        assert not caught.value.definite
        assert caught.value.attempts == 2

    run(scenario)


def test_no_answer_is_unknown_and_tried_again() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        cluster.group.replicas[0].faults.append(Fault(store=True))
        result = await producer.send(Message("t", b"x"), queue=0)
        assert (result.attempts, result.outcome_unknown_attempts) == (2, 1)
        assert cluster.group.bodies("t", 0) == [b"x", b"x"]

    run(scenario, config(attempt_timeout_s=0.2))


def test_a_silent_leader_is_left_as_soon_as_another_one_serves() -> None:
    """A stopped process keeps its connections: only the others can tell that it is out."""

    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        loop = asyncio.get_running_loop()
        group = cluster.group
        await producer.send(Message("t", b"before"), queue=0)
        group.replicas[0].faults += [Fault(), Fault()]  # no answers
        loop.call_later(0.7, group.elect, 2)
        begin = loop.time()
        result = await producer.send(Message("t", b"x"), queue=0)
        assert loop.time() - begin < 2.5
        assert (result.attempts, result.outcome_unknown_attempts) == (2, 1)
        assert group.bodies("t", 0) == [b"before", b"x"]

    run(scenario, config(attempt_timeout_s=8.0))


def test_time_runs_out_definitely_when_nothing_could_be_sent() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        group = cluster.group
        await producer.send(Message("t", b"x"), queue=0)
        group.leader = None
        with pytest.raises(SendFailedError) as caught:
            await producer.send(Message("t", b"y"), queue=0)
        assert caught.value.definite
        group.elect(1)
        await producer.send(Message("t", b"z"), queue=0)
        assert group.bodies("t", 0) == [b"x", b"z"]

    run(scenario, config(send_timeout_s=0.4))


def test_refusals_until_the_time_is_over_end_definitely() -> None:
    """The last attempt, cut short by the deadline, made them unknown."""

    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        replica = cluster.group.replicas[0]
        fail = replica._fail
        loop = asyncio.get_running_loop()
        replica._fail = lambda *arguments: loop.call_later(0.06, fail, *arguments)  # type: ignore[method-assign]
        replica.faults += [Fault(code=14, ext={"dlOutcome": "refused"})] * 1000
        for _ in range(5):
            with pytest.raises(SendFailedError, match="scripted") as caught:
                await producer.send(Message("t", b"x"), queue=0)
            assert caught.value.definite
        replica.faults.clear()
        assert cluster.group.bodies("t", 0) == []

    run(scenario, config(send_timeout_s=0.5))


def test_busy_brokers_get_a_pause() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        cluster.group.replicas[0].faults += [Fault(code=2), Fault(code=215), Fault(code=2)]
        result = await producer.send(Message("t", b"x"), queue=0)
        assert (result.attempts, result.outcome_unknown_attempts) == (4, 0)

    run(scenario)


def test_refusals_are_tried_a_few_times_and_then_told() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        cluster.group.refused["t"] = 16
        with pytest.raises(BrokerResponseError) as caught:
            await producer.send(Message("t", b"x"))
        assert caught.value.code == 16
        assert caught.value.definite
        assert producer.statistics().requests == 3

    run(scenario)


def test_one_bad_message_does_not_take_its_batch_along() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        cluster.group.poison.append(b"poison")
        results = await asyncio.gather(
            *(
                producer.send(Message("t", b"poison" if n == 5 else b"%d" % n), queue=0)
                for n in range(10)
            ),
            return_exceptions=True,
        )
        assert isinstance(results[5], BrokerResponseError)
        assert results[5].definite
        assert sum(isinstance(result, SendResult) for result in results) == 9
        expected = [b"%d" % n for n in range(10) if n != 5]
        assert cluster.group.bodies("t", 0) == expected

    run(scenario)


def test_another_group_takes_over_what_any_queue_may_hold() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(producer.send(Message("t", b"x")) for _ in range(500)))
        cluster.groups["broker-a"].leader = None
        await cluster.groups["broker-a"].replicas[0].kill()
        begin = loop.time()
        results = await asyncio.gather(*(producer.send(Message("t", b"y")) for _ in range(500)))
        assert loop.time() - begin < 2.0
        assert {result.queue.broker_name for result in results} == {"broker-b"}

    run(scenario, group_names=("broker-a", "broker-b"))


# --- topics and routes ------------------------------------------------------------------------


def test_an_unknown_topic_is_created_by_its_first_send() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        result = await producer.send(Message("new", b"x"))
        assert result.queue.topic == "new"
        results = await asyncio.gather(
            *(producer.send(Message("new", b"x"), shard_key=str(n)) for n in range(20))
        )
        assert len({entry.queue.queue_id for entry in results}) > 1

    run(scenario)


def test_a_topic_that_nobody_creates_is_refused() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        with pytest.raises(RouteNotFoundError) as caught:
            await producer.send(Message("new", b"x"))
        assert caught.value.definite
        with pytest.raises(RouteNotFoundError):
            await producer.send(Message("new", b"x"), queue=0)
        with pytest.raises(InvalidParameterError):
            await producer.send(Message("no good name", b"x"))

    run(scenario, auto_create=False)


def test_a_queue_that_is_newer_than_our_route_is_found() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send(Message("t", b"x"), queue=0)
        cluster.group.topics.pop("t")
        cluster.create_topic("t", queues=8)
        result = await producer.send(Message("t", b"x"), queue=7)
        assert result.queue.queue_id == 7
        with pytest.raises(InvalidParameterError):
            await producer.send(Message("t", b"x"), queue=8)
        with pytest.raises(InvalidParameterError):
            await producer.send(Message("t", b"x"), queue=1, shard_key="k")

    run(scenario)


def test_sending_goes_on_without_nameservers_once_the_route_is_known() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send(Message("t", b"x"), queue=0)
        await cluster.stop_nameserver()
        group = cluster.group
        group.elect(2)
        await group.replicas[0].kill()
        result = await producer.send(Message("t", b"y"), queue=0)
        assert result.queue_offset == 1

    run(scenario)


def test_a_nameserver_that_comes_back_soon_is_waited_for() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await cluster.stop_nameserver()
        future = producer.send(Message("t", b"x"))
        await asyncio.sleep(0.1)
        assert not future.done()
        await cluster.start_nameserver()
        await future

    run(scenario)


def test_the_next_nameserver_is_asked_when_one_is_gone() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            cluster.create_topic("t")
            addresses = ["127.0.0.1:1", cluster.nameserver]
            async with AsyncProducer("pg", nameserver=addresses, config=config()) as producer:
                await producer.send(Message("t", b"x"))

    asyncio.run(main())


# --- limits and life --------------------------------------------------------------------------


def test_at_most_so_many_are_under_way() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        futures = [producer.send(Message("t", b"%d" % n), queue=0) for n in range(60)]
        assert producer.statistics().in_flight == 10
        assert producer.statistics().waiting == 50
        with pytest.raises(FlowControlError) as caught:
            await producer.send(Message("t", b"too much"), queue=0)
        assert caught.value.definite
        await asyncio.gather(*futures)
        assert max(cluster.group.batch_sizes) <= 10
        assert cluster.group.bodies("t", 0) == [b"%d" % n for n in range(60)]
        await producer.wait_room()
        assert producer.statistics().in_flight == 0

    run(scenario, config(in_flight_max=10, waiting_max=50))


def test_close_waits_for_every_result() -> None:
    async def main() -> None:
        async with FakeCluster() as cluster:
            cluster.create_topic("t")
            cluster.group.send_delay_s = 0.01
            producer = AsyncProducer(
                "pg", nameserver=cluster.nameserver, config=config(in_flight_max=50)
            )
            await producer.start()
            cluster.group.replicas[0].faults.append(Fault(close=True))
            futures = [producer.send(Message("t", b"%d" % n), queue=n % 4) for n in range(400)]
            await producer.close()
            assert all(future.done() for future in futures)
            assert [future.result().attempts >= 1 for future in futures] == [True] * 400
            assert len({message.body for message in cluster.group.messages()}) == 400
            with pytest.raises(ClientClosedError) as caught:
                await producer.send(Message("t", b"x"))
            assert caught.value.definite
            with pytest.raises(ClientClosedError):
                await producer.send_batch([Message("t", b"x")])
            with pytest.raises(ClientClosedError):
                await producer.send_oneway(Message("t", b"x"))
            with pytest.raises(ClientClosedError):
                await producer.start()
            await producer.close()

    asyncio.run(main())


def test_a_producer_must_be_started() -> None:
    async def main() -> None:
        producer = AsyncProducer("pg", nameserver="127.0.0.1:1")
        with pytest.raises(ClientClosedError):
            await producer.send(Message("t", b"x"))
        await producer.close()

    asyncio.run(main())


def test_a_cancelled_wait_does_not_recall_the_message() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        future = producer.send(Message("t", b"x"), queue=0)
        future.cancel()
        await producer.wait_idle()
        assert cluster.group.bodies("t", 0) == [b"x"]

    run(scenario)
