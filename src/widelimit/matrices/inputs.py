"""Inputs of `kernel` and `gram`: arguments checked, samples checked, equal samples found."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.architectures import named_network
from widelimit.arrays import IntArray, Rows
from widelimit.backends.base import Dtype
from widelimit.machine import default_threads
from widelimit.matrices.foreign import to_array
from widelimit.network import Network
from widelimit.program import Kind

__all__ = [
    "Channels",
    "Numbering",
    "check_channels",
    "check_dtype",
    "check_entries",
    "check_inputs",
    "check_kinds",
    "check_networks",
    "check_not_first",
    "check_one_shape",
    "check_samples",
    "check_series",
    "check_steps",
    "check_threads",
    "check_tile",
    "chunks",
    "let_go",
    "number_samples",
    "read_series",
    "series_advice",
    "steps",
]

Channels: TypeAlias = Literal["first", "last"] | None
"""Where the channels of images are; None: last, and what looks like another thing is refused."""

_FEW_CHANNELS = (1, 3, 4)  # grey, colours, and colours with transparency

_MOST_THREADS = 1024  # that a system surely starts, on however few processors
_SMALLEST_TILE, _LARGEST_TILE = 16, 2**14
_SMALLEST, _LARGEST = 1e-120, 1e120  # of an input: its fourth power is a float64
_CHUNK_SAMPLES, _CHUNK_BYTES = 512, 2**20  # that are looked at together, at most


def check_dtype(dtype: Any) -> Dtype:
    """Return the dtype; ValueError if it is none that kernels have."""
    if dtype not in get_args(Dtype):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    return dtype


_NETWORKS = 'net must be a Network, a preset like "cntk-gap-11" or a list of them'


def check_networks(net: Any) -> list[Network]:
    """Return one network or a sequence of them as a list; a word is that of `named_network`."""
    given: list[Any] = [net] if isinstance(net, Network | str) else _listed(net)
    networks = [named_network(entry) if isinstance(entry, str) else entry for entry in given]
    if not networks:
        raise ValueError("net must be a Network or a non-empty list of them, got an empty list")
    for entry in networks:
        if not isinstance(entry, Network):
            raise TypeError(f"{_NETWORKS}, got {entry!r}")
    return networks


def _listed(net: Any) -> list[Any]:
    if not isinstance(net, Sequence):
        raise TypeError(f"{_NETWORKS}, got {net!r}")
    return list(net)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def check_kinds(kind: Kind | list[Kind] | tuple[Kind, ...]) -> tuple[Kind, ...]:
    """Return one kind or a sequence of them as a tuple."""
    given: Any = kind
    kinds: tuple[Any, ...] = tuple(given) if isinstance(given, list | tuple) else (given,)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if not kinds or any(k not in get_args(Kind) for k in kinds) or len(set(kinds)) < len(kinds):
        raise ValueError(f'kind must be "ntk", "nngp" or a tuple of both, got {kind!r}')
    return kinds


def check_threads(threads: Any) -> int:
    """Return the number of threads, None standing for one for each processor."""
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not isinstance(threads, Integral):
        raise TypeError(f"threads must be an integer or None, got {threads!r}")
    count, most = int(threads), max(_MOST_THREADS, default_threads())
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if count > most:
        raise ValueError(
            f"threads must be at most {most:,}, got {count!r:.20}: None is one for each processor"
        )
    return count


def check_inputs(
    networks: Sequence[Network], x1: ArrayLike, x2: ArrayLike | None, channels: Channels = None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return both sides as arrays of one shape that the networks can take."""
    values1 = check_samples(networks, "x1", x1, channels)
    if x2 is None:
        return values1, None
    values2 = check_samples(networks, "x2", x2, channels)
    check_one_shape(values1, values2)
    return values1, values2


def check_one_shape(values1: NDArray[Any], values2: NDArray[Any]) -> None:
    """Refuse sides that hold samples of different shapes."""
    if values1.shape[1:] != values2.shape[1:]:
        raise ValueError(
            f"x1 and x2 must hold inputs of one shape, got {values1.shape[1:]} and "
            f"{values2.shape[1:]}: resize or reshape one of them"
        )


