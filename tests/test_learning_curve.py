"""The learning curve: what is drawn, what it costs, and that results are what they say."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import linear_model
from toys import FakeKernel, make_dataset, make_images, run_toy

from widelimit import cntk_gap, load_dataset
from widelimit.data import Dataset, draw_training_sets
from widelimit.experiments import environment as environment_module
from widelimit.experiments.baselines import GRIDS, Cancelled, fit_baseline
from widelimit.experiments.design import MAX_TRAINING, shrink_images
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.learning_curve import (
    CURVE_STAGE,
    METHODS,
    RIDGES,
    Record,
    estimate_seconds,
    make_design,
    run,
)
from widelimit.experiments.sets import Sets, take
from widelimit.solvers import encode_labels


@pytest.fixture(scope="module", params=["drawn", "given"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return make_dataset(split=request.param)


@pytest.fixture(scope="module")
def record(dataset: Dataset) -> Record:
    return run_toy(
        dataset,
        3,
        threads=2,
        command=["/a/b/demo", "--x y"],
    )


# --- what is drawn ---


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=7),
    seed=st.integers(0, 2**32),
)
def test_training_sets_are_balanced_nested_and_seeded(counts: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    per_class = [2**j for j in range(min(counts).bit_length())]
    sets = draw_training_sets(labels, per_class, np.random.default_rng(seed))
    smaller: set[int] = set()
    for count, chosen in zip(per_class, sets, strict=True):
        np.testing.assert_array_equal(np.bincount(labels[chosen]), [count] * len(counts))
        assert (np.diff(chosen) > 0).all()
        assert smaller <= set(chosen.tolist())
        smaller = set(chosen.tolist())
    again = draw_training_sets(labels, per_class, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(sets, again, strict=True))
    with pytest.raises(ValueError, match=f"expected {2 * max(counts)} images of every class"):
        draw_training_sets(labels, [2 * max(counts)], np.random.default_rng(seed))


def test_every_image_is_as_likely() -> None:
    labels = np.repeat([0, 1], [4, 8])
    rng = np.random.default_rng(0)
    hits = np.zeros(12)
    for _ in range(4000):
        hits[draw_training_sets(labels, [2], rng)[0]] += 1
    np.testing.assert_allclose(hits / 4000, np.repeat([0.5, 0.25], [4, 8]), atol=0.04)


def hollow(
    counts: list[int], n_test: int, shape: tuple[int, int, int], split: str = "drawn"
) -> Dataset:
    """A data set of any size that takes no memory: all images are the same."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return Dataset(
        name="hollow",
        x_train=np.broadcast_to(0.5, (labels.size, *shape)),
        y_train=labels,
        x_test=np.broadcast_to(0.5, (n_test, *shape)),
        y_test=np.arange(n_test) % len(counts),
        class_names=tuple(map(str, range(len(counts)))),
        provenance="",
        split=split,  # type: ignore[arg-type]
    )


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(2, 3000), min_size=2, max_size=12),
    n_test=st.integers(1, 2000),
    side=st.sampled_from([1, 4, 8, 28, 32, 64, 200]),
    split=st.sampled_from(["drawn", "given"]),
    minutes=st.sampled_from([0.01, 0.05, 2.5, 60.0]),
    seed=st.integers(0, 5),
)
def test_designs_are_affordable_and_complete(
    counts: list[int], n_test: int, side: int, split: str, minutes: float, seed: int
) -> None:
    data = hollow(counts, n_test, (side, side + 1, 2), split)
    design = make_design(data, draws=2, seed=seed, minutes=minutes)
    again = make_design(data, draws=2, seed=seed, minutes=minutes)
    np.testing.assert_array_equal(design.pool, again.pool)

    labels = np.concatenate([data.y_train, data.y_test])
    n, n_train, c = design.pool.size, data.y_train.size, len(counts)
    assert len(set(design.pool.tolist())) == n
    assert design.per_class == tuple(2**j for j in range(len(design.per_class)))
    assert design.sizes[-1] <= max(MAX_TRAINING, c)
    smallest = np.bincount(labels[design.pool], minlength=c).min()
    if design.test is None:
        assert split == "drawn"
        assert smallest > design.per_class[-1]  # one of each class is left for testing
        assert design.pairs == n * (n + 1) // 2
    else:
        assert split == "given"
        assert smallest >= design.per_class[-1]
        assert design.pool.max() < n_train <= design.test.min()
        assert len(set(design.test.tolist())) == design.test.size > 0
        assert design.pairs == n * (n + 1) // 2 + n * design.test.size
    size = (side // design.shrink) * ((side + 1) // design.shrink)
    assert design.element_layers == design.pairs * size**2 * cntk_gap(11).n_conv
    least = 5 * c * c + 5 * c + 2 * c * c  # two of each class, and one test image of each
    assert design.element_layers <= max(
        minutes * 60 * 4e9 * 1.001, least * size**2 * cntk_gap(11).n_conv
    )
    used = n + (0 if design.test is None else design.test.size)
    assert bool(design.notes) == (design.shrink > 1 or used < labels.size)


@pytest.mark.parametrize("split", ["drawn", "given"])
def test_the_seed_chooses_the_images(split: str) -> None:
    data = hollow([300] * 10, 500, (28, 28, 1), split)
    one, again, other = (make_design(data, seed=seed, minutes=0.2) for seed in (1, 1, 2))
    assert one.notes  # some images are left out: there is something to choose
    np.testing.assert_array_equal(one.pool, again.pool)
    assert not np.array_equal(one.pool, other.pool)
    if split == "given":
        assert one.test is not None
        assert again.test is not None
        assert other.test is not None
        np.testing.assert_array_equal(one.test, again.test)
        assert not np.array_equal(one.test, other.test)
    # Not in order, and not the first ones: the draw is one of all images of a class.
    per_class = one.pool.size // 10
    assert one.pool[:per_class].max() >= per_class


def test_design_for_the_digits() -> None:
    design = make_design(load_dataset("digits"))
    assert design.sizes == (10, 20, 40, 80, 160, 320, 640, 1280)
    assert design.pool.size == 1797
    assert design.test is None
    assert design.dtype == "float64"
    assert design.notes == ()
    assert design.pairs == 1797 * 1798 // 2


def test_a_design_says_what_it_leaves_out() -> None:
    design = make_design(hollow([6000] * 10, 10_000, (28, 28, 1), "given"))
    assert design.dtype == "float32"
    assert design.shrink == 1
    assert design.sizes == (10, 20, 40, 80, 160)
    assert "Of 70,000 images, 240 for training and 286 for testing were drawn" in design.notes[0]
    assert "6.15 million element-layers" in design.notes[0]
    assert "2.5 minutes" in design.notes[0]
    large = make_design(hollow([50] * 5, 1, (96, 128, 3)))
    assert large.shrink == 2
    assert "Images of 96 x 128 pixels were averaged over blocks of 2 x 2 to 48 x 64" in " ".join(
        large.notes
    )
    small = make_design(hollow([5000] * 2, 10, (2, 2, 1)))
    assert "training sets end at 1,280 images" in small.notes[0]


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        ({}, {"draws": 0}, r"draws >= 1.*got draws=0"),
        ({}, {"seed": -1}, "seed=-1"),
        ({}, {"minutes": 0.0}, r"minutes=0\.0"),
        ({}, {"minutes": float("nan")}, "minutes=nan"),
        ({"x_train": np.zeros((60, 8, 8, 1))}, {}, "all training images are zero"),
        ({"class_names": ("a", "b", "c", "d")}, {}, "at least 2 training images, got 0 of 'd'"),
        (
            {"class_names": ("a", "b", "c", "d"), "split": "given"},
            {},
            "at least 1 training image, got 0 of 'd'",
        ),
    ],
)
def test_a_design_refuses(changes: dict[str, Any], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make_design(make_dataset(**changes), **options)


def test_shrink_images_averages_blocks() -> None:
    x = np.random.default_rng(0).random((2, 7, 5, 3))
    small = shrink_images(x, 2)
    assert small.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(small[1, 2, 1], x[1, 4:6, 2:4].mean(axis=(0, 1)), rtol=1e-14)
    assert shrink_images(x, 1) is x


def test_sets_of_a_design() -> None:
    for split in ("drawn", "given"):
        data = make_dataset(split=split)
        design = make_design(data, draws=3, seed=4)
        images = Sets.of(data, design)
        everything = np.concatenate([data.x_train, data.x_test])
        np.testing.assert_array_equal(take(data, np.arange(90)), everything)
        np.testing.assert_array_equal(images.x_pool, everything[design.pool])
        np.testing.assert_array_equal(images.x_test, everything[images.test_numbers])
        for draw in images.draws:
            trained = set(design.pool[draw.train[-1]].tolist())
            tested = set(images.test_numbers[draw.test].tolist())
            assert not trained & tested
            assert [len(t) for t in draw.train] == list(design.sizes)
        assert len({draw.train[-1].tobytes() for draw in images.draws}) == 3


# --- results ---


def outputs_by_hand(dataset: Dataset, draws: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """True labels and outputs of CNTK-GAP with the largest training sets, for each draw."""
    design = make_design(dataset, draws=draws)
    images = Sets.of(dataset, design)
    kernel = FakeKernel()
    results = []
    for draw in images.draws:
        train = draw.train[-1]
        x = images.x_pool[train]
        k = kernel(cntk_gap(11), x, None, dtype="float64", threads=1, progress=print)
        against = kernel(
            cntk_gap(11), images.x_test[draw.test], x, dtype="float64", threads=1, progress=print
        )
        targets = encode_labels(images.y_pool[train], np.arange(3))
        results.append((images.y_test[draw.test], against @ np.linalg.solve(k, targets)))
    return results


def test_accuracies_and_confusion_are_right(dataset: Dataset, record: Record) -> None:
    results = outputs_by_hand(dataset)
    accuracies = [float(np.mean(f.argmax(axis=1) == y)) for y, f in results]
    point = record.curve("gap").points[-1]
    np.testing.assert_allclose(point.accuracies, accuracies, rtol=1e-12)
    assert point.mean == pytest.approx(np.mean(accuracies), rel=1e-12)
    assert point.std == pytest.approx(np.std(accuracies, ddof=1), abs=1e-12)
    confusion = np.zeros((3, 3), int)
    for y, f in results:
        for true, guess in zip(y, f.argmax(axis=1), strict=True):
            confusion[true, guess] += 1
    np.testing.assert_array_equal(record.confusion, confusion)


def test_hardest_images_and_their_votes(dataset: Dataset, record: Record) -> None:
    margins: dict[int, float] = {}
    design = make_design(dataset, draws=3)
    images = Sets.of(dataset, design)
    for draw, (y, f) in zip(images.draws, outputs_by_hand(dataset), strict=True):
        for place, label, output in zip(draw.test, y, f, strict=True):
            margin = output[label] - max(v for k, v in enumerate(output) if k != label)
            number = int(images.test_numbers[place])
            margins[number] = min(margin, margins.get(number, np.inf))
    expected = sorted(margins, key=lambda number: margins[number])[: len(record.hardest)]
    assert [hard.image for hard in record.hardest] == expected
    assert len(record.hardest) == 8

    labels = np.concatenate([dataset.y_train, dataset.y_test])
    for hard in record.hardest:
        assert hard.margin == pytest.approx(margins[hard.image], abs=1e-9)
        assert hard.label == labels[hard.image]
        assert hard.predicted == int(np.argmax(hard.totals))
        others = [v for k, v in enumerate(hard.totals) if k != hard.label]
        assert hard.totals[hard.label] - max(others) == pytest.approx(hard.margin, abs=1e-8)
        weights = [abs(vote.weight) for vote in hard.votes]
        assert weights == sorted(weights, reverse=True)
        trained = design.pool[images.draws[hard.draw].train[-1]]
        assert all(vote.image in trained for vote in hard.votes)
        assert all(vote.label == labels[vote.image] for vote in hard.votes)


def test_two_classes() -> None:
    """Their classifier has one output, and the page wants that of either class."""
    x, y = make_images(90)
    x, y = x[y < 2], y[y < 2]
    data = make_dataset(
        x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:], class_names=("a", "b")
    )
    record = run_toy(data, 2)
    sets = Sets.of(data, make_design(data, draws=2))
    results = outputs_by_hand(data, draws=2)
    point = record.curve("gap").points[-1]
    accuracies = [float(np.mean(f.argmax(axis=1) == y)) for y, f in results]
    np.testing.assert_allclose(point.accuracies, accuracies, rtol=1e-12)
    for hard in record.hardest:
        place = np.flatnonzero(sets.test_numbers == hard.image)[0]
        row = np.flatnonzero(sets.draws[hard.draw].test == place)[0]
        own, other = results[hard.draw][1][row][[hard.label, 1 - hard.label]]
        assert hard.margin == pytest.approx(own - other, abs=1e-9)
        assert hard.predicted == (hard.label if hard.margin > 0 else 1 - hard.label)


def test_record_is_complete_json(dataset: Dataset, record: Record) -> None:
    content = json.loads(record.to_json())
    assert content["format"] == "widelimit.learning_curve/1"
    assert content["environment"]["command"] == "demo '--x y'"
    assert content["environment"]["machine"]["packages"]["numpy"] == np.__version__
    assert content["data"]["split"] == dataset.split
    assert content["data"]["image_shape"] == [8, 8, 1]
    assert [curve["key"] for curve in content["curves"]] == [method.key for method in METHODS]
    assert {kernel["method"] for kernel in content["kernels"]} == {"gap", "vanilla", "dense"}
    assert set(content["seconds"]) >= {CURVE_STAGE, "All"}
    assert content["errors"] == []
    for curve in record.curves:
        assert [point.size for point in curve.points] == list(record.sizes)
        for point in curve.points:
            assert len(point.accuracies) == len(point.settings) == 3
            hits = np.array(point.accuracies) * record.data.n_test
            np.testing.assert_allclose(hits, np.round(hits), atol=1e-9)
            for setting in point.settings:
                if "ridge" in setting:
                    assert setting["ridge"] in RIDGES
                else:
                    assert all(
                        any(value in grid[name] for grid in GRIDS.values() if name in grid)
                        for name, value in setting.items()
                    )
    rows = dict(record.rows())
    assert tuple(rows) == record.sizes
    assert rows[record.sizes[-1]][0] is record.curve("gap").points[-1]


def without_time(record: Record) -> dict[str, Any]:
    content = json.loads(record.to_json())
    del content["seconds"], content["environment"]
    for kernel in content["kernels"]:
        del kernel["seconds"]
    return content


def test_threads_change_nothing_and_seeds_do(dataset: Dataset, record: Record) -> None:
    one = run_toy(dataset, 3)
    assert without_time(one) == without_time(record)
    other = run_toy(dataset, 3, seed=1)
    assert other.curves != record.curves


def test_test_labels_choose_nothing() -> None:
    """Other labels of the test images change accuracies, but no choice and no kernel."""
    data = make_dataset(split="given")
    shuffled = dataclasses.replace(data, y_test=np.roll(data.y_test, 1))
    before, after = (run_toy(d, 2) for d in (data, shuffled))
    for a, b in zip(before.curves, after.curves, strict=True):
        assert [p.settings for p in a.points] == [p.settings for p in b.points]
    assert before.curve("svm").points[-1].mean > after.curve("svm").points[-1].mean


def test_each_kernel_is_computed_once(dataset: Dataset) -> None:
    kernel = FakeKernel()
    run_toy(dataset, 2, kernel=kernel)
    design = make_design(dataset, draws=2)
    n = design.pool.size
    sizes = [(n, None)] if design.test is None else [(n, None), (design.test.size, n)]
    assert [(a, b) for _, a, b, _ in kernel.calls] == 3 * sizes
    networks = [str(method.network) for method in METHODS if method.network is not None]
    assert [net for net, *_ in kernel.calls] == [net for net in networks for _ in sizes]
    assert {dtype for *_, dtype in kernel.calls} == {"float64"}


def test_progress_of_every_stage_rises_to_one(dataset: Dataset) -> None:
    seen: dict[str, list[float]] = {}
    run_toy(
        dataset,
        2,
        threads=2,
        progress=lambda stage, share: seen.setdefault(stage, []).append(share),
    )
    stages = [method.label for method in METHODS if method.network is not None]
    assert list(seen) == [*stages, CURVE_STAGE]
    for shares in seen.values():
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0.0, pytest.approx(1.0))


