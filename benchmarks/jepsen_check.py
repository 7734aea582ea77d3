"""How fast a history is judged: `python benchmarks/jepsen_check.py [OPERATIONS]`.

Writes a legal history (32 clients, 8 queues, half appends, half reads of up to 8 entries with the
log's length, 2 % indeterminate) to a temporary file, then judges it in a fresh process and prints
seconds and peak memory of the judging process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from jepsen_tests.checkers import judge_file
from jepsen_tests.history import Append, HistoryWriter, Meta, Read, make_value, queue_name

QUEUES = 8
CLIENTS = 32


def write(path: Path, operations: int) -> None:
    random = Random(1)
    names = [queue_name("t", "broker-a", q) for q in range(QUEUES)]
    logs: list[list[int]] = [[] for _ in names]
    cursors = [[0] * QUEUES for _ in range(CLIENTS)]
    process = list(range(CLIENTS))
    fresh = CLIENTS
    ends = [0] * CLIENTS
    with HistoryWriter(path) as writer:
        writer.write(Meta(workload="W1", nodes=[], acks_min=1000))
        now = 0
        for sequence in range(operations):
            client = sequence % CLIENTS
            now += 50_000
            # Effects are in the order of the loop; every operation spans about 32 others.
            inv = max(ends[client] + 1, now - random.randrange(800_000))
            ret = now + random.randrange(800_000)
            ends[client] = ret
            q = random.randrange(QUEUES)
            log = logs[q]
            if random.random() < 0.5:
                value = make_value(process[client], sequence)
                info = random.random() < 0.02
                if not info or random.random() < 0.5:
                    log.append(value)
                writer.write(
                    Append(
                        process=process[client],
                        queue=names[q],
                        value=value,
                        inv=inv,
                        ret=ret,
                        status="info" if info else "ok",
                        offset=None if info else len(log) - 1,
                        node="broker-a-0",
                    )
                )
                if info:
                    process[client] = fresh
                    fresh += 1
            else:
                start = min(len(log), max(cursors[client][q], len(log) - 8))
                values = log[start : start + 8]
                cursors[client][q] = start + len(values)
                writer.write(
                    Read(
                        process=process[client],
                        queue=names[q],
                        inv=inv,
                        ret=ret,
                        status="ok",
                        start=start,
                        max=8,
                        values=values,
                        end=len(log),
                        node="broker-a-0",
                    )
                )
        write_final_reads(writer, fresh, now, dict(zip(names, logs, strict=True)))


def write_final_reads(
    writer: HistoryWriter, process: int, now: int, logs: dict[str, list[int]]
) -> None:
    for name, log in logs.items():
        for start in range(0, len(log), 1000):
            now += 1_000_000
            read = Read(
                process=process,
                queue=name,
                inv=now + 1_000_000,
                ret=now + 1_900_000,
                status="ok",
                start=start,
                max=1000,
                values=log[start : start + 1000],
                end=len(log),
                final=True,
                node="broker-a-0",
            )
            writer.write(read)


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1] == "--judge":
        began = time.perf_counter()
        verdict = judge_file(Path(sys.argv[2]))
        spent = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(verdict.lines()[0])
        print(f"{spent:.2f} s ({time.process_time():.2f} s of CPU time), peak memory {peak:.0f} MB")
        return 0
    operations = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "history.jsonl"
        began = time.perf_counter()
        write(path, operations)
        size = path.stat().st_size / 1e6
        print(
            f"wrote {operations:,} operations, {size:.0f} MB, {time.perf_counter() - began:.1f} s"
        )
        return subprocess.run(
            [sys.executable, __file__, "--judge", str(path)], check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
