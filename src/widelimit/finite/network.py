"""A network of finite width, and the two kernels that one draw of its parameters has.

Weights and biases are standard normal, and scaled where they are used (the NTK parametrisation:
Section 4 of the paper; general form in docs/mathematics.md)::

    Conv(q)   u(p) = w / sqrt(q^2 c) sum_a W_a x(s p + a) + b beta       c channels in, stride s
    Dense     u    = w / sqrt(c)     W x                  + b beta       c features in

so that for growing width the tangent kernel tends to Theta (Theorem 3.1), and the covariance of
outputs to K. With ``delta(p) = df/du(p)``, by backpropagation, a trained layer adds to the former::

    w^2/(q^2 c) sum_{p,p'} (sum_a x(s p+a).z(s p'+a)) (delta_x(p).delta_z(p'))
    + b^2 (sum_p delta_x(p)).(sum_p' delta_z(p'))                      dots are sums over channels

Written from these formulas and the definition of a layer alone: no dual activation, no slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike

from widelimit.arrays import FloatArray
from widelimit.finite.activations import activate, pull_back
from widelimit.finite.parameters import Parameters, Seed, draw_parameters, inner_shape
from widelimit.lattice import Window
from widelimit.network import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Identity,
    Layer,
    LocalAvgPool,
    Network,
    Sum,
)

__all__ = ["FiniteNetwork"]

_BLOCK = 2**22  # entries of the gradients that are held at a time: 32 MiB


@final
@dataclass(frozen=True, slots=True, eq=False)
class FiniteNetwork:
    """A `Network` with `width` channels in every hidden layer, and one output; see `sample`.

    Parameters
    ----------
    network : Network
    input_shape : tuple of int
        ``(h, w, c)``, ``(length, c)`` of a series, or ``(d,)`` for a dense network.
    width : int
        Channels of every `Conv`, features of every `Dense` but the last.
    parameters : tuple of Parameters or None
        One for each layer of the network, those of branches after their `Sum`; None where it has
        nothing to learn.
    """

    network: Network
    input_shape: tuple[int, ...]
    width: int
    parameters: tuple[Parameters | None, ...]

    @classmethod
    def sample(
        cls, network: Network, input_shape: Sequence[int], width: int, seed: Seed = 0
    ) -> FiniteNetwork:
        """Draw all parameters.

        Parameters
        ----------
        network : Network
            With either scaling. "paper" leaves out of the fan-in the channels of the input, and
            the pixels that `Flatten` sums; `q^2` and widths are in both.
        input_shape : sequence of int
            ``(h, w, c)`` of one image, ``(length, c)`` of a series, or ``(d,)`` of one vector if
            the network is dense.
        width : int
            At least 1.
        seed : int, sequence of int, SeedSequence or Generator
            As for `numpy.random.default_rng`. Equal seeds give equal parameters, whatever the
            scales and flags of the layers.

        Returns
        -------
        FiniteNetwork

        Raises
        ------
        TypeError, ValueError
            If width is not a positive integer, or the shape does not fit the network.

        Notes
        -----
        A hidden `Conv` has ``q^2 width^2`` parameters, 8 bytes each: 18 MiB for q = 3 and width
        512, drawn in about 50 ms on one core.
        """
        parameters = draw_parameters(network, input_shape, width, seed)
        return cls(network, tuple(int(s) for s in input_shape), int(width), parameters)

    def forward(self, x: ArrayLike) -> FloatArray:
        """Outputs of the network.

        Parameters
        ----------
        x : array_like of shape (n, *input_shape)
            A dense network flattens images.

        Returns
        -------
        ndarray of float64, shape (n,)

        Raises
        ------
        TypeError, ValueError
            If x is not real, or has another shape.
        """
        return self._forward(self._checked("x", x))[0][:, 0]

    def empirical_ntk(self, x1: ArrayLike, x2: ArrayLike | None = None) -> FloatArray:
        """Tangent kernel of this draw: inner products of gradients over trained parameters.

        ``Theta_hat(x, z) = <df(x)/dtheta, df(z)/dtheta>``, which tends to Theta for growing width
        (Theorem 3.1): one draw is off by O(1/sqrt(width)), the mean over draws by O(1/width).

        Parameters
        ----------
        x1, x2 : array_like of shape (n1, *input_shape) and (n2, *input_shape)
            ``x2=None``: x2 is x1, and the result is exactly symmetric.

        Returns
        -------
        ndarray of float64, shape (n1, n2)
            Exact but for rounding. The derivative of a ReLU at 0 is 0.

        Raises
        ------
        TypeError, ValueError
            If an input is not real, or has another shape.

        Notes
        -----
        With P pixels, F = q^2 c and O channels out, a layer costs the cheaper of
        ``n1 n2 P^2 (F + O)`` and ``(n1 + n2) P F O + n1 n2 F O`` multiplications. It holds
        ``(n1 + n2) P F`` numbers, and ``2 n2 P^2``, or blocks of gradients of 32 MiB.
        """
        x = self._checked("x1", x1)
        z = x if x2 is None else self._checked("x2", x2)
        left = self._uses(x)
        right = left if x2 is None else self._uses(z)
        out = np.zeros((len(x), len(z)))
        for mine, theirs in zip(left, right, strict=True):
            f1, d1 = mine.features(), mine.deltas()
            f2, d2 = (f1, d1) if x2 is None else (theirs.features(), theirs.deltas())
            out += mine.own.weight_scale**2 * _gradient_products(f1, d1, f2, d2)
            out += mine.own.bias_scale**2 * (d1.sum(axis=1) @ d2.sum(axis=1).T)
        return _symmetric(out) if x2 is None else out

    def empirical_nngp(self, x1: ArrayLike, x2: ArrayLike | None = None) -> FloatArray:
        """Covariance of outputs over draws of the last layer, the others as they were drawn.

        ``K_hat(x, z) = w^2/c phi(x).phi(z) + b^2``, phi being the c features that enter the last
        `Dense`; tends to K (Eq. 1) as `empirical_ntk` tends to Theta.

        Parameters
        ----------
        x1, x2 : array_like of shape (n1, *input_shape) and (n2, *input_shape)
            ``x2=None``: x2 is x1, and the result is exactly symmetric.

        Returns
        -------
        ndarray of float64, shape (n1, n2)

        Raises
        ------
        TypeError, ValueError
            If an input is not real, or has another shape.
        """
        last = self.parameters[-1]
        assert last is not None  # a Network ends with Dense
        left = self._forward(self._checked("x1", x1))[1][-1].x
        right = left if x2 is None else self._forward(self._checked("x2", x2))[1][-1].x
        out = last.weight_scale**2 * (left @ right.T) + last.bias_scale**2
        return _symmetric(out) if x2 is None else out

    def _forward(self, x: FloatArray) -> tuple[FloatArray, list[_Step]]:
        return _forward(self.network.layers, iter(self.parameters), x)

    def _uses(self, x: FloatArray) -> list[_Use]:
        """Return what trained layers read, and the derivative of the output by what they write."""
        value, steps = self._forward(x)
        uses: list[_Use] = []
        _backward(steps, np.ones_like(value), uses)
        return uses

    def _checked(self, name: str, x: ArrayLike) -> FloatArray:
        values = np.asarray(x)
        if values.dtype.kind not in "buif":
            raise TypeError(f"{name} must hold real numbers, got dtype {values.dtype}")
        inner = inner_shape(self.network, self.input_shape)
        fits = values.shape[1:] == self.input_shape or (
            self.network.is_dense
            and values.ndim in (2, 4)
            and math.prod(values.shape[1:]) == inner[0]
        )
        if values.ndim < 2 or not fits or not len(values):
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(
                f"{name} must have shape (n, {expected}), n at least 1, got {values.shape}: sample "
                "a network with the shape of your inputs, or reshape them"
            )
        return values.astype(np.float64).reshape(len(values), *inner)


class _Step(NamedTuple):
    """What a layer read on the way forward."""

    layer: Layer
    own: Parameters | None
    x: FloatArray
    branches: tuple[list[_Step], ...]  # of a Sum


class _Use(NamedTuple):
    """What a trained layer reads, and the derivative of the output by what it writes."""

    layer: Conv | Dense
    own: Parameters
    x: FloatArray
    delta: FloatArray

    def features(self) -> FloatArray:
        """Shape (n, pixels, fan-in)."""
        return _features(self.layer, self.x)

    def deltas(self) -> FloatArray:
        """Shape (n, pixels, channels)."""
        return self.delta.reshape(len(self.delta), -1, self.delta.shape[-1])


def _forward(
    layers: Sequence[Layer], parameters: Iterator[Parameters | None], x: FloatArray
) -> tuple[FloatArray, list[_Step]]:
    """Return the output of some layers, which take their parameters, and the way to it."""
    steps: list[_Step] = []
    for layer in layers:
        own = next(parameters)
        if isinstance(layer, Sum):
            ends = [_forward(branch, parameters, x) for branch in layer.branches]
            steps.append(_Step(layer, own, x, tuple(way for _, way in ends)))
            x = sum((value for value, _ in ends[1:]), start=ends[0][0])
        else:
            steps.append(_Step(layer, own, x, ()))
            x = _apply(layer, own, x)
    return x, steps


def _backward(steps: Sequence[_Step], delta: FloatArray, uses: list[_Use]) -> FloatArray:
    """Go back from the derivative by the output of some layers to that by their input."""
    for layer, own, x, branches in reversed(steps):
        if isinstance(layer, Conv | Dense) and layer.trainable:
            assert own is not None
            uses.append(_Use(layer, own, x, delta))
        if branches:
            ends = [_backward(branch, delta, uses) for branch in branches]
            delta = sum(ends[1:], start=ends[0])
        else:
            delta = _pull_back(layer, own, x, delta)
    return delta


def _apply(layer: Layer, own: Parameters | None, x: FloatArray) -> FloatArray:
    match layer:
        case Conv() | Dense():
            assert own is not None
            rows = _features(layer, x)
            u = own.weight_scale * (rows.reshape(-1, rows.shape[-1]) @ own.matrix)
            u = u + own.bias_scale * own.bias
            return u.reshape(len(x), *_grid(layer, x), -1)
        case Flatten():
            return x.reshape(len(x), -1)
        case GlobalAvgPool():
            return x.mean(axis=(1, 2))
        case AvgPool() | LocalAvgPool():
            rows, columns = _means(layer, x)
            return np.einsum("ij,njlc,kl->nikc", rows, x, columns, optimize=True)
        case Identity():
            return x
        case Sum():
            raise AssertionError(layer)  # its branches are gone through
        case _:
            return activate(layer, x)


def _pull_back(
    layer: Layer, own: Parameters | None, x: FloatArray, delta: FloatArray
) -> FloatArray:
    """From the derivative with respect to the output of a layer to that for its input x."""
    match layer:
        case Conv() | Dense():
            assert own is not None
            rows = delta.reshape(-1, delta.shape[-1])
            gradient = (own.weight_scale * rows) @ own.matrix.T
            return gradient if isinstance(layer, Dense) else _fold(layer, gradient, x.shape)
        case Flatten():
            return delta.reshape(x.shape)
        case GlobalAvgPool():
            pixels = x.shape[1] * x.shape[2]
            return np.broadcast_to(delta[:, None, None, :] / pixels, x.shape)
        case AvgPool() | LocalAvgPool():
            rows, columns = _means(layer, x)
            return np.einsum("ij,nikc,kl->njlc", rows, delta, columns, optimize=True)
        case Identity():
            return delta
        case Sum():
            raise AssertionError(layer)
        case _:
            return pull_back(layer, x, delta)


def _grid(layer: Conv | Dense, x: FloatArray) -> tuple[int, ...]:
    """Pixels of the output, none of a vector."""
    if isinstance(layer, Dense):
        return ()
    return tuple(w.extent(n) for w, n in zip(layer.windows, x.shape[1:3], strict=True))


def _features(layer: Conv | Dense, x: FloatArray) -> FloatArray:
    """What the weights of a layer are multiplied with, shape (n, pixels, fan-in)."""
    if isinstance(layer, Dense):
        return x[:, None, :]
    rows, columns = layer.windows
    padded = np.pad(x, [(0, 0), (rows.low, rows.high), (columns.low, columns.high), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (rows.size, columns.size), axis=(1, 2)
    )[:, :: rows.stride, :: columns.stride]
    n, h, w = windows.shape[:3]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(n, h * w, -1)


def _fold(layer: Conv, windows: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Add every window where it was taken: the transpose of `_features`."""
    (n, h, w, c), (rows, columns) = shape, layer.windows
    above, across = rows.extent(h), columns.extent(w)
    windows = windows.reshape(n, above, across, rows.size, columns.size, c)
    padded = np.zeros((n, rows.low + h + rows.high, columns.low + w + columns.high, c))
    for i in range(rows.size):
        for j in range(columns.size):
            down = slice(i, i + rows.stride * above, rows.stride)
            right = slice(j, j + columns.stride * across, columns.stride)
            padded[:, down, right] += windows[:, :, :, i, j]
    return padded[:, rows.low : rows.low + h, columns.low : columns.low + w]


