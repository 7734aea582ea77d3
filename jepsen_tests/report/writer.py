"""Writes what a run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.options import RunOptions
from jepsen_tests.run_log import RunLog

if TYPE_CHECKING:
    from jepsen_tests.runner import RunResult


def write_report(
    result: RunResult, options: RunOptions, able: Capabilities, log: RunLog, history: Path
) -> None:
    """Writes verdict, counts, gaps and timeline into the run's folder."""
    text = json.dumps(result.to_json(), indent=2, default=str)
    (result.folder / "verdict.json").write_text(text + "\n", encoding="utf-8")
