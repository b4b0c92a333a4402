"""What a backend must do, as a class of tests to inherit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from widelimit.architectures import cntk_gap, cntk_vanilla
from widelimit.arrays import FloatArray
from widelimit.backends import get_backend
from widelimit.backends.base import Backend, Cancelled, Dtype, Pairs, Profile
from widelimit.layers import (
    GELU,
    Abs,
    AvgPool,
    Conv,
    Cos,
    Dense,
    Erf,
    Flatten,
    Gaussian,
    GlobalAvgPool,
    LayerNorm,
    LeakyReLU,
    LocalAvgPool,
    ReLU,
    Sin,
    Sum,
)
from widelimit.network import Network
from widelimit.program import Program, compile_family
from widelimit.testing.compare import KINDS, as_samples, assert_close, assert_same_bits, compute

__all__ = ["CHAINS", "TREES", "BackendConformance", "Case"]


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
CHAINS = (
    Case("CNTK-V", cntk_vanilla(4), (5, 4, 3)),
    Case("CNTK-GAP", cntk_gap(4), (4, 5, 3)),
    Case("local pooling", Network(_LOCAL), (6, 3, 2)),
    Case("biases, linear layers, deep head", Network(_MIXED), (3, 4, 2)),
    Case("filter larger than the image", Network(_WIDE), (1, 6, 2)),
    Case("one pixel", cntk_vanilla(6, 1), (1, 1, 5)),
    Case("no convolution", Network([GlobalAvgPool(), Dense()]), (3, 3, 1), signed=False),
)
_POOLS = [
    *(Conv(3), LeakyReLU(0.2), AvgPool(2), Conv(3), Gaussian()),
    *(AvgPool(3, 1, "same"), Conv(1), GlobalAvgPool(), Erf(), Dense()),
]
_STRIDES = [
    *(Conv(3, stride=2), ReLU(), Conv((2, 1), padding="valid"), ReLU()),
    *(Conv((1, 3), stride=(1, 2)), ReLU(), Flatten(), Dense()),
]
_RESIDUAL = [
    *(Conv(3), Sum((), [ReLU(), Conv(3), ReLU(), Conv(3, 0.9, 0.2)])),
    *(Sum([AvgPool(3, 2, "same")], [Abs(), Conv(3, stride=2)]), LayerNorm(0.1)),
    *(Conv(3), GELU(), LocalAvgPool(1), Dense(), Sum((), [ReLU(), Dense()]), Dense()),
]
_SMOOTH = [
    *(Conv((1, 3)), Erf(), Conv((1, 3), 1.0, 0.1), Sin(), AvgPool((1, 3), (1, 2))),
    *(Conv((1, 3)), GELU(), Conv(1, trainable=False), Cos(), Flatten()),
    *(Dense(), Erf(), Dense(), LayerNorm(), Dense()),
]
TREES = (
    Case("pools", Network(_POOLS), (3, 4, 2)),
    Case("strides", Network(_STRIDES, "paper"), (6, 5, 2)),
    Case("branches", Network(_RESIDUAL), (2, 4, 1)),
    Case("a series", Network(_SMOOTH), (1, 8, 2)),
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
        Networks and images, `CHAINS` of convolutions and ReLU on one grid, and `TREES` with pools,
        strides, sums and other activations; a subclass may add its own.
    tolerance : mapping of dtype to float
        Largest relative error against the reference backend. The keys are the dtypes tested.
    """

    cases: ClassVar[tuple[Case, ...]] = (*CHAINS, *TREES)
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
        program = compile_family([case.network], case.shape, KINDS)
        samples, _ = as_samples(images, None)
        return program, backend.profile(program, *samples.block(0, len(images)), dtype)

    def test_values_of_a_rectangle(self) -> None:
        """k(x, z) is that of the reference backend, more columns than lanes."""
        for backend, case, dtype in self._runs():
            images, gram, floor = _expected(case)
            values = compute(backend, [case.network], images[:4], images[4:], dtype=dtype)[0]
            for kind, value, desired, least in zip(KINDS, values, gram, floor, strict=True):
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
            for kind, value, desired, least in zip(KINDS, values, gram, floor, strict=True):
                context = f"{case.name}, {kind}, {dtype}"
                assert_close(
                    value, desired, rtol=self.tolerance[dtype], floor=least, context=context
                )
                assert_same_bits(value, value.T, f"{context}: transpose")

    def test_arguments_may_be_exchanged(self) -> None:
        """k(x, z) is k(z, x), bit for bit, in blocks and in pairs."""
        for backend, case, dtype in self._runs():
            program, profile = self._prepared(backend, case, dtype)
            cancel = np.zeros(1, np.int32)
            rows, columns = np.arange(5), np.arange(2, len(profile))
            forth = backend.sums(program, profile, profile, Pairs(rows, columns), cancel)
            back = backend.sums(program, profile, profile, Pairs(columns, rows), cancel)
            context = f"{case.name}, {dtype}: k(z, x)"
            assert_same_bits(forth, back.swapaxes(-1, -2), context)
            i, j = (a.ravel() for a in np.meshgrid(rows, columns))
            forth = backend.sums(program, profile, profile, Pairs(i, j, pairwise=True), cancel)
            back = backend.sums(program, profile, profile, Pairs(j, i, pairwise=True), cancel)
            assert_same_bits(forth, back, f"{context}, pairs")

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
                assert_same_bits(part, block[:, :, rows[:, None], columns], f"{what}: block")
            rows, columns = np.divmod(np.random.default_rng(1).permutation(n * n)[: 2 * n + 3], n)
            pairs = Pairs(rows, columns, pairwise=True)
            part = backend.sums(program, profile, profile, pairs, cancel)
            assert_same_bits(part, block[:, :, rows, columns], f"{what}: pairs")

    def test_a_profile_belongs_to_its_image_alone(self) -> None:
        """Images profiled together or apart give the same bits."""
        for backend, case, dtype in self._runs():
            images, _, _ = _expected(case)
            whole = compute(backend, [case.network], images[:2], images, dtype=dtype)
            for j in (0, 1, 20):
                column = compute(backend, [case.network], images[:2], images[[j]], dtype=dtype)
                assert_same_bits(column[..., 0], whole[..., j], f"{case.name}, {dtype}: alone")

    def test_threads_change_nothing(self) -> None:
        """Tiles computed at the same time give the same bits."""
        for backend, case, dtype in self._runs():
            images, _, _ = _expected(case)
            one = compute(backend, [case.network], images, dtype=dtype)
            four = compute(backend, [case.network], images, dtype=dtype, threads=4)
            assert_same_bits(four, one, f"{case.name}, {dtype}: 4 threads")

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
            for kind, values in zip(KINDS, together.swapaxes(0, 1), strict=True):
                apart = compute(backend, networks, images, kinds=[kind], dtype=dtype)[:, 0]
                assert_close(values, apart, rtol=tolerance, context=f"{kind} alone, {dtype}")

    def test_a_black_image_has_kernel_zero(self) -> None:
        """Without biases an all-zero image is uncorrelated with everything; no NaN appears."""
        for backend, case, dtype in self._runs():
            if not case.network.is_homogeneous:
                continue
            images = _expected(case)[0][:18].copy()
            images[[2, 17]] = 0.0
            values = compute(backend, [case.network], images, dtype=dtype)[0]
            context = f"{case.name}, {dtype}: black image"
            assert_same_bits(values[:, [2, 17]], np.zeros((2, 2, 18)), context)
            if not np.isfinite(values).all():
                raise AssertionError(f"{context}: others are not finite")

    def test_without_biases_a_kernel_is_homogeneous(self) -> None:
        """k(a x, b z) = a b k(x, z); exactly for powers of two, and as accurate for 1e-18, 1e18."""
        for backend, case, dtype in self._runs():
            if not case.network.is_homogeneous:
                continue
            # not the last image: it is the second one, and a multiple of it is not known to be one
            images, gram, floor = _expected(case)
            x, z, part = images[:3], images[3:21], np.s_[:, :3, 3:21]
            value = compute(backend, [case.network], x, z, dtype=dtype)
            context = f"{case.name}, {dtype}"
            for a, b in ((2.0**-9, 1.0), (2.0**20, 2.0**-41)):
                scaled = compute(backend, [case.network], a * x, b * z, dtype=dtype)
                assert_same_bits(scaled, a * b * value, f"{context}: times {a} and {b}")
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
            for kind in KINDS:
                program = compile_family([case.network], case.shape, [kind])
                samples, _ = as_samples(images[:3], None)
                profile = backend.profile(program, *samples.block(0, 3), dtype)
                tile = Pairs(np.arange(3), np.arange(3))
                sums = backend.sums(program, profile, profile, tile, np.zeros(1, np.int32))
                for tap, fields in zip(program.taps, sums, strict=True):
                    for wanted, field in zip((tap.want_sigma, tap.want_theta), fields, strict=True):
                        if not wanted:
                            context = f"{case.name}, {kind}, {dtype}: not asked for"
                            assert_same_bits(field, np.zeros((3, 3)), context)

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
