"""Classification by kernel regression on labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import base  # pyright: ignore[reportMissingTypeStubs]
from sklearn.utils import multiclass  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.estimators.base import (
    SAMPLE_DTYPES,
    NTKEstimator,
    can_grow,
    leaves_out,
    only_if,
    validate_data,
)
from widelimit.estimators.calibration import (
    TYPICAL_TEMPERATURE,
    fit_temperature,
    log_softmax,
)
from widelimit.estimators.checks import ClassWeight, Net, weigh_classes
from widelimit.estimators.influence import Influence, Measure
from widelimit.estimators.judge import Judge, LooScoring, alone_in_class
from widelimit.estimators.preparation import Normalise, Whiten
from widelimit.estimators.regression import Solver
from widelimit.estimators.samples import Training, split_shape
from widelimit.estimators.warned import warn_caller
from widelimit.matrices.foreign import to_array
from widelimit.matrices.inputs import Channels
from widelimit.program import Kind
from widelimit.solvers.labels import encode_labels, join_labels

__all__ = ["NTKClassifier"]

_SHOWN = 10  # classes that a warning names
# scikit-learn has no types.
_check_class_labels: Callable[[NDArray[Any]], None]
_check_class_labels = cast("Any", multiclass).check_classification_targets


class NTKClassifier(base.ClassifierMixin, NTKEstimator):
    """Classifier by kernel regression on class labels, the classifier of the paper.

    With the kernel k of an infinitely wide network, training samples x and targets Y, 1 - 1/c for
    the class of a sample and -1/c for the others, the outputs for a sample z are

        ``f(z) = k(z, x) (k(x, x) + ridge trace(k(x, x))/n I)^-1 Y``

    (Section 3, Eq. 5, of the paper; its ridge is 0), and the class is the largest output. With
    ridge = 0 this is the network at the end of training, in the limit of infinite width.

    Parameters
    ----------
    net : Network, str, list of these, or None
        The network: a `Network`, a preset by name (``"cntk-gap-11"``, ``"cntk-vanilla-11"``,
        ``"ntk-dense-3"``), or the JSON of a network. None stands for ``myrtle(5)`` if the samples
        are images (X is (n, h, w, c), or image_shape is set; its 2 x 2 pools leave out the last
        rows and columns of sides that are no multiples of 4), for ``cntk_gap(depth=11)`` if these
        have less than 8 rows or columns, and for ``ntk_dense(3, b_std=1.0)``, which has biases, if
        samples are rows (n, d). Of a list all kernels are computed in one pass, and `combine` says
        what becomes of them.
    kernel : {"network", "precomputed"}
        "precomputed": X is the Gram matrix of the training samples, (n, n), in `fit`, and the
        kernel between new and training samples, (m, n), in `predict`.
    kind : {"ntk", "nngp"}
        "ntk": all layers are trained. "nngp": only the last one is (Eq. 1).
    ridge : float or "loo"
        Relative ridge, >= 0: it multiplies ``trace(k)/n``, so that it has the same meaning for
        every network and scale of the input. "loo": of 1e-8 to 1e2, two in each decade, the one
        with which each sample is best predicted from the others, in mean square; exact, from one
        eigendecomposition. A sample that is alone in its class takes no part, and is warned of; so
        is a choice on the edge of the grid. If all are alone it is 0.
    combine : {"best", "mean"}
        Of several networks take the one with the best `loo_score_`, or the mean of their kernels as
        they are, scale included.
    time : float, "loo" or None
        Time of training by gradient flow (Eq. 3-4) on half the sum of squares, 0 or more: outputs
        are ``k(z, x) A^-1 (I - exp(-t A)) Y``, A the matrix that is inverted above. Its unit is 1
        over that of the kernel. None: until the end. "loo": early stopping, at the time with which
        left-out samples are best predicted; exact for every time, too.
    loo_scoring : {"squared", "log_loss", "accuracy"}
        What ridges, times and networks are chosen by: minus the mean square of the residuals of
        left-out samples, the mean logarithm of the probability of their labels (with the
        temperature that is best for it), or the share of labels that are right. Of equal ones the
        choice that shrinks outputs least.
    class_weight : dict, "balanced" or None
        Weights of classes, above 0, by label; classes that are not named have 1. "balanced": n over
        c times the (weighted) number of samples of the class. Probabilities are those of a
        population that has so many times as many samples of each class, ``p_c w_c`` over their
        sum, and labels are the most likely of these: ``temperature_ log(w_c)`` is added to outputs
        (0.1 for temperature_ after solver="cg"). This works without a ridge, too, where weights of
        samples make no difference. Choices by leave-one-out are made without it.
    normalise : {"image"} or None
        "image": each image is divided by its norm, in `fit` and `predict`, so that brightness and
        the units of pixels play no part.
    whiten : float, "loo" or None
        Regularised ZCA of images, fitted on the training images by their weights, all whitened
        images brought to one norm (as they come, new ones are larger, and so are outputs): the
        regularisation of `widelimit.ZCA`, 0.1 is a good start, or "loo": of none, 0.01, 0.1 and 1
        the one with the best `loo_score_`, each with its own ridge, time and network. Each takes a
        kernel and a regression of its own. No image is left out of the whitening: of fewer images
        than half their values scores are too good, and a warning says so. Not with
        standardise=True.
    standardise : bool or None
        Whether each feature is shifted and scaled to mean 0 and variance 1 on the training samples.
        None: rows are, images are not, whatever the network.
    image_shape : (h, w, c) or (h, w) or None
        Shape of the image in a row of X, in pixels, channels last; (h, w) means one channel.
        None: a row is a vector. Not needed if X is (n, h, w, c). A series is (1, length, c); where
        all networks are for series, as ``"cnn-1d-4"`` is, X may be (n, length, c).
    channels : {"first", "last"} or None
        "first": images X are (n, c, h, w), as those of PyTorch, and series (n, c, length), here and
        in `predict`. None: last; images whose first axis is 1, 3 or 4, and whose last one is larger
        than 4, are refused, and series of more channels than steps.
    dtype : {"float32", "float64"} or None
        Precision of the kernel; the regression is always solved in float64. None: "float32" for
        a network with convolutions or pooling, "float64" for dense ones. See Notes.
    backend : {"auto", "cpu", "cuda", "reference"}
        What computes the kernel. "cuda": an NVIDIA card. No result but its rounding
        depends on it.
    threads : int or None
        Threads of the kernel; None: all processors, or as many as OMP_NUM_THREADS says. BLAS has
        its own setting (threadpoolctl).
    solver : {"auto", "cholesky", "cg"}
        "cholesky": exact, in memory or, if it does not fit, in `store`. "cg": conjugate gradients,
        to 1e-8, without what needs a factor (leave-one-out, probabilities, `partial_fit`). "auto":
        Cholesky where there is room for it, else conjugate gradients.
    store : path, fsspec URL or None
        A folder for Gram matrices and, where they do not fit into memory, factors. What is made of
        other networks, samples or options lies in a folder of its own there, named by its content
        (`store_`): any fit may use it, also in a cross-validation, by several processes at a time.
        A fit that is stopped goes on when it is made again. None: all in memory.
    memory : int, str or None
        Bytes, or ``"6GB"``: the most that this process takes, as for `widelimit.gram`.
    executor : concurrent.futures.Executor, dask.distributed.Client or None
        Where the tiles of a stored Gram matrix are computed, as for `widelimit.gram`.
    progress : bool or callable
        Of the kernel of the training samples, as for `widelimit.kernel`, or, with `store`, as for
        `widelimit.gram`.

    Attributes
    ----------
    classes_ : ndarray of shape (c,)
        The labels, sorted.
    dual_coef_ : ndarray of float64, shape (m, c)
        The coefficients of the samples of `x_fit_`.
    x_fit_ : ndarray of shape (m, h, w, c) or (m, d)
        The training samples that coefficients belong to, as the kernel takes them. Of equal samples
        the first is kept, with their weights added and their targets averaged: the same function.
        If no network has a bias, so it is for samples that are multiples of one another; see Notes.
    solution_ : Solution
        Status, residual, condition and the ridge used, relative and absolute.
    ridge_, time_ : float
        As chosen or given; the time is infinity at the end of training.
    net_ : Network, tuple of Network, or None
        The network used; several with combine="mean", none with kernel="precomputed".
    loo_score_ : float
        What loo_scoring says of samples that are left out (with all that equal them, or are
        multiples of them): of the choice that was made.
    loo_grid_, loo_curve_ : ndarray of shape (g,)
        Ridges, or times, that were tried, and the score of each; the curve is (networks, g) for
        several networks, and so is the grid of time="loo": each network has times of its own. For
        the absolute ridge of all samples.
    loo_predictions_ : ndarray of float64, shape (n, c)
        Outputs for each training sample of a regression without it, without class_weight. NaN for
        samples of weight 0, as in self_influence_.
    loo_accuracy_ : float
        Share of training samples that the others label correctly.
    whiten_ : float or None
        The regularisation of the whitening that is used.
    whiten_grid_, whiten_curve_ : tuple, ndarray of shape (w,)
        With whiten="loo": what was tried, and the best score of each.
    self_influence_ : ndarray of float64, shape (n,)
        Increase of the squared error of a training sample when it is left out: large if its label
        is wrong.
    temperature_ : float
        Of `predict_proba`.
    class_weight_ : ndarray of float64, shape (c,)
        The weights of classes; 1 without class_weight.
    kind_, dtype_ : str
        Kind and precision of the kernel.
    image_shape_ : tuple (h, w, c) or None
        Shape of an image, None for rows.
    standardisation_ : tuple of two ndarray of shape (d,), or None
        Mean and scale of the features.
    store_ : str or None
        The folder of this fit in `store`.
    n_features_in_ : int
        Values per sample: d, or h * w * c.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the columns, if X was a data frame with string names.

    See Also
    --------
    NTKRegressor : The same regression for real targets, with a distribution of predictions.
    widelimit.save_model : Writes it to a folder, without pickle.

    Notes
    -----
    Cost of `fit`: ``n (n + 1)/2`` entries of the kernel and ``2 n^3/3`` flops, or about ``9 n^3``
    with ridge="loo" or a time; of `predict`: n entries per new sample. Memory of `fit`: ``16 n^2``
    bytes (24 with ridge="loo" or a time), of which 8 are kept, and ``4 n^2`` or ``8 n^2`` for the
    kernel of each network; of `predict`: blocks of at most 256 MiB (384 MiB with "float32").

    Where the kernel is singular to rounding and ridge = 0, the result is the limit of training,
    coefficients of smallest norm, and a warning says so.

    New samples that are far from the training samples are warned of (`UserWarning`): entries or
    norms outside of their range, images without likeness to any of them (`predict` answers those,
    too, and surely at that). Outputs of networks without biases, and so probabilities, follow the
    brightness of images, unless normalise="image" or whiten is given.

    Networks without biases are homogeneous, ``f(a x) = a f(x)`` for a > 0, and so are their
    kernels. Samples that are multiples of one another, to the rounding of their entries, then are
    one with the weight ``W = sum_i w_i a_i^2`` and the target ``sum_i w_i a_i y_i / W``, whose
    outputs times a_i are theirs; a sample of zeros is 0 times any other. Of a list of networks all
    must be without biases. With a ridge and a kernel that is too large for memory, multiples are
    kept apart. A sample that is *nearly* a multiple of another one, such as a rounded image of
    another brightness, is a sample of its own: where errors of the kernel decide what is made of
    it, they are estimated, and outputs that they may move by more than 1 % of the largest target
    are warned of (`Status.ILL_CONDITIONED`). So are those that the rounding of all entries moves.

    The default precision is the cheapest that serves ridge = 0. A dense kernel takes the same time
    in both, and on few features its smallest eigenvalues are below the rounding of float32. A
    kernel with convolutions takes about three times as long in float64, and float32 serves: on
    1000 of the 8 x 8 digits no output of a new sample moved by more than 6e-5 (CNTK-GAP, depth 4,
    smallest eigenvalue 0.0018 trace(k)/n), 1.1e-5 (CNTK-GAP, depth 11) or 1.3e-6 (CNTK-V, depth
    11), and no label changed. Choose "float64" if there are near-duplicates, or if an error or
    warning asks for it.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> classifier = NTKClassifier("cntk-gap-4", image_shape=(8, 8)).fit(X[:300], y[:300])
    >>> round(classifier.score(X[300:], y[300:]), 2), round(classifier.loo_accuracy_, 2)
    (0.93, 0.99)
    """

    classes_: NDArray[Any]
    temperature_: float | None
    class_weight_: FloatArray
    _labels: NDArray[np.intp]

    def __init__(
        self,
        net: Net = None,
        *,
        kernel: Literal["network", "precomputed"] = "network",
        kind: Kind = "ntk",
        ridge: float | Literal["loo"] = 0.0,
        combine: Literal["best", "mean"] = "best",
        time: float | Literal["loo"] | None = None,
        loo_scoring: LooScoring = "squared",
        class_weight: ClassWeight = None,
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
        self.loo_scoring: LooScoring = loo_scoring
        self.class_weight: ClassWeight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the regression of the encoded labels on the samples.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, h, w, c), or (n, n) with kernel="precomputed"
            Samples: finite real numbers, any scale (uint8 images too); a NumPy array, a data frame,
            or an array of PyTorch, JAX or CuPy, which is copied to the host. Not copied if they
            are float64, float32 or uint8 in NumPy: do not change them before `predict`.
        y : array-like of shape (n,)
            Labels of at least two classes.
        sample_weight : array-like of shape (n,) or None
            0 or more: a sample of weight w counts as w equal ones, one of weight 0 is left out.
            Without a ridge, weights of distinct samples make no difference to outputs.

        Returns
        -------
        NTKClassifier
            The estimator itself.

        Raises
        ------
        TypeError, ValueError
            If X, y or a parameter is not as described, or X does not fit image_shape or net.
        numpy.linalg.LinAlgError
            If the kernel with its ridge is not positive definite to rounding; the message says
            which sample is at fault and what to do.
        MemoryError
            Before the work, if it will not fit; the message says what would.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            If errors of the kernel may decide (`Status.ILL_CONDITIONED`), the kernel is singular
            to rounding and ridge = 0 (`Status.RANK_DEFICIENT`), or conjugate gradients did not
            converge.
        """
        self._fit_labels(X, y, None, sample_weight)
        return self

    @only_if(can_grow)
    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add samples: only their part of the kernel, and of its factor, is computed.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`. Labels may be new.
        classes : array-like or None
            Labels that may occur later, as scikit-learn's incremental classifiers want them at the
            first call; here they may be left out.

        Returns
        -------
        NTKClassifier
            The estimator itself; the first call is a `fit`.

        Raises
        ------
        TypeError, ValueError, numpy.linalg.LinAlgError
            As for `fit`; the estimator is then as it was before.

        Notes
        -----
        Network, time and *absolute* ridge stay those of the first call: with a ridge of 0 the
        result is that of `fit` on all samples, otherwise it is that with the ridge in `solution_`.
        Cost: the kernel of the new samples with all, and ``n^2`` flops for each new one.
        """
        if not hasattr(self, "dual_coef_"):
            self._fit_labels(X, y, classes, sample_weight)
            return self
        rows, labels, shape = self._checked(X, y, reset=False)
        announced = [] if classes is None else [np.asarray(classes)]
        names: list[NDArray[Any]] = []

        def encode(counts: NDArray[np.bool_]) -> FloatArray:
            known = np.unique(join_labels([self.classes_, labels[counts], *announced]))
            names.append(known)
            return encode_labels(join_labels([self.classes_[self._labels], labels[counts]]), known)

        with self._all_or_nothing():
            self._partial_fit(rows, encode, sample_weight, shape)
            self._end(names[0])
        return self

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Any, Any, Any]:
        rows, shape = split_shape(X, self.channels, self._net_of_samples(reset))
        rows, labels = validate_data(self, rows, to_array(y, "y"), dtype=SAMPLE_DTYPES, reset=reset)
        _check_class_labels(labels)
        return rows, labels, shape

    def _fit_labels(self, X: Any, y: Any, classes: Any, sample_weight: Any) -> None:
        with self._all_or_nothing():
            rows, labels, shape = self._checked(X, y, reset=True)
            names: list[NDArray[Any]] = []

            def encode(counts: NDArray[np.bool_], weight: FloatArray) -> FloatArray:
                known = np.unique(labels[counts] if classes is None else np.asarray(classes))
                if len(known) < 2:
                    raise ValueError(
                        f"y must hold at least 2 classes, got 1 class, {known.tolist()}: add "
                        "samples of another class"
                    )
                names.append(known)
                return encode_labels(labels[counts], known)

            self._fit(rows, encode, sample_weight, shape)
            self._end(names[0])

    def _end(self, classes: NDArray[Any]) -> None:
        training = self._training
        self.classes_ = classes
        self._labels = training.targets.argmax(axis=1)
        self.temperature_ = None
        if self.loo_predictions_ is not None:
            some = ~alone_in_class(training)
            self.temperature_ = TYPICAL_TEMPERATURE
            if some.any():
                self.temperature_ = fit_temperature(
                    self._left_out("temperature_")[some],
                    self._labels[some],
                    training.sample_weight[some],
                )
        self._weigh_classes()
        self._warn_of_lonely()

    def _weigh_classes(self) -> None:
        """Set the weights of classes, from the parameter and the training samples."""
        training = self._training
        counts = np.bincount(self._labels, training.sample_weight, len(self.classes_))
        self.class_weight_ = weigh_classes(
            self.class_weight, self.classes_, counts.astype(np.float64)
        )

    def _weighed(self, outputs: FloatArray) -> FloatArray:
        """Return outputs (n, c), whose softmax is that of the probabilities, classes weighed."""
        if np.all(self.class_weight_ == 1):
            return outputs
        temperature = TYPICAL_TEMPERATURE if self.temperature_ is None else self.temperature_
        logs = np.log(self.class_weight_)
        return outputs + temperature * (logs - logs.mean())

    def _judge(self, trainings: Sequence[Training]) -> Judge:
        alone = np.any([alone_in_class(training) for training in trainings], axis=0)
        return Judge(self.loo_scoring, ~alone if alone.any() else None)

    def _warn_of_lonely(self) -> None:
        """Warn of a choice by left-out samples whose class is then unknown."""
        alone = alone_in_class(self._training)
        loo = "loo" in (self.ridge, self.time, self.whiten)
        if not alone.any() or not (loo or self._fitted.choices > 1):
            return
        names = np.unique(self.classes_[self._labels[alone]]).tolist()
        shown = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
        does = (
            "no choice can be judged: this is ridge 0 and the end of training, and probabilities "
            f"have the temperature {TYPICAL_TEMPERATURE}"
            if alone.all()
            else "they take no part in the choice"
        )
        warn_caller(
            f"{len(names)} of {len(self.classes_)} classes have one distinct sample, {shown}: "
            f"without it there is no example of its class, so that {does}. Add samples"
        )

    @property
    def loo_accuracy_(self) -> float:
        """Share (by weight) of training samples that the others label correctly."""
        predicted = self._weighed(self._left_out("loo_accuracy_")).argmax(axis=1)
        return float(np.average(predicted == self._labels, weights=self._training.sample_weight))

    def decision_function(self, X: Any) -> FloatArray:
        """Return the outputs of the regression.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, h, w, c), or (n, n_fit) with kernel="precomputed"
            Samples like those of `fit`. Images are accepted if `fit` saw images, whether as
            (n, h, w, c) or as rows.

        Returns
        -------
        ndarray of float64, shape (n, c), or (n,) for two classes
            Near 1 - 1/c for the class of a sample and -1/c for the others, and more for those that
            class_weight favours. For two classes the output of ``classes_[1]``, which is chosen if
            it is positive.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If the samples do not have the shape of those of `fit`, or are not finite.
        """
        return self._decide(self._outputs(X))

    def _decide(self, outputs: FloatArray) -> FloatArray:
        outputs = self._weighed(outputs)
        # The columns sum to zero, so that with two classes the second says it all.
        return outputs if len(self.classes_) > 2 else outputs[:, 1]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the labels of the largest outputs.

        Parameters
        ----------
        X : array-like
            As for `decision_function`, with the same errors.

        Returns
        -------
        ndarray of shape (n,)
            Labels from ``classes_``.
        """
        return self._label(self.decision_function(X))

    def _label(self, outputs: FloatArray) -> NDArray[Any]:
        if outputs.ndim == 1:
            return self.classes_[(outputs > 0).astype(np.intp)]
        return self.classes_[outputs.argmax(axis=1)]

    @only_if(leaves_out)
    def predict_proba(self, X: Any) -> FloatArray:
        """Return probabilities of the classes: softmax of the outputs over ``temperature_``.

        Outputs are those of `decision_function`, in which classes are weighed. The temperature is
        the one with which leave-one-out predictions make the training labels most likely, those of
        samples that are alone in their class left out; 0.1 if all are.
        docs/results.md shows how well calibrated the probabilities are.

        Parameters
        ----------
        X : array-like
            As for `decision_function`, with the same errors.

        Returns
        -------
        ndarray of float64, shape (n, c)
            Rows sum to 1; columns are in the order of ``classes_``.

        Raises
        ------
        AttributeError
            After a fit by conjugate gradients, which has no leave-one-out predictions: with
            solver="cg", or with "auto" where there is no room for a factor.
        """
        return np.exp(self.predict_log_proba(X))

    @only_if(leaves_out)
    def predict_log_proba(self, X: Any) -> FloatArray:
        """Return the logarithms of `predict_proba`."""
        outputs = self._outputs(X)
        self._left_out("predict_proba")
        assert self.temperature_ is not None
        return log_softmax(self._weighed(outputs), self.temperature_)

    def staged_predict(self, X: Any, times: ArrayLike) -> Generator[NDArray[Any]]:
        """Yield the labels that networks trained until some times predict.

        Parameters
        ----------
        X : array-like
            As for `decision_function`, with the same errors.
        times : array-like of shape (m,)
            Times of gradient flow, 0 or more; infinity is the end of training. `loo_grid_` after a
            fit with time="loo" has useful ones.

        Yields
        ------
        ndarray of shape (n,)
            Labels, for each time in turn.

        Notes
        -----
        One eigendecomposition (none after a fit with a time), and one pass over the kernel.
        """
        for outputs in self._staged(X, times):
            yield self._label(self._decide(outputs))

    def staged_decision_function(self, X: Any, times: ArrayLike) -> Generator[FloatArray]:
        """Yield the outputs of networks trained until some times, as `staged_predict` does."""
        for outputs in self._staged(X, times):
            yield self._decide(outputs)

    def influence(self, X: Any, n_largest: int = 10, measure: Measure = "weights") -> Influence:
        """Return the training samples that each predicted label owes most to.

        Parameters
        ----------
        X : array-like
            As for `decision_function`, with the same errors.
        n_largest : int
            How many, at least 1.
        measure : {"weights", "terms"}
            "weights": those with which the prediction is a sum of the training targets. "terms":
            ``alpha_j k(x, x_j)`` in the output of the predicted class, which sum to that output;
            without a ridge they nearly cancel, and are large.

        Returns
        -------
        Influence

        Notes
        -----
        "weights" take ``2 m^2`` flops for each sample, m the number of training samples.
        """
        return self._influence(
            X, lambda outputs: self._weighed(outputs).argmax(axis=1), n_largest, measure
        )
