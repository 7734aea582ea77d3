"""Assignment by the broker, over sockets."""

import asyncio
import json

from dledger.codes import RequestCode
from dledger.remoting.bodies.popping import (
    RequestMode,
    decode_assignments,
    encode_request_mode,
)
from tests.support.brokers import TestClient, eventually, single_broker


def test_members_are_told_their_queues_and_how_to_read_them(tmp_path):
    async def run():
        async with single_broker(tmp_path) as (broker, client):
            await client.create_topic("t", queues=4)
            other = TestClient(client.address)
            await client.heartbeat("c1", "g", {"t": "*"})
            await other.heartbeat("c2", "g", {"t": "*"})

            async def ask(client_id, **more):
                body = {
                    "topic": "t",
                    "consumerGroup": "g",
                    "clientId": client_id,
                    "strategyName": "AVG",
                    "messageModel": "CLUSTERING",
                    **more,
                }
                answer = await client.call(
                    RequestCode.QUERY_ASSIGNMENT, None, json.dumps(body).encode()
                )
                assert answer.code == 0, answer.remark
                found = decode_assignments(answer.body).assignments
                return found and [(entry.mode, entry.queue.queue_id) for entry in found]

            await eventually(lambda: broker.store.group("g"), "the group exists")
            assert await ask("c1") == [("PULL", 0), ("PULL", 1)]
            assert await ask("c2") == [("PULL", 2), ("PULL", 3)]
            assert await ask("c3") == []
            assert len(await ask("c3", messageModel="BROADCASTING")) == 4
            assert await ask("c1", strategyName="NOVEL") is None
            assert await ask("c1", topic="unknown") is None

            async def set_mode(code, **more):
                fields = {"topic": "t", "group": "g", "mode": "POP", **more}
                body = encode_request_mode(RequestMode(**fields))
                answer = await client.call(RequestCode.SET_MESSAGE_REQUEST_MODE, None, body)
                assert answer.code == code, answer.remark

            await set_mode(17, topic="unknown")
            await set_mode(0, group="later")
            assert broker.store.group("later"), "named before its first member comes"
            await set_mode(29, group="a b")
            await set_mode(16, topic="%RETRY%g")
            await set_mode(29, mode="PUSH")
            client.pushed.clear()
            await set_mode(0)
            assert await ask("c1") == [("POP", -1)]
            code = RequestCode.NOTIFY_CONSUMER_IDS_CHANGED
            await eventually(
                lambda: (code, {"consumerGroup": "g"}) in client.pushed, "members are told"
            )
            await set_mode(0, mode="PULL")
            assert await ask("c2") == [("PULL", 2), ("PULL", 3)]
            await other.close()

    asyncio.run(run())