def check_samples(
    networks: Sequence[Network], name: str, x: ArrayLike, channels: Channels = "last"
) -> NDArray[Any]:
    """Return one side as an array that the networks can take; entries are not looked at."""
    values = np.asarray(to_array(x, name))
    if values.dtype.kind not in "buif":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {values.dtype}: convert it, as in "
            f"{name}.astype(float)"
        )
    if np.ma.is_masked(x):
        raise TypeError(f"{name} has masked entries: fill or remove them, as in {name}.filled(0)")
    ranks = [rank for rank in (1, 2, 3) if all(rank in net.input_ranks for net in networks)]
    if values.ndim - 1 not in ranks:
        shapes = {1: "(n, d)", 2: "(n, length, c)", 3: "(n, h, w, c)"}
        expected = " or ".join(shapes[rank] for rank in ranks)
        advice = {
            2: f"reshape rows to images, as in {name}.reshape(-1, 28, 28, 1)",
            3: f"add a channel axis, {name}[..., None], or for one image {name}[None]; "
            + series_advice(name),
        }.get(values.ndim, "reshape it")
        raise ValueError(f"{name} must have shape {expected}, got {values.shape}: {advice}")
    if 0 in values.shape:
        raise ValueError(f"{name} must not be empty, got shape {values.shape}")
    if values.ndim == 3:
        return check_series(name, values, channels)
    return check_channels(name, values, channels, series=read_series(networks))


def read_series(networks: Sequence[Network]) -> bool:
    """Return whether networks, one or more, all take samples (length, channels) of two axes."""
    return bool(networks) and all(2 in net.input_ranks for net in networks)


def series_advice(name: str) -> str:
    """Return the other reading of three axes, which are no grey images (n, h, w) then."""
    return (
        f"if they are series (n, length, channels), {name}[:, None], which are images one pixel "
        f"high, for cnn_1d and its like, or {name}[:, :, None], which are images one pixel wide"
    )


def check_series(name: str, values: NDArray[Any], channels: Channels) -> NDArray[Any]:
    """Return series as images one pixel high; refuse those that may be meant in two ways.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    values : ndarray of shape (n, length, c), or (n, c, length)
    channels : {"first", "last"} or None
        As the user says. None: last, unless there are more channels than steps.

    Returns
    -------
    ndarray of shape (n, 1, length, c)
        A view.

    Raises
    ------
    ValueError
        If series look as if their channels were first, or `channels` is no such word.
    """
    if channels not in ("first", "last", None):
        raise ValueError(f'channels must be "first", "last" or None, got {channels!r}')
    if channels == "first":
        return values.transpose(0, 2, 1)[:, None]
    if channels is None:
        check_steps(name, values.shape, 'channels="first"; if the second is, channels="last"')
    return values[:, None]


def check_steps(name: str, shape: Sequence[int], remedy: str) -> None:
    """Refuse a shape that ends with that of a series of more channels than steps.

    Parameters
    ----------
    name : str
        What has the shape, for the message.
    shape : sequence of int, (..., length, c)
    remedy : str
        What to write if channels are first, and if they are not.

    Raises
    ------
    ValueError
        With both readings.
    """
    a, b = shape[-2:]
    if a < b:
        raise ValueError(
            f"{name} has shape {tuple(shape)}, which is read in two ways, series of {b} steps in "
            f"{a} channels (channels first), or of {a} steps in {b} channels (channels last): if "
            f"the first is meant, write {remedy}"
        )


