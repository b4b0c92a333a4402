"""Pictures: what they show is what was computed, everything on them has a name."""

import builtins
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import widelimit as wl
from widelimit import plot
from widelimit.experiments.finite_width import Decay, Run, Training, WeaklyTrained
from widelimit.experiments.record import Curve, Point
from widelimit.solvers import Spectrum

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

from matplotlib import pyplot  # noqa: E402

NET = wl.Network([wl.Dense(1.5, 0.5), wl.ReLU(), wl.Dense(1.0)])
LINE = np.linspace(-2, 2, 9)


def make_point(size: int, mean: float) -> Point:
    return Point(size, (mean - 0.05, mean + 0.05), mean, 0.07, ({}, {}))


def make_record() -> Any:
    """What `learning_curve` reads of a record."""
    sizes = (10, 20, 40)
    means = {"ours": (0.8, 0.9, 1.0), "theirs": (0.5, 0.75, 0.875)}
    curves = tuple(
        Curve(name, name, "", tuple(map(make_point, sizes, ms))) for name, ms in means.items()
    )
    return SimpleNamespace(curves=curves, sizes=sizes, data=SimpleNamespace(n_test=100))


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def toy() -> Any:
    data = wl.load_dataset("digits")
    x, y = data.x_train[:40], data.y_train[:40]
    nets = ["cntk-vanilla-2", "cntk-vanilla-3"]
    return SimpleNamespace(
        x=x,
        y=y,
        x_test=data.x_test[:60],
        y_test=data.y_test[:60],
        k=wl.kernel(wl.cntk_vanilla(2), x, dtype="float64"),
        model=wl.NTKClassifier(nets, ridge="loo", dtype="float64").fit(x, y),
        timed=wl.NTKClassifier(nets[0], time="loo", dtype="float64").fit(x, y),
        line=wl.NTKRegressor(NET).fit(LINE[:, None], np.sin(LINE)),
        record=make_record(),
    )


DECAY = Decay("toy", "", (16, 64), ((0.4, 0.6), (0.2, 0.3)), -0.5, 0.02, (0.1,), ((0.0,),) * 2)
RUN = Run(64, 0, 10, 0.1, 0.0, (0.1, 0.2), 0.2, 0.9)
TRAINING = Training("toy", "", 2, 2, 0.1, True, 0.8, 0.9, (1.0, 10.0), (RUN, RUN))
WEAK = WeaklyTrained(
    "toy", "", 2, 2, 0.1, (16, 64), ((0.5,), (0.6,)), ((0.5,), (0.2,)), 0.9, 0.9, 0.5
)
FEATURES = {
    "channels": 8,
    "rows": [
        {
            "readout": readout,
            "depth": 3,
            "accuracy": 0.9,
            "median": 0.6,
            "random": [{"accuracy": 0.6}],
        }
        for readout in ("v", "gap")
    ],
}
CNN = {
    "exact": [{"column": "cnn-gap", "depth": 3, "accuracy": 0.9}],
    "rows": [
        {
            "column": "cnn-gap",
            "depth": 3,
            "channels": channels,
            "accuracy": 0.7,
            "standard_error": 0.1,
            "trials": [{"accuracy": 0.6}, {"accuracy": 0.8}],
        }
        for channels in (16, 32)
    ],
}
PICTURES = {
    "kernel_matrix": lambda t, **o: plot.kernel_matrix(t.k, t.y, **o),
    "spectrum": lambda t, **o: plot.spectrum(t.model, **o),
    "learning_curve": lambda t, **o: plot.learning_curve(t.record, **o),
    "leave_one_out": lambda t, **o: plot.leave_one_out(t.model, **o),
    "reliability": lambda t, **o: plot.reliability(t.model, t.x_test, t.y_test, **o),
    "regression": lambda t, **o: plot.regression(
        t.line, np.linspace(-3, 3, 20), x_train=LINE, y_train=np.sin(LINE), draws=2, **o
    ),
    "width_errors": lambda t, **o: plot.width_errors([DECAY], **o),
    "training_gaps": lambda t, **o: plot.training_gaps(TRAINING, **o),
    "weakly_trained": lambda t, **o: plot.weakly_trained([WEAK], **o),
    "random_features": lambda t, **o: plot.random_features(FEATURES, **o),
    "cnn_accuracies": lambda t, **o: plot.cnn_accuracies(CNN, **o),
    "influence": lambda t, **o: plot.influence(t.model.influence(t.x_test[:1], 4), t.x, t.y, **o),
}


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_every_function_is_drawn_here() -> None:
    drawn = {name for name in plot.__all__ if name.islower()}
    assert set(PICTURES) == drawn - {"check_picture", "draw_record"}  # these are of files


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_has_axes_with_names_and_is_drawn_where_it_is_told(toy: Any, name: str) -> None:
    figure, (left, right) = pyplot.subplots(1, 2)
    ax = PICTURES[name](toy, ax=right)
    assert ax is right
    assert not left.has_data()
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    if name == "kernel_matrix":  # its legend is the bar of colours
        assert "k(x, x')" in figure.axes[-1].get_ylabel()
    else:
        assert all(not text.startswith("_") for text in legend(ax))
    figure.canvas.draw()
    assert PICTURES[name](toy).figure is not figure  # without ax: a new one


