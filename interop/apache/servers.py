"""Apache RocketMQ's nameserver and broker as child processes on loopback, for the checks."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from dledger import Admin, DLedgerError

HERE = Path(__file__).parent
JARS = HERE / ".jars"
OPENED = ("java.base/sun.nio.ch", "java.base/java.nio", "java.base/jdk.internal.ref")
READY_S = 60.0
STARTS_MAX = 3
LOGGING = """<configuration>
  <appender name="file" class="ch.qos.logback.core.FileAppender">
    <file>{directory}/{name}.log</file>
    <encoder><pattern>%d %p %c - %m%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="file"/></root>
</configuration>
"""
BROKER = """brokerClusterName=DefaultCluster
brokerName=apache-a
brokerId=0
brokerIP1=127.0.0.1
namesrvAddr=127.0.0.1:{nameserver}
listenPort={broker}
storePathRootDir={directory}/store
storePathCommitLog={directory}/store/commitlog
mapedFileSizeCommitLog=67108864
enablePropertyFilter=true
diskMaxUsedSpaceRatio=98
transactionCheckInterval=3000
transactionTimeOut=2000
"""
NAMESERVER = """listenPort={nameserver}
kvConfigPath={directory}/key-values.json
orderMessageEnable=true
"""


def fetch(version: str) -> Path:
    """Returns the folder with the servers' jars; Maven gets them the first time."""
    folder = JARS / version
    if not folder.is_dir():
        command = [
            "mvn",
            "-q",
            "-B",
            "dependency:copy-dependencies",
            f"-Drocketmq.version={version}",
        ]
        subprocess.run([*command, f"-DoutputDirectory={folder}.new"], cwd=HERE, check=True)
        Path(f"{folder}.new").rename(folder)
    return folder


def free_port(*neighbours: int) -> int:
    """Returns a port that is free, and so are those at these distances.

    A broker listens on the port two below its own and the one above as well, whatever it is told.
    """
    while True:
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            port = int(held.getsockname()[1])
            try:
                for distance in neighbours:
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + distance))
            except OSError:
                continue
            return port


class StartError(Exception):
    """A server did not come up; the text has the end of its output."""


def until_started(start: Callable[[], None]) -> None:
    """Calls this until it does not raise `StartError`, at most three times.

    On a busy machine somebody may take a chosen port before the JVM is there, or a start may take
    too long: neither says anything about what is to be checked.

    Raises:
        StartError: Of the last time.
    """
    for attempt in range(1, STARTS_MAX):
        try:
            return start()
        except StartError as error:
            print(f"start {attempt} of {STARTS_MAX}: {error}", file=sys.stderr, flush=True)
    return start()


class Servers:
    """Starts on entering; ends the processes and deletes their data on leaving."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.jars = fetch(version)
        self.directory: Path  # of this start; a retry has another
        self.ports: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def nameserver(self) -> str:
        return f"127.0.0.1:{self.ports['nameserver']}"

    def __enter__(self) -> Self:
        until_started(self._start_anew)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_anew(self) -> None:
        """Starts both in a new place; leaves nothing behind if that fails."""
        self.directory = Path(tempfile.mkdtemp(prefix="apache-rocketmq-"))
        self.ports = {"nameserver": free_port(), "broker": free_port(-2, 1)}
        (self.directory / "conf").mkdir()
        for name, text in (("broker", BROKER), ("namesrv", NAMESERVER)):
            logging = LOGGING.format(directory=self.directory, name=name)
            (self.directory / "conf" / f"logback_{name}.xml").write_text(logging)
            (self.directory / f"{name}.conf").write_text(
                text.format(directory=self.directory, **self.ports)
            )
        try:
            self.start("namesrv", "org.apache.rocketmq.namesrv.NamesrvStartup", "128m")
            self._start_broker()
            self.wait_registered()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, name: str, main: str, heap: str) -> None:
        output = self.directory / f"{name}.out"
        arguments = ["java", f"-Xmx{heap}", "-XX:MaxDirectMemorySize=512m"]
        arguments += [f"-Duser.home={self.directory}"]
        arguments += [f"--add-opens={package}=ALL-UNNAMED" for package in OPENED]
        arguments += [f"--add-exports={package}=ALL-UNNAMED" for package in OPENED]
        arguments += ["-cp", f"{self.jars}/*", main, "-c", str(self.directory / f"{name}.conf")]
        with output.open("wb") as file:
            self.processes[name] = subprocess.Popen(
                arguments,
                cwd=self.directory,
                env={"ROCKETMQ_HOME": str(self.directory), "PATH": "/usr/bin:/bin"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + READY_S
        while b"boot success" not in output.read_bytes():
            if self.processes[name].poll() is not None or time.monotonic() > deadline:
                self.processes[name].kill()
                self.processes[name].wait()
                raise StartError(f"{name} does not start:\n{output.read_text()[-2000:]}")
            time.sleep(0.05)

    def wait_registered(self) -> None:
        """On a busy machine the first registration may fail; the next follows after 30 s."""
        deadline = time.monotonic() + READY_S
        with Admin(nameserver=self.nameserver) as admin:
            while True:
                with contextlib.suppress(DLedgerError):
                    if admin.cluster().brokers:
                        return
                if time.monotonic() > deadline:
                    raise StartError("the broker does not register")
                time.sleep(0.1)

    def crash(self) -> None:
        """kill -9 of the broker; starts it again."""
        process = self.processes["broker"]
        process.kill()
        process.wait()
        until_started(self._start_broker)

    def _start_broker(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # it would hold the data for damaged
            (self.directory / "store" / "lock").unlink()
        self.start("broker", "org.apache.rocketmq.broker.BrokerStartup", "512m")