def _means(layer: AvgPool | LocalAvgPool, x: FloatArray) -> list[FloatArray]:
    """Return for each axis the matrix that takes means over windows, of zeros, too."""
    return [_mean(window, n) for window, n in zip(layer.windows, x.shape[1:3], strict=True)]


def _mean(window: Window, n: int) -> FloatArray:
    first = window.stride * np.arange(window.extent(n))[:, None] - window.low
    place = np.arange(n)
    return ((first <= place) & (place < first + window.size)) / window.size


def _symmetric(matrix: FloatArray) -> FloatArray:
    """Both halves from the lower one: sums of products may be rounded differently in each."""
    return np.tril(matrix) + np.tril(matrix, -1).T


def _gradient_products(
    f1: FloatArray, d1: FloatArray, f2: FloatArray, d2: FloatArray
) -> FloatArray:
    """``sum_{p,p'} (f1(p).f2(p')) (d1(p).d2(p'))`` for all pairs, the cheaper way."""
    n1, pixels, fan_in = f1.shape
    n2, outputs = len(f2), d2.shape[-1]
    by_gram = n1 * n2 * pixels**2 * (fan_in + outputs)
    by_gradient = ((n1 + n2) * pixels + n1 * n2) * fan_in * outputs
    return (_by_gram if by_gram <= by_gradient else _by_gradient)(f1, d1, f2, d2)


