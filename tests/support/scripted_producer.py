"""A producer against a scripted cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dledger.client.config import ProducerConfig, SessionConfig
from dledger.client.producer import AsyncProducer
from tests.support.fake_cluster import FakeCluster

QUICK = SessionConfig(request_timeout_s=1.0, connect_timeout_s=1.0, operation_timeout_s=2.0)


def producer_config(**settings: object) -> ProducerConfig:
    return ProducerConfig(session=QUICK, **settings)  # type: ignore[arg-type]


def run_producer(
    scenario: Callable[[FakeCluster, AsyncProducer], Awaitable[None]],
    settings: ProducerConfig | None = None,
    **cluster_settings: object,
) -> None:
    async def main() -> None:
        async with FakeCluster(**cluster_settings) as cluster:  # type: ignore[arg-type]
            cluster.create_topic("t")
            producer = AsyncProducer(
                "pg", nameserver=cluster.nameserver, config=settings or producer_config()
            )
            async with asyncio.timeout(20), producer:
                await scenario(cluster, producer)

    asyncio.run(main())


def distinct(bodies: list[bytes]) -> list[bytes]:
    return list(dict.fromkeys(bodies))
