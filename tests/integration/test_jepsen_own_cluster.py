"""Workloads and checkers on a cluster that the harness did not start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dledger import Message, Producer
from dledger.testing import LocalCluster


@pytest.mark.parametrize("workload", ["W3", "W7"])
def test_a_cluster_of_the_users_is_judged_and_left_running(workload: str, tmp_path: Path) -> None:
    with LocalCluster(replicas=1) as cluster:
        command = [sys.executable, "-P", "-m", "cli", "jepsen", "run", "--workload", workload]
        where = ["--nameserver", cluster.nameserver, "--out", str(tmp_path)]
        done = subprocess.run(
            [*command, *where, "--time", "3", "--rate", "400", "--seed", "2", "--json"],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        result = json.loads(done.stdout)
        assert result["verdict"] == "valid"
        assert result["figures"]["operations"] > 100
        with Producer("still-there", nameserver=cluster.nameserver) as producer:
            assert producer.send(Message("afterwards", b"x")).queue_offset == 0
