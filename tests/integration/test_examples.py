"""Every example runs against a real cluster and prints what it should."""

import runpy
from pathlib import Path

import pytest

from dledger.client.config import NAMESERVER_VARIABLE
from dledger.testing import LocalCluster

pytest_plugins = ["pytester"]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ORDERS = [f"order-{number} created paid shipped" for number in (1, 2, 3)]
FIVE = [f"hello {number}" for number in range(5)]
PRINTS = {
    "admin": ["found by key: 5", "found by id: 5", "messages: 6", "lag: 0", "lag: 6"],
    "batch": ["line 0", "line 1", "line 2"],
    "broadcast": ["here one two", "there one two"],
    "delay": ["in a second", "half a second later"],
    "filters": [
        "card or cheque: ['card 5', 'card 500', 'cheque 5000']",
        "large, no cheque: ['card 500', 'cash 50']",
    ],
    "ordered": ORDERS,
    "produce_consume": FIVE,
    "pull_seek": [
        "from offset 4: ['entry 4', 'entry 5']",
        "since noon: ['entry 3', 'entry 4', 'entry 5']",
        "the first: ['entry 0']",
        "committed: 1",
    ],
    "request_reply": ["HOW LOUD?"],
    "retry_dead_letters": [
        "processed: fails once fine",
        "dead letter: broken - no address",
        "processed: broken fails once fine",
    ],
    "retry_dead_letters_async": [
        "processed: fails once fine",
        "dead letter: broken - no address",
        "processed: broken",
    ],
    "simple_consumer": [
        "done: resize",
        "done: mail",
        "again: crash after 1 failure",
        "left: 0",
    ],
    "transaction": [
        "cheap COMMIT",
        "too expensive ROLLBACK",
        "fair COMMIT",
        "consumed: cheap fair",
    ],
}
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith("test_"))


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster() as cluster:
        yield cluster


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_prints_what_it_should(name, cluster, monkeypatch, capsys):
    monkeypatch.setenv(NAMESERVER_VARIABLE, cluster.nameserver)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    expected = PRINTS.get(name) or PRINTS[name.removesuffix("_async")]
    assert capsys.readouterr().out.splitlines() == expected


def test_there_is_one_of_each_kind_in_both_forms():
    names = {name.removesuffix("_async") for name in PROGRAMS}
    assert sorted([*names, *(f"{name}_async" for name in names)]) == PROGRAMS


def test_the_embedded_cluster_in_a_users_tests(pytester):
    pytester.copy_example(str(EXAMPLES / "test_embedded_cluster.py"))
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)
