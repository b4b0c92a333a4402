"""The first witness: the equations of docs/mathematics.md with 4-D float64 arrays, slowly.

It shares nothing with the package, not even an import: layers are read by the name of their class
and their fields. No displacement, slice, profile, program or polynomial occurs here. Fields are
indexed ``[x, z, i, j, i', j']``, sums over windows are loops over shifts of padded arrays, and
the dual activations are the formulas with ``arccos``. Three fields go through a network together:
covariances between the images x and z, between x and x, and between z and z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


class Values(NamedTuple):
    """Kernels of one network, each of shape (n1, n2)."""

    nngp: Array
    ntk: Array
    # sqrt(k(x,x) k(z,z)), by Cauchy-Schwarz no smaller than |k(x,z)|: what errors are compared
    # with where terms of both signs cancel
    nngp_scale: Array
    ntk_scale: Array


class _Fields(NamedTuple):
    """K and Theta of one set of pairs."""

    k: Array  # (a, b, h, w, h, w)
    theta: Array
    same: NDArray[np.bool_]  # (a, b): pairs of identical images


Memo: TypeAlias = dict[Any, dict[str, _Fields]]


def kernels(network: Any, x: Array, z: Array, memo: Memo | None = None) -> Values:
    """NNGP and NTK of a `widelimit.Network` by the general form.

    `x` and `z` have shape (n, h, w, c), or (n, d) for a dense network. Pairs of identical images
    have lambda = 1 at p = p', exactly. A `memo` keeps the fields after each layer for the next
    network that begins alike and is tried on the same images.
    """
    if not any(name in GRIDS for name in _names(network.layers)):  # a dense network sees one pixel
        x, z = (a.reshape(len(a), 1, 1, -1) for a in (x, z))
    if x.ndim == 3:  # a series is an image of one row
        x, z = x[:, None], z[:, None]
    channels = x.shape[-1]
    divisor = channels if network.scaling == "fan_in" else 1
    pairs = {"xz": (x, z), "xx": (x, x), "zz": (z, z)}
    fields: dict[str, _Fields] = {}
    for name, (a, b) in pairs.items():
        k = np.einsum("aijc,bklc->abijkl", a, b) / divisor
        same = np.array([[bool(np.all(s == t)) for t in b] for s in a])
        fields[name] = _Fields(k, np.zeros_like(k), same)

    memo = {} if memo is None else memo
    for index, layer in enumerate(network.layers):
        beginning = (network.scaling, tuple(network.layers[: index + 1]))
        if beginning not in memo:
            memo[beginning] = _layer(layer, network.scaling, fields)
        fields = memo[beginning]

    def values(name: str) -> tuple[Array, Array]:
        return fields[name].k[:, :, 0, 0, 0, 0], fields[name].theta[:, :, 0, 0, 0, 0]

    def scale(which: int) -> Array:
        xx, zz = (np.diagonal(values(name)[which]) for name in ("xx", "zz"))
        return np.sqrt(xx[:, None] * zz[None, :])

    return Values(*values("xz"), scale(0), scale(1))


GRIDS = "Conv", "AvgPool", "Flatten", "GlobalAvgPool", "LocalAvgPool"


def _names(layers: Any) -> list[str]:
    names: list[str] = []
    for layer in layers:
        names.append(type(layer).__name__)
        for branch in getattr(layer, "branches", ()):
            names += _names(branch)
    return names


def _layer(layer: Any, scaling: str, fields: dict[str, _Fields]) -> dict[str, _Fields]:
    match type(layer).__name__:
        case "Conv":
            q, stride, low = _geometry(layer, layer.filter_size)
            if q == (q[0], q[0]) and stride == (1, 1) and layer.padding == "same":
                return {
                    n: _weights(layer, q[0] ** 2, f, lambda m: box(m, q[0]))
                    for n, f in fields.items()
                }
            return {
                n: _weights(layer, q[0] * q[1], f, lambda m: shifts(m, q, stride, low))
                for n, f in fields.items()
            }
        case "AvgPool":
            q, stride, low = _geometry(layer, layer.size)
            return {
                n: _each(f, lambda m: window_mean(m, q, stride, low)) for n, f in fields.items()
            }
        case "Identity":
            return fields
        case "Sum":
            ends: list[dict[str, _Fields]] = []
            for branch in layer.branches:
                end = fields
                for inner in branch:
                    end = _layer(inner, scaling, end)
                ends.append(end)
            return {
                n: _Fields(sum(e[n].k for e in ends), sum(e[n].theta for e in ends), fields[n].same)
                for n in fields
            }
        case "ABReLU" | "Erf" | "GELU" | "Sin" | "Cos" | "Gaussian" | "Polynomial" | "LayerNorm":
            x_norm = np.sqrt(_of_itself(fields["xx"]))
            z_norm = np.sqrt(_of_itself(fields["zz"]))
            norms = {"xz": (x_norm, z_norm), "xx": (x_norm, x_norm), "zz": (z_norm, z_norm)}
            return {name: _pointwise(layer, f, *norms[name]) for name, f in fields.items()}
        case "Dense":
            return {n: _weights(layer, 1, f, lambda m: m) for n, f in fields.items()}
        case "ReLU":
            x_norm = np.sqrt(_of_itself(fields["xx"]))
            z_norm = np.sqrt(_of_itself(fields["zz"]))
            norms = {"xz": (x_norm, z_norm), "xx": (x_norm, x_norm), "zz": (z_norm, z_norm)}
            return {name: _relu(f, *norms[name]) for name, f in fields.items()}
        case "Flatten":
            return {name: _each(f, lambda m: _flatten(m, scaling)) for name, f in fields.items()}
        case "GlobalAvgPool":
            return {name: _each(f, _mean) for name, f in fields.items()}
        case "LocalAvgPool":
            c = layer.half_width
            return {name: _each(f, lambda m: average(m, c)) for name, f in fields.items()}
        case other:
            raise NotImplementedError(other)


def _each(f: _Fields, function: Callable[[Array], Array]) -> _Fields:
    return _Fields(function(f.k), function(f.theta), f.same)


def _weights(layer: Any, fan_in: int, f: _Fields, window: Callable[[Array], Array]) -> _Fields:
    w = layer.w_std**2 / fan_in
    b = layer.b_std**2
    t = 1.0 if layer.trainable else 0.0
    return _Fields(w * window(f.k) + b, w * window(f.theta + t * f.k) + t * b, f.same)


def _relu(f: _Fields, x_norm: Array, z_norm: Array) -> _Fields:
    norms = x_norm[:, None, :, :, None, None] * z_norm[None, :, None, None, :, :]
    ratio = np.divide(f.k, norms, out=np.zeros_like(f.k), where=norms > 0)
    h, w = f.k.shape[2:4]
    for i in range(h):
        for j in range(w):
            ratio[:, :, i, j, i, j][f.same] = 1.0
    angle = np.arccos(np.clip(ratio, -1.0, 1.0))
    # E[s(u) s(v)] and E[s'(u) s'(v)]
    k = norms * (np.clip(ratio, -1.0, 1.0) * (math.pi - angle) + np.sin(angle)) / (2 * math.pi)
    return _Fields(k, (math.pi - angle) / (2 * math.pi) * f.theta, f.same)


def _pointwise(layer: Any, f: _Fields, x_norm: Array, z_norm: Array) -> _Fields:
    """Any activation, by its textbook formula for the expectation; lambda = 1 where it is known."""
    x = np.broadcast_to(x_norm[:, None, :, :, None, None], f.k.shape)
    z = np.broadcast_to(z_norm[None, :, None, None, :, :], f.k.shape)
    s = f.k.copy()
    h, w = s.shape[2:4]
    for i in range(h):
        for j in range(w):
            s[:, :, i, j, i, j][f.same] = (x * z)[:, :, i, j, i, j][f.same]
    k, factor = expectations(layer, s, x, z)
    return _Fields(k, factor * f.theta, f.same)


def expectations(layer: Any, s: Array, x: Array, z: Array) -> tuple[Array, Array]:
    """E[f(u) f(v)] and E[f'(u) f'(v)] for Gaussian u, v with deviations x, z and covariance s."""
    match type(layer).__name__:
        case "ABReLU":
            lam = np.clip(s / (x * z), -1.0, 1.0)
            angle = np.arccos(lam)
            relu = x * z * (lam * (math.pi - angle) + np.sin(angle)) / (2 * math.pi)
            c = (layer.b - layer.a) ** 2
            step = (math.pi - angle) / (2 * math.pi)
            return c * relu + layer.a * layer.b * s, c * step + layer.a * layer.b
        case "Erf":
            n = np.sqrt((1 + 2 * x**2) * (1 + 2 * z**2))
            return 2 / math.pi * np.arcsin(2 * s / n), 4 / math.pi / np.sqrt(n**2 - 4 * s**2)
        case "GELU":
            a, b = 1 + x**2, 1 + z**2
            d = a * b - s**2
            p = 0.25 + np.arcsin(s / np.sqrt(a * b)) / (2 * math.pi)
            r = 1 / (2 * math.pi * np.sqrt(d))
            k = s * p + r * (x**2 * z**2 - s**2 + s**2 / a + s**2 / b)
            return k, p + r * s * (1 / a + 1 / b + 1 / d)
        case "Sin" | "Cos":
            near, far = np.exp(s - (x**2 + z**2) / 2) / 2, np.exp(-s - (x**2 + z**2) / 2) / 2
            both = near - far, near + far  # exp(-(x^2 + z^2)/2) times sinh s and cosh s
            return both if type(layer).__name__ == "Sin" else both[::-1]
        case "Gaussian":
            value = np.exp(layer.gamma * (s / (x * z) - 1))
            return x * z * value, layer.gamma * value
        case "LayerNorm":
            norm = np.sqrt(x**2 + layer.eps) * np.sqrt(z**2 + layer.eps)
            return s / norm, 1 / norm
        case "Polynomial":
            # E[u^m v^n] by Isserlis: j pairs of a u and a v, the others among themselves
            k, factor = np.zeros_like(s), np.zeros_like(s)
            for m, c in enumerate(layer.coefficients):
                for n, d in enumerate(layer.coefficients):
                    k += c * d * _moment(m, n, s, x, z)
                    if m and n:
                        factor += c * d * m * n * _moment(m - 1, n - 1, s, x, z)
            return k, factor
        case other:
            raise NotImplementedError(other)


def _moment(m: int, n: int, s: Array, x: Array, z: Array) -> Array:
    total = np.zeros_like(s)
    for j in range(min(m, n) + 1):
        if (m - j) % 2 == (n - j) % 2 == 0:
            ways = math.comb(m, j) * math.comb(n, j) * math.factorial(j)
            ways *= math.prod(range(1, m - j, 2)) * math.prod(range(1, n - j, 2))
            total += ways * s**j * x ** (m - j) * z ** (n - j)
    return total


def _of_itself(f: _Fields) -> Array:
    """Covariance of each image with itself at p = p', shape (n, h, w)."""
    n, _, h, w = f.k.shape[:4]
    out = np.empty((n, h, w))
    for a in range(n):
        for i in range(h):
            for j in range(w):
                out[a, i, j] = f.k[a, a, i, j, i, j]
    return out


