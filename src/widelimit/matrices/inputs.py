"""Inputs of `kernel` and `gram`: arguments checked, samples checked, equal samples found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import IntArray
from widelimit.backends.base import Dtype
from widelimit.machine import default_threads
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
    "check_threads",
    "check_tile",
    "chunks",
    "number_samples",
    "series_advice",
]

Channels: TypeAlias = Literal["first", "last"] | None
"""Where the channels of images are; None: last, and what looks like another thing is refused."""

_FEW_CHANNELS = (1, 3, 4)  # grey, colours, and colours with transparency

_MOST_THREADS = 1024  # that a system surely starts, on however few processors
_SMALLEST_TILE, _LARGEST_TILE = 16, 2**14
_SMALLEST, _LARGEST = 1e-120, 1e120  # of an input: its fourth power is a float64
_CHUNK_SAMPLES, _CHUNK_BYTES = 512, 2**22  # that are looked at together, at most


def check_dtype(dtype: Any) -> Dtype:
    """Return the dtype; ValueError if it is none that kernels have."""
    if dtype not in get_args(Dtype):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    return dtype


def check_networks(net: Any) -> list[Network]:
    """Return one network or a sequence of them as a list."""
    networks: list[Any] = [net] if isinstance(net, Network) else _listed(net)
    if not networks:
        raise ValueError("net must be a Network or a non-empty list of them, got an empty list")
    for entry in networks:
        if not isinstance(entry, Network):
            raise TypeError(f"net must be a Network or a list of them, got {entry!r}")
    return networks


def _listed(net: Any) -> list[Any]:
    if not isinstance(net, Sequence):
        raise TypeError(f"net must be a Network or a list of them, got {net!r}")
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
    values = np.asarray(x)
    if values.dtype.kind not in "buif":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {values.dtype}: convert it, as in "
            f"{name}.astype(float)"
        )
    if np.ma.is_masked(x):
        raise TypeError(f"{name} has masked entries: fill or remove them, as in {name}.filled(0)")
    ranks = [rank for rank in (1, 3) if all(rank in net.input_ranks for net in networks)]
    if values.ndim - 1 not in ranks:
        expected = "(n, d) or (n, h, w, c)" if 1 in ranks else "(n, h, w, c)"
        advice = {
            2: f"reshape rows to images, as in {name}.reshape(-1, 28, 28, 1)",
            3: f"add a channel axis, {name}[..., None], or for one image {name}[None]; "
            + series_advice(name),
        }.get(values.ndim, "reshape it")
        raise ValueError(f"{name} must have shape {expected}, got {values.shape}: {advice}")
    if 0 in values.shape:
        raise ValueError(f"{name} must not be empty, got shape {values.shape}")
    return check_channels(name, values, channels)


def series_advice(name: str) -> str:
    """Return the other reading of three axes, which are no grey images (n, h, w) then."""
    return (
        f"if they are series (n, length, channels), {name}[:, :, None], which are images one "
        "pixel wide"
    )


def check_channels(name: str, values: NDArray[Any], channels: Channels) -> NDArray[Any]:
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
    if channels is None and values.ndim == 4:
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


def chunks(values: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the first index and the values, in C order as float64, of a few samples at a time."""
    step = min(_CHUNK_SAMPLES, max(1, _CHUNK_BYTES // (8 * values[0].size)))
    for start in range(0, len(values), step):
        # + 0.0 makes -0.0 and 0.0 one number, which they are to the kernel
        yield start, np.ascontiguousarray(values[start : start + step], np.float64) + 0.0


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


def check_entries(name: str, values: NDArray[Any]) -> None:
    """Refuse samples that cannot be computed with."""
    for start, part in chunks(values):
        _check_entries(name, part.reshape(len(part), -1), start)


def number_samples(x1: NDArray[Any], x2: NDArray[Any] | None) -> tuple[IntArray, IntArray | None]:
    """Give samples numbers, equal for equal ones; refuse those that cannot be computed with."""
    numbering = Numbering()
    numbers1 = numbering.add("x1", x1)
    return numbers1, None if x2 is None else numbering.add("x2", x2)


class Numbering:
    """Gives equal samples equal numbers: a hash finds candidates, a comparison decides."""

    def __init__(self) -> None:
        self._known: dict[int, list[tuple[NDArray[Any], int, int]]] = {}
        self._next = 0

    def add(self, name: str, values: NDArray[Any]) -> IntArray:
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
        numbers = np.empty(len(values), np.int64)
        for index, row in _rows(name, values):
            digest = _digest(row)
            number = self._find(row, digest)
            if number is None:
                number = self._next
                self._known.setdefault(digest, []).append((values, index, number))
                self._next += 1
            numbers[index] = number
        return numbers

    def find(self, name: str, values: NDArray[Any]) -> IntArray:
        """Return the numbers of samples as `add` does, but keep none of them.

        Those that are not known get numbers that no known sample has, each its own.
        """
        numbers = np.empty(len(values), np.int64)
        for index, row in _rows(name, values):
            number = self._find(row, _digest(row))
            numbers[index] = self._next + index if number is None else number
        return numbers

    def _find(self, row: NDArray[np.float64], digest: int) -> int | None:
        for others, place, number in self._known.get(digest, ()):
            if np.array_equal(np.asarray(others[place], np.float64), row):
                return number
        return None


def _rows(name: str, values: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield index and values of each sample, as float64; refuse those that cannot be used."""
    for start, part in chunks(values):
        _check_entries(name, part.reshape(len(part), -1), start)
        yield from enumerate(part, start)


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
