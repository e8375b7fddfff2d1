"""Imports point down: each root may import only those below it, and nothing heavy when it is loaded.

The rules are checked on syntax trees, so that an import inside a function counts too.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "schemas": set(),
    "state": {"schemas"},
    "bus": {"schemas"},
    "producers": {"schemas", "bus", "state"},
    "consumers": {"schemas", "bus", "state", "producers"},
}
FACE = "refold"  # what is in refold/ itself: it may import all, and no root may import it
LOADED_ON_USE = {"torch", "sklearn", "matplotlib"}
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}
KAFKA_DRIVER = ("refold.bus.kafka", "refold.bus._kafka_")


@dataclass(frozen=True)
class Import:
    """One import statement's target, as written."""

    target: str
    line: int
    level: int = 0  # leading dots
    when_loaded: bool = False  # runs when the module is loaded, not later in a function
    for_types: bool = False  # under TYPE_CHECKING: never runs


class Imports(ast.NodeVisitor):
    """Collects what a module imports, by statement or by `import_module` of a constant."""

    def __init__(self, modules: Mapping[str, str]) -> None:
        self.modules = modules
        self.found: list[Import] = []
        self.in_function = self.for_types = False

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            is_module = submodule in self.modules or (node.module == "refold" and alias.name in MAY_IMPORT)
            self.add(submodule if is_module else node.module or "", node.lineno, node.level)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if name in {"import_module", "__import__"} and isinstance(first, ast.Constant) and isinstance(first.value, str):
            self.add(first.value.lstrip("."), node.lineno, len(first.value) - len(first.value.lstrip(".")))
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, node.args):  # these run where the function is defined
            self.visit(part)
        self.visit_body(node.body, in_function=True)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 -- the name is ast's

    def visit_If(self, node: ast.If) -> None:
        test = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", "")
        self.visit(node.test)
        self.visit_body(node.body, for_types=test == "TYPE_CHECKING")
        self.visit_body(node.orelse)

    def visit_body(self, body: list[ast.stmt], *, in_function: bool = False, for_types: bool = False) -> None:
        before = self.in_function, self.for_types
        self.in_function, self.for_types = self.in_function or in_function, self.for_types or for_types
        for statement in body:
            self.visit(statement)
        self.in_function, self.for_types = before

    def add(self, target: str, line: int, level: int = 0) -> None:
        self.found.append(Import(target, line, level, not (self.in_function or self.for_types), self.for_types))


def imports_of(module: str, modules: Mapping[str, str]) -> list[Import]:
    visitor = Imports(modules)
    visitor.visit(ast.parse(modules[module], filename=module))
    return visitor.found


def root_of(module: str) -> str:
    """Return the root that a module of the package is in; those of refold/ itself are in the face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else FACE


def fault_of(module: str, found: Import) -> str | None:
    """Return what is wrong with one import, or None."""
    top = found.target.split(".")[0]
    root = root_of(module)
    if found.level:
        return "a relative import"
    if top in MAY_IMPORT:
        return f"imports {top} as a top-level package: write refold.{top}"
    if top == "refold" and root != FACE and root_of(found.target) not in MAY_IMPORT[root] | {root}:
        return f"imports upward: {root} may not import {found.target}"
    if top == "kafka" and module != KAFKA_DRIVER[0] and not module.startswith(KAFKA_DRIVER[1]):
        return "imports kafka outside bus/kafka.py and bus/_kafka_*.py"
    if top in UNPICKLERS:
        return f"imports {top}, and loading a pickle runs its author's code"
    if top in LOADED_ON_USE and found.when_loaded:
        return f"imports {top} when loaded: import it in the function that uses it"
    return None


def faults_of(modules: Mapping[str, str]) -> Iterator[str]:
    """Yield what is wrong with the imports of a package, given as source by module name."""
    below: dict[str, set[str]] = {}
    for module in modules:
        found = imports_of(module, modules)
        for each in found:
            if fault := fault_of(module, each):
                yield f"{module}:{each.line}: {fault}"
        below[module] = {each.target for each in found if each.target in modules and not each.for_types}
        if module in below[module]:
            yield f"{module}: imports itself"
    try:
        TopologicalSorter({module: targets - {module} for module, targets in below.items()}).prepare()
    except CycleError as error:
        yield "a cycle: " + " → ".join(reversed(error.args[1]))


def modules_in(repository: Path) -> dict[str, str]:
    """Read the package's sources by module name, each from its real folder."""
    modules = {}
    for root in (FACE, *MAY_IMPORT):
        for folder, _, files in os.walk(repository / root):  # os.walk follows no links
            for file in files:
                path = Path(folder, file)
                if path.suffix == ".py":
                    parts = path.relative_to(repository).with_suffix("").parts
                    name = ".".join(parts if root == FACE else (FACE, *parts)).removesuffix(".__init__")
                    modules[name] = path.read_text(encoding="utf-8")
    return modules


def test_the_package_imports_downward_only() -> None:
    assert list(faults_of(modules_in(REPOSITORY))) == []


def test_the_walk_sees_every_root() -> None:
    assert {root_of(module) for module in modules_in(REPOSITORY)} == {FACE, *MAY_IMPORT}


