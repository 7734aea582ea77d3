"""One CRC-32, whoever computes it."""

import sys
import zlib

import pytest

from dledger import checksum
from dledger.message.identity import crc31
from store.record import decode_records, encode_record


@pytest.mark.parametrize("size", [0, 1, 15, 16, 63, 64, 65, 1000, 4096, 70_000])
@pytest.mark.parametrize("start", [0, 1, 0xFFFFFFFF])
def test_the_values_are_zlibs(size: int, start: int) -> None:
    data = bytes(number * 7 % 251 for number in range(size))
    for buffer in (data, bytearray(data), memoryview(data), memoryview(b"x" + data)[1:]):
        assert checksum.crc32(buffer, start) == zlib.crc32(data, start)
    assert crc31(data) == zlib.crc32(data) & 0x7FFFFFFF


def test_zlib_takes_over_where_the_fast_one_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zlib_ng", None)
    assert checksum.fastest_crc32() is zlib.crc32


def test_records_of_either_are_the_other_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    record = encode_record(4096, 7, 3, b"body" * 100)
    monkeypatch.setattr("store.record.crc32", zlib.crc32)
    assert encode_record(4096, 7, 3, b"body" * 100) == record
    [entry] = decode_records(memoryview(record), 1 << 20)
    assert entry.index == 7