def _flatten(m: Array, scaling: str) -> Array:
    h, w = m.shape[2:4]
    total = np.zeros(m.shape[:2])
    for i in range(h):
        for j in range(w):
            total += m[:, :, i, j, i, j]
    if scaling == "fan_in":
        total = total / (h * w)
    return total[:, :, None, None, None, None]


def _mean(m: Array) -> Array:
    return m.mean(axis=(2, 3, 4, 5))[:, :, None, None, None, None]


def box(m: Array, q: int) -> Array:
    """Sum over |a| <= r of m(p+a, p'+a), zero outside."""
    r = (q - 1) // 2
    h, w = m.shape[-2:]
    padded = np.pad(m, [(0, 0)] * (m.ndim - 4) + [(r, r)] * 4)
    total = np.zeros_like(m)
    for a in range(q):
        for b in range(q):
            total += padded[..., a : a + h, b : b + w, a : a + h, b : b + w]
    return total


Pair: TypeAlias = tuple[int, int]


def _geometry(layer: Any, size: Any) -> tuple[Pair, Pair, Pair]:
    """Size, stride, and zeros before the first pixel, for rows and for columns."""
    q = size if isinstance(size, tuple) else (size, size)
    stride = layer.stride if isinstance(layer.stride, tuple) else (layer.stride, layer.stride)
    low = ((q[0] - 1) // 2, (q[1] - 1) // 2) if layer.padding == "same" else (0, 0)
    return q, stride, low


def shifts(m: Array, q: Pair, stride: Pair, low: Pair) -> Array:
    """Sum over a filter that both images see at the same place."""
    zeros = [(0, 0)] * (m.ndim - 4) + [(low[0],) * 2, (low[1],) * 2] * 2
    padded = np.pad(m, zeros)
    h, w = ((n - k) // s + 1 for n, k, s in zip(padded.shape[-2:], q, stride, strict=True))
    total = np.zeros((*m.shape[:-4], h, w, h, w))
    for a in range(q[0]):
        for b in range(q[1]):
            rows = slice(a, a + stride[0] * (h - 1) + 1, stride[0])
            columns = slice(b, b + stride[1] * (w - 1) + 1, stride[1])
            total += padded[..., rows, columns, rows, columns]
    return total


def window_mean(m: Array, q: Pair, stride: Pair, low: Pair) -> Array:
    """Mean over a window around p, and one around p', zeros included."""
    for axis, side in zip((-4, -3, -2, -1), (0, 1, 0, 1), strict=True):
        pad = [(0, 0)] * m.ndim
        pad[axis] = (low[side], low[side])
        padded = np.pad(m, pad)
        places = range(0, padded.shape[axis] - q[side] + 1, stride[side])
        means = [np.take(padded, range(p, p + q[side]), axis).mean(axis) for p in places]
        m = np.stack(means, axis)
    return m


def average(m: Array, c: int) -> Array:
    """Mean over a window around p, and one around p', zero-padded."""
    h, w = m.shape[-2:]
    size = 2 * c + 1
    padded = np.pad(m, [(0, 0)] * (m.ndim - 4) + [(c, c), (c, c), (0, 0), (0, 0)])
    left = np.zeros_like(m)
    for a in range(size):
        for b in range(size):
            left += padded[..., a : a + h, b : b + w, :, :] / size**2
    padded = np.pad(left, [(0, 0)] * (m.ndim - 2) + [(c, c), (c, c)])
    both = np.zeros_like(m)
    for a in range(size):
        for b in range(size):
            both += padded[..., a : a + h, b : b + w] / size**2
    return both


# ---------------------------------------------------------------- the paper, for one pair (x, z)


def paper_cntk(x: Array, z: Array, depth: int, q: int, *, pooling: bool) -> tuple[float, float]:
    """NNGP and NTK of CNTK-V (Section 4), or with `pooling` of CNTK-GAP (Section H)."""
    pairs = {"xz": (x, z), "xx": (x, x), "zz": (z, z)}
    h, w, _ = x.shape
    # Sigma^(0): the patch sum of the inner products of pixels
    sigma = {name: box(np.einsum("ijc,klc->ijkl", *ab), q) for name, ab in pairs.items()}
    theta = np.zeros_like(sigma["xz"]) if pooling else sigma["xz"].copy()
    layers = depth - 1
    for layer in range(1, layers + 1):
        k: dict[str, Array] = {}
        for name in pairs:
            k[name], k_prime = _paper_relu(sigma, name, q, bool(np.all(x == z)) or name != "xz")
            if name == "xz":
                derivative = k_prime
        if layer < layers:
            theta = box(derivative * theta + k["xz"], q)
            sigma = {name: box(field, q) for name, field in k.items()}
    if pooling:  # the last layer is not trained
        return float(k["xz"].mean()), float((derivative * theta).mean())
    last = derivative * theta + k["xz"]
    pixels = [(i, j) for i in range(h) for j in range(w)]
    return sum(float(k["xz"][p + p]) for p in pixels), sum(float(last[p + p]) for p in pixels)


def _paper_relu(sigma: dict[str, Array], name: str, q: int, same: bool) -> tuple[Array, Array]:
    """K and K' of Eq. 11, 12 for c = 2, entry by entry."""
    c = 2.0
    left, right = sigma[name[0] * 2], sigma[name[1] * 2]
    k, k_prime = np.zeros_like(left), np.zeros_like(left)
    h, w = left.shape[:2]
    for i, j, i2, j2 in np.ndindex(h, w, h, w):
        norms = math.sqrt(left[i, j, i, j]) * math.sqrt(right[i2, j2, i2, j2])
        lam = sigma[name][i, j, i2, j2] / norms if norms > 0 else 0.0
        lam = 1.0 if same and (i, j) == (i2, j2) else max(-1.0, min(1.0, lam))
        k0 = (math.pi - math.acos(lam)) / math.pi
        k1 = (lam * (math.pi - math.acos(lam)) + math.sqrt(1 - lam**2)) / math.pi
        k[i, j, i2, j2] = c / q**2 * norms * k1 / 2
        k_prime[i, j, i2, j2] = c / q**2 * k0 / 2
    return k, k_prime


def paper_ntk(x: Array, z: Array, depth: int) -> tuple[float, float]:
    """Sigma^(L) and Theta^(L) of Eq. 7-9 for L = depth hidden layers and c = 2."""
    s, xx, zz = (float(np.sum(a * b)) for a, b in ((x, z), (x, x), (z, z)))
    theta = s
    for _ in range(depth):
        norms = math.sqrt(xx) * math.sqrt(zz)
        lam = 1.0 if np.all(x == z) else max(-1.0, min(1.0, s / norms))
        derivative = (math.pi - math.acos(lam)) / math.pi
        s = norms * (lam * (math.pi - math.acos(lam)) + math.sqrt(1 - lam**2)) / math.pi
        # c = 2 keeps Sigma(x, x): kappa1(1) = 1
        theta = theta * derivative + s
    return s, theta
