"""Each module imports only from those above it in the table of layers, and imports make no cycle.

Read from the source by AST: an import inside a function, or one for the type checker alone, ties
two modules together as much as any other.
"""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "widelimit"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# ARCHITECTURE.md, "Layers of the code": a module may import from those before it.
LAYERS = [
    "_version",
    "arrays",
    "files",
    "keeping",
    "machine",
    "reading",
    "display",
    "markup",
    "_core",
    "lattice",
    "layers",
    "network",
    "architectures",
    "dual",
    "program",
    "backends",
    "matrices",
    "doctor",
    "costs",
    "solvers",
    "estimators",
    "data",
    "finite",
    "experiments",
    "report",
    "plot",
    "bench",
    "job",
    "classify",
    "console",
    "reproduce",
    "cli",
    "__main__",
    "testing",
]


def read_modules(source: Path) -> dict[str, Path]:
    """Return the path of each module of the package in the folder ``source``."""
    modules: dict[str, Path] = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        modules[".".join((PACKAGE, *parts)).removesuffix(".__init__")] = path
    return modules


def imported_names(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that is imported; ``package`` is what "." means."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*above, base] if base else above)
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"
            case ast.Call(
                func=ast.Attribute(attr="import_module")
                | ast.Name(id="import_module")
                | ast.Name(id="__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, package + name if name.startswith(".") else name


def read_imports(modules: dict[str, Path]) -> Iterator[tuple[str, int, str]]:
    """Module, line and imported module for every import of the package from itself."""
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for line, imported in imported_names(ast.parse(path.read_text("utf-8")), package):
            target = imported
            while target and target not in modules:  # a name in a module: the module
                target = target.rpartition(".")[0]
            if target and target != module:
                yield module, line, target


def layer(module: str) -> str:
    return module.split(".")[1]


def find_faults(source: Path) -> list[str]:
    """Return one line for each import that the table does not allow, and one for a cycle."""
    modules = read_modules(source)
    unplaced = sorted({layer(m) for m in modules if m != PACKAGE} - set(LAYERS))
    if unplaced:
        return [f"{PACKAGE}.{name} has no place in the table of layers" for name in unplaced]

    faults: list[str] = []
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, line, target in read_imports(modules):
        graph[module].add(target)
        where = f"{modules[module].relative_to(source)}:{line}: {module} imports {target}"
        if module == PACKAGE:  # the facade imports whom it likes
            continue
        if target == PACKAGE:
            faults.append(f"{where}, the facade: import from the module that has the name")
        elif LAYERS.index(layer(target)) > LAYERS.index(layer(module)):
            faults.append(f"{where}, which comes after it")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        faults.append("cycle: " + " <- ".join(error.args[1]))
    return faults


def test_layers() -> None:
    assert find_faults(SOURCE) == []


def test_architecture_has_the_same_table() -> None:
    page = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text("utf-8")
    table = page.partition("## Layers of the code")[2].partition("\n\n`import widelimit`")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    named = [
        name.rstrip("/").removesuffix(".py") for c in cells for name in re.findall("`(.*?)`", c)
    ]
    assert named == [name for name in LAYERS if name not in ("_version", "__main__")]


def test_imports_are_seen() -> None:
    seen = {(module, target) for module, _, target in read_imports(read_modules(SOURCE))}
    assert (f"{PACKAGE}.architectures", f"{PACKAGE}.network") in seen
    assert (f"{PACKAGE}.program", f"{PACKAGE}.dual") in seen


TREE = {
    "__init__.py": "from widelimit.network import Network\nfrom widelimit.cli import main",
    "network.py": "import json",
    "dual.py": "import numpy as np",
    "program.py": "from .network import Network\nfrom . import dual",
    "backends/__init__.py": "from widelimit.backends.cpu import Cpu",
    "backends/base.py": "import widelimit.program",
    "backends/cpu.py": "from .base import Base\nfrom ..program import Program",
    "cli.py": "from widelimit.backends import Cpu",
}
UPWARD = "imports widelimit.cli, which comes after it"


def build(folder: Path, **changed: str) -> Path:
    for name, text in (TREE | changed).items():
        path = folder / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / PACKAGE


def test_clean_tree_has_no_fault(tmp_path: Path) -> None:
    assert find_faults(build(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("network.py", "import widelimit.cli", UPWARD),
        ("network.py", "from widelimit import cli", UPWARD),
        ("network.py", "from widelimit.cli import main", UPWARD),
        ("network.py", "from .cli import main", UPWARD),
        ("network.py", "def late():\n    import widelimit.cli as c", UPWARD),
        ("network.py", "if TYPE_CHECKING:\n    from .cli import main", UPWARD),
        ("network.py", "import_module('widelimit.cli')", UPWARD),
        ("backends/base.py", "from .. import cli", UPWARD),
        ("backends/base.py", "from ..cli import main", UPWARD),
        ("network.py", "from widelimit import Network", "the facade"),
        ("backends/base.py", "from .cpu import Cpu", "cycle: "),
        ("plugins.py", "", "widelimit.plugins has no place in the table of layers"),
    ],
)
def test_fault_is_reported(tmp_path: Path, name: str, text: str, fault: str) -> None:
    faults = find_faults(build(tmp_path, **{name: text}))
    assert any(fault in line for line in faults), faults
