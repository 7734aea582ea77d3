"""A real cluster for the tests of applications: `LocalCluster`, `AsyncLocalCluster`.

Needs the servers' packages, which come with the same distribution; nothing else of `dledger`
imports them, and nothing imports this. Loaded when first used: the pytest plugin beside it is
imported by every run of pytest, whether or not that needs a cluster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dledger.testing.async_cluster import AsyncLocalCluster
    from dledger.testing.cluster import LocalCluster, Partition

__all__ = ["AsyncLocalCluster", "LocalCluster", "Partition"]

_HOMES = {
    "AsyncLocalCluster": "dledger.testing.async_cluster",
    "LocalCluster": "dledger.testing.cluster",
    "Partition": "dledger.testing.cluster",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dledger.testing' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
