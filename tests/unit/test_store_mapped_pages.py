"""What is mapped of a file is given back, and nothing is lost by that."""

from __future__ import annotations

import mmap
from functools import partial
from pathlib import Path

import pytest

import store.lmdb_env
from store.lmdb_env import LmdbEnvironment, WriteTransaction
from store.mapped_pages import MappedPages, resident_file_bytes

MIB = 1 << 20


def resident() -> int:
    found = resident_file_bytes()
    assert found is not None
    return found


def touch(mapping: mmap.mmap) -> int:
    return sum(mapping[at] for at in range(0, len(mapping), mmap.PAGESIZE))


def mapped(path: Path, access: int = mmap.PROT_READ) -> mmap.mmap:
    path.write_bytes(b"\x01" * (16 * MIB))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, access)


def test_pages_beyond_the_limit_are_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "with a blank"
    with mapped(path) as mapping:
        pages = MappedPages(path, release_after_bytes=8 * MIB)
        before = resident()
        assert touch(mapping) == 16 * MIB // mmap.PAGESIZE
        assert resident() > before + 12 * MIB
        pages.look()
        assert resident() < before + 4 * MIB
        assert touch(mapping) == 16 * MIB // mmap.PAGESIZE


def test_pages_within_the_limit_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with mapped(path) as mapping:
        pages = MappedPages(path, release_after_bytes=64 * MIB)
        touch(mapping)
        before = resident()
        pages.look()
        assert resident() > before - 4 * MIB


def test_no_other_mapping_is_touched(tmp_path: Path) -> None:
    with mapped(tmp_path / "file") as mapping:
        pages = MappedPages(tmp_path / "other", release_after_bytes=MIB)
        touch(mapping)
        before = resident()
        pages.look()
        assert resident() > before - 4 * MIB


def test_a_mapping_that_may_be_written_to_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with mapped(path, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        pages = MappedPages(path, release_after_bytes=MIB)
        touch(mapping)
        before = resident()
        pages.look()
        assert resident() > before - 4 * MIB


def environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> LmdbEnvironment:
    small = partial(MappedPages, release_after_bytes=4 * MIB)
    monkeypatch.setattr(store.lmdb_env, "MappedPages", small)
    return LmdbEnvironment(path, database_names=("d",), map_bytes=256 * MIB, map_bytes_max=1 << 30)


def fill(target: LmdbEnvironment, start: int, stop: int) -> None:
    def operations(transaction: WriteTransaction) -> None:
        for number in range(start, stop):
            transaction.put(b"%08d" % number, bytes(1000), db=target.databases["d"])

    target.write(operations, bytes_estimate=MIB)


def read_all(target: LmdbEnvironment, stop: int) -> None:
    for number in range(0, stop, 8):
        with target.read() as transaction:
            assert transaction.get(b"%08d" % number, db=target.databases["d"]) == bytes(1000)


def test_a_state_takes_no_more_memory_the_larger_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = environment(tmp_path, monkeypatch)
    before = resident()
    for start in range(0, 40_000, 100):
        fill(target, start, start + 100)
    assert target.used_bytes() > 40 * MIB
    assert resident() < before + 12 * MIB
    read_all(target, 40_000)
    assert resident() < before + 12 * MIB
    target.close()


def test_a_copy_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "live").mkdir()
    (tmp_path / "copy").mkdir()
    target = environment(tmp_path / "live", monkeypatch)
    for start in range(0, 40_000, 100):
        fill(target, start, start + 100)
    before = resident()
    target.begin_copy()
    target.copy_to(tmp_path / "copy")
    assert resident() > before + 20 * MIB
    target.end_copy()
    assert resident() < before + 12 * MIB
    read_all(target, 40_000)
    target.close()
