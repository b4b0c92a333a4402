"""What the classifier and the regressor share: samples in, outputs of the regression out."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import base  # pyright: ignore[reportMissingTypeStubs]
from sklearn.utils import metaestimators, validation  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.estimators.attributes import FittedAttributes, check_is_fitted
from widelimit.estimators.checks import Net, check_options, check_weights
from widelimit.estimators.doubt import doubted, find_nearest, warn
from widelimit.estimators.fitted import (
    FittedKernel,
    PrecomputedKernel,
    Stores,
    naming,
    patiently,
)
from widelimit.estimators.influence import Influence, Measure
from widelimit.estimators.judge import Judge, edge
from widelimit.estimators.preparation import Normalise, Whiten, resolve_whitenings
from widelimit.estimators.prepare import prepare
from widelimit.estimators.regression import (
    Options,
    Regression,
    Solver,
    grow,
    regress,
    solver_for,
)
from widelimit.estimators.samples import ImageShape, Training, split_shape
from widelimit.estimators.typical import Familiar
from widelimit.estimators.warned import warn_caller
from widelimit.matrices.inputs import Channels
from widelimit.program import Kind
from widelimit.solvers import Bordered, Method, Unavailable
from widelimit.solvers.checks import check_targets
from widelimit.solvers.spectrum import check_time

__all__ = [
    "SAMPLE_DTYPES",
    "NTKEstimator",
    "block_size",
    "can_grow",
    "check_is_fitted",
    "leaves_out",
    "only_if",
    "validate_data",
]

# scikit-learn has no types.
_validation = cast("Any", validation)
validate_data: Callable[..., Any] = _validation.validate_data
only_if: Callable[..., Any] = cast("Any", metaestimators).available_if
_clone: Callable[..., Any] = cast("Any", base).clone

# Dtypes of samples that the kernel reads as they are; all others become float64.
SAMPLE_DTYPES = [np.float64, np.float32, np.uint8]
# Entries of the kernel between new and training samples that exist at a time (256 MiB in float64).
_BLOCK_ENTRIES = 2**25


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A kernel that may be fitted, and the training samples as it has them."""

    kernel: FittedKernel | PrecomputedKernel
    training: Training


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """What came of a candidate: the best of its kernels, with scores of all."""

    kernel: FittedKernel | PrecomputedKernel
    training: Training
    regression: Regression
    nngp: Any
    stores: Stores | None
    curves: list[FloatArray]
    grids: list[FloatArray]