def check_channels(
    name: str, values: NDArray[Any], channels: Channels, *, series: bool = False
) -> NDArray[Any]:
    """Return images with their channels last; refuse those that may be meant in two ways.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    values : ndarray of any shape
        Images are those of four axes.
    channels : {"first", "last"} or None
        As the user says. None: last, unless the first axis of an image is 1, 3 or 4 and its last
        one is larger than 4.
    series : bool
        Whether images one pixel high are series, to networks that are for those.

    Returns
    -------
    ndarray of shape (n, h, w, c)
        A view. Anything but images comes back as it is.

    Raises
    ------
    ValueError
        If images look as if their channels were first, `channels` is no such word, or is "first"
        where there are no images.
    """
    if channels not in ("first", "last", None):
        raise ValueError(f'channels must be "first", "last" or None, got {channels!r}')
    if channels == "first":
        if values.ndim != 4:
            raise ValueError(
                f'channels="first" is for images (n, c, h, w), got {name} of shape '
                f"{values.shape}: reshape it, or leave channels out"
            )
        return values.transpose(0, 2, 3, 1)
    if channels is None and values.ndim == 4 and not (series and values.shape[1] == 1):
        remedy = f'{name}.transpose(0, 2, 3, 1), or channels="first"'
        check_not_first(name, values.shape, f'{remedy}; if the second is, channels="last"')
    return values


def check_not_first(name: str, shape: Sequence[int], remedy: str) -> None:
    """Refuse a shape that ends with that of an image whose channels look as if they were first.

    Parameters
    ----------
    name : str
        What has the shape, for the message.
    shape : sequence of int, (..., h, w, c)
    remedy : str
        What to write if they are.

    Raises
    ------
    ValueError
        With both readings.
    """
    a, b, c = shape[-3:]
    if a in _FEW_CHANNELS and c > max(_FEW_CHANNELS):
        raise ValueError(
            f"{name} has shape {tuple(shape)}, which is read in two ways, {b} x {c} pixels of {a} "
            f"channels (channels first), or {a} x {b} pixels of {c} channels (channels last): if "
            f"the first is meant, write {remedy}"
        )