def test_duplicates_get_a_ridge_and_a_remark() -> None:
    x, y = make_images(45)
    data = make_dataset(x_train=np.concatenate([x, x]), y_train=np.concatenate([y, y]))
    record = run_toy(data, 1)
    assert record.curve("gap").points[-1].settings[0]["ridge"] > 0
    assert any("got a relative ridge of up to" in error for error in record.errors)
    assert record.curve("gap").points[-1].std is None


def test_identical_draws_have_no_spread() -> None:
    """All the training images there are: every draw is the same set."""
    x, y = make_images(12)
    data = make_dataset(x_train=x, y_train=y, split="given")
    record = run_toy(data, 3)
    first, *_, last = record.curve("gap").points
    assert record.sizes == (3, 6, 12)
    assert first.std is not None
    assert last.std is None
    assert len(set(last.accuracies)) == 1


@pytest.mark.parametrize("stage", [METHODS[0].label, CURVE_STAGE])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_errors_end_the_run(dataset: Dataset, stage: str, error: type[BaseException]) -> None:
    def progress(name: str, share: float) -> None:
        if name == stage and share > 0:
            raise error

    with pytest.raises(error):
        run_toy(
            dataset,
            2,
            threads=2,
            progress=progress,
        )


def test_indefinite_kernels_are_an_error(dataset: Dataset) -> None:
    def indefinite(*arguments: Any, **options: Any) -> np.ndarray:
        return -FakeKernel()(*arguments, **options)

    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        run_toy(dataset, 2, threads=2, kernel=indefinite)


