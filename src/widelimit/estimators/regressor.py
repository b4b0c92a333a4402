"""Regression, and the distribution of its predictions."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import base, preprocessing, utils  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.estimators.base import (
    SAMPLE_DTYPES,
    NTKEstimator,
    can_grow,
    check_is_fitted,
    only_if,
    validate_data,
)
from widelimit.estimators.checks import Net
from widelimit.estimators.fitted import FittedKernel, PrecomputedKernel
from widelimit.estimators.influence import Influence, Measure
from widelimit.estimators.marginal import Evidence, maximise
from widelimit.estimators.preparation import Normalise, Whiten
from widelimit.estimators.regression import Options, Solver
from widelimit.estimators.samples import Training, split_shape
from widelimit.estimators.spread import Spread
from widelimit.matrices.foreign import to_array
from widelimit.matrices.inputs import Channels
from widelimit.program import Kind
from widelimit.solvers.blas import run_interruptibly
from widelimit.solvers.checks import check_targets

__all__ = ["NTKRegressor"]

# scikit-learn has no types.
_check_random_state: Callable[[Any], Any] = cast("Any", utils).check_random_state
_StandardScaler: Callable[[], Any] = cast("Any", preprocessing).StandardScaler


class NTKRegressor(base.MultiOutputMixin, base.RegressorMixin, NTKEstimator):
    """Kernel regression with the kernel of an infinitely wide network.

    With the kernel k, training samples x and targets y the prediction for a sample z is

        ``f(z) = k(z, x) (k(x, x) + ridge trace(k(x, x))/n I)^-1 y``

    (Section 3, Eq. 5, of the paper; its ridge is 0), for targets that are shifted and scaled to
    mean 0 and variance 1; results are in units of y again. The paper's regression is on targets as
    they are, normalize_y=False: far from the data predictions are then drawn to 0, not to the mean
    of the targets, and ``y + constant`` is a different problem.

    `predict` also tells how far predictions spread: over networks from other initial weights, or,
    with kind="nngp", over functions of a Gaussian process.

    Parameters
    ----------
    net, kernel, kind, ridge, combine, time, normalise, whiten, standardise, image_shape, \
channels, dtype, backend, threads, solver, store, memory, executor, progress
        As for `NTKClassifier`.
    optimize : {"marginal"} or None
        "marginal": standard deviations of weights and biases, the same in all layers of net, and
        the ridge, unless it is given as a number above 0, are those of the largest
        `log_marginal_likelihood` (L-BFGS-B, from the best of three starts; derivatives are numeric,
        as those of `widelimit.NTK`). Found in `net_` and `ridge_`. For one network, at the end of
        training. Each of some 20 to 50 steps takes five times the kernel of the training samples,
        in float64, and ``3 n^3`` flops; memory is ``48 n^2`` bytes.
    normalize_y : bool
        Whether each target is shifted and scaled to mean 0 and variance 1 on the training samples,
        by their weights. `partial_fit` keeps mean and scale.

    Attributes
    ----------
    target_mean_, target_scale_ : ndarray of float64, shape (targets,)
        Of y; 0 and 1 with normalize_y=False. ``f(z) = target_mean_ + target_scale_ k(z, x_fit_)
        dual_coef_``.
    dual_coef_ : ndarray of float64, shape (m,) or (m, targets)
        The coefficients of the samples of `x_fit_`, for targets of mean 0 and variance 1.
    loo_predictions_ : ndarray of float64, shape (n,) or (n, targets)
        Prediction of each training sample by a regression without it, in units of y; NaN for those
        of weight 0. Mean and scale of y are those of all samples.
    loo_score_, loo_curve_, self_influence_
        As for `NTKClassifier`, for targets of variance 1: ``1 + loo_score_`` is R² of leaving one
        out.
    noise_variance_ : ndarray of float64, shape (targets,)
        Of y around the outputs of networks: mean square of the errors of `loo_predictions_`, less
        the variance that networks have there. Computed when it is first asked for, in ``4 n^3``
        flops. For a finite time, or a kernel that is singular, nothing is taken off.
    x_fit_, solution_, ridge_, time_, net_, loo_grid_, kind_, dtype_, image_shape_, \
