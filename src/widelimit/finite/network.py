"""A network of finite width, and the two kernels that one draw of its parameters has.

Weights and biases are standard normal, and scaled where they are used (the NTK parametrisation:
Section 4 of the paper; general form in docs/mathematics.md)::

    Conv(q)   u(p) = w / sqrt(q^2 c) sum_a W_a x(p + a) + b beta         c channels in
    Dense     u    = w / sqrt(c)     W x                + b beta         c features in

so that for growing width the tangent kernel tends to Theta (Theorem 3.1), and the covariance of
outputs to K. With ``delta(p) = df/du(p)``, by backpropagation, a trained layer adds to the former::

    w^2/(q^2 c) sum_{p,p'} (sum_a x(p+a).z(p'+a)) (delta_x(p).delta_z(p'))    dot: sum over channels
    + b^2 (sum_p delta_x(p)).(sum_p' delta_z(p'))

Written from these formulas and the definition of a layer alone: no dual activation, no slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike

from widelimit.arrays import FloatArray
from widelimit.network import (
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    LocalAvgPool,
    Network,
    check_plain,
)

__all__ = ["FiniteNetwork", "Parameters", "Seed", "check_width", "draw_parameters"]

Seed: TypeAlias = int | Sequence[int] | np.random.SeedSequence | np.random.Generator

_BLOCK = 2**22  # entries of the gradients that are held at a time: 32 MiB


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """Weights and biases of one layer, and what each is multiplied with where it is used.

    Parameters
    ----------
    weight : ndarray of float64, shape (q, q, c, outputs), or (c, outputs) of a `Dense`
    bias : ndarray of float64, shape (outputs,)
    weight_scale : float
        ``w_std / sqrt(fan-in)``.
    bias_scale : float
        ``b_std``.
    """

    weight: FloatArray
    bias: FloatArray
    weight_scale: float
    bias_scale: float

    @property
    def matrix(self) -> FloatArray:
        """Weights of shape (fan-in, outputs)."""
        return self.weight.reshape(-1, self.weight.shape[-1])


@final
@dataclass(frozen=True, slots=True, eq=False)
class FiniteNetwork:
    """A `Network` with `width` channels in every hidden layer, and one output; see `sample`.

    Parameters
    ----------
    network : Network
    input_shape : tuple of int
        ``(h, w, c)``, or ``(d,)`` for a dense network.
    width : int
        Channels of every `Conv`, features of every `Dense` but the last.
    parameters : tuple of Parameters or None
        One for each layer of the network, None where it has nothing to learn.
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
            ``(h, w, c)`` of one image, or ``(d,)`` of one vector if the network is dense.
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
        return self._activations("x", x)[-1][:, 0]

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
        left = self._activations("x1", x1)
        right = left if x2 is None else self._activations("x2", x2)
        left_deltas = self._deltas(left)
        right_deltas = left_deltas if x2 is None else self._deltas(right)
        out = np.zeros((len(left[0]), len(right[0])))
        for i, (layer, own) in enumerate(zip(self.network.layers, self.parameters, strict=True)):
            if own is None or not isinstance(layer, Conv | Dense) or not layer.trainable:
                continue
            f1, d1 = _features(layer, left[i]), _pixels(left_deltas[i])
            f2, d2 = (
                (f1, d1) if x2 is None else (_features(layer, right[i]), _pixels(right_deltas[i]))
            )
            out += own.weight_scale**2 * _gradient_products(f1, d1, f2, d2)
            out += own.bias_scale**2 * (d1.sum(axis=1) @ d2.sum(axis=1).T)
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
        left = self._activations("x1", x1)[-2]
        right = left if x2 is None else self._activations("x2", x2)[-2]
        out = last.weight_scale**2 * (left @ right.T) + last.bias_scale**2
        return _symmetric(out) if x2 is None else out

    def _activations(self, name: str, x: ArrayLike) -> list[FloatArray]:
        """Input of every layer, and the output."""
        values = [self._checked(name, x)]
        for layer, own in zip(self.network.layers, self.parameters, strict=True):
            values.append(_forward(layer, own, values[-1]))
        return values

    def _deltas(self, activations: list[FloatArray]) -> list[FloatArray]:
        """Derivative of the output with respect to the output of every layer."""
        layers = self.network.layers
        deltas = [np.ones_like(activations[-1])]
        for i in range(len(layers) - 1, 0, -1):
            deltas.append(_backward(layers[i], self.parameters[i], activations[i], deltas[-1]))
        return deltas[::-1]

    def _checked(self, name: str, x: ArrayLike) -> FloatArray:
        values = np.asarray(x)
        if values.dtype.kind not in "buif":
            raise TypeError(f"{name} must hold real numbers, got dtype {values.dtype}")
        dense, size = self.network.is_dense, math.prod(self.input_shape)
        fits = values.shape[1:] == self.input_shape or (
            dense and values.ndim in (2, 4) and math.prod(values.shape[1:]) == size
        )
        if values.ndim < 2 or not fits or not len(values):
            expected = ", ".join(map(str, self.input_shape))
            raise ValueError(
                f"{name} must have shape (n, {expected}), n at least 1, got {values.shape}: sample "
                "a network with the shape of your inputs, or reshape them"
            )
        values = values.astype(np.float64)
        return values.reshape(len(values), -1) if dense else values


