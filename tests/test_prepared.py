"""Samples that are prepared once: the bits of `kernel`, and what is not done again."""

import copy
import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import widelimit as wl
from widelimit.backends.cpu import ISA_VARIABLE, CpuBackend, instruction_sets
from widelimit.matrices import inputs, prepared
from widelimit.matrices.prepared import PreparedKernel

RNG = np.random.default_rng(0)
X = RNG.random((530, 5, 4, 2))  # two blocks of profiles
NEW = np.concatenate([RNG.random((20, 5, 4, 2)), X[[3, 529, 3]]])
HEAD = wl.Network([wl.Conv(3), wl.ReLU(), wl.GlobalAvgPool(), wl.Dense(), wl.ReLU(), wl.Dense()])
NETS = [wl.cntk_vanilla(3), HEAD]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("nets", "x", "new"),
    [
        ([wl.cntk_gap(3)], X, NEW),
        (NETS, X.astype(np.float32), NEW),
        ([wl.ntk_dense(3, b_std=0.1)], X.reshape(530, -1), NEW.reshape(23, -1)),
        ([wl.ntk_dense(2), wl.cntk_vanilla(2)], X, NEW),
    ],
    ids=["gap", "heads", "dense", "mixed"],
)
def test_the_bits_of_kernel(
    nets: list[wl.Network], x: np.ndarray, new: np.ndarray, dtype: Any
) -> None:
    made = PreparedKernel(nets, x, dtype=dtype, threads=2)
    for kinds in (("ntk",), ("nngp", "ntk"), ("ntk",)):
        expected = wl.kernel(nets, new, x, kind=kinds, dtype=dtype)
        for part in (slice(None), slice(19, 23)):
            for k, want in zip(made.cross(new[part], kinds), expected, strict=True):
                assert k.dtype == want.dtype
                assert np.array_equal(k, want[:, part])


class Counts:
    """How often samples were profiled, hashed and compared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.profiled = self.hashed = self.compared = 0
        profile, digest, equal = CpuBackend.profile, inputs._digest, np.array_equal

        def count_profile(*arguments: Any) -> Any:
            self.profiled += len(arguments[2])
            return profile(*arguments)

        def count_digest(row: np.ndarray) -> int:
            self.hashed += 1
            return digest(row)

        def count_equal(a: np.ndarray, b: np.ndarray) -> bool:
            self.compared += 1
            return equal(a, b)

        monkeypatch.setattr(CpuBackend, "profile", count_profile)
        monkeypatch.setattr(inputs, "_digest", count_digest)
        monkeypatch.setattr(inputs.np, "array_equal", count_equal)

    def since(self) -> tuple[int, int, int]:
        counts = self.profiled, self.hashed, self.compared
        self.profiled = self.hashed = self.compared = 0
        return counts


def test_samples_are_profiled_and_numbered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(monkeypatch)
    made = PreparedKernel([HEAD], X, threads=1)
    assert counts.since() == (0, 0, 0)
    made.cross(NEW, ["ntk"])
    assert counts.since() == (553, 553, 3)
    for _ in range(3):
        made.cross(NEW, ["ntk"])
        assert counts.since() == (23, 23, 3)
    made.cross(NEW[:2], ["ntk", "nngp"])  # other kinds are another program
    assert counts.since() == (532, 2, 0)
    for kinds in (["ntk"], ["ntk", "nngp"]):
        made.cross(NEW[:2], kinds)
        assert counts.since() == (2, 2, 0)


def test_another_instruction_set_has_profiles_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    best, *_, last = [name for name, there in instruction_sets().items() if there]
    counts = Counts(monkeypatch)
    made = PreparedKernel([HEAD], X[:40], threads=1)
    for isa, profiled in ((best, 41), (last, 41), (best, 1), (last, 1)):
        monkeypatch.setenv(ISA_VARIABLE, isa)
        (k,) = made.cross(X[:1], ["ntk"])
        assert counts.since()[0] == profiled
        assert np.array_equal(k[0], wl.kernel(HEAD, X[:1], X[:40]))
        counts.since()


def test_new_samples_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PreparedKernel([HEAD], X[:9], threads=1)
    made.cross(X[9:12], ["ntk"])
    counts = Counts(monkeypatch)
    made.cross(X[9:12], ["ntk"])  # not recognised: nothing to compare them with
    assert counts.since() == (3, 3, 0)


def profile_size() -> int:
    """Bytes that one sample and its profile take."""
    program = wl.program.compile_family([HEAD], X.shape[1:], ["ntk"])
    return CpuBackend().profile_bytes(program, "float32")


def test_profiles_that_do_not_fit_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(monkeypatch)
    made = PreparedKernel([HEAD], X, threads=1)
    size = profile_size()
    monkeypatch.setattr(prepared, "PROFILE_BYTES", 2 * 530 * size - 1)
    made.cross(NEW, ["ntk"])
    made.cross(NEW, ["nngp"])  # both together do not fit
    counts.since()
    made.cross(NEW, ["nngp"])
    assert counts.since() == (23, 23, 3)
    made.cross(NEW, ["ntk"])
    assert counts.since() == (553, 23, 3)
    monkeypatch.setattr(prepared, "PROFILE_BYTES", 530 * size - 1)
    for _ in range(2):
        (k,) = made.cross(NEW, ["ntk"])
        assert counts.since() == (553, 23, 3)
    assert np.array_equal(k[0], wl.kernel(HEAD, NEW, X))


def test_objects_that_are_gone_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(monkeypatch)
    size = profile_size()
    monkeypatch.setattr(prepared, "PROFILE_BYTES", 2 * 40 * size)
    monkeypatch.setattr(prepared, "_shelf", prepared._Shelf())
    first = PreparedKernel([HEAD], X[:40])
    first.cross(X[:1], ["ntk"])
    PreparedKernel([HEAD], X[40:80]).cross(X[:1], ["ntk"])
    gc.collect()
    third = PreparedKernel([HEAD], X[80:120])
    third.cross(X[:1], ["ntk"])  # in the place of the second
    counts.since()
    first.cross(X[:1], ["ntk"])
    assert counts.since()[0] == 1


def test_all_objects_together_keep_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the estimators of an ensemble, each with its training samples."""
    counts = Counts(monkeypatch)
    size = profile_size()
    monkeypatch.setattr(prepared, "PROFILE_BYTES", 2 * 40 * size)
    monkeypatch.setattr(prepared, "_shelf", prepared._Shelf())
    first, second, third = (PreparedKernel([HEAD], X[i : i + 40]) for i in (0, 40, 80))
    for made, profiled in (
        (first, 41),
        (second, 41),
        (first, 1),
        (third, 41),  # in the place of the second, which was used least
        (first, 1),
        (second, 41),
    ):
        made.cross(X[:1], ["ntk"])
        assert counts.since()[0] == profiled
    del first, third
    PreparedKernel([HEAD], X[:40]).cross(X[:1], ["ntk"])
    counts.since()
    second.cross(X[:1], ["ntk"])  # what is gone takes no place
    assert counts.since()[0] == 1


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))]
)
def test_copies_are_of_the_value(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = PreparedKernel(NETS, X, "reference", "float64", 2)
    before = len(pickle.dumps(made))
    made.cross(NEW[:1], ["ntk"])
    assert len(pickle.dumps(made)) == before
    other = copied(made)
    for name in ("networks", "backend", "dtype", "threads"):
        assert getattr(other, name) == getattr(made, name)
    assert np.array_equal(other.samples, X)
    assert np.array_equal(other.cross(NEW[-3:], ["ntk"]), made.cross(NEW[-3:], ["ntk"]))


def test_several_threads_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(monkeypatch)
    made = PreparedKernel(NETS, X, threads=1)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: made.cross(NEW[i : i + 1], ["ntk"])[0], range(23)))
    assert np.array_equal(np.concatenate(parts, axis=1), wl.kernel(NETS, NEW, X))
    # `kernel` has looked at all of them once more
    assert counts.since()[1] == 530 + 23 + 553


