"""Kernel regression with infinitely wide networks as scikit-learn estimators."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning  # pyright: ignore[reportMissingTypeStubs]
from sklearn.base import (  # pyright: ignore[reportMissingTypeStubs]
    BaseEstimator,
    ClassifierMixin,
    MultiOutputMixin,
    RegressorMixin,
)
from sklearn.utils import multiclass, validation  # pyright: ignore[reportMissingTypeStubs]

from widelimit.architectures import cntk_gap, ntk_dense
from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.gram.kernel import kernel
from widelimit.network import Network
from widelimit.program import Kind
from widelimit.solvers import Status, encode_labels, solve_cholesky
from widelimit.solvers.checks import check_ridge
from widelimit.solvers.solution import FloatArray

__all__ = ["NTKClassifier", "NTKRegressor"]

# scikit-learn has no types.
_validation = cast("Any", validation)
_check_is_fitted: Callable[[BaseEstimator, str], None] = _validation.check_is_fitted
_validate_data: Callable[..., Any] = _validation.validate_data
_check_class_labels: Callable[[NDArray[Any]], None]
_check_class_labels = cast("Any", multiclass).check_classification_targets

ImageShape: TypeAlias = tuple[int, int, int]

# Dtypes of samples that the kernel reads as they are; all others become float64.
_SAMPLE_DTYPES = [np.float64, np.float32, np.uint8]
# Entries of the kernel between new and training samples that exist at a time (256 MiB in float64).
_BLOCK_ENTRIES = 2**25


class _NTKEstimator(BaseEstimator):
    """What the classifier and the regressor share: samples in, outputs of the regression out."""

    n_features_in_: int
    kind_: Kind
    dtype_: Dtype

    def __init__(
        self,
        net: Network | None = None,
        *,
        kind: Kind = "ntk",
        ridge: float = 0.0,
        image_shape: Sequence[int] | None = None,
        dtype: Dtype | None = None,
        backend: BackendName = "auto",
        threads: int | None = None,
    ) -> None:
        self.net = net
        self.kind: Kind = kind
        self.ridge = ridge
        self.image_shape = image_shape
        self.dtype: Dtype | None = dtype
        self.backend: BackendName = backend
        self.threads = threads

    def _fit(self, rows: NDArray[Any], y: NDArray[Any], found: ImageShape | None) -> None:
        """Solve the regression of y, (n,) or (n, targets), on checked rows (n, d)."""
        ridge = check_ridge(self.ridge)
        shape = self._resolve_shape(found, rows.shape[1])
        net = self._resolve_net(shape, rows.shape[1])
        dtype: Dtype | None = self.dtype
        if dtype is None:
            dtype = "float64" if net.is_dense else "float32"
        samples = rows if shape is None else rows.reshape(-1, *shape)
        backend, threads = self.backend, self.threads
        k = kernel(net, samples, kind=self.kind, backend=backend, dtype=dtype, threads=threads)
        try:
            solution = solve_cholesky(k, y, ridge, overwrite_k=True).require()
        except np.linalg.LinAlgError as error:
            if rows.shape[1] > 1:
                raise
            raise np.linalg.LinAlgError(
                f"{error} X has 1 feature(s): without biases the kernel of a network on the line "
                "has rank 2 at most; use a network with b_std > 0, or a ridge."
            ) from error
        if solution.status is not Status.SOLVED:
            warnings.warn(solution.status.value, LinAlgWarning, stacklevel=3)
        # All at the end: a fit that fails leaves no half-fitted estimator. What the kernel of new
        # samples depends on is kept, so that set_params cannot change it without a new fit.
        self.net_, self.kind_, self.dtype_ = net, self.kind, dtype
        self.image_shape_, self.x_fit_ = shape, samples
        self.solution_, self.dual_coef_ = solution, solution.value

    def _outputs(self, X: Any) -> FloatArray:
        """Return ``kernel(X, x_fit_) @ dual_coef_``, (n,) or (n, targets)."""
        _check_is_fitted(self, "dual_coef_")
        rows, found = _split_shape(X)
        shape = self.image_shape_
        if found is not None and found != shape:
            fitted = f"rows of {self.n_features_in_} values" if shape is None else f"images {shape}"
            raise ValueError(
                f"X must hold samples like those of fit, {fitted}, got images {found}: resize or "
                "reshape them, or fit again"
            )
        rows = _validate_data(self, rows, reset=False, dtype=_SAMPLE_DTYPES)
        samples = rows if shape is None else rows.reshape(-1, *shape)
        outputs = np.empty((len(samples), *self.dual_coef_.shape[1:]))
        step = max(1, _BLOCK_ENTRIES // len(self.x_fit_))
        for start in range(0, len(samples), step):
            block = slice(start, start + step)
            k = kernel(
                self.net_,
                samples[block],
                self.x_fit_,
                kind=self.kind_,
                backend=self.backend,
                dtype=self.dtype_,
                threads=self.threads,
            )
            outputs[block] = k @ self.dual_coef_
        return outputs

    def _resolve_shape(self, found: ImageShape | None, n_features: int) -> ImageShape | None:
        """Return the shape of an image, from image_shape or from X itself, or None for rows."""
        if self.image_shape is None:
            return found
        asked = _check_image_shape(self.image_shape)
        if found is not None and found != asked:
            raise ValueError(
                f"image_shape is {asked}, but X holds images of shape {found}: leave image_shape "
                "out, it is needed only for rows (n, d)"
            )
        if math.prod(asked) != n_features:
            channels, rest = divmod(n_features, asked[0] * asked[1])
            hint = "" if rest else f", for example {(*asked[:2], channels)}"
            raise ValueError(
                f"image_shape {asked} holds {math.prod(asked)} values, but a row of X holds "
                f"{n_features}: give (h, w, c) with h * w * c = {n_features}{hint}"
            )
        return asked

    def _resolve_net(self, shape: ImageShape | None, n_features: int) -> Network:
        """Return the network to use, having checked that it fits the samples."""
        if self.kind not in ("ntk", "nngp"):
            raise ValueError(f'kind must be "ntk" or "nngp", got {self.kind!r}: choose one')
        if self.net is None:
            return ntk_dense(3) if shape is None else cntk_gap(depth=11)
        if not isinstance(self.net, Network):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"net must be one Network or None, got {self.net!r}: "
                "use wl.cntk_gap(), wl.ntk_dense() or wl.Network([...])"
            )
        if shape is None and not self.net.is_dense:
            raise ValueError(
                f"net ({self.net}) reads images, but X holds rows of {n_features} values: set "
                "image_shape=(h, w, c), or give X of shape (n, h, w, c)"
            )
        return self.net


class NTKClassifier(ClassifierMixin, _NTKEstimator):
    """Classifier by kernel regression on class labels, the classifier of the paper.

    With the kernel k of an infinitely wide network, training samples x and targets Y, 1 - 1/c for
    the class of a sample and -1/c for the others, the outputs for a sample z are

        ``f(z) = k(z, x) (k(x, x) + ridge trace(k(x, x))/n I)^-1 Y``

    (Section 3, Eq. 8, of the paper; its ridge is 0), and the class is the largest output. With
    ridge = 0 this is the network at the end of training, in the limit of infinite width.

    Parameters
    ----------
    net : Network or None
        The network. None stands for ``cntk_gap(depth=11)`` if the samples are images (X is
        (n, h, w, c), or image_shape is set) and for ``ntk_dense(3)`` if they are rows (n, d).
    kind : {"ntk", "nngp"}
        "ntk": all layers are trained. "nngp": only the last one is (Eq. 1).
    ridge : float
        Relative ridge, >= 0: it multiplies ``trace(k)/n``, so that it has the same meaning for
        every network and scale of the input.
    image_shape : (h, w, c) or (h, w) or None
        Shape of the image in a row of X, in pixels, channels last; (h, w) means one channel.
        None: a row is a vector. Not needed if X is (n, h, w, c).
    dtype : {"float32", "float64"} or None
        Precision of the kernel; the regression is always solved in float64. None: "float32" for
        a network with convolutions or pooling, "float64" for a dense one. See Notes.
    backend : {"auto", "reference", "cpu", "cuda"}
        What computes the kernel. No result but its rounding depends on it.
    threads : int or None
        Threads of the kernel; None: all cores. BLAS has its own setting (threadpoolctl).

    Attributes
    ----------
    classes_ : ndarray of shape (c,)
        The labels, sorted.
    dual_coef_ : ndarray of float64, shape (n, c)
        ``(k + ridge trace(k)/n I)^-1 Y``.
    x_fit_ : ndarray of shape (n, h, w, c) or (n, d)
        The training samples, in float64, float32 or uint8 as they were given.
    solution_ : Solution
        Status, residual, condition and the ridge used, relative and absolute.
    net_ : Network
        The network used.
    kind_, dtype_ : str
        Kind and precision of the kernel.
    image_shape_ : tuple (h, w, c) or None
        Shape of an image, None for rows.
    n_features_in_ : int
        Values per sample: d, or h * w * c.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, if X was a data frame with string names.

    See Also
    --------
    NTKRegressor : The same regression for real targets.

    Notes
    -----
    Cost of `fit`: ``n (n + 1)/2`` entries of the kernel and ``n^3/3`` flops; of `predict`:
    n entries per new sample. Memory of `fit`: ``8 n^2`` bytes, and ``4 n^2`` more with
    dtype="float32"; of `predict`: blocks of at most 256 MiB (384 MiB with "float32").

    The default precision is the cheapest that serves ridge = 0. A dense kernel takes the same time
    in both, and on few features its smallest eigenvalues are below the rounding of float32. A
    kernel with convolutions takes 2.3 to 3.4 times as long in float64, and float32 serves: on
    1000 of the 8 x 8 digits no output of a new sample moved by more than 6e-5 (CNTK-GAP, depth 4,
    smallest eigenvalue 0.0018 trace(k)/n), 1.1e-5 (CNTK-GAP, depth 11) or 1.3e-6 (CNTK-V, depth
    11), and no label changed. Choose "float64" if there are near-duplicates, or if an error or
    warning asks for it.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> classifier = NTKClassifier().fit(X[:500], y[:500])
    >>> round(classifier.score(X[500:], y[500:]), 2)
    0.94
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the regression of the encoded labels on the samples.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, h, w, c), n >= 2
            Samples: finite real numbers, any scale (uint8 images too). Not copied if they are
            float64, float32 or uint8: do not change them before `predict`.
        y : array-like of shape (n,)
            Labels of at least two classes.

        Returns
        -------
        NTKClassifier
            The estimator itself.

        Raises
        ------
        TypeError, ValueError
            If X, y or a parameter is not as described, or X does not fit image_shape or net.
        numpy.linalg.LinAlgError
            If the kernel of the samples is singular to rounding; the message says which sample
            is at fault and what to do.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            If the solution is ill-conditioned (`Status.ILL_CONDITIONED`).
        """
        rows, shape = _split_shape(X)
        rows, labels = _validate_data(self, rows, y, dtype=_SAMPLE_DTYPES)
        _check_class_labels(labels)
        classes = np.unique(labels)
        if len(classes) < 2:
            raise ValueError(
                f"y must hold at least 2 classes, got 1 class, {classes.tolist()}: add samples of "
                "another class"
            )
        self._fit(rows, encode_labels(labels, classes), shape)
        self.classes_ = classes
        return self

    def decision_function(self, X: Any) -> FloatArray:
        """Return the outputs of the regression.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, h, w, c)
            Samples like those of `fit`. Images are accepted if `fit` saw images, whether as
            (n, h, w, c) or as rows.

        Returns
        -------
        ndarray of float64, shape (n, c), or (n,) for two classes
            Near 1 - 1/c for the class of a sample and -1/c for the others. For two classes the
            output of ``classes_[1]``, which is chosen if it is positive.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If the samples do not have the shape of those of `fit`, or are not finite.
        """
        outputs = self._outputs(X)
        # The columns sum to zero, so that with two classes the second says it all.
        return outputs if len(self.classes_) > 2 else outputs[:, 1]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the labels of the largest outputs.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, h, w, c)
            As for `decision_function`, with the same errors.

        Returns
        -------
        ndarray of shape (n,)
            Labels from ``classes_``.
        """
        outputs = self.decision_function(X)
        if outputs.ndim == 1:
            return self.classes_[(outputs > 0).astype(np.intp)]
        return self.classes_[outputs.argmax(axis=1)]


