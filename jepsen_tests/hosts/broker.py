"""A broker with parts of the harness in it: `python -P -m jepsen_tests.hosts.broker ...`.

Takes what `python -m broker` takes, and:

    --wall-clock FILE    wall time is off by what the file says (`hosts.skewed_clock`)
    --plant NAME         a broken part that a run must find (`planted.parts`)
    --dial FILE          a JSON object: what to dial in place of which address (`hosts.dialing`)
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from broker.__main__ import main as broker_main
from broker.server import Broker
from jepsen_tests.hosts.dialing import redirect_dialing
from jepsen_tests.hosts.skewed_clock import SkewedClock
from jepsen_tests.planted.parts import PLANTS, MakeBroker


def main() -> int:
    """Runs the broker of this process; returns its exit code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--wall-clock", type=Path)
    parser.add_argument("--dial", type=Path)
    parser.add_argument("--plant", choices=sorted(PLANTS))
    ours, rest = parser.parse_known_args()
    if ours.dial is not None:
        redirect_dialing(json.loads(ours.dial.read_text(encoding="utf-8")))
    make_broker: MakeBroker = Broker
    if ours.plant is not None:
        make_broker = PLANTS[ours.plant]()
    elif ours.wall_clock is not None:
        make_broker = partial(Broker, clock=SkewedClock(ours.wall_clock))
    return broker_main(rest, make_broker=make_broker)


if __name__ == "__main__":
    sys.exit(main())