def test_what_is_checked() -> None:
    with pytest.raises(TypeError, match="net must be a Network, a preset like"):
        PreparedKernel([3], X)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="got 'cntk'"):
        PreparedKernel(["cntk"], X)
    with pytest.raises(ValueError, match='dtype must be "float32" or "float64"'):
        PreparedKernel(NETS, X, dtype="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads must be at least 1"):
        PreparedKernel(NETS, X, threads=0)
    with pytest.raises(ValueError, match="backend must be"):
        PreparedKernel(NETS, X, "gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x2 must have shape \(n, h, w, c\), got \(530, 40\)"):
        PreparedKernel(NETS, X.reshape(530, -1))
    made = PreparedKernel(NETS, X)
    with pytest.raises(ValueError, match=r"x1 must have shape"):
        made.cross(NEW[0], ["ntk"])
    with pytest.raises(ValueError, match="hold inputs of one shape"):
        made.cross(NEW[..., :1], ["ntk"])
    with pytest.raises(ValueError, match="kind must be"):
        made.cross(NEW, ["ntk", "ntk"])
    with pytest.raises(ValueError, match=r"x1 must be finite, .* the first is x1\[1\]"):
        made.cross([X[0], X[1] * np.nan], ["ntk"])
    bad = X.copy()
    bad[517] = np.inf
    with pytest.raises(ValueError, match=r"x2 must be finite, .* the first is x2\[517\]"):
        PreparedKernel(NETS, bad).cross(NEW, ["ntk"])


def test_memory_is_looked_at_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module("widelimit.matrices.kernel")
    monkeypatch.setattr(module, "available_memory", lambda: 2**10)
    monkeypatch.setattr(module, "ALWAYS_FITS", 0)
    with pytest.raises(MemoryError, match="23 x 530 kernel values of 2 networks and 1 kinds need"):
        PreparedKernel(NETS, X).cross(NEW, ["ntk"])