class NTKRegressor(MultiOutputMixin, RegressorMixin, _NTKEstimator):
    """Kernel regression with the kernel of an infinitely wide network.

    With the kernel k, training samples x and targets y the prediction for a sample z is

        ``f(z) = k(z, x) (k(x, x) + ridge trace(k(x, x))/n I)^-1 y``

    (Section 3, Eq. 8, of the paper; its ridge is 0). As in the paper there is no intercept and
    the targets are not centred: far from the data a prediction is not drawn to their mean, and
    ``y + constant`` is a different problem. To centre, use
    `sklearn.compose.TransformedTargetRegressor` with a `StandardScaler`.

    Parameters
    ----------
    net, kind, ridge, image_shape, dtype, backend, threads
        As for `NTKClassifier`.

    Attributes
    ----------
    dual_coef_ : ndarray of float64, shape (n,) or (n, targets)
        ``(k + ridge trace(k)/n I)^-1 y``.
    x_fit_, solution_, net_, kind_, dtype_, image_shape_, n_features_in_, feature_names_in_
        As for `NTKClassifier`.

    See Also
    --------
    NTKClassifier : The same regression on encoded labels; its notes on cost and precision hold.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> y = np.abs(x[:, 0]) - x[:, 1]
    >>> regressor = NTKRegressor().fit(x[:100], y[:100])
    >>> regressor.score(x[100:], y[100:]) > 0.98
    True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the regression of the targets on the samples.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, h, w, c)
            Samples: finite real numbers, any scale (uint8 images too). Not copied if they are
            float64, float32 or uint8: do not change them before `predict`.
        y : array-like of shape (n,) or (n, targets)
            Finite real targets.

        Returns
        -------
        NTKRegressor
            The estimator itself.

        Raises
        ------
        TypeError, ValueError
            If X, y or a parameter is not as described, or X does not fit image_shape or net.
        numpy.linalg.LinAlgError
            If the kernel of the samples is singular to rounding; the message says which sample
            is at fault and what to do.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            If the solution is ill-conditioned (`Status.ILL_CONDITIONED`).
        """
        rows, shape = _split_shape(X)
        rows, targets = _validate_data(
            self, rows, y, dtype=_SAMPLE_DTYPES, multi_output=True, y_numeric=True
        )
        self._fit(rows, targets, shape)
        return self

    def predict(self, X: Any) -> FloatArray:
        """Return the outputs of the regression.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, h, w, c)
            Samples like those of `fit`. Images are accepted if `fit` saw images, whether as
            (n, h, w, c) or as rows.

        Returns
        -------
        ndarray of float64, shape (n,) or (n, targets)

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If the samples do not have the shape of those of `fit`, or are not finite.
        """
        return self._outputs(X)


