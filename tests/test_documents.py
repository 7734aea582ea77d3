"""What the documents name exists: tests, files, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from jepsen_tests.controls import chosen
from jepsen_tests.nemeses.registry import NEMESES, parse_nemeses
from jepsen_tests.workloads.registry import find_workload

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"^dledger ([a-z]+)(?: ([a-z]+(?:\|[a-z-]+)*))?", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_tests_and_linked_files_exist(document: Path) -> None:
    text = document.read_text()
    for file, name in TEST.findall(text):
        assert (ROOT / file).is_file(), file
        if name:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
    for target in LINK.findall(text):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_workloads_and_faults_exist(document: Path) -> None:
    text = document.read_text()
    for workload in re.findall(r"--workload ([\w-]+)", text):
        assert find_workload(workload)
    for nemeses in re.findall(r"--nemesis ([\w,]+)", text):
        assert set(parse_nemeses(nemeses)) <= set(NEMESES)
    for control in re.findall(r"--only ([\w-]+)", text):
        assert chosen([control])


def test_readme_names_only_commands_that_exist() -> None:
    runner = CliRunner()
    commands = set(COMMAND.findall((ROOT / "README.md").read_text()))
    assert any(name == "topic" and "create|list|show|delete" in parts for name, parts in commands)
    groups = {"topic", "consumer", "message", "dlq", "nameserver", "broker", "group", "jepsen"}
    for command, subcommands in commands:
        for subcommand in subcommands.split("|") if command in groups else [""]:
            words = [command, subcommand] if subcommand else [command]
            assert runner.invoke(app, [*words, "--help"]).exit_code == 0, words
