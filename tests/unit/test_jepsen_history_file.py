"""The history format, its files, and `dledger jepsen check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.main import run
from jepsen_tests.history import (
    AnyRecord,
    Append,
    HistoryFormatError,
    HistoryWriter,
    Read,
    decode_record,
    encode_record,
    make_value,
    queue_name,
    read_history,
    topic_of,
)
from tests.support.histories import append, final, log_run, meta


def write(path: Path, records: list[AnyRecord]) -> Path:
    with HistoryWriter(path) as writer:
        for record in records:
            writer.write(record)
    return path


def test_records_come_back_as_written(tmp_path: Path) -> None:
    records = log_run()
    assert list(read_history(write(tmp_path / "h", records))) == records


def test_lines_are_short_and_say_what_they_are() -> None:
    line = json.loads(encode_record(append(5, 1, 2, 0)))
    assert line == {
        "type": "append",
        "process": 0,
        "queue": "t@b/0",
        "value": 5,
        "inv": 1_000_000,
        "ret": 2_000_000,
        "status": "ok",
        "offset": 0,
    }
    read = decode_record(
        b'{"type":"read","process":1,"queue":"q","inv":1,"ret":2,"status":"ok","from":7,"new":1}'
    )
    assert isinstance(read, Read) and read.start == 7


def test_a_torn_last_line_is_left_out_and_a_torn_inner_line_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "h", log_run())
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert list(read_history(path)) == log_run()[:-1]
    path.write_bytes(b'{"type":"append","pro\n' + whole)
    with pytest.raises(HistoryFormatError, match="h:1:"):
        list(read_history(path))


@pytest.mark.parametrize(
    "line",
    [b"[]", b"{}", b'{"type":"nothing"}', b'{"type":"append","value":1}', b"\xff", b"nonsense"],
)
def test_a_line_that_is_no_record_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "h"
    path.write_bytes(line + b"\n")
    with pytest.raises(HistoryFormatError):
        list(read_history(path))


def test_names_and_values() -> None:
    assert topic_of(queue_name("orders", "broker-a", 3)) == "orders"
    assert make_value(1, 0) != make_value(0, 1)
    with pytest.raises(ValueError):
        make_value(1 << 27, 0)


@pytest.mark.parametrize(
    ("records", "code", "verdict"),
    [
        (log_run(), 0, "valid"),
        ([meta(), append(1, 0, 1, 0), final([], 5)], 4, "violated"),
        ([log_run()[0]], 5, "unknown"),
    ],
)
def test_exit_codes_of_check(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    records: list[AnyRecord],
    code: int,
    verdict: str,
) -> None:
    path = str(write(tmp_path / "h", records))
    assert run(["jepsen", "check", path, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["verdict"] == verdict
    assert run(["jepsen", "check", path]) == code
    assert capsys.readouterr().out.startswith(verdict.upper())


def test_check_of_what_is_no_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jepsen", "check", str(tmp_path / "absent")]) == 2
    (tmp_path / "h").write_text("hello\n")
    assert run(["jepsen", "check", str(tmp_path / "h")]) == 1
    assert "h:1:" in capsys.readouterr().err


def test_an_operation_takes_little_memory() -> None:
    from jepsen_tests.checkers.log_store import LogHistory

    history = LogHistory()
    for number in range(1000):
        history.add_append(number, append(number, number, number + 1, number))
        history.add_read(
            2 * number, Read(process=1, queue="t@b/0", inv=0, ret=1, status="ok", end=number)
        )
    queue = history.queues["t@b/0"]
    assert len(queue.rows) == 56 * 1000
    assert isinstance(append(1, 0, 1, 0), Append)
