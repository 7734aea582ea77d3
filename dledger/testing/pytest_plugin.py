"""Fixtures for pytest, there as soon as the distribution is installed.

    def test_order(dledger_cluster, dledger_topic):
        with Producer("shop", nameserver=dledger_cluster.nameserver) as producer:
            producer.send(Message(dledger_topic, b"..."))

pytest loads this module in every run, so it loads the cluster only when a test asks for it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dledger.testing.cluster import LocalCluster

_SCOPES = ("session", "package", "module", "class", "function")
_SIZES = ("1", "3", "5")
_TOPIC_NAME_MAX = 100
_COUNTER = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the settings of the fixtures, for pytest.ini or pyproject.toml."""
    parser.addini(
        "dledger_cluster_scope", "scope of the fixture dledger_cluster", default="session"
    )
    parser.addini("dledger_replicas", "replicas of each broker group: 1, 3 or 5", default="3")
    parser.addini("dledger_groups", "broker groups of dledger_cluster", default="1")


def pytest_configure(config: pytest.Config) -> None:
    """Refuses settings that mean nothing, in one line, before anything runs."""
    scope = config.getini("dledger_cluster_scope")
    if scope not in _SCOPES:
        raise pytest.UsageError(
            f"dledger_cluster_scope must be one of {', '.join(_SCOPES)}, not {scope!r}"
        )
    replicas = str(config.getini("dledger_replicas"))
    if replicas not in _SIZES:
        raise pytest.UsageError(f"dledger_replicas must be 1, 3 or 5, not {replicas!r}")
    _number(config, "dledger_groups")


def _scope(fixture_name: str, config: pytest.Config) -> str:
    return str(config.getini("dledger_cluster_scope"))


def _number(config: pytest.Config, name: str) -> int:
    text = str(config.getini(name))
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise pytest.UsageError(f"{name} must be a number from 1, not {text!r}")
    return int(text)


@pytest.fixture(scope=_scope)  # type: ignore[arg-type]
def dledger_cluster(pytestconfig: pytest.Config) -> Iterator[LocalCluster]:
    """A running `LocalCluster`; one for the whole session unless `dledger_cluster_scope` differs.

    A test that hurts it should mend it: `restart()`, `resume()`, `heal()`. What tests left broken
    is mended before the next `dledger_topic`.
    """
    from dledger.testing.cluster import LocalCluster

    replicas = _number(pytestconfig, "dledger_replicas")
    with LocalCluster(replicas, _number(pytestconfig, "dledger_groups")) as cluster:
        yield cluster


@pytest.fixture
def dledger_topic(request: pytest.FixtureRequest, dledger_cluster: LocalCluster) -> Iterator[str]:
    """The name of a topic of four queues that only this test uses; deleted after it."""
    dledger_cluster.mend()
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", str(request.node.name))[:_TOPIC_NAME_MAX].strip("-")
    name = f"{stem}-{next(_COUNTER)}"
    dledger_cluster.create_topic(name)
    yield name
    dledger_cluster.mend()
    dledger_cluster.delete_topic(name)
