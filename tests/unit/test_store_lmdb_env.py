"""The LMDB environment: room is made in time, and a full disk loses nothing."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dledger.errors import ConfigError, DiskFailureError, DiskFullError, StoreClosedError
from store.lmdb_env import (
    DATA_FILE,
    LmdbEnvironment,
    UnusableStateError,
    WriteTransaction,
)

MIB = 1 << 20


def opened(path: Path, *, map_bytes: int = MIB, map_bytes_max: int = 1 << 30) -> LmdbEnvironment:
    return LmdbEnvironment(
        path, database_names=("d",), map_bytes=map_bytes, map_bytes_max=map_bytes_max
    )


def put(environment: LmdbEnvironment, start: int, stop: int, *, estimate: int = 0) -> None:
    def operations(transaction: WriteTransaction) -> None:
        for number in range(start, stop):
            transaction.put(b"%08d" % number, bytes(1000), db=environment.databases["d"])

    environment.write(operations, bytes_estimate=estimate)


def count(environment: LmdbEnvironment) -> int:
    with environment.read() as transaction:
        return int(transaction.stat(environment.databases["d"])["entries"])


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Makes growing a file beyond `size` fail as a full disk does, for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_map_grows_before_it_is_full(tmp_path: Path) -> None:
    environment = opened(tmp_path)
    put(environment, 0, 3000, estimate=4_000_000)
    assert environment.map_bytes > 3_000_000
    assert count(environment) == 3000
    environment.close()


def test_map_grows_when_the_estimate_was_too_low(tmp_path: Path) -> None:
    environment = opened(tmp_path)
    put(environment, 0, 10_000)
    assert count(environment) == 10_000
    environment.close()


def test_a_map_at_its_limit_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    environment = opened(tmp_path, map_bytes=4 * MIB, map_bytes_max=4 * MIB)
    put(environment, 0, 1000)
    with pytest.raises(DiskFullError, match="limit"):
        put(environment, 1000, 9000)
    with pytest.raises(DiskFullError, match="limit"):
        put(environment, 1000, 1001, estimate=8 * MIB)
    assert count(environment) == 1000
    put(environment, 1000, 1001)
    environment.close()


@pytest.mark.parametrize("estimate", [20 * MIB, 0], ids=["seen before", "seen at the commit"])
def test_a_full_disk_refuses_and_recovers(tmp_path: Path, estimate: int) -> None:
    environment = opened(tmp_path, map_bytes=64 * MIB)
    put(environment, 0, 100)
    size = (tmp_path / DATA_FILE).stat().st_size
    with file_size_limit(size + 4096), pytest.raises(DiskFullError, match="no space"):
        put(environment, 100, 12_000, estimate=estimate)
    assert count(environment) == 100
    put(environment, 100, 12_000, estimate=estimate)
    assert count(environment) == 12_000
    environment.close()
    environment = opened(tmp_path, map_bytes=MIB)
    assert count(environment) == 12_000
    environment.close()


def test_no_room_for_an_empty_environment(tmp_path: Path) -> None:
    with file_size_limit(4096), pytest.raises(DiskFullError):
        opened(tmp_path)


def test_an_exception_aborts(tmp_path: Path) -> None:
    environment = opened(tmp_path)

    def operations(transaction: WriteTransaction) -> None:
        transaction.put(b"k", b"v", db=environment.databases["d"])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        environment.write(operations, bytes_estimate=0)
    assert count(environment) == 0
    environment.close()


def test_written_without_closing_in_order_is_there_after_reopening(tmp_path: Path) -> None:
    environment = opened(tmp_path)
    put(environment, 0, 10)
    environment.close()
    environment.close()
    with pytest.raises(StoreClosedError):
        count(environment)
    environment = opened(tmp_path)
    assert count(environment) == 10
    environment.sync()
    environment.close()


@pytest.mark.parametrize("content", [b"x" * 8192, bytes(8192)], ids=["garbage", "zeros"])
def test_files_that_are_not_an_environment(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DATA_FILE).write_bytes(content)
    with pytest.raises(UnusableStateError):
        opened(tmp_path)


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / DATA_FILE).mkdir()
    with pytest.raises(DiskFailureError, match=str(tmp_path)):
        opened(tmp_path)


def test_bad_map_size(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="map_bytes"):
        opened(tmp_path, map_bytes=1)
