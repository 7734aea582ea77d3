"""Traces of our producers and consumers in a real trace topic."""

import asyncio

import pytest

from cli.trace import story
from dledger import AsyncAdmin, Message
from dledger.client.config import ProducerConfig
from dledger.client.producer import AsyncProducer
from dledger.client.tracing import RECORDS_MAX, Tracer
from dledger.errors import ConnectFailedError
from dledger.message.trace import TRACE_TOPIC, Delivering, decode_trace
from tests.support.brokers import eventually
from tests.support.cluster import QUICK, cluster


async def told(admin, message_id):
    found = await admin.messages_by_key(TRACE_TOPIC, message_id, count_max=256)
    return story(message_id, [r for message in found for r in decode_trace(message.body)])


@pytest.mark.parametrize("ordered", [False, True])
def test_a_message_from_producer_to_consumer(tmp_path, ordered):
    async def handler(message):
        if message.body == b"3" and message.reconsume_times == 0 and not ordered:
            raise ValueError("not yet")

    async def run():
        async with cluster(tmp_path, count=1) as group:
            await group.create_topic("t", queues=1)
            config = ProducerConfig(session=QUICK, trace=True)
            producer = AsyncProducer("pg", nameserver=group.nameserver, config=config)
            async with producer:
                sent = [
                    await producer.send(Message("t", b"%d" % n, tags="a", keys=[f"key-{n}"]))
                    for n in range(5)
                ]
            admin = AsyncAdmin(nameserver=group.nameserver, config=group.admin_config)
            async with admin, group.consumer(trace=True, ordered=ordered) as consumer:
                running = asyncio.create_task(consumer.run(handler))

                async def all_told():
                    stories = [await told(admin, result.message_id) for result in sent]
                    return all(rows and rows[-1]["success"] for rows in stories) and all(
                        len(rows) >= 2 for rows in stories
                    )

                await eventually(all_told, "every message has its story", 30)
                first = await told(admin, sent[0].message_id)
                assert [row["what"] for row in first] == ["sent", "consumed"]
                assert [row["group"] for row in first] == ["pg", "cg"]
                assert first[0]["where"].startswith("t at 127.0.0.1:")
                assert first[0]["time_ms"] <= first[1]["time_ms"]
                by_key = await told(admin, "key-0")
                assert len(by_key) == 2
                if not ordered:
                    failed = await told(admin, sent[3].message_id)
                    assert [row["success"] for row in failed] == [True, False, True]
                    assert [row["attempt"] for row in failed] == [None, 0, 1]
                consumer.stop()
                await running

    asyncio.run(run())


class Session:
    """A cluster that takes nothing."""

    def __init__(self):
        self.asked = 0

    def now_ms(self):
        return 0

    def wall_ms(self):
        return 0

    async def route(self, _topic):
        self.asked += 1
        raise ConnectFailedError("nobody is there")


def test_traces_are_dropped_rather_than_kept_for_ever():
    async def run():
        session = Session()
        tracer = Tracer(session, "g")
        for _ in range(RECORDS_MAX + 7):
            tracer._add(Delivering(time_ms=0, group="g", request_id="r", message_id="m"))
        assert tracer.dropped == 7
        tracer.start()
        await tracer.close()
        assert tracer.dropped == RECORDS_MAX + 7
        assert session.asked > 0

    asyncio.run(run())
