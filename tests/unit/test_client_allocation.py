"""The allocation strategies answer what the official Java client answers.

The vectors come from rocketmq-client 4.9.4: interop/apache/AllocationVectors.java.
"""

import json
from pathlib import Path

import pytest

from dledger.allocation import strategy
from dledger.client.config import PushConsumerConfig
from dledger.errors import ConfigError
from dledger.model import MessageQueue

VECTORS = Path(__file__).parent / "testdata" / "allocation_4.9.4.jsonl"
OPTIONS = {
    "CONSISTENT_HASH:3": {"virtual_nodes": 3},
    "MACHINE_ROOM:east,x": {"rooms": ["east", "x"]},
}


def queue_of(text):
    broker_name, queue_id = text.split(" ")
    return MessageQueue("orders", broker_name, int(queue_id))


@pytest.mark.parametrize(
    "name", ["AVG", "AVG_BY_CIRCLE", "CONSISTENT_HASH", "CONSISTENT_HASH:3", "MACHINE_ROOM:east,x"]
)
def test_shares_are_those_of_the_official_client(name):
    vectors = [json.loads(line) for line in VECTORS.read_text().splitlines()]
    chosen = [vector for vector in vectors if vector["strategy"] == name]
    assert len(chosen) >= 15
    allocate = strategy(name.partition(":")[0], **OPTIONS.get(name, {}))
    for vector in chosen:
        queues = [queue_of(text) for text in vector["queues"]]
        for member, share in vector["shares"].items():
            found = allocate(queues[::-1], [*vector["shares"]][::-1], member)
            assert found == sorted(queue_of(text) for text in share), (member, vector)


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("strategy", {"strategy": "BEST"}),
        ("strategy_rooms", {"strategy": "MACHINE_ROOM"}),
        ("strategy_rooms", {"strategy_rooms": ["east"]}),
        ("strategy_queues", {"strategy": "CONFIG"}),
        ("strategy_queues", {"strategy_queues": [MessageQueue("t", "b", 0)]}),
        ("strategy_virtual_nodes", {"strategy_virtual_nodes": 0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, settings):
    with pytest.raises(ConfigError, match=field):
        PushConsumerConfig(**settings)