class NTKEstimator(FittedAttributes, base.BaseEstimator):
    """Kernel regression; what it is fitted to is up to the classifier and the regressor."""

    # Kernels of the training samples beside `kind`, for a covariance of predictions.
    _extra_kinds: tuple[Kind, ...] = ()

    def __init__(
        self,
        net: Net = None,
        *,
        kernel: Literal["network", "precomputed"] = "network",
        kind: Kind = "ntk",
        ridge: float | Literal["loo"] = 0.0,
        combine: Literal["best", "mean"] = "best",
        time: float | Literal["loo"] | None = None,
        normalise: Normalise = None,
        whiten: Whiten = None,
        standardise: bool | None = None,
        image_shape: Sequence[int] | None = None,
        channels: Channels = None,
        dtype: Dtype | None = None,
        backend: BackendName = "auto",
        threads: int | None = None,
        solver: Solver = "auto",
        store: str | os.PathLike[str] | None = None,
        memory: int | str | None = None,
        executor: Any = None,
        progress: bool | Callable[[Any], None] = False,
    ) -> None:
        self.net = net
        self.kernel = kernel
        self.kind: Kind = kind
        self.ridge = ridge
        self.combine = combine
        self.time = time
        self.normalise: Normalise = normalise
        self.whiten: Whiten = whiten
        self.standardise = standardise
        self.image_shape = image_shape
        self.channels: Channels = channels
        self.dtype: Dtype | None = dtype
        self.backend: BackendName = backend
        self.threads = threads
        self.solver: Solver = solver
        self.store = store
        self.memory = memory
        self.executor = executor
        self.progress = progress

    def __sklearn_tags__(self) -> Any:
        tags = cast("Any", super()).__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags

    def __sklearn_clone__(self) -> Self:
        """Copy parameters, but share executor and progress: what they lead to is one."""
        parameters = cast("dict[str, Any]", self.get_params(deep=False))
        one = {name: parameters.pop(name) for name in ("executor", "progress")}
        copies = {name: _clone(value, safe=False) for name, value in parameters.items()}
        cloned = type(self)(**copies, **one)
        for name in ("_metadata_request", "_sklearn_output_config"):
            if name in self.__dict__:
                shared = {id(value): value for value in one.values()}
                setattr(cloned, name, copy.deepcopy(self.__dict__[name], shared))
        return cloned

    # --- fit ------------------------------------------------------------------------------------

    @contextmanager
    def _all_or_nothing(self) -> Generator[None]:
        """Undo what a block has set, if it fails: there is no half-fitted estimator."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:  # Ctrl-C, too
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _fit(
        self,
        rows: NDArray[Any],
        encode: Callable[[NDArray[np.bool_], FloatArray], FloatArray],
        sample_weight: ArrayLike | None,
        found: ImageShape | None,
        *,
        flat: bool = False,
    ) -> None:
        """Fit checked rows (n, d) to the targets (n, t) that `encode` makes of those that count.

        It is given which do, and the weights of these. If targets are flat, t = 1, users see (n,).
        """
        options = check_options(self)
        weight, counts = check_weights(sample_weight, rows)
        targets = encode(counts, weight)
        check_targets(targets, len(targets))
        kinds: tuple[Kind, ...] = tuple(dict.fromkeys((self.kind, *self._extra_kinds)))
        whitenings = resolve_whitenings(self.whiten)

        def candidates(*, multiples: bool) -> list[_Candidate]:
            made: list[_Candidate] = []
            for r in whitenings:
                kernel, rows_of = prepare(
                    self, rows, counts, weight, found, whiten=r, multiples=multiples
                )
                made.append(_Candidate(kernel, Training.of(rows_of, targets, weight, counts)))
            return made

        tried = candidates(multiples=True)
        try:
            options, methods = self._planned(options, tried, kinds)
        except Unavailable:  # with a ridge multiples may be rows of their own, without weights
            tried = candidates(multiples=False)
            options, methods = self._planned(options, tried, kinds)
        given = None
        if isinstance(tried[0].kernel, PrecomputedKernel):
            given = np.array(rows[np.ix_(counts, counts)])
        best: _Fitted | None = None
        scores: list[float] = []
        for one, method in zip(tried, methods, strict=True):
            made = self._solved(one, options, method, kinds, given)
            scores.append(made.regression.score)
            if best is None or scores[-1] > best.regression.score:
                best = made
        assert best is not None
        warn(best.regression.solution)
        self._warn_of_choice(options, best.regression)
        self._keep(best.kernel, best.training, best.regression, best.nngp, best.stores, flat=flat)
        self._signed = bool((rows[counts] < 0).any())
        for name in ("whiten_grid_", "whiten_curve_"):
            self.__dict__.pop(name, None)
        if len(whitenings) > 1:
            self.whiten_grid_, self.whiten_curve_ = whitenings, np.array(scores)
            self._warn_of_whitening(int(counts.sum()), rows.shape[1])
        if len(best.curves) > 1:
            self.loo_curve_ = np.stack(best.curves)
            if self.time == "loo":  # each network has times of its own
                self.loo_grid_ = np.stack(best.grids)

    def _planned(
        self, options: Options, tried: Sequence[_Candidate], kinds: Sequence[Kind]
    ) -> tuple[Options, list[Method]]:
        """Return the options, and how to solve for each candidate: before the work."""
        judge = self._judge([one.training for one in tried])
        options = self._seen(options, judge)
        methods: list[Method] = []
        for one in tried:
            methods.append(self._method(options, one, kinds, several=len(tried) > 1))
        return options, methods

    def _solved(
        self,
        one: _Candidate,
        options: Options,
        method: Method,
        kinds: Sequence[Kind],
        given: NDArray[Any] | None,
    ) -> _Fitted:
        """Compute the kernels of a candidate, and solve with the best of them."""
        training = one.training
        with naming(training.given):
            kernel, options = self._tuned(one.kernel, training, options)
        stores = None
        if isinstance(kernel, FittedKernel):
            storage: dict[str, Any] = {}
            if self.store is not None:
                stores = Stores.of(self.store, kernel, kinds)
                if method == "tiled":
                    stores.check_room(kernel, kinds)
                storage = self._storage(stores.kernel)
                options = replace(options, store=stores.folder)
            compute = partial(kernel.gram, kinds, progress=self.progress, **storage)
            with naming(training.given):
                matrices: list[list[Any]] = patiently(compute)
        else:
            matrices = [[given]]
        best, chosen = 0, None
        curves: list[FloatArray] = []
        grids: list[FloatArray] = []
        for index, k in enumerate(matrices[0]):
            nearest = find_nearest(k)  # before k is overwritten
            tried = patiently(partial(regress, k, training, options, method))
            curves.append(tried.curve)
            grids.append(tried.grid)
            if chosen is None or tried.score > chosen.score:
                solution = doubted(tried.solution, nearest, kernel.chosen(index), training)
                best, chosen = index, replace(tried, solution=solution)
        assert chosen is not None
        # What the kernel of new samples depends on is kept, so that set_params cannot change it
        # without a new fit.
        nngp = matrices[1][best] if len(matrices) > 1 else None
        return _Fitted(kernel.chosen(best), training, chosen, nngp, stores, curves, grids)

    def _judge(self, trainings: Sequence[Training]) -> Judge:
        """Return how predictions of left-out samples are scored."""
        return Judge("squared")

    def _seen(self, options: Options, judge: Judge) -> Options:
        """Return options without a choice that nothing could be judged by."""
        ridge: Any = 0.0 if judge.blind and options.ridge == "loo" else options.ridge
        time: Any = np.inf if judge.blind and options.time == "loo" else options.time
        return replace(options, ridge=ridge, time=time, judge=judge)

    def _tuned(
        self, kernel: FittedKernel | PrecomputedKernel, training: Training, options: Options
    ) -> tuple[FittedKernel | PrecomputedKernel, Options]:
        """Return the kernel and the options to fit with, after a search for better ones."""
        return kernel, options

    def _warn_of_choice(self, options: Options, chosen: Regression) -> None:
        name = "ridge" if options.ridge == "loo" else "time"
        if getattr(options, name) != "loo":
            return
        grid, curve = chosen.grid, chosen.curve
        if name == "time":  # the longest shrinks least
            grid, curve = grid[::-1], curve[::-1]
        if message := edge(grid, curve, options.judge.scoring):
            value = grid[np.nanargmax(curve)]
            warn_caller(
                f"{name}='loo' chose {value:.1e}, on the edge of the grid from {grid.min():.1e} to "
                f"{grid.max():.1e}: {message}. Look at loo_curve_, or give {name} a number"
            )

    def _warn_of_whitening(self, n: int, d: int) -> None:
        """Warn where leave-one-out has seen little that the whitening has not."""
        if self.whiten_ is not None and n < d / 2:
            warn_caller(
                f"whiten='loo' chose {self.whiten_:g}: the whitening is that of all {n:,} images, "
                "and what is left out of the regression is not left out of it; of fewer images "
                f"than half their {d:,} values its scores are too good. Compare with whiten=None "
                "on images that are not among these"
            )

    def _storage(self, path: str) -> dict[str, Any]:
        return {"store": path, "memory": self.memory, "executor": self.executor}

    def _method(
        self,
        options: Options,
        one: _Candidate,
        kinds: Sequence[Kind],
        *,
        several: bool,
    ) -> Method:
        """Return how to solve, or say why not, before the kernel is computed."""
        training, kernel = one.training, one.kernel
        m, stored = training.first.size, self.store is not None and not kernel.averaged
        held = kernel.bytes_held(m, kinds, stored=stored)
        if several:  # the best of those before, with its factor
            held += 8 * m * m + (held if len(kinds) > 1 else 0)
        return solver_for(
            m,
            options,
            targets=training.targets.shape[1],
            weights=training.weights,
            several=several or kernel.choices > 1,
            stored=stored,
            held=held,
            card=isinstance(kernel, FittedKernel) and kernel.backend == "cuda",
        )

    def _keep(
        self,
        kernel: FittedKernel | PrecomputedKernel,
        training: Training,
        regression: Regression,
        nngp: Any,
        stores: Stores | None,
        *,
        flat: bool,
    ) -> None:
        """Set what a fit has found."""
        self._fitted, self._training, self._flat = kernel, training, flat
        self._nngp_fit, self._stores, self._familiar = nngp, stores, Familiar()
        self.sample_names_ = None
        self.dual_coef_ = self._shaped(np.asfortranarray(regression.solution.value))
        self.solution_ = replace(regression.solution, value=self.dual_coef_)
        self.loo_grid_, self.loo_curve_ = regression.grid, regression.curve
        left_out = regression.left_out
        if left_out is not None:
            outputs = self._in_units(training.at_samples(left_out))
            left_out = self._shaped(training.among_given(outputs))
        self.loo_predictions_ = left_out

    # --- more samples -----------------------------------------------------------------------------

    def _partial_fit(
        self,
        rows: NDArray[Any],
        encode: Callable[[NDArray[np.bool_]], FloatArray],
        sample_weight: ArrayLike | None,
        found: ImageShape | None,
    ) -> None:
        """Add checked rows; `encode` returns the targets of all samples, old ones first."""
        factor = self._factor
        if factor is None:
            raise ValueError(
                "partial_fit extends a factor, and this model was solved by conjugate gradients: "
                "fit with solver='cholesky'"
            )
        self._check_shape(found)
        weight, counts = check_weights(sample_weight, rows)
        old = self._kernel
        weightless = factor.location is not None and factor.ridge_absolute > 0
        before = self._training
        places = np.r_[before.given, len(before.counts) + np.flatnonzero(counts)]
        kernel, added = old.grown(old.read(rows[counts]), multiples=not weightless, given=places)
        targets = encode(counts)
        check_targets(targets, len(targets))
        training = before.grown(added, targets, weight, counts)
        kinds: tuple[Kind, ...] = (old.kind,)
        if self._nngp_fit is not None:
            kinds = (old.kind, "nngp")
        earlier, nngp = self._stores, self._nngp_fit
        stores = None
        if earlier is not None and not earlier.several:
            stores = earlier.grown(kernel, kinds)
            reuse = None if stores == earlier else earlier.kernel
            if factor.location is not None:
                stores.check_room(kernel, kinds)
            storage = self._storage(stores.kernel) | {"reuse": reuse}
            compute = partial(kernel.gram, kinds, progress=self.progress, **storage)
            with naming(training.given):
                k, *more = (part[0] for part in patiently(compute))
            nngp = more[0] if more else None
        elif factor.location is not None:
            raise ValueError(
                "partial_fit with a factor in a store is for one network: fit with the one that "
                "was chosen, net_"
            )
        else:
            m = len(old.samples)
            with naming(training.given[m:]):
                columns, corner = old.border(kernel.samples[m:], kinds)
            k = Bordered(factor.gram, columns[0], corner[0])
            if nngp is not None:
                nngp = np.block([[np.asarray(nngp), columns[1]], [columns[1].T, corner[1]]])
        regression = patiently(
            partial(
                grow,
                factor,
                k,
                training,
                self._judge([training]),
                store=None if stores is None else stores.folder,
                memory=self.memory,
                threads=self.threads,
            )
        )
        solution = doubted(regression.solution, find_nearest(k), kernel, training)
        warn(solution)
        regression = replace(regression, solution=solution)
        self._keep(kernel, training, regression, nngp, stores, flat=self._flat)
        self._signed = self._signed or bool((rows[counts] < 0).any())

    # --- prediction -------------------------------------------------------------------------------

    @property
    def _kernel(self) -> FittedKernel:
        """The kernel of networks, computed as the parameters say now."""
        kernel = self._fitted
        assert isinstance(kernel, FittedKernel)
        return kernel.computed_by(self.backend, self.threads)

    def _read(self, X: Any) -> NDArray[Any]:
        """Return new samples as the kernel takes them, checked against those of fit."""
        check_is_fitted(self, "dual_coef_")
        rows, found = split_shape(X, self.channels, self._net_of_samples(reset=False))
        self._check_shape(found)
        if isinstance(self._fitted, PrecomputedKernel):
            self._check_orientation(np.shape(rows))
        rows = validate_data(self, rows, reset=False, dtype=SAMPLE_DTYPES)
        samples = self._fitted.read(rows)
        if isinstance(self._fitted, FittedKernel):
            self._warn_of_far(samples)
        return samples

    def _net_of_samples(self, reset: bool) -> Any:
        """Return the networks that decide what three axes are: those to fit, or those of fit."""
        return self.net if reset else self._fitted.networks

    def _warn_of_far(self, samples: NDArray[Any]) -> None:
        """Warn of new samples that are unlike those of the training set."""
        fitted = self._kernel
        made = fitted.preparation
        typical = self._familiar.typical(lambda: made.comparable(fitted.samples), self._training)
        standardised = made.standardisation is not None
        found = typical.differences(made.comparable(samples), standardised=standardised)
        if found:
            units = "bring X to the units of the training samples, if they differ"
            if fitted.shape is not None and made.normalise is None and made.zca is None:
                units += ", or fit with normalise='image' to leave brightness out"
            warn_caller(
                f"X lies far from the training samples: {found}. Outputs and probabilities mean "
                f"little there: {units}"
            )

    def _check_orientation(self, shape: tuple[int, ...]) -> None:
        """Refuse a kernel that has no column for each training sample."""
        n = self.n_features_in_
        if len(shape) != 2 or shape[1] == n:
            return
        remedy = f"compute it as wl.kernel(net, x_new, x_fit), x_fit the {n} samples of fit"
        if shape[0] == n:
            remedy = "this looks like its transpose, give X.T"
        raise ValueError(
            "with kernel='precomputed', X must be the kernel between new samples, one a row, and "
            f"the {n} training samples, one a column, shape (m, {n}), got {shape}: {remedy}"
        )

    def _check_shape(self, found: ImageShape | None) -> None:
        shape = self.image_shape_
        if found is not None and found != shape:
            fitted = f"rows of {self.n_features_in_} values" if shape is None else f"images {shape}"
            raise ValueError(
                f"X must hold samples like those of fit, {fitted}, got images {found}: resize or "
                "reshape them, or fit again"
            )

    def _blocks(self, samples: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield new samples in blocks, as many as have a kernel at a time."""
        step = block_size(self._training.first.size)
        for start in range(0, len(samples), step):
            yield slice(start, start + step), samples[start : start + step]

    def _crossed(self, samples: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the kernel between new and training samples, a block of new ones at a time."""
        kernel = self._fitted.computed_by(self.backend, self.threads)
        for block, part in self._blocks(samples):
            with naming(np.arange(len(samples))[block]):
                made = kernel.cross(part)[0]
            yield block, made

    def _outputs(self, X: Any, coefficients: FloatArray | None = None) -> FloatArray:
        """Return ``kernel(X, x_fit_) @ coefficients``, (n, ...); None: ``dual_coef_``."""
        samples = self._read(X)
        chosen = self.dual_coef_ if coefficients is None else coefficients
        outputs = np.empty((len(samples), *chosen.shape[1:]))
        for block, k in self._crossed(samples):
            np.matmul(k, chosen, out=outputs[block])
        return outputs

    def _staged(self, X: Any, times: ArrayLike) -> Generator[FloatArray]:
        """Yield the outputs at some times of training, all from one pass over the kernel."""
        check_is_fitted(self, "dual_coef_")
        grid = [check_time(time) for time in np.ravel(np.asarray(times, np.float64)).tolist()]
        try:
            if self._factor is None:
                raise Unavailable("there is no factor")
            spectrum = self._factor.spectrum()
        except Unavailable as error:
            raise ValueError(
                "this needs the eigenvectors of the kernel in memory, which a model with a stored "
                "factor, or one of solver='cg', has not: fit fewer samples"
            ) from error
        means, ridge = self._training.means, self.solution_.statistics.ridge_absolute
        values = [spectrum.solve(means, ridge, time) for time in grid]
        outputs = self._outputs(X, np.concatenate(values, axis=1))
        width = means.shape[1]
        for index in range(len(grid)):
            yield self._shaped(outputs[:, index * width : (index + 1) * width])

    def _influence(
        self,
        X: Any,
        columns: Callable[[FloatArray], Any],
        n_largest: int,
        measure: Measure,
    ) -> Influence:
        """Return the largest weights, or terms; `columns` picks an output for each sample."""
        if measure not in ("weights", "terms"):
            raise ValueError(f'measure must be "weights" or "terms", got {measure!r}: choose one')
        samples = self._read(X)
        factor = self._factor
        if measure == "weights" and factor is None:
            raise ValueError(
                "weights of training samples need a factor, which is not there after solver='cg' "
                "or in a saved model whose factor stays in the store: use measure='terms'"
            )
        m = self._training.first.size
        if not n_largest >= 1:
            raise ValueError(f"n_largest must be at least 1, got {n_largest}")
        top = min(int(n_largest), m)
        alpha, places = self.dual_coef_.reshape(m, -1), self._training.given
        indices = np.empty((len(samples), top), np.int64)
        weights = np.empty((len(samples), top))
        for block, part in self._crossed(samples):
            k = np.asarray(part, np.float64)
            if measure == "terms" or factor is None:
                share = k * alpha.T[columns(k @ alpha)]
            else:
                share = factor.solve(k.T).T
            order = np.argsort(-np.abs(share), axis=1, kind="stable")[:, :top]
            indices[block] = places[order]
            weights[block] = np.take_along_axis(share, order, axis=1)
        names = None
        if self.sample_names_ is not None:
            names = np.array(self.sample_names_, np.str_)[indices]
        return Influence(indices, weights, names)


def block_size(m: int) -> int:
    """Return how many new samples have a kernel with m training samples at a time."""
    return max(1, _BLOCK_ENTRIES // m)


def can_grow(estimator: NTKEstimator) -> bool:
    """Whether there is `partial_fit`: it computes kernels, and extends a factor."""
    return estimator.kernel != "precomputed" and estimator.solver != "cg"


def leaves_out(estimator: NTKEstimator) -> bool:
    """Whether there are leave-one-out predictions, as `predict_proba` needs.

    With solver="auto" it is known after a fit: conjugate gradients, which have none, need no room
    for a factor.
    """
    return estimator.solver != "cg" and getattr(estimator, "loo_predictions_", ()) is not None
