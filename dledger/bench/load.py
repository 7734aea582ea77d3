"""What is to be measured."""

from __future__ import annotations

from dataclasses import dataclass

from dledger.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Load:
    """A load on a cluster.

    Attributes:
        nameserver: `host:port`, several joined by `;`.
        topic: Where messages go; made if it does not exist.
        queues: Its queues, when it is made.
        messages: How many are sent or read.
        size_bytes: Of each body.
        window: Messages under way at a time.
        rate_per_s: Offered by loads that do not go as fast as they can.
        batch: Messages in an explicit batch.
        groups: Consumer groups that read the same messages.
    """

    nameserver: str
    topic: str = "dledger_bench"
    queues: int = 4
    messages: int = 100_000
    size_bytes: int = 1024
    window: int = 1000
    rate_per_s: float = 1000.0
    batch: int = 100
    groups: int = 10

    def __post_init__(self) -> None:
        for name in ("queues", "messages", "size_bytes", "window", "rate_per_s", "batch", "groups"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"bench.{name}", getattr(self, name), "must be greater than 0")
