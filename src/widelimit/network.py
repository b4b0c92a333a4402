"""The network whose infinite-width kernel is computed: layers in a valid order.

A `Network` is data: checked once, when it is built; equal and hashed by value; written as canonical
JSON, whose SHA-256 is its fingerprint. The order of layers, without the branches of `Sum`::

    (Conv | AvgPool | pointwise)* readout (Dense pointwise?)* Dense
    (Dense pointwise?)* Dense                               the dense network, without readout

with ``readout = Flatten | GlobalAvgPool pointwise? | LocalAvgPool Flatten`` and ``pointwise =
LayerNorm* activation?``. What may follow is decided by the `Signal` that leaves a layer: an
activation needs a Gaussian one, a `Sum` uncorrelated ones.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias, cast, final, get_args

from widelimit.lattice import Window
from widelimit.layers import (
    ACTIVATIONS,
    GELU,
    LAYERS,
    ABReLU,
    Abs,
    Activation,
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
    LeakyReLU,
    LocalAvgPool,
    Polynomial,
    ReLU,
    Sin,
    Sum,
    checked,
    required_fields,
    walk,
)
from widelimit.markup import BLUE, GREY, ORANGE, boxes, facts
from widelimit.reading import parse_json, refusing

__all__ = [
    "ACTIVATIONS",
    "GELU",
    "MAX_LAYERS",
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
    "Network",
    "Polynomial",
    "ReLU",
    "Sin",
    "Sum",
]

Scaling: TypeAlias = Literal["fan_in", "paper"]

_JSON_FORMATS = "widelimit.network/1", "widelimit.network/2"
MAX_LAYERS = 2**15
_MOST_NESTED = 16  # a Sum in a branch of a Sum
_LONG_NUMBER = re.compile(r"\d+\.\d{5,}(e[-+]\d+)?")
_MOST_BOXES, _LONGEST_UNIT = 24, 4  # of a diagram
_MAX_JSON_CHARS = 2**22  # as many layers, each with the longest numbers
# What the first format can say: a layer is written in the second one where it needs it.
_FIRST_KINDS: tuple[type[Layer], ...] = (ReLU, Flatten, GlobalAvgPool, LocalAvgPool, Dense)
_FIRST_FORMAT: dict[str, tuple[str, ...]] = {
    kind.__name__: tuple(field.name for field in fields(kind)) for kind in _FIRST_KINDS
} | {"Conv": ("filter_size", "w_std", "b_std", "trainable")}


# ---------------------------------------------------------------- signals

_READOUTS = Flatten, GlobalAvgPool, LocalAvgPool
_POINTWISE = (*ACTIVATIONS, LayerNorm)
_RULES: dict[str, str] = {
    "Conv": "a Conv must come before the readout and every Dense",
    "AvgPool": "an AvgPool must come before the readout and every Dense",
    "Dense": "a readout must come between the last Conv and the first Dense",
    "Sum": "a Sum must not follow LocalAvgPool",
    "Identity": "an Identity must not follow LocalAvgPool",
} | dict.fromkeys(
    (kind.__name__ for kind in _READOUTS), "there must be one readout, before every Dense"
)


@dataclass(frozen=True, slots=True)
class Signal:
    """What is known of the values between two layers, of the infinitely wide network.

    Parameters
    ----------
    place : {"input", "pixels", "pooled", "features"}
        The input; pixels, after a Conv or pooling; after `LocalAvgPool`, where `Flatten` has to
        follow; one vector.
    infinite : bool
        Whether the width is infinite: that of the input is not.
    flat : bool
        Whether there are as many features as a width and pixels: after `Flatten`.
    gaussian : bool
        Whether values are Gaussian, with mean 0 and independent across channels.
    linear_since : int
        How many a `Sum` encloses the last weights, if only linear layers have come after them; -1:
        there are none, or others have come after.
    """

    place: Literal["input", "pixels", "pooled", "features"] = "input"
    infinite: bool = False
    flat: bool = False
    gaussian: bool = False
    linear_since: int = -1

    def followers(self) -> list[str]:
        """Return names of what may come next."""
        grid = ["Conv", *(kind.__name__ for kind in _READOUTS)]
        everywhere = ["Sum", "Identity"]
        match self.place:
            case "input":
                names = [*grid, "AvgPool", *everywhere, "Dense"]
            case "pixels":
                names = [*grid, "AvgPool", *everywhere]
            case "pooled":
                names = ["Flatten", "Dense"]
            case "features":
                names = ["Dense", *everywhere]
        pointwise = [kind.__name__ for kind in _POINTWISE]
        return names + (pointwise if self.gaussian else [])

    def after(self, layer: Layer, where: str, before: str, nested: int) -> Signal:
        """Return the signal that leaves a layer, or say why it cannot stand here.

        Parameters
        ----------
        layer : Layer
        where : str
            Its place in the network, for messages.
        before : str
            The layer before it, "" at the beginning.
        nested : int
            How many a `Sum` encloses the layer.
        """
        name = type(layer).__name__
        allowed = self.followers()
        if name not in allowed:
            place = f"after {before}" if before else "at the beginning"
            article = "an" if name[0] in "AE" else "a"
            rule = _RULES.get(name) or (
                f"{article} {name} must directly follow a Conv or Dense, or linear layers after "
                "it other than Flatten and LocalAvgPool: its input must be Gaussian, and "
                "independent across features"
            )
            pointwise = [kind.__name__ for kind in _POINTWISE]
            shown = [other for other in allowed if other not in pointwise]
            more = " or an activation" if len(shown) < len(allowed) else ""
            raise ValueError(
                f"{where} is {layer!r} {place}, where the network can go on with "
                f"{' or '.join(shown)}{more}: {rule}"
            )
        if nested and isinstance(layer, _READOUTS):
            raise ValueError(
                f"{where} is {layer!r} in a branch of Sum, where pixels are not read out: put it "
                "after the Sum, or use AvgPool"
            )
        match layer:
            case Conv():
                return Signal("pixels", True, False, True, nested)
            case Dense():
                return Signal("features", True, False, True, nested)
            case AvgPool():
                return replace(self, place="pixels")
            case LocalAvgPool():
                return replace(self, place="pooled", gaussian=False)
            case GlobalAvgPool():
                return replace(self, place="features")
            case Flatten():
                return replace(self, place="features", flat=self.infinite, gaussian=False)
            case LayerNorm() | Identity():
                return self
            case Sum():
                return self._after_sum(layer, where, before, nested)
            case _:
                return replace(self, gaussian=False, linear_since=-1)

    def _after_sum(self, layer: Sum, where: str, before: str, nested: int) -> Signal:
        if nested >= _MOST_NESTED:
            raise ValueError(f"{where}: at most {_MOST_NESTED} Sums may enclose another, use fewer")
        ends: list[Signal] = []
        names: list[str] = []
        for number, branch in enumerate(layer.branches):
            names.append(" ".join(map(str, branch)) or "()")
            end = _through(self, branch, f"{where}.branches[{number}]", before, nested + 1)
            ends.append(end)
        places = {end.place for end in ends}
        if len(places) > 1 or len({(end.infinite, end.flat) for end in ends}) > 1:
            outputs = [
                f"{name} with {'infinitely many' if end.infinite else 'the input'} "
                f"{'features' if end.place == 'features' else 'channels'}"
                f"{' of every pixel' if end.flat else ''}"
                for name, end in zip(names, ends, strict=True)
            ]
            raise ValueError(
                f"{where}: the branches of Sum must have outputs of one shape, got "
                f"{', '.join(outputs)}: put a Conv or Dense into the others"
            )
        correlated = [n for n, e in zip(names, ends, strict=True) if e.linear_since <= nested]
        if len(correlated) > 1:
            raise ValueError(
                f"{where}: the branches of Sum must be uncorrelated: of all but one the last "
                "weights have only linear layers after them, got "
                f"{' and '.join(correlated)}: end all but one with a Conv or Dense"
            )
        if places == {"pixels"}:
            _check_extents(layer, where)
        return Signal(
            ends[0].place,
            ends[0].infinite,
            ends[0].flat,
            all(end.gaussian for end in ends),
            min(min(end.linear_since for end in ends), nested),
        )


def _through(
    signal: Signal, layers: Sequence[Layer], where: str, before: str, nested: int
) -> Signal:
    for index, layer in enumerate(layers):
        place = f"{where}[{index}]"
        _check_layer(layer, place)
        signal = signal.after(layer, place, before, nested)
        before = type(layer).__name__
    return signal


def _check_layer(entry: Any, place: str) -> None:
    kinds = tuple(LAYERS.values())
    if type(entry) in kinds:  # no subclasses: JSON could not name them
        return
    remedy = f"use {', '.join(LAYERS)}"
    if isinstance(entry, type) and entry in kinds:  # ReLU instead of ReLU()
        remedy = f"write {entry.__name__}({', '.join(required_fields(entry))})"
    elif entry is LeakyReLU or entry is Abs:
        remedy = f"write {entry.__name__}({'slope' if entry is LeakyReLU else ''})"
    raise TypeError(f"{place} must be a layer, got {entry!r}: {remedy}")


# ---------------------------------------------------------------- shapes


def _windows_of(layers: Sequence[Layer], axis: int) -> list[Window]:
    """Return the windows that a signal goes through, of a Sum those of its first branch."""
    found: list[Window] = []
    for layer in layers:
        if isinstance(layer, Conv | AvgPool):
            found.append(layer.windows[axis])
        elif isinstance(layer, Sum):
            found += _windows_of(layer.branches[0], axis)
    return found


def _extent(windows: Sequence[Window], fine: int) -> int:
    for window in windows:
        fine = window.extent(fine) if fine else 0
    return fine


def _check_extents(layer: Sum, where: str) -> None:
    """Refuse branches whose outputs never have one shape, however large the input is."""
    for axis, name in enumerate(("rows", "columns")):
        first, *others = [_windows_of(branch, axis) for branch in layer.branches]
        for other in others:
            strides = [math.prod(window.stride for window in ws) for ws in (first, other)]
            # Beyond every window, extents grow by 1 for each stride: one period shows all.
            period = min(strides[0], 1_000)
            start = 1 + sum(w.size * s for ws in (first, other) for w, s in _reaches(ws))
            every = range(start, start + period)
            if strides[0] == strides[1] and any(
                _extent(first, n) == _extent(other, n) for n in every
            ):
                continue
            shown = [f"{_extent(ws, start)}" for ws in (first, other)]
            raise ValueError(
                f"{where}: the branches of Sum must have outputs of one shape, got {shown[0]} and "
                f"{shown[1]} {name} of {start}: give them the same strides and paddings"
            )


def _reaches(windows: Sequence[Window]) -> Iterator[tuple[Window, int]]:
    """Yield each window, and how many pixels of the input one of its steps is."""
    step = 1
    for window in windows:
        yield window, step
        step *= window.stride


def _shape_after(layer: Layer, shape: tuple[int | None, ...], where: str) -> tuple[int | None, ...]:
    """Return the shape of one sample after a layer; ``None`` is an infinite width."""
    match layer:
        case Conv() | AvgPool():
            h, w = cast("tuple[int, int]", shape[:2])
            rows, columns = (
                window.extent(n) for window, n in zip(layer.windows, (h, w), strict=True)
            )
            if not rows or not columns:
                sides = [window.size - window.low - window.high for window in layer.windows]
                raise ValueError(
                    f"{where} is {layer}, which leaves nothing of {h} x {w} pixels: it needs "
                    f"{max(1, sides[0])} x {max(1, sides[1])}, take larger images, or fewer layers "
                    'that shrink them, or padding="same"'
                )
            return rows, columns, None if isinstance(layer, Conv) else shape[2]
        case Flatten():
            sizes = [size for size in shape if size is not None]
            return (None if shape[-1] is None else math.prod(sizes),)
        case GlobalAvgPool():
            return shape[-1:]
        case Dense():
            return (None,)
        case Sum():
            ends = [
                _shapes(branch, shape, f"{where}.branches[{number}]")
                for number, branch in enumerate(layer.branches)
            ]
            found = [end[-1] if end else shape for end in ends]
            if len(set(found)) > 1:
                h, w = shape[:2]
                sizes = ", ".join(f"{end[0]} x {end[1]}" for end in found)
                raise ValueError(
                    f"{where}: the branches of Sum must have outputs of one shape, got {sizes} of "
                    f"{h} x {w} pixels: take images of another size, or other paddings"
                )
            return found[0]
        case _:
            return shape


def _shapes(
    layers: Sequence[Layer], shape: tuple[int | None, ...], where: str
) -> list[tuple[int | None, ...]]:
    shapes: list[tuple[int | None, ...]] = []
    for index, layer in enumerate(layers):
        shape = _shape_after(layer, shape, f"{where}[{index}]")
        shapes.append(shape)
    return shapes


# ---------------------------------------------------------------- networks


@final
@dataclass(frozen=True, slots=True, repr=False)
class Network:
    """An infinitely wide network: its layers, and the scale of input and readout.

    Parameters
    ----------
    layers : sequence of Layer
        In an order that ``help(widelimit.network)`` shows, at most 32,768; stored as a tuple.
        ``LocalAvgPool(c), Dense`` is shorthand for, and stored as, ``LocalAvgPool(c), Flatten,
        Dense``.
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
        _check_number(sum(1 for _ in walk(stored)))
        object.__setattr__(self, "layers", tuple(stored))

    @property
    def n_conv(self) -> int:
        """Number of `Conv` layers, those of branches included."""
        return sum(isinstance(layer, Conv) for layer in walk(self.layers))

    @property
    def is_dense(self) -> bool:
        """Whether pixels play no role (no `Conv`, no pooling), so that inputs may be vectors."""
        grid = Conv | AvgPool | GlobalAvgPool | LocalAvgPool
        return not any(isinstance(layer, grid) for layer in walk(self.layers))

    @property
    def input_ranks(self) -> tuple[int, ...]:
        """How many axes one sample may have.

        3, an image ``(h, w, c)``; 1, a vector, if the network `is_dense`; 2, a series ``(length,
        channels)``, if every window is one pixel high, and one is wider, as in ``Conv((1, 5))``.
        """
        if self.is_dense:
            return (1, 3)
        every = list(walk(self.layers))
        windows = [x.windows for x in every if isinstance(x, Conv | AvgPool)]
        flat = all(rows.size == 1 for rows, _ in windows)
        moves = any(columns.size > 1 for _, columns in windows)
        local = any(isinstance(x, LocalAvgPool) for x in every)
        return (2, 3) if flat and moves and not local else (3,)

    @property
    def is_trained(self) -> bool:
        """Whether any layer is trained: without one the tangent kernel is 0."""
        return any(x.trainable for x in walk(self.layers) if isinstance(x, Conv | Dense))

    @property
    def is_homogeneous(self) -> bool:
        """Whether ``k(a x, z) = a k(x, z)`` for a > 0: no biases, and activations that are so."""
        every = list(walk(self.layers))
        scales = all(x.b_std == 0 for x in every if isinstance(x, Conv | Dense))
        kinds = Erf | GELU | Sin | Cos | Polynomial | LayerNorm
        return scales and not any(isinstance(x, kinds) for x in every)

    def output_shapes(self, input_shape: Sequence[int]) -> tuple[tuple[int | None, ...], ...]:
        """Shape of one sample after each layer, where ``None`` is an infinite width.

        Parameters
        ----------
        input_shape : sequence of int
            Of one sample, with as many sizes as `input_ranks` allows.

        Returns
        -------
        tuple of tuple
            ``(h, w, None)``, ``(None,)``, and ``(1,)`` for the last `Dense`: a kernel belongs to
            one output. A readout that no `Conv` precedes keeps the finite width of the input.

        Raises
        ------
        TypeError, ValueError
            If a size is not a positive integer, the number of sizes does not fit the network, a
            layer leaves no pixel, or branches of a `Sum` have outputs of different shapes.
        """
        sizes = tuple(input_shape)
        if len(sizes) not in self.input_ranks:
            names = {1: "(d,)", 2: "(length, c)", 3: "(h, w, c)"}
            expected = " or ".join(names[rank] for rank in sorted(self.input_ranks, reverse=True))
            hint = "the number of images is left out, a grey image is (h, w, 1)"
            if len(sizes) == 2 and not self.is_dense:
                hint += (
                    ", and for a series filters are one pixel high, and one is wider, as in "
                    "Conv((1, 3)), and the readout is not LocalAvgPool"
                )
            raise ValueError(f"input_shape of {self} must be {expected}, got {sizes}: {hint}")
        plain = tuple(checked("input_shape", size) for size in sizes)
        series = len(plain) == 2
        shapes = _shapes(self.layers, (1, *plain) if series else plain, "layers")
        if series:
            shapes = [shape[1:] if len(shape) == 3 else shape for shape in shapes]
        return (*shapes[:-1], (1,))

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, no spaces, shortest exact floats.

        In the first format ("widelimit.network/1") where that can say it.
        """
        first = all(_is_first_format(layer) for layer in self.layers)
        layers = [_layer_to_json(layer, first) for layer in self.layers]
        content = {
            "format": _JSON_FORMATS[0 if first else 1],
            "layers": layers,
            "scaling": self.scaling,
        }
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
            listed = isinstance(content["layers"], list)
            if content["format"] not in _JSON_FORMATS or not listed:
                formats = " or ".join(map(repr, _JSON_FORMATS))
                raise ValueError(f"expected format {formats} and a list, got {content}")
            first = content["format"] == _JSON_FORMATS[0]
            entries = cast("list[Any]", content["layers"])
            layers = [_layer_from_json(entry, first, 0) for entry in entries]
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
    """Return the colour of a box: layers with weights, readouts, and activations alone."""
    names = {name.partition("(")[0] for name in unit} - {kind.__name__ for kind in _POINTWISE}
    if names & {kind.__name__ for kind in _READOUTS}:
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
    signal = _through(Signal(), entries, "layers", "", 0)
    if not entries or not isinstance(entries[-1], Dense):
        end = f"layers[{len(entries) - 1}] = {entries[-1]!r}" if entries else "no layers"
        missing = "a readout, then Dense()" if signal.place == "pixels" else "Dense()"
        raise ValueError(f"layers must end with Dense(), got {end}: append {missing}")
    return entries


def _object(content: Any, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(content, dict) or cast("dict[str, Any]", content).keys() != set(keys):
        raise ValueError(f"expected an object with exactly the keys {keys}, got {content!r}")
    return cast("dict[str, Any]", content)


def _is_first_format(layer: Layer) -> bool:
    if type(layer).__name__ not in _FIRST_FORMAT:
        return False
    if not isinstance(layer, Conv):
        return True
    plain = isinstance(layer.filter_size, int)
    return plain and layer.stride == 1 and layer.padding == "same"


def _keys(kind: type[Layer], first: bool) -> tuple[str, ...]:
    names = tuple(field.name for field in fields(kind))
    return _FIRST_FORMAT[kind.__name__] if first else names


def _layer_to_json(layer: Layer, first: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"type": type(layer).__name__}
    if isinstance(layer, Sum):
        branches = [[_layer_to_json(x, first) for x in branch] for branch in layer.branches]
        return content | {"branches": branches}
    return content | {name: getattr(layer, name) for name in _keys(type(layer), first)}


def _layer_from_json(entry: Any, first: bool, nested: int) -> Layer:
    names = {name: kind for name, kind in LAYERS.items() if not first or name in _FIRST_FORMAT}
    name = cast("dict[str, Any]", entry).get("type") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"expected a layer of type {', '.join(names)}, got {entry!r}")
    kind = names[name]
    content = _object(entry, ["type", *_keys(kind, first)])
    if kind is not Sum:
        values = {key: value for key, value in content.items() if key != "type"}
        layer = kind(**values)
        if first and not _is_first_format(layer):
            raise ValueError(f"{layer!r} cannot be in the first format, got {entry!r}")
        return layer
    branches = content["branches"]
    if nested >= _MOST_NESTED or not isinstance(branches, list):
        raise ValueError(f"branches must be a list, at most {_MOST_NESTED} deep, got {branches!r}")
    parts: list[list[Layer]] = []
    for branch in cast("list[Any]", branches):
        if not isinstance(branch, list):
            raise ValueError(f"a branch must be a list of layers, got {branch!r}")
        parts.append([_layer_from_json(x, first, nested + 1) for x in cast("list[Any]", branch)])
    return Sum(*parts)