def test_run_refuses_threads() -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        run_toy(make_dataset(), 1, threads=0)


def test_run_with_the_real_kernel() -> None:
    """Bars and dots are told apart by their shape, wherever they are: pooling sees it."""
    data = make_dataset()
    record = run(data, make_design(data, draws=2), threads=1)
    assert record.curve("gap").points[-1].mean > 0.9
    assert record.curve("gap").points[-1].mean > record.curve("dense").points[-1].mean
    assert {kernel.dtype for kernel in record.kernels} == {"float64"}
    assert [kernel.element_layers for kernel in record.kernels] == [
        4095 * 64**2 * 10,
        4095 * 64 * 10,
        0,
    ]


def test_estimate_is_a_time(dataset: Dataset) -> None:
    design = make_design(dataset)
    kernel = FakeKernel()
    seconds = estimate_seconds(dataset, design, threads=1, kernel=kernel)
    assert 0 < seconds < 1e6
    assert all(n2 == 32 and n1 <= 32 for _, n1, n2, _ in kernel.calls)


# --- baselines ---


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_baselines_learn_and_one_image_a_class_is_enough(kind: Any) -> None:
    x, y = make_images(120)
    flat = x.reshape(120, -1)
    fit = fit_baseline(kind, flat[:90], y[:90], flat[90:], seed=0)
    assert np.mean(fit.predicted == y[90:]) > 0.5
    few = fit_baseline(kind, flat[:3], y[:3], flat[90:], seed=0)
    assert few.setting == {name: values[0] for name, values in GRIDS[kind].items()}
    assert set(few.predicted) <= {0, 1, 2}