def _by_gram(f1: FloatArray, d1: FloatArray, f2: FloatArray, d2: FloatArray) -> FloatArray:
    """Gram matrix of features times Gram matrix of deltas, for one left input at a time."""
    all_f2, all_d2 = f2.reshape(-1, f2.shape[-1]), d2.reshape(-1, d2.shape[-1])
    rows = [
        ((f @ all_f2.T) * (d @ all_d2.T)).sum(axis=0).reshape(len(f2), -1).sum(axis=1)
        for f, d in zip(f1, d1, strict=True)
    ]
    return np.array(rows).reshape(len(f1), len(f2))


def _by_gradient(f1: FloatArray, d1: FloatArray, f2: FloatArray, d2: FloatArray) -> FloatArray:
    """Gradients ``sum_p f(p) d(p)^T``, for a few output channels at a time."""
    out = np.zeros((len(f1), len(f2)))
    step = max(1, _BLOCK // ((len(f1) + len(f2)) * f1.shape[-1]))
    for start in range(0, d1.shape[-1], step):
        block = slice(start, start + step)
        left, right = (
            (f.transpose(0, 2, 1) @ d[..., block]).reshape(len(f), -1)
            for f, d in ((f1, d1), (f2, d2))
        )
        out += left @ right.T
    return out
