"""All nemeses by name."""

from __future__ import annotations

from collections.abc import Mapping

from jepsen_tests.hosts.capabilities import Capabilities
from jepsen_tests.hosts.shell import HarnessError
from jepsen_tests.nemeses.base import Nemesis
from jepsen_tests.nemeses.clocks import ClockNemesis
from jepsen_tests.nemeses.disks import DiskNemesis, PowerNemesis, RotNemesis
from jepsen_tests.nemeses.limits import LimitNemesis
from jepsen_tests.nemeses.links import LinkNemesis
from jepsen_tests.nemeses.membership import MembershipNemesis
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
        MembershipNemesis,
        MixNemesis,
    )
}

ALL_NAMES = tuple(sorted(NEMESES, key=lambda name: int(name[1:])))


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
        nemesis = NEMESES[name]()
        reason = nemesis.unavailable(capabilities)
        if reason:
            skipped[name] = f"not available here: {reason}"
        else:
            usable.append(nemesis)
    return usable, skipped
