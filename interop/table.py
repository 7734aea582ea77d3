"""Writes what was run into docs/compatibility.md, between markers: pure but for `rewrite`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from interop.cases import CASES, Standstill, Verdict

TABLE: Final = "clients"
STANDSTILLS: Final = "standstill"
_WORDS: Final = {"yes": "yes", "no": "**no**", "absent": "not in that client"}


class ClientRecord(msgspec.Struct, kw_only=True):
    """What was seen of one client, the last time each case was run.

    Attributes:
        client: Library and version.
        date: Of the last run, ISO.
        verdicts: By case.
        standstills: By number of broker groups.
    """

    client: str
    date: str
    verdicts: dict[str, Verdict] = {}
    standstills: dict[str, list[Standstill]] = {}


def compatibility_table(records: Mapping[str, ClientRecord]) -> str:
    """Returns clients and capabilities as a Markdown table. What was not run says so."""
    names = list(records)
    lines = [
        _row(["", *(records[name].client for name in names)]),
        _row(["---"] * (len(names) + 1)),
    ]
    for case, title in CASES.items():
        cells = []
        for name in names:
            found = records[name].verdicts.get(case)
            cells.append(_WORDS[found.verdict] if found else "not run")
        lines.append(_row([title, *cells]))
    lines.append(_row(["Run on", *(records[name].date for name in names)]))
    problems = [
        f"* {records[name].client}, {CASES[found.case].lower()}: {found.detail}"
        for name in names
        for found in records[name].verdicts.values()
        if found.verdict == "no" and found.case in CASES
    ]
    if problems:
        lines += ["", "What did not work:", "", *problems]
    return "\n".join(lines)


def standstill_table(records: Mapping[str, ClientRecord]) -> str:
    """Returns how long each client stood still, as a Markdown table: median and longest."""
    lines = [
        _row(
            [
                "Client",
                "Groups",
                "Kills",
                "To the next acknowledged send",
                "To the next consumed message",
                "Sends that failed",
                "Last of them after",
            ]
        ),
        _row(["---"] * 7),
    ]
    for record in records.values():
        for groups, trials in sorted(record.standstills.items()):
            if trials:
                lines.append(
                    _row(
                        [
                            record.client,
                            groups,
                            str(len(trials)),
                            _span([trial.send_ms for trial in trials]),
                            _span([trial.consume_ms for trial in trials]),
                            _range([trial.failed for trial in trials]),
                            _span([trial.last_failure_ms for trial in trials]),
                        ]
                    )
                )
    return "\n".join(lines)


def replace_between(text: str, marker: str, content: str) -> str:
    """Returns a page with what stands between two markers replaced.

    Raises:
        ValueError: The page does not hold both markers, once each and in order.
    """
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the page must hold {begin!r} and {end!r} once each, in this order")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def rewrite(page: Path, records: Mapping[str, ClientRecord]) -> None:
    """Brings a page up to date.

    Raises:
        ValueError: A marker is missing. The page is as it was.
    """
    text = page.read_text(encoding="utf-8")
    text = replace_between(text, TABLE, compatibility_table(records))
    text = replace_between(text, STANDSTILLS, standstill_table(records))
    page.write_text(text, encoding="utf-8")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _span(values: Sequence[int]) -> str:
    ordered = sorted(values)
    return f"{_seconds(ordered[len(ordered) // 2])}, at most {_seconds(ordered[-1])}"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.2f} s"
