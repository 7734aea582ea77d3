"""Three real replicas: leadership on request, before a stop, and back to the preferred one."""

import asyncio
import time

from broker.server import Broker
from dledger.codes import RequestCode, ResponseCode
from tests.support.brokers import TestClient, broker_group, eventually, serving_leader


def other(brokers, leader):
    return next(broker for broker in brokers.values() if broker is not leader)


def test_an_admin_request_to_any_replica_moves_the_leadership(tmp_path):
    async def run():
        async with broker_group(tmp_path) as brokers:
            old = await serving_leader(brokers)
            target = other(brokers, old)
            client = TestClient(target.address)
            await client.create_topic("t")
            name = target.config.replica_id
            answer = await client.call(RequestCode.TRANSFER_LEADER, {"replicaId": name})
            assert (answer.code, answer.ext.get("replicaId")) == (0, name)
            assert (await serving_leader(brokers)) is target
            assert (await client.send("t", b"x")).code == 0
            refused = await client.call(RequestCode.TRANSFER_LEADER, {"replicaId": "nobody"})
            assert refused.code == ResponseCode.INVALID_PARAMETER
            again = await client.call(RequestCode.TRANSFER_LEADER)
            assert again.code == 0
            assert (await serving_leader(brokers)) is not target
            await client.close()

    asyncio.run(run())


def test_sends_go_on_through_a_planned_stop_of_the_leader(tmp_path):
    async def run():
        slow = {
            "heartbeat_ms": 100,
            "election_timeout_min_ms": 1500,
            "election_timeout_max_ms": 2000,
            "check_quorum_ms": 2500,
            "reset_election_max_ms": 1500,
        }
        async with broker_group(tmp_path, raft=slow) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(other(brokers, leader).address)
            await client.create_topic("t")
            gaps, codes = [], []

            async def produce():
                for number in range(600):
                    started = time.monotonic()
                    codes.append((await client.send("t", b"%d" % number)).code)
                    gaps.append(time.monotonic() - started)
                    await asyncio.sleep(0.001)

            producing = asyncio.create_task(produce())
            await eventually(lambda: len(codes) > 50, "some are sent")
            brokers.pop(leader.config.replica_id)
            await leader.stop()
            await asyncio.wait_for(producing, 60)
            # Not one send failed, and none waited for an election timeout.
            assert set(codes) == {0}
            assert max(gaps) < 1.0, max(gaps)
            await client.close()

    asyncio.run(run())


def test_the_preferred_replica_leads_again_when_it_is_back(tmp_path):
    async def run():
        preferred = "broker-a-1"
        timing = {"preferred_leader_stable_s": 0.3, "drain_s": 0.5}
        async with broker_group(tmp_path, preferred_leader=preferred, timing=timing) as brokers:
            await eventually(
                lambda: brokers[preferred].raft.is_serving, "the preferred replica leads"
            )
            config = brokers[preferred].config
            await brokers.pop(preferred).stop()
            await serving_leader(brokers)
            brokers[preferred] = Broker(config)
            await brokers[preferred].start()
            await eventually(lambda: brokers[preferred].raft.is_serving, "it leads again")

    asyncio.run(run())


def test_a_leader_whose_disk_is_full_lets_another_replica_lead(tmp_path):
    async def run():
        timing = {"disk_check_s": 0.1, "drain_s": 0.5}
        async with broker_group(tmp_path, timing=timing) as brokers:
            leader = await serving_leader(brokers)
            client = TestClient(other(brokers, leader).address)
            await client.create_topic("t")
            assert (await client.send("t", b"before")).code == 0
            leader._fs.free_bytes = lambda _path: 0
            await eventually(lambda: not leader.raft.is_serving, "it hands over")
            new = await serving_leader(brokers)
            assert new is not leader
            answer = await client.send("t", b"after")
            assert answer.code == 0, answer.remark
            del leader._fs.free_bytes
            await client.close()

    asyncio.run(run())
