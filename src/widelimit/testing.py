"""Public test kit: a conformance suite for backends, injected faults, and the accuracy table.

A backend author writes a factory and inherits all tests; pytest collects the class, but nothing
here imports pytest::

    from widelimit.testing import BackendConformance

    class TestMyBackend(BackendConformance):
        def make_backend(self):
            return MyBackend()

`FaultyBackend` makes a backend wrong in a known way: the suite must fail, or it proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.architectures import cntk_gap, cntk_vanilla
from widelimit.arrays import FloatArray
from widelimit.backends import get_backend
from widelimit.backends.base import Backend, Cancelled, Dtype, Entries, Pairs, Profile
from widelimit.matrices.engine import fill
from widelimit.matrices.families import find_families
from widelimit.matrices.profiles import Samples
from widelimit.network import (
    Conv,
    Dense,
    GlobalAvgPool,
    LocalAvgPool,
    Network,
    ReLU,
)
from widelimit.program import Kind, Program, Tap, compile_family

__all__ = [
    "AccuracyRow",
    "BackendConformance",
    "Case",
    "Fault",
    "FaultyBackend",
    "accuracy_table",
    "assert_close",
    "compute",
    "exact_kernel",
]

_KINDS: tuple[Kind, ...] = ("nngp", "ntk")


# ---------------------------------------------------------------- comparing


def assert_close(
    actual: ArrayLike,
    desired: ArrayLike,
    *,
    rtol: float,
    floor: ArrayLike = 0.0,
    context: str = "",
) -> None:
    """Require ``|actual - desired| <= rtol * max(|desired|, floor)`` in every entry.

    Parameters
    ----------
    actual, desired : array_like of the same shape
    rtol : float
        Largest relative error allowed; 0 requires equality.
    floor : array_like
        Errors are relative to at least this, broadcast to the shape: what to compare with where
        terms cancel, such as a part of ``sqrt(k(x,x) k(z,z))``.
    context : str
        What is compared, first words of the failure message.

    Raises
    ------
    AssertionError
        With the largest absolute and relative error, both values and where they are. NaN is close
        to nothing.
    """
    a, d = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    what = f"{context}: " if context else ""
    if a.shape != d.shape:
        raise AssertionError(f"{what}shape {a.shape}, expected {d.shape}")
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(a == d, 0.0, np.abs(a - d))
        relative = error / np.maximum(np.abs(d), np.asarray(floor, np.float64))
    relative = np.where(error == 0, 0.0, relative)
    error, relative = (np.where(np.isnan(e), np.inf, e) for e in (error, relative))
    wrong = relative > rtol
    if not wrong.any():
        return
    lines = [f"{what}{np.count_nonzero(wrong)} of {a.size} entries differ by more than {rtol:.1e}"]
    for name, values in (("absolute", error), ("relative", relative)):
        at = np.unravel_index(int(np.argmax(values)), values.shape)
        where = f"[{', '.join(str(int(i)) for i in at)}]"
        lines.append(
            f"  largest {name} error {values[at]:.3e} at {where}: "
            f"got {float(a[at])!r}, expected {float(d[at])!r}"
        )
    raise AssertionError("\n".join(lines))


def _assert_same_bits(actual: ArrayLike, desired: ArrayLike, context: str) -> None:
    assert_close(actual, desired, rtol=0.0, context=f"{context}, bit for bit")


def compute(
    backend: Backend,
    networks: Sequence[Network],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    kinds: Sequence[Kind] = _KINDS,
    dtype: Dtype = "float64",
    threads: int = 1,
) -> NDArray[Any]:
    """Compute kernels with a backend object, as `widelimit.kernel` does with a backend's name.

    Parameters
    ----------
    backend : Backend
    networks : sequence of Network
    x1, x2 : array_like of shape (n, h, w, c)
        `x2` None: the symmetric Gram matrix of `x1`.
    kinds : sequence of {"nngp", "ntk"}
    dtype : {"float32", "float64"}
    threads : int

    Returns
    -------
    ndarray of `dtype`, shape (n_networks, n_kinds, n1, n2)
    """
    left, right = _samples(x1, x2)
    shape = (len(networks), len(kinds), len(left), len(left if right is None else right))
    out = np.empty(shape, dtype)
    families = find_families(networks, left.values.shape[1:], tuple(kinds), backend)
    fill(families, left, right, out, dtype, threads)
    return out


def _samples(x1: ArrayLike, x2: ArrayLike | None) -> tuple[Samples, Samples | None]:
    """Give equal inputs equal numbers, on both sides."""
    one = np.asarray(x1, np.float64)
    two = one[:0] if x2 is None else np.asarray(x2, np.float64)
    both = np.concatenate([one, two])
    rows = both.reshape(len(both), -1)
    _, inverse = np.unique(rows, axis=0, return_inverse=True)
    identity = np.asarray(inverse, np.int64).reshape(-1)
    left = Samples(one, identity[: len(one)])
    return left, None if x2 is None else Samples(two, identity[len(one) :])


# ---------------------------------------------------------------- the suite


@dataclass(frozen=True)
class Case:
    """A network and the images it is tried on.

    Parameters
    ----------
    name : str
    network : Network
    shape : tuple of int
        ``(h, w, c)``.
    signed : bool
        Whether every other image has entries of both signs.
    """

    name: str
    network: Network
    shape: tuple[int, int, int]
    signed: bool = True

    @property
    def has_bias(self) -> bool:
        """Whether a layer has a bias: then the kernel is not homogeneous."""
        return any(getattr(layer, "b_std", 0.0) > 0 for layer in self.network.layers)

    def images(self, n: int, seed: int = 0) -> FloatArray:
        """Return random images, shape (n, h, w, c): uniform in [0, 1], or normal if signed."""
        rng = np.random.default_rng(seed)
        images = rng.uniform(0.0, 1.0, (n, *self.shape))
        if self.signed:
            images[1::2] = rng.standard_normal(images[1::2].shape)
        return images


_MIXED = [
    Conv(3, b_std=0.3),
    Conv(3, w_std=0.9, b_std=0.1, trainable=False),
    ReLU(),
    Conv(5),
    GlobalAvgPool(),
    Dense(),
    ReLU(),
    Dense(b_std=0.2),
]
_LOCAL = [Conv(5), ReLU(), Conv(1, trainable=False), ReLU(), LocalAvgPool(1), Dense()]
_WIDE = [Conv(7, trainable=False), ReLU(), Conv(7), ReLU(), GlobalAvgPool(), Dense()]
_CASES = (
    Case("CNTK-V", cntk_vanilla(4), (5, 4, 3)),
    Case("CNTK-GAP", cntk_gap(4), (4, 5, 3)),
    Case("local pooling", Network(_LOCAL), (6, 3, 2)),
    Case("biases, linear layers, deep head", Network(_MIXED), (3, 4, 2)),
    Case("filter larger than the image", Network(_WIDE), (1, 6, 2)),
    Case("one pixel", cntk_vanilla(6, 1), (1, 1, 5)),
    Case("no convolution", Network([GlobalAvgPool(), Dense()]), (3, 3, 1), signed=False),
)


@lru_cache(maxsize=32)
def _expected(case: Case) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Images, their Gram matrices by the reference backend (nngp, ntk), and floors of errors."""
    images = case.images(22)
    images[21] = images[1]
    gram = compute(get_backend("reference"), [case.network], images)[0]
    diagonal = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    # Uniform images have positive terms only: no floor. Normal ones cancel.
    signed = (np.arange(22) % 2 == 1) & case.signed
    cancels = signed[:, None] | signed[None, :]
    return images, gram, np.where(cancels, 0.25 * diagonal[:, :, None] * diagonal[:, None, :], 0.0)


