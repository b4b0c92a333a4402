"""The layers of a network: frozen values, checked when they are made.

``K, Theta`` enter a layer, ``w = w_std``, ``b = b_std``, ``t = 1`` if trainable, else 0, and
``(.)`` is ``K``, or ``Theta + t K``. Activations see Gaussian pairs (u, v) with variances ``X^2,
Z^2`` and covariance ``s``: ``K = E[f(u) f(v)]``, and Theta is multiplied by ``E[f'(u) f'(v)]`` (Eq.
11-12 of Arora et al., for any f). docs/networks.md has all rules with their sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, cast, final, get_args

from widelimit.lattice import Window

__all__ = [
    "ACTIVATIONS",
    "GELU",
    "LAYERS",
    "ABReLU",
    "Abs",
    "Activation",
    "AvgPool",
    "Conv",
    "Cos",
    "Dense",
    "Erf",
    "Flatten",
    "Gaussian",
    "GlobalAvgPool",
    "Identity",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LocalAvgPool",
    "Pair",
    "Pointwise",
    "Polynomial",
    "ReLU",
    "Sin",
    "Sum",
    "checked",
    "mapped",
    "required_fields",
    "walk",
]

Pair: TypeAlias = int | tuple[int, int]
Padding: TypeAlias = Literal["same", "valid"]

_HIGHEST_DEGREE = 32

# Type and range of every number. With these (2 * half_width + 1)**4 fits a signed 64-bit integer,
# and variances, the squares of standard deviations, are ordinary floats.
_RANGES: dict[str, tuple[type, float, float]] = {
    "filter_size": (Integral, 1, 9_999),
    "size": (Integral, 1, 9_999),
    "stride": (Integral, 1, 9_999),
    "half_width": (Integral, 0, 9_999),
    "w_std": (Real, 1e-100, 1e100),
    "b_std": (Real, 0.0, 1e100),
    "eps": (Real, 0.0, 1e100),
    "a": (Real, -1e50, 1e50),
    "b": (Real, -1e50, 1e50),
    "gamma": (Real, 1e-3, 1e3),
    "coefficients": (Real, -1e50, 1e50),
    "input_shape": (Integral, 1, 2**31 - 1),
}
_LEAST_SQUARE = 1e-200
_PAIRS = ("filter_size", "size", "stride")


def checked(name: str, value: Any) -> Any:
    """Return the value of one field in its plain Python type, or say what is wrong with it."""
    got = f"got {value!r} ({type(value).__name__})"
    if name == "trainable":
        if not isinstance(value, bool):
            raise TypeError(f"trainable must be True or False, {got}")
        return value
    if name == "padding":
        if value not in get_args(Padding):
            raise ValueError(f'padding must be "same" or "valid", {got}')
        return value
    if name in _PAIRS and isinstance(value, tuple | list):
        pair = tuple(cast("Sequence[Any]", value))
        if len(pair) != 2 or any(isinstance(entry, tuple | list) for entry in pair):
            raise ValueError(f"{name} must be an integer, or a pair (rows, columns), {got}")
        rows, columns = (checked(name, entry) for entry in pair)
        return rows if rows == columns else (rows, columns)
    kind, smallest, largest = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, kind):  # bool is an Integral, not meant
        raise TypeError(f"{name} must be {'an integer' if kind is Integral else 'a number'}, {got}")
    plain = int(value) if isinstance(value, Integral) else float(value)
    if not smallest <= plain <= largest:  # refuses nan, too
        raise ValueError(f"{name} must be from {smallest} to {largest}, {got}")
    # Equal networks have equal JSON: 3 becomes 3.0, and -0.0 becomes 0.0.
    return plain if kind is Integral else plain + 0.0


def _both(value: Pair) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _windows(size: Pair, stride: Pair, padding: Padding) -> tuple[Window, Window]:
    rows, columns = (
        Window(m, s, *([(m - 1) // 2] * 2 if padding == "same" else (0, 0)))
        for m, s in zip(_both(size), _both(stride), strict=True)
    )
    return rows, columns


def _check_odd(name: str, size: Pair, padding: Padding) -> None:
    """Refuse a size without a centre pixel, where the output is to lie on the centres."""
    for side in _both(size) if padding == "same" else ():
        if side % 2 == 0:
            raise ValueError(
                f"{name} must be odd, got {side} ({type(side).__name__}): use {side - 1} or "
                f'{side + 1}, or padding="valid"'
            )


@dataclass(frozen=True, slots=True)
class _Layer:
    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, checked(field.name, getattr(self, field.name)))

    def __repr__(self) -> str:
        """As in source code, without defaults: ``Conv(3, trainable=False)``."""
        items = [(f, getattr(self, f.name)) for f in fields(self)]
        required = [repr(value) for f, value in items if f.default is MISSING]
        changed = [f"{f.name}={v!r}" for f, v in items if f.default not in (MISSING, v)]
        return f"{type(self).__name__}({', '.join(required + changed)})"

    def __str__(self) -> str:
        """Name and size only: ``Conv(3)``, ``Dense``."""
        size = [str(getattr(self, f.name)) for f in fields(self) if f.default is MISSING]
        return type(self).__name__ + (f"({', '.join(size)})" if size else "")


@final
@dataclass(frozen=True, slots=True, repr=False)
class Conv(_Layer):
    """Convolution with infinitely many channels (Section 4): a filter of q x q pixels.

    ``Sigma = w^2/q^2 box_q(K) + b^2``, ``Theta' = w^2/q^2 box_q(Theta + t K) + t b^2``.

    Parameters
    ----------
    filter_size : int or (int, int)
        q, the side of the filter in pixels, 1 to 9999, or rows and columns of it: then ``q^2`` is
        their product. Odd, unless padding is "valid".
    w_std, b_std : float
        Standard deviation of a weight times sqrt(fan-in), 1e-100 to 1e100, and of a bias, 0 to
        1e100. The default w_std keeps the variance constant through ReLU layers.
    trainable : bool
        Whether weights and biases of this layer are trained.
    stride : int or (int, int)
        Pixels from one place of the filter to the next, 1 to 9999.
    padding : {"same", "valid"}
        "same": (q - 1)/2 zeros on either side, PyTorch's ``padding=q // 2``; the output has
        ``floor((H - 1)/stride) + 1`` rows. (TensorFlow's "SAME" puts them elsewhere for an even H
        and stride 2.) "valid": none, and ``floor((H - q)/stride) + 1`` rows.

    Raises
    ------
    TypeError, ValueError
        If a parameter has the wrong type, or is outside its range.
    """

    filter_size: Pair
    w_std: float = 2**0.5
    b_std: float = 0.0
    trainable: bool = True
    stride: Pair = 1
    padding: Padding = "same"

    def __post_init__(self) -> None:
        _Layer.__post_init__(self)
        _check_odd("filter_size", self.filter_size, self.padding)

    def __str__(self) -> str:
        """With all that changes the shape."""
        stride = "" if self.stride == 1 else f", stride={self.stride}"
        padding = "" if self.padding == "same" else ", valid"
        return f"Conv({self.filter_size}{stride}{padding})"

    @property
    def windows(self) -> tuple[Window, Window]:
        """How the filter moves along rows and along columns."""
        return _windows(self.filter_size, self.stride, self.padding)


@final
@dataclass(frozen=True, slots=True, repr=False)
class AvgPool(_Layer):
    """Mean over the window of each place, ``1/m^4 sum (.)(p, p')`` for pixels p, p' in the windows.

    Parameters
    ----------
    size : int or (int, int)
        m, the side of the window in pixels, 1 to 9999, or rows and columns of it: then ``m^2`` is
        their product. Odd, if padding is "same".
    stride : int or (int, int) or None
        Pixels from one place of the window to the next, 1 to 9999. None: `size`.
    padding : {"valid", "same"}
        As for `Conv`: with "valid", last rows and columns that fill no window are left out, as
        ``widelimit explain`` says. The mean of "same" is over all pixels of the window, zeros
        included.

    Raises
    ------
    TypeError, ValueError
        If a parameter has the wrong type, or is outside its range.
    """

    size: Pair
    stride: Pair | None = None
    padding: Padding = "valid"

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", self.size)
        _Layer.__post_init__(self)
        _check_odd("size", self.size, self.padding)

    @property
    def windows(self) -> tuple[Window, Window]:
        """How the window moves along rows and along columns."""
        return _windows(self.size, cast("Pair", self.stride), self.padding)

    def __repr__(self) -> str:
        stride = "" if self.stride == self.size else f", stride={self.stride!r}"
        padding = "" if self.padding == "valid" else f", padding={self.padding!r}"
        return f"AvgPool({self.size!r}{stride}{padding})"

    def __str__(self) -> str:
        """With all that changes the shape."""
        return repr(self)


# ---------------------------------------------------------------- activations


@final
@dataclass(frozen=True, slots=True, repr=False)
class ReLU(_Layer):
    """Rectifier f(u) = max(u, 0) (Eq. 11-12): ``K = X Z kappa1/2``, ``Theta = kappa0/2 Theta'``.

    Without the paper's c = 2.
    """


@final
@dataclass(frozen=True, slots=True, repr=False)
class ABReLU(_Layer):
    """Two half lines, f(u) = a min(u, 0) + b max(u, 0).

    ``K = (b - a)^2 X Z kappa1/2 + a b s``, ``Theta`` times ``(b - a)^2 kappa0/2 + a b``.

    Parameters
    ----------
    a, b : float
        Slopes below and above 0, -1e50 to 1e50, not both 0.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        _Layer.__post_init__(self)
        if self.a**2 + self.b**2 < _LEAST_SQUARE:
            raise ValueError(
                f"a and b must not both be 0, or so small that their squares are, got {self.a} and "
                f"{self.b}: nothing would be left of the input"
            )


def LeakyReLU(slope: float) -> ABReLU:
    """Return ``ABReLU(slope, 1)``: f(u) = u for u > 0, and slope u for u < 0."""
    return ABReLU(slope, 1.0)


def Abs() -> ABReLU:
    """Return ``ABReLU(-1, 1)``: f(u) = |u|."""
    return ABReLU(-1.0, 1.0)


@final
@dataclass(frozen=True, slots=True, repr=False)
class Erf(_Layer):
    """Error function, f(u) = erf(u): ``K = 2/pi arcsin(2 s / sqrt((1 + 2 X^2)(1 + 2 Z^2)))``.

    ``Theta`` times ``4/pi / sqrt((1 + 2 X^2)(1 + 2 Z^2) - 4 s^2)`` (Williams 1997).
    """


@final
@dataclass(frozen=True, slots=True, repr=False)
class GELU(_Layer):
    """Gaussian error linear unit, f(u) = u Phi(u), Phi the distribution function of N(0, 1).

    With ``D = (1 + X^2)(1 + Z^2) - s^2``, ``R = 1/(2 pi sqrt(D))`` and
    ``P = 1/4 + arcsin(s / sqrt((1 + X^2)(1 + Z^2))) / (2 pi)``:
    ``K = s P + R (X^2 Z^2 - s^2 + s^2/(1 + X^2) + s^2/(1 + Z^2))``, and Theta times
    ``P + s R (1/(1 + X^2) + 1/(1 + Z^2) + 1/D)``.
    """


@final
@dataclass(frozen=True, slots=True, repr=False)
class Sin(_Layer):
    """Sine: ``K = exp(-(X^2 + Z^2)/2) sinh(s)``, ``Theta`` times that with cosh."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Cos(_Layer):
    """Cosine: ``K = exp(-(X^2 + Z^2)/2) cosh(s)``, ``Theta`` times that with sinh."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class Gaussian(_Layer):
    """Normalised Gaussian kernel (Shankar et al. 2020): ``K = X Z exp(gamma (lambda - 1))``.

    ``lambda = s / (X Z)``, and Theta times ``gamma exp(gamma (lambda - 1))``. The activation is
    ``f(u) = X exp(sqrt(gamma) u/X - gamma)``, X the root mean square over the channels of a pixel.

    Parameters
    ----------
    gamma : float
        1e-3 to 1e3.
    """

    gamma: float = 1.0


@final
@dataclass(frozen=True, slots=True, repr=False)
class Polynomial(_Layer):
    """Polynomial ``f(u) = sum_n c_n u^n``: ``K = sum_k g_k(X) g_k(Z) s^k``.

    ``g_k(X) = E[f^(k)(u)] / sqrt(k!)``, and Theta times the derivative of K by s.

    Parameters
    ----------
    coefficients : sequence of float
        c_0, c_1, ..., at most 33, not all 0. Zeros at the end are dropped.
    """

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        given: Any = self.coefficients
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise TypeError(f"coefficients must be a list or tuple of numbers, got {given!r}")
        values = [checked("coefficients", c) for c in cast("Sequence[Any]", given)]
        while values and values[-1] == 0:
            values.pop()
        if not 1 <= len(values) <= _HIGHEST_DEGREE + 1:
            raise ValueError(
                f"coefficients must be 1 to {_HIGHEST_DEGREE + 1} numbers, not all of them 0, got "
                f"{given!r:.200}"
            )
        object.__setattr__(self, "coefficients", tuple(values))


@final
@dataclass(frozen=True, slots=True, repr=False)
class LayerNorm(_Layer):
    """Normalisation over the channels of each pixel: ``K = s / (X' Z')``, Theta alike.

    ``X' = sqrt(X^2 + eps)``: of infinitely many channels the mean is 0 and the variance ``X^2``.

    Parameters
    ----------
    eps : float
        Added to the variance, 0 to 1e100.
    """

    eps: float = 1e-12


@final
@dataclass(frozen=True, slots=True, repr=False)
class Identity(_Layer):
    """Nothing: ``f(u) = u``."""


# ---------------------------------------------------------------- readouts, dense layers, sums


@final
@dataclass(frozen=True, slots=True, repr=False)
class Flatten(_Layer):
    """Readout of equal pixels: ``(1/HW) sum_p (.)(p,p)``; ``sum_p`` with scaling="paper"."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class GlobalAvgPool(_Layer):
    """Readout of all pixel pairs: mean of ``(.)(p,p')`` with either scaling (Section H)."""


@final
@dataclass(frozen=True, slots=True, repr=False)
class LocalAvgPool(_Layer):
    """Mean over a window around each pixel, zero-padded, then `Flatten` (implied by `Dense`).

    Parameters
    ----------
    half_width : int
        The window is ``2 half_width + 1`` pixels wide: 0 (no pooling) to 9999. The divisor is
        ``(2 half_width + 1)^2`` at the border, too.
    """

    half_width: int

    @property
    def windows(self) -> tuple[Window, Window]:
        """How the window moves along rows and along columns."""
        return _windows(2 * self.half_width + 1, 1, "same")


@final
@dataclass(frozen=True, slots=True, repr=False)
class Dense(_Layer):
    """Fully connected layer (Eq. 7-9): ``w^2 (.) + b^2`` and ``w^2 (.) + t b^2``.

    The parameters are those of `Conv`; the last `Dense` has one output, the others are infinite.
    """

    w_std: float = 1.0
    b_std: float = 0.0
    trainable: bool = True


@final
@dataclass(frozen=True, slots=True, repr=False, init=False)
class Sum(_Layer):
    """Branches side by side, whose outputs are added: K and Theta add.

    Branches must be uncorrelated: each but one has weights of its own, and nothing but linear
    layers after the last of them. ``Sum((), [...])`` is a residual block.

    Parameters
    ----------
    *branches : tuple or list of Layer
        Two or more; ``()`` is the identity.
    """

    branches: tuple[tuple[Layer, ...], ...]

    def __init__(self, *branches: Sequence[Layer]) -> None:
        if len(branches) < 2:
            raise ValueError(
                f"Sum must have two branches or more, got {len(branches)}: pass each as a list of "
                "layers; () is the identity"
            )
        for branch in cast("tuple[Any, ...]", branches):
            if not isinstance(branch, tuple | list):
                raise TypeError(
                    f"a branch of Sum must be a list or tuple of layers, got {branch!r}: write "
                    "Sum([...], [...])"
                )
        object.__setattr__(self, "branches", tuple(tuple(branch) for branch in branches))

    def __post_init__(self) -> None: ...

    def __repr__(self) -> str:
        return f"Sum({', '.join(repr(list(b)) if b else '()' for b in self.branches)})"

    def __str__(self) -> str:
        return f"Sum({', '.join(' '.join(map(str, b)) or '()' for b in self.branches)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Sum, self.branches


Activation: TypeAlias = ReLU | ABReLU | Erf | GELU | Sin | Cos | Gaussian | Polynomial
Pointwise: TypeAlias = Activation | LayerNorm
Layer: TypeAlias = (
    Conv
    | ReLU
    | Flatten
    | GlobalAvgPool
    | LocalAvgPool
    | Dense
    | AvgPool
    | Sum
    | LayerNorm
    | ABReLU
    | Erf
    | GELU
    | Sin
    | Cos
    | Gaussian
    | Polynomial
    | Identity
)
ACTIVATIONS: tuple[type[Activation], ...] = get_args(Activation)
LAYERS: dict[str, type[Layer]] = {kind.__name__: kind for kind in get_args(Layer)}


def required_fields(kind: type[Layer]) -> list[str]:
    """Return the names of what must be given to make a layer."""
    return ["*branches"] if kind is Sum else [f.name for f in fields(kind) if f.default is MISSING]


def mapped(layers: Sequence[Layer], function: Callable[[Layer], Layer]) -> list[Layer]:
    """Return layers with a function applied to each, those of branches included."""
    return [
        Sum(*(mapped(branch, function) for branch in layer.branches))
        if isinstance(layer, Sum)
        else function(layer)
        for layer in layers
    ]


def walk(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Yield all layers, those of branches after their `Sum`."""
    for layer in layers:
        yield layer
        if isinstance(layer, Sum):
            for branch in layer.branches:
                yield from walk(branch)
