"""The doctor finds the machine, tests every instruction set, and tells what is wrong."""

import dataclasses
import math
import sys
from typing import Any

import numpy as np
import pytest

import widelimit
import widelimit.backends
from widelimit.backends.base import Pairs
from widelimit.backends.cpu import ISA_VARIABLE, instruction_sets
from widelimit.backends.reference import ReferenceBackend
from widelimit.doctor import (
    Diagnosis,
    examine,
    find_faults,
    find_machine,
    largest_error,
    parse_cpuinfo,
    render,
    sample_sums,
)


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ISA_VARIABLE, raising=False)
        return examine()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor\t: 0\nvendor_id\t: V\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Chip 9\n"
            "stepping\t: 4\n\nprocessor\t: 1\nmodel name\t: other\n",
            "Chip 9 (family 6, model 85, stepping 4)",
        ),
        ("processor\t: 0\nBogoMIPS\t: 48.00\n\nHardware\t: Board\n", "Board"),
        ("processor\t: 0\nmodel name\t: \n", None),
        ("", None),
    ],
)
def test_name_of_the_processor(text: str, name: str | None) -> None:
    assert parse_cpuinfo(text) == name


def test_machine() -> None:
    machine = find_machine()
    assert 1 <= machine.cores_usable <= machine.cores
    assert machine.packages["numpy"] == np.__version__
    assert machine.memory_free is None or machine.memory_free > 0
    assert machine.to_dict()["cpu"] == machine.cpu != ""


def test_all_is_well(diagnosis: Diagnosis) -> None:
    assert diagnosis.problems == ()
    assert {isa.name: isa.supported for isa in diagnosis.instruction_sets} == instruction_sets()
    for isa in diagnosis.instruction_sets:
        if isa.supported:
            assert 0 < isa.errors["float64"] < isa.errors["float32"]
    assert diagnosis.chosen == next(isa.name for isa in diagnosis.instruction_sets if isa.supported)
    page = render(diagnosis)
    assert page.endswith("all is well")
    assert f"-> {diagnosis.chosen}" in page
    assert widelimit.__version__ in page
    for isa in diagnosis.instruction_sets:
        assert isa.name in page


def test_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "plain")
    page = render(examine())
    assert "chosen: plain (forced by WIDELIMIT_ISA)" in page
    assert "-> plain" in page


def test_wrong_override_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "mmx")
    diagnosis = examine()
    assert diagnosis.chosen is None
    assert "PROBLEM: WIDELIMIT_ISA must name one of" in render(diagnosis)
    assert "all is well" not in render(diagnosis)


def test_missing_core_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(widelimit.backends, "cpu")
    monkeypatch.setitem(sys.modules, "widelimit.backends.cpu", None)
    diagnosis = examine()
    assert diagnosis.instruction_sets == ()
    assert "PROBLEM: the compiled core cannot be loaded" in render(diagnosis)


def test_an_instruction_set_that_the_processor_lacks(diagnosis: Diagnosis) -> None:
    first, *others = diagnosis.instruction_sets
    lacking = dataclasses.replace(first, supported=False, errors={})
    page = render(dataclasses.replace(diagnosis, instruction_sets=(lacking, *others)))
    assert "lacks it" in page
    assert "has it" in page


class Broken(ReferenceBackend):
    """The reference, but for one entry of one tile."""

    def __init__(self, factor: float, pairwise: bool) -> None:
        self.factor, self.pairwise = factor, pairwise

    def sums(self, program: Any, left: Any, right: Any, tile: Pairs, cancel: Any) -> Any:
        result = super().sums(program, left, right, tile, cancel)
        if tile.pairwise == self.pairwise:
            result.reshape(result.shape[0], 2, -1)[-1, 1, -1] *= self.factor
        return result


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_wrong_entry_is_seen(factor: float, pairwise: bool) -> None:
    want = sample_sums(ReferenceBackend(), "float64")
    error = largest_error(sample_sums(Broken(factor, pairwise), "float64"), want)
    assert error == pytest.approx(factor - 1, nan_ok=True)
    (fault,) = find_faults("avx9", {"float64": error})
    assert "self test of avx9 in float64" in fault
    assert "WIDELIMIT_ISA" in fault


def test_equal_backends_do_not_differ() -> None:
    want = sample_sums(ReferenceBackend(), "float64")
    assert largest_error(sample_sums(ReferenceBackend(), "float32"), want) == 0
    assert find_faults("avx9", {"float32": 9e-6, "float64": 9e-13}) == []


def test_failed_self_test_is_shown(diagnosis: Diagnosis) -> None:
    first = next(found for found in diagnosis.instruction_sets if found.supported)
    others = [found for found in diagnosis.instruction_sets if found is not first]
    bad = dataclasses.replace(first, errors={"float32": 0.5, "float64": 1e-15})
    page = render(dataclasses.replace(diagnosis, instruction_sets=(bad, *others)))
    assert "FAILED, 5.0e-01 / 1.0e-15" in page
