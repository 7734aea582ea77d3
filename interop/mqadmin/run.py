"""Runs RocketMQ's own mqadmin against a cluster of ours and judges what it prints.

    .venv/bin/python interop/mqadmin/run.py [--version 4.9.8] [--output docs/mqadmin.md]

Needs Java and Maven. mqadmin exits with 0 whatever happens, so an exit code proves nothing: each
command's output is searched for what a user expects to read there (`cases.py`), and for exceptions.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cases import Case, Facts, cases

from cli.cluster import LocalCluster
from cli.layout import ClusterSpec
from dledger import (
    Admin,
    Message,
    Producer,
    ProducerConfig,
    PushConsumer,
    PushConsumerConfig,
)

HERE = Path(__file__).resolve().parent
COMMAND_S = 60
TOO_SLOW = re.compile(r"RemotingTimeoutException|RemotingSendRequestException|RemotingTooMuch")
TOPIC, GROUP, PRODUCERS, KEY = "orders", "billing", "shop", "order-7"
WARM_UP_S = 25  # rates are of the last minute, sampled every ten seconds


@dataclass(frozen=True)
class Outcome:
    """What came of a command."""

    case: Case
    exit_code: int | None
    problem: str
    output: str
    is_second: bool = False


def main() -> int:
    """Runs everything; 0 if every command did what it should."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", default="4.9.8")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", default="", help="commands, separated by commas")
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S)
    options = parser.parse_args()
    class_path = find_class_path(options.version)
    with tempfile.TemporaryDirectory(prefix="dledger-mqadmin-") as directory:
        spec = ClusterSpec(groups=2, replicas=3, port_base=free_port_base(16))
        with LocalCluster(Path(directory) / "cluster", spec) as cluster:
            tool = Tool(class_path, cluster.nameserver, Path(directory))
            with Traffic(cluster.nameserver) as traffic:
                time.sleep(options.warm_up)
                wanted = [c for c in cases(traffic.facts(cluster)) if chosen(c, options)]
                outcomes = [show(tool.run_patiently(case)) for case in wanted]
    failed = [outcome for outcome in outcomes if outcome.problem]
    sys.stdout.write(f"{len(outcomes) - len(failed)} of {len(outcomes)} as expected\n")
    if options.output:
        write_section(options.output, options.version, page(options.version, outcomes))
    return 1 if failed else 0


def chosen(case: Case, options: argparse.Namespace) -> bool:
    """Whether a case is run with these options."""
    named = not options.only or case.command in options.only.split(",")
    return named and options.version.startswith(case.version)


