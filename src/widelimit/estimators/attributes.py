"""What a fitted estimator tells of its fit: attributes that end in an underscore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import Dtype
from widelimit.estimators.fitted import FittedKernel, PrecomputedKernel, Stores
from widelimit.estimators.preparation import Standardisation
from widelimit.estimators.samples import ImageShape, Training
from widelimit.estimators.scaling import check_is_fitted
from widelimit.estimators.typical import Familiar
from widelimit.network import Network
from widelimit.program import Kind
from widelimit.solvers import Factor, Solution, Status

__all__ = ["FittedAttributes", "check_is_fitted"]


class FittedAttributes:
    """State of a fitted estimator, and what follows from it."""

    n_features_in_: int
    dual_coef_: FloatArray
    solution_: Solution
    loo_grid_: FloatArray
    loo_curve_: FloatArray
    loo_predictions_: FloatArray | None
    # Names of the samples of `fit`, as those of files, that `influence` then tells; None after it:
    # whoever has names sets them. A saved model has them, too.
    sample_names_: Sequence[str] | None
    _fitted: FittedKernel | PrecomputedKernel
    _training: Training
    _nngp_fit: Any  # of the training samples, if that is another kernel
    _stores: Stores | None
    whiten_grid_: tuple[float | None, ...]  # with whiten="loo", as the next
    whiten_curve_: FloatArray
    _familiar: Familiar
    _flat: bool  # whether targets were (n,), not (n, 1)
    _signed: bool  # whether samples, as they were given, had values below 0

    def _shaped(self, values: FloatArray) -> FloatArray:
        """Return (n, t) values in the shape that users see."""
        return values[:, 0] if self._flat else values

    @property
    def net_(self) -> Network | tuple[Network, ...] | None:
        """The network; several whose kernels are averaged; None for a precomputed kernel."""
        networks = self._fitted.networks
        return networks[0] if len(networks) == 1 else networks or None

    @property
    def kind_(self) -> Kind:
        """Kind of the kernel."""
        return self._fitted.kind

    @property
    def dtype_(self) -> Dtype:
        """Precision of the kernel."""
        return self._fitted.dtype

    @property
    def image_shape_(self) -> ImageShape | None:
        """Shape of an image, None for rows."""
        return self._fitted.shape

    @property
    def standardisation_(self) -> Standardisation | None:
        """Mean and scale of the features."""
        return self._fitted.preparation.standardisation

    @property
    def whiten_(self) -> float | None:
        """Regularisation of the whitening; None: images are not whitened."""
        zca = self._fitted.preparation.zca
        return None if zca is None else float(zca.regularisation)

    @property
    def x_fit_(self) -> NDArray[Any] | None:
        """Training samples, as the kernel takes them, one for each coefficient."""
        return self._fitted.samples

    @property
    def store_(self) -> str | None:
        """Path or URL of the folder, in `store`, of what this fit has stored; None: nothing."""
        return None if self._stores is None else self._stores.folder

    @property
    def ridge_(self) -> float:
        """Relative ridge."""
        return self.solution_.statistics.ridge

    @property
    def time_(self) -> float:
        """Time of training; infinity is its end."""
        return np.inf if self._factor is None else self._factor.time

    @property
    def loo_score_(self) -> float:
        """Largest of `loo_curve_`; NaN if nothing could be left out."""
        scores = self.loo_curve_[np.isfinite(self.loo_curve_)]
        return float(scores.max()) if scores.size else np.nan

    @property
    def _factor(self) -> Factor | None:
        return self.solution_.factor

    @property
    def self_influence_(self) -> FloatArray:
        """Increase of the squared error of each training sample when it is left out, (n,).

        ``|y_i - f_without_i(x_i)|^2 - |y_i - f(x_i)|^2``, summed over targets: large for samples
        that the others contradict, such as mislabelled ones; NaN for samples of weight 0.
        """
        check_is_fitted(self, "dual_coef_")
        training = self._training
        left_out = self._left_out("self_influence_").reshape(training.targets.shape)
        fitted = training.at_samples(training.means - self._penalty())
        before = ((training.targets - fitted) ** 2).sum(axis=1)
        after = ((training.targets - self._normalised(left_out)) ** 2).sum(axis=1)
        return training.among_given(after - before)

    def _in_units(self, outputs: FloatArray) -> FloatArray:
        """Return outputs (n, t) of the regression in units of what users gave."""
        return outputs

    def _normalised(self, targets: FloatArray) -> FloatArray:
        """Return what users gave, (n, t), as the regression has it."""
        return targets

    def _left_out(self, what: str) -> FloatArray:
        """Return predictions of the samples that count, each by a regression without it."""
        if self.loo_predictions_ is None:
            raise AttributeError(
                f"{what} needs leave-one-out predictions, which solver='cg' has not: use "
                "solver='cholesky'"
            )
        return self.loo_predictions_[self._training.counts]

    def _penalty(self) -> FloatArray:
        """Return what outputs at the training samples, one a row, are short of their targets."""
        training, value = self._training, self.dual_coef_.reshape(self._training.first.size, -1)
        exact = np.isinf(self.time_) and self.solution_.status is not Status.RANK_DEFICIENT
        if self._factor is not None and not exact:
            return training.means - self._factor.multiply_gram(value)
        noise = self.solution_.statistics.ridge_absolute / training.weights
        return noise[:, None] * value
