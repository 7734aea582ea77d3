"""What one seed decides about a run: sizes, latencies, and which faults are mixed how."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

FAULTS = (
    "kill",
    "kill-leader",
    "power",
    "power-leader",
    "power-all",
    "power-majority",
    "pause",
    "pause-leader",
    "isolate",
    "isolate-leader",
    "one-way",
    "halves",
    "bridge",
    "ring",
    "heal",
    "slow-link",
    "narrow-link",
    "reset",
    "slow-disk",
    "fail-sync",
    "disk-full",
    "crash-point",
    "clock-jump",
    "bit-flip",
    "compact",
    "transfer",
    "flood",
    "pile-up",
    "return",
)

# Schedules for which everything has to come together. They are drawn apart (`aim`), so that a seed
# has the other faults that it would have without them.
AIMED = "doubt"
AIMED_SHARE = 0.25

FEATURES = ("offsets", "transactions", "delays", "group")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run. Derived from a seed by `make_plan`, or written by hand in a test.

    Attributes:
        seed: Decides all chance during the run too.
        replicas: 1, 3 or 5.
        seconds: Virtual time under load and faults.
        weights: How likely each fault is; those not named never happen.
        gap_s: Mean time between two faults.
        clients: How many clients write.
        rate: Operations a second that all clients together begin, at most.
        heartbeat_ms: Of the leader; the other times of Raft are multiples of it.
        delay_s, jitter_s: Of every packet.
        sync_s: What a sync of the disk takes.
        segment_bytes: Of the CommitLog.
        body_bytes: Largest message body.
        window: Operations one client has under way at a time (broker layer).
        retries: Producers send again after an unknown outcome (broker layer).
        features: What clients do beside (broker layer); see `jepsen_tests.sim.features`.
        append_bytes_max: Entries that a leader sends in one message.
        changes_gap_s: Mean time between two changes of the group; 0: none (raft layer).
    """

    seed: int
    replicas: int = 5
    seconds: float = 20.0
    weights: dict[str, float] = field(default_factory=dict)
    gap_s: float = 0.6
    clients: int = 3
    rate: float = 60.0
    heartbeat_ms: int = 75
    delay_s: float = 0.0005
    jitter_s: float = 0.0005
    sync_s: float = 0.002
    segment_bytes: int = 64 * 1024
    body_bytes: int = 600
    window: int = 4
    append_bytes_max: int = 1024 * 1024
    retries: bool = False
    features: tuple[str, ...] = ()
    changes_gap_s: float = 0.0


def make_plan(
    seed: int,
    *,
    replicas: int | None = None,
    seconds: float | None = None,
) -> Plan:
    """Draws a plan, swarm style: each seed leaves most kinds of faults out.

    A mix of everything hides what needs two kinds only, again and again.
    """
    random = Random(f"plan/{seed}")
    kinds = [name for name in FAULTS if name != "heal"]
    chosen = random.sample(kinds, random.choice((0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 6, 6, 10)))
    weights = {name: random.choice((1.0, 1.0, 2.0, 4.0)) for name in chosen}
    if weights:
        weights["heal"] = sum(weights.values()) * random.choice((0.2, 0.5, 1.0))
    return Plan(
        seed=seed,
        replicas=replicas or random.choice((3, 5, 5)),
        seconds=seconds or random.choice((8.0, 15.0, 25.0)),
        weights=weights,
        gap_s=random.choice((0.15, 0.4, 0.4, 0.8, 1.6)),
        clients=random.choice((1, 2, 4)),
        rate=random.choice((8.0, 20.0, 20.0, 80.0)),
        heartbeat_ms=random.choice((75, 150, 150, 300)),
        delay_s=random.choice((0.0002, 0.001, 0.005, 0.02)),
        jitter_s=random.choice((0.0, 0.0005, 0.005, 0.03)),
        sync_s=random.choice((0.0003, 0.002, 0.01, 0.04)),
        body_bytes=random.choice((10, 300, 3_000, 12_000)),
        window=random.choice((1, 2, 6)),
        append_bytes_max=random.choice((1_000, 20_000, 1024 * 1024)),
        retries=random.random() < 0.5,
        features=tuple(name for name in FEATURES if random.random() < 0.3),
        # Of its own, so that a seed's other faults are what they were before.
        changes_gap_s=Random(f"changes/{seed}").choice((0.0, 0.0, 1.0, 4.0)),
    )


def aim(plan: Plan) -> Plan:
    """Returns the plan with the schedule `doubt` beside its faults, for some of the seeds.

    That needs clients that can flood a leader: those of the raft layer. Appends are short then, so
    that a replica hears of what is committed before it has all of it.
    """
    if not plan.weights or Random(f"aim/{plan.seed}").random() >= AIMED_SHARE:
        return plan
    return replace(
        plan,
        weights={**plan.weights, AIMED: sum(plan.weights.values())},
        append_bytes_max=min(plan.append_bytes_max, 20_000),
    )
