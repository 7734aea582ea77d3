"""This replica's part in its Raft group: whom it begins with, and who it is."""

from __future__ import annotations

import random as random_module
from collections.abc import Callable

import msgspec

from broker.config import BrokerConfig, parse_address
from broker.installing import Installer
from broker.joining import read_joining
from broker.state_machine import BrokerStateMachine
from dledger.clock import Clock
from dledger.errors import StoreError
from dledger.raft.configuration import Configuration, Member, bootstrap
from dledger.raft.engine import Engine
from dledger.raft.node import RaftNode
from dledger.raft.transport import TcpTransport, TransportConfig
from dledger.remoting.members import GroupConfiguration, GroupMember
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


def describe(configuration: Configuration) -> GroupConfiguration:
    """Returns a configuration as clients and files see it."""
    return GroupConfiguration(
        index=configuration.index,
        term=configuration.term,
        next_incarnation=configuration.next_incarnation,
        members=tuple(
            GroupMember(
                id=member.id,
                number=member.number,
                incarnation=member.incarnation,
                address=member.address,
                raft_address=member.raft_address,
                is_voter=member.is_voter,
            )
            for member in configuration.members
        ),
    )


def _told(told: GroupConfiguration) -> Configuration:
    """Returns the configuration that a leader described."""
    members = tuple(Member(**msgspec.structs.asdict(member)) for member in told.members)
    return Configuration(
        members=members,
        next_incarnation=told.next_incarnation,
        index=told.index,
        term=told.term,
    )


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
    if joining is not None and joining.replica_id != config.replica_id:
        raise StoreError(
            f"{config.data_directory} was prepared for replica {joining.replica_id}, not for "
            f"{config.replica_id}"
        )
    return RaftNode(
        replica_id=config.replica_id,
        bootstrap=first_configuration(config) if joining is None else _told(joining.configuration),
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
