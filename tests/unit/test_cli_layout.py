from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.config import load_broker_config
from cli.errors import CommandError, ExitCode, UsageError
from cli.layout import (
    ClusterSpec,
    layout_path,
    load_layout,
    plan,
    save_layout,
    with_group,
    with_replica,
    without_replica,
)


def test_ports_follow_one_another() -> None:
    layout = plan(ClusterSpec(groups=2, replicas=3, nameservers=2, port_base=9000))
    assert layout.nameserver_addresses == "127.0.0.1:9000;127.0.0.1:9001"
    ports = [
        int(address.rpartition(":")[2])
        for _, replica in layout.replicas()
        for address in (replica.address, replica.raft_address)
    ]
    assert ports == list(range(9002, 9014))
    assert layout.spec.port_count == 14
    assert [replica.id for _, replica in layout.replicas()] == [
        *("broker-a-0", "broker-a-1", "broker-a-2"),
        *("broker-b-0", "broker-b-1", "broker-b-2"),
    ]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"groups": 0}, "--groups"),
        ({"groups": 27}, "--groups"),
        ({"replicas": 2}, "--replicas"),
        ({"nameservers": 0}, "--nameservers"),
        ({"port_base": 0}, "--port-base"),
        ({"port_base": 65_530}, "--port-base"),
    ],
)
def test_impossible_clusters(values: dict[str, int], text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        ClusterSpec(**values)  # type: ignore[arg-type]
    assert caught.value.exit_code == ExitCode.USAGE


def test_plan_survives_on_disk_and_brokers_accept_their_configuration(tmp_path: Path) -> None:
    spec = ClusterSpec(port_base=9000, settings={"store": {"segment_bytes": 65536}})
    save_layout(tmp_path / "data", plan(spec))
    layout = load_layout(tmp_path / "data")
    assert layout == plan(spec)
    config = load_broker_config(tmp_path / "data" / "broker-a-2" / "broker.toml")
    assert config.replica_id == "broker-a-2"
    assert config.port == 9005
    assert config.nameservers == ["127.0.0.1:9000"]
    assert [replica.id for replica in config.replicas] == [f"broker-a-{n}" for n in range(3)]
    assert config.data_directory == tmp_path / "data" / "broker-a-2"
    assert config.store.segment_bytes == 65536


def test_one_more_group_follows_and_leaves_the_others_alone(tmp_path: Path) -> None:
    first = plan(ClusterSpec(replicas=3, port_base=9000))
    save_layout(tmp_path, first)
    edited = tmp_path / "broker-a-0" / "broker.toml"
    edited.write_text(edited.read_text() + "\n# edited\n")
    more = with_group(with_group(first, 1), 5)
    assert [(group.name, len(group.replicas)) for group in more.groups] == [
        ("broker-a", 3),
        ("broker-b", 1),
        ("broker-c", 5),
    ]
    assert more.groups[1].replicas[0].address == "127.0.0.1:9007"
    assert more.groups[2].replicas[4].raft_address == "127.0.0.1:9018"
    save_layout(tmp_path, more, new_replicas=[r.id for r in more.groups[-1].replicas])
    assert load_layout(tmp_path) == more
    assert edited.read_text().endswith("# edited\n")
    config = load_broker_config(tmp_path / "broker-c-4" / "broker.toml")
    assert config.broker_name == "broker-c"
    with pytest.raises(UsageError, match="--replicas"):
        with_group(first, 2)
    with pytest.raises(UsageError, match="ports"):
        with_group(plan(ClusterSpec(replicas=1, port_base=65_530)), 3)


def test_a_new_replica_shares_the_address_of_its_group(tmp_path: Path) -> None:
    def shared(replica: str) -> str | None:
        return load_broker_config(tmp_path / replica / "broker.toml").shared_address

    layout = plan(ClusterSpec(port_base=9000))
    save_layout(tmp_path, layout)
    assert {shared(f"broker-a-{n}") for n in range(3)} == {"127.0.0.2:9001"}
    layout = without_replica(layout, "broker-a", "broker-a-0")
    layout, new = with_replica(layout, "broker-a")
    assert new.id == "broker-a-0"
    save_layout(tmp_path, layout, new_replicas=[new.id])
    assert shared(new.id) == "127.0.0.2:9001", "although nobody listens on 9001 any more"
    for number in range(3):  # somebody does without
        path = tmp_path / f"broker-a-{number}" / "broker.toml"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if "shared_address" not in line))
    layout, new = with_replica(layout, "broker-a")
    save_layout(tmp_path, layout, new_replicas=[new.id])
    assert shared(new.id) is None
    (tmp_path / "broker-a-1" / "broker.toml").write_text("[")
    layout, new = with_replica(layout, "broker-a")
    with pytest.raises(CommandError, match=r"broker\.toml"):
        save_layout(tmp_path, layout, new_replicas=[new.id])


def test_unusable_plans(tmp_path: Path) -> None:
    assert load_layout(tmp_path) is None
    layout_path(tmp_path).write_text("{")
    with pytest.raises(CommandError, match="not a cluster plan"):
        load_layout(tmp_path)
    layout_path(tmp_path).write_text(json.dumps({"version": 99}))
    with pytest.raises(CommandError, match="version 99"):
        load_layout(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match="cannot write"):
        save_layout(tmp_path / "file", plan(ClusterSpec()))
    with pytest.raises(CommandError, match="cannot read"):
        load_layout(tmp_path / "file")