def find_class_path(version: str) -> str:
    """Lets Maven fetch the tool; returns its class path."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        line = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:build-classpath"]
        line += [f"-Drocketmq.version={version}", f"-Dmdep.outputFile={file.name}"]
        subprocess.run(line, check=True, timeout=600)
        return Path(file.name).read_text()


def free_port_base(count: int) -> int:
    """Returns the first of so many ports that are free right now."""
    for base in range(21_000 + os.getpid() % 5_000, 32_000, count):
        try:
            for port in range(base, base + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise SystemExit("no free ports")


class Tool:
    """mqadmin."""

    def __init__(self, class_path: str, nameserver: str, directory: Path) -> None:
        self._nameserver = nameserver
        self._directory = directory  # some commands write files to where they are
        self._line = ["java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        self._line += [f"-Drocketmq.home.dir={HERE / 'home'}", f"-Duser.home={directory}"]
        self._line += ["-cp", class_path, "org.apache.rocketmq.tools.command.MQAdminStartup"]

    def run_patiently(self, case: Case) -> Outcome:
        """Runs one command, and once more if the tool gave up after its own few seconds.

        On a busy machine a starting JVM may not even get its request out in that time.
        """
        first = self.run(case)
        if first.problem and TOO_SLOW.search(first.output):
            return replace(self.run(case), is_second=True)
        return first

    def run(self, case: Case) -> Outcome:
        """Runs one command."""
        line = [*self._line, *case.arguments, "-n", self._nameserver]
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self._directory
        ) as process:
            if process.stdout is None:
                raise SystemExit("no pipe")
            watch = threading.Timer(COMMAND_S, process.kill)
            watch.start()
            output = ""
            for text in process.stdout:
                output += text
                if case.endless and not missing(case, output):
                    process.terminate()
                    break
            process.wait()
            watch.cancel()
        code = None if case.endless else process.returncode
        return Outcome(case, code, judge(case, code, output), output)


def missing(case: Case, output: str) -> list[str]:
    """Returns what is expected and not there."""
    return [wanted for wanted in case.expected if not re.search(wanted, output)]


def judge(case: Case, code: int | None, output: str) -> str:
    """Returns what is wrong, or nothing."""
    problems = [f"no {wanted}" for wanted in missing(case, output)]
    problems += [f"has {bad}" for bad in case.refused if re.search(bad, output)]
    trace = re.search(r"(?m)^(\S*(?:Exception|Error)\b.*)$\n\s+at ", output)
    if trace and not case.is_refusal:
        problems.append(trace[1][:200])
    if code:
        problems.append(f"exit {code}")
    return "; ".join(problems)


def show(outcome: Outcome) -> Outcome:
    """Prints an outcome as it comes."""
    line = " ".join(outcome.case.arguments)
    if outcome.problem:
        sys.stdout.write(f"FAIL {line}\n     {outcome.problem}\n{indented(outcome.output)}\n")
    else:
        sys.stdout.write(f"ok   {line}\n")
    sys.stdout.flush()
    return outcome


def indented(text: str, count_max: int = 40) -> str:
    """Returns the first lines, set in."""
    return "\n".join(f"     | {line}" for line in text.splitlines()[:count_max])


class Traffic:
    """A producer and a consumer of ours at work while mqadmin looks."""

    def __init__(self, nameserver: str) -> None:
        self._nameserver = nameserver
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._result = None
        self._producer = Producer(
            PRODUCERS, nameserver=nameserver, config=ProducerConfig(trace=True)
        )
        self._consumer = PushConsumer(
            GROUP,
            subscriptions={TOPIC: "*"},
            nameserver=nameserver,
            config=PushConsumerConfig(trace=True),
        )

    def __enter__(self) -> Traffic:
        with Admin(nameserver=self._nameserver) as admin:
            admin.create_topic(TOPIC, queue_count=2)
        self._producer.start()
        self._consumer.start()
        self._consumer.wait_assigned()
        self._result = self._producer.send(Message(TOPIC, b"hello", tags="new", keys=[KEY]))
        for target in (self._produce, self._consume):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._consumer.stop()
        for thread in self._threads:
            thread.join(10)
        self._consumer.close()
        self._producer.close()

    def _produce(self) -> None:
        number = 0
        while not self._stop.wait(0.01):
            number += 1
            self._producer.send(Message(TOPIC, f"message {number}".encode(), tags="new"))

    def _consume(self) -> None:
        self._consumer.run(lambda message: None)

    def facts(self, cluster: LocalCluster) -> Facts:
        """Returns what the cases need to know."""
        first = cluster.status().groups[0]
        result = self._result
        with Admin(nameserver=self._nameserver) as admin:
            online = admin.consumer_connections(GROUP)
            message = admin.message(result.message_id, TOPIC)
        begin = datetime.datetime.now() - datetime.timedelta(minutes=5)
        return Facts(
            cluster="DefaultCluster",
            broker=first.name,
            leader=first.replica(first.leader).address,
            topic=TOPIC,
            group=GROUP,
            producer_group=PRODUCERS,
            offset_id=message.offset_message_id,
            unique_key=message.unique_key,
            key=KEY,
            client_id=online.connections[0].client_id,
            queue_id=message.queue_id,
            queue_offset=message.queue_offset,
            message_broker=message.broker_name,
            begin=begin.strftime("%Y-%m-%d#%H:%M:%S:000"),
        )


def write_section(path: Path, version: str, section: str) -> None:
    """Puts the section of one version into the page, in place of an older one."""
    head, *sections = re.split(r"(?m)^(?=## )", path.read_text())
    kept = [each for each in sections if not each.startswith(f"## mqadmin {version}\n")]
    tables = sorted([*(each for each in kept if each.startswith("## mqadmin ")), section])
    rest = [each for each in kept if not each.startswith("## mqadmin ")]
    parts = [head, *rest, *tables]
    path.write_text("\n".join(part.strip("\n") + "\n" for part in parts))


def page(version: str, outcomes: list[Outcome]) -> str:
    """Returns the section of one version for the documentation."""
    passed = sum(not outcome.problem for outcome in outcomes)
    lines = [
        f"## mqadmin {version}",
        "",
        f"{passed} of {len(outcomes)} as expected, {datetime.date.today().isoformat()}.",
        "",
        "| Command | Exit | As expected | Output, shortened |",
        "|---|---|---|---|",
    ]
    for outcome in outcomes:
        code = "stopped" if outcome.exit_code is None else str(outcome.exit_code)
        good = "yes, the second time; the first timed out" if outcome.is_second else "yes"
        verdict = f"no: {cell(outcome.problem)}" if outcome.problem else good
        line = cell(" ".join(outcome.case.arguments))
        lines.append(f"| `{line}` | {code} | {verdict} | {shortened(outcome)} |")
    return "\n".join(lines) + "\n"


def shortened(outcome: Outcome) -> str:
    """Returns the lines of an output that show what was expected, the rest left out."""
    chosen: list[str] = []
    for wanted in outcome.case.expected:
        found = re.search(wanted, outcome.output)
        if found is None:
            continue
        begin = outcome.output.rfind("\n", 0, found.start()) + 1
        end = outcome.output.find("\n", found.end())
        line = " ".join(outcome.output[begin : None if end < 0 else end].split())
        if line not in chosen:
            chosen.append(line)
    return "<br>".join(f"`{cell(line[:160])}`" for line in chosen)


def cell(text: str) -> str:
    """Returns text as it may stand in a table."""
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
