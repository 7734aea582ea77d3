"""Which settings change while the broker runs, and how."""

import pytest

from broker.config import BrokerConfig
from broker.feature_commands import FEATURE_TYPES, decode_feature, encode_feature
from broker.live_settings import (
    CHANGEABLE,
    LiveSettings,
    PutSettings,
    Scope,
    apply_settings,
    parse_properties,
)
from dledger.config import build_config, change_config
from dledger.errors import ConfigError, InvalidParameterError


class Rows:
    def __init__(self, **rows):
        self.rows = rows

    def scan(self, _database, _prefix):
        return [(name.encode(), value.encode()) for name, value in self.rows.items()]


def config():
    replica = {"id": "a", "address": "127.0.0.1:1", "raft_address": "127.0.0.1:2"}
    return build_config(
        BrokerConfig, {"replica_id": "a", "replicas": [replica], "data_directory": "/tmp/x"}
    )


def test_everything_changeable_exists_and_takes_its_own_value():
    base = config()
    for name in CHANGEABLE:
        value = base
        for part in name.split("."):
            value = getattr(value, part)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        assert change_config(base, {name: text}) == base


def test_what_was_set_here_goes_before_the_groups_and_that_before_the_file():
    live = LiveSettings(config(), Rows(auto_create_topics="false", log_level="ERROR"))
    assert live.current().auto_create_topics is False
    live.set_here({"log_level": "DEBUG"})
    assert live.current().log_level == "DEBUG"
    live.set_here({"log_level": "default"})
    assert live.current().log_level == "ERROR"
    assert live.current().auto_create_groups is True


def test_a_stored_value_that_makes_no_sense_is_ignored():
    live = LiveSettings(config(), Rows(default_queue_count="-5", auto_create_topics="false"))
    assert live.current().default_queue_count == 8
    assert live.current().auto_create_topics is False


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"store.segment_bytes": "1"}, "cannot be changed while the broker runs"),
        ({"nonsense": "1"}, "cannot be changed"),
        ({"default_queue_count": "0"}, "default_queue_count"),
        ({"default_queue_count": "many"}, "default_queue_count"),
        ({"log_level": "LOUD"}, "log_level"),
        ({"log_level": "INFO", "auto_create_topics": "true"}, "apart"),
        ({}, "at least one"),
        ({"log_level": ""}, "characters"),
    ],
)
def test_bad_changes_are_refused(changes, text):
    with pytest.raises(InvalidParameterError, match=text):
        LiveSettings(config(), Rows()).check(changes)


def test_scopes():
    live = LiveSettings(config(), Rows())
    assert live.check({"log_level": "INFO"}) is Scope.REPLICA
    assert live.check({"auto_create_topics": "default"}) is Scope.GROUP


def test_properties_as_java_writes_them():
    text = "#Sun Nov 22\nauto_create_topics=false\n a = b\\:c \n\n"
    assert parse_properties(text) == {"auto_create_topics": "false", "a": "b:c"}
    with pytest.raises(InvalidParameterError):
        parse_properties("nothing")


def test_change_config_names_what_is_wrong():
    with pytest.raises(ConfigError, match=r"store\.nothing|nothing"):
        change_config(config(), {"store.nothing": "1"})


class Changes:
    """Rows as an entry being applied sees them."""

    def __init__(self):
        self.rows = {}

    def get(self, _database, key):
        return self.rows.get(key)

    def put(self, _database, key, value):
        self.rows[key] = value

    def delete(self, _database, key):
        self.rows.pop(key, None)


def test_the_command_as_it_stands_in_logs():
    body = encode_feature(PutSettings([("a", "1"), ("b", "default")]))
    assert body == bytes.fromhex("6001919292a161a13192a162a764656661756c74")
    assert body[0] in FEATURE_TYPES
    assert decode_feature(body) == PutSettings([("a", "1"), ("b", "default")])


def test_applying_counts_what_changed_and_default_removes():
    rows = Changes()
    assert apply_settings(rows, PutSettings([("a", "1"), ("b", "2")])) == 2
    assert apply_settings(rows, PutSettings([("a", "1"), ("b", "default"), ("c", "default")])) == 1
    assert rows.rows == {b"a": b"1"}
