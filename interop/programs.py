"""The programs on the official clients: how each is built and started."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
BUILD_TIMEOUT_S: Final = 600.0


class ProgramError(Exception):
    """A tool is missing, or a program could not be built."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One official client of one version.

    Attributes:
        name: What the table and `--client` call it.
        client: The library and its version.
        tools: Commands that must be there.
        build: Arguments of the build command.
        directory: Where to build.
        command: Returns the command line; gets a directory to write into.
    """

    name: str
    client: str
    tools: tuple[str, ...]
    build: tuple[str, ...]
    directory: Path
    command: Callable[[Path], list[str]]

    def prepare(self) -> None:
        """Builds the program.

        Raises:
            ProgramError: A tool is missing, or the build failed; its last lines are quoted.
        """
        for tool in self.tools:
            if shutil.which(tool) is None:
                raise ProgramError(f"{self.name} needs {tool}, which is not installed")
        result = subprocess.run(
            self.build,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
        if result.returncode != 0:
            tail = "\n".join((result.stdout + result.stderr).splitlines()[-20:])
            raise ProgramError(f"{self.name}: {' '.join(self.build)} failed:\n{tail}")


def _java(version: str) -> Program:
    built = HERE / "java" / "target" / version

    def command(scratch: Path) -> list[str]:
        return [
            "java",
            # The client writes its log and its local offsets into the user's home.
            f"-Duser.home={scratch}",
            f"-Drocketmq.client.localOffsetStoreDir={scratch}",
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            *("-cp", f"{built}/interop.jar:{built}/lib/*"),
            "interop.Main",
        ]

    return Program(
        name=f"java-{version}",
        client=f"Java rocketmq-client {version}",
        tools=("java", "mvn"),
        build=("mvn", "-q", "-B", "package", f"-Drocketmq.version={version}"),
        directory=HERE / "java",
        command=command,
    )


def _go() -> Program:
    binary = HERE / "go" / "bin" / "interop"
    return Program(
        name="go",
        client="Go rocketmq-client-go v2.1.2",
        tools=("go",),
        build=("go", "build", "-o", str(binary), "."),
        directory=HERE / "go",
        command=lambda _: [str(binary)],
    )


def _node() -> Program:
    return Program(
        name="node",
        client="Node ali-ons 3.12.0",
        tools=("node", "npm"),
        build=("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"),
        directory=HERE / "node",
        command=lambda _: ["node", str(HERE / "node" / "main.js")],
    )


PROGRAMS: Final[dict[str, Program]] = {
    program.name: program for program in (_java("4.9.8"), _java("5.3.3"), _go(), _node())
}
