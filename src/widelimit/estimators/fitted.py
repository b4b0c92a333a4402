"""The kernel of a fitted estimator: which networks, of which training samples."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.backends import BackendName, get_backend
from widelimit.backends.base import Dtype
from widelimit.estimators.directions import Directions, find_directions
from widelimit.estimators.doubt import Errors, Nearest, unresolved_angle
from widelimit.estimators.preparation import Preparation
from widelimit.estimators.regression import join
from widelimit.estimators.samples import ImageShape
from widelimit.files import HeldByAnother
from widelimit.layers import Conv, Dense, walk
from widelimit.matrices.families import choose_backend
from widelimit.matrices.inputs import number_samples
from widelimit.matrices.kernel import kernel, kernel_diagonal
from widelimit.matrices.manifest import Inputs, Maker, Manifest
from widelimit.matrices.objects import open_objects
from widelimit.matrices.prepared import PreparedKernel
from widelimit.matrices.profiles import SampleOutsideRange
from widelimit.matrices.run import gram
from widelimit.network import Network
from widelimit.program import Kind

__all__ = [
    "FittedKernel",
    "PrecomputedKernel",
    "Stores",
    "naming",
    "patiently",
]

_Result = TypeVar("_Result")

_PAUSE = 0.1  # seconds between two tries for a store that another process writes
_QUIET = 10.0  # seconds of waiting of which nothing is said
_REPEATS = 8  # of a sample, when the error at an angle of 0 is measured


@dataclass(frozen=True, eq=False)
class FittedKernel:
    """Kernels of networks and training samples: all that those of new samples depend on.

    Parameters
    ----------
    networks : tuple of Network
        Of several, the kernel of each (a choice is to be made), or their mean.
    averaged : bool
        Whether it is the mean.
    kind : {"ntk", "nngp"}
        That coefficients belong to.
    dtype : {"float32", "float64"}
    preparation : Preparation
        What is made of rows.
    samples : ndarray of shape (m, h, w, c) or (m, d)
        Training samples, one for each row of the Gram matrix.
    backend, threads
        What computes, as for `widelimit.kernel`; "auto" is what fits the Gram matrix of the
        samples. No result depends on it, but for its rounding.
    """

    networks: tuple[Network, ...]
    averaged: bool
    kind: Kind
    dtype: Dtype
    preparation: Preparation
    samples: NDArray[Any]
    backend: BackendName
    threads: int | None
    _prepared: PreparedKernel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        size = self.samples.shape[1:], len(self.samples), None
        backend = choose_backend(self.backend, self.networks, *size)
        object.__setattr__(self, "backend", backend)
        made = PreparedKernel(self.networks, self.samples, self.backend, self.dtype, self.threads)
        object.__setattr__(self, "_prepared", made)

    @property
    def shape(self) -> ImageShape | None:
        """Of an image; None: samples are rows."""
        return self.preparation.shape

    @property
    def choices(self) -> int:
        """Number of Gram matrices, of which one is to be chosen."""
        return 1 if self.averaged else len(self.networks)

    def chosen(self, index: int) -> FittedKernel:
        """Return the kernel of one choice."""
        if self.choices == 1:
            return self
        return replace(self, networks=(self.networks[index],))

    def computed_by(self, backend: BackendName, threads: int | None) -> FittedKernel:
        """Return the same, computed in another way; "auto": by the backend there is."""
        backend = self.backend if backend == "auto" else backend
        if (backend, threads) == (self.backend, self.threads):
            return self
        return replace(self, backend=backend, threads=threads)

    # --- samples ----------------------------------------------------------------------------------

    def read(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return rows (n, d) as samples of the kernel, (n, d) or (n, h, w, c)."""
        return self.preparation(rows)

    def merged(
        self, *, multiples: bool = True, given: IntArray | None = None
    ) -> tuple[FittedKernel, Directions]:
        """Return the kernel with one sample for each row of its matrix, and what rows are.

        Equal samples are one row and, if no network has a bias, multiples of one another are.

        Parameters
        ----------
        multiples : bool
            Whether they may be: rows then have weights, which not every solver takes.
        given : ndarray of int64, shape (n,), or None
            What errors call the samples; None: their places.
        """
        return self._rows(self.samples, 0, multiples, given)

    def grown(
        self, new: NDArray[Any], *, multiples: bool, given: IntArray
    ) -> tuple[FittedKernel, Directions]:
        """Return the kernel with more samples, and the rows of old samples and new ones."""
        whole = np.concatenate([self.samples, new])
        return self._rows(whole, len(self.samples), multiples, given)

    def _rows(
        self, samples: NDArray[Any], known: int, multiples: bool, given: IntArray | None
    ) -> tuple[FittedKernel, Directions]:
        numbers = number_samples(samples, None)[0]
        if multiples and all(net.is_homogeneous for net in self.networks):
            rows = find_directions(samples, numbers, known, given)
        else:
            rows = Directions.of_equal(numbers)
        if len(rows.first) < len(samples):
            samples = samples[rows.first]
        if samples is self.samples:
            return self, rows
        return replace(self, samples=samples), rows

    def fingerprint(self, kinds: Sequence[Kind]) -> str:
        """Return what tells the Gram matrices, and what computes them, from others, as hex."""
        made = Manifest(
            self.networks,
            len(self.networks) > 1,
            tuple(kinds),
            len(kinds) > 1,
            self.dtype,
            Inputs.of(self.samples),
            None,
            (Maker.of(get_backend(self.backend)),),
        )
        return made.fingerprint

    # --- kernels ----------------------------------------------------------------------------------

    def bytes_held(self, m: int, kinds: Sequence[Kind], *, stored: bool) -> int:
        """Return the memory that the Gram matrices of m samples take, those of all choices."""
        if stored and not self.averaged:
            return 0
        matrices = len(kinds) * (len(self.networks) + self.averaged)
        return m * m * matrices * np.dtype(self.dtype).itemsize

    def gram(
        self,
        kinds: Sequence[Kind],
        *,
        progress: bool | Callable[[Any], None] = False,
        **storage: Any,
    ) -> list[list[Any]]:
        """Return the Gram matrices of the training samples: for each kind those of all choices.

        Parameters
        ----------
        kinds : sequence of {"ntk", "nngp"}
        progress : bool or callable
        **storage
            ``store``, and with it ``reuse``, ``memory`` and ``executor``, as for `widelimit.gram`.

        Returns
        -------
        list of list of ndarray or Gram, each (m, m)
        """
        # One network or one kind is no axis of the result, nor of a store.
        net: Any = list(self.networks)
        if len(net) == 1:
            net = net[0]
        options: dict[str, Any] = self._how() | (
            {"progress": progress} if progress is not False else {}
        )
        options["kind"] = tuple(kinds) if len(kinds) > 1 else kinds[0]
        compute: Any = gram if storage else kernel
        made = compute(net, self.samples, **options, **storage)
        by_kind: list[list[Any]] = []
        for part in made if len(kinds) > 1 else [made]:
            matrices: list[Any] = list(part) if isinstance(net, list) else [part]
            if self.averaged:
                matrices = [np.mean([np.asarray(k) for k in matrices], axis=0)]
            by_kind.append(matrices)
        return by_kind

    def cross(self, new: NDArray[Any], kinds: Sequence[Kind] = ()) -> list[NDArray[Any]]:
        """Return the kernels between new and training samples, (n, m), by kind; () is `kind`."""
        made = self._prepared.cross(new, kinds or (self.kind,))
        return [self._mean(k) for k in made]

    def both(self, new: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Return the kernel between new and training samples, and its NNGP, as float64."""
        made = self.cross(new, tuple(dict.fromkeys((self.kind, "nngp"))))
        return np.asarray(made[0], np.float64), np.asarray(made[-1], np.float64)

    def border(
        self, new: NDArray[Any], kinds: Sequence[Kind]
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Return the kernels of training and new samples, (m, n), and of new ones, by kind."""
        if not len(new):
            m = len(self.samples)
            return [np.empty((m, 0), self.dtype) for _ in kinds], [np.empty((0, 0))] * len(kinds)
        return [k.T for k in self.cross(new, kinds)], self.corner(new, kinds)

    def corner(self, new: NDArray[Any], kinds: Sequence[Kind]) -> list[NDArray[Any]]:
        """Return the kernels of new samples with themselves, (n, n), by kind."""
        made = cast("Any", kernel)(list(self.networks), new, kind=tuple(kinds), **self._how())
        return [self._mean(k) for k in made]

    def prior(self, new: NDArray[Any], *, diagonal: bool) -> FloatArray:
        """Return the covariance of outputs before training: NNGP, (n, n) or its diagonal."""
        if not diagonal:
            return np.asarray(self.corner(new, ("nngp",))[0], np.float64)
        how: Any = self._how()
        del how["channels"]  # of diagonals they are last anyway
        made = kernel_diagonal(list(self.networks), new, "nngp", **how)
        return np.asarray(self._mean(made), np.float64)

    def _how(self) -> dict[str, Any]:
        return {
            "channels": "last",
            "backend": self.backend,
            "dtype": self.dtype,
            "threads": self.threads,
        }

    def _mean(self, k: NDArray[Any]) -> NDArray[Any]:
        """Return the one kernel of the networks on the first axis."""
        return k.mean(axis=0) if self.averaged else k[0]

    # --- errors -----------------------------------------------------------------------------------

    def errors(self, nearest: Nearest) -> Errors:
        """Return how exact entries are where samples have nearly one direction."""
        # Inner products of a dense network are float64, whatever its dtype.
        exact = all(net.is_dense for net in self.networks)
        unresolved = unresolved_angle("float64" if exact else self.dtype)
        # Each activation between a trained layer and the output adds t/2 pi or less.
        most = unresolved * max(sum(1 for _ in walk(net.layers)) for net in self.networks) / 2
        angles = self._angles(nearest.partner)
        return Errors(unresolved, angles, most, lambda rows: self._error_at_once(rows, unresolved))

    def _angles(self, partner: IntArray) -> FloatArray:
        """Return the angle between each training sample and another one, as layers see it."""
        bias = min(_bias(net, self.samples.shape[1:]) for net in self.networks)
        angles = np.empty(len(partner))
        for i, j in enumerate(partner.tolist()):
            a, b = (np.asarray(self.samples[index], np.float64).ravel() for index in (i, j))
            size_a, size_b = np.hypot(np.linalg.norm(a), bias), np.hypot(np.linalg.norm(b), bias)
            if size_a == 0 or size_b == 0:
                angles[i] = np.pi / 2
                continue
            gap = np.linalg.norm(a / size_a - b / size_b)
            angles[i] = np.hypot(gap, bias / size_a - bias / size_b)
        return angles

    def _error_at_once(self, rows: IntArray, unresolved: float) -> float:
        """Measure the error of the kernel of two samples with an angle that is nothing to it."""
        rng = np.random.default_rng(0)
        a = np.repeat(np.asarray(self.samples[rows], np.float64), _REPEATS, axis=0)
        # Sizes that round differently; and angles below all that can be told.
        a *= rng.uniform(1.0, 1.1, len(a)).reshape(-1, *[1] * (a.ndim - 1))
        b = a * (1 + unresolved / 100 * rng.standard_normal(a.shape))
        k = np.asarray(self.corner(np.concatenate([a, b]), (self.kind,))[0], np.float64)
        real = k.diagonal() > 0
        scale = np.sqrt(np.where(real, k.diagonal(), 1.0))
        alike = k.diagonal(len(a)) / scale[: len(a)] / scale[len(a) :]
        return float(np.abs(1 - alike[real[: len(a)]]).max(initial=0.0))


def _bias(net: Network, shape: tuple[int, ...]) -> float:
    """Return what biases are next to a sample: the entry that has the same effect."""
    layers = [layer for layer in walk(net.layers) if isinstance(layer, Conv | Dense)]
    share = sum((layer.b_std / layer.w_std) ** 2 for layer in layers)
    pixels = 1 if net.is_dense else shape[0] * shape[1]
    return float(np.sqrt(share * (np.prod(shape) if net.scaling == "fan_in" else pixels)))


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the kernels of some samples lie, with what is made of them; `of` names it.

    Parameters
    ----------
    root : str
        Path or URL that the user has named.
    name : str
        Of the folder in it: what is of other samples or networks has another one.
    several : bool
        Whether kernels of several networks are in one store.
    """

    root: str
    name: str
    several: bool

    @classmethod
    def of(
        cls, root: str | os.PathLike[str], kernel: FittedKernel, kinds: Sequence[Kind]
    ) -> Stores:
        """Name them by content."""
        name = kernel.fingerprint(kinds)[:16]
        return cls(os.fspath(root), name, len(kernel.networks) > 1)

    @property
    def folder(self) -> str:
        """Path or URL of all of it."""
        return join(self.root, self.name)

    @property
    def kernel(self) -> str:
        """Path or URL of the Gram matrices."""
        return join(self.folder, "kernel.zarr")

    def grown(self, kernel: FittedKernel, kinds: Sequence[Kind]) -> Stores:
        """Return where those of more samples will lie."""
        return Stores.of(self.root, kernel, kinds)

    def check_room(self, kernel: FittedKernel, kinds: Sequence[Kind]) -> None:
        """Refuse to begin a kernel whose factors will not fit onto the disk beside it.

        A little more than what is counted is needed, and asked for when each of them is begun:
        that is soon enough once the kernel is there.
        """
        m = len(kernel.samples)
        entries = m * (m + 1) // 2
        matrices = len(kernel.networks) * len(kinds)
        missing = entries * matrices * np.dtype(kernel.dtype).itemsize
        missing -= sum(size for _, size in open_objects(self.kernel).sizes("c"))
        if missing > 0:
            open_objects(self.root).check_room(missing + entries * 8 * kernel.choices)


@contextmanager
def naming(places: IntArray) -> Generator[None]:
    """Let the error of a sample that has no kernel name it by its place in X, one of these."""
    try:
        yield
    except SampleOutsideRange as error:
        if error.side == "x2":  # training samples, beside new ones
            raise
        place = int(places[error.sample])
        raise SampleOutsideRange(error.found, place, "X", error.remedy) from None


def patiently(call: Callable[[], _Result]) -> _Result:
    """Call, and wait while another process, such as another fit of a search, writes the same."""
    start, told = time.monotonic(), False
    while True:
        try:
            return call()
        except HeldByAnother as error:
            if not told and time.monotonic() - start >= _QUIET:
                told = True
                warnings.warn(
                    f"this fit waits for what another process makes for it, in {error.filename}: "
                    f"{error.strerror}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        time.sleep(_PAUSE)


@dataclass(frozen=True, eq=False)
class PrecomputedKernel:
    """A kernel that is given: what `FittedKernel` is, without networks and samples.

    Parameters
    ----------
    kind, dtype
        As for `FittedKernel`.
    columns : ndarray of int64, shape (m,)
        The training samples that count, among those of `fit`.
    own : ndarray of float64, shape (n,) or (n, n), or None
        Kernel of the new samples that are asked about with themselves.
    """

    kind: Kind
    dtype: Dtype
    columns: IntArray
    own: FloatArray | None = None

    networks: ClassVar[tuple[Network, ...]] = ()
    averaged: ClassVar[bool] = False
    choices: ClassVar[int] = 1
    shape: ClassVar[None] = None
    preparation: ClassVar[Preparation] = Preparation()
    samples: ClassVar[None] = None

    def chosen(self, index: int) -> PrecomputedKernel:
        """Return the kernel itself."""
        return self

    def computed_by(self, backend: BackendName, threads: int | None) -> PrecomputedKernel:
        """Return the kernel itself."""
        return self

    def bytes_held(self, m: int, kinds: Sequence[Kind], *, stored: bool) -> int:
        """Return the memory beside what is given."""
        return 0

    def read(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the kernel between new samples and all training samples with those that count."""
        return rows[:, self.columns]

    def cross(self, new: NDArray[Any], kinds: Sequence[Kind] = ()) -> list[NDArray[Any]]:
        """Return what `read` has read."""
        return [new]

    def both(self, new: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Return what `read` has read, and its NNGP: of kind "nngp" it is that."""
        made = np.asarray(new, np.float64)
        return made, made

    def prior(self, new: NDArray[Any], *, diagonal: bool) -> FloatArray:
        """Return the covariance of outputs before training, as it was given."""
        assert self.own is not None
        return np.array(self.own.diagonal() if diagonal and self.own.ndim == 2 else self.own)

    def errors(self, nearest: Nearest) -> Errors:
        """Return how exact entries are taken to be: as if arithmetic had been in their dtype.

        Their gap is taken for proportional to the angle.
        """
        unresolved = unresolved_angle(nearest.dtype)
        most = nearest.slope * unresolved
        return Errors(unresolved, nearest.gap / nearest.slope, most, lambda rows: most)
