"""broker.toml: what is accepted and how what is not is named."""

import pytest

from broker.config import BrokerConfig, load_broker_config, parse_address
from dledger.config import build_config
from dledger.errors import ConfigError

MINIMAL = """
replica_id = "broker-a-1"
data_directory = "/tmp/data"
nameservers = ["127.0.0.1:9876"]
[[replicas]]
id = "broker-a-0"
address = "127.0.0.1:10911"
raft_address = "127.0.0.1:10912"
[[replicas]]
id = "broker-a-1"
address = "127.0.0.1:10921"
raft_address = "127.0.0.1:10922"
[[replicas]]
id = "broker-a-2"
address = "127.0.0.1:10931"
raft_address = "127.0.0.1:10932"
[store]
flush = "async"
[raft]
heartbeat_ms = 50
"""


def replica(number=0):
    return {
        "id": f"r{number}",
        "address": f"127.0.0.1:{1000 + number}",
        "raft_address": f"127.0.0.1:{2000 + number}",
    }


def values(**changes):
    base = {"replica_id": "r0", "replicas": [replica()], "data_directory": "/tmp/x"}
    return {**base, **changes}


def test_a_file_is_read_whole(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(MINIMAL)
    config = load_broker_config(path)
    assert config.number == 1
    assert config.follower_broker_id == 2
    assert config.port == 10921
    assert config.store.flush == "async"
    assert config.raft.heartbeat_ms == 50
    assert config.advertised_address(5) == ("127.0.0.1", 10921)


def test_port_zero_is_advertised_as_bound():
    own = {"id": "r0", "address": "127.0.0.1:0", "raft_address": "127.0.0.1:0"}
    config = build_config(BrokerConfig, values(replicas=[own], advertised_host="10.0.0.7"))
    assert config.advertised_address(4711) == ("10.0.0.7", 4711)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"replica_id": "r9"}, "replica_id"),
        ({"replicas": []}, "replicas"),
        ({"replicas": [replica(number) for number in range(10)]}, "replicas"),
        ({"replicas": [replica(0), replica(1), replica(1)]}, "replicas"),
        ({"replicas": [replica(0), replica(1), {**replica(2), "id": "r1"}]}, "replicas"),
        ({"replicas": [{**replica(), "address": "nowhere"}]}, r"replicas\[0\]\.address"),
        ({"replicas": [{**replica(), "id": "../x"}]}, r"replicas\[0\]\.id"),
        ({"broker_name": "a b"}, "broker_name"),
        ({"cluster_name": ""}, "cluster_name"),
        ({"listen_port": 70000}, "listen_port"),
        ({"nameservers": ["x:y"]}, "nameservers"),
        ({"nameservers": ["a:1", "a:1"]}, "nameservers"),
        ({"nameserver": ["a:1"]}, "did you mean nameservers"),
        ({"store": {"flush": "never"}}, r"store\.flush"),
        ({"store": {"segment_bytes": 5}}, r"store\.segment_bytes"),
        ({"store": {"segment_bytes": 2**32}}, r"store\.segment_bytes"),
        ({"limits": {"connections_max": 0}}, r"limits\.connections_max"),
        ({"limits": {"frame_bytes_max": 1000}}, r"limits\.frame_bytes_max"),
        (
            {"limits": {"inflight_per_connection_max": 5}},
            r"limits\.parked_pulls_per_connection_max",
        ),
        ({"timing": {"drain_s": 0.0}}, r"timing\.drain_s"),
        ({"timing": {"suspend_max_s": 500.0}}, r"timing\.suspend_max_s"),
        ({"default_queue_count": 100_000}, "default_queue_count"),
    ],
)
def test_wrong_values_are_named(changes, field):
    with pytest.raises(ConfigError, match=field):
        build_config(BrokerConfig, values(**changes))


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "host:x", "host:65536", "host:-1"])
def test_addresses_are_checked(text):
    with pytest.raises(ConfigError, match="must"):
        parse_address(text)
