"""Runs the checks against Apache RocketMQ and against our brokers, and writes what differs.

    python -m interop.apache.run [--version 4.9.4]... [CHECK]...

Without names of checks the table in docs/apache-rocketmq.md is written anew. Needs Java 17, Maven.
Exit codes: 0: all checks passed or differ as a check says; 1: one failed.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from dledger.testing import LocalCluster
from interop.apache.checks import CHECKS
from interop.apache.place import Different, Place
from interop.apache.servers import Servers

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "apache-rocketmq.md"
RESULTS = Path(__file__).parent / "results.json"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
LIMIT_S = 180.0
VERSIONS = ["4.9.4", "5.1.4"]
Check = Callable[[Place], Coroutine[Any, Any, None]]
Results = dict[str, dict[str, str]]  # check -> title and outcome by whom it was run against
TRANSACTIONS = {"immunity_s": 1.0, "check_interval_s": 3.0}


def run_one(check: Check, nameserver: str, whose: str, crash: Callable[[], None]) -> str:
    """Returns what a check came to: `yes`, what is different, or `failed: ...`."""
    name = f"{check.__name__.replace('_', '-')}-{int(time.time()) % 100_000}"
    place = Place(nameserver=nameserver, name=name, is_ours=whose == "ours", crash=crash)
    began = time.monotonic()
    try:
        asyncio.run(asyncio.wait_for(check(place), LIMIT_S))
        outcome = "yes"
    except Different as different:
        outcome = str(different)
    except Exception as error:
        outcome = f"failed: {type(error).__name__}: {error}"[:300]
    print(f"{whose:5} {check.__name__:26} {time.monotonic() - began:5.1f} s  {outcome}", flush=True)
    return outcome


def run_all(checks: list[Check], versions: list[str]) -> Results:
    results: Results = {check.__name__: {"title": check.__doc__ or ""} for check in checks}
    with LocalCluster(settings={"transactions": TRANSACTIONS}) as cluster:

        def crash() -> None:
            cluster.kill_leader()
            cluster.restart()

        for check in checks:
            results[check.__name__]["ours"] = run_one(check, cluster.nameserver, "ours", crash)
    for version in versions:
        with Servers(version) as servers:
            for check in checks:
                results[check.__name__][version] = run_one(
                    check, servers.nameserver, version, servers.crash
                )
    return results


def write_page(results: Results, versions: list[str]) -> None:
    names = " and ".join(versions)
    columns = " | ".join(f"Apache {version}" for version in versions)
    rows = [
        " | ".join([result["title"], result["ours"], *(result[version] for version in versions)])
        for result in results.values()
    ]
    lines = [
        BEGIN,
        f"Run on {time.strftime('%Y-%m-%d')} against Apache RocketMQ {names}, one broker each.",
        "",
        f"| Our client can | dledger | {columns} |",
        "|---" * (2 + len(versions)) + "|",
        *(f"| {row} |" for row in rows),
        END,
    ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + "\n".join(lines) + after)
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", action="append", help=f"by default {', '.join(VERSIONS)}")
    parser.add_argument("checks", nargs="*")
    options = parser.parse_args()
    chosen: list[Check] = [c for c in CHECKS if not options.checks or c.__name__ in options.checks]
    versions = options.version or VERSIONS
    results = run_all(chosen, versions)
    if not options.checks:
        write_page(results, versions)
    outcomes = [result[side] for result in results.values() for side in ("ours", *versions)]
    return int(any(outcome.startswith("failed") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
