"""This replica's part in its Raft group: whom it begins with, and who it is."""

from __future__ import annotations

import random as random_module
from collections.abc import Callable

from broker.config import BrokerConfig, parse_address
from broker.installing import Installer
from broker.joining import read_joining
from broker.state_machine import BrokerStateMachine
from dledger.clock import Clock
from dledger.raft.configuration import Configuration, Member, bootstrap
from dledger.raft.engine import Engine
from dledger.raft.node import RaftNode
from dledger.raft.transport import TcpTransport, TransportConfig
from store.commit_log import CommitLog


def first_configuration(config: BrokerConfig) -> Configuration:
    """Returns the configuration that `broker.toml` gives a new group."""
    members = [
        Member(
            id=replica.id,
            number=number,
            address=replica.address,
            raft_address=replica.raft_address,
        )
        for number, replica in enumerate(config.replicas)
    ]
    return bootstrap(members)


def make_raft(
    config: BrokerConfig,
    log: CommitLog,
    machine: BrokerStateMachine,
    installer: Installer,
    *,
    clock: Clock,
    random: random_module.Random,
    on_fatal: Callable[[BaseException], None],
    engine_class: type[Engine],
    transport_class: type[TcpTransport],
) -> RaftNode:
    """Returns this replica's node, not started.

    Raises:
        StoreError: The data directory belongs to another replica, or cannot be written.
        ReplicaRemovedError: This replica was removed from its group.
    """
    transport = transport_class(
        TransportConfig(
            cluster_name=config.cluster_name,
            group_name=config.broker_name,
            replica_id=config.replica_id,
            listen_host=config.listen_host,
            listen_port=parse_address(config.replica.raft_address)[1],
        ),
        random,
    )
    joining = read_joining(config.data_directory)
    return RaftNode(
        replica_id=config.replica_id,
        bootstrap=first_configuration(config) if joining is None else joining.configuration,
        config=config.raft,
        log=log,
        machine=machine,
        transport=transport,
        clock=clock,
        random=random,
        on_fatal=on_fatal,
        snapshots=installer,
        engine_class=engine_class,
        incarnation=0 if joining is None else joining.incarnation,
    )
