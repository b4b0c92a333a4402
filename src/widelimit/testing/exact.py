"""The kernels of one pair to as many digits as asked for: a witness that shares no code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import product
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike

from widelimit.layers import (
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
    Pair,
    Polynomial,
    ReLU,
    Sin,
    Sum,
)
from widelimit.network import Network

__all__ = ["exact_kernel", "expectations"]


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
    RecursionError
        If the network has more than about 200 layers.

    Notes
    -----
    Each layer is its rule, as docs/networks.md writes it, for one pair of pixels that asks the
    layer before it for what it needs; it shares no code with a backend. About 50 microseconds for
    each pair of pixels and layer; where pixels are averaged all pairs are needed.
    """
    mp: Any = import_module("mpmath").mp
    with mp.workdps(digits):
        to_exact = cast("Any", np.frompyfunc(mp.mpf, 1, 1))
        images: list[Any] = [to_exact(np.asarray(image, np.float64)) for image in (x, z)]
        if images[0].shape != images[1].shape:
            raise ValueError(f"x and z must have one shape, got {[i.shape for i in images]}")
        network.output_shapes(images[0].shape)
        if network.is_dense:  # it sees one pixel
            images = [image.reshape(1, 1, -1) for image in images]
        elif images[0].ndim == 2:  # a series is an image of one row
            images = [image[None] for image in images]
        h, w, channels = images[0].shape
        divisor = mp.mpf(channels if network.scaling == "fan_in" else 1)

        def at(a: Point, b: Point) -> Values:
            return (images[a[0]][a[1:]] * images[b[0]][b[1:]]).sum() / divisor, mp.mpf(0)

        field = _Exact(mp, network).through(network.layers, _Field((h, w), at))
        equal = bool((images[0] == images[1]).all())
        return field((0, 0, 0), (0 if equal else 1, 0, 0))


Point: TypeAlias = tuple[int, int, int]  # image, row, column
Values: TypeAlias = tuple[Any, Any]  # K and Theta


class _Field:
    """K and Theta between two layers, at pairs of pixels of one image or of both."""

    def __init__(self, shape: tuple[int, int], at: Callable[[Point, Point], Values]) -> None:
        self.shape = shape
        self._at = cache(at)

    def __call__(self, a: Point, b: Point) -> Values:
        return self._at(min(a, b), max(a, b))


