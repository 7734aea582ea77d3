"""The pytest fixtures, in a pytest of their own as a user's project runs them."""

pytest_plugins = ["pytester"]

TESTS = """
from dledger import Message, Producer

seen = []


def test_one(dledger_cluster, dledger_topic):
    with Producer("p", nameserver=dledger_cluster.nameserver) as producer:
        assert producer.send(Message(dledger_topic, b"x")).queue.topic == dledger_topic
    seen.append((dledger_cluster, dledger_topic))
    dledger_cluster.kill_leader()


def test_two(dledger_cluster, dledger_topic):
    assert "down" not in [dledger_cluster.state(name) for name in dledger_cluster.replicas()]
    [(cluster, topic)] = seen
    assert topic != dledger_topic
    assert (cluster is dledger_cluster) is SHARED
    assert len(cluster.replicas()) == REPLICAS or not SHARED
"""


def make(pytester, text, settings=""):
    pytester.makeini(f"[pytest]\nfilterwarnings = error\n{settings}\n")
    pytester.makepyfile(text)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider")


def test_one_cluster_for_the_session_and_a_topic_for_each_test(pytester):
    text = TESTS.replace("SHARED", "True").replace("REPLICAS", "3")
    make(pytester, text).assert_outcomes(passed=2)


def test_scope_and_size_are_settings(pytester):
    text = TESTS.replace("SHARED", "False").replace("REPLICAS", "1")
    settings = "dledger_cluster_scope = function\ndledger_replicas = 1"
    make(pytester, text.replace("kill_leader()", "pause(dledger_cluster.leader())"), settings)
    result = make(pytester, text, settings)
    result.assert_outcomes(passed=2)


def test_wrong_settings_are_named(pytester):
    for setting, text in (
        ("dledger_replicas = 4", "dledger_replicas must be 1, 3 or 5, not '4'"),
        ("dledger_groups = 0", "dledger_groups must be a number from 1, not '0'"),
        ("dledger_cluster_scope = planet", "dledger_cluster_scope must be one of session, "),
    ):
        result = make(pytester, TESTS, setting)
        assert result.ret == 4  # usage, before anything runs
        [line] = [line for line in result.errlines if line.strip()]
        assert text in line


def test_a_run_without_the_fixtures_loads_no_cluster(pytester):
    text = "import sys\ndef test_it(): assert 'dledger.testing.cluster' not in sys.modules\n"
    make(pytester, text).assert_outcomes(passed=1)
