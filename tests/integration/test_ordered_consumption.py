"""Ordered consumption on three real replicas: strict order through rebalance and fail-over."""

import asyncio
from collections import Counter, defaultdict

from dledger import Message
from dledger.codes import RequestCode
from dledger.model import MessageQueue
from dledger.remoting.bodies import LockBatchBody, decode_locked_queues, encode_lock_batch
from tests.support.brokers import TestClient, eventually
from tests.support.cluster import cluster

FAST = {"lock_renew_s": 0.3, "lock_valid_s": 30.0}


async def locked(client, client_id, *queue_ids, code=RequestCode.LOCK_BATCH_MQ):
    queues = [MessageQueue("t", "broker-a", number) for number in queue_ids]
    body = LockBatchBody(consumer_group="g", client_id=client_id, queues=queues)
    answer = await client.call(code, None, encode_lock_batch(body))
    assert answer.code == 0, answer.remark
    if code == RequestCode.LOCK_BATCH_MQ:
        return [queue.queue_id for queue in decode_locked_queues(answer.body)]
    return []


def test_an_old_owner_is_fenced_through_fail_over(tmp_path):
    async def run():
        async with cluster(tmp_path) as group:
            await group.create_topic("t", queues=2)
            client = TestClient((await group.leader()).address)
            assert await locked(client, "a", 0, 1, 2) == [0, 1]
            assert await locked(client, "b", 0, 1) == []
            await client.close()
            await group.kill_leader()
            follower = next(b for b in group.brokers.values() if not b.raft.is_serving)
            client = TestClient(follower.address)  # forwards
            assert await locked(client, "b", 0, 1) == []
            assert await locked(client, "a", 0) == [0]
            await locked(client, "a", 0, code=RequestCode.UNLOCK_BATCH_MQ)
            assert await locked(client, "b", 0, 1) == [0]
            bad = await client.call(RequestCode.LOCK_BATCH_MQ, None, b'{"consumerGroup":"g"}')
            assert bad.code != 0
            await client.close()
            await group.same_state()

    asyncio.run(run())


class Record:
    """What members saw; handlers that overlap in one queue are noted."""

    def __init__(self):
        self.seen = defaultdict(list)
        self.offsets = defaultdict(list)
        self.busy = Counter()
        self.overlaps = []

    def handler(self, name, pause_s=0.002, fail=lambda number: False):
        async def handle(message):
            queue, number = message.queue_id, int(message.body)
            self.busy[queue] += 1
            if self.busy[queue] > 1:
                self.overlaps.append((name, queue, number))
            try:
                await asyncio.sleep(pause_s)
                if fail(number):
                    raise RuntimeError("not yet")
                self.seen[queue].append(number)
                self.offsets[queue].append(message.queue_offset)
            finally:
                self.busy[queue] -= 1

        return handle

    @property
    def count(self):
        return sum(len(numbers) for numbers in self.seen.values())


def test_order_is_strict_under_rebalance_and_fail_over(tmp_path):
    async def run():
        async with cluster(tmp_path) as group, group.producer() as producer:
            await group.create_topic("t", queues=4)
            record = Record()
            per_queue = 150

            async def produce():
                for number in range(per_queue):
                    await asyncio.gather(
                        *(
                            producer.send(Message("t", b"%d" % number), queue=queue)
                            for queue in range(4)
                        )
                    )

            def member():
                return group.consumer(group="g", ordered=True, drain_timeout_s=3.0, **FAST)

            first = member()
            await first.start()
            tasks = [asyncio.create_task(first.run(record.handler("first"), concurrency=4))]
            producing = asyncio.create_task(produce())
            await eventually(lambda: record.count > 60, "the first member consumes", 20)
            second = member()
            await second.start()
            tasks.append(asyncio.create_task(second.run(record.handler("second"), concurrency=4)))
            await eventually(lambda: len(second.assignment) == 2, "the second has its share", 20)
            assert not set(first.assignment) & set(second.assignment)
            await group.kill_leader()
            await eventually(lambda: record.count > 350, "it goes on under a new leader", 30)
            await first.close()
            await producing

            def complete():
                return all(set(record.seen[queue]) == set(range(per_queue)) for queue in range(4))

            await eventually(complete, "everything is consumed", 40)
            await second.close()
            await asyncio.gather(*tasks)
            assert record.overlaps == []
            # Leaving and taking over commits before it unlocks: nothing comes twice. (What the
            # producer stored twice while the leader died are two messages.)
            for queue in range(4):
                found = record.offsets[queue]
                assert found == list(range(len(found))), found

    asyncio.run(run())


def test_a_failing_message_holds_up_its_queue_only(tmp_path):
    async def run():
        async with cluster(tmp_path, count=1) as group, group.producer() as producer:
            await group.create_topic("t", queues=2)
            for number in range(10):
                for queue in range(2):
                    await producer.send(Message("t", b"%d" % number), queue=queue)
            record = Record()
            failures = Counter()

            def fail(number):
                failures[number] += 1
                return number == 3 and failures[number] <= 6

            consumer = group.consumer(group="g", ordered=True, **FAST)
            await consumer.start()
            task = asyncio.create_task(
                consumer.run(record.handler("only", fail=fail), concurrency=3)
            )
            await eventually(lambda: record.count == 20, "all are consumed")
            assert record.overlaps == []
            assert [record.seen[queue] for queue in range(2)] == [list(range(10))] * 2
            await consumer.close()
            await task

    asyncio.run(run())


def test_who_loses_the_lock_stops(tmp_path):
    async def run():
        async with cluster(tmp_path, count=1) as group, group.producer() as producer:
            await group.create_topic("t", queues=1)
            leader = await group.leader()
            client = TestClient(leader.address)
            assert await locked(client, "stranger", 0) == [0]
            consumer = group.consumer(group="g", ordered=True, **FAST)
            await consumer.start()
            await producer.send(Message("t", b"0"))
            assert await consumer.poll(1.5) is None, "another holds the lock"
            assert consumer.assignment == []
            await locked(client, "stranger", 0, code=RequestCode.UNLOCK_BATCH_MQ)
            message = await consumer.poll(10)
            assert message.body == b"0"
            own = consumer._session.client_id
            await locked(client, own, 0, code=RequestCode.UNLOCK_BATCH_MQ)
            assert await locked(client, "stranger", 0) == [0]
            await eventually(lambda: consumer.assignment == [], "it notices at its next renewal")
            await producer.send(Message("t", b"1"))
            assert await consumer.poll(0.5) is None
            await locked(client, "stranger", 0, code=RequestCode.UNLOCK_BATCH_MQ)
            # The first was not committed by a member without a lock: it comes again, then the next.
            bodies = [(await consumer.poll(10)).body for _ in range(2)]
            assert bodies == [b"0", b"1"]
            await consumer.close()
            assert await locked(client, "stranger", 0) == [0], "closing gives the lock back"
            await client.close()

    asyncio.run(run())
