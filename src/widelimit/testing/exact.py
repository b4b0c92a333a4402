"""The kernels of one pair to as many digits as asked for: a witness that shares no code.

Slice (di, dj) of a pair of images holds K and Theta of all pixels p and p + d: object arrays of
mpf. Each layer makes a function that returns slices out of the one before it, so that only those
are computed that something reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import product
from math import factorial, perm, prod
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike

from widelimit.lattice import Window
from widelimit.layers import Pointwise
from widelimit.network import (
    GELU,
    ABReLU,
    AvgPool,
    Conv,
    Cos,
    Dense,
    Erf,
    Flatten,
    Gaussian,
    GlobalAvgPool,
    Identity,
    Layer,
    LayerNorm,
    LocalAvgPool,
    Network,
    Polynomial,
    ReLU,
    Sin,
    Sum,
)

__all__ = ["exact_kernel"]

# From numbers of two of the images and a displacement to K and Theta.
Slices: TypeAlias = Callable[[tuple[int, int], int, int], tuple[Any, Any]]


def exact_kernel(
    network: Network, x: ArrayLike, z: ArrayLike, *, digits: int = 50
) -> tuple[Any, Any]:
    """Evaluate the kernels of one pair with mpmath, to as many digits as asked for.

    Parameters
    ----------
    network : Network
    x, z : array_like of shape (h, w, c), (length, c) of a series, or (d,) for a dense network
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
    TypeError, ValueError
        If the images do not fit the network, or each other.

    Notes
    -----
    Written from the rules (docs/networks.md), it shares no code with a backend. About 50
    microseconds for each entry of a slice and layer, three times as many where there are pools:
    then slices of an image with itself are needed, too. What is before a pool or a `Sum` is kept.
    """
    mp: Any = import_module("mpmath").mp
    with mp.workdps(digits):
        to_exact = cast("Any", np.frompyfunc(mp.mpf, 1, 1))
        images: list[Any] = [to_exact(np.asarray(image, np.float64)) for image in (x, z)]
        if images[0].shape != images[1].shape:
            raise ValueError(f"x and z must have one shape, got {[i.shape for i in images]}")
        network.output_shapes(images[0].shape)
        if network.is_dense:  # a dense network sees one pixel
            images = [image.reshape(1, 1, -1) for image in images]
        elif images[0].ndim == 2:  # a series is an image of one row
            images = [image[None] for image in images]
        pair = (0, 0) if bool((images[0] == images[1]).all()) else (0, 1)
        exact = _Exact(mp, images, pair, network.scaling == "fan_in")
        slices, _ = exact.through(network.layers, exact.products, images[0].shape[:2])
        k, theta = slices(pair, 0, 0)
        return k.item(), theta.item()


@dataclass(frozen=True)
class _Exact:
    mp: Any
    images: list[Any]
    pair: tuple[int, int]  # whose kernels are wanted
    divides: bool  # by the channels of the input, and by the pixels that are flattened

    def products(self, pair: tuple[int, int], di: int, dj: int) -> tuple[Any, Any]:
        """Return inner products of pixels."""
        x, z = (self.images[number] for number in pair)
        p, p_prime = _pixels(x.shape[:2], di, dj)
        k = (x[p] * z[p_prime]).sum(axis=-1) / self.mp.mpf(x.shape[-1] if self.divides else 1)
        return k, k * 0

    def through(
        self, layers: Sequence[Layer], before: Slices, grid: tuple[int, int]
    ) -> tuple[Slices, tuple[int, int]]:
        """Return the slices behind some layers, and the pixels of a sample there."""
        for layer in layers:
            before, grid = self._after(layer, before, grid)
            if grid == (1, 1):  # heads may be deep: they are not gone through from the end
                before = cache(before)
                before(self.pair, 0, 0)
        return before, grid

    def _after(
        self, layer: Layer, before: Slices, grid: tuple[int, int]
    ) -> tuple[Slices, tuple[int, int]]:
        pixels = prod(grid)
        match layer:
            case Conv():
                summed, grid = _summed(layer.windows, before, grid, diagonal=True)
                return self._weights(layer, summed, prod(w.size for w in layer.windows)), grid
            case Dense():
                return self._weights(layer, before, 1), grid
            case AvgPool() | LocalAvgPool():
                summed, grid = _summed(layer.windows, cache(before), grid, diagonal=False)
                return self._divided(summed, prod(w.size for w in layer.windows) ** 2), grid
            case Flatten():
                total = _total(before, [(0, 0)])
                return self._divided(total, pixels if self.divides else 1), (1, 1)
            case GlobalAvgPool():
                h, w = grid
                every = list(product(range(1 - h, h), range(1 - w, w)))
                return self._divided(_total(before, every), pixels**2), (1, 1)
            case Sum(branches):
                kept = cache(before)
                ends = [self.through(branch, kept, grid) for branch in branches]
                return _added([slices for slices, _ in ends]), ends[0][1]
            case Identity():
                return before, grid
            case _:
                return self._activated(layer, before, grid), grid

    def _weights(self, layer: Conv | Dense, before: Slices, area: int) -> Slices:
        w, b, t = self.mp.mpf(layer.w_std) ** 2, self.mp.mpf(layer.b_std) ** 2, int(layer.trainable)

        def slices(pair: tuple[int, int], di: int, dj: int) -> tuple[Any, Any]:
            k, theta = before(pair, di, dj)
            return k * (w / area) + b, (theta + k * t) * (w / area) + t * b

        return slices

    def _divided(self, before: Slices, number: int) -> Slices:
        def slices(pair: tuple[int, int], di: int, dj: int) -> tuple[Any, Any]:
            k, theta = before(pair, di, dj)
            return k / self.mp.mpf(number), theta / self.mp.mpf(number)

        return slices

    def _activated(self, layer: Pointwise, before: Slices, grid: tuple[int, int]) -> Slices:
        root = cast("Any", np.frompyfunc(self.mp.sqrt, 1, 1))
        dual = cast("Any", np.frompyfunc(self._dual(layer), 3, 2))

        @cache
        def deviations(number: int) -> Any:
            return root(before((number, number), 0, 0)[0])

        def slices(pair: tuple[int, int], di: int, dj: int) -> tuple[Any, Any]:
            s, theta = before(pair, di, dj)
            p, p_prime = _pixels(grid, di, dj)
            x, z = deviations(pair[0])[p], deviations(pair[1])[p_prime]
            if pair[0] == pair[1] and di == dj == 0:
                s = x * z
            k, factor = dual(s, x, z)
            return k, factor * theta

        # Of an image with itself slice 0 is needed by all activations that follow.
        kept = cache(slices)
        return lambda pair, di, dj: (kept if pair[0] == pair[1] else slices)(pair, di, dj)

    def _dual(self, layer: Pointwise) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
        """Return E[f(u) f(v)] and E[f'(u) f'(v)] of covariance s and deviations x, z."""
        mp = self.mp
        names = "a", "b", "gamma", "eps"
        a, b, gamma, eps = (mp.mpf(getattr(layer, name, 0)) for name in names)
        if isinstance(layer, ReLU):
            b = mp.mpf(1)

        def entry(s: Any, x: Any, z: Any) -> tuple[Any, Any]:
            lam = max(-1, min(1, s / (x * z))) if x * z else mp.mpf(0)
            match layer:
                case ReLU() | ABReLU():
                    angle = mp.acos(lam)
                    k1 = x * z * (lam * (mp.pi - angle) + mp.sin(angle)) / (2 * mp.pi)
                    k0 = (mp.pi - angle) / (2 * mp.pi)
                    return (b - a) ** 2 * k1 + a * b * s, (b - a) ** 2 * k0 + a * b
                case Erf():
                    n = (1 + 2 * x**2) * (1 + 2 * z**2)
                    k = 2 / mp.pi * mp.asin(2 * s / mp.sqrt(n))
                    return k, 4 / mp.pi / mp.sqrt(n - 4 * s**2)
                case GELU():
                    one, other = 1 + x**2, 1 + z**2
                    d = one * other - s**2
                    p = mp.mpf(1) / 4 + mp.asin(s / mp.sqrt(one * other)) / (2 * mp.pi)
                    r = 1 / (2 * mp.pi * mp.sqrt(d))
                    k = s * p + r * (x**2 * z**2 - s**2 + s**2 / one + s**2 / other)
                    return k, p + s * r * (1 / one + 1 / other + 1 / d)
                case Sin() | Cos():
                    scale = mp.exp(-(x**2 + z**2) / 2)
                    odd, even = scale * mp.sinh(s), scale * mp.cosh(s)
                    return (odd, even) if isinstance(layer, Sin) else (even, odd)
                case Gaussian():
                    value = mp.exp(gamma * (lam - 1))
                    return x * z * value, gamma * value
                case LayerNorm():
                    n = mp.sqrt((x**2 + eps) * (z**2 + eps))
                    return (s / n, 1 / n) if n else (s, mp.mpf(0))
                case Polynomial(coefficients):
                    # Price's theorem: sum_k s^k/k! E[f^(k)(u)] E[f^(k)(v)]
                    means = [
                        self._derived(coefficients, k, x) * self._derived(coefficients, k, z)
                        for k in range(len(coefficients))
                    ]
                    k = sum(g * s**n / factorial(n) for n, g in enumerate(means))
                    behind = enumerate(means[1:])
                    return k, sum((g * s**n / factorial(n) for n, g in behind), start=mp.mpf(0))

        return entry

    def _derived(self, coefficients: Sequence[float], k: int, x: Any) -> Any:
        """E[f^(k)(u)]; E[u^n] is x^n (n - 1)!! for even n."""
        return sum(
            self.mp.mpf(c) * perm(n, k) * prod(range(1, n - k, 2)) * x ** (n - k)
            for n, c in enumerate(coefficients)
            if n >= k and (n - k) % 2 == 0
        )


def _added(parts: Sequence[Slices]) -> Slices:
    def slices(pair: tuple[int, int], di: int, dj: int) -> tuple[Any, Any]:
        fields = [part(pair, di, dj) for part in parts]
        return sum(k for k, _ in fields), sum(theta for _, theta in fields)

    return slices


def _total(before: Slices, displacements: Sequence[tuple[int, int]]) -> Slices:
    def slices(pair: tuple[int, int], di: int, dj: int) -> tuple[Any, Any]:
        total: Any = np.zeros((2, 1, 1), object)
        for d in displacements:
            for which, field in enumerate(before(pair, *d)):
                total[which] += field.sum()
        return total[0], total[1]

    return slices


def _summed(
    windows: tuple[Window, Window], before: Slices, grid: tuple[int, int], *, diagonal: bool
) -> tuple[Slices, tuple[int, int]]:
    """Sum over windows around p and p', at the same places of both if `diagonal`."""
    rows, columns = windows
    coarse = rows.extent(grid[0]), columns.extent(grid[1])

    def slices(pair: tuple[int, int], di: int, dj: int) -> tuple[Any, Any]:
        down = _read(rows, di, grid[0], coarse[0], diagonal)
        across = _read(columns, dj, grid[1], coarse[1], diagonal)
        total: Any = np.zeros((2, coarse[0] - abs(di), coarse[1] - abs(dj)), object)
        for i, j in product(down, across):
            for which, field in enumerate(before(pair, i, j)):
                lines = np.array([field[entries].sum(axis=0) for entries in down[i]])
                total[which] += np.array([lines[:, entries].sum(axis=1) for entries in across[j]]).T
        return total[0], total[1]

    return slices, coarse


def _read(
    window: Window, d: int, fine: int, coarse: int, diagonal: bool
) -> dict[int, list[list[int]]]:
    """Return the fine slices of one axis that a coarse one reads: entries that each entry sums."""
    length = coarse - abs(d)
    found: dict[int, list[list[int]]] = {}
    for entry in range(length):
        first = (entry + max(0, -d)) * window.stride - window.low
        other = (entry + max(0, d)) * window.stride - window.low
        for a in range(window.size):
            for b in (a,) if diagonal else range(window.size):
                p, p_prime = first + a, other + b
                if 0 <= p < fine and 0 <= p_prime < fine:
                    lists = found.setdefault(p_prime - p, [[] for _ in range(length)])
                    lists[entry].append(min(p, p_prime))
    return found


def _pixels(grid: tuple[int, int], di: int, dj: int) -> tuple[Any, Any]:
    """Return the pixels p that have a p + d, and those p + d."""
    h, w = grid
    p = np.s_[max(0, -di) : h - max(0, di), max(0, -dj) : w - max(0, dj)]
    return p, np.s_[max(0, di) : h - max(0, -di), max(0, dj) : w - max(0, -dj)]
