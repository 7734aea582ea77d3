"""What the wheel ships and what an import loads.

The servers' packages have generic names (`store`, `broker`, ...). A user's application that wants
just a producer must never load one of them: it may well have a `store` of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["broker", "cli", "dledger", "jepsen_tests", "nameserver", "store"]


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=110
    )


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Builds the wheel from a copy, so that nothing left over in the checkout can get in."""
    copy = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (copy / "storefront").mkdir()
    (copy / "storefront" / "__init__.py").write_text("")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    built = run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out", "."], copy
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [wheel] = (copy / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel_has_exactly_our_six_top_level_names(wheel_names: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel_names}
    assert sorted(name for name in top if not name.endswith(".dist-info")) == PACKAGES


def test_wheel_has_every_module_and_the_type_markers(wheel_names: list[str]) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert expected <= set(wheel_names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel_names)


def test_using_the_client_loads_no_server_package(tmp_path: Path) -> None:
    program = (
        "import sys, dledger\n"
        "dledger.Producer, dledger.Message, dledger.PushConsumer, dledger.Admin\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "bad = names & {'store', 'broker', 'nameserver', 'cli', 'jepsen_tests',\n"
        "               'typer', 'rich', 'lmdb', 'pysyncobj'}\n"
        "sys.exit(f'loaded: {sorted(bad)}' if bad else 0)\n"
    )
    done = run([sys.executable, "-P", "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_cheap(tmp_path: Path) -> None:
    program = "import sys, dledger\nsys.exit('client' if 'dledger.client' in sys.modules else 0)\n"
    assert run([sys.executable, "-P", "-c", program], tmp_path).returncode == 0


def test_servers_start_without_the_command_line_libraries(tmp_path: Path) -> None:
    """Start-up time and memory of a replica: typer and rich stay out of the server processes."""
    program = (
        "import sys, broker.__main__, nameserver.__main__\n"
        "bad = {name.partition('.')[0] for name in sys.modules} & {'typer', 'rich', 'click'}\n"
        "sys.exit(f'loaded: {sorted(bad)}' if bad else 0)\n"
    )
    done = run([sys.executable, "-P", "-c", program], tmp_path)
    assert done.returncode == 0, done.stderr


def test_import_contracts_hold() -> None:
    done = run([str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
