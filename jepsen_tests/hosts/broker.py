"""A broker with parts of the harness in it: `python -P -m jepsen_tests.hosts.broker ...`.

Takes what `python -m broker` takes, and:

    --wall-clock FILE    wall time is off by what the file says (`hosts.skewed_clock`)
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from broker.__main__ import main as broker_main
from broker.server import Broker
from jepsen_tests.hosts.skewed_clock import SkewedClock


def main() -> int:
    """Runs the broker of this process; returns its exit code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--wall-clock", type=Path)
    ours, rest = parser.parse_known_args()
    make_broker = Broker
    if ours.wall_clock is not None:
        make_broker = partial(Broker, clock=SkewedClock(ours.wall_clock))  # type: ignore[assignment]
    return broker_main(rest, make_broker=make_broker)


if __name__ == "__main__":
    sys.exit(main())
