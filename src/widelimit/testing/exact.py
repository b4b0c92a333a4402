"""The kernels of one pair to as many digits as asked for: a witness that shares no code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from widelimit.network import Conv, Dense, GlobalAvgPool, LocalAvgPool, Network, ReLU, check_plain

__all__ = ["exact_kernel"]


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
    ValueError
        If the network has other layers than convolutions, ReLU, readouts and dense layers.

    Notes
    -----
    Written from the general form (docs/mathematics.md), it shares no code with a backend. About
    50 microseconds for each entry of a slice and layer.
    """
    check_plain(network, "exact_kernel")
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
        q = layer.side
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
