"""What notebooks show of networks, matrices, solutions, influences and data sets."""

import dataclasses
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import make_dataset

import widelimit as wl
from widelimit.network import _runs
from widelimit.solvers import solve


class Shown(HTMLParser):
    """What a notebook is given: well nested, without anything that runs or is loaded."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(thing._repr_html_())
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        assert not any(name.startswith("on") for name, _ in attrs)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_network_is_boxes_and_what_repeats_is_counted() -> None:
    shown = Shown(wl.cntk_gap(11)).text
    assert "trainable=False) → 9 × [ ReLU → Conv(3) ] → ReLU → GlobalAvgPool → Dense" in shown
    assert "Dense(w_std=0.4714, trainable=False)" in shown
    assert "layers 22 convolutions 10 scaling paper" in shown
    # Layers that differ in what their names do not say are not the same.
    net = wl.Network([wl.Dense(), wl.ReLU(), wl.Dense(b_std=1.0), wl.ReLU(), wl.Dense()])
    assert "2 ×" not in Shown(net).text
    assert "Dense(b_std=1.0)" in Shown(net).text
    long = [layer for size in range(1, 60, 2) for layer in (wl.Conv(size), wl.ReLU())]
    assert "and 38 more layers" in Shown(wl.Network([*long, wl.Flatten(), wl.Dense()])).text


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        ("", []),
        ("a", [("a", 1)]),
        ("aaab", [("a", 3), ("b", 1)]),
        ("ababa", [("ab", 2), ("a", 1)]),
        ("aabaab", [("aab", 2)]),
        ("abcab", [("a", 1), ("b", 1), ("c", 1), ("a", 1), ("b", 1)]),
    ],
)
def test_runs(names: str, runs: list[tuple[str, int]]) -> None:
    assert _runs(list(names)) == [(tuple(unit), count) for unit, count in runs]


def test_a_gram_matrix_says_how_much_of_it_is_there(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    nets = [wl.ntk_dense(2), wl.ntk_dense(3)]
    k = wl.gram(nets, x, store=tmp_path / "k.zarr", kind=("ntk", "nngp"), tile=16)
    shown = Shown(k[1][0]).text
    assert "Gram matrix, 20 × 20, float32" in shown
    assert f"kernel nngp of {nets[0]}" in shown
    assert "3 of 3 tiles of 16 x 16, finished" in shown
    assert "matrices in it 4" in shown
    next((tmp_path / "k.zarr").rglob("seals/*/*/*")).unlink()
    assert "2 of 3 tiles of 16 x 16, not finished: make it again" in Shown(k[1][0]).text


def test_a_solution_says_how_far_it_can_be_trusted() -> None:
    k = np.diag([2.0, 1.0, 3.0])
    shown = Shown(solve(k, np.ones((3, 2)), 0.5)).text
    assert "Solution: solved what it means Solved: nothing to do." in shown
    assert "coefficients 3 × 2 ridge 0.5, relative; 1, absolute" in shown
    assert "factor cholesky" in shown
    bad = Shown(solve(-k, np.ones(3))).text
    assert "Solution: not positive definite" in bad
    assert "condition" not in bad  # there is none


def test_an_influence_names_samples_and_says_what_is_left_out() -> None:
    data = make_dataset()
    model = wl.NTKClassifier("cntk-vanilla-2").fit(data.x_train[:20], data.y_train[:20])
    found = model.influence(data.x_test[:6], 12)
    shown = Shown(found)
    assert f"#{found.indices[0, 0]} {found.weights[0, 0]:.3g}" in shown.text
    assert "not shown: 1 more samples, 2 more of each" in shown.text


def test_a_data_set_shows_its_classes_and_images() -> None:
    data = make_dataset()
    named = dataclasses.replace(
        data, class_names=("<b>a</b>", *data.class_names[1:]), provenance="<script>"
    )
    shown = Shown(named)
    assert "<b>a</b>" in shown.text  # as text: it was escaped
    assert f"{len(data.y_train):,} + {len(data.y_test):,} images of" in shown.text
    assert all(source.startswith("data:image/png;base64,") for source in shown.sources)
    counts = np.bincount(data.y_train)
    assert len(shown.sources) == np.minimum(counts, 10).sum()
    assert f" {counts[1]:,} {(data.y_test == 1).sum():,}" in shown.text