def _split_shape(X: Any) -> tuple[Any, ImageShape | None]:
    """Flatten images to rows and return their shape; leave anything else to scikit-learn."""
    samples: Any = np.asarray(cast("Sequence[Any]", X)) if isinstance(X, list | tuple) else X
    if getattr(samples, "ndim", 2) <= 2:
        return samples, None
    images: NDArray[Any] = np.asarray(samples)
    if images.ndim != 4:
        raise ValueError(
            f"X must be rows (n, d) or images (n, h, w, c), got shape {images.shape}: give "
            "X[..., None] for images with one channel, X[None] for a single image"
        )
    h, w, c = images.shape[1:]
    return images.reshape(len(images), h * w * c), (h, w, c)


def _check_image_shape(shape: object) -> ImageShape:
    """Return image_shape as (h, w, c)."""
    expected = "image_shape must be (h, w, c) or (h, w), integers >= 1, or None"
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"{expected}, got {shape!r} ({type(shape).__name__})")
    sizes = cast("Sequence[Any]", shape)
    integers = all(isinstance(s, int | np.integer) and not isinstance(s, bool) for s in sizes)
    if len(sizes) not in (2, 3) or not integers or min(sizes) < 1:
        raise ValueError(f"{expected}, got {shape!r}: give the shape of one image, channels last")
    h, w, c = (int(size) for size in (*sizes, 1)[:3])
    return h, w, c
