"""Theorems 3.1 and 3.2 with real networks: what their kernels and their training tend to.

Every function returns frozen dataclasses of plain values, ready for JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from widelimit.arrays import FloatArray
from widelimit.estimators.regressor import NTKRegressor
from widelimit.experiments.cells import Keep, compute_now
from widelimit.finite.building import build
from widelimit.finite.tangent import empirical_nngp, empirical_ntk
from widelimit.finite.training import descend
from widelimit.matrices import kernel
from widelimit.network import Network

__all__ = [
    "Decay",
    "Means",
    "Training",
    "WeaklyTrained",
    "cell_name",
    "compare_means",
    "digits_pair",
    "measure_decay",
    "train_weakly",
    "train_widths",
]

_NORMAL_95 = 1.96
Say = Callable[[str], None]


def _silent(_: str) -> None: ...


def cell_name(name: str, *numbers: int) -> str:
    """Return the name of a part of what is called so, for files: "dense-depth-3-64"."""
    words = re.findall("[a-z0-9]+", name.lower())
    return "-".join([*words, *map(str, numbers)])


@dataclass(frozen=True, slots=True)
class Decay:
    """Theorem 3.1: how the distance of tangent kernels from the exact one falls with the width.

    Parameters
    ----------
    name : str
    network : str
        Canonical JSON.
    widths : tuple of int
    errors : tuple of tuple of float
        ``|K_hat - K|_F / |K|_F`` for each width (row) and seed.
    slope, slope_error : float
        Of log mean error over log width, by least squares, and its standard error from the scatter
        of seeds.
    epsilons : tuple of float
    within : tuple of tuple of float
        For each width (row), the share of seeds whose error is at most each epsilon.
    """

    name: str
    network: str
    widths: tuple[int, ...]
    errors: tuple[tuple[float, ...], ...]
    slope: float
    slope_error: float
    epsilons: tuple[float, ...]
    within: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> FloatArray:
        """Mean error of each width."""
        return np.array([np.mean(row) for row in self.errors], np.float64)

    @property
    def standard_error(self) -> FloatArray:
        """Standard error of `mean`."""
        return np.array([np.std(row, ddof=1) / np.sqrt(len(row)) for row in self.errors])

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the slope."""
        half = _NORMAL_95 * self.slope_error
        return self.slope - half, self.slope + half


def measure_decay(
    name: str,
    network: Network,
    x: ArrayLike,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    *,
    epsilons: Sequence[float] = (0.05, 0.1, 0.2),
    device: str = "cpu",
    say: Say = _silent,
    keep: Keep = compute_now,
) -> Decay:
    """Measure the error of empirical tangent kernels over widths (Theorem 3.1).

    Parameters
    ----------
    name : str
        For readers.
    network : Network
    x : array_like of shape (n, h, w, c), or (n, d) for dense networks
    widths : sequence of int
        At least two, ascending.
    seeds : int or sequence of int
        Networks of each width, or of each of them, at least 2.
    epsilons : sequence of float
        Relative errors whose share is counted.
    device : str
        Of the networks.
    say : callable
        Gets a sentence after each width.
    keep : Keep
        A part is a width: ``cell_name(name, width)``.

    Returns
    -------
    Decay
    """
    counts = [seeds] * len(widths) if isinstance(seeds, int) else list(seeds)
    if len(widths) < 2 or list(widths) != sorted(set(widths)):
        raise ValueError(f"widths must ascend, and be at least two, got {list(widths)}")
    if len(counts) != len(widths) or min(counts) < 2:
        raise ValueError(f"seeds must be at least 2, one number for each width, got {seeds}")
    images = np.asarray(x)
    exact = kernel(network, images, dtype="float64")
    norm = np.linalg.norm(exact)
    errors: list[tuple[float, ...]] = []
    for width, count in zip(widths, counts, strict=True):

        def measure(width: int = width, count: int = count) -> list[float]:
            modules = (
                _build(network, width, (seed, width), images, device=device)
                for seed in range(count)
            )
            found = (np.linalg.norm(empirical_ntk(m, images) - exact) for m in modules)
            return [float(away / norm) for away in found]

        row: list[float] = keep(cell_name(name, width), measure)
        errors.append(tuple(row))
        say(f"{name}, width {width:,}: mean relative error {np.mean(row):.4f} of {count} networks")
    slope, slope_error = fit_slope(widths, errors)
    within = tuple(tuple(float(np.mean(np.array(r) <= e)) for e in epsilons) for r in errors)
    return Decay(
        name,
        network.to_json(),
        tuple(widths),
        tuple(errors),
        slope,
        slope_error,
        tuple(epsilons),
        within,
    )


