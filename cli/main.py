"""The `dledger` command."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from cli import config, consumer, dlq, group, jepsen, lifecycle, message, quota, replica, topic
from cli.bench import bench
from cli.console import say
from cli.consume import consume
from cli.demo import demo
from cli.doctor import doctor
from cli.errors import CommandError, ExitCode
from cli.explain import explain
from cli.produce import produce
from cli.servers import broker_app, nameserver_app
from cli.trace import trace
from dledger.errors import ConfigError, DLedgerError, InvariantError

# The parser's own errors. typer brings its copy of click, whose module is private: the public
# BadParameter leads to the root of the family.
_LINE_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

# Standard output goes to a file on a full disk.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

app = typer.Typer(
    name="dledger",
    help="A Raft-replicated message broker with Apache RocketMQ's model and wire protocol.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
topic.app.command("quota")(quota.topic_quota)
consumer.app.command("quota")(quota.group_quota)
consumer.app.command("guard")(quota.group_guard)
message.app.command("explain")(explain)
message.app.command("trace")(trace)
app.command()(lifecycle.up)
app.command()(lifecycle.down)
app.command()(lifecycle.status)
app.command()(produce)
app.command()(consume)
app.command()(demo)
app.command()(doctor)
app.command()(bench)
app.add_typer(topic.app, name="topic")
app.add_typer(consumer.app, name="consumer")
app.add_typer(group.app, name="group")
app.add_typer(replica.app, name="replica")
app.add_typer(message.app, name="message")
app.add_typer(config.app, name="config")
app.add_typer(dlq.app, name="dlq")
app.add_typer(nameserver_app, name="nameserver")
app.add_typer(broker_app, name="broker")
app.add_typer(jepsen.app, name="jepsen")


def main() -> None:
    """Runs the command line of this process and ends it."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code (`cli.errors.ExitCode`, 130 after Ctrl-C).

    Every expected failure becomes one line on standard error, without a traceback.
    """
    try:
        return int(app(list(arguments), prog_name="dledger", standalone_mode=False) or 0)
    except _LINE_ERRORS as error:
        return _misused(error)
    except CommandError as error:
        return _fail(error, error.exit_code)
    except ConfigError as error:
        return _fail(error, ExitCode.USAGE)
    except InvariantError:
        raise
    except DLedgerError as error:
        return _fail(error, ExitCode.FAILED if error.definite else ExitCode.UNKNOWN)
    except BrokenPipeError:
        # The reader of our output has gone (`dledger consume t | head`).
        _drop_output()
        return ExitCode.FAILED
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _drop_output()
        return _fail(CommandError(f"cannot write: {error.strerror}"), ExitCode.FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _misused(error: Exception) -> int:
    """Reports what the command line parser refused."""
    context = getattr(error, "ctx", None)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        # Its making has printed the help already, if rich does the printing.
        if text.strip():
            say(text)
        return ExitCode.USAGE
    path = context.command_path if context is not None else "dledger"
    sys.stderr.write(f"error: {text} (see `{path} --help`)\n")
    return ExitCode.USAGE


def _drop_output() -> None:
    """Keeps the interpreter from complaining again when it flushes standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: Exception, code: ExitCode) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


def _version(wanted: bool) -> None:
    if wanted:
        try:
            say(f"dledger {version('dledger-mq')}")
        except PackageNotFoundError:
            say("dledger (not installed)")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass
