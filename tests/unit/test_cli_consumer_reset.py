"""What `dledger consumer reset --to` takes."""

import pytest
import typer

from cli.consumer import Offset, parse_target
from dledger.model import ConsumeFrom


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("earliest", ConsumeFrom.EARLIEST),
        ("latest", ConsumeFrom.LATEST),
        ("1700000000000ms", 1_700_000_000_000),
        ("2023-11-14T22:13:20+00:00", 1_700_000_000_000),
        ("42", Offset(42)),
    ],
)
def test_places_times_and_offsets(text, target):
    assert parse_target(text, has_queue=True) == target


@pytest.mark.parametrize("text", ["", "soon", "-5", "12x", "2026-13-01", "9" * 20])
def test_nonsense(text):
    with pytest.raises(typer.BadParameter):
        parse_target(text, has_queue=True)


def test_an_offset_needs_a_queue():
    with pytest.raises(typer.BadParameter, match="--queue"):
        parse_target("42", has_queue=False)
