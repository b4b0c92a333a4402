"""The function `kernel`: inputs checked, families found, memory declared, engine run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.backends import Backend, BackendName, get_backend
from widelimit.backends.base import Dtype
from widelimit.gram.engine import (
    Samples,
    available_memory,
    block_bytes,
    cached_blocks,
    default_threads,
    fill,
    memory_grid,
)
from widelimit.network import Network
from widelimit.program import Kind, Program, compile_networks

__all__ = ["kernel"]

_SMALLEST, _LARGEST = 1e-120, 1e120  # of an input: its fourth power is a float64
_CHUNK = 512

Progress = bool | Callable[[float], None]


@overload
def kernel(
    net: Network | Sequence[Network],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    kind: Kind = "ntk",
    *,
    backend: BackendName = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
    progress: Progress = False,
) -> NDArray[Any]: ...


@overload
def kernel(
    net: Network | Sequence[Network],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    kind: list[Kind] | tuple[Kind, ...],
    backend: BackendName = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
    progress: Progress = False,
) -> tuple[NDArray[Any], ...]: ...


def kernel(
    net: Network | Sequence[Network],
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    kind: Kind | list[Kind] | tuple[Kind, ...] = "ntk",
    *,
    backend: BackendName = "auto",
    dtype: Dtype = "float32",
    threads: int | None = None,
    progress: Progress = False,
) -> NDArray[Any] | tuple[NDArray[Any], ...]:
    """Exact kernel of an infinitely wide network between all pairs of inputs.

    The NTK is ``Theta`` and the NNGP kernel ``K`` at the output (Eq. 1 and 11-12 of the paper;
    general form in `widelimit.network`).

    Parameters
    ----------
    net : Network or sequence of Network
        Networks of a sequence that begin alike are computed in one pass.
    x1, x2 : array_like of shape (n, h, w, c), or (n, d) for dense networks
        Real numbers of any dtype and memory order, computed with as float64. ``x2=None``: the
        symmetric Gram matrix of `x1`, bitwise equal to its transpose, at half the cost. A dense
        network flattens images.
    kind : {"ntk", "nngp"} or a sequence of them
    backend : {"auto", "cpu", "reference"}
        "reference" is float64 NumPy, slow and easy to read.
    dtype : {"float32", "float64"}
        Of the slices and of the result. Profiles, sums over slices, and what belongs to
        identical inputs are always float64.
    threads : int or None
        None: one for each processor that this process may use. No bit of the result depends on
        it, nor on how inputs are split into calls.
    progress : bool or callable
        True shows a bar; a callable is given the finished share, 0 to 1.

    Returns
    -------
    ndarray of shape (n1, n2)
        With a leading axis if `net` is a sequence; a tuple of such arrays if `kind` is a sequence.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or shape, or inputs are empty or not finite.
    MemoryError
        Before the work starts, if the result and the work space will not fit.
    OverflowError
        If kernel values leave the range of `dtype`.

    Notes
    -----
    Cost in element-layers a pair (`widelimit explain`): ``(h w)^2`` for every convolution with
    global average pooling, ``h w`` with `Flatten`. Pairs share a vector register, 16 in float32
    with AVX-512: fewer pairs than that cost as much as 16. Relative accuracy: about 1e-6 in float32
    and 1e-13 in float64; near-duplicate inputs lose digits (docs/accuracy.md).
    """
    single = isinstance(net, Network)
    networks = _networks(net)
    kinds = _kinds(kind)
    if dtype not in get_args(Dtype):
        raise ValueError(f'dtype must be "float32" or "float64", got {dtype!r}')
    workers = _threads(threads)
    engine = get_backend(backend)
    values1, values2 = _inputs(networks, x1, x2)
    programs = compile_networks(networks, values1.shape[1:], kinds)
    shape = (len(networks), len(kinds), len(values1), len(values1 if values2 is None else values2))
    _check_memory(shape, dtype, engine, programs, workers, symmetric=values2 is None)
    numbering = _Numbering()
    left = Samples(values1, numbering.number("x1", values1))
    right = None if values2 is None else Samples(values2, numbering.number("x2", values2))

    out = np.empty(shape, dtype)
    with _progress(progress) as report:
        fill(programs, engine, left, right, out, dtype, workers, report)
    results = tuple(out[0, k] if single else out[:, k] for k in range(len(kinds)))
    return results[0] if isinstance(kind, str) else results


class _progress:
    """The callable that progress is reported to; a bar of its own for ``progress=True``."""

    def __init__(self, progress: Progress) -> None:
        if not isinstance(progress, bool) and not callable(progress):
            raise TypeError(f"progress must be True, False or a callable, got {progress!r}")
        self._progress = progress

    def __enter__(self) -> Callable[[float], None] | None:
        if not isinstance(self._progress, bool):
            return self._progress
        if not self._progress:
            return None
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

        self._bar = Progress(
            "kernel",
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._bar.start()
        task = self._bar.add_task("kernel", total=1.0)
        return lambda fraction: self._bar.update(task, completed=fraction)

    def __exit__(self, *exception: object) -> None:
        if self._progress is True:
            self._bar.stop()


def _networks(net: Any) -> list[Network]:
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


def _kinds(kind: Kind | list[Kind] | tuple[Kind, ...]) -> tuple[Kind, ...]:
    given: Any = kind
    kinds: tuple[Any, ...] = tuple(given) if isinstance(given, list | tuple) else (given,)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if not kinds or any(k not in get_args(Kind) for k in kinds) or len(set(kinds)) < len(kinds):
        raise ValueError(f'kind must be "ntk", "nngp" or a tuple of both, got {kind!r}')
    return kinds


def _threads(threads: Any) -> int:
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not isinstance(threads, Integral):
        raise TypeError(f"threads must be an integer or None, got {threads!r}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return int(threads)


def _inputs(
    networks: list[Network], x1: ArrayLike, x2: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    dense = all(network.is_dense for network in networks)
    values1 = _checked("x1", x1, dense)
    if x2 is None:
        return values1, None
    values2 = _checked("x2", x2, dense)
    if values1.shape[1:] != values2.shape[1:]:
        raise ValueError(
            f"x1 and x2 must hold inputs of one shape, got {values1.shape[1:]} and "
            f"{values2.shape[1:]}: resize or reshape one of them"
        )
    return values1, values2


def _check_memory(
    shape: tuple[int, int, int, int],
    dtype: Dtype,
    engine: Backend,
    programs: Sequence[tuple[Program, Sequence[int]]],
    workers: int,
    *,
    symmetric: bool,
) -> None:
    """Refuse what will not fit, before any work is done."""
    result = math.prod(shape) * np.dtype(dtype).itemsize
    grid = memory_grid(shape[2], None if symmetric else shape[3])
    blocks = cached_blocks(programs, engine, dtype, grid)
    held = blocks * block_bytes(programs, engine, dtype, min(grid.tile, max(shape[2:])))
    scratch = [engine.tile_bytes(program, dtype) for program, _ in programs if not program.is_dense]
    work = held + workers * max(scratch, default=0)
    free = available_memory()
    if free is not None and result + work > free:
        raise MemoryError(
            f"{shape[2]} x {shape[3]} kernel values of {shape[0]} networks and {shape[1]} kinds "
            f"need {result / 2**30:.1f} GiB, and {work / 2**30:.1f} GiB of work space; "
            f"{free / 2**30:.1f} GiB are free: compute fewer at a time, or use fewer threads"
        )


def _checked(name: str, x: ArrayLike, dense: bool) -> NDArray[Any]:
    values = np.asarray(x)
    if values.dtype.kind not in "buif":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {values.dtype}: convert it, as in "
            f"{name}.astype(float)"
        )
    if np.ma.is_masked(x):
        raise TypeError(f"{name} has masked entries: fill or remove them, as in {name}.filled(0)")
    ranks = (2, 4) if dense else (4,)
    if values.ndim not in ranks:
        expected = "(n, d) or (n, h, w, c)" if dense else "(n, h, w, c)"
        advice = {
            2: f"reshape rows to images, as in {name}.reshape(-1, 28, 28, 1)",
            3: f"add a channel axis, {name}[..., None], or for one image {name}[None]",
        }.get(values.ndim, "reshape it")
        raise ValueError(f"{name} must have shape {expected}, got {values.shape}: {advice}")
    if 0 in values.shape:
        raise ValueError(f"{name} must not be empty, got shape {values.shape}")
    return values


class _Numbering:
    """Gives equal samples equal numbers: a hash finds candidates, a comparison decides."""

    def __init__(self) -> None:
        self._known: dict[int, list[tuple[NDArray[Any], int, int]]] = {}
        self._next = 0

    def number(self, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
        """Number samples by content; refuse those that cannot be computed with."""
        numbers = np.empty(len(values), np.int64)
        for start in range(0, len(values), _CHUNK):
            # + 0.0 makes -0.0 and 0.0 one number, which they are to the kernel
            part = np.ascontiguousarray(values[start : start + _CHUNK], np.float64) + 0.0
            _check_entries(name, part.reshape(len(part), -1), start)
            for index, row in enumerate(part, start):
                numbers[index] = self._find(row, values, index)
        return numbers

    def _find(self, row: NDArray[np.float64], values: NDArray[Any], index: int) -> int:
        candidates = self._known.setdefault(hash(row.tobytes()), [])
        for others, place, number in candidates:
            if np.array_equal(np.asarray(others[place], np.float64), row):
                return number
        candidates.append((values, index, self._next))
        self._next += 1
        return self._next - 1


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
