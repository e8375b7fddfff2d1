"""What is shipped: an sdist, a wheel made from that sdist, and the wheel in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = ("bus", "consumers", "producers", "schemas", "state")
IMPORT_EVERY_MODULE = """
import importlib, pkgutil, sys
import refold
def raise_it(name): raise
for module in pkgutil.walk_packages(refold.__path__, "refold.", onerror=raise_it):
    importlib.import_module(module.name)
for name in sorted(sys.modules):
    if name.split(".")[0] == "refold":
        print(name, sys.modules[name].__file__)
"""


PRINT_RECIPE = """
from refold.testing.kafka.jars import kafka_version, recipe
print(kafka_version(), *sorted(path.name for path in recipe().iterdir() if path.suffix in {".xml", ".properties"}))
print(recipe())
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_under(*folders: str, suffixes: tuple[str, ...] = (".py", ".md", ".typed")) -> set[str]:
    """Return the repository's own files, as paths from its top, links not followed."""
    found = set()
    for start in folders:
        for folder, _, files in os.walk(REPOSITORY / start):
            found |= {Path(folder, file).relative_to(REPOSITORY).as_posix() for file in files if file.endswith(suffixes)}
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, with the backend that is installed here."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, REPOSITORY, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def sdist_names(built: Path) -> set[str]:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {PurePosixPath(*PurePosixPath(name).parts[1:]).as_posix() for name in archive.getnames()}


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new environment that borrows this one's dependencies, and not its editable Refold."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    site_packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A folder named in a .pth file has its own .pth files left unread: the checkout stays out of sight.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed))
    return python


def test_the_sdist_has_every_file_of_its_own(sdist_names: set[str]) -> None:
    assert {"README.md", "LICENSE", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "tools/setup.sh"} <= sdist_names
    assert {"docker/Dockerfile", "docker/compose.yaml", "docker/.env", "docker/kafka/pom.xml"} <= sdist_names
    wanted = files_under("refold", *ROOTS, "tests", "docs", "examples", "benchmarks")
    assert "tests/packaging/test_wheel.py" in wanted
    assert wanted <= sdist_names


def test_the_sdist_has_each_root_once(sdist_names: set[str]) -> None:
    assert not {name for name in sdist_names if name.startswith(tuple(f"refold/{root}" for root in ROOTS))}


def test_the_wheel_has_one_top_level_name(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"refold"}


def test_the_wheel_has_every_module_once(wheel_names: list[str]) -> None:
    shipped = sorted(name for name in wheel_names if name.startswith("refold/") and name.endswith((".py", ".typed")))
    in_roots = {f"refold/{name}" for name in files_under(*ROOTS, suffixes=(".py",))}
    assert shipped == sorted(in_roots | files_under("refold", suffixes=(".py", ".typed")))
    assert "refold/py.typed" in shipped


def test_every_module_of_the_installed_wheel_imports(clean_python: Path, wheel_names: list[str], tmp_path: Path) -> None:
    printed = run(clean_python, "-I", "-c", IMPORT_EVERY_MODULE, cwd=tmp_path)
    files = dict(line.split(maxsplit=1) for line in printed.splitlines())
    expected = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in wheel_names if name.endswith(".py")
    }
    assert files.keys() == expected
    environment = clean_python.parent.parent
    assert all(Path(file).is_relative_to(environment) for file in files.values())


def test_the_installed_launcher_has_what_it_fetches_kafka_with(clean_python: Path, tmp_path: Path) -> None:
    said, folder = run(clean_python, "-I", "-c", PRINT_RECIPE, cwd=tmp_path).splitlines()
    assert said.split()[1:] == ["log4j2.properties", "pom.xml"]
    assert Path(folder).is_relative_to(clean_python.parent.parent)
    pom = (REPOSITORY / "docker" / "kafka" / "pom.xml").read_bytes()
    assert (Path(folder) / "pom.xml").read_bytes() == pom


def test_the_installed_command_answers(clean_python: Path, tmp_path: Path) -> None:
    assert "refold" in run(clean_python.parent / "refold", "--help", cwd=tmp_path).lower()