def test_wide_images_give_the_same_logistic_regression() -> None:
    """More pixels than images: the rotation to fewer coordinates must not change the model."""
    x, y = make_images(330)
    flat = x.reshape(330, -1)
    fit = fit_baseline("logistic", flat[:30], y[:30], flat[30:], seed=0)
    model = linear_model.LogisticRegression(C=fit.setting["C"], max_iter=2000, tol=1e-8)
    expected = model.fit(flat[:30], y[:30]).predict(flat[30:])
    assert np.mean(fit.predicted == expected) > 0.98  # the stopping rule may move the boundary


def test_constant_images_are_no_error_of_the_svm() -> None:
    x = np.ones((6, 4))
    fit = fit_baseline("svm", x, np.array([0, 1] * 3), x, seed=0)
    assert len(fit.predicted) == 6


def test_baselines_can_be_cancelled() -> None:
    x, y = make_images(12)
    with pytest.raises(Cancelled):
        fit_baseline("svm", x.reshape(12, -1), y, x.reshape(12, -1), seed=0, cancelled=lambda: True)


# --- environment ---


def test_commit_belongs_to_the_running_code(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package, source = tmp_path / "env" / "widelimit", tmp_path / "src" / "widelimit"
    for folder in (package, source):
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("x = 1\n")
    answers = {"rev-parse --show-toplevel": str(tmp_path), "rev-parse HEAD": "c0ffee"}

    def git(_: Any, *arguments: str) -> str | None:
        return answers.get(" ".join(arguments), " M src/a.py" if arguments[0] == "status" else None)

    monkeypatch.setattr(environment_module, "_git", git)
    find = environment_module._find_commit  # pyright: ignore[reportPrivateUsage]
    assert find(package) == ("c0ffee", True)
    (package / "a.py").write_text("x = 2\n")  # not the code of this repository
    assert find(package) == (None, None)
    monkeypatch.setattr(environment_module, "_git", lambda *_: None)  # no git, or no repository
    assert find(package) == (None, None)


def test_environment_of_this_process() -> None:
    here = describe_environment()
    assert here.version
    assert here.machine.cores_usable >= 1
    assert here.commit is None or len(here.commit) >= 40
    assert describe_environment([]).command == ""
