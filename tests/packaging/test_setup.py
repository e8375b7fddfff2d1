"""`tools/setup.sh` finds a Python that works, or says what is missing and how it is installed here."""

import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / "tools" / "setup.sh"
POSIX_TOOLS = ("sh", "dirname", "cat", "cksum")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a folder to be the whole PATH, with what a POSIX system has and no Python."""
    for tool in POSIX_TOOLS:
        real = shutil.which(tool)
        assert real, f"this system has no {tool}"
        (tmp_path / tool).symlink_to(real)
    program(tmp_path / "id", "echo 0")
    return tmp_path


def program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def find(*folders: Path, python: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": ":".join(map(str, folders)), "PYTHON": python}
    command = [folders[-1] / "sh", SETUP, "--find"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_newest_python_is_found_behind_a_broken_shim(machine: Path) -> None:
    shims = machine / "shims"
    program(shims / "python3.13", "exit 127")
    program(machine / "python3.13", "echo 3 13 none")
    program(machine / "python3.11", "echo 3 11 none")
    done = find(shims, machine)
    assert (done.stdout, done.stderr, done.returncode) == (f"{machine}/python3.13\n", "", 0)


def test_a_complete_python_is_preferred_to_a_newer_one_without_ensurepip(machine: Path) -> None:
    program(machine / "python3.13", "echo 3 13 ensurepip")
    program(machine / "python3.11", "echo 3 11 none")
    assert find(machine).stdout == f"{machine}/python3.11\n"


def test_a_python_that_was_asked_for_is_taken(machine: Path) -> None:
    program(machine / "python3.13", "echo 3 13 none")
    program(machine / "mine", "echo 3 12 none")
    assert find(machine, python="mine").stdout == f"{machine}/mine\n"


@pytest.mark.parametrize(
    ("answer", "installer", "says", "line"),
    [
        (None, "apt-get", "no python3", "apt-get install -y python3 python3-venv"),
        (None, "apk", "no python3", "apk add --upgrade python3"),
        (None, "brew", "no python3", "brew install python"),
        ("3 9 none", "apt-get", "(3.9)", "apt-get install -y python3.11 python3.11-venv"),
        ("3 9 none", "dnf", "(3.9)", "dnf install -y python3.11"),
        ("3 10 none", "pacman", "(3.10)", "pacman -S --needed python"),
        ("3 12 ensurepip", "apt-get", "lacks the module ensurepip", "apt-get install -y python3.12-venv"),
        ("3 12 venv", "nothing-known", "lacks the module venv", "https://www.python.org"),
    ],
)
def test_what_is_missing_is_named_with_this_systems_install_line(
    machine: Path, answer: str | None, installer: str, says: str, line: str
) -> None:
    program(machine / installer, "exit 1")
    if answer:
        program(machine / "python3", f"echo {answer}")
    done = find(machine)
    assert done.returncode == 1
    assert done.stdout == ""
    assert says in done.stderr
    assert line in done.stderr
