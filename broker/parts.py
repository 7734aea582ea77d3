"""What a running broker consists of, and what it says while it does not run."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from broker.catalog import Catalog
from broker.context import BrokerContext
from broker.installing import Installer
from broker.live_settings import LiveSettings
from broker.metrics_server import MetricsServer
from broker.offset_commits import OffsetCommits
from broker.popping import Popping
from broker.processors.clients import ClientProcessor
from broker.processors.pull import PullProcessor
from broker.registration import Registrar
from broker.stores import Stores
from broker.timers import TimerDelivery
from broker.transaction_service import TransactionService
from dledger.codes import ResponseCode
from dledger.errors import ConfigError, RequestError
from dledger.message import pack_host
from dledger.raft.node import RaftNode
from dledger.remoting.client import RemotingClient
from store.commit_log import CommitLog
from store.state_store import StateStore


@dataclass(slots=True)
class Parts:
    """What exists while the broker runs."""

    context: BrokerContext
    raft: RaftNode
    stores: Stores
    installer: Installer
    client: RemotingClient
    catalog: Catalog
    commits: OffsetCommits
    pulls: PullProcessor
    popping: Popping
    clients: ClientProcessor
    registrar: Registrar
    timers: TimerDelivery
    transactions: TransactionService
    live: LiveSettings
    metrics: MetricsServer

    @property
    def log(self) -> CommitLog:
        """The CommitLog."""
        return self.stores.log

    @property
    def store(self) -> StateStore:
        """The state as applied here."""
        return self.stores.store


class BrokerNotReadyError(RequestError):
    """The replica does not run (yet). Nothing was done."""

    retryable = True
    response_code = ResponseCode.SERVICE_NOT_AVAILABLE


def pack_store_host(host: str, port: int) -> bytes:
    """Returns the address in message ids: IPv4, since several clients read nothing else.

    Raises:
        ConfigError: The host has no IPv4 address.
    """
    try:
        ip = socket.gethostbyname(host)
    except OSError as error:
        raise ConfigError("advertised_host", host, f"has no IPv4 address: {error}") from error
    return pack_host(ip, port)