@dataclass(frozen=True)
class _Exact:
    mp: Any
    network: Network

    def through(self, layers: Sequence[Layer], field: _Field) -> _Field:
        for layer in layers:
            field = self._after(layer, field)
        return field

    def _after(self, layer: Layer, field: _Field) -> _Field:
        match layer:
            case Conv(size, stride=stride, padding=padding):
                one = self._gathered(field, size, stride, padding, zip)
                return self._weighed(layer, self._divided(one, math.prod(_both(size))))
            case AvgPool(size, stride, padding):
                every = self._gathered(field, size, cast("Pair", stride), padding, product)
                return self._divided(every, math.prod(_both(size)) ** 2)
            case LocalAvgPool(half_width):
                side = 2 * half_width + 1
                return self._divided(self._gathered(field, side, 1, "same", product), side**4)
            case GlobalAvgPool():
                every = self._gathered(field, field.shape, 1, "valid", product)
                return self._divided(every, math.prod(field.shape) ** 2)
            case Flatten():
                one = self._gathered(field, field.shape, 1, "valid", zip)
                fan_in = self.network.scaling == "fan_in"
                return self._divided(one, math.prod(field.shape) if fan_in else 1)
            case Dense():
                return self._weighed(layer, field)
            case Identity():
                return field
            case Sum(branches):
                ends = [self.through(branch, field) for branch in branches]
                return _Field(ends[0].shape, lambda a, b: self._sum([end(a, b) for end in ends]))
            case _:

                def activated(a: Point, b: Point) -> Values:
                    k, theta = field(a, b)
                    variances = field(a, a)[0], field(b, b)[0]
                    k, factor = expectations(self.mp, layer, k, *variances, same=a == b)
                    return k, factor * theta

                return _Field(field.shape, activated)

    def _gathered(
        self,
        field: _Field,
        size: Pair,
        stride: Pair,
        padding: str,
        pairing: Callable[[list[Point], list[Point]], Iterable[tuple[Point, Point]]],
    ) -> _Field:
        """Sum over pixels in the windows at a and b: `zip` for a filter, `product` for a mean."""
        sizes, strides = _both(size), _both(stride)
        low = [(m - 1) // 2 if padding == "same" else 0 for m in sizes]
        ends = [n + 2 * zeros - m for n, zeros, m in zip(field.shape, low, sizes, strict=True)]
        rows, columns = (end // s + 1 for end, s in zip(ends, strides, strict=True))

        def window(a: Point) -> list[Point]:
            first, second = (s * p - z for s, p, z in zip(strides, a[1:], low, strict=True))
            places = product(range(first, first + sizes[0]), range(second, second + sizes[1]))
            return [(a[0], *place) for place in places]

        def inside(p: Point) -> bool:
            return 0 <= p[1] < field.shape[0] and 0 <= p[2] < field.shape[1]

        def at(a: Point, b: Point) -> Values:
            pairs = pairing(window(a), window(b))
            return self._sum([field(p, q) for p, q in pairs if inside(p) and inside(q)])

        return _Field((rows, columns), at)

    def _sum(self, values: list[Values]) -> Values:
        return sum((k for k, _ in values), self.mp.mpf(0)), sum(
            (t for _, t in values), self.mp.mpf(0)
        )

    def _divided(self, field: _Field, divisor: int) -> _Field:
        def at(a: Point, b: Point) -> Values:
            k, theta = field(a, b)
            return k / divisor, theta / divisor

        return _Field(field.shape, at)

    def _weighed(self, layer: Conv | Dense, field: _Field) -> _Field:
        w, b = self.mp.mpf(layer.w_std) ** 2, self.mp.mpf(layer.b_std) ** 2
        t = int(layer.trainable)

        def at(p: Point, q: Point) -> Values:
            k, theta = field(p, q)
            return w * k + b, w * (theta + t * k) + t * b

        return _Field(field.shape, at)


def _both(size: Pair) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def expectations(mp: Any, layer: Layer, s: Any, xx: Any, zz: Any, *, same: bool) -> Values:
    """Return E[f(u) f(v)] and E[f'(u) f'(v)] by textbook formulas, with the digits of `mp`.

    Parameters
    ----------
    mp : mpmath context
    layer : Activation or LayerNorm
    s, xx, zz : mpf
        Covariance and variances of u and v.
    same : bool
        Whether u and v are one value: lambda = 1, whatever the rounding.
    """
    m = xx if same else mp.sqrt(xx * zz)
    s = xx if same else s
    lam = max(-1, min(1, s / m)) if m else mp.mpf(0)
    match layer:
        case ReLU():
            return expectations(mp, ABReLU(0.0, 1.0), s, xx, zz, same=same)
        case ABReLU(a, b):
            a, b = mp.mpf(a), mp.mpf(b)
            angle = mp.mpf(0) if same else mp.acos(lam)
            turned = mp.pi - angle  # the angle between u and -v
            both = m * (mp.sin(angle) + turned * mp.cos(angle)) / (2 * mp.pi)  # of max(u, 0)
            mixed = m * (mp.sin(angle) - angle * mp.cos(angle)) / (2 * mp.pi)  # and max(-v, 0)
            k = (a**2 + b**2) * both - 2 * a * b * mixed
            return k, ((a**2 + b**2) * turned + 2 * a * b * angle) / (2 * mp.pi)
        case Erf():
            n2 = (1 + 2 * xx) * (1 + 2 * zz)
            k = 2 / mp.pi * mp.asin(2 * s / mp.sqrt(n2))
            return k, 4 / mp.pi / mp.sqrt(n2 - 4 * s**2)
        case GELU():
            a, b = 1 + xx, 1 + zz
            d = a * b - s**2
            p = mp.mpf(1) / 4 + mp.asin(s / mp.sqrt(a * b)) / (2 * mp.pi)
            r = 1 / (2 * mp.pi * mp.sqrt(d))
            k = s * p + r * (xx * zz - s**2 + s**2 / a + s**2 / b)
            return k, p + r * s * (1 / a + 1 / b + 1 / d)
        case Sin():
            damping = mp.exp(-(xx + zz) / 2)
            return damping * mp.sinh(s), damping * mp.cosh(s)
        case Cos():
            damping = mp.exp(-(xx + zz) / 2)
            return damping * mp.cosh(s), damping * mp.sinh(s)
        case Gaussian(gamma):
            value = mp.exp(mp.mpf(gamma) * (lam - 1))
            return m * value, mp.mpf(gamma) * value
        case LayerNorm(eps):
            norm = mp.sqrt((xx + mp.mpf(eps)) * (zz + mp.mpf(eps)))
            return (s / norm, 1 / norm) if norm else (mp.mpf(0), mp.mpf(0))
        case Polynomial(coefficients):
            exact = [mp.mpf(c) for c in coefficients]
            slopes = [n * c for n, c in enumerate(exact)][1:]
            return _moments(mp, exact, s, xx, zz), _moments(mp, slopes, s, xx, zz)
        case _:
            raise TypeError(f"the exact kernel has no {layer!r}")


def _moments(mp: Any, coefficients: list[Any], s: Any, xx: Any, zz: Any) -> Any:
    """Return E[f(u) f(v)] of a polynomial by Isserlis: j pairs of a u and a v, the rest apart."""
    total = mp.mpf(0)
    for (n, c), (k, d) in product(enumerate(coefficients), repeat=2):
        for j in range(min(n, k) + 1):
            if (n - j) % 2 == (k - j) % 2 == 0:
                ways = math.comb(n, j) * math.comb(k, j) * math.factorial(j)
                ways *= math.prod(range(1, n - j, 2)) * math.prod(range(1, k - j, 2))
                total += c * d * ways * s**j * xx ** ((n - j) // 2) * zz ** ((k - j) // 2)
    return total