def fit_slope(widths: Sequence[int], errors: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the slope of log mean error over log width by least squares, and its standard error.

    The error is that of the means, ``var(log mean) = var / (seeds mean^2)``: the line is what is
    asked about, so that its own misfit is no part of it.
    """
    log = np.log(np.asarray(widths, np.float64))
    centred = log - log.mean()
    share = centred / (centred @ centred)
    means = np.array([np.mean(row) for row in errors])
    relative = np.array([np.std(r, ddof=1) / np.sqrt(len(r)) / np.mean(r) for r in errors])
    return float(share @ np.log(means)), float(np.sqrt(share**2 @ relative**2))


@dataclass(frozen=True, slots=True)
class Means:
    """The mean of many tangent kernels of one width, beside the exact kernel.

    Parameters
    ----------
    name, network : str
    width, draws : int
        The bias is estimated with as many networks of half the width.
    largest : float or None
        Largest of ``(|mean - exact| - |bias|) / standard error`` over entries; the bias,
        O(1/width), is the difference of the means of both widths. None where an entry is the same
        in all networks, as where ReLU leaves nothing of few narrow ones.
    largest_without_bias : float or None
        The same without the bias taken off.
    relative_error : float
        ``|mean - exact|_F / |exact|_F``.
    """

    name: str
    network: str
    width: int
    draws: int
    largest: float | None
    largest_without_bias: float | None
    relative_error: float


def compare_means(
    name: str,
    network: Network,
    x: ArrayLike,
    width: int,
    draws: int,
    *,
    device: str = "cpu",
    say: Say = _silent,
    keep: Keep = compute_now,
) -> Means:
    """Compare the mean of empirical tangent kernels with the exact one, entry by entry.

    Parameters
    ----------
    name : str
    network : Network
    x : array_like of shape (n, h, w, c), or (n, d) for dense networks
    width, draws : int
        Both at least 2.
    device : str
    say : callable
    keep : Keep
        A part is a width, and half of it: ``cell_name(f"mean {name}", width)``.

    Returns
    -------
    Means
    """
    images = np.asarray(x)
    exact = kernel(network, images, dtype="float64")

    def measure(size: int) -> list[list[list[float]]]:
        found = np.array(
            [
                empirical_ntk(_build(network, size, (draw, size), images, device=device), images)
                for draw in range(draws)
            ]
        )
        return [found.mean(axis=0).tolist(), found.std(axis=0, ddof=1).tolist()]

    (half, _), (full, spread) = (
        np.array(keep(cell_name(f"mean {name}", size), lambda size=size: measure(size)))
        for size in (width // 2, width)
    )
    error = spread / np.sqrt(draws)
    away = np.abs(full - exact)
    largest, without_bias = (
        float((far / error).max()) if (error > 0).all() else None
        for far in (away - np.abs(half - full), away)
    )
    relative = float(np.linalg.norm(full - exact) / np.linalg.norm(exact))
    beyond = (
        "some of its entries are the same in all of them"
        if largest is None
        else f"at most {largest:.2f} standard errors beyond its bias"
    )
    say(f"{name}: mean of {draws} networks of width {width} is {relative:.2%} off, {beyond}")
    return Means(name, network.to_json(), width, draws, largest, without_bias, relative)


@dataclass(frozen=True, slots=True)
class Training:
    """Theorem 3.2: networks that were trained, beside regression with the tangent kernel.

    Parameters
    ----------
    name, network : str
    n_train, n_test : int
    kappa : float
    zero_at_start : bool
    scale : float
        Root mean square of the predictions of the kernel on test points.
    kernel_accuracy : float
    times : tuple of float
        In 1 / eigenvalue of the kernel; the last is the end.
    runs : tuple of Run
    """

    name: str
    network: str
    n_train: int
    n_test: int
    kappa: float
    zero_at_start: bool
    scale: float
    kernel_accuracy: float
    times: tuple[float, ...]
    runs: tuple[Run, ...]

    def gaps(self) -> dict[int, float]:
        """Return for each width the largest gap in the end, mean over seeds."""
        widths = sorted({run.width for run in self.runs})
        return {
            w: float(np.mean([run.gaps[-1] for run in self.runs if run.width == w])) for w in widths
        }


@dataclass(frozen=True, slots=True)
class Run:
    """One network of `Training`.

    Parameters
    ----------
    width, seed, steps : int
    residual : float
        Largest ``|f(x_i) - y_i|`` of training points in the end.
    training_error : float
        Share of training points on the wrong side of 0 in the end.
    gaps : tuple of float
        At each time, the largest gap on test points from the outputs of the kernel at that time
        (Eq. 3-4).
    gap_to_end : float
        In the end, from kernel regression, training for ever.
    accuracy : float
    """

    width: int
    seed: int
    steps: int
    residual: float
    training_error: float
    gaps: tuple[float, ...]
    gap_to_end: float
    accuracy: float


def training_times(
    network: Network, x: ArrayLike, decay: float = 5.0, n_times: int = 12
) -> tuple[list[float], float]:
    """Return the times at which outputs are compared, and the largest eigenvalue of the kernel.

    Parameters
    ----------
    network, x, decay, n_times
        As for `train_widths`.

    Raises
    ------
    ValueError
        If the kernel is singular.
    """
    eigenvalues = np.linalg.eigvalsh(kernel(network, _float64(x), dtype="float64"))
    least, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if least <= 0:
        raise ValueError("the kernel of x is singular: leave out repeated samples")
    end, first = decay / least, 0.1 / largest
    return [first * (end / first) ** (i / (n_times - 1)) for i in range(n_times)], largest


def train_widths(
    name: str,
    network: Network,
    x: ArrayLike,
    y: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    widths: Sequence[int],
    seeds: int | Sequence[int] = 1,
    *,
    kappa: float = 0.1,
    zero_at_start: bool = True,
    decay: float = 5.0,
    n_times: int = 12,
    device: str = "cpu",
    say: Say = _silent,
    keep: Keep = compute_now,
) -> Training:
    """Train networks of several widths by gradient descent, and compare with kernel regression.

    Parameters
    ----------
    name : str
    network : Network
    x, x_test : array_like of shape (n, d) or (n, h, w, c)
    y, y_test : array_like of shape (n,)
        -1 and 1.
    widths : sequence of int
    seeds : int or sequence of int
        Networks of each width, or of each of them.
    kappa, zero_at_start
        As for `build`.
    decay : float
        Training ends where the slowest direction is learned to ``exp(-decay)``.
    n_times : int
        At which outputs are compared, at least 2.
    device : str
    say : callable
    keep : Keep
        A part is a network: ``cell_name(name, width, seed)``.

    Returns
    -------
    Training
    """
    samples, targets, tests = _float64(x), _float64(y), _float64(x_test)
    counts = [seeds] * len(widths) if isinstance(seeds, int) else list(seeds)
    times, largest = training_times(network, samples, decay, n_times)
    model = NTKRegressor(network, ridge=0.0, normalize_y=False, standardise=False, dtype="float64")
    model.fit(samples, targets)
    predicted = np.stack(list(model.staged_predict(tests, times)))
    final = cast("FloatArray", model.predict(tests))
    labels = _float64(y_test)
    runs: list[Run] = []
    for width, count in zip(widths, counts, strict=True):
        for seed in range(count):

            def train(width: int = width, seed: int = seed) -> dict[str, Any]:
                options: Any = {"kappa": kappa, "zero_at_start": zero_at_start, "device": device}
                module = _build(network, width, (seed, width), samples, **options)
                done = descend(module, samples, targets, tests, times, largest)
                return {
                    "steps": done.steps,
                    "residual": _largest(done.train[-1] - targets),
                    "training_error": 1.0 - _accuracy(done.train[-1], targets),
                    "gaps": np.abs(done.test - predicted).max(axis=1).tolist(),
                    "gap_to_end": _largest(done.test[-1] - final),
                    "accuracy": _accuracy(done.test[-1], labels),
                }

            found = keep(cell_name(name, width, seed), train)
            gaps = tuple(found.pop("gaps"))
            run = Run(width, seed, gaps=gaps, **found)
            runs.append(run)
            say(
                f"{name}, width {width:,}, seed {seed}: largest gap {gaps[-1]:.4f} (on the way "
                f"{max(gaps):.4f}), training residual {run.residual:.4f}, {run.steps} steps"
            )
    return Training(
        name,
        network.to_json(),
        len(samples),
        len(tests),
        kappa,
        zero_at_start,
        _rms(final),
        _accuracy(final, labels),
        tuple(times),
        tuple(runs),
    )


@dataclass(frozen=True, slots=True)
class WeaklyTrained:
    """Networks of which the last layer alone is trained, beside regression with the NNGP kernel.

    Parameters
    ----------
    name, network : str
    n_train, n_test : int
    ridge : float
        Relative to the mean of the diagonal.
    widths : tuple of int
    accuracies : tuple of tuple of float
        On test points, for each width (row) and seed.
    gaps : tuple of tuple of float
        Root mean square distance of predictions from those of the NNGP kernel, likewise.
    exact_accuracy, ntk_accuracy : float
        Of the NNGP kernel and of the NTK.
    scale : float
        Root mean square of the predictions of the NNGP kernel.
    """

    name: str
    network: str
    n_train: int
    n_test: int
    ridge: float
    widths: tuple[int, ...]
    accuracies: tuple[tuple[float, ...], ...]
    gaps: tuple[tuple[float, ...], ...]
    exact_accuracy: float
    ntk_accuracy: float
    scale: float


def train_weakly(
    name: str,
    network: Network,
    x: ArrayLike,
    y: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    widths: Sequence[int],
    seeds: int,
    *,
    ridge: float = 1e-3,
    device: str = "cpu",
    say: Say = _silent,
    keep: Keep = compute_now,
) -> WeaklyTrained:
    """Compare random features of finite width with the NNGP kernel that they tend to.

    To train the last layer to the end with a decay of weights is regression with the kernel
    `empirical_nngp`, which is solved in closed form.

    Parameters
    ----------
    name : str
    network : Network
    x, x_test : array_like of shape (n, d) or (n, h, w, c)
    y, y_test : array_like of shape (n,)
        -1 and 1.
    widths : sequence of int
    seeds : int
    ridge : float
        Above 0: random features of a width below n have a singular kernel.
    device : str
    say : callable
    keep : Keep
        A part is a width: ``cell_name(name, width)``.

    Returns
    -------
    WeaklyTrained
    """
    samples, targets, tests = _float64(x), _float64(y), _float64(x_test)
    labels = _float64(y_test)

    def regress(k: FloatArray, k_test: FloatArray) -> FloatArray:
        shift = ridge * float(np.mean(k.diagonal())) * np.eye(len(k))
        return k_test @ np.linalg.solve(k + shift, targets)

    kinds = ("nngp", "ntk")
    pairs = zip(
        kernel(network, samples, kind=kinds, dtype="float64"),
        kernel(network, tests, samples, kind=kinds, dtype="float64"),
        strict=True,
    )
    exact, ntk = (regress(k, k_test) for k, k_test in pairs)
    accuracies: list[tuple[float, ...]] = []
    gaps: list[tuple[float, ...]] = []
    for width in widths:

        def measure(width: int = width) -> list[tuple[float, float]]:
            rows: list[tuple[float, float]] = []
            for seed in range(seeds):
                module = _build(network, width, (seed, width), samples, device=device)
                k, k_test = empirical_nngp(module, samples), empirical_nngp(module, tests, samples)
                outputs = regress(k, k_test)
                rows.append((_accuracy(outputs, labels), _rms(outputs - exact)))
            return rows

        rows: list[tuple[float, float]] = keep(cell_name(name, width), measure)
        accuracies.append(tuple(row[0] for row in rows))
        gaps.append(tuple(row[1] for row in rows))
        say(
            f"{name}, width {width:,}: accuracy {np.mean(accuracies[-1]):.3f}, distance from the "
            f"NNGP kernel {np.mean(gaps[-1]):.3f}"
        )
    return WeaklyTrained(
        name,
        network.to_json(),
        len(samples),
        len(tests),
        ridge,
        tuple(widths),
        tuple(accuracies),
        tuple(gaps),
        _accuracy(exact, labels),
        _accuracy(ntk, labels),
        _rms(exact),
    )


def digits_pair(
    classes: tuple[int, int], n_train: int, n_test: int, seed: int = 0
) -> Mapping[str, FloatArray]:
    """Draw images of two of the digits, as many of each, with labels -1 and 1.

    Returns
    -------
    mapping
        "x", "y", "x_test", "y_test"; images of shape (n, 8, 8, 1).
    """
    from widelimit.data import load_dataset

    data = load_dataset("digits")
    x = np.concatenate([data.x_train, data.x_test])
    y = np.concatenate([data.y_train, data.y_test])
    rng = np.random.default_rng(seed)
    places = [rng.permutation(np.flatnonzero(y == c)) for c in classes]
    fewest = min(map(len, places))
    if n_train % 2 or n_test % 2 or not 0 < n_train + n_test <= 2 * fewest:
        raise ValueError(
            f"n_train and n_test must be even, together at most {2 * fewest}, got {n_train} and "
            f"{n_test}"
        )
    half = n_train // 2
    train = np.concatenate([p[:half] for p in places])
    test = np.concatenate([p[half : half + n_test // 2] for p in places])
    sign = np.where(y == classes[1], 1.0, -1.0)
    return {"x": x[train], "y": sign[train], "x_test": x[test], "y_test": sign[test]}


def _largest(values: FloatArray) -> float:
    return float(np.max(np.abs(values)))


def _accuracy(outputs: FloatArray, labels: FloatArray) -> float:
    """Return the share of outputs that lie on the side of 0 of their labels."""
    return float(np.mean(outputs * labels > 0))


def _rms(values: FloatArray) -> float:
    return float(np.linalg.norm(values) / np.sqrt(values.size))


def _float64(values: ArrayLike) -> FloatArray:
    return np.asarray(values, np.float64)


def _build(network: Network, width: int, seed: tuple[int, int], x: Any, **options: Any) -> Any:
    channels = "last" if x.ndim == 4 else None
    return build(network, width, seed, input_shape=x.shape[1:], channels=channels, **options)
