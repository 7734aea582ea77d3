"""The producer when brokers fail, refuse or are silent."""

from __future__ import annotations

import asyncio

import pytest

from dledger.client.producer import AsyncProducer
from dledger.client.results import SendResult
from dledger.codes import RequestCode
from dledger.errors import (
    BrokerResponseError,
    SendFailedError,
)
from dledger.message import Message
from tests.support.fake_broker import Fault
from tests.support.fake_cluster import FakeCluster
from tests.support.scripted_producer import distinct, producer_config, run_producer


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

    run_producer(scenario)


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

    run_producer(scenario)


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

    run_producer(scenario)


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

    run_producer(scenario, recognises=recognises)


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

    run_producer(scenario, recognises=True)


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

    settings = producer_config(send_timeout_s=2.0, attempt_timeout_s=0.8)
    run_producer(scenario, settings, recognises=True)


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

    run_producer(scenario, group_names=("broker-a", "broker-b"), recognises=True)


def test_a_producer_may_send_without_numbers() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        cluster.group.replicas[0].faults.append(Fault(store=True, close=True))
        result = await producer.send(Message("t", b"x"), queue=0)
        assert result.may_be_twice
        assert not result.deduplicated
        assert {send[0] for send in cluster.group.sends} == {""}
        assert cluster.group.bodies("t", 0) == [b"x", b"x"]

    run_producer(scenario, producer_config(idempotent=False), recognises=True)


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

    run_producer(scenario, producer_config(retry_unknown=False))


def test_a_definite_refusal_after_an_unknown_attempt_is_not_definite() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        faults = cluster.group.replicas[0].faults
        faults += [Fault(store=True, close=True), Fault(code=13, ext={"dlOutcome": "refused"})]
        with pytest.raises(SendFailedError) as caught:
            await producer.send(Message("t", b"x"), queue=0)
        assert not caught.value.definite
        assert caught.value.attempts == 2

    run_producer(scenario)


def test_no_answer_is_unknown_and_tried_again() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        cluster.group.replicas[0].faults.append(Fault(store=True))
        result = await producer.send(Message("t", b"x"), queue=0)
        assert (result.attempts, result.outcome_unknown_attempts) == (2, 1)
        assert cluster.group.bodies("t", 0) == [b"x", b"x"]

    run_producer(scenario, producer_config(attempt_timeout_s=0.2))


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

    run_producer(scenario, producer_config(attempt_timeout_s=8.0))


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

    run_producer(scenario, producer_config(send_timeout_s=0.4))


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

    run_producer(scenario, producer_config(send_timeout_s=0.5))


def test_busy_brokers_get_a_pause() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        cluster.group.replicas[0].faults += [Fault(code=2), Fault(code=215), Fault(code=2)]
        result = await producer.send(Message("t", b"x"), queue=0)
        assert (result.attempts, result.outcome_unknown_attempts) == (4, 0)

    run_producer(scenario)


def test_refusals_are_tried_a_few_times_and_then_told() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        cluster.group.refused["t"] = 16
        with pytest.raises(BrokerResponseError) as caught:
            await producer.send(Message("t", b"x"))
        assert caught.value.code == 16
        assert caught.value.definite
        assert producer.statistics().requests == 3

    run_producer(scenario)


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

    run_producer(scenario)


def test_a_refused_batch_does_not_take_those_along_that_shared_its_request() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send(Message("t", b"first"), queue=0)
        cluster.group.poison.append(b"bad")
        bodies = [[b"a", b"b"], [b"c", b"bad"], [b"d"]]
        results = await asyncio.gather(
            *(producer.send_batch([Message("t", b) for b in each], queue=0) for each in bodies),
            return_exceptions=True,
        )
        refused = results[1]
        assert isinstance(refused, BrokerResponseError)
        assert refused.definite
        assert cluster.group.bodies("t", 0) == [b"first", b"a", b"b", b"d"]
        assert [one.queue_offset for one in results[0]] == [1, 2]  # type: ignore[union-attr]
        assert [one.queue_offset for one in results[2]] == [3]  # type: ignore[union-attr]
        assert producer.statistics().failed == 2

    run_producer(scenario)


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

    run_producer(scenario, group_names=("broker-a", "broker-b"))


def test_the_first_attempt_of_a_batch_needs_no_task() -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        await producer.send(Message("t", b"before"), queue=0)  # finds the leader, connects
        sent = producer.send(Message("t", b"x"), queue=0)
        while not producer._sender._attempts:
            await asyncio.sleep(0)
        assert not producer._tasks._tasks
        assert (await sent).attempts == 1
        assert not producer._sender._attempts

    run_producer(scenario)


@pytest.mark.parametrize(
    ("fault", "unknown"),
    [
        (Fault(close=True), 1),
        (Fault(store=True, close=True), 1),
        (Fault(code=2, ext={"dlOutcome": "refused"}), 0),
        (Fault(), 1),
    ],
)
def test_a_first_attempt_that_ends_badly_is_followed_by_others(fault: Fault, unknown: int) -> None:
    async def scenario(cluster: FakeCluster, producer: AsyncProducer) -> None:
        group = cluster.group
        await producer.send(Message("t", b"before"), queue=0)
        group.replicas[0].faults.append(fault)
        sent = [producer.send(Message("t", body), queue=0) for body in (b"x", b"y")]
        results = await asyncio.gather(*sent)
        assert [result.attempts for result in results] == [2, 2]
        assert [result.outcome_unknown_attempts for result in results] == [unknown, unknown]
        assert distinct(group.bodies("t", 0)) == [b"before", b"x", b"y"]
        assert producer.statistics().retries == 1
        # Whatever became of it, it is waited for no more and takes no room.
        [connection] = [
            connection
            for connection in producer._session.remoting.connections
            if connection.address == group.replicas[0].address
        ]
        assert connection._waiters == {}
        assert connection._inflight == 0

    run_producer(scenario, producer_config(attempt_timeout_s=1.2))
