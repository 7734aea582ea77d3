"""The checks that our client also passes against Apache RocketMQ, here against our own brokers."""

import asyncio

import pytest

from dledger.testing import LocalCluster
from interop.apache.checks import CHECKS
from interop.apache.place import Place

TRANSACTIONS = {"immunity_s": 1.0, "check_interval_s": 1.0}


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(settings={"transactions": TRANSACTIONS}) as cluster:
        yield cluster


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_check(check, cluster):
    name = check.__name__.replace("_", "-")

    def crash():
        cluster.kill_leader()
        cluster.restart()

    asyncio.run(check(Place(nameserver=cluster.nameserver, name=name, is_ours=True, crash=crash)))
