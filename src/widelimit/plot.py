"""Pictures of kernels and models, drawn with matplotlib (``pip install "widelimit[plot]"``).

Every picture takes ``ax=``, the axes to draw on (None: those of a new figure), and returns the
axes; `draw_record` makes a file of a record. The colours are those of Okabe and Ito, which are told
apart without red or green; curves differ in their markers, too. Text, lines and background follow
the style of matplotlib, so that ``plt.style.context("dark_background")`` makes a dark picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray
from widelimit.estimators.attributes import FittedAttributes
from widelimit.estimators.classifier import NTKClassifier
from widelimit.estimators.influence import Influence
from widelimit.estimators.regressor import NTKRegressor
from widelimit.experiments.finite_width import Decay, Run, Training, WeaklyTrained
from widelimit.experiments.record import Record
from widelimit.files import check_file, write_atomically
from widelimit.matrices.inputs import Channels, check_channels
from widelimit.network import Network
from widelimit.solvers.matrix import Matrix
from widelimit.solvers.solution import Unavailable
from widelimit.solvers.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "check_picture",
    "cnn_accuracies",
    "draw_record",
    "influence",
    "kernel_matrix",
    "learning_curve",
    "leave_one_out",
    "random_features",
    "regression",
    "reliability",
    "spectrum",
    "training_gaps",
    "weakly_trained",
    "width_errors",
]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Blue, vermilion, green, purple, orange, sky blue (Okabe and Ito, *Color universal design*)."""

_MARKERS = "osD^vP"
_MOST_SAMPLES = 10_000  # of a kernel matrix: more are no picture, but gigabytes
_MOST_NAMED = 30  # classes
_ACCURACIES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_NORMAL_95 = 1.96


