"""The network whose infinite-width kernel is computed: immutable layers in a valid order.

A `Network` is data: checked once, when it is built; equal and hashed by value; written as canonical
JSON, whose SHA-256 is its fingerprint. The order of layers, as a regular expression::

    (Conv ReLU?)* (Flatten | GlobalAvgPool | LocalAvgPool Flatten) Dense (ReLU? Dense)*
    Dense (ReLU? Dense)*                                    the dense network, without readout

The equations are those of docs/mathematics.md, "The network's kernels (general form)":
``K, Theta`` enter a layer, ``w = w_std``, ``b = b_std``, ``t = 1`` if trainable, else 0, and
``(.)`` is ``K``, or ``Theta + t K``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, cast, final, get_args

from widelimit.markup import BLUE, GREY, ORANGE, boxes, facts
from widelimit.reading import parse_json, refusing

__all__ = [
    "MAX_LAYERS",
    "Conv",
    "Dense",
    "Flatten",
    "GlobalAvgPool",
    "Layer",
    "LocalAvgPool",
    "Network",
    "ReLU",
]

Scaling: TypeAlias = Literal["fan_in", "paper"]

_JSON_FORMAT = "widelimit.network/1"
MAX_LAYERS = 2**15
_LONG_NUMBER = re.compile(r"\d+\.\d{5,}(e[-+]\d+)?")
_MOST_BOXES, _LONGEST_UNIT = 24, 4  # of a diagram
_MAX_JSON_CHARS = 2**22  # as many layers, each with the longest numbers

# Type and range of every number. With these (2 * half_width + 1)**4 fits a signed 64-bit integer,
# and variances, the squares of standard deviations, are ordinary floats.
_RANGES: dict[str, tuple[type, float, float]] = {
    "filter_size": (Integral, 1, 9_999),
    "half_width": (Integral, 0, 9_999),
    "w_std": (Real, 1e-100, 1e100),
    "b_std": (Real, 0.0, 1e100),
    "input_shape": (Integral, 1, 2**31 - 1),
}


def _checked(name: str, value: Any) -> Any:
    """Return the value of one field in its plain Python type, or say what is wrong with it."""
    got = f"got {value!r} ({type(value).__name__})"
    if name == "trainable":
        if not isinstance(value, bool):
            raise TypeError(f"trainable must be True or False, {got}")
        return value
    kind, smallest, largest = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, kind):  # bool is an Integral, not meant
        raise TypeError(f"{name} must be {'an integer' if kind is Integral else 'a number'}, {got}")
    plain = int(value) if isinstance(value, Integral) else float(value)
    if not smallest <= plain <= largest:  # refuses nan, too
        raise ValueError(f"{name} must be from {smallest} to {largest}, {got}")
    if name == "filter_size" and plain % 2 == 0:  # no centre pixel
        raise ValueError(f"filter_size must be odd, {got}: use {plain - 1} or {plain + 1}")
    # Equal networks have equal JSON: 3 becomes 3.0, and -0.0 becomes 0.0.
    return plain if kind is Integral else plain + 0.0


@dataclass(frozen=True, slots=True)
class _Layer:
    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))

    def __repr__(self) -> str:
        """As in source code, without defaults: ``Conv(3, trainable=False)``."""
        items = [(f, getattr(self, f.name)) for f in fields(self)]
        required = [repr(value) for f, value in items if f.default is MISSING]
        changed = [f"{f.name}={v!r}" for f, v in items if f.default not in (MISSING, v)]
        return f"{type(self).__name__}({', '.join(required + changed)})"

    def __str__(self) -> str:
        """Name and size only: ``Conv(3)``, ``Dense``."""
        size = [str(getattr(self, f.name)) for f in fields(self) if f.default is MISSING]
        return type(self).__name__ + (f"({size[0]})" if size else "")


@final
@dataclass(frozen=True, slots=True, repr=False)
class Conv(_Layer):
    """Convolution of stride 1, zero-padded, with infinitely many channels (Section 4).

    ``Sigma = w^2/q^2 box_q(K) + b^2``, ``Theta' = w^2/q^2 box_q(Theta + t K) + t b^2``.

    Parameters
    ----------
    filter_size : int
        q, the side of the filter in pixels: odd, 1 to 9999.
    w_std, b_std : float
        Standard deviation of a weight times sqrt(fan-in), 1e-100 to 1e100, and of a bias, 0 to
        1e100. The default w_std keeps the variance constant through ReLU layers.
    trainable : bool
        Whether weights and biases of this layer are trained.

    Raises
    ------
    TypeError, ValueError
        If a parameter has the wrong type, or is outside its range.
    """

    filter_size: int
    w_std: float = 2**0.5
    b_std: float = 0.0
    trainable: bool = True


@final
@dataclass(frozen=True, slots=True, repr=False)
class ReLU(_Layer):
    """Rectifier s(u) = max(u, 0) of a `Conv` or `Dense`, whose output is Gaussian (Eq. 11-12).

    ``K = E[s(u) s(v)]``, ``Theta = E[s'(u) s'(v)] * Theta'``, without the paper's c = 2.
    """


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


@final
@dataclass(frozen=True, slots=True, repr=False)
class Dense(_Layer):
    """Fully connected layer (Eq. 7-9): ``w^2 (.) + b^2`` and ``w^2 (.) + t b^2``.

    The parameters are those of `Conv`; the last `Dense` has one output, the others are infinite.
    """

    w_std: float = 1.0
    b_std: float = 0.0
    trainable: bool = True


Layer: TypeAlias = Conv | ReLU | Flatten | GlobalAvgPool | LocalAvgPool | Dense
_LAYERS: dict[str, type[Layer]] = {kind.__name__: kind for kind in get_args(Layer)}

# The order of layers: what may follow the last layer that is not a ReLU ("" at the beginning).
_READOUTS = ("Flatten", "GlobalAvgPool", "LocalAvgPool")
_FOLLOWERS: dict[str, tuple[str, ...]] = {
    "": ("Conv", *_READOUTS, "Dense"),
    "Conv": ("Conv", *_READOUTS),
    "Flatten": ("Dense",),
    "GlobalAvgPool": ("Dense",),
    "LocalAvgPool": ("Flatten", "Dense"),
    "Dense": ("Dense",),
}
_RULES = {
    "Conv": "a Conv must come before the readout and every Dense",
    "ReLU": "a ReLU must directly follow a Conv or Dense, its input must be Gaussian",
    "Dense": "a readout must come between the last Conv and the first Dense",
} | dict.fromkeys(_READOUTS, "there must be one readout, before every Dense")


@final
@dataclass(frozen=True, slots=True, repr=False)
class Network:
    """An infinitely wide network: its layers, and the scale of input and readout.

    Parameters
    ----------
    layers : sequence of Layer
        In the order above, at most 32,768; stored as a tuple. ``LocalAvgPool(c), Dense`` is
        shorthand for, and stored as, ``LocalAvgPool(c), Flatten, Dense``.
    scaling : {"fan_in", "paper"}
        "fan_in" (NTK parametrisation): the input covariance is ``(1/C) sum_c x z`` (``x.z / d``
        for a dense network) and `Flatten` reads ``(1/HW) sum_p``. "paper" (Arora et al.): ``C``,
        ``d`` and ``HW`` are not divided out. Both divide by ``q^2``, and pooling is a mean in both.

    Raises
    ------
    TypeError
        If layers is not a sequence of layers.
    ValueError
        If a layer cannot stand where it stands, there are too many, or scaling is unknown.
    """

    layers: Sequence[Layer]
    scaling: Scaling = "fan_in"

    def __post_init__(self) -> None:
        if self.scaling not in get_args(Scaling):
            raise ValueError(f'scaling must be "fan_in" or "paper", got {self.scaling!r}')
        stored: list[Layer] = []
        for layer in _ordered(self.layers):
            if isinstance(layer, Dense) and stored and isinstance(stored[-1], LocalAvgPool):
                stored.append(Flatten())
            stored.append(layer)
        _check_number(len(stored))
        object.__setattr__(self, "layers", tuple(stored))

    @property
    def n_conv(self) -> int:
        """Number of `Conv` layers."""
        return sum(isinstance(layer, Conv) for layer in self.layers)

    @property
    def is_dense(self) -> bool:
        """Whether pixels play no role (no `Conv`, no pooling), so that inputs may be vectors."""
        return not any(isinstance(x, Conv | GlobalAvgPool | LocalAvgPool) for x in self.layers)

    @property
    def input_ranks(self) -> tuple[int, ...]:
        """How many axes one sample may have: 3, an image; if the network `is_dense`, 1 as well."""
        return (1, 3) if self.is_dense else (3,)

    @property
    def is_homogeneous(self) -> bool:
        """Whether no layer has a bias, so that ``k(a x, z) = a k(x, z)`` for a > 0."""
        return all(x.b_std == 0 for x in self.layers if isinstance(x, Conv | Dense))

    def output_shapes(self, input_shape: Sequence[int]) -> tuple[tuple[int | None, ...], ...]:
        """Shape of one sample after each layer, where ``None`` is an infinite width.

        Parameters
        ----------
        input_shape : sequence of int
            ``(h, w, c)`` of one image, or ``(d,)`` of one vector if the network `is_dense`.

        Returns
        -------
        tuple of tuple
            ``(h, w, None)``, ``(None,)``, and ``(1,)`` for the last `Dense`: a kernel belongs to
            one output. A readout that no `Conv` precedes keeps the finite width of the input.

        Raises
        ------
        TypeError, ValueError
            If a size is not a positive integer, or the number of sizes does not fit the network.
        """
        sizes = tuple(input_shape)
        if len(sizes) not in self.input_ranks:
            expected = "(h, w, c) or (d,)" if self.is_dense else "(h, w, c)"
            hint = "the number of images is left out, a grey image is (h, w, 1)"
            raise ValueError(f"input_shape of {self} must be {expected}, got {sizes}: {hint}")
        shape: tuple[int | None, ...] = tuple(_checked("input_shape", s) for s in sizes)
        shapes: list[tuple[int | None, ...]] = []
        for layer in self.layers:
            match layer:
                case Conv():
                    shape = (*shape[:2], None)
                case Flatten():
                    shape = (None if shape[-1] is None else math.prod(sizes),)
                case GlobalAvgPool():
                    shape = shape[-1:]
                case Dense():
                    shape = (None,)
                case ReLU() | LocalAvgPool():
                    pass
            shapes.append(shape)
        return (*shapes[:-1], (1,))

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, no spaces, shortest exact floats."""
        layers = [
            {"type": type(layer).__name__} | {f.name: getattr(layer, f.name) for f in fields(layer)}
            for layer in self.layers
        ]
        content = {"format": _JSON_FORMAT, "layers": layers, "scaling": self.scaling}
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Network:
        """Read what `to_json` wrote; text from a stranger can do no harm.

        Parameters
        ----------
        text : str
            At most 2^22 characters. Every key must be there, once: a default that changes in a
            later release must not change a stored network.

        Raises
        ------
        ValueError
            If text is too long, is not JSON, or is not a valid network in this format.
        """
        if len(text) > _MAX_JSON_CHARS:
            raise ValueError(f"network JSON: at most {_MAX_JSON_CHARS} characters, got {len(text)}")
        content = parse_json(text, "network JSON: the text")
        with refusing("network JSON: it must be a valid network", "write it with Network.to_json"):
            content = _object(content, ["format", "layers", "scaling"])
            if content["format"] != _JSON_FORMAT or not isinstance(content["layers"], list):
                raise ValueError(f"expected format {_JSON_FORMAT!r} and a list, got {content}")
            layers = [_layer_from_json(entry) for entry in cast("list[Any]", content["layers"])]
            return cls(layers, content["scaling"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON in hexadecimal, the name of this network in a store."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def __repr__(self) -> str:
        scaling = "" if self.scaling == "fan_in" else f", scaling={self.scaling!r}"
        return f"Network({list(self.layers)}{scaling})"

    def __str__(self) -> str:
        """One line without scales: ``Conv(3) ReLU GlobalAvgPool Dense``."""
        return " ".join(map(str, self.layers))

    def _repr_html_(self) -> str:
        """Show the layers as boxes in a notebook, what repeats as ``n x``."""
        entries = [("input", "none", f"scaling: {self.scaling}")]
        runs = _runs([repr(layer).removesuffix("()") for layer in self.layers])
        for unit, count in runs[:_MOST_BOXES]:
            whole = " → ".join(unit)
            text = _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.4g}", whole)
            entries.append((text if count == 1 else f"{count} × [ {text} ]", _colour(unit), whole))
        left = sum(len(unit) * count for unit, count in runs[_MOST_BOXES:])
        if left:
            entries.append((f"and {left:,} more layers", "none", ""))
        about = [
            ("layers", f"{len(self.layers):,}"),
            ("convolutions", f"{self.n_conv:,}"),
            ("scaling", self.scaling),
            ("fingerprint", self.fingerprint[:16]),
        ]
        return boxes(entries) + facts("", about)


def _colour(unit: Sequence[str]) -> str:
    """Return the colour of a box: layers with weights, readouts, and ReLU alone."""
    names = {name.partition("(")[0] for name in unit} - {"ReLU"}
    if names & set(_READOUTS):
        return ORANGE
    return BLUE if names else GREY


def _runs(names: Sequence[str]) -> list[tuple[tuple[str, ...], int]]:
    """Return units of at most `_LONGEST_UNIT` names, and how often each is repeated there."""
    runs: list[tuple[tuple[str, ...], int]] = []
    place = 0
    while place < len(names):
        best, count = 1, 1
        for length in range(1, _LONGEST_UNIT + 1):
            unit = names[place : place + length]
            times, end = 1, place + length
            while len(unit) == length and names[end : end + length] == unit:
                times, end = times + 1, end + length
            if times > 1 and times * length > best * count:
                best, count = length, times
        runs.append((tuple(names[place : place + best]), count))
        place += best * count
    return runs


def _check_number(n: int) -> None:
    if n > MAX_LAYERS:
        raise ValueError(f"layers must be at most {MAX_LAYERS:,}, got {n:,}: use fewer")


def _ordered(layers: object) -> tuple[Layer, ...]:
    """Return the layers as a tuple, or say which one is no layer or stands in the wrong place."""
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise TypeError(f"layers must be a list or tuple of layers, got {layers!r}")
    _check_number(len(cast("Sequence[Any]", layers)))
    entries = tuple(cast("Sequence[Any]", layers))
    names = ["", *(type(entry).__name__ for entry in entries)]
    last = ""  # the last layer that is not a ReLU
    for index, entry in enumerate(entries):
        before, name = names[index : index + 2]
        if type(entry) not in _LAYERS.values():  # no subclasses: JSON could not name them
            remedy = f"use {', '.join(_LAYERS)}"
            if isinstance(entry, type) and entry in _LAYERS.values():  # ReLU instead of ReLU()
                required = [f.name for f in fields(entry) if f.default is MISSING]
                remedy = f"write {entry.__name__}({', '.join(required)})"
            raise TypeError(f"layers[{index}] must be a layer, got {entry!r}: {remedy}")
        allowed = _FOLLOWERS[last] + (("ReLU",) if before in ("Conv", "Dense") else ())
        if name not in allowed:
            place = f"after {before}" if before else "at the beginning"
            raise ValueError(
                f"layers[{index}] is {entry!r} {place}, where the network can go on with "
                f"{' or '.join(allowed)}: {_RULES[name]}"
            )
        last = last if name == "ReLU" else name
    if names[-1] != "Dense":
        end = f"layers[{len(entries) - 1}] = {entries[-1]!r}" if entries else "no layers"
        missing = "a readout, then Dense()" if last == "Conv" else "Dense()"
        raise ValueError(f"layers must end with Dense(), got {end}: append {missing}")
    return entries


def _object(content: Any, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(content, dict) or cast("dict[str, Any]", content).keys() != set(keys):
        raise ValueError(f"expected an object with exactly the keys {keys}, got {content!r}")
    return cast("dict[str, Any]", content)


def _layer_from_json(entry: Any) -> Layer:
    name = cast("dict[str, Any]", entry).get("type") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in _LAYERS:
        raise ValueError(f"expected a layer of type {', '.join(_LAYERS)}, got {entry!r}")
    kind = _LAYERS[name]
    content = _object(entry, ["type", *(field.name for field in fields(kind))])
    return kind(**{key: value for key, value in content.items() if key != "type"})
