"""Runs cases on official clients against a cluster of three replicas, and writes the tables.

PYTHONPATH=. .venv/bin/python -m interop.run --client go --client node
PYTHONPATH=. .venv/bin/python -m interop.run --client go --standstill 5 --groups 1
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from cli.cluster import LocalCluster, free_port_base
from cli.layout import ClusterSpec
from cli.status import ClusterStatus
from dledger import AsyncAdmin, ConsumeFrom
from dledger.codes import ResponseCode
from dledger.model import GroupConfig
from dledger.remoting.client import RemotingClient
from interop.cases import CASES, KILLING, STANDSTILL, Observation, Standstill, Verdict, standstill
from interop.programs import HERE, PROGRAMS, Program, ProgramError
from interop.session import Session
from interop.table import ClientRecord, rewrite

RESULTS: Final = HERE / "results.json"
PAGE: Final = HERE.parent / "docs" / "compatibility.md"
CASES_TIMEOUT_S: Final = 240.0
KILLING_TIMEOUT_S: Final = 300.0
# Official clients look at the route every 30 s; this is a little more than twice that.
STANDSTILL_TIMEOUT_S: Final = 75.0
QUIET_MS: Final = 3_000
WARM_UP_S: Final = 4.0
SETTLE_TIMEOUT_S: Final = 30.0
SET_MESSAGE_REQUEST_MODE: Final = 401


def create_topics(cluster: LocalCluster, names: list[str]) -> None:
    """Creates topics of four queues in each group."""

    async def run() -> None:
        async with AsyncAdmin(nameserver=cluster.nameserver) as admin:
            for name in names:
                await admin.create_topic(name)

    asyncio.run(run())


def whole(status: ClusterStatus) -> bool:
    """Whether every replica is there and has applied what its leader committed."""
    return status.is_serving and all(
        len({(replica.answers, replica.applied_index) for replica in group.replicas}) == 1
        for group in status.groups
    )


def say(program: Program, verdict: Verdict) -> None:
    """Prints a verdict."""
    line = f"{program.name:12} {verdict.case:18} {verdict.verdict:7} {verdict.detail}"
    print(line, flush=True)


class Runner:
    """Runs programs on one cluster."""

    def __init__(self, cluster: LocalCluster, scratch: Path) -> None:
        self._cluster = cluster
        self._scratch = scratch
        self._number = 0

    def verdicts(self, program: Program, cases: list[str]) -> list[Verdict]:
        """Returns what came of each case: the disturbing one last and alone."""
        calm = [case for case in cases if case != KILLING]
        found: list[Verdict] = []
        if calm:
            found += self._run(program, calm, CASES_TIMEOUT_S)
        if KILLING in cases:
            found += self._run(program, [KILLING], KILLING_TIMEOUT_S)
            self._cluster.start()
            self._cluster.wait(whole, SETTLE_TIMEOUT_S)
        return found

    def standstill(self, program: Program) -> Standstill | None:
        """Kills a leader while a program sends and consumes; returns how long that stood still."""
        prefix = self._prefix(program)
        create_topics(self._cluster, [f"{prefix}-{STANDSTILL}"])
        self._cluster.wait(whole, SETTLE_TIMEOUT_S)
        group = self._cluster.layout.groups[0].name
        seen: list[Observation] = []
        killed_ms: int | None = None
        result: Standstill | None = None
        warm_until = time.monotonic() + 60.0
        with self._session(program, prefix, [STANDSTILL]) as session:
            for record in session.records(60.0 + STANDSTILL_TIMEOUT_S):
                observation = observed(record)
                if observation is None:
                    continue
                seen.append(observation)
                if killed_ms is None:
                    if observation.kind == "consumed" and warm_until > time.monotonic() + WARM_UP_S:
                        warm_until = time.monotonic() + WARM_UP_S
                    if time.monotonic() >= warm_until:
                        self._kill_leader(group)
                        killed_ms = time.time_ns() // 1_000_000
                elif result := standstill(seen, killed_ms, group, QUIET_MS):
                    break
        self._cluster.start()
        self._cluster.wait(whole, SETTLE_TIMEOUT_S)
        return result

    def _run(self, program: Program, cases: list[str], timeout_s: float) -> list[Verdict]:
        prefix = self._prefix(program)
        create_topics(self._cluster, [f"{prefix}-{case}" for case in cases])
        found: dict[str, Verdict] = {}
        with self._session(program, prefix, cases) as session:
            for record in session.records(timeout_s):
                if "event" in record:
                    self._answer(record)
                elif record.get("case") in cases:
                    verdict = msgspec.convert(record, Verdict)
                    found[verdict.case] = verdict
                    say(program, verdict)
        missing = [case for case in cases if case not in found]
        for case in missing:
            found[case] = Verdict(case=case, verdict="no", detail="no verdict in time")
            say(program, found[case])
        return [found[case] for case in cases]

    def _answer(self, record: Mapping[str, Any]) -> None:
        event = record["event"]
        if event == "kill-leader":
            self._kill_leader(self._cluster.layout.groups[0].name)
        elif event == "reset":
            asyncio.run(self._reset(record["group"], record["topic"]))
        elif event == "pop-mode":
            asyncio.run(self._set_pop(record["group"], record["topic"]))

    def _kill_leader(self, group: str) -> None:
        leader = self._cluster.leader(group)
        if leader is not None:
            self._cluster.kill(leader)

    async def _reset(self, group: str, topic: str) -> None:
        async with AsyncAdmin(nameserver=self._cluster.nameserver) as admin:
            await admin.reset_offsets(group, topic, ConsumeFrom.EARLIEST)

    async def _set_pop(self, group: str, topic: str) -> None:
        body = msgspec.json.encode(
            {"topic": topic, "consumerGroup": group, "mode": "POP", "popShareQueueNum": 0}
        )
        async with AsyncAdmin(nameserver=self._cluster.nameserver) as admin:
            await admin.create_group(GroupConfig(name=group))
        client = RemotingClient()
        try:
            for broker in self._cluster.layout.groups:
                # Any replica hands it to the leader.
                address = broker.replicas[0].address
                answer = await client.request(address, SET_MESSAGE_REQUEST_MODE, None, body)
                if answer.code != ResponseCode.SUCCESS:
                    print(f"mode not set: {answer.code} {answer.remark}", file=sys.stderr)
        finally:
            await client.close()

    def _prefix(self, program: Program) -> str:
        self._number += 1
        return f"{program.name.replace('.', '_')}-{self._number}"

    def _session(self, program: Program, prefix: str, cases: list[str]) -> Session:
        home = self._scratch / prefix
        home.mkdir()
        command = [*program.command(home), self._cluster.nameserver, prefix, *cases]
        return Session(command, self._scratch / f"{prefix}.log")


def observed(record: Mapping[str, Any]) -> Observation | None:
    """Returns what a line of a watched program says, or `None` if it is another line."""
    kind = record.get("event")
    if kind not in ("sent", "failed", "consumed"):
        return None
    return Observation(
        kind=str(kind),
        began_ms=int(record["began"]),
        ended_ms=int(record["ended"]),
        broker=str(record.get("broker", "")),
    )


def load_results() -> dict[str, ClientRecord]:
    """Returns what earlier runs recorded."""
    if not RESULTS.exists():
        return {}
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, ClientRecord])


def record(
    program: Program, verdicts: list[Verdict], standstills: Mapping[str, list[Standstill]]
) -> None:
    """Records what was seen beside what is recorded, and brings the page up to date."""
    records = load_results()
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    entry = records.setdefault(program.name, ClientRecord(client=program.client, date=today))
    entry.client, entry.date = program.client, today
    entry.verdicts.update({verdict.case: verdict for verdict in verdicts})
    entry.standstills.update(standstills)
    ordered = {name: records[name] for name in PROGRAMS if name in records}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")
    rewrite(PAGE, ordered)


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--client", action="append", choices=sorted(PROGRAMS), help="default: all")
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="default: all")
    parser.add_argument("--standstill", type=int, default=0, metavar="KILLS", help="measure it")
    parser.add_argument("--groups", type=int, default=1, help="broker groups")
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    return parser.parse_args()


def main() -> int:
    """Runs what was asked for; 1 if anything did not work."""
    options = parse_arguments()
    names: list[str] = options.client or list(PROGRAMS)
    cases: list[str] = [case for case in CASES if case in (options.case or CASES)]
    failed = False
    scratch = Path(tempfile.mkdtemp(prefix="dledger-interop-"))
    print(f"logs: {scratch}")
    spec = ClusterSpec(groups=options.groups)
    spec = ClusterSpec(groups=options.groups, port_base=free_port_base(spec.port_count))
    for name in names:
        try:
            PROGRAMS[name].prepare()
        except ProgramError as problem:
            print(problem, file=sys.stderr)
            return 2
    with LocalCluster(scratch / "cluster", spec) as cluster:
        runner = Runner(cluster, scratch)
        for name in names:
            program = PROGRAMS[name]
            trials: list[Standstill] = []
            verdicts: list[Verdict] = []
            for number in range(options.standstill):
                trial = runner.standstill(program)
                print(f"{name:12} kill {number + 1}: {trial}", flush=True)
                failed = failed or trial is None
                trials += [trial] if trial else []
            if not options.standstill:
                verdicts = runner.verdicts(program, cases)
                failed = failed or any(verdict.verdict == "no" for verdict in verdicts)
            if not options.dry_run:
                record(program, verdicts, {str(options.groups): trials} if trials else {})
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
