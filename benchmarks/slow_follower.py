"""A follower is stopped under load, for half a minute: what that costs the leader and the others.

.venv/bin/python benchmarks/slow_follower.py --stopped-s 30
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from dledger.client.sync_admin import Admin
from tests.support.process_cluster import followers, wait_leader, whole
from tests.support.process_load import Load, MemoryWatch

MIB = 1024 * 1024


def lag(status, name: str) -> int:
    [group] = status.groups
    newest = max(replica.applied_index or 0 for replica in group.replicas)
    return newest - (group.replica(name).applied_index or 0)


def measure(cluster: LocalCluster, stopped_s: float, body_bytes: int) -> dict[str, object]:
    leader = wait_leader(cluster)
    term = cluster.status().groups[0].term
    sleeper = followers(cluster, leader)[0]
    with Load(cluster.nameserver, in_flight=500, body_bytes=body_bytes) as load:
        load.wait_acknowledged(10_000)
        before, count = cluster.status().groups[0].replica(leader).log_bytes, load.sent
        cluster.kill(sleeper, signal.SIGSTOP)
        with MemoryWatch(cluster.pid(leader)) as memory:
            time.sleep(stopped_s)
        behind = cluster.status().groups[0].replica(leader).log_bytes - before
        rate = (load.sent - count) / stopped_s
        with MemoryWatch(cluster.pid(leader)) as after, MemoryWatch(cluster.pid(sleeper)) as woken:
            cluster.kill(sleeper, signal.SIGCONT)
            began = time.monotonic()
            cluster.wait(lambda status: lag(status, sleeper) < 200, 300)
            caught_up_s = time.monotonic() - began
    load.check()
    group = cluster.wait(whole, 60).groups[0]
    return {
        "stopped_s": stopped_s,
        "messages_per_s": round(rate),
        "behind_mib": round(behind / MIB),
        "leader_rss_before_mib": round(memory.first / MIB),
        "leader_rss_max_while_stopped_mib": round(memory.largest / MIB),
        "leader_rss_max_while_catching_up_mib": round(after.largest / MIB),
        "follower_rss_max_mib": round(woken.largest / MIB),
        "caught_up_s": round(caught_up_s, 2),
        "longest_gap_s": round(load.longest_gap_s(), 3),
        "elections": group.term - term,
        "leader_stayed": group.leader == leader,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stopped-s", type=float, default=30.0)
    parser.add_argument("--body-bytes", type=int, default=4000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dledger-bench-") as directory:
        spec = ClusterSpec(port_base=free_port_base(7))
        with LocalCluster(Path(directory) / "data", spec) as cluster:
            with Admin(nameserver=cluster.nameserver) as admin:
                admin.create_topic("t", queue_count=1)
            print(json.dumps(measure(cluster, options.stopped_s, options.body_bytes)))


if __name__ == "__main__":
    main()
