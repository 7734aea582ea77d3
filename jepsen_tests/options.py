"""What a run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

RESULTS = Path("jepsen-results")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """One run.

    Attributes:
        workload: A name in `workloads.registry`.
        nemeses: Names in `nemeses.registry`; none: no fault.
        time_s: Length of the load phase.
        seed: Of every choice: faults, targets, times, operations. (The interleaving of real
            processes is the machine's; equal seeds make like runs, not equal ones.)
        rate: Operations a second wanted, all clients together; 0: as many as go.
        target: Aim of every fault, or empty.
        nameserver: Of a foreign cluster, which is then neither started nor harmed.
        out: Where the run's folder is made.
        plant: Name of a control (`controls.CONTROLS`), whose fault is planted.
        keep_data: Keep the replicas' data even if the verdict is valid.
    """

    workload: str = "W1"
    nemeses: list[str] = field(default_factory=list)
    time_s: float = 60.0
    seed: int = 1
    replicas: int = 3
    groups: int = 1
    rate: float = 3000.0
    target: str = ""
    nameserver: str = ""
    out: Path = RESULTS
    plant: str = ""
    keep_data: bool = False
    label: str = ""