def test_a_kernel_matrix_is_sorted_by_class(toy: Any) -> None:
    ax = plot.kernel_matrix(toy.k, toy.y, normalise=False, class_names=list("abcdefghij"))
    order = np.argsort(toy.y, kind="stable")
    np.testing.assert_array_equal(ax.images[0].get_array(), toy.k[np.ix_(order, order)])
    assert [text.get_text() for text in ax.get_yticklabels()] == list("abcdefghij")
    cosines = plot.kernel_matrix(toy.k).images[0].get_array()
    np.testing.assert_allclose(np.diagonal(cosines), 1.0)


def test_a_spectrum_is_relative_as_ridges_are(toy: Any) -> None:
    values = plot.spectrum(toy.k, label="mine").lines[0].get_ydata()
    expected = np.linalg.eigvalsh(toy.k)[::-1] / (np.trace(toy.k) / 40)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    ax = plot.spectrum(toy.model)
    assert legend(ax) == ["eigenvalues", f"ridge, {toy.model.ridge_:.0e}"]
    # A matrix of rank 1 and rounding: what is not known is said.
    assert "rounding: below it, zero" in legend(plot.spectrum(np.ones((9, 9), np.float32)))
    assert len(plot.spectrum(Spectrum.of(np.ones((9, 9)))).lines) == 2


def test_a_learning_curve_shows_every_method(toy: Any) -> None:
    ax = plot.learning_curve(toy.record)
    assert legend(ax) == [curve.label for curve in toy.record.curves]
    drawn = [bars.lines[0].get_ydata() for bars in ax.containers]
    least = 0.5 / toy.record.data.n_test
    for errors, curve in zip(drawn, toy.record.curves, strict=True):
        means = [max(1 - point.mean, least) for point in curve.points]
        np.testing.assert_allclose(errors, means)


def test_leave_one_out_shows_each_network_and_the_choice(toy: Any) -> None:
    ax = plot.leave_one_out(toy.model)
    assert legend(ax)[:2] == ["cntk-vanilla-2", "cntk-vanilla-3"]
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), -toy.model.loo_curve_[1])
    assert ax.lines[2].get_xdata()[0] == toy.model.ridge_
    timed = plot.leave_one_out(toy.timed)
    assert timed.get_xlabel().startswith("time")
    assert timed.lines[1].get_xdata()[0] == toy.timed.time_
    with pytest.raises(ValueError, match="fit with ridge='loo'"):
        plot.leave_one_out(toy.line)


def test_reliability_counts_each_sample_once(toy: Any) -> None:
    ax = plot.reliability(toy.model, toy.x_test, toy.y_test, bins=1)
    (bars,) = ax.containers
    share = toy.model.score(toy.x_test, toy.y_test)
    confidence = toy.model.predict_proba(toy.x_test).max(axis=1).mean()
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [[confidence, share]])
    assert legend(ax)[1] == f"test samples, error {abs(share - confidence):.3f}"
    low, high = bars.lines[2][0].get_segments()[0][:, 1]
    assert low < share < high
    # Wilson's interval of 9 of 10, from the literature: 0.596 to 0.982.
    np.testing.assert_allclose(
        np.ravel(plot._wilson(np.array([0.9]), 10)), [0.596, 0.982], atol=6e-4
    )
    with pytest.raises(ValueError, match="60 labels"):
        plot.reliability(toy.model, toy.x_test, toy.y_test[:5])