standardisation_, whiten_, whiten_grid_, whiten_curve_, store_, n_features_in_, feature_names_in_
        As for `NTKClassifier`.

    See Also
    --------
    NTKClassifier : The same regression on encoded labels; its notes hold.

    Notes
    -----
    With kind="ntk" the NNGP kernel of the training samples is computed in the same pass and kept
    (``4 n^2`` or ``8 n^2`` bytes): it is the covariance before training.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> y = np.abs(x[:, 0]) - x[:, 1]
    >>> regressor = NTKRegressor().fit(x[:100], y[:100])
    >>> regressor.score(x[100:], y[100:]) > 0.98
    True
    """

    _extra_kinds: tuple[Kind, ...] = ("nngp",)
    target_mean_: FloatArray
    target_scale_: FloatArray

    def __init__(
        self,
        net: Net = None,
        *,
        kernel: Literal["network", "precomputed"] = "network",
        kind: Kind = "ntk",
        ridge: float | Literal["loo"] = 0.0,
        combine: Literal["best", "mean"] = "best",
        time: float | Literal["loo"] | None = None,
        optimize: Literal["marginal"] | None = None,
        normalize_y: bool = True,
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
        super().__init__(
            net,
            kernel=kernel,
            kind=kind,
            ridge=ridge,
            combine=combine,
            time=time,
            normalise=normalise,
            whiten=whiten,
            standardise=standardise,
            image_shape=image_shape,
            channels=channels,
            dtype=dtype,
            backend=backend,
            threads=threads,
            solver=solver,
            store=store,
            memory=memory,
            executor=executor,
            progress=progress,
        )
        self.normalize_y = normalize_y
        self.optimize: Literal["marginal"] | None = optimize

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the regression of the targets on the samples.

        Parameters
        ----------
        X, sample_weight
            As for `NTKClassifier.fit`.
        y : array-like of shape (n,) or (n, targets)
            Finite real targets, the largest of each column 0, or 1e-100 to 1e100 in size.

        Returns
        -------
        NTKRegressor
            The estimator itself.

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError, MemoryError
            As for `NTKClassifier.fit`.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            As for `NTKClassifier.fit`.
        """
        if self.normalize_y not in (True, False):
            raise TypeError(f"normalize_y must be True or False, got {self.normalize_y!r}")
        with self._all_or_nothing():
            rows, targets, shape = self._checked(X, y, reset=True)
            columns = targets.reshape(len(targets), -1)

            def encode(counts: NDArray[np.bool_], weight: FloatArray) -> FloatArray:
                given = columns[counts]
                check_targets(given, len(given))
                t = given.shape[1]
                self.target_mean_, self.target_scale_ = np.zeros(t), np.ones(t)
                if self.normalize_y:
                    found = _StandardScaler().fit(given, sample_weight=weight)
                    self.target_mean_, self.target_scale_ = found.mean_, found.scale_
                return self._normalised(given)

            self._fit(rows, encode, sample_weight, shape, flat=targets.ndim == 1)
        return self

    @only_if(can_grow)
    def partial_fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Add samples: only their part of the kernel, and of its factor, is computed.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        NTKRegressor
            The estimator itself; the first call is a `fit`.

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError
            As for `fit`; the estimator is then as it was before.

        Notes
        -----
        As for `NTKClassifier.partial_fit`: network, time and absolute ridge stay.
        """
        if not hasattr(self, "dual_coef_"):
            return self.fit(X, y, sample_weight)
        rows, targets, shape = self._checked(X, y, reset=False)
        old = self._training.targets
        new = targets.reshape(len(targets), -1)
        if new.shape[1] != old.shape[1]:
            raise ValueError(
                f"y must have {old.shape[1]} target(s) as in the first fit, got {new.shape[1]}"
            )

        def encode(counts: NDArray[np.bool_]) -> FloatArray:
            return np.concatenate([old, self._normalised(new[counts])])

        self._partial_fit(rows, encode, sample_weight, shape)
        return self

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Any, Any, Any]:
        rows, shape = split_shape(X, self.channels, self._net_of_samples(reset))
        rows, targets = validate_data(
            self,
            rows,
            to_array(y, "y"),
            dtype=SAMPLE_DTYPES,
            multi_output=True,
            y_numeric=True,
            reset=reset,
        )
        return rows, np.asarray(targets, np.float64), shape

    def _normalised(self, targets: FloatArray) -> FloatArray:
        return (targets - self.target_mean_) / self.target_scale_

    def _in_units(self, outputs: FloatArray) -> FloatArray:
        return outputs * self.target_scale_ + self.target_mean_

    def _keep(self, *fitted: Any, **options: Any) -> None:
        super()._keep(*fitted, **options)
        self.__dict__.pop("_noise", None)

    def predict(
        self,
        X: Any,
        return_std: bool = False,
        return_cov: bool = False,
        noise: bool = False,
        k_self: ArrayLike | None = None,
    ) -> Any:
        """Return predictions, and how far networks, or functions, would spread around them.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, h, w, c), or (n, n_fit) with kernel="precomputed"
            Samples like those of `fit`. Images are accepted if `fit` saw images, whether as
            (n, h, w, c) or as rows.
        return_std : bool
            Whether to return standard deviations, too.
        return_cov : bool
            Whether to return the covariance of all predictions, too. Not both.
        noise : bool
            Whether these are of new targets, not of outputs: `noise_variance_` is added. A band of
            1.96 std on either side then holds about 95 % of the targets.
        k_self : array-like of shape (n,) or (n, n), or None
            With kernel="precomputed" and kind="nngp", for return_std or return_cov: the kernel of
            the samples with themselves. Its diagonal is enough for return_std:
            ``wl.kernel(net, x, kind="nngp")`` for x of shape (n, ...) has it. In all other cases it
            is computed, and must be None.

        Returns
        -------
        mean : ndarray of float64, shape (n,) or (n, targets)
        std : ndarray of float64, shape (n,) or (n, targets)
            If return_std. In units of y.
        cov : ndarray of float64, shape (n, n) or (n, n, targets)
            If return_cov. In units of y squared.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If the samples do not have the shape of those of `fit`, or are not finite; if both
            are asked for, or noise or k_self without either; or for a covariance where solver="cg",
            or the kernel is precomputed and kind="ntk", whose NNGP kernel is not there.

        Notes
        -----
        In either case the distribution of the outputs of infinitely many networks, each from its
        own random initial weights, trained by gradient flow on the targets of variance 1, and
        ``target_scale_`` squared times what follows. K is the NNGP kernel, the covariance
        of their outputs before training, A the matrix that takes targets to coefficients: at time
        0 it is 0, at the end of training ``(k + r I)^-1``, k the kernel and r the absolute ridge.

        kind="ntk": all layers are trained, each network on the targets as they are (Lee et al.,
        *Wide neural networks of any depth evolve as linear models under gradient descent*, 2019,
        Eq. 16). With ``W = Theta(x, X) A``,

            ``K(x, x') - W K(X, x') - K(x, X) W'^T + W K(X, X) W'^T``.

        This is no posterior, as that paper says, not even at the end: all that a ridge does is to
        hold networks back.

        kind="nngp": the last layer alone is trained, from its initial weights, with the penalty
        ``r |theta - theta_0|^2``, each network on targets with a noise of variance r of its own.
        With ``W = K(x, X) A``,

            ``K(x, x') - W K(X, x') - K(x, X) W'^T + W (K(X, X) + r I) W'^T``.

        At time 0 this is K, and at the end of training it is the posterior of the Gaussian process
        with covariance K and noise r,

            ``K(x, x') - K(x, X) (K(X, X) + r I)^-1 K(X, x')``

        (Matthews et al., *Sample-then-optimize posterior sampling for Bayesian linear models*,
        2017). Without a ridge it is Eq. 16 with ``Theta = K`` at all times. With weights W of
        samples r I is ``r W^-1``.

        All are differences: in float32 (networks with convolutions, unless dtype="float64") a
        standard deviation below about 1e-3 of that before training is rounding.
        """
        if return_std and return_cov:
            raise ValueError("return_std and return_cov must not both be True: ask for one")
        if not (return_std or return_cov):
            if noise:
                raise ValueError("noise is for return_std or return_cov: ask for one of them")
            if k_self is not None:
                raise ValueError("k_self is for return_std or return_cov: ask for one of them")
            return self._shaped(self._in_units(self._columns(self._outputs(X))))
        samples = self._read(X)
        spread = self._spread(self._checked_own(k_self, len(samples), return_cov))
        outputs = np.empty((len(samples), self._training.targets.shape[1]))
        alpha = self._columns(self.dual_coef_)
        scale = self.target_scale_
        if return_cov:
            k, explained = spread.explained(samples, diagonal=False)
            np.matmul(k, alpha, out=outputs)
            cov = spread.kernel.prior(samples, diagonal=False) - explained
            cov = ((cov + cov.T) / 2)[..., None] * scale**2
            if noise:
                cov += np.eye(len(samples))[..., None] * self.noise_variance_
            return self._shaped(self._in_units(outputs)), cov[..., 0] if self._flat else cov
        variance = spread.kernel.prior(samples, diagonal=True)
        for block, part in self._blocks(samples):
            k, explained = spread.explained(part, diagonal=True)
            np.matmul(k, alpha, out=outputs[block])
            variance[block] -= explained
        # Rounding may leave less than nothing where all is known.
        variances = np.maximum(variance, 0.0)[:, None] * scale**2
        if noise:
            variances += self.noise_variance_
        return self._shaped(self._in_units(outputs)), self._shaped(np.sqrt(variances))

    def _tuned(
        self, kernel: FittedKernel | PrecomputedKernel, training: Training, options: Options
    ) -> tuple[FittedKernel | PrecomputedKernel, Options]:
        if self.optimize is None or not isinstance(kernel, FittedKernel):
            return kernel, options
        assert options.ridge != "loo"
        found = maximise(Evidence(kernel, training, options.ridge or None), self.memory)
        tuned = replace(kernel, networks=(found.network,))
        return tuned, replace(options, ridge=found.ridge)

    def _columns(self, values: FloatArray) -> FloatArray:
        """Return (n, targets), whatever users see."""
        return values.reshape(len(values), -1)

    def _checked_own(self, k_self: ArrayLike | None, n: int, full: bool) -> FloatArray | None:
        """Return the kernel of n new samples with themselves, if that is to be given."""
        shapes = f"({n}, {n})" if full else f"({n},) or ({n}, {n})"
        if isinstance(self._fitted, FittedKernel):
            if k_self is not None:
                raise ValueError("k_self is for kernel='precomputed', here it is computed")
            return None
        self._spread()  # or say why there is none
        if k_self is None:
            raise ValueError(
                "with kernel='precomputed' a covariance needs the kernel of the new samples with "
                f"themselves: give it as k_self, shape {shapes}"
            )
        own = np.asarray(k_self, np.float64)
        if own.shape != (n, n) and (full or own.shape != (n,)):
            raise ValueError(
                f"k_self must be the kernel of the {n} rows of X with themselves, shape {shapes}, "
                f"got {own.shape}"
            )
        values = own.diagonal() if own.ndim == 2 else own
        if not np.isfinite(own).all() or values.min() < 0:
            raise ValueError("k_self must be finite, with a diagonal of 0 or more")
        return own

    def _spread(self, own: FloatArray | None = None) -> Spread:
        if self._factor is None:
            raise ValueError(
                "a covariance needs a factor: it is not there with solver='cg', nor in a saved "
                "model whose factor stays in the store"
            )
        if isinstance(self._fitted, PrecomputedKernel):
            if self.kind_ == "ntk":
                raise ValueError(
                    "a covariance with kind='ntk' needs NNGP kernels beside the one that is given, "
                    "and kernel='precomputed' has no place for them: give the network instead, or "
                    "fit the NNGP kernel with kind='nngp'"
                )
            return Spread(replace(self._fitted, own=own), self._factor, None)
        if self.kind_ == "ntk" and self._nngp_fit is None:
            raise ValueError(
                "a covariance needs the NNGP kernel of the training samples, which is not in this "
                "model: it stays in the store of the fit"
            )
        return Spread(self._kernel, self._factor, self._nngp_fit)

    @property
    def noise_variance_(self) -> FloatArray:
        """Variance of targets around the outputs of networks, (targets,), in units of y squared."""
        check_is_fitted(self, "dual_coef_")
        if "_noise" not in self.__dict__:
            training, spread = self._training, self._spread()
            left_out = self._columns(self._left_out("noise_variance_"))
            squares = (training.targets - self._normalised(left_out)) ** 2
            networks = spread.left_out(training)
            if networks is not None:
                squares -= networks[:, None]
            means = np.average(squares, axis=0, weights=training.sample_weight)
            self._noise = self.target_scale_**2 * np.maximum(means, 0.0)
        return self._noise

    def sample_y(
        self,
        X: Any,
        n_samples: int = 1,
        random_state: Any = 0,
        k_self: ArrayLike | None = None,
    ) -> FloatArray:
        """Draw outputs from the distribution of `predict`.

        Parameters
        ----------
        X : array-like
            As for `predict`, with the same errors.
        n_samples : int
        random_state : int, numpy.random.RandomState or None
        k_self : array-like of shape (n, n), or None
            As for `predict`.

        Returns
        -------
        ndarray of float64, shape (n, n_samples) or (n, targets, n_samples)
            Each a network from other initial weights, or a function of the posterior.
        """
        mean, cov = self.predict(X, return_cov=True, k_self=k_self)
        random = _check_random_state(random_state)
        # The same for all targets, but for their scale.
        first = (cov if self._flat else cov[..., 0]) / self.target_scale_[0] ** 2
        values, vectors = run_interruptibly(lambda: np.linalg.eigh(first))
        roots = vectors * np.sqrt(np.maximum(values, 0.0))  # no less than nothing, but for rounding
        drawn = random.standard_normal((mean[0].size, n_samples, len(mean)))
        drawn *= self.target_scale_[:, None, None]
        spread = np.moveaxis(drawn @ roots.T, -1, 0)  # (n, targets, n_samples)
        return spread[:, 0] + mean[:, None] if self._flat else spread + mean[..., None]

    def log_marginal_likelihood(self) -> float:
        """Return the logarithm of the density of the training targets, summed over targets.

        That of a Gaussian process with the kernel (NNGP or, with kind="ntk", the tangent kernel) as
        covariance, and noise of variance r/w_i with r the absolute ridge and w_i the weight of a
        sample: ``-1/2 y^T A^-1 y - 1/2 log det A - n/2 log 2 pi``. A criterion to compare networks
        and ridges by, as `loo_score_` is; it depends on the scale of the kernel. With normalize_y
        the process is that of the targets of variance 1, and the density that of y.

        Raises
        ------
        ValueError
            If there is no density: ``A = k + r W^-1`` is singular, or samples repeat and r = 0; or
            for a finite time, or where there is no factor in memory or store.
        """
        factor, training = self._factor, self._training
        if factor is None or not np.isinf(self.time_):
            raise ValueError(
                "log_marginal_likelihood is for the end of training, and needs a factor: leave "
                "time out, and use a solver other than 'cg'"
            )
        ridge = self.solution_.statistics.ridge_absolute
        m, n = training.first.size, training.place.size
        determinant = factor.log_determinant()
        if not np.isfinite(determinant) or (ridge == 0 and m < n):
            raise ValueError(
                "the kernel of the training samples with its ridge is singular, so that their "
                "targets have no density: use a ridge above 0"
            )
        t = training.targets.shape[1]
        value = self.dual_coef_.reshape(m, t)
        quadratic = float((training.means * value).sum())
        density = -0.5 * (quadratic + t * determinant + t * m * np.log(2 * np.pi))
        density -= n * float(np.log(self.target_scale_).sum())
        if m == n and np.all(training.sample_weight == 1):
            return density
        # Copies of a sample differ by noise alone, of which their mean has the rest.
        noise, mean_noise = ridge / training.sample_weight, ridge / training.weights
        squares = ((training.targets - training.at_samples(training.means)) ** 2).sum(axis=1)
        density -= 0.5 * float((squares / noise).sum()) if ridge else 0.0
        logs = (
            np.log(2 * np.pi * noise).sum() - np.log(2 * np.pi * mean_noise).sum() if ridge else 0
        )
        return density - 0.5 * t * float(logs)

    def staged_predict(self, X: Any, times: ArrayLike) -> Generator[FloatArray]:
        """Yield what networks trained until some times predict.

        Parameters
        ----------
        X : array-like
            As for `predict`, with the same errors.
        times : array-like of shape (m,)
            As for `NTKClassifier.staged_predict`.

        Yields
        ------
        ndarray of float64, shape (n,) or (n, targets)
            For each time in turn.
        """
        for outputs in self._staged(X, times):
            yield self._shaped(self._in_units(self._columns(outputs)))

    def influence(
        self, X: Any, n_largest: int = 10, target: int = 0, measure: Measure = "weights"
    ) -> Influence:
        """Return the training samples that each prediction owes most to.

        Parameters
        ----------
        X : array-like
            As for `predict`, with the same errors.
        n_largest : int
            How many, at least 1.
        target : int
            Which target, if there are several; weights are the same for all.
        measure : {"weights", "terms"}
            As for `NTKClassifier.influence`. Terms are in units of y, and sum to the prediction
            less `target_mean_`.

        Returns
        -------
        Influence
        """
        targets = self._training.targets.shape[1] if hasattr(self, "_training") else 1
        if not 0 <= target < targets:
            raise ValueError(f"target must be from 0 to {targets - 1}, got {target}")
        found = self._influence(
            X, lambda outputs: np.full(len(outputs), target), n_largest, measure
        )
        if measure == "weights":
            return found
        return replace(found, weights=found.weights * self.target_scale_[target])
