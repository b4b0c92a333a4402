"""What is told before work begins: how much it is, how long it takes, and what would be less."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import widelimit as wl
from widelimit import cli, console, costs
from widelimit.classify import Fit
from widelimit.costs import Cost, Forecast, cheaper, estimate, forecast, solving_seconds
from widelimit.experiments.rank import Rank
from widelimit.experiments.small_data import SmallData

PHOTOS = (128, 128, 3)


class Clock:
    """A clock on which every element-layer takes a nanosecond."""

    def __init__(self) -> None:
        self.now = 0.0
        self.busy = 1.0  # how much longer than that, as others work, too
        self.worked = 0.0
        self.calls: list[tuple[int, int]] = []

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.worked

    def kernel(self, nets: Any, x: Any, z: Any, *, kind: Any, threads: int, **how: Any) -> None:
        each = costs._element_layers(nets, x.shape[1:], kind) or 1000
        self.calls.append((len(x), len(z)))
        seconds = len(x) * len(z) * each * 1e-9
        self.now += seconds * self.busy
        self.worked += seconds * min(threads, 4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    made = Clock()
    monkeypatch.setattr(costs, "time", made)
    monkeypatch.setattr(costs, "kernel", made.kernel)
    monkeypatch.setattr(costs, "default_threads", lambda: 4)
    monkeypatch.setenv("WIDELIMIT_CACHE", str(tmp_path))
    return made


def test_pairs_layers_and_bytes() -> None:
    cost = estimate([wl.cntk_gap(3)], (8, 8, 1), 20)
    assert (cost.pairs, cost.element_layers) == (210, 2 * 64**2)
    assert (cost.result, cost.stored) == (4 * 400, 4 * 210)
    nets = [wl.cntk_gap(3), wl.cntk_vanilla(3)]
    cost = estimate(nets, (8, 8, 1), 20, 7, kinds=("ntk", "nngp"), dtype="float64")
    assert (cost.pairs, cost.element_layers) == (140, 2 * 64**2 + 2 * 64)
    assert cost.result == cost.stored == 8 * 4 * 140
    assert cost.memory > cost.result
    with pytest.raises(ValueError, match="images"):
        estimate([wl.cntk_gap(3)], (64,), 20)


@pytest.mark.parametrize("threads", [1, 7])
@pytest.mark.parametrize("net", [wl.cntk_gap(11), wl.cntk_vanilla(21)])
def test_time_is_that_of_a_probe(clock: Clock, net: wl.Network, threads: int) -> None:
    """On images that are not larger than 32 x 32: a pair of larger ones may take seconds."""
    n = 50_000 if net == wl.cntk_vanilla(21) else 500
    cost = estimate([net], PHOTOS, n, threads=threads)
    assert cost.seconds == pytest.approx(cost.pairs * cost.element_layers * 1e-9, rel=1e-6)
    assert clock.now < 30
    assert str(cost).startswith(
        f"{cost.pairs:,} pairs of {costs.shortened(cost.element_layers)} elem"
    )
    # It is kept, for the same kernel on images of any size above.
    seen = len(clock.calls)
    assert estimate([net], (64, 64, 3), n, threads=threads).seconds < cost.seconds
    assert len(clock.calls) == seen
    estimate([net], PHOTOS, n, threads=threads, kinds=("nngp",))
    assert len(clock.calls) > seen


@pytest.mark.parametrize("threads", [1, 7])
def test_a_busy_machine_is_not_taken_for_a_slow_one(clock: Clock, threads: int) -> None:
    """The rate is kept, and used when nothing else runs."""
    clock.busy = 5.0
    cost = estimate([wl.cntk_gap(11)], PHOTOS, 500, threads=threads)
    assert cost.seconds == pytest.approx(cost.pairs * cost.element_layers * 1e-9, rel=1e-6)


def test_rates_that_are_damaged_are_measured_again(clock: Clock, tmp_path: Path) -> None:
    cost = estimate([wl.cntk_gap(11)], PHOTOS, 500)
    file = tmp_path / "rates.json"
    (rate,) = json.loads(file.read_text()).values()
    assert rate > 0
    for content in ("", "[]", '{"a": "b"}', file.read_text().replace(str(rate), "-1")):
        file.write_text(content)
        seen = len(clock.calls)
        assert np.isclose(estimate([wl.cntk_gap(11)], PHOTOS, 500).seconds, cost.seconds)
        assert len(clock.calls) > seen
    file.unlink()
    file.mkdir()  # nothing can be kept: it is measured each time
    assert np.isclose(estimate([wl.cntk_gap(11)], PHOTOS, 500).seconds, cost.seconds)


def test_small_work_is_not_measured(clock: Clock) -> None:
    assert estimate([wl.cntk_gap(3)], (8, 8, 1), 100).seconds < 1
    assert estimate([wl.ntk_dense(3)], (784,), 1000).seconds < 1
    assert not clock.calls
    assert estimate([wl.ntk_dense(3)], (784,), 60_000).seconds > 60
    assert clock.calls


def test_what_would_be_cheaper(clock: Clock) -> None:
    def options(net: wl.Network, shape: tuple[int, ...], n: int) -> list[tuple[str, float]]:
        return cheaper(estimate([net], shape, n), [net], shape, n)

    found = dict(options(wl.cntk_gap(11), PHOTOS, 500))
    now = estimate([wl.cntk_gap(11)], PHOTOS, 500).seconds
    assert found["--size 64x64"] == pytest.approx(now / 16, rel=1e-3)
    assert found["--size 32x32"] == pytest.approx(now / 256, rel=1e-3)
    assert now / 5 < found["--net myrtle-5"] < found["--net cntk-gap-5"]
    assert found["--net cntk-gap-5"] == pytest.approx(now * 0.4, rel=1e-3)
    assert found["--net cntk-vanilla-11"] < now / 1000
    assert all(seconds < 0.9 * now for seconds in found.values())
    wide = dict(options(wl.cntk_gap(3), (50, 100, 3), 500))
    assert list(wide) == ["--size 32x64", "--size 16x32", "--net cntk-vanilla-3"]
    assert options(wl.ntk_dense(3), (784,), 60_000) == []


def test_no_size_is_told_of_or_measured_that_pools_leave_nothing_of(clock: Clock) -> None:
    net, shape = wl.myrtle(5), (8, 300, 1)  # as 2 x 64 or 1 x 32 pixels it has none left
    found = dict(cheaper(estimate([net], shape, 500), [net], shape, 500))
    assert list(found) == ["--net cntk-vanilla-5"]
    pools = [layer for _ in range(6) for layer in (wl.Conv(3), wl.ReLU(), wl.AvgPool(2))]
    net = wl.Network([*pools, wl.GlobalAvgPool(), wl.Dense()])
    assert estimate([net], (100, 64, 3), 500).seconds > 1
    with pytest.raises(ValueError, match="leaves nothing"):
        estimate([net], (100, 32, 3), 500)


def test_what_is_cheaper_is_an_option_of_the_command(clock: Clock, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((400, 64, 64, 3)), np.arange(400) % 2
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    made = SmallData.prepare(f"{tmp_path}/d.npz", tmp_path / "a.json", largest=320)
    found = dict(made.cost.options)
    assert list(found) == ["--size 32x32", "--largest 80"]
    assert found["--largest 80"] < made.cost.seconds / 9
    nets = {"gap": wl.cntk_gap(11), "lap": wl.cntk_gap(10)}
    ranked = Rank.prepare(f"{tmp_path}/d.npz", nets, [200], tmp_path / "b.json")
    assert [words for words, _ in ranked.cost.options] == ["--size 32x32"]


def test_equations_take_their_time() -> None:
    assert solving_seconds(100) == 0
    assert solving_seconds(4000) == pytest.approx(8 * solving_seconds(2000))
    assert solving_seconds(4000, decompose=True) > solving_seconds(4000)


def test_others_do_not_slow_equations_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WIDELIMIT_CACHE", str(tmp_path))
    seen, worked = itertools.count(0.0, 100.0), iter([0.0, 9.0, 9.0, 13.0, 13.0, 18.0])
    clock = SimpleNamespace(perf_counter=lambda: next(seen), process_time=lambda: next(worked))
    monkeypatch.setattr(costs, "time", clock)
    monkeypatch.setattr(costs, "blas_threads", lambda: 2)
    monkeypatch.setattr(costs, "default_threads", lambda: 4)
    assert solving_seconds(2048) == pytest.approx(2.0)  # the best of 9, 4 and 5, by two threads


def told(seconds: float, solving: float = 0.0) -> Forecast:
    cost = Cost(125_250, 2_684_354_560, seconds, 10**9, 10**6, 1, 4, "cpu")
    return Forecast(cost, solving, [("--size 32x32", 700.0)] if seconds > 60 else [])


def test_lines() -> None:
    assert told(9).lines() == []
    assert told(20, 3).lines() == [
        "cost: 125,250 pairs of 2.68 billion element-layers: about 20 s, 1.0 GB of memory, then "
        "3 s to solve"
    ]
    assert told(2e5).lines()[1] == "cheaper: --size 32x32 about 11 min 40 s"
    assert [told(s).is_long for s in (500, 700)] == [False, True]


class Terminal:
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("answer", [True, False])
def test_a_user_at_a_terminal_is_asked_before_hours(
    monkeypatch: pytest.MonkeyPatch, answer: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def confirm(text: str, **how: Any) -> None:
        asked.append(text)
        if not answer:
            raise typer.Abort

    monkeypatch.setattr(console.typer, "confirm", confirm)
    console.tell(told(2e5), yes=False)  # no terminal, nobody to ask
    monkeypatch.setattr(console.sys, "stdin", Terminal())
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    console.tell(told(500), yes=False)
    console.tell(told(2e5), yes=True)
    assert asked == []
    if answer:
        console.tell(told(2e5), yes=False)
    else:
        with pytest.raises(KeyboardInterrupt):
            console.tell(told(2e5), yes=False)
    assert asked == ["go on?"]
    assert "widelimit: cheaper: --size 32x32 about 11 min 40 s\n" in capsys.readouterr().err


def test_commands_say_what_they_cost(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x_train=rng.random((60, 64, 64, 3)), y_train=[0, 1, 2] * 20)
    np.save(tmp_path / "x.npy", rng.random((60, 64, 64, 3)))

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("widelimit.classify.NTKClassifier.fit", stop)
    monkeypatch.setattr("widelimit.job.kernel", stop)
    monkeypatch.setattr("widelimit.job.gram", stop)
    said = "1,830 pairs of 168 million element-layers: about 5 min"
    for words in (
        f"fit {tmp_path}/d.npz --net cntk-gap-11 --out {tmp_path}/m",
        f"suspects {tmp_path}/d.npz --net cntk-gap-11 --out {tmp_path}/s",
        f"kernel {tmp_path}/x.npy --net cntk-gap-11 --out {tmp_path}/k.npy",
        f"kernel {tmp_path}/x.npy --net cntk-gap-11 --out {tmp_path}/k.zarr",
    ):
        done = CliRunner().invoke(cli.app, words.split())
        assert done.exit_code == 130, done.stderr
        assert f"widelimit: cost: {said}" in done.stderr
        size = "" if words.startswith("kernel") else "--size 32x32 about 19 s, "  # an array has one
        assert f"widelimit: cheaper: {size}--net myrtle-5" in done.stderr
    words = "explain cntk-gap-11 --shape 64x64x3 --inputs 60"
    shown = CliRunner().invoke(cli.app, words.split())
    assert f"60 inputs, float32: {said}" in shown.output
    assert "\ncheaper: --shape 32x32x3 19 s, myrtle-5 " in shown.output
    assert "--net" not in shown.output
    assert "one matrix of 60 x 60: 1 MB in an .npy file, 1 MB in a store" in shown.output


def test_forecasts_include_samples_that_are_classified(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).integers(0, 255, (12_000, 16, 16, 1)).astype(np.uint8)
    y = np.arange(12_000) % 2
    np.savez(tmp_path / "d.npz", x_train=x[:12] // 2, y_train=y[:12], x_test=x, y_test=y)
    np.savez(tmp_path / "new.npz", x=x)
    wl.save_model(wl.NTKClassifier("cntk-gap-3").fit(x[:20] / 255.0, y[:20]), tmp_path / "m")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("widelimit.classify.NTKClassifier.fit", stop)
    monkeypatch.setattr("widelimit.classify.Prediction.run", stop)
    words = f"fit {tmp_path}/d.npz --net cntk-gap-11 --out {tmp_path}/new"
    done = CliRunner().invoke(cli.app, words.split())
    assert (done.exit_code, "cost" in done.stderr) == (130, False), done.stderr
    done = CliRunner().invoke(cli.app, [*words.split(), "--test", "given"])
    assert done.exit_code == 130, done.stderr
    assert "cost: 78 pairs of 655 thousand element-layers: about 0.1 s, " in done.stderr
    assert ", then 144,000 pairs for the test, about 1 min 34 s\n" in done.stderr
    assert "cheaper: --net myrtle-5 about " in done.stderr
    done = CliRunner().invoke(cli.app, ["predict", f"{tmp_path}/m", f"{tmp_path}/new.npz"])
    assert done.exit_code == 130, done.stderr
    assert "cost: 240,000 pairs of 131 thousand element-layers: about 31 s, " in done.stderr


def test_forecast_of_a_fit_includes_its_equations() -> None:
    found = forecast([wl.cntk_gap(3)], (4, 4, 1), 2000, solve="eigenvectors", threads=1)
    assert found.solving == solving_seconds(2000, decompose=True)
    assert found.seconds == found.cost.seconds + found.solving


def test_forecast_of_a_fit_includes_all_that_is_tried(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((1200, 8, 8, 1)), np.arange(1200) % 2
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y)
    np.savez(tmp_path / "rows.npz", x_train=x.reshape(1200, 64), y_train=y)

    def told(name: str, nets: list[str], **options: Any) -> Forecast:
        made = Fit.prepare(f"{tmp_path}/{name}", tmp_path / "m", net=nets, **options)
        return made.forecast()

    one = told("d.npz", ["cntk-gap-3"])
    four = told("d.npz", ["cntk-gap-3"], whiten="loo")
    assert four.cost.pairs == 4 * one.cost.pairs
    assert four.seconds == pytest.approx(4 * one.seconds)
    two = told("d.npz", ["cntk-gap-3", "cntk-gap-4"])
    assert two.solving == pytest.approx(2 * one.solving)
    mean = told("d.npz", ["cntk-gap-3", "cntk-gap-4"], combine="mean")
    assert mean.solving == pytest.approx(one.solving)
    assert told("rows.npz", ["ntk-dense-3"]).cost.entry == 8
