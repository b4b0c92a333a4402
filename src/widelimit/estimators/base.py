"""What the classifier and the regressor share: samples in, outputs of the regression out."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgWarning  # pyright: ignore[reportMissingTypeStubs]
from sklearn import base, preprocessing  # pyright: ignore[reportMissingTypeStubs]
from sklearn.utils import metaestimators, validation  # pyright: ignore[reportMissingTypeStubs]

from widelimit.architectures import cntk_gap, named_network, ntk_dense
from widelimit.arrays import FloatArray
from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.estimators.regression import (
    FACTOR,
    Options,
    Regression,
    Solver,
    explain,
    grow,
    join,
    regress,
    solver_for,
)
from widelimit.estimators.samples import (
    ImageShape,
    Training,
    resolve_shape,
    split_shape,
)
from widelimit.machine import parse_memory
from widelimit.matrices.inputs import number_samples
from widelimit.matrices.kernel import kernel, kernel_diagonal
from widelimit.matrices.run import gram
from widelimit.network import Network
from widelimit.program import Kind
from widelimit.solvers import Bordered, Factor, Method, Solution, Status, Unavailable
from widelimit.solvers.checks import check_ridge, check_targets
from widelimit.solvers.spectrum import check_time

__all__ = [
    "SAMPLE_DTYPES",
    "Influence",
    "NTKEstimator",
    "can_grow",
    "check_is_fitted",
    "leaves_out",
    "only_if",
    "validate_data",
]

# scikit-learn has no types.
_validation = cast("Any", validation)
check_is_fitted: Callable[[Any, str], None] = _validation.check_is_fitted
_check_sample_weight: Callable[..., FloatArray] = _validation._check_sample_weight
validate_data: Callable[..., Any] = _validation.validate_data
only_if: Callable[..., Any] = cast("Any", metaestimators).available_if
_StandardScaler: Callable[[], Any] = cast("Any", preprocessing).StandardScaler
_clone: Callable[..., Any] = cast("Any", base).clone

# Dtypes of samples that the kernel reads as they are; all others become float64.
SAMPLE_DTYPES = [np.float64, np.float32, np.uint8]
# Entries of the kernel between new and training samples that exist at a time (256 MiB in float64).
_BLOCK_ENTRIES = 2**25

Net = Network | str | Sequence[Network | str] | None


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """The training samples that a prediction owes most to.

    Parameters
    ----------
    indices : ndarray of int64, shape (n, m)
        Places of training samples in the X of `fit`, those of largest ``|weight|`` first. Of equal
        samples the first.
    weights : ndarray of float64, shape (n, m)
        ``alpha_j k(x, x_j)``: what training sample j adds to the output. All of them sum to it.
    """

    indices: NDArray[np.int64]
    weights: FloatArray


class NTKEstimator(base.BaseEstimator):
    """Kernel regression; what it is fitted to is up to the classifier and the regressor."""

    n_features_in_: int
    net_: Network | tuple[Network, ...] | None
    kind_: Kind
    dtype_: Dtype
    image_shape_: ImageShape | None
    standardisation_: tuple[FloatArray, FloatArray] | None
    x_fit_: NDArray[Any] | None
    _columns: NDArray[np.intp] | None
    dual_coef_: FloatArray
    solution_: Solution
    ridge_: float
    time_: float
    loo_score_: float
    loo_curve_: FloatArray
    loo_grid_: FloatArray
    loo_predictions_: FloatArray | None
    _factor: Factor | None
    _training: Training
    _nngp_fit: Any
    _folder: str | os.PathLike[str] | None
    _stores: tuple[str, str] | None  # paths of the kernel and, if it is stored, the factor

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
        standardise: bool | None = None,
        image_shape: Sequence[int] | None = None,
        dtype: Dtype | None = None,
        backend: BackendName = "auto",
        threads: int | None = None,
        solver: Solver = "auto",
        store: str | os.PathLike[str] | None = None,
        memory: int | str | None = None,
        executor: Any = None,
        verbose: bool = False,
    ) -> None:
        self.net = net
        self.kernel = kernel
        self.kind: Kind = kind
        self.ridge = ridge
        self.combine = combine
        self.time = time
        self.standardise = standardise
        self.image_shape = image_shape
        self.dtype: Dtype | None = dtype
        self.backend: BackendName = backend
        self.threads = threads
        self.solver: Solver = solver
        self.store = store
        self.memory = memory
        self.executor = executor
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = cast("Any", super()).__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags

    def __sklearn_clone__(self) -> Self:
        """Copy parameters, but share the executor: it is a connection, and cannot be copied."""
        parameters = cast("dict[str, Any]", self.get_params(deep=False))
        executor = parameters.pop("executor")
        copies = {name: _clone(value, safe=False) for name, value in parameters.items()}
        cloned = type(self)(**copies, executor=executor)
        for name in ("_metadata_request", "_sklearn_output_config"):
            if name in self.__dict__:
                shared = {id(executor): executor}
                setattr(cloned, name, copy.deepcopy(self.__dict__[name], shared))
        return cloned

    # --- fit ------------------------------------------------------------------------------------

    def _fit(
        self,
        rows: NDArray[Any],
        encode: Callable[[NDArray[np.bool_]], FloatArray],
        sample_weight: ArrayLike | None,
        found: ImageShape | None,
    ) -> None:
        """Fit checked rows (n, d) to the targets (n, t) that `encode` makes of those that count."""
        options = self._options()
        weight, counts = self._weigh(sample_weight, rows)
        networks, shape = self._resolve(rows, found)
        dtype: Dtype = self.dtype or (
            "float64" if all(net.is_dense for net in networks) else "float32"
        )
        several = len(networks) > 1 and self.combine == "best"
        targets = encode(counts)
        check_targets(targets, len(targets))
        x, standardisation = rows[counts], None
        if networks and self._standardises(shape):
            scaler = _StandardScaler().fit(x, sample_weight=weight)
            standardisation = scaler.mean_, scaler.scale_
        samples = _as_samples(x, shape, standardisation) if networks else None
        training = Training.of(samples, targets, weight)
        method = self._method(options, training, networks, dtype)
        if samples is None:  # precomputed
            matrices = [self._square(rows, counts)]
            extra, distinct = None, None
        else:
            distinct = samples
            if len(training.first) < len(samples):
                distinct = samples[training.first]
            matrices, extra = self._matrices(networks, distinct, dtype)
        curves: list[FloatArray] = []
        best, regression = 0, None
        for index, k in enumerate(matrices):
            if several and self.store is not None:  # each has a factor of its own
                own = join(self.store, networks[index].fingerprint[:16])
                options = replace(options, store=own)
            tried = regress(k, training, options, method)
            curves.append(tried.curve)
            if regression is None or tried.score > regression.score:
                best, regression = index, tried
        assert regression is not None
        _warn(regression.solution)
        # All at the end: a fit that fails leaves no half-fitted estimator. What the kernel of new
        # samples depends on is kept, so that set_params cannot change it without a new fit.
        if samples is None:
            self.net_ = None
        elif self.combine == "mean" and len(networks) > 1:
            self.net_ = tuple(networks)
        else:
            self.net_ = networks[best]
        self.kind_, self.dtype_ = self.kind, dtype
        self.image_shape_, self.standardisation_ = shape, standardisation
        self.x_fit_ = distinct
        self._columns = np.flatnonzero(counts) if samples is None else None
        self._nngp_fit = None if extra is None else extra[best]
        self._folder, self._stores = self.store, None
        if self.store is not None and len(networks) == 1:
            self._stores = join(self.store, "kernel.zarr"), join(self.store, FACTOR)
        self._keep(regression, training)
        self.loo_curve_ = np.stack(curves) if len(curves) > 1 else curves[0]

    def _method(
        self, options: Options, training: Training, networks: list[Network], dtype: Dtype
    ) -> Method:
        """Return how to solve, or say why not, before the kernel is computed."""
        m, several = training.first.size, len(networks) > 1
        averaged = several and self.combine == "mean"
        entries = 0
        if self.store is None or averaged:
            kinds = {self.kind, *self._extra_kinds}
            entries = m * m * len(kinds) * (len(networks) + averaged)
        return solver_for(
            m,
            options,
            targets=training.targets.shape[1],
            weights=training.weights,
            several=several and not averaged,
            stored=self.store is not None and not averaged,
            held=entries * np.dtype(dtype).itemsize,
        )

    def _keep(self, regression: Regression, training: Training) -> None:
        """Set what follows from coefficients."""
        self._factor, self._training = regression.factor, training
        self.dual_coef_ = self._shaped(regression.solution.value)
        self.solution_ = replace(regression.solution, value=self.dual_coef_)
        self.ridge_, self.time_ = regression.solution.statistics.ridge, regression.time
        self.loo_grid_, self.loo_curve_ = regression.grid, regression.curve
        self.loo_score_ = regression.score
        left_out = regression.left_out
        self.loo_predictions_ = None if left_out is None else self._shaped(left_out[training.place])

    def _shaped(self, values: FloatArray) -> FloatArray:
        """Return (n, t) values in the shape that users see."""
        return values

    def _options(self) -> Options:
        """Check the parameters that do not depend on samples."""
        for name, allowed in (
            ("kernel", ("network", "precomputed")),
            ("kind", ("ntk", "nngp")),
            ("combine", ("best", "mean")),
            ("solver", ("auto", "cholesky", "cg")),
        ):
            if getattr(self, name) not in allowed:
                words = " or ".join(f'"{word}"' for word in allowed)
                raise ValueError(f"{name} must be {words}, got {getattr(self, name)!r}: choose one")
        ridge = _number_or_loo("ridge", self.ridge, check_ridge)
        time = _number_or_loo("time", np.inf if self.time is None else self.time, check_time)
        if ridge == "loo" and time != np.inf:
            raise ValueError(
                "ridge='loo' is chosen for the end of training, got a time as well: give ridge a "
                "number, or leave time out"
            )
        if self.kernel == "precomputed" and (self.store is not None or self.executor is not None):
            raise ValueError("store and executor are for kernels of networks: leave them out")
        if self.memory is not None:
            parse_memory(self.memory)
        if self.executor is not None and self.store is None:
            raise ValueError("executor needs store, a folder that all of its workers see")
        return Options(ridge, time, self.solver, self.store, self.memory, self.threads)

    def _weigh(
        self, sample_weight: ArrayLike | None, rows: NDArray[Any]
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Return the weights above 0, and which samples have one."""
        if sample_weight is None:
            return np.ones(len(rows)), np.ones(len(rows), np.bool_)
        weight = _check_sample_weight(sample_weight, rows, dtype=np.float64)
        if weight.min() < 0:
            raise ValueError(
                f"sample_weight must be 0 or more, got {weight.min():g} for sample "
                f"{int(weight.argmin())}: a sample of weight w counts as w equal ones"
            )
        counts = weight > 0
        if not counts.any():
            raise ValueError("sample_weight must be above 0 for some sample, got only zeros")
        return weight[counts], counts

    def _resolve(
        self, rows: NDArray[Any], found: ImageShape | None
    ) -> tuple[list[Network], ImageShape | None]:
        """Return the networks, none if the kernel is precomputed, and the shape of an image."""
        n_features = rows.shape[1]
        if self.kernel == "precomputed":
            if self.net is not None or found is not None:
                raise ValueError(
                    "with kernel='precomputed', X is the Gram matrix and net must be None, got "
                    f"net={self.net!r} and {'images' if found else 'rows'}"
                )
            return [], None
        shape = resolve_shape(self.image_shape, found, n_features)
        if self.net is None:
            return [ntk_dense(3) if shape is None else cntk_gap(depth=11)], shape
        listed = isinstance(self.net, Sequence) and not isinstance(self.net, str)
        entries: list[Any] = list(cast("Any", self.net)) if listed else [self.net]
        networks = [named_network(net) if isinstance(net, str) else net for net in entries]
        for net in networks:
            if not isinstance(net, Network):
                raise TypeError(
                    f"net must be a Network, the name of a preset, a list of these, or None, got "
                    f'{net!r}: use wl.cntk_gap(), "cntk-gap-11" or wl.Network([...])'
                )
            if shape is None and not net.is_dense:
                raise ValueError(
                    f"net ({net}) reads images, but X holds rows of {n_features} values: set "
                    "image_shape=(h, w, c), or give X of shape (n, h, w, c)"
                )
        if not networks:
            raise ValueError("net must be a Network or a non-empty list of them, got an empty list")
        return networks, shape

    def _standardises(self, shape: ImageShape | None) -> bool:
        if self.standardise is None:
            return self.net is None and shape is None
        if not isinstance(self.standardise, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"standardise must be True, False or None, got {self.standardise!r}")
        return self.standardise

    def _square(self, rows: NDArray[Any], counts: NDArray[np.bool_]) -> NDArray[Any]:
        """Return the precomputed matrix of the samples that count."""
        if rows.shape[0] != rows.shape[1]:
            raise ValueError(
                "with kernel='precomputed', X must be the square Gram matrix of the training "
                f"samples, got shape {rows.shape}: compute it as wl.kernel(net, x)"
            )
        return np.array(rows[np.ix_(counts, counts)])

    def _matrices(
        self, networks: list[Network], samples: NDArray[Any], dtype: Dtype
    ) -> tuple[list[Any], list[Any] | None]:
        """Return the Gram matrices to regress with, and those of the extra kinds."""
        kinds: list[Kind] = list(dict.fromkeys((self.kind, *self._extra_kinds)))
        path = None if self.store is None else join(self.store, "kernel.zarr")
        made = self._compute(networks, samples, None, kinds, dtype, path, verbose=self.verbose)
        by_kind: list[list[Any]] = []
        for part in made:
            matrices: list[Any] = list(part) if len(networks) > 1 else [part]
            if self.combine == "mean" and len(networks) > 1:
                matrices = [np.mean([np.asarray(k) for k in matrices], axis=0)]
            by_kind.append(matrices)
        return by_kind[0], by_kind[1] if len(kinds) > 1 else None

    def _compute(
        self,
        networks: Sequence[Network],
        x1: NDArray[Any],
        x2: NDArray[Any] | None,
        kinds: Sequence[Kind],
        dtype: Dtype,
        store: str | None = None,
        reuse: str | None = None,
        *,
        verbose: bool = False,
    ) -> list[Any]:
        """Return kernels by kind, in memory or in a store; those of several networks together."""
        # One network or one kind is no axis of the result, nor of the store.
        net: Any = list(networks) if len(networks) > 1 else networks[0]
        kind: Any = tuple(kinds) if len(kinds) > 1 else kinds[0]
        options: dict[str, Any] = {
            "kind": kind,
            "backend": self.backend,
            "dtype": dtype,
            "threads": self.threads,
            **({"progress": True} if verbose else {}),
        }
        if store is None:
            made = cast("Any", kernel(net, x1, x2, **options))
        else:
            made = gram(
                net,
                x1,
                x2,
                **options,
                store=store,
                reuse=reuse,
                memory=self.memory,
                executor=self.executor,
            )
        return list(made) if len(kinds) > 1 else [made]

    # --- more samples -----------------------------------------------------------------------------

    def _partial_fit(
        self,
        rows: NDArray[Any],
        encode: Callable[[NDArray[np.bool_]], FloatArray],
        sample_weight: ArrayLike | None,
        found: ImageShape | None,
    ) -> None:
        """Add checked rows; `encode` returns the targets of all samples, old ones first."""
        if self._factor is None:
            raise ValueError(
                "partial_fit extends a factor, and this model was solved by conjugate gradients: "
                "fit with solver='cholesky'"
            )
        self._check_shape(found)
        assert self.x_fit_ is not None
        weight, counts = self._weigh(sample_weight, rows)
        old = self._training
        new = _as_samples(rows[counts], self.image_shape_, self.standardisation_)
        together = np.concatenate([self.x_fit_, new])
        numbers = number_samples(together, None)[0]  # 0 to m - 1 are those of x_fit_
        place = np.concatenate([old.place, numbers[len(self.x_fit_) :]])
        training = Training(
            place,
            np.unique(place, return_index=True)[1],
            encode(counts),
            np.concatenate([old.sample_weight, weight]),
        )
        samples = together[np.unique(numbers, return_index=True)[1]]
        regression, nngp, stores = self._grow(samples, training)
        _warn(regression.solution)
        self.x_fit_, self._nngp_fit, self._stores = samples, nngp, stores
        self._keep(regression, training)

    def _grow(
        self, samples: NDArray[Any], training: Training
    ) -> tuple[Regression, Any, tuple[str, str] | None]:
        """Regress on distinct samples, of which the first are those of `x_fit_`."""
        factor = self._factor
        assert factor is not None
        m = factor.n
        kinds: tuple[Kind, ...] = (self.kind_,)
        if self._nngp_fit is not None:
            kinds = (self.kind_, "nngp")
        if self._stores is not None:
            return self._grow_stored(samples, training, kinds)
        if factor.location is not None:
            raise ValueError(
                "partial_fit with a factor in a store is for one network: fit with the one that "
                "was chosen, net_"
            )
        new, nngp = samples[m:], self._nngp_fit
        columns: list[NDArray[Any]] = [np.empty((m, 0))] * len(kinds)
        corner: list[NDArray[Any]] = [np.empty((0, 0))] * len(kinds)
        if len(new):
            columns = [k.T for k in self._kernel(new, samples[:m], kinds)]
            corner = self._kernel(new, None, kinds)
        if nngp is not None:
            nngp = np.block([[np.asarray(nngp), columns[1]], [columns[1].T, corner[1]]])
        k = Bordered(factor.gram, columns[0], corner[0])
        return grow(factor, k, training, memory=self.memory), nngp, None

    def _grow_stored(
        self, samples: NDArray[Any], training: Training, kinds: Sequence[Kind]
    ) -> tuple[Regression, Any, tuple[str, str]]:
        """Do the same with stores beside those that are there, which are kept."""
        assert self._stores is not None
        factor, n = self._factor, len(samples)
        assert factor is not None
        m, (k_path, factor_path), folder = factor.n, self._stores, self._folder
        assert folder is not None
        old = (k_path, factor_path)
        if n > m:
            k_path, factor_path = (
                join(folder, f"{name}-{n}.zarr") for name in ("kernel", "factor")
            )
        reuse = old if n > m else (None, None)
        made = self._compute(
            self._networks,
            samples,
            None,
            kinds,
            self.dtype_,
            k_path,
            reuse[0],
            verbose=self.verbose,
        )
        k, nngp = made[0], made[1] if len(made) > 1 else None
        regression = grow(
            factor, k, training, store=factor_path, memory=self.memory, threads=self.threads
        )
        return regression, nngp, (k_path, factor_path)

    # --- prediction -------------------------------------------------------------------------------

    def _read(self, X: Any) -> NDArray[Any]:
        """Return new samples as the kernel takes them, checked against those of fit."""
        check_is_fitted(self, "dual_coef_")
        rows, found = split_shape(X)
        self._check_shape(found)
        rows = validate_data(self, rows, reset=False, dtype=SAMPLE_DTYPES)
        if self._columns is not None:
            return rows[:, self._columns]
        return _as_samples(rows, self.image_shape_, self.standardisation_)

    def _check_shape(self, found: ImageShape | None) -> None:
        shape = self.image_shape_
        if found is not None and found != shape:
            fitted = f"rows of {self.n_features_in_} values" if shape is None else f"images {shape}"
            raise ValueError(
                f"X must hold samples like those of fit, {fitted}, got images {found}: resize or "
                "reshape them, or fit again"
            )

    def _kernel(
        self, x1: NDArray[Any], x2: NDArray[Any] | None, kinds: Sequence[Kind]
    ) -> list[NDArray[Any]]:
        """Return the kernel of the fitted network, or the mean of those of several, by kind."""
        made = self._compute(self._networks, x1, x2, kinds, self.dtype_)
        return [self._averaged(k) for k in made]

    @property
    def _networks(self) -> tuple[Network, ...]:
        """The fitted networks: one, or those whose kernels are averaged."""
        assert self.net_ is not None
        return self.net_ if isinstance(self.net_, tuple) else (self.net_,)

    def _averaged(self, k: NDArray[Any]) -> NDArray[Any]:
        """Return the mean over networks, if there are several."""
        return k.mean(axis=0) if isinstance(self.net_, tuple) else k

    def _cross(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return the kernel between new and training samples."""
        if self.net_ is None:
            return samples
        assert self.x_fit_ is not None
        return self._kernel(samples, self.x_fit_, (self.kind_,))[0]

    def _blocks(self, n: int) -> Iterator[slice]:
        """Yield slices of new samples whose kernel is computed at a time."""
        step = max(1, _BLOCK_ENTRIES // self._training.first.size)
        for start in range(0, n, step):
            yield slice(start, start + step)

    def _outputs(self, X: Any, coefficients: FloatArray | None = None) -> FloatArray:
        """Return ``kernel(X, x_fit_) @ coefficients``, (n, ...); None: ``dual_coef_``."""
        samples = self._read(X)
        chosen = self.dual_coef_ if coefficients is None else coefficients
        outputs = np.empty((len(samples), *chosen.shape[1:]))
        for block in self._blocks(len(samples)):
            k = self._cross(samples[block])
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

    def _influence(self, X: Any, columns: Callable[[FloatArray], Any], n_largest: int) -> Influence:
        """Return the largest ``alpha_j k(x, x_j)``; `columns` picks an output for each sample."""
        samples = self._read(X)
        m = self._training.first.size
        if not n_largest >= 1:
            raise ValueError(f"n_largest must be at least 1, got {n_largest}")
        top = min(int(n_largest), m)
        alpha = self.dual_coef_.reshape(m, -1)
        indices = np.empty((len(samples), top), np.int64)
        weights = np.empty((len(samples), top))
        for block in self._blocks(len(samples)):
            k = np.asarray(self._cross(samples[block]), np.float64)
            share = k * alpha.T[columns(k @ alpha)]
            order = np.argsort(-np.abs(share), axis=1, kind="stable")[:, :top]
            indices[block] = self._training.first[order]
            weights[block] = np.take_along_axis(share, order, axis=1)
        return Influence(indices, weights)

    @property
    def self_influence_(self) -> FloatArray:
        """Increase of the squared error of each training sample when it is left out, (n,).

        ``|y_i - f_without_i(x_i)|^2 - |y_i - f(x_i)|^2``, summed over targets: large for samples
        that the others contradict, such as mislabelled ones.
        """
        check_is_fitted(self, "dual_coef_")
        left_out = self._left_out("self_influence_")
        training = self._training
        fitted = training.means - self._penalty()
        before = ((training.targets - fitted[training.place]) ** 2).sum(axis=1)
        after = ((training.targets - left_out.reshape(training.targets.shape)) ** 2).sum(axis=1)
        return after - before

    def _left_out(self, what: str) -> FloatArray:
        if self.loo_predictions_ is None:
            raise AttributeError(
                f"{what} needs leave-one-out predictions, which solver='cg' has not: use "
                "solver='cholesky'"
            )
        return self.loo_predictions_

    def _penalty(self) -> FloatArray:
        """Return what outputs at the distinct training samples are short of their targets."""
        training, value = self._training, self.dual_coef_.reshape(self._training.first.size, -1)
        exact = np.isinf(self.time_) and self.solution_.status is not Status.RANK_DEFICIENT
        if self._factor is not None and not exact:
            return training.means - self._factor.multiply_gram(value)
        noise = self.solution_.statistics.ridge_absolute / training.weights
        return noise[:, None] * value

    def _prior(self, samples: NDArray[Any], diagonal: bool) -> FloatArray:
        """Return the covariance of outputs before training: NNGP, (n, n) or its diagonal."""
        if not diagonal:
            return np.asarray(self._kernel(samples, None, ("nngp",))[0], np.float64)
        made = kernel_diagonal(
            self._networks if isinstance(self.net_, tuple) else self._networks[0],
            samples,
            "nngp",
            backend=self.backend,
            dtype=self.dtype_,
            threads=self.threads,
        )
        return np.asarray(self._averaged(made), np.float64)


def _warn(solution: Solution) -> None:
    """Warn of coefficients that are not to be trusted, as from the line that called the package."""
    message = explain(solution)
    if not message:
        return
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals["__name__"].startswith("widelimit."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, LinAlgWarning, stacklevel=level)


def can_grow(estimator: NTKEstimator) -> bool:
    """Whether there is `partial_fit`: it computes kernels, and extends a factor."""
    return estimator.kernel != "precomputed" and estimator.solver != "cg"


def leaves_out(estimator: NTKEstimator) -> bool:
    """Whether there are leave-one-out predictions, as `predict_proba` needs."""
    return estimator.solver != "cg"


def _number_or_loo(name: str, value: Any, check: Callable[[object], float]) -> Any:
    if not isinstance(value, str):
        return check(value)
    if value != "loo":
        raise ValueError(f'{name} must be a number or "loo", got {value!r}')
    return value


def _as_samples(
    rows: NDArray[Any],
    shape: ImageShape | None,
    standardisation: tuple[FloatArray, FloatArray] | None,
) -> NDArray[Any]:
    if standardisation is not None:
        mean, scale = standardisation
        rows = (rows - mean) / scale
    return rows if shape is None else rows.reshape(-1, *shape)
