"""All nemeses by name, also those that cannot run yet, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.nemeses.base import Nemesis
from jepsen_tests.nemeses.clocks import ClockNemesis
from jepsen_tests.nemeses.disks import DiskNemesis, PowerNemesis, RotNemesis
from jepsen_tests.nemeses.limits import LimitNemesis
from jepsen_tests.nemeses.links import LinkNemesis
from jepsen_tests.nemeses.mixes import MixNemesis
from jepsen_tests.nemeses.partitions import ClientCutNemesis, IsolateNemesis, TopologyNemesis
from jepsen_tests.nemeses.processes import KillNemesis, PauseNemesis
from jepsen_tests.nemeses.snapshots import SnapshotNemesis

NEMESES: Mapping[str, type[Nemesis]] = {
    kind.name: kind
    for kind in (
        IsolateNemesis,
        TopologyNemesis,
        ClientCutNemesis,
        KillNemesis,
        PauseNemesis,
        LinkNemesis,
        SnapshotNemesis,
        ClockNemesis,
        DiskNemesis,
        PowerNemesis,
        RotNemesis,
        LimitNemesis,
        MixNemesis,
    )
}

NOT_YET: Mapping[str, str] = {
    "F13": "needs membership changes in the broker",
}
ALL_NAMES = tuple(f"F{number}" for number in range(1, 15))


def parse_nemeses(text: str) -> list[str]:
    """Splits `F1,F4`; `none` or nothing means no fault.

    Raises:
        HarnessError: A name is unknown.
    """
    names = [part.strip().upper() for part in text.split(",") if part.strip()]
    names = [name for name in names if name != "NONE"]
    for name in names:
        if name not in ALL_NAMES:
            raise HarnessError(f"no nemesis {name}; there are {', '.join(ALL_NAMES)} and none")
    return list(dict.fromkeys(names))


def make_nemeses(
    names: list[str], capabilities: Capabilities
) -> tuple[list[Nemesis], dict[str, str]]:
    """Returns those that can run here, and why the others cannot."""
    usable: list[Nemesis] = []
    skipped: dict[str, str] = {}
    for name in names:
        kind = NEMESES.get(name)
        if kind is None:
            skipped[name] = f"not available yet: {NOT_YET.get(name, 'not written')}"
            continue
        nemesis = kind()
        reason = nemesis.unavailable(capabilities)
        if reason:
            skipped[name] = f"not available here: {reason}"
        else:
            usable.append(nemesis)
    return usable, skipped
