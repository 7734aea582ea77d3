"""Every plan that ever failed, and why; replayed by the tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from jepsen_tests.sim.plan import Plan
from jepsen_tests.sim.scenario import Layer


@dataclass(frozen=True)
class Regression:
    """A kept plan. Plans are kept whole, because `make_plan` may change."""

    name: str
    layer: Layer
    rule: str
    why: str
    plan: Plan


def load_regressions() -> list[Regression]:
    """Reads all kept plans."""
    found = []
    for path in sorted(Path(__file__).parent.glob("*.json")):
        content = json.loads(path.read_text())
        values = content.pop("plan")
        plan = Plan(**{**values, "features": tuple(values.get("features", ()))})
        found.append(Regression(name=path.stem, plan=plan, **content))
    return found