class BackendConformance:
    """What a backend must do: inherit, and define `make_backend`.

    Attributes
    ----------
    cases : tuple of Case
        Networks and images; a subclass may add its own.
    tolerance : mapping of dtype to float
        Largest relative error against the reference backend. The keys are the dtypes tested.
    """

    cases: ClassVar[tuple[Case, ...]] = _CASES
    tolerance: ClassVar[Mapping[Dtype, float]] = {"float32": 5e-6, "float64": 1e-12}

    def make_backend(self) -> Backend:
        """Return the backend under test."""
        raise NotImplementedError("define make_backend() and return the backend to test")

    def _runs(self) -> Iterator[tuple[Backend, Case, Dtype]]:
        backend = self.make_backend()
        for case in self.cases:
            for dtype in self.tolerance:
                yield backend, case, dtype

    def _prepared(self, backend: Backend, case: Case, dtype: Dtype) -> tuple[Program, Profile]:
        images, _, _ = _expected(case)
        program = compile_family([case.network], case.shape, _KINDS)
        samples, _ = _samples(images, None)
        return program, backend.profile(program, *samples.block(0, len(images)), dtype)

    def test_values_of_a_rectangle(self) -> None:
        """k(x, z) is that of the reference backend, more columns than lanes."""
        for backend, case, dtype in self._runs():
            images, gram, floor = _expected(case)
            values = compute(backend, [case.network], images[:4], images[4:], dtype=dtype)[0]
            for kind, value, desired, least in zip(_KINDS, values, gram, floor, strict=True):
                assert_close(
                    value,
                    desired[:4, 4:],
                    rtol=self.tolerance[dtype],
                    floor=least[:4, 4:],
                    context=f"{case.name}, {kind}, {dtype}",
                )

    def test_values_of_a_symmetric_gram_matrix(self) -> None:
        """k(x, x') is that of the reference backend, and bitwise symmetric."""
        for backend, case, dtype in self._runs():
            images, gram, floor = _expected(case)
            values = compute(backend, [case.network], images, dtype=dtype)[0]
            for kind, value, desired, least in zip(_KINDS, values, gram, floor, strict=True):
                context = f"{case.name}, {kind}, {dtype}"
                assert_close(
                    value, desired, rtol=self.tolerance[dtype], floor=least, context=context
                )
                _assert_same_bits(value, value.T, f"{context}: transpose")

    def test_arguments_may_be_exchanged(self) -> None:
        """k(x, z) is k(z, x), bit for bit, in blocks and in pairs."""
        for backend, case, dtype in self._runs():
            program, profile = self._prepared(backend, case, dtype)
            cancel = np.zeros(1, np.int32)
            rows, columns = np.arange(5), np.arange(2, len(profile))
            forth = backend.sums(program, profile, profile, Pairs(rows, columns), cancel)
            back = backend.sums(program, profile, profile, Pairs(columns, rows), cancel)
            context = f"{case.name}, {dtype}: k(z, x)"
            _assert_same_bits(forth, back.swapaxes(-1, -2), context)
            i, j = (a.ravel() for a in np.meshgrid(rows, columns))
            forth = backend.sums(program, profile, profile, Pairs(i, j, pairwise=True), cancel)
            back = backend.sums(program, profile, profile, Pairs(j, i, pairwise=True), cancel)
            _assert_same_bits(forth, back, f"{context}, pairs")

    def test_tile_is_the_sum_of_its_entries(self) -> None:
        """Blocks, single pairs, any order and repetition give one value a pair, bit for bit."""
        for backend, case, dtype in self._runs():
            program, profile = self._prepared(backend, case, dtype)
            cancel = np.zeros(1, np.int32)
            n = len(profile)
            every = np.arange(n)
            block = backend.sums(program, profile, profile, Pairs(every, every), cancel)
            what = f"{case.name}, {dtype}"
            if block.shape != (len(program.taps), 2, n, n) or block.dtype != np.float64:
                raise AssertionError(f"{what}: tile is {block.dtype} of shape {block.shape}")
            for columns in (np.array([3]), every[::-1], np.array([2, 2, 7, 0])):
                rows = every[1:4]
                part = backend.sums(program, profile, profile, Pairs(rows, columns), cancel)
                _assert_same_bits(part, block[:, :, rows[:, None], columns], f"{what}: block")
            rows, columns = np.divmod(np.random.default_rng(1).permutation(n * n)[: 2 * n + 3], n)
            pairs = Pairs(rows, columns, pairwise=True)
            part = backend.sums(program, profile, profile, pairs, cancel)
            _assert_same_bits(part, block[:, :, rows, columns], f"{what}: pairs")

    def test_a_profile_belongs_to_its_image_alone(self) -> None:
        """Images profiled together or apart give the same bits."""
        for backend, case, dtype in self._runs():
            images, _, _ = _expected(case)
            whole = compute(backend, [case.network], images[:2], images, dtype=dtype)
            for j in (0, 1, 20):
                column = compute(backend, [case.network], images[:2], images[[j]], dtype=dtype)
                _assert_same_bits(column[..., 0], whole[..., j], f"{case.name}, {dtype}: alone")

    def test_threads_change_nothing(self) -> None:
        """Tiles computed at the same time give the same bits."""
        for backend, case, dtype in self._runs():
            images, _, _ = _expected(case)
            one = compute(backend, [case.network], images, dtype=dtype)
            four = compute(backend, [case.network], images, dtype=dtype, threads=4)
            _assert_same_bits(four, one, f"{case.name}, {dtype}: 4 threads")

    def test_a_family_is_its_networks(self) -> None:
        """Networks of one pass have the values that they have alone."""
        backend = self.make_backend()
        networks = [cntk_gap(2), cntk_vanilla(3), cntk_gap(4)]
        networks += [Network([*cntk_gap(4).layers[:4], LocalAvgPool(1), Dense()], "paper")]
        images = Case("family", networks[0], (4, 3, 2)).images(18)[::2]  # uniform
        for dtype, tolerance in self.tolerance.items():
            together = compute(backend, networks, images, dtype=dtype)
            for network, values in zip(networks, together, strict=True):
                apart = compute(backend, [network], images, dtype=dtype)[0]
                assert_close(values, apart, rtol=tolerance, context=f"{network}, {dtype}")
            for kind, values in zip(_KINDS, together.swapaxes(0, 1), strict=True):
                apart = compute(backend, networks, images, kinds=[kind], dtype=dtype)[:, 0]
                assert_close(values, apart, rtol=tolerance, context=f"{kind} alone, {dtype}")

    def test_a_black_image_has_kernel_zero(self) -> None:
        """Without biases an all-zero image is uncorrelated with everything; no NaN appears."""
        for backend, case, dtype in self._runs():
            if case.has_bias:
                continue
            images = _expected(case)[0][:18].copy()
            images[[2, 17]] = 0.0
            values = compute(backend, [case.network], images, dtype=dtype)[0]
            context = f"{case.name}, {dtype}: black image"
            _assert_same_bits(values[:, [2, 17]], np.zeros((2, 2, 18)), context)
            if not np.isfinite(values).all():
                raise AssertionError(f"{context}: others are not finite")

    def test_without_biases_a_kernel_is_homogeneous(self) -> None:
        """k(a x, b z) = a b k(x, z); exactly for powers of two, and as accurate for 1e-18, 1e18."""
        for backend, case, dtype in self._runs():
            if case.has_bias:
                continue
            # not the last image: it is the second one, and a multiple of it is not known to be one
            images, gram, floor = _expected(case)
            x, z, part = images[:3], images[3:21], np.s_[:, :3, 3:21]
            value = compute(backend, [case.network], x, z, dtype=dtype)
            context = f"{case.name}, {dtype}"
            for a, b in ((2.0**-9, 1.0), (2.0**20, 2.0**-41)):
                scaled = compute(backend, [case.network], a * x, b * z, dtype=dtype)
                _assert_same_bits(scaled, a * b * value, f"{context}: times {a} and {b}")
            for a in (1e-18, 1e18):
                scaled = compute(backend, [case.network], a * x, z, dtype=dtype)[0]
                assert_close(
                    scaled / a,
                    gram[part],
                    rtol=self.tolerance[dtype],
                    floor=floor[part],
                    context=f"{context}: times {a}",
                )

    def test_what_no_kernel_needs_is_zero(self) -> None:
        """Fields that a tap does not ask for are 0, in the sums of a tile."""
        for backend, case, dtype in self._runs():
            images, _, _ = _expected(case)
            for kind in _KINDS:
                program = compile_family([case.network], case.shape, [kind])
                samples, _ = _samples(images[:3], None)
                profile = backend.profile(program, *samples.block(0, 3), dtype)
                tile = Pairs(np.arange(3), np.arange(3))
                sums = backend.sums(program, profile, profile, tile, np.zeros(1, np.int32))
                for tap, fields in zip(program.taps, sums, strict=True):
                    for wanted, field in zip((tap.want_sigma, tap.want_theta), fields, strict=True):
                        if not wanted:
                            context = f"{case.name}, {kind}, {dtype}: not asked for"
                            _assert_same_bits(field, np.zeros((3, 3)), context)

    def test_cancelled_work_raises(self) -> None:
        """A tile that was told to stop raises `Cancelled` and returns nothing."""
        for backend, case, dtype in self._runs():
            program, profile = self._prepared(backend, case, dtype)
            for pairwise in (False, True):
                tile = Pairs(np.arange(4), np.arange(4), pairwise)
                try:
                    backend.sums(program, profile, profile, tile, np.ones(1, np.int32))
                except Cancelled:
                    continue
                raise AssertionError(f"{case.name}, {dtype}: the cancelled tile was returned")

    def test_sizes_are_declared(self) -> None:
        """Lanes and memory are positive integers."""
        for backend, case, dtype in self._runs():
            program, profile = self._prepared(backend, case, dtype)
            sizes = (
                backend.lanes(dtype),
                backend.profile_bytes(program, dtype),
                backend.scratch_bytes(program, dtype),
            )
            if any(size < 1 for size in sizes) or len(profile) != len(_expected(case)[0]):
                raise AssertionError(f"{case.name}, {dtype}: lanes, bytes {sizes}, {len(profile)}")