def test_sources_are_read_once_and_by_their_public_name(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "__init__.py").write_text("")
    (tmp_path / "state" / "fold.py").write_text("x = 1")
    (tmp_path / "refold").mkdir()
    (tmp_path / "refold" / "cli.py").write_text("")
    (tmp_path / "refold" / "state").symlink_to("../state")
    assert modules_in(tmp_path) == {"refold.state": "", "refold.state.fold": "x = 1", "refold.cli": ""}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("refold.schemas.model", "import refold.state", "upward"),
        ("refold.state.fold", "from refold.bus import Bus", "upward"),
        ("refold.state.fold", "from refold import bus", "upward"),
        ("refold.bus.memory", "import refold.state.fold as f", "upward"),
        ("refold.producers.outbox", "def f():\n    from refold.consumers.worker import run", "upward"),
        ("refold.consumers.worker", "from refold.cli import main", "upward"),
        ("refold.consumers.worker", "import refold", "upward"),
        ("refold.consumers.worker", "from refold import create", "upward"),
        ("refold.state.fold", "if TYPE_CHECKING:\n    from refold.bus import Bus", "upward"),
        ("refold.state.fold", "import_module('refold.bus')", "upward"),
        ("refold.state.fold", "from . import lattice", "relative"),
        ("refold.state.fold", "from .lattice import step", "relative"),
        ("refold.state.fold", "importlib.import_module('.lattice', 'refold.state')", "relative"),
        ("refold.state.fold", "import schemas.model", "top-level package"),
        ("refold.cli", "from state import fold", "top-level package"),
        ("refold.bus.sqlite", "def f():\n    import kafka", "outside bus/kafka.py"),
        ("refold.cli", "from kafka.errors import KafkaError", "outside bus/kafka.py"),
        ("refold.state.fold", "def f():\n    import pickle", "pickle"),
        ("refold.state.fold", "from pickle import loads", "pickle"),
        ("refold.consumers.health", "import joblib", "pickle"),
        ("refold.consumers.health", "import torch.nn", "when loaded"),
        ("refold.consumers.health", "try:\n    from sklearn import svm\nexcept ImportError:\n    svm = None", "when loaded"),
        ("refold.dashboard", "class C:\n    import matplotlib.pyplot as plt", "when loaded"),
        ("refold.dashboard", "if not TYPE_CHECKING:\n    import torch", "when loaded"),
        ("refold.dashboard", "if TYPE_CHECKING:\n    pass\nelse:\n    import torch", "when loaded"),
        ("refold.dashboard", "def f(x=__import__('torch')):\n    pass", "when loaded"),
    ],
)
def test_a_forbidden_import_is_named(module: str, source: str, fault: str) -> None:
    faults = list(faults_of({module: source}))
    assert len(faults) == 1
    assert fault in faults[0]
    assert faults[0].startswith(f"{module}:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("refold.state.fold", "import refold.schemas.model\nfrom refold.schemas import canonical\nfrom refold import schemas"),
        ("refold.state.fold", "from refold.state.lattice import step"),
        ("refold.consumers.worker", "from refold.producers import outbox\nfrom refold.bus.contract import Bus"),
        ("refold.cli", "import refold\nfrom refold.consumers import worker"),
        ("refold.bus.kafka", "import kafka\nfrom kafka.errors import KafkaError"),
        ("refold.bus._kafka_client", "import kafka"),
        ("refold.consumers.health", "def f():\n    import sklearn, torch\n    import matplotlib.pyplot"),
        ("refold.consumers.health", "async def f():\n    if x:\n        import torch"),
        ("refold.consumers.health", "if typing.TYPE_CHECKING:\n    import torch"),
        ("refold.state.fold", "import statefulness, bus_stop, torchlight"),
    ],
)
def test_a_downward_import_is_let_by(module: str, source: str) -> None:
    assert list(faults_of({module: source})) == []


@pytest.mark.parametrize(
    "modules",
    [
        {"refold.state.a": "import refold.state.b", "refold.state.b": "def f():\n    from refold.state.a import x"},
        {"refold.state": "from refold.state.a import x", "refold.state.a": "from refold.state import y"},
        {
            "refold.state.a": "from refold.state import b",
            "refold.state.b": "import refold.state.c",
            "refold.state.c": "from refold.state.a import x",
        },
    ],
)
def test_a_cycle_is_named(modules: dict[str, str]) -> None:
    faults = list(faults_of(modules))
    assert len(faults) == 1
    assert faults[0].startswith("a cycle: ")
    assert all(module in faults[0] for module in modules)


def test_a_module_that_imports_itself_is_named() -> None:
    assert list(faults_of({"refold.state": "from refold.state import x"})) == ["refold.state: imports itself"]


def test_an_import_for_types_alone_makes_no_cycle() -> None:
    modules = {"refold.state.a": "import refold.state.b", "refold.state.b": "if TYPE_CHECKING:\n    import refold.state.a"}
    assert list(faults_of(modules)) == []


def test_importing_refold_loads_nothing_heavy() -> None:
    program = "import sys, refold; print(*sorted({'kafka', 'matplotlib', 'sklearn', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")
