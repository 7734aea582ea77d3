"""Real replicas: one that is too far behind, or has lost everything, gets snapshot and log."""

import asyncio
import shutil

import pytest

from broker import installing
from broker.installing import read_marker
from broker.joining import Joining, move_aside, write_joining
from broker.replication import describe
from broker.server import Broker
from dledger.errors import ReplicaRemovedError, ReplicaReplacedError, StoreError
from dledger.message import iter_stored
from tests.support.brokers import TestClient, broker_group, eventually, serving_leader

SMALL = {
    "store": {
        "segment_bytes": 64 * 1024,
        "retention_bytes": 300_000,
        "disk_free_min_bytes": 1,
        "snapshot_interval_s": 1000.0,
    },
    "timing": {"retention_check_s": 0.05, "drain_s": 0.3},
}


async def fill(client, first, count, topic="t"):
    for number in range(first, first + count):
        answer = await client.send(topic, b"%06d" % number + bytes(10_000))
        assert answer.code == 0, answer.remark


async def left_behind(brokers):
    """Stops a follower and goes on until its next entry is gone. Returns its configuration."""
    leader = await serving_leader(brokers)
    client = TestClient(leader.address)
    await fill(client, 0, 20)
    victim = next(broker for broker in brokers.values() if broker is not leader)
    config = victim.config
    last = victim.log.last_index
    await brokers.pop(config.replica_id).stop()
    await fill(client, 20, 130)
    await eventually(
        lambda: all(broker.log.first_index > last + 20 for broker in brokers.values()),
        "what the follower would need is gone",
    )
    await client.close()
    return config


async def check_equal(brokers, timeout_s=20.0):
    def equal():
        return (
            len({broker.store.applied_index for broker in brokers.values()}) == 1
            and len({broker.log.last_index for broker in brokers.values()}) == 1
            and len({broker.store.digest() for broker in brokers.values()}) == 1
        )

    await eventually(equal, "all replicas are equal", timeout_s)
    assert all(broker.failure is None for broker in brokers.values())


async def start(brokers, config):
    brokers[config.replica_id] = broker = Broker(config)
    await broker.start()
    return broker


async def refused_then_rebuilt(brokers, config):
    """An empty directory is not let in under its old name; prepares it for a new life."""
    name = config.replica_id
    broker = await start(brokers, config)
    async with asyncio.timeout(10):
        failure = await broker.wait_failed()
    assert isinstance(failure, ReplicaReplacedError)
    assert "dledger replica rebuild" in str(failure)
    await brokers.pop(name).stop()
    with pytest.raises(ReplicaRemovedError):  # at every start again
        await Broker(config).start()
    raft = (await serving_leader(brokers)).raft
    await raft.changes.remove(name)
    configuration = await raft.changes.add(
        name, config.replica.address, config.replica.raft_address
    )
    assert move_aside(config.data_directory, "then").name == "old-then"
    member = configuration.member(name)
    joining = Joining(name, member.incarnation, describe(configuration))
    write_joining(config.data_directory, joining)


@pytest.mark.parametrize("is_wiped", [False, True])
def test_a_replica_that_was_away_for_too_long_is_whole_again(tmp_path, is_wiped):
    async def run():
        async with broker_group(tmp_path, **SMALL) as brokers:
            config = await left_behind(brokers)
            if is_wiped:
                shutil.rmtree(config.data_directory)
                await refused_then_rebuilt(brokers, config)
            broker = await start(brokers, config)
            await check_equal(brokers)
            assert broker.log.first_index > 1
            await eventually(
                lambda: read_marker(config.data_directory) is None, "the log has reached the state"
            )
            # It serves reads, and it can lead and go on.
            leader = await serving_leader(brokers)
            await eventually(
                lambda: config.replica_id in leader.raft.configuration.voters, "it counts again"
            )
            await leader.raft.transfer_leadership(config.replica_id)
            assert (await serving_leader(brokers)) is broker
            client = TestClient(broker.address)
            await fill(client, 150, 3)
            # What came with the snapshot lies in one large segment, which may have been dropped
            # since; what was sent afterwards has not.
            answer = await client.pull("t", 151)
            assert [m.body[:6] for m in iter_stored(answer.body)] == [b"000151", b"000152"]
            await client.close()
            await check_equal(brokers)
            voters = (await serving_leader(brokers)).raft.configuration.voters
            assert len(voters) == 3
            # And it starts again from what it has.
            await brokers.pop(config.replica_id).stop()
            await start(brokers, config)
            await check_equal(brokers)

    asyncio.run(run())


class Killed(StoreError):
    pass


@pytest.mark.parametrize("step", range(6))
def test_a_crash_at_any_point_leaves_the_old_or_leads_to_the_new(tmp_path, step, monkeypatch):
    """The installation dies before its n-th step; a restart begins with what is on disk."""

    async def run():
        async with broker_group(tmp_path, **SMALL) as brokers:
            config = await left_behind(brokers)
            victim = await start_dying(brokers, config)
            await asyncio.wait_for(victim.wait_failed(), 20)
            await victim.stop()
            monkeypatch.undo()
            await start(brokers, config)
            await check_equal(brokers)

    async def start_dying(brokers, config):
        broker = Broker(config)
        await broker.start()
        installer, log, store = broker._parts.installer, broker.log, broker.store
        places = [
            (installer._snapshots, "adopt"),
            (installing, "copy_checked"),
            (installing, "write_marker"),
            (log, "reset_to"),
            (store, "replace"),
            (installer._snapshots, "use"),
        ]
        owner, name = places[step]

        def dies(*_arguments, **_names):
            raise Killed(f"killed before {name}")

        monkeypatch.setattr(owner, name, dies)
        return broker

    asyncio.run(run())
