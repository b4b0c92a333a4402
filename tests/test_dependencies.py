"""What is imported is declared, what is declared is imported, and what is to come says so."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from test_layers import SOURCE, imported_names, read_modules

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PROJECT = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
# Names under which packages are imported, where they are not those of the packages.
IMPORTED_AS = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "google-crc32c": "google_crc32c",
    "pillow-heif": "pillow_heif",
    "cupy-cuda12x": "cupy",
    "cupy-cuda13x": "cupy",
}
PARTS = {"cupyx": "cupy"}  # packages that come with another one


def modules_of(requirements: list[str]) -> set[str]:
    """Names that packages are imported by."""
    names = {re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in requirements}
    return {IMPORTED_AS.get(name, name) for name in names}


def imported(source: Path) -> dict[str, str]:
    """Packages that a source imports from elsewhere, each with one of the places."""
    found: dict[str, str] = {}
    for module, path in read_modules(source).items():
        for line, name in imported_names(ast.parse(path.read_text("utf-8")), module):
            top = name.partition(".")[0]
            top = PARTS.get(top, top)
            if top != "widelimit" and top not in sys.stdlib_module_names:
                found[top] = f"{path.name}:{line}"
    return found


DECLARED = modules_of(PROJECT["dependencies"])
EXTRAS = {
    name: modules_of(requirements)
    for name, requirements in PROJECT["optional-dependencies"].items()
    if name not in ("test", "dev")
}


def test_all_that_is_imported_is_declared() -> None:
    # The test kit needs what the tests need.
    known = DECLARED.union(*EXTRAS.values(), modules_of(PROJECT["optional-dependencies"]["test"]))
    assert {name: place for name, place in imported(SOURCE).items() if name not in known} == {}


def test_all_that_is_required_is_imported() -> None:
    assert DECLARED - imported(SOURCE).keys() == set()


def test_an_import_that_is_not_declared_is_seen(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("def f():\n    from yaml import load\n    import PIL.Image")
    assert imported(tmp_path) == {"yaml": "late.py:2", "PIL": "late.py:3"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_that_nothing_uses_says_that_it_is_to_come(extra: str) -> None:
    (line,) = re.findall(rf"^{extra} = .*$", PYPROJECT.read_text("utf-8"), re.MULTILINE)
    used = bool(EXTRAS[extra] & imported(SOURCE).keys())
    used |= extra == "dask"  # a client is taken as it comes
    assert used == ("# to come" not in line)