# ---------------------------------------------------------------- faults

Fault: TypeAlias = Literal[
    "perturbed entry",
    "perturbed weight",
    "transposed tile",
    "shifted displacement",
    "dropped layer",
    "frozen layer",
    "lost sign",
    "forgotten identity",
    "exchanged fields",
    "shuffled pairs",
    "rounded to float32",
    "depends on the tile",
    "depends on the batch",
    "depends on the call",
    "asymmetric",
    "0/0",
    "deaf to cancel",
    "undeclared memory",
]


@dataclass(frozen=True, slots=True)
class _ShiftedTap(Tap):
    """Reads the slice next to the one it should read."""

    def weights(self, extent: int) -> FloatArray:
        shifted = np.roll(Tap.weights(self, extent), 1, axis=0)
        d = np.abs(np.arange(1 - extent, extent))[:, None]
        return np.where(np.arange(extent) + d < extent, shifted, 0.0)


class FaultyBackend:
    """A backend with one fault, to show that a check can fail.

    Parameters
    ----------
    backend : Backend
        A correct one.
    fault : Fault
        What goes wrong: one entry of a tile or the last weight off by 1e-5, a tile transposed, the
        slice beside the right one read, the last layer missing or not trained, a first covariance
        taken for positive ("lost sign"), identical images not noticed, K and Theta exchanged,
        single pairs in the wrong order, float32 for float64, last bits that depend on the other
        entries of a tile, on the images profiled before, on the calls made before, or on the order
        of the arguments, NaN for 0, `cancel` not looked at, memory of 0 bytes declared.

    Raises
    ------
    ValueError
        If there is no such fault.
    """

    name = "faulty"

    def __init__(self, backend: Backend, fault: Fault) -> None:
        if fault not in get_args(Fault):
            raise ValueError(f"fault must be one of {', '.join(get_args(Fault))}, got {fault!r}")
        self.backend = backend
        self.fault = fault
        self._strangers = 0
        self._calls = 0

    def lanes(self, dtype: Dtype) -> int:
        """Return what the correct backend returns."""
        return self.backend.lanes(dtype)

    def cut(self, program: Program, dtype: Dtype, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
        """Cut as the correct backend does."""
        return self.backend.cut(program, dtype, entries)

    def profile_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return what the correct backend returns, or 0."""
        if self.fault == "undeclared memory":
            return 0
        return self.backend.profile_bytes(program, dtype)

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return what the correct backend returns."""
        return self.backend.scratch_bytes(program, dtype)

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Compute profiles, of the wrong program if that is the fault."""
        if self.fault == "forgotten identity":
            identity = np.arange(self._strangers, self._strangers + len(images))
            self._strangers += len(images)
        if self.fault == "depends on the batch":
            images = images * (1 + 1e-6 * np.arange(len(images)))[:, None, None, None]
        return self.backend.profile(self._program(program), images, identity, dtype)

    def sums(
        self,
        program: Program,
        left: Profile,
        right: Profile,
        tile: Pairs,
        cancel: NDArray[np.int32],
    ) -> FloatArray:
        """Compute a tile, wrongly."""
        if self.fault == "deaf to cancel":
            cancel = np.zeros(1, np.int32)
        sums = self.backend.sums(self._program(program), left, right, tile, cancel)
        match self.fault:
            case "perturbed entry":
                sums.reshape(*sums.shape[:2], -1)[:, :, -1] *= 1 + 1e-5
            case "transposed tile" if not tile.pairwise:
                n = min(tile.shape)
                sums[:, :, :n, :n] = sums[:, :, :n, :n].swapaxes(-1, -2).copy()
            case "exchanged fields":
                sums = sums[:, ::-1].copy()
            case "shuffled pairs" if tile.pairwise:
                sums = sums[:, :, ::-1].copy()
            case "rounded to float32":
                sums = sums.astype(np.float32).astype(np.float64)
            case "depends on the tile":
                sums[..., 1::2] = np.nextafter(sums[..., 1::2], np.inf)
            case "depends on the call":
                self._calls += 1
                sums = sums * (1 + self._calls * 2.0**-24)
            case "asymmetric":
                rows = tile.rows if tile.pairwise else tile.rows[:, None]
                below = rows > tile.columns
                sums = np.where(below, np.nextafter(sums, np.inf), sums)
            case "0/0":
                sums[sums == 0] = np.nan
            case _:
                pass
        return sums

    def _program(self, program: Program) -> Program:
        steps, taps = program.steps, program.taps
        if self.fault == "shifted displacement":
            moved = [_ShiftedTap(t.layer, t.pooling, t.want_sigma, t.want_theta) for t in taps]
            return replace(program, taps=tuple(moved))
        if not steps:
            return program
        *before, last = steps
        match self.fault:
            case "perturbed weight":
                last = replace(last, weight_variance=last.weight_variance * (1 + 1e-5))
                return replace(program, steps=(*before, last))
            case "frozen layer":
                return replace(program, steps=(*before, replace(last, trainable=False)))
            case "dropped layer":
                earlier = [replace(t, layer=min(t.layer, len(before))) for t in taps]
                return replace(program, steps=tuple(before), taps=tuple(earlier))
            case "lost sign":
                unsigned = [replace(step, signed=False) for step in steps]
                return replace(program, steps=tuple(unsigned))
            case _:
                return program


# ---------------------------------------------------------------- accuracy


def exact_kernel(
    network: Network, x: ArrayLike, z: ArrayLike, *, digits: int = 50
) -> tuple[Any, Any]:
    """Evaluate the kernels of one pair with mpmath, to as many digits as asked for.

    Parameters
    ----------
    network : Network
    x, z : array_like of shape (h, w, c), or (d,) for a dense network
        Read as float64, exactly. Equal images have lambda = 1 at equal pixels.
    digits : int
        Decimal digits of every operation.

    Returns
    -------
    nngp, ntk : mpmath.mpf

    Raises
    ------
    ImportError
        If mpmath is not installed.

    Notes
    -----
    Written from the general form (docs/mathematics.md), it shares no code with a backend. About
    50 microseconds for each entry of a slice and layer.
    """
    mp: Any = import_module("mpmath").mp
    with mp.workdps(digits):
        to_exact = cast("Any", np.frompyfunc(mp.mpf, 1, 1))
        images: list[Any] = [to_exact(np.asarray(image, np.float64)) for image in (x, z)]
        layers = network.layers
        n_body = next(i for i, layer in enumerate(layers) if not isinstance(layer, Conv | ReLU))
        if isinstance(layers[n_body], Dense):  # a dense network sees one pixel
            images = [image.reshape(1, 1, -1) for image in images]
        exact = _Exact(mp, network, n_body)
        k, theta = exact.sums(*images)
        variances = [mp.mpf(0)] * 2
        if any(isinstance(layer, ReLU) for layer in layers[n_body:]):
            variances = [exact.sums(image, image)[0] for image in images]
        same = _equal(*images)
        for layer in layers[n_body:]:
            if isinstance(layer, Dense):
                w, b, t = mp.mpf(layer.w_std) ** 2, mp.mpf(layer.b_std) ** 2, int(layer.trainable)
                k, theta = w * k + b, w * (theta + t * k) + t * b
                variances = [w * v + b for v in variances]
            elif isinstance(layer, ReLU):
                k, derivative = exact.relu(k, mp.sqrt(variances[0] * variances[1]), same)
                theta = derivative * theta
                variances = [v / 2 for v in variances]
        return k, theta


def _equal(x: Any, z: Any) -> bool:
    return bool((x == z).all())


@dataclass(frozen=True)
class _Exact:
    """The layers before the readout, and the readout, on object arrays of mpf."""

    mp: Any
    network: Network
    n_body: int

    def sums(self, x: Any, z: Any) -> tuple[Any, Any]:
        """K and Theta after the readout, before the first Dense."""
        h, w, _ = x.shape
        norms = [self._norms(image) for image in (x, z)]
        total = [self.mp.mpf(0), self.mp.mpf(0)]
        for di in range(1 - h, h):
            rows = [self._count(i, i + di, h) for i in range(h) if 0 <= i + di < h]
            for dj in range(1 - w, w):
                columns = [self._count(j, j + dj, w) for j in range(w) if 0 <= j + dj < w]
                if not any(rows) or not any(columns):
                    continue
                for index, field in enumerate(self._slice(x, z, norms, di, dj)):
                    weighted = field * np.array(rows)[:, None] * np.array(columns)
                    total[index] += weighted.sum()
        readout = self.network.layers[self.n_body]
        pixels = self.mp.mpf(h * w)
        divisor = pixels if self.network.scaling == "fan_in" else 1
        if isinstance(readout, GlobalAvgPool):
            divisor = pixels**2
        elif isinstance(readout, LocalAvgPool):
            divisor *= (2 * readout.half_width + 1) ** 4
        return total[0] / divisor, total[1] / divisor

    def _count(self, i: int, i_prime: int, extent: int) -> int:
        """Windows of the readout that hold both pixels, along one axis."""
        readout = self.network.layers[self.n_body]
        if isinstance(readout, GlobalAvgPool):
            return 1
        c = readout.half_width if isinstance(readout, LocalAvgPool) else 0
        centres = range(extent)
        return sum(abs(i - centre) <= c and abs(i_prime - centre) <= c for centre in centres)

    def _divisor(self, channels: int) -> Any:
        return self.mp.mpf(channels if self.network.scaling == "fan_in" else 1)

    def _norms(self, image: Any) -> list[Any]:
        """X(p) at every ReLU; kappa1(1) = 1."""
        k = (image * image).sum(axis=-1) / self._divisor(image.shape[-1])
        norms: list[Any] = []
        for layer in self.network.layers[: self.n_body]:
            if isinstance(layer, Conv):
                k = self._box(layer, k) + self.mp.mpf(layer.b_std) ** 2
            else:
                norms.append(np.frompyfunc(self.mp.sqrt, 1, 1)(k))
                k = k / 2
        return norms

    def _slice(self, x: Any, z: Any, norms: list[list[Any]], di: int, dj: int) -> tuple[Any, Any]:
        h, w, channels = x.shape
        p = np.s_[max(0, -di) : h - max(0, di), max(0, -dj) : w - max(0, dj)]
        p_prime = np.s_[max(0, di) : h + min(0, di), max(0, dj) : w + min(0, dj)]
        same = di == dj == 0 and _equal(x, z)
        k = (x[p] * z[p_prime]).sum(axis=-1) / self._divisor(channels)
        theta = k * 0
        relus = iter(zip(*norms, strict=True))
        for layer in self.network.layers[: self.n_body]:
            if isinstance(layer, Conv):
                b, t = self.mp.mpf(layer.b_std) ** 2, int(layer.trainable)
                theta = self._box(layer, theta + t * k) + t * b
                k = self._box(layer, k) + b
            else:
                x_norm, z_norm = next(relus)
                k, derivative = self.relu(k, x_norm[p] * z_norm[p_prime], same)
                theta = derivative * theta
        return k, theta

    def _box(self, layer: Conv, field: Any) -> Any:
        q = layer.filter_size
        h, w = field.shape
        padded = np.pad(field, q // 2)
        total: Any = sum(padded[a : a + h, b : b + w] for a in range(q) for b in range(q))
        return total * self.mp.mpf(layer.w_std) ** 2 / q**2

    def relu(self, k: Any, norms: Any, same: bool) -> tuple[Any, Any]:
        """E[s(u) s(v)] and E[s'(u) s'(v)]."""
        mp = self.mp

        def entry(k: Any, norm: Any) -> tuple[Any, Any]:
            lam = max(-1, min(1, k / norm)) if norm else mp.mpf(0)
            angle = mp.mpf(0) if same else mp.acos(lam)
            k1 = norm * (mp.cos(angle) * (mp.pi - angle) + mp.sin(angle)) / (2 * mp.pi)
            return k1, (mp.pi - angle) / (2 * mp.pi)

        return np.frompyfunc(entry, 2, 2)(k, norms)


@dataclass(frozen=True)
class AccuracyRow:
    """One line of the accuracy table.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    kernel : str
        Name of the kernel, as in `accuracy_table`.
    depth : int
    inputs : str
        What the two images of a pair are to each other.
    error : float
        Largest relative error of the NTK over the pairs.
    witness : {"float64", "mpmath"}
        What it was compared with.
    """

    dtype: Dtype
    kernel: str
    depth: int
    inputs: str
    error: float
    witness: Literal["float64", "mpmath"]


_PRESETS = {"CNTK-V": cntk_vanilla, "CNTK-GAP": cntk_gap}


def accuracy_table(
    images: ArrayLike,
    *,
    depths: Sequence[int] = (3, 11, 21),
    dtypes: Sequence[Dtype] = ("float32", "float64"),
    kernels: Sequence[str] = tuple(_PRESETS),
    distances: Sequence[float] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
    backend: Backend | None = None,
    threads: int = 1,
    exact_size: int = 5,
    seed: int = 0,
) -> list[AccuracyRow]:
    """Measure the largest relative errors of kernels.

    Float32 is compared with float64 on `images`; float64 with mpmath on the middle of the first
    three.

    Parameters
    ----------
    images : array_like of shape (n, h, w, c)
        At least 3 different ones.
    depths : sequence of int
    dtypes : sequence of {"float32", "float64"}
    kernels : sequence of {"CNTK-V", "CNTK-GAP"}
    distances : sequence of float
        Relative distances ``|z - x| / |x|`` of near-duplicates, a row each.
    backend : Backend or None
        None: the fastest on the processor.
    threads : int
    exact_size : int
        Largest height and width of the images that mpmath computes with: its time with global
        average pooling grows with the fourth power.
    seed : int
        Of the noise that makes near-duplicates.

    Returns
    -------
    list of AccuracyRow
        For each dtype, kernel and depth: pairs of distinct images; of two-level images (0 below
        the middle of their range, else 1: patches of two images that agree up to a factor have
        lambda = 1); of an image and half of it; and of near-duplicates, a row each. Identical
        images do not appear: their lambda is known, they are as accurate as distinct ones.

    Raises
    ------
    ValueError
        If there are fewer than 3 images, or one is black.
    """
    x = np.asarray(images, np.float64)
    if x.ndim != 4 or len(x) < 3 or not x.any(axis=(1, 2, 3)).all():
        raise ValueError(f"images must be at least 3, none of them black, got shape {x.shape}")
    top, left = (max(0, (extent - exact_size) // 2) for extent in x.shape[1:3])
    middle = x[:3, top : top + exact_size, left : left + exact_size]
    backend = get_backend("cpu") if backend is None else backend
    rows: list[AccuracyRow] = []
    for dtype in dtypes:
        single = dtype == "float32"
        pairs = _accuracy_pairs(x if single else middle, distances, np.random.default_rng(seed))
        for kernel in kernels:
            for depth in depths:
                network = _PRESETS[kernel](depth)
                for inputs, (a, b, chosen) in pairs.items():
                    value, exact = (
                        compute(backend, [network], a, b, kinds=["ntk"], dtype=t, threads=threads)
                        for t in (dtype, "float64")
                    )
                    errors = [
                        float(value[0, 0, i, j]) / exact_value - 1
                        for i, j in np.argwhere(chosen).tolist()
                        for exact_value in [
                            exact[0, 0, i, j] if single else exact_kernel(network, a[i], b[j])[1]
                        ]
                    ]
                    largest = max(float(abs(error)) for error in errors)
                    witness = "float64" if single else "mpmath"
                    rows.append(AccuracyRow(dtype, kernel, depth, inputs, largest, witness))
    return rows


def _accuracy_pairs(
    x: FloatArray, distances: Sequence[float], rng: np.random.Generator
) -> dict[str, tuple[FloatArray, FloatArray, NDArray[np.bool_]]]:
    """Left images, right images, and which pairs of them count."""
    axes = (1, 2, 3)
    middle = (x.max(axis=axes, keepdims=True) + x.min(axis=axes, keepdims=True)) / 2
    two_level = (x >= middle).astype(np.float64)
    above, itself = np.triu(np.ones((len(x), len(x)), bool), 1), np.eye(len(x), dtype=bool)
    pairs = {
        "distinct": (x, x, above),
        "two-level": (two_level, two_level, above),
        "half as bright": (x, x / 2, itself),
    }
    noise = rng.standard_normal(x.shape)
    noise *= np.sqrt(
        np.sum(x**2, axis=axes, keepdims=True) / np.sum(noise**2, axis=axes, keepdims=True)
    )
    for distance in distances:
        pairs[f"differ by {distance:.0e}"] = (x, x + distance * noise, itself)
    return pairs