def steps(values: Rows) -> Iterator[slice]:
    """Yield the places of all samples, a few at a time."""
    sample = 8 * math.prod(values.shape[1:])
    step = min(_CHUNK_SAMPLES, max(1, _CHUNK_BYTES // sample))
    for start in range(0, len(values), step):
        yield slice(start, min(len(values), start + step))


def chunks(values: Rows) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the first index and the values, in C order as float64, of a few samples at a time."""
    for part in steps(values):
        # + 0.0 makes -0.0 and 0.0 one number, which they are to the kernel
        yield part.start, np.ascontiguousarray(values[part], np.float64) + 0.0
        let_go(values)


def let_go(values: Rows) -> None:
    """Give back the pages of a file that is mapped to be read: they would count as memory held."""
    source: Any = values
    while isinstance(source, np.ndarray):
        source = source.base
    if isinstance(source, mmap.mmap) and memoryview(source).readonly:
        source.madvise(mmap.MADV_DONTNEED)


def check_tile(tile: Any) -> int | None:
    """Return the side of a tile; None is None."""
    if tile is None:
        return None
    if isinstance(tile, bool) or not isinstance(tile, Integral):
        raise TypeError(f"tile must be an integer or None, got {tile!r}")
    side = int(tile)
    if not _SMALLEST_TILE <= side <= _LARGEST_TILE:
        raise ValueError(
            f"tile must be from {_SMALLEST_TILE} to {_LARGEST_TILE} samples, got {side}"
        )
    return side


def check_entries(name: str, values: Rows) -> None:
    """Refuse samples that cannot be computed with."""
    for start, part in chunks(values):
        _check_entries(name, part.reshape(len(part), -1), start)


def number_samples(x1: Rows, x2: Rows | None) -> tuple[IntArray, IntArray | None]:
    """Give samples numbers, equal for equal ones; refuse those that cannot be computed with."""
    numbering = Numbering()
    numbers1 = numbering.add("x1", x1)
    return numbers1, None if x2 is None else numbering.add("x2", x2)


@dataclass(frozen=True, eq=False)
class _Numbered:
    """Samples that have numbers, in the order of their hashes; of equal hashes the first first."""

    values: Rows
    places: IntArray
    digests: IntArray
    numbers: IntArray


class Numbering:
    """Gives equal samples equal numbers: a hash finds candidates, a comparison decides."""

    def __init__(self) -> None:
        self._known: list[_Numbered] = []
        self._next = 0

    def add(self, name: str, values: Rows) -> IntArray:
        """Number samples by content; refuse those that cannot be computed with.

        Parameters
        ----------
        name : str
            Of the argument, for messages.
        values : ndarray of shape (n, ...)
            Kept, not copied, to be compared with.

        Returns
        -------
        ndarray of int64, shape (n,)
            From 0, in the order in which distinct samples come.
        """
        digests = _digests(name, values)
        numbers = self._find(values, digests)
        order = np.argsort(digests, kind="stable")
        first = _first_equals(values, digests, order)
        is_new = (numbers < 0) & (first == np.arange(len(values)))
        fresh = self._next + np.cumsum(is_new) - 1
        numbers = np.where(numbers < 0, fresh[first], numbers)
        self._next += int(is_new.sum())
        self._known.append(_Numbered(values, order, digests[order], numbers[order]))
        return numbers

    def find(self, name: str, values: Rows) -> IntArray:
        """Return the numbers of samples as `add` does, but keep none of them.

        Those that are not known get numbers that no known sample has, each its own.
        """
        numbers = self._find(values, _digests(name, values))
        return np.where(numbers < 0, self._next + np.arange(len(values)), numbers)

    def _find(self, values: Rows, digests: IntArray) -> IntArray:
        """Return the numbers of samples that are known, -1 for others."""
        numbers = np.full(len(values), -1)
        for known in self._known:
            begin = np.searchsorted(known.digests, digests, "left")
            end = np.searchsorted(known.digests, digests, "right")
            for place in np.flatnonzero((numbers < 0) & (begin < end)).tolist():
                row = _row(values, place)
                for at in range(begin[place], end[place]):
                    if np.array_equal(_row(known.values, known.places[at]), row):
                        numbers[place] = known.numbers[at]
                        break
        return numbers


def _first_equals(values: Rows, digests: IntArray, order: IntArray) -> IntArray:
    """Return the index of the first sample that equals each; `order` sorts by hash, stably."""
    first = np.arange(len(values))
    distinct: list[int] = []  # of one hash
    for at in 1 + np.flatnonzero(digests[order[1:]] == digests[order[:-1]]):
        place, before = int(order[at]), int(order[at - 1])
        if not distinct or digests[distinct[0]] != digests[place]:
            distinct = [before]
        row = _row(values, place)
        for other in distinct:
            if np.array_equal(_row(values, other), row):
                first[place] = other
                break
        else:
            distinct.append(place)
    return first


def _row(values: Rows, place: int) -> NDArray[np.float64]:
    row = np.array(values[place : place + 1], np.float64)
    let_go(values)
    return row


def _digests(name: str, values: Rows) -> IntArray:
    return np.fromiter((_digest(row) for row in _rows(name, values)), np.int64, len(values))


def _rows(name: str, values: Rows) -> Iterator[NDArray[np.float64]]:
    """Yield the values of each sample, as float64; refuse those that cannot be used."""
    for start, part in chunks(values):
        _check_entries(name, part.reshape(len(part), -1), start)
        yield from part


def _digest(row: NDArray[np.float64]) -> int:
    return hash(row.tobytes())


def _check_entries(name: str, rows: NDArray[np.float64], start: int) -> None:
    """Refuse entries that are not finite, or too large or small to be squared."""
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    bad = ~np.isfinite(largest)
    if bad.any():
        first = start + int(np.argmax(bad))
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {int(bad.sum())} of the samples "
            f"{start} to {start + len(rows) - 1}, the first is {name}[{first}]: remove or "
            "replace them"
        )
    outside = (largest > 0) & ((largest < _SMALLEST) | (largest > _LARGEST))
    if outside.any():
        first = int(np.argmax(outside))
        raise ValueError(
            f"{name} must have its largest entries between {_SMALLEST} and {_LARGEST}, got "
            f"{largest[first]:.1e} in {name}[{start + first}]: rescale the inputs"
        )
