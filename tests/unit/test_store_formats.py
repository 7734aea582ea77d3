"""Every format of the CommitLog, pinned by golden files. A new version adds a file."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from dledger.errors import ConfigError, Corruption
from store.config import StoreConfig
from store.index_file import decode_index, encode_index
from store.mark_file import decode_slot, encode_slot
from store.record import (
    HEADER_BYTES,
    LogEntry,
    RecordScanner,
    ScanStop,
    decode_records,
    encode_record,
    find_record,
)
from store.segment import parse_segment_name, segment_name
from store.tail_cache import TailCache
from store.vote_file import Vote, decode_vote, encode_vote

TESTDATA = Path(__file__).parent / "testdata"
GOLDEN_LOG = [
    (1 << 40, 7, 3, b""),
    ((1 << 40) + 40, 8, 3, b"hello, log"),
    ((1 << 40) + 90, 9, 1 << 33, bytes(range(256))),
]


def golden(name: str) -> bytes:
    return bytes.fromhex((TESTDATA / name).read_text())


def test_records_are_the_golden_bytes() -> None:
    data = b"".join(encode_record(*record) for record in GOLDEN_LOG)
    assert data == golden("store_records_v1.hex")


def test_golden_records_are_read() -> None:
    data = golden("store_records_v1.hex")
    entries = decode_records(memoryview(data), 1 << 20)
    assert [(e.index, e.term, bytes(e.body)) for e in entries] == [r[1:] for r in GOLDEN_LOG]
    assert [bytes(e.record) for e in entries] == [encode_record(*r) for r in GOLDEN_LOG]
    scanner = RecordScanner(memoryview(data), 1 << 40, index=6, term=0, record_bytes_max=1 << 20)
    assert scanner.advance(1 << 20) is ScanStop.END
    assert list(scanner.positions) == [0, 40, 90]
    assert scanner.term_runs == [(7, 3), (9, 1 << 33)]
    assert (scanner.position, scanner.index, scanner.term) == (len(data), 9, 1 << 33)


def test_a_scan_may_be_done_in_steps() -> None:
    data = golden("store_records_v1.hex") + bytes(100)
    scanner = RecordScanner(memoryview(data), 1 << 40, index=0, term=0, record_bytes_max=1 << 20)
    stops = [scanner.advance(1) for _ in range(4)]
    assert stops == [None, None, None, ScanStop.BLANK]
    assert len(scanner.positions) == 3


@pytest.mark.parametrize("blank_bytes", [0, 1, 39, 40, 41, 5000])
def test_zeros_behind_the_records_are_blank(blank_bytes: int) -> None:
    data = encode_record(0, 1, 1, b"x") + bytes(blank_bytes)
    scanner = RecordScanner(memoryview(data), 0, index=0, term=0, record_bytes_max=1 << 20)
    assert scanner.advance(1 << 20) is (ScanStop.BLANK if blank_bytes else ScanStop.END)
    assert scanner.position == HEADER_BYTES + 1


@pytest.mark.parametrize(
    ("record", "stop"),
    [
        pytest.param((41, 3, 1, b""), ScanStop.BAD_SEQUENCE, id="index skipped"),
        pytest.param((41, 1, 1, b""), ScanStop.BAD_SEQUENCE, id="index repeated"),
        pytest.param((41, 2, 0, b""), ScanStop.BAD_SEQUENCE, id="term goes back"),
        pytest.param((42, 2, 1, b""), ScanStop.BAD_SEQUENCE, id="other place"),
        pytest.param((41, 2, 1, bytes(1000)), ScanStop.BAD_LENGTH, id="longer than the limit"),
        pytest.param((41, 2, 1, b""), ScanStop.END, id="good"),
    ],
)
def test_what_may_follow_a_record(record: tuple[int, int, int, bytes], stop: ScanStop) -> None:
    data = encode_record(0, 1, 1, b"x") + encode_record(*record)
    scanner = RecordScanner(memoryview(data), 0, index=0, term=0, record_bytes_max=500)
    assert scanner.advance(1 << 20) is stop


def test_every_stop_has_a_reason_to_report() -> None:
    assert all(isinstance(stop.corruption, Corruption) for stop in ScanStop)


def test_find_record_looks_at_every_position() -> None:
    junk = b"DLR\x01" * 100_000 + b"DLR"
    for at in (0, 1, 4, (1 << 20) - 2, (1 << 20) + 3):
        data = bytearray((junk * 4)[: at + 3000])
        data[at : at + 50] = encode_record(500 + at, 9, 1, b"0123456789")
        assert find_record(memoryview(bytes(data)), 500, 0, 1 << 20) == at
        assert find_record(memoryview(bytes(data)), 501, 0, 1 << 20) is None
        assert find_record(memoryview(bytes(data)), 500, at + 1, 1 << 20) is None


def test_index_file_is_the_golden_bytes() -> None:
    data = encode_index(1 << 40, 7, 386, array("I", [0, 40, 90]))
    assert data == golden("store_index_v1.hex")
    found = decode_index(memoryview(data), 1 << 40, 7, 386)
    assert found is not None and list(found) == [0, 40, 90]


def test_an_index_file_of_anything_else_is_refused() -> None:
    data = encode_index(1 << 40, 7, 386, array("I", [0, 40, 90]))
    assert decode_index(memoryview(data), 1 << 40, 7, 387) is None
    assert decode_index(memoryview(data), 1 << 40, 8, 386) is None
    assert decode_index(memoryview(data), 0, 7, 386) is None
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 1
        assert decode_index(memoryview(bytes(bad)), 1 << 40, 7, 386) is None
        assert decode_index(memoryview(data[:position]), 1 << 40, 7, 386) is None


def test_vote_is_the_golden_bytes() -> None:
    assert encode_vote(Vote(5, "broker-a-1")) == golden("store_vote_v1.hex")
    for vote in (Vote(5, "broker-a-1"), Vote(0, None), Vote(1 << 50, ""), Vote(9, "ü" * 500)):
        assert decode_vote(encode_vote(vote)) == vote
        assert decode_vote(encode_vote(vote) + b"left over") == vote


def test_mark_slot_is_the_golden_bytes() -> None:
    assert encode_slot(3, 1 << 41) == golden("store_mark_v1.hex")
    data = encode_slot(3, 1 << 41)
    assert decode_slot(data) == (3, 1 << 41)
    for position in range(len(data)):
        bad = bytearray(data)
        bad[position] ^= 0x20
        assert decode_slot(bytes(bad)) is None
        assert decode_slot(data[:position]) is None


def test_segment_names() -> None:
    assert segment_name(0) == "0" * 20
    assert parse_segment_name(segment_name(1 << 60)) == 1 << 60
    for name in (
        "vote",
        "0" * 19,
        "0" * 21,
        "0" * 20 + ".index",
        "-" + "0" * 19,
        "\u0660" * 20,
        "",
    ):
        assert parse_segment_name(name) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("segment_bytes", 1000),
        ("segment_bytes", 1 << 40),
        ("segment_bytes", "256M"),
        ("segment_bytes", True),
        ("record_bytes_max", 0),
        ("tail_cache_bytes", -1),
        ("flush", "maybe"),
        ("flush_interval_ms", 0),
        ("segments_mapped_max", 0),
        ("disk_free_bytes_min", -5),
    ],
)
def test_a_bad_setting_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        StoreConfig(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == f"store.{field}" and caught.value.value == value


def entry(index: int, size: int = 10) -> LogEntry:
    return LogEntry(index, 1, b"", bytes(size))


def test_tail_cache_holds_the_newest_within_its_limit() -> None:
    cache = TailCache(50_000)
    for index in range(5, 3000):
        cache.add(entry(index, 100), index * 100)
        assert cache.size_bytes <= 50_000
    assert len(cache) == 100
    assert cache.get(2999) is not None and cache.get(2900) is not None
    assert cache.get(2899) is None and cache.get(3000) is None and cache.get(0) is None
    assert cache.find(290_000) == (cache.get(2900), 290_000)
    assert cache.find(299_999) == (cache.get(2999), 299_900)
    assert cache.find(289_999) is None


def test_tail_cache_truncates_and_goes_on() -> None:
    cache = TailCache(50_000)
    for index in range(1, 21):
        cache.add(entry(index), index * 10)
    cache.truncate_from(15)
    assert len(cache) == 14 and cache.get(15) is None and cache.get(14) is not None
    cache.add(entry(15), 150)
    cache.truncate_from(30)
    assert len(cache) == 15
    cache.truncate_from(0)
    assert len(cache) == 0 and cache.size_bytes == 0 and cache.find(20) is None
    cache.add(entry(100), 5000)
    assert cache.get(100) is not None and cache.find(5005) is not None
    cache.clear()
    assert cache.get(100) is None


def test_tail_cache_may_be_off() -> None:
    cache = TailCache(0)
    cache.add(entry(1), 0)
    cache.add(entry(2), 10)
    assert len(cache) == 0 and cache.get(2) is None and cache.find(5) is None
