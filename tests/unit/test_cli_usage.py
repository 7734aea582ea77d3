"""Wrong use is refused with one clear line and exit code 2, before anything is done."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.cluster import LocalCluster, check_port_free, free_port_base
from cli.errors import CommandError, PortTakenError, UsageError
from cli.layout import ClusterSpec, plan, save_layout
from cli.main import app, run
from cli.options import nameservers


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLEDGER_NAMESERVER", raising=False)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["bogus"], 2, "bogus"),
        (["up", "--replicas", "2"], 2, "--replicas must be 1, 3 or 5"),
        (["up", "--replicas", "many"], 2, "--replicas"),
        (["up", "--groups", "0"], 2, "--groups"),
        (["up", "--port-base", "70000"], 2, "--port-base"),
        (["up", "--flush", "never"], 2, "--flush"),
        (["up", "--unknown"], 2, "--unknown"),
        (["down", "--data", "absent"], 2, "holds no cluster"),
        (["status"], 1, "no nameserver answers at 127.0.0.1:1"),
        (["status", "--nameserver", "127.0.0.1:1"], 1, "127.0.0.1:1"),
        (["status", "--nameserver", "nonsense"], 2, "must be host:port"),
        (["status", "--data", "absent"], 2, "absent holds no cluster"),
        (["doctor", "--nameserver", "nonsense:x"], 2, "must be host:port"),
        (["doctor", "--data", "absent"], 2, "absent holds no cluster"),
        (["config", "show", "--address", "nonsense"], 2, "must be host:port"),
        (["config", "show", "--nameserver", "nonsense"], 2, "must be host:port"),
        (["topic", "list"], 1, "cannot connect to 127.0.0.1:1: Connection refused"),
        (["topic", "order", "t", "--queues", "x"], 2, "GROUP:QUEUES"),
        (["produce"], 2, "TOPIC"),
        (["produce", "t", "absent.txt"], 1, "cannot read absent.txt"),
        (["produce", "t", "--queue", "1", "--shard-key", "k"], 2, "not both"),
        (["produce", "t", "--queue", "-1"], 2, "--queue"),
        (["produce", "bad name", "/dev/null"], 2, "bad name"),
        (["produce", "", "/dev/null"], 2, "topic"),
        (["broker", "start"], 2, "--config"),
        (["nameserver", "start", "--listen", "9876"], 2, "--listen = '9876': must be host:port"),
    ],
)
def test_one_line_and_the_exit_code(
    arguments: list[str],
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Somebody's cluster may run at the usual port.
    monkeypatch.setattr("cli.options.DEFAULT_PORT_BASE", 1)
    assert run(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("error: ")
    assert text in line


def test_contradicting_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_layout(tmp_path / "data", plan(ClusterSpec(replicas=1, port_base=9000)))
    for options, text in (
        (["--replicas", "3"], "--replicas 1, not 3"),
        (["--port-base", "9001"], "--port-base 9000, not 9001"),
        (["--flush", "async"], "--flush sync, not async"),
    ):
        assert run(["up", "--data", "data", *options]) == 2
        assert text in capsys.readouterr().err


def test_unwritable_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(["up", "--detach", "--data", "file/data"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "file" in line


def test_taken_port_is_named_and_nothing_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = free_port_base(3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 1))
        taken.listen()
        arguments = ["--replicas", "1", "--port-base", str(base), "--data", "data", "--detach"]
        assert run(["up", *arguments]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert f"port {base + 1} (for clients of broker-a-0) is in use" in line
        with pytest.raises(PortTakenError):
            check_port_free(f"127.0.0.1:{base + 1}", "x")
    assert not (tmp_path / "data" / "cluster.json").exists()


def test_second_start_at_the_same_time_is_refused(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, ClusterSpec(replicas=1, port_base=free_port_base(3)))
    with cluster._locked(), pytest.raises(CommandError, match="another"):
        LocalCluster(tmp_path, cluster.layout.spec).start()


def test_unknown_process(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, ClusterSpec(replicas=1, port_base=9000))
    with pytest.raises(UsageError, match="no process broker-z-0"):
        cluster.kill("broker-z-0")
    with pytest.raises(CommandError, match="does not run"):
        cluster.kill("broker-a-0")


def test_where_the_nameserver_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nameservers(None) == "127.0.0.1:9876"
    save_layout(tmp_path / "dledger-data", plan(ClusterSpec(nameservers=2, port_base=9000)))
    assert nameservers(None) == "127.0.0.1:9000;127.0.0.1:9001"
    monkeypatch.setenv("DLEDGER_NAMESERVER", "h:1")
    assert nameservers(None) == "h:1"
    assert nameservers("g:2") == "g:2"


def test_help_of_every_command() -> None:
    runner = CliRunner()
    top = runner.invoke(app, ["--help"])
    assert top.exit_code == 0
    for name in ("up", "down", "status", "produce", "nameserver", "broker"):
        assert name in top.output
        assert runner.invoke(app, [name, "--help"]).exit_code == 0


def test_status_of_a_cluster_that_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = free_port_base(7)
    save_layout(tmp_path / "data", plan(ClusterSpec(port_base=base)))
    assert run(["status", "--data", "data", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["nameservers"] == [{"address": f"127.0.0.1:{base}", "alive": False}]
    [group] = status["groups"]
    assert (group["name"], group["term"], group["leader"]) == ("broker-a", None, None)
    assert group["replicas"][0] == {
        "id": "broker-a-0",
        "role": None,
        "address": f"127.0.0.1:{base + 1}",
        "raft_address": f"127.0.0.1:{base + 2}",
        "pid": None,
        "alive": False,
        "commit_index": None,
        "applied_index": None,
        "durable_index": None,
        "log_bytes": None,
        "member": None,
        "incarnation": None,
    }
    assert run(["status", "--data", "data"]) == 0
    assert "leader none" in capsys.readouterr().out


def test_a_directory_that_was_named_goes_before_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLEDGER_NAMESERVER", "10.0.0.1:9876")
    assert nameservers(None) == "10.0.0.1:9876"
    save_layout(tmp_path / "data", plan(ClusterSpec(replicas=1, port_base=9000)))
    assert nameservers(None, Path("data")) == "127.0.0.1:9000"
    assert nameservers("a:1", Path("absent")) == "a:1"
    with pytest.raises(UsageError, match="absent holds no cluster"):
        nameservers(None, Path("absent"))


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.decode() == "error: cannot write: No space left on device\n"


def test_help_shows_square_brackets() -> None:
    shown = CliRunner().invoke(app, ["group", "add-replica", "--help"]).output
    assert "[[replicas]]" in shown