def kernel_matrix(
    k: Matrix | ArrayLike,
    y: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
    normalise: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a kernel matrix as a map of colours, samples sorted by class.

    Parameters
    ----------
    k : Gram or array-like of shape (n, n)
        Of one set of samples with itself, at most 10,000.
    y : array-like of shape (n,) or None
        Labels; None: samples stay in their order.
    class_names : sequence of str or None
        ``class_names[label]`` is shown for integer labels.
    normalise : bool
        Whether to show ``k(x, x') / sqrt(k(x, x) k(x', x'))``, in which bright images do not
        outshine the others. The bar of colours says which is shown.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If k is not (n, n) with n of at most 10,000, or y is not (n,).
    """
    shape = np.shape(cast("Any", k))
    if len(shape) != 2 or shape[0] != shape[1] or not 0 < shape[0] <= _MOST_SAMPLES:
        raise ValueError(
            f"k must be a kernel matrix (n, n) of 1 to {_MOST_SAMPLES:,} samples, got shape "
            f"{shape}: draw a part, k[:2000, :2000]"
        )
    labels = None if y is None else np.asarray(y)
    if labels is not None and labels.shape != shape[:1]:
        raise ValueError(f"y must hold {shape[0]} labels, one for each sample, got {labels.shape}")
    axes = _axes(ax)
    matrix = np.array(k, np.float64)
    title = "kernel k(x, x')"
    if normalise:
        roots = np.sqrt(np.maximum(matrix.diagonal(), 0.0))
        roots[roots == 0] = 1.0  # the kernel of an image of zeros is 0
        matrix /= roots
        matrix /= roots[:, None]
        title = "k(x, x') / √(k(x, x) k(x', x'))"
    if labels is not None:
        order = np.argsort(labels, kind="stable")
        matrix = matrix[np.ix_(order, order)]
    # The diagonal is of another size than the rest, and would take all the colours.
    rest = matrix[~np.eye(len(matrix), dtype=np.bool_)] if len(matrix) > 1 else matrix
    low, high = float(rest.min()), float(rest.max())
    shown = axes.imshow(matrix, cmap="viridis", vmin=low, vmax=high, interpolation="antialiased")
    above = float(matrix.max()) > high
    bar = axes.figure.colorbar(shown, ax=axes, extend="max" if above else "neither", shrink=0.85)
    bar.set_label(title)
    if labels is None:
        axes.set(xlabel="sample", ylabel="sample")
    else:
        _name_classes(axes, labels, class_names)
    return axes


def spectrum(
    k: Spectrum | FittedAttributes | Matrix | ArrayLike,
    *,
    label: str = "eigenvalues",
    ax: Axes | None = None,
) -> Axes:
    """Draw the eigenvalues of a kernel matrix, largest first, on logarithmic axes.

    They are shown as multiples of ``trace(k)/n``, as relative ridges are: what lies below the ridge
    is hardly learned, and what lies below the rounding of the entries is not known.

    Parameters
    ----------
    k : Spectrum, fitted estimator, Gram or array-like of shape (n, n)
        A matrix is decomposed first, in about ``9 n^3`` flops, and so is that of an estimator that
        does not hold its eigenvectors. Eigenvalues of 0 or less, as rounding makes them, have no
        place on the axis.
    label : str
        Name in the legend, for several on the same axes.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If k is no kernel matrix, or the estimator has none in memory.
    """
    ridge = 0.0
    if isinstance(k, FittedAttributes):
        ridge = k.ridge_
        factor = k.solution_.factor
        if factor is None:
            raise ValueError("the model has no factor: fit with solver='cholesky'")
        try:
            found = cast("Spectrum", factor.spectrum())
        except Unavailable as error:
            raise ValueError(f"the spectrum needs the kernel in memory: {error}") from error
    else:
        found = k if isinstance(k, Spectrum) else Spectrum.of(k)
    axes = _axes(ax)
    colour, marker = _next(axes)
    values = found.values[::-1] / found.mean
    values = values[values > 0]
    ranks = np.arange(1, len(values) + 1)
    few = len(values) <= 60
    axes.plot(ranks, values, color=colour, marker=marker if few else "", markersize=4, label=label)
    if ridge > 0:
        axes.axhline(ridge, color=colour, linestyle="--", linewidth=1, label=f"ridge, {ridge:.0e}")
    rounding = found.rounding / found.mean
    if rounding > 0 and values.size and values[-1] < 100 * rounding:
        text = "rounding: below it, zero"
        axes.axhline(rounding, color=_ink(), linestyle=":", linewidth=1, label=text)
    axes.set(xscale="log", yscale="log", xlabel="rank of the eigenvalue")
    axes.set_ylabel("eigenvalue / mean of the diagonal")
    return _finish(axes)


def learning_curve(record: Record, *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of all methods of a record against the number of training images.

    The vertical axis is logarithmic in the error and labelled with the accuracy: 90 % and 99 % are
    as far apart as 99 % and 99.9 %. Bars are one standard deviation over draws.

    Parameters
    ----------
    record : Record
        As `widelimit.experiments.learning_curve.run` returns it.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    axes = _axes(ax)
    least = 0.5 / record.data.n_test  # half a test image: where an accuracy of 1 is drawn
    errors: list[float] = []
    for curve in record.curves:
        colour, marker = _next(axes)
        sizes = [point.size for point in curve.points]
        mean = np.maximum([1 - point.mean for point in curve.points], least)
        std = np.array([point.std or 0.0 for point in curve.points])
        ends = np.maximum(mean - std, least), np.minimum(mean + std, 1.0)
        errors += [float(ends[0].min()), float(ends[1].max())]
        bars = np.stack([mean - ends[0], ends[1] - mean])
        axes.errorbar(
            sizes,
            mean,
            bars if std.any() else None,
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2,
            elinewidth=1,
            label=curve.label,
        )
    low, high = min(errors) / 1.15, min(max(errors) * 1.1, 1.0)
    ticks = [1 - a for a in _ACCURACIES if low <= 1 - a <= high]
    axes.set(xscale="log", yscale="log", xlabel="training images", ylabel="correct test images")
    axes.set_ylim(high, low)
    _tick(axes.yaxis, ticks, [f"{100 * (1 - tick):.4g} %" for tick in ticks])
    _tick(axes.xaxis, list(record.sizes), [f"{size:,}" for size in record.sizes])
    return _finish(axes)


def leave_one_out(model: FittedAttributes, *, ax: Axes | None = None) -> Axes:
    """Draw the error of left-out training samples for all ridges, or times, that were tried.

    Parameters
    ----------
    model : NTKClassifier or NTKRegressor
        Fitted with ``ridge="loo"`` or ``time="loo"``; one curve for each of its networks.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If only one ridge and one time were tried.
    """
    curves = np.atleast_2d(model.loo_curve_)
    grids = np.broadcast_to(model.loo_grid_, curves.shape)
    if curves.shape[1] < 2:
        raise ValueError("the model has tried one ridge and one time: fit with ridge='loo'")
    options: Any = model
    by_time = options.time == "loo"
    axes = _axes(ax)
    names = ["all training samples but one"]
    if len(curves) > 1:
        names = [str(net) if isinstance(net, Network) else net for net in options.net]
    for grid, curve, name in zip(grids, curves, names, strict=True):
        colour, marker = _next(axes)
        axes.plot(grid, -curve, color=colour, marker=marker, markersize=4, label=name)
    chosen = model.time_ if by_time else model.ridge_
    axes.plot(
        [chosen],
        [-model.loo_score_],
        linestyle="",
        marker="*",
        markersize=15,
        markerfacecolor="none",
        markeredgecolor=_ink(),
        label=f"chosen: {'time' if by_time else 'ridge'} {chosen:.1e}",
        zorder=4,
    )
    axes.set(xscale="log", yscale="log", ylabel="mean squared error, left-out samples")
    axes.set_xlabel(
        "time of training, in 1 / eigenvalue of the kernel"
        if by_time
        else "ridge, relative to the mean of the diagonal"
    )
    _finish(axes)
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, value: float, place: int | None = None) -> str:
            return f"{value:g}" if super().__call__(value, place) else ""

    # Errors often change by less than a decade, which would leave the axis without numbers.
    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain(minor_thresholds=(2, 0.5)))
    return axes


def reliability(
    model: NTKClassifier,
    x: ArrayLike,
    y: ArrayLike,
    *,
    bins: int = 10,
    label: str = "test samples",
    ax: Axes | None = None,
) -> Axes:
    """Draw how often a classifier is right where it is so and so sure.

    Parameters
    ----------
    model : NTKClassifier
    x : array-like
        Samples that were not in the fit, as for `NTKClassifier.predict_proba`.
    y : array-like of shape (n,)
        Their labels.
    bins : int
        Number of intervals of equal width of the confidence, the largest probability. A point is
        the mean of those in one, its bar the 95 % interval of the share (Wilson): long for few.
    label : str
        Name in the legend, where the expected calibration error stands, too: the mean over samples
        of |share of right ones - confidence| of their interval.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If x does not fit the model, or y does not hold one label for each of its samples.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    p = model.predict_proba(x)
    labels = np.asarray(y)
    if labels.shape != p.shape[:1]:
        raise ValueError(f"y must hold {len(p)} labels, one for each sample, got {labels.shape}")
    confidence, right = p.max(axis=1), model.classes_[p.argmax(axis=1)] == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    some = count > 0
    count = count[some]
    share = np.bincount(which, right, bins)[some] / count
    mean = np.bincount(which, confidence, bins)[some] / count
    error = float((count * np.abs(share - mean)).sum() / len(p))
    axes = _axes(ax)
    colour, marker = _next(axes)
    if not axes.lines:
        axes.plot([0, 1], [0, 1], color=_ink(), linestyle=":", linewidth=1, label="calibrated")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel("confidence: the largest probability")
        axes.set_ylabel("share of samples that are right")
    low, high = _wilson(share, count)
    axes.errorbar(
        mean,
        share,
        np.stack([share - low, high - share]),
        color=colour,
        marker=marker,
        markersize=5,
        elinewidth=1,
        capsize=2,
        clip_on=False,
        label=f"{label}, error {error:.3f}",
    )
    return _finish(axes)


def regression(
    model: NTKRegressor,
    x: ArrayLike,
    *,
    x_train: ArrayLike | None = None,
    y_train: ArrayLike | None = None,
    draws: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the predictions of a regression on the line, and the band that they lie in.

    Parameters
    ----------
    model : NTKRegressor
        Fitted to one feature and one target.
    x : array-like of shape (m,) or (m, 1)
        Where to predict.
    x_train, y_train : array-like of shape (n,) or (n, 1), or None
        Points to show.
    draws : int
        How many single networks, or functions of the posterior, to show as thin lines.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there is more than one feature or target, or only one of x_train and y_train.
    """
    if model.n_features_in_ != 1 or model.dual_coef_.ndim != 1:
        raise ValueError(
            f"the model must have one feature and one target, y of shape (n,), to be drawn on the "
            f"line, got {model.n_features_in_} feature(s) and coefficients of shape "
            f"{model.dual_coef_.shape}"
        )
    if (x_train is None) != (y_train is None):
        raise ValueError("x_train and y_train go together, got one of them")
    line = np.sort(np.asarray(x, np.float64).ravel())
    mean, std = cast("tuple[FloatArray, FloatArray]", model.predict(line[:, None], return_std=True))
    axes = _axes(ax)
    colour, _ = _next(axes)
    band = _NORMAL_95 * std
    axes.fill_between(
        line,
        mean - band,
        mean + band,
        color=colour,
        alpha=0.25,
        linewidth=0,
        label=f"± {_NORMAL_95} standard deviations",
    )
    if draws > 0:
        drawn = model.sample_y(line[:, None], draws)
        text = "single networks" if model.kind_ == "ntk" else "single functions"
        first = axes.plot(line, drawn, color=colour, linewidth=0.7, alpha=0.6)
        first[0].set_label(text)
    axes.plot(line, mean, color=colour, linewidth=2, label="mean")
    if x_train is not None:
        axes.plot(
            np.ravel(np.asarray(x_train)),
            np.ravel(np.asarray(y_train)),
            linestyle="",
            marker="o",
            markersize=5,
            color=_ink(),
            label="training points",
            zorder=4,
        )
    axes.set(xlabel="x", ylabel="y")
    return _finish(axes)


def influence(
    found: Influence,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    row: int = 0,
    channels: Channels = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the training images that one prediction owes most to, and how much.

    Parameters
    ----------
    found : Influence
        As ``model.influence(x)`` returns it.
    images : array-like of shape (n, h, w, c)
        The training images of `fit`, in its order; (n, c, h, w) with channels="first".
    labels : array-like of shape (n,) or None
        Their labels, to be shown beside them.
    row : int
        Which of the samples that `found` is about.
    channels : {"first", "last"} or None
        Where those of images are, as for `widelimit.kernel`.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If images are not (n, h, w, c), or look as if their channels were first, or `found` names
        one that is not there.
    """
    pixels = check_channels("images", np.asarray(images, np.float64), channels)
    places, weights = found.indices[row], found.weights[row]
    if pixels.ndim != 4 or places.max() >= len(pixels):
        raise ValueError(
            "images must be the training images of the fit, (n, h, w, c), got shape "
            f"{pixels.shape} where image {places.max()} is asked for"
        )
    axes = _axes(ax)
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    from matplotlib.transforms import blended_transform_factory

    heights = np.arange(len(places))
    for sign, text, colour in ((1, "raises", COLOURS[0]), (-1, "lowers", COLOURS[1])):
        mine = np.sign(weights) == sign
        if mine.any():
            bars = axes.barh(heights[mine], weights[mine], 0.7, color=colour)
            bars.set_label(f"{text} the output")
    axes.axvline(0, color=_ink(), linewidth=0.8)
    axes.set_ylim(len(places) - 0.5, -0.5)
    names = [f"#{place}" for place in places]
    if found.names is not None:
        names = [str(name) for name in found.names[row]]
    if labels is not None:
        given = np.asarray(labels)
        names = [f"{given[place]}  ({name})" for place, name in zip(places, names, strict=True)]
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    # As high as a bar has room for.
    room = axes.get_window_extent().height / len(places) * 72 / axes.figure.dpi
    for height, place in enumerate(places):
        one = pixels[place]
        shown = one if one.shape[2] == 3 else one.mean(axis=2)
        span = float(pixels.max()) or 1.0
        grey = np.clip(shown / span, 0, 1)
        rgb = grey if grey.ndim == 3 else np.repeat(grey[:, :, None], 3, axis=2)
        picture = OffsetImage(rgb, zoom=0.85 * room / len(one), interpolation="nearest")
        box = AnnotationBbox(
            picture, (0, height), xycoords=beside, box_alignment=(1.0, 0.5), frameon=False, pad=0.3
        )
        axes.add_artist(box)
    axes.set_yticks(heights, names)
    axes.tick_params(axis="y", length=0, pad=1.2 * room)
    axes.set_xlabel("part of the output of the predicted class")
    told = "place" if found.names is None else "name"
    axes.set_ylabel("training image" if labels is None else f"training image: label ({told})")
    return _finish(axes)


def width_errors(decays: Sequence[Decay], *, ax: Axes | None = None) -> Axes:
    """Draw how the error of tangent kernels falls with the width (Theorem 3.1), with slopes.

    Bars are one standard error over seeds, lines the power laws that are fitted.

    Parameters
    ----------
    decays : sequence of Decay
        As `widelimit.experiments.finite_width.measure_decay` returns them.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    axes = _axes(ax)
    widths: set[int] = set()
    for decay in decays:
        colour, marker = _next(axes)
        low, high = decay.interval
        axes.errorbar(
            decay.widths,
            decay.mean,
            decay.standard_error,
            color=colour,
            marker=marker,
            markersize=5,
            linestyle="",
            capsize=2,
            elinewidth=1,
            label=f"{decay.name}: slope {decay.slope:.2f} ({low:.2f} to {high:.2f})",
        )
        x = np.array(decay.widths, np.float64)
        level = np.log(decay.mean).mean() - decay.slope * np.log(x).mean()
        axes.plot(x, np.exp(level) * x**decay.slope, color=colour, linewidth=1)
        widths |= set(decay.widths)
    axes.set(xscale="log", yscale="log", xlabel="width")
    axes.set_ylabel("relative error of the tangent kernel")
    _tick(axes.xaxis, sorted(widths), [f"{width:,}" for width in sorted(widths)])
    return _finish(axes)


def training_gaps(training: Training, *, ax: Axes | None = None) -> Axes:
    """Draw how far trained networks are from the kernel, at all times of training (Theorem 3.2).

    Parameters
    ----------
    training : Training
        As `widelimit.experiments.finite_width.train_widths` returns it.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    axes = _axes(ax)
    for width in training.gaps():
        colour, marker = _next(axes)
        gaps = np.mean([run.gaps for run in training.runs if run.width == width], axis=0)
        axes.plot(
            training.times,
            gaps,
            color=colour,
            marker=marker,
            markersize=4,
            label=f"width {width:,}",
        )
    axes.axhline(training.scale, color=_ink(), linestyle=":", linewidth=1, label="predictions, rms")
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("time of training, in 1 / eigenvalue of the kernel")
    axes.set_ylabel("largest gap on test points")
    return _finish(axes)


def weakly_trained(found: Sequence[WeaklyTrained], *, ax: Axes | None = None) -> Axes:
    """Draw how far networks of which the last layer is trained are from the NNGP kernel.

    Means over seeds; bars are their standard errors.

    Parameters
    ----------
    found : sequence of WeaklyTrained
        As `widelimit.experiments.finite_width.train_weakly` returns them.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    axes = _axes(ax)
    widths: set[int] = set()
    for one in found:
        colour, marker = _next(axes)
        gaps = np.array(one.gaps) / one.scale
        axes.errorbar(
            one.widths,
            gaps.mean(axis=1),
            gaps.std(axis=1, ddof=1) / gaps.shape[1] ** 0.5 if gaps.shape[1] > 1 else None,
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2,
            elinewidth=1,
            label=one.name,
        )
        widths |= set(one.widths)
    axes.set(xscale="log", yscale="log", xlabel="width")
    axes.set_ylabel("distance from the NNGP kernel, relative")
    _tick(axes.xaxis, sorted(widths), [f"{width:,}" for width in sorted(widths)])
    return _finish(axes)


def random_features(record: dict[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw the accuracies of random features beside those of the exact kernels (Table 2).

    Parameters
    ----------
    record : dict
        Of ``widelimit reproduce table2``.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    axes = _axes(ax)
    rows = record["rows"]
    names = [f"{'CNTK-V' if row['readout'] == 'v' else 'CNTK-GAP'}\n{row['depth']}" for row in rows]
    for i, row in enumerate(rows):
        drawn = [one["accuracy"] for one in row["random"] if one["accuracy"] is not None]
        label = f"random features, {record['channels']} channels" if i == 0 else None
        axes.plot([i] * len(drawn), drawn, "o", color=COLOURS[1], alpha=0.5, ms=4, label=label)
        if row["median"] is not None:
            label = "their median" if i == 0 else None
            axes.plot([i - 0.25, i + 0.25], [row["median"]] * 2, color=COLOURS[1], label=label)
        if row["accuracy"] is not None:
            label = "exact kernel" if i == 0 else None
            axes.plot([i], [row["accuracy"]], "D", color=COLOURS[0], label=label)
    _tick(axes.xaxis, range(len(rows)), names)
    axes.set_xlabel("kernel and depth")
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter("{x:.0%}")
    return _finish(axes)


def cnn_accuracies(record: dict[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draw the accuracies of trained networks over their width, beside those of exact kernels.

    Bars are one standard error over trials.

    Parameters
    ----------
    record : dict
        Of ``widelimit reproduce table1-cnn``.
    ax : matplotlib.axes.Axes or None

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    axes = _axes(ax)
    exact = {(one["column"], one["depth"]): one["accuracy"] for one in record["exact"]}
    curves: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        if row["accuracy"] is not None:
            curves.setdefault((row["column"], row["depth"]), []).append(row)
    widths: set[int] = set()
    for key, rows in curves.items():
        colour, marker = _next(axes)
        name = f"{key[0].upper()}, depth {key[1]}"
        axes.errorbar(
            [row["channels"] for row in rows],
            [row["accuracy"] for row in rows],
            [row["standard_error"] or 0.0 for row in rows],
            color=colour,
            marker=marker,
            markersize=5,
            capsize=2,
            elinewidth=1,
            label=name,
        )
        for row in rows:
            each = [one["accuracy"] for one in row["trials"]]
            axes.plot([row["channels"]] * len(each), each, ".", color=colour, alpha=0.4)
            widths.add(row["channels"])
        if exact.get(key) is not None:
            label = f"exact {name.replace('CNN', 'CNTK')}"
            axes.axhline(exact[key], color=colour, linestyle=":", label=label)
    axes.set(xscale="log", xlabel="channels", ylabel="test accuracy")
    axes.yaxis.set_major_formatter("{x:.1%}")
    _tick(axes.xaxis, sorted(widths), [f"{width:,}" for width in sorted(widths)])
    return _finish(axes)


def check_picture(path: Path, *, replace: bool) -> None:
    """Refuse a picture that could not be drawn, or not be written.

    Parameters
    ----------
    path : Path
    replace : bool
        Whether a file that is there may be written over.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If it is no .svg or .png file.
    OSError
        As for `check_file`.
    """
    _load_pyplot()
    _picture_kind(path)
    check_file(path, replace=replace)


def _picture_kind(path: Path) -> str:
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"a picture must be an .svg or .png file, got {path}")
    return path.suffix[1:]


def draw_record(record: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw a record of finite networks into a file; the same record has the same picture.

    Parameters
    ----------
    record : dict
        Of ``widelimit reproduce theorem31`` and so on.
    path : str or path
        An .svg or .png file; one that is there is written over.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If it is the record of something else, or no .svg or .png file.
    """
    import matplotlib as mpl

    place = Path(path)
    kind = _picture_kind(place)
    of = str(record.get("format")).partition("/")[0]
    if of not in _DRAWN:
        raise ValueError(
            f"the format of a record that is drawn must be one of {', '.join(_DRAWN)}, got {of}: "
            "widelimit report makes a page of any record, with its pictures"
        )
    style: Any = {"svg.hashsalt": "widelimit", "svg.fonttype": "none", "font.size": 9}
    with cast("Any", mpl).rc_context(style):
        pyplot = _load_pyplot()
        figure, axes = pyplot.subplots(layout="constrained")
        _DRAWN[of](record, axes)
        drawn = BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(drawn, format=kind, metadata=metadata, dpi=150)
        pyplot.close(figure)
    write_atomically(place, drawn.getvalue())


def _draw_trainings(record: dict[str, Any], ax: Any) -> None:
    given: dict[str, Any] = dict(record["training"])
    given["runs"] = tuple(Run(**one) for one in given["runs"])
    training_gaps(Training(**given), ax=ax)


_DRAWN: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "widelimit.theorem31": lambda record, ax: width_errors(
        [Decay(**one) for one in record["decays"]], ax=ax
    ),
    "widelimit.theorem32": _draw_trainings,
    "widelimit.weakly_trained": lambda record, ax: weakly_trained(
        [WeaklyTrained(**one) for one in record["weakly_trained"]], ax=ax
    ),
    "widelimit.table1_cnn": lambda record, ax: cnn_accuracies(record, ax=ax),
    "widelimit.table2": lambda record, ax: random_features(record, ax=ax),
}


def _axes(ax: Axes | None) -> Any:
    """Return the axes, or those of a new figure."""
    pyplot = _load_pyplot()
    return pyplot.subplots(layout="constrained")[1] if ax is None else ax


def _load_pyplot() -> Any:
    """Return the module, which is untyped in the parts used here."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "widelimit.plot draws with matplotlib, which is not installed: "
            'pip install "widelimit[plot]"'
        ) from error
    return cast("Any", pyplot)


def _ink() -> Any:
    from matplotlib import rcParams

    return cast("Any", rcParams)["text.color"]


def _next(ax: Any) -> tuple[str, str]:
    """Return colour and marker of the next curve; axes count theirs, as those of `plot` do."""
    taken = getattr(ax, "_widelimit_curves", 0)
    ax._widelimit_curves = taken + 1
    return COLOURS[taken % len(COLOURS)], _MARKERS[taken % len(_MARKERS)]


def _finish(ax: Any) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _tick(axis: Any, places: Sequence[float], names: Sequence[str]) -> None:
    axis.set_ticks(places, names)
    axis.set_ticks([], minor=True)


def _name_classes(ax: Any, labels: NDArray[Any], class_names: Sequence[str] | None) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    ends = np.cumsum(counts)
    for end in ends[:-1] - 0.5:
        ax.axhline(end, color="white", linewidth=0.6)
        ax.axvline(end, color="white", linewidth=0.6)
    if len(classes) <= _MOST_NAMED:
        names = [str(c) if class_names is None else class_names[int(c)] for c in classes]
        middles = ends - counts / 2 - 0.5
        upright = 90 if max(map(len, names)) > 3 else 0
        ax.set_xticks(middles, names, rotation=upright)
        ax.set_yticks(middles, names)
        ax.tick_params(length=0)
    text = "samples, sorted by class"
    ax.set(xlabel=text, ylabel=text)


def _wilson(share: FloatArray, count: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
    """Return the ends of the 95 % interval of a share that was seen in so many samples."""
    z = _NORMAL_95**2 / count
    middle = (share + z / 2) / (1 + z)
    half = np.sqrt(z * share * (1 - share) + z**2 / 4) / (1 + z)
    # With all right, or none, an end is the share itself, but for rounding.
    return np.minimum(middle - half, share), np.maximum(middle + half, share)
