"""The documentation is true: examples run and print what they show, links lead somewhere."""

import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import widelimit
from widelimit import finite, solvers, testing
from widelimit.estimators import classifier, gaussian, metric, regressor, scaling, whitening

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# In comments and docstrings: docs/mathematics.md, "Slices".
CITATION = re.compile(r"\b((?:docs/)?\w+\.md)\b(?:, \"([^\"]+)\")?")


class Example(NamedTuple):
    line: int
    code: str
    output: str | None  # of the "text" fence that follows at once: what the example prints


def find_examples(text: str) -> list[Example]:
    fences = list(FENCE.finditer(text))
    examples: list[Example] = []
    for i, fence in enumerate(fences):
        if fence[1] != "python":
            continue
        output = None
        if i + 1 < len(fences) and fences[i + 1][1] == "text":
            between = text[fence.end() : fences[i + 1].start()]
            output = fences[i + 1][2] if not between.strip() else None
        examples.append(Example(text.count("\n", 0, fence.start(2)), fence[2], output))
    return examples


def run_examples(page: str, text: str) -> None:
    """Run the examples of a page in their order, as one program."""
    names: dict[str, object] = {"__name__": "__main__"}
    for example in find_examples(text):
        # Empty lines in front: a traceback shows the line of the page.
        code = compile("\n" * example.line + example.code, page, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if example.output is not None:
            assert printed.getvalue() == example.output, f"{page}:{example.line}"


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def find_dead_links(page: Path) -> list[str]:
    dead: list[str] = []
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):  # another place: not ours to test
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text("utf-8"))):
            dead.append(target)
    return dead


def find_dead_citations(source: str) -> list[str]:
    dead: list[str] = []
    for name, section in CITATION.findall(source):
        path = next((p for p in (ROOT / name, ROOT / "docs" / name) if p.exists()), None)
        headings = re.findall(
            r"^#+ +(.+?) *$", path.read_text("utf-8") if path else "", re.MULTILINE
        )
        if path is None or (section and section not in headings):
            dead.append(f"{name} {section}".strip())
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text("utf-8")
    if any("import torch" in example.code for example in find_examples(text)):
        torch = pytest.importorskip("torch")  # not among the packages of the tests
        torch.set_num_threads(1)  # more of them wait for each other where tests run side by side
    run_examples(str(page), text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert find_dead_links(page) == []


def test_code_cites_pages_that_are_there() -> None:
    files = [p for p in (ROOT / "src").rglob("*") if p.suffix in (".py", ".pyi", ".cpp", ".hpp")]
    files += [p for p in (ROOT / "tests").glob("*.py") if p != Path(__file__)]
    dead = {str(p.relative_to(ROOT)): find_dead_citations(p.read_text("utf-8")) for p in files}
    assert {name: found for name, found in dead.items() if found} == {}


@pytest.mark.parametrize(
    "module",
    [classifier, gaussian, metric, regressor, scaling, whitening],
    ids=lambda m: m.__name__,
)
def test_examples_of_estimators_run(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 2
    assert result.failed == 0


def test_readme_has_an_example_with_its_output() -> None:
    examples = find_examples((ROOT / "README.md").read_text("utf-8"))
    assert any(example.output for example in examples)


def test_wrong_output_is_reported() -> None:
    page = "```python\nx = 1\n```\ntext\n```python\nprint(x)\n```\n\n```text\n{}\n```\n"
    run_examples("page", page.format(1))
    with pytest.raises(AssertionError, match="page:5"):
        run_examples("page", page.format(2))


def test_dead_links_are_reported(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[1](page.md) [2](#a-b) [3](https://x.org)\n[4](no.md) [5](#c)\n")
    assert find_dead_links(page) == ["no.md", "#c"]


def test_dead_citations_are_reported() -> None:
    text = 'docs/mathematics.md, "Slices"; docs/mathematics.md, "Dice"; docs/no.md (README.md)'
    assert find_dead_citations(text) == ["docs/mathematics.md Dice", "docs/no.md"]


def test_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    named = set(re.findall(r"^::: (?:\w+\.)*(\w+)$", page, re.MULTILINE))
    for members in re.findall(r"members: \[(.*)\]", page):
        named |= set(members.split(", "))
    assert set(widelimit.__all__) - named == {"__version__"}
    for module in (solvers, finite, testing):
        own = {name for name in module.__all__ if callable(getattr(module, name))}
        assert own - {"Fault", "Method"} <= named  # words that are options
    for path in re.findall(r"^::: (\S+)\.(\w+)$", page, re.MULTILINE):
        module, name = path
        assert hasattr(importlib.import_module(module), name), path


def test_every_guarantee_has_its_test() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 15
    for name, function in named:
        content = (ROOT / "tests" / name).read_text("utf-8")
        assert not function or f"def {function}(" in content, f"{name}::{function}"
