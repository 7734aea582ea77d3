"""`dledger jepsen check`: proofs over recorded histories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import jepsen_run, jepsen_sim
from cli.console import say, say_json
from cli.errors import CommandError, ExitCode
from cli.options import JsonOption

if TYPE_CHECKING:
    from jepsen_tests.checkers.verdict import Verdict

app = typer.Typer(help="Fault injection, simulation and history checks.", no_args_is_help=True)
app.command("run")(jepsen_run.run)
app.command("sim")(jepsen_sim.sim)
app.command("matrix")(jepsen_run.matrix)
app.command("controls")(jepsen_run.controls)


@app.command("check")
def check(
    history: Annotated[Path, typer.Argument(help="A run's history file (JSON lines).")],
    json_output: JsonOption = False,
) -> None:
    """Judge a history: exit 0 valid, 4 violated, 5 unknown."""
    from jepsen_tests.checkers import judge_file

    try:
        verdict = judge_file(history)
    except OSError as error:
        raise CommandError(f"cannot read {history}: {error.strerror}", ExitCode.USAGE) from None
    show_verdict(verdict, json_output)
    raise typer.Exit(verdict_exit_code(verdict))


def show_verdict(verdict: Verdict, json_output: bool) -> None:
    """Prints a verdict for a person or, on one line, for a program."""
    if json_output:
        say_json(verdict.to_dict())
    else:
        say("\n".join(verdict.lines()))


def verdict_exit_code(verdict: Verdict) -> ExitCode:
    """Returns the exit code of a verdict."""
    codes = {
        "valid": ExitCode.DONE,
        "violated": ExitCode.VIOLATION,
        "unknown": ExitCode.UNDECIDED,
    }
    return codes[verdict.outcome.value]