def test_the_band_of_a_regression_is_that_of_predict(toy: Any) -> None:
    x = np.array([-2.5, 0.3, 2.7])
    ax = plot.regression(toy.line, x[::-1])
    mean, std = toy.line.predict(x[:, None], return_std=True)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), np.stack([x, mean], axis=1))
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.max() == pytest.approx((mean + 1.96 * std).max())
    with pytest.raises(ValueError, match="x_train and y_train go together"):
        plot.regression(toy.line, x, x_train=x)
    two = wl.NTKRegressor(NET).fit(LINE[:, None], np.stack([LINE, LINE], axis=1))
    with pytest.raises(ValueError, match="one feature and one target"):
        plot.regression(two, x)


def test_influences_have_their_thumbnails(toy: Any) -> None:
    found = toy.model.influence(toy.x_test[:3], 5)
    ax = plot.influence(found, toy.x, toy.y, row=2)
    widths = sorted(bar.get_width() for bar in ax.patches)
    np.testing.assert_allclose(widths, np.sort(found.weights[2]))
    pictures = [box.offsetbox.get_data() for box in ax.artists]
    expected = toy.x[found.indices[2]] / toy.x.max()
    np.testing.assert_allclose([picture[:, :, :1] for picture in pictures], expected)
    first = found.indices[2, 0]
    assert ax.get_yticklabels()[0].get_text() == f"{toy.y[first]}  (#{first})"
    with pytest.raises(ValueError, match=r"images must be .* got shape \(1, 8, 8, 1\)"):
        plot.influence(found, toy.x[:1])
    first = toy.x.transpose(0, 3, 1, 2)
    with pytest.raises(ValueError, match=r"images .* is read in two ways"):
        plot.influence(found, first)
    ax = plot.influence(found, first, toy.y, row=2, channels="first")
    np.testing.assert_array_equal([box.offsetbox.get_data() for box in ax.artists], pictures)


def test_what_is_no_kernel_matrix_is_refused(toy: Any) -> None:
    with pytest.raises(ValueError, match=r"k must be a kernel matrix .* got shape \(3, 4\)"):
        plot.kernel_matrix(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"draw a part, k\[:2000, :2000\]"):
        plot.kernel_matrix(np.broadcast_to(1.0, (10_001, 10_001)))
    with pytest.raises(ValueError, match="y must hold 40 labels"):
        plot.kernel_matrix(toy.k, toy.y[:-1])


def test_without_matplotlib_the_extra_is_named(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for draw in PICTURES.values():
        with pytest.raises(ImportError, match=r'pip install "widelimit\[plot\]"'):
            draw(toy)


def least_difference(colours: Sequence[str]) -> float:
    """Smallest distance of two colours in sRGB, as seen without red, or without green, cones.

    By Vienot, Brettel and Mollon, *Digital video colourmaps for checking the legibility of displays
    by dichromats*, 1999.
    """
    rgb = matplotlib.colors.to_rgba_array(colours)[:, :3]
    to_cones = np.array(
        [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.02996, 0.18431, 1.46709]]
    )
    cones = rgb**2.2 @ to_cones.T
    protan, deutan = cones.copy(), cones.copy()
    protan[:, 0] = 2.02344 * cones[:, 1] - 2.52581 * cones[:, 2]
    deutan[:, 1] = 0.494207 * cones[:, 0] + 1.24827 * cones[:, 2]
    least = np.inf
    for seen in (protan, deutan):
        shown = np.clip(seen @ np.linalg.inv(to_cones).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(shown[:, None] - shown, axis=2)
        least = min(least, apart[~np.eye(len(shown), dtype=bool)].min())
    return least


def test_colours_survive_colour_blindness() -> None:
    usual = pyplot.rcParamsDefault["axes.prop_cycle"].by_key()["color"]
    assert least_difference(usual[:6]) < 0.05
    assert least_difference(plot.COLOURS) > 0.12