def check_width(width: object) -> int:
    """Return the width of hidden layers as a plain integer, or say what is wrong with it."""
    if isinstance(width, bool) or not isinstance(width, Integral):
        raise TypeError(f"width must be an integer, got {width!r} ({type(width).__name__})")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    return int(width)


def draw_parameters(
    network: Network, input_shape: Sequence[int], width: int, seed: Seed, outputs: int = 1
) -> tuple[Parameters | None, ...]:
    """Draw all parameters, as `FiniteNetwork.sample` says, for any number of outputs.

    Returns
    -------
    tuple of Parameters or None
        One for each layer of the network, None where it has nothing to learn.
    """
    width = check_width(width)
    check_plain(network, "a finite network")
    network.output_shapes(input_shape)  # says what is wrong with the shape
    shape = tuple(int(size) for size in input_shape)
    rng = np.random.default_rng(seed)
    paper = network.scaling == "paper"

    pixels = math.prod(shape[:-1])
    if isinstance(network.layers[0], Dense):  # an image is a vector from the start
        pixels, shape = 1, (math.prod(shape),)
    channels = shape[-1]
    fan_in = 1 if paper else channels  # what the next layer divides by, but for its q^2
    parameters: list[Parameters | None] = []
    for index, layer in enumerate(network.layers):
        match layer:
            case Conv(_, w_std, b_std):
                q = layer.side
                size, scale = (q, q, channels, width), w_std / (q * math.sqrt(fan_in))
            case Dense(w_std, b_std):
                features = outputs if index == len(network.layers) - 1 else width
                size, scale = (channels, features), w_std / math.sqrt(fan_in)
            case _:
                if isinstance(layer, Flatten):
                    channels *= pixels
                    fan_in *= 1 if paper else pixels
                parameters.append(None)
                continue
        weight, bias = rng.standard_normal(size), rng.standard_normal(size[-1])
        parameters.append(Parameters(weight, bias, scale, b_std))
        channels = fan_in = width
    return tuple(parameters)


def _forward(layer: Layer, own: Parameters | None, x: FloatArray) -> FloatArray:
    match layer:
        case Conv() | Dense():
            assert own is not None
            rows = _features(layer, x)
            u = own.weight_scale * (rows.reshape(-1, rows.shape[-1]) @ own.matrix)
            return (u + own.bias_scale * own.bias).reshape(*x.shape[:-1], -1)
        case Flatten():
            return x.reshape(len(x), -1)
        case GlobalAvgPool():
            return x.mean(axis=(1, 2))
        case LocalAvgPool(half_width):
            return _average(x, half_width)
        case _:  # ReLU
            return np.maximum(x, 0.0)


def _backward(layer: Layer, own: Parameters | None, x: FloatArray, delta: FloatArray) -> FloatArray:
    """From the derivative with respect to the output of a layer to that for its input x."""
    match layer:
        case Conv() | Dense():
            assert own is not None
            rows = delta.reshape(-1, delta.shape[-1])
            gradient = (own.weight_scale * rows) @ own.matrix.T
            if isinstance(layer, Dense):
                return gradient
            return _fold(gradient.reshape(*x.shape[:3], layer.side, layer.side, -1))
        case Flatten():
            return delta.reshape(x.shape)
        case GlobalAvgPool():
            pixels = x.shape[1] * x.shape[2]
            return np.broadcast_to(delta[:, None, None, :] / pixels, x.shape)
        case LocalAvgPool(half_width):
            return _average(delta, half_width)  # its own transpose
        case _:  # ReLU
            return np.where(x > 0.0, delta, 0.0)


def _features(layer: Conv | Dense, x: FloatArray) -> FloatArray:
    """What the weights of a layer are multiplied with, shape (n, pixels, fan-in)."""
    if isinstance(layer, Dense):
        return x[:, None, :]
    n, h, w, _ = x.shape
    q = layer.side
    r = q // 2
    padded = np.pad(x, [(0, 0), (r, r), (r, r), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (q, q), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(n, h * w, -1)


def _fold(windows: FloatArray) -> FloatArray:
    """Add every patch of shape (q, q, c) where it was taken: the transpose of `_features`."""
    n, h, w, q, _, c = windows.shape
    r = q // 2
    padded = np.zeros((n, h + 2 * r, w + 2 * r, c))
    for i in range(q):
        for j in range(q):
            padded[:, i : i + h, j : j + w] += windows[:, :, :, i, j]
    return padded[:, r : r + h, r : r + w]


def _average(x: FloatArray, half_width: int) -> FloatArray:
    """Mean over the window around each pixel, zero-padded."""
    rows, columns = (_window(size, half_width) for size in x.shape[1:3])
    return np.einsum("ij,njlc,lk->nikc", rows, x, columns, optimize=True)


def _window(size: int, half_width: int) -> FloatArray:
    place = np.arange(size, dtype=np.float64)
    return (np.abs(place[:, None] - place) <= half_width) / (2 * half_width + 1)


def _pixels(delta: FloatArray) -> FloatArray:
    """Shape (n, pixels, channels)."""
    return delta.reshape(len(delta), -1, delta.shape[-1])


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
