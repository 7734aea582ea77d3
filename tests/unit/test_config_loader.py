from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest

from dledger.config import FILE_BYTES_MAX, build_config, load_config, read_toml, render_toml
from dledger.errors import ConfigError


class Flush(Enum):
    SYNC = "sync"
    ASYNC = "async"


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    segment_bytes: int = 1024
    flush: Flush = Flush.SYNC
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.segment_bytes < 16:
            raise ConfigError("segment_bytes", self.segment_bytes, "must be at least 16")


@dataclass(frozen=True, kw_only=True)
class Replica:
    id: str
    port: int = 1


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    name: str
    port: int = 9876
    verbose: bool = False
    data_directory: Path = Path("data")
    limit: int | None = None
    mode: Literal["one", "two"] = "one"
    nameservers: tuple[str, ...] = ("127.0.0.1:9876",)
    numbers: list[int] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    store: StoreConfig = StoreConfig()
    replicas: tuple[Replica, ...] = ()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(text)
    return path


def test_fills_everything_from_toml(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        name = "a"
        port = 1
        verbose = true
        data_directory = "/x"
        limit = 7
        mode = "two"
        nameservers = ["h:1", "h:2"]
        numbers = [1, 2]
        [labels]
        zone = "east"
        [store]
        segment_bytes = 64
        flush = "async"
        ratio = 1
        [[replicas]]
        id = "r0"
        [[replicas]]
        id = "r1"
        port = 2
        """,
    )
    config = load_config(ServerConfig, path)
    assert config == ServerConfig(
        name="a",
        port=1,
        verbose=True,
        data_directory=Path("/x"),
        limit=7,
        mode="two",
        nameservers=("h:1", "h:2"),
        numbers=[1, 2],
        labels={"zone": "east"},
        store=StoreConfig(segment_bytes=64, flush=Flush.ASYNC, ratio=1.0),
        replicas=(Replica(id="r0"), Replica(id="r1", port=2)),
    )


def test_later_sources_win(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "file"\nport = 1\n[store]\nsegment_bytes = 64\nratio = 0.1\n')
    config = load_config(
        ServerConfig,
        path,
        env_prefix="DLEDGER_X",
        environ={
            "DLEDGER_X__PORT": "2",
            "DLEDGER_X__STORE__SEGMENT_BYTES": "128",
            "DLEDGER_X__VERBOSE": "on",
            "DLEDGER_X__NAMESERVERS": "a:1, b:2",
            "DLEDGER_X__REPLICAS": '[{id = "r", port = 5}]',
            "DLEDGER_X__LIMIT": "12",
            "DLEDGER_OTHER": "ignored",
        },
        overrides={"port": 3, "store.flush": "async", "mode": None, "store": {"ratio": "0.25"}},
    )
    assert config.name == "file"
    assert config.port == 3
    assert config.limit == 12
    assert config.verbose is True
    assert config.nameservers == ("a:1", "b:2")
    assert config.replicas == (Replica(id="r", port=5),)
    assert config.store == StoreConfig(segment_bytes=128, flush=Flush.ASYNC, ratio=0.25)


@pytest.mark.parametrize(
    ("values", "field_name", "text"),
    [
        pytest.param({"name": "a", "prot": 1}, "prot", "did you mean port?", id="near"),
        pytest.param({"name": "a", "zzzz": 1}, "zzzz", "known here", id="not near"),
        pytest.param(
            {"name": "a", "store": {"segment_byte": 1}},
            "store.segment_byte",
            "did you mean segment_bytes?",
            id="nested",
        ),
        pytest.param({}, "name", "is required", id="missing"),
        pytest.param({"name": 1}, "name", "must be a string", id="string"),
        pytest.param({"name": "a", "port": "1"}, "port", "must be a whole number", id="int"),
        pytest.param({"name": "a", "port": True}, "port", "must be a whole number", id="bool-int"),
        pytest.param({"name": "a", "verbose": 1}, "verbose", "true or false", id="bool"),
        pytest.param(
            {"name": "a", "store": {"ratio": "x"}}, "store.ratio", "must be a number", id="float"
        ),
        pytest.param(
            {"name": "a", "store": {"flush": "never"}}, "store.flush", "sync, async", id="enum"
        ),
        pytest.param({"name": "a", "mode": "three"}, "mode", "one, two", id="literal"),
        pytest.param({"name": "a", "nameservers": "h"}, "nameservers", "must be a list", id="list"),
        pytest.param({"name": "a", "numbers": ["x"]}, "numbers[0]", "whole number", id="item"),
        pytest.param({"name": "a", "labels": 1}, "labels", "must be a table", id="dict"),
        pytest.param({"name": "a", "store": 1}, "store", "must be a table", id="table"),
        pytest.param(
            {"name": "a", "replicas": [{"id": "x"}, {}]}, "replicas[1].id", "required", id="deep"
        ),
        pytest.param({"name": "a", "limit": "x"}, "limit", "whole number", id="optional"),
        pytest.param(
            {"name": "a", "store": {"segment_bytes": 1}},
            "store.segment_bytes",
            "at least 16",
            id="rule of a nested class",
        ),
    ],
)
def test_bad_values_name_the_field(values: dict[str, object], field_name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(ServerConfig, values)
    assert caught.value.field == field_name
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("DLEDGER_X__PORT", "many", "must be a whole number"),
        ("DLEDGER_X__VERBOSE", "perhaps", "must be true or false"),
        ("DLEDGER_X__STORE__RATIO", "x", "must be a number"),
        ("DLEDGER_X__PROT", "1", "did you mean port?"),
        ("DLEDGER_X__REPLICAS", "[{", "not a valid TOML value"),
        ("DLEDGER_X__STORE____X", "1", "empty part"),
        ("DLEDGER_X__PORT__X", "1", "valid TOML value|whole number|must be"),
    ],
)
def test_bad_environment(name: str, value: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config(
            ServerConfig, env_prefix="DLEDGER_X", environ={"DLEDGER_X__NAME": "a", name: value}
        )


def test_value_and_table_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match="at once"):
        load_config(
            ServerConfig,
            env_prefix="P",
            environ={"P__STORE": "x", "P__STORE__RATIO": "1"},
        )


def test_empty_text_of_an_optional_is_none() -> None:
    config = load_config(ServerConfig, overrides={"name": "a", "limit": ""})
    assert config.limit is None


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(ServerConfig, tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(ServerConfig, write(tmp_path, "name = "))
    with pytest.raises(ConfigError, match="at most"):
        load_config(ServerConfig, write(tmp_path, "#" * (FILE_BYTES_MAX + 1)))


def test_rendered_toml_reads_back(tmp_path: Path) -> None:
    values: dict[str, object] = {
        "name": 'a "quoted" \\ \n name \x7f',
        "port": 1,
        "ratio": 0.5,
        "verbose": False,
        "nameservers": ["a:1", "b:2"],
        "empty": [],
        "store": {"flush": "sync", "deep": {"x": 1}},
        "odd key": {"k.l": "v"},
        "replicas": [{"id": "r0", "inner": {"y": 2}}, {"id": "r1"}],
    }
    path = write(tmp_path, render_toml({**values, "absent": None}))
    assert read_toml(path) == values
    with pytest.raises(TypeError):
        render_toml({"x": object()})
