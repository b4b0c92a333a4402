"""Tables 1 and 2 and the theorems with finite networks: small runs, stopped ones, wrong ones."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import make_images
from typer.testing import CliRunner, Result

import widelimit as wl
from widelimit.cli import app
from widelimit.experiments import cells, finite_width, table1_cnn, table2
from widelimit.experiments.cells import PLAN, Cells
from widelimit.experiments.table1_cnn import AskedCNN
from widelimit.finite import sgd
from widelimit.finite.costs import choose_device, count_multiply_adds
from widelimit.finite.sgd import History, Recipe, train_sgd
from widelimit.network import (
    GELU,
    AvgPool,
    Conv,
    Dense,
    Erf,
    GlobalAvgPool,
    LayerNorm,
    Network,
    ReLU,
    Sum,
)
from widelimit.report.finite import to_markdown

torch = pytest.importorskip("torch")
FlopCounterMode: Any = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x, y = make_images(48)
    path = tmp_path / "toy.npz"
    np.savez(path, x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    return path


def call(command: str, out: Path, *words: object) -> Result:
    given = ["reproduce", command, *map(str, words), "--out", str(out), "--threads", "1"]
    return CliRunner().invoke(app, given)


def read(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text("utf-8"))


def stop_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: int) -> None:
    """Let the user press Ctrl-C in a call of a function."""
    real, calls = getattr(module, name), 0

    def stop(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, stop)


# ---------------------------------------------------------------- parts


def test_parts_are_computed_once(tmp_path: Path) -> None:
    costs, asked = {"a": 1.0, "b": 3.0}, {"n": 1, "widths": (1, 2)}
    cells = Cells(tmp_path / "s", "toy", asked, costs)
    calls: list[str] = []

    def compute() -> tuple[float, float]:
        calls.append("x")
        return 0.1, 1 / 3

    with cells.held() as keep:
        assert keep("a", compute) == [0.1, 1 / 3]
        assert cells.left == 3.0
        with pytest.raises(KeyError):
            keep("c", compute)
    again = Cells(tmp_path / "s", "toy", asked, costs)
    assert again.left == 3.0
    with again.held() as keep:
        assert keep("a", compute) == [0.1, 1 / 3]
        keep("b", compute)
    assert len(calls) == 2
    assert again.seconds > 0
    with pytest.raises(ValueError, match=r"of toy \(n 1 there and 2 here\)"):
        Cells(tmp_path / "s", "toy", asked | {"n": 2}, costs)
    with pytest.raises(ValueError, match="must be the plan of a run of other"):
        Cells(tmp_path / "s", "other", asked, costs)
    (tmp_path / "s" / "a.json").write_text("{}")
    with again.held() as keep, pytest.raises(ValueError, match="is damaged"):
        keep("a", compute)
    strange = tmp_path / "t"
    strange.mkdir()
    (strange / "mine.txt").write_text("")
    with (
        pytest.raises(FileExistsError, match="there are other files in this folder"),
        Cells(strange, "toy", asked, costs).held(),
    ):
        pass


def test_seconds_of_parts_within_a_part_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(cells.time, "perf_counter", lambda: clock[0])
    made = Cells(tmp_path / "s", "toy", {}, dict.fromkeys("abcd", 1.0))

    def work(seconds: float, *inside: str) -> float:
        for name in inside:
            keep(name, lambda: work(2.0))
        clock[0] += seconds
        return seconds

    with made.held() as keep:
        keep("d", lambda: work(8.0))
        keep("a", lambda: work(1.0, "b", "c", "d"))  # d is there
        taken = {name: json.loads((made.folder / f"{name}.json").read_text()) for name in "abcd"}
    assert [taken[name]["seconds"] for name in "abcd"] == [1.0, 2.0, 2.0, 8.0]
    assert made.seconds == clock[0] == 13.0


def test_how_far_a_run_is(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "s", "toy", {}, {"a": 1.0, "b": 3.0})
    shares: list[float] = []
    with cells.held() as keep:
        cells._report = shares.append
        keep("a", lambda: cells.tell({"a": 0.5}))
        keep("b", lambda: cells.tell({"b": 0.5}))
    assert shares == [0.125, 0.25, 0.625, 1.0]
    (tmp_path / "s" / "b.json").unlink()
    cells = Cells(tmp_path / "s", "toy", {}, {"a": 1.0, "b": 3.0})
    shares.clear()
    with cells.held() as keep:  # the share of what this run does: from it follows what is left
        cells._report = shares.append
        keep("a", lambda: None)
        keep("b", lambda: cells.tell({"b": 0.5}))
        keep("b", lambda: None)
    assert shares == [0.0, 0.5, 1.0, 1.0]
    shares.clear()
    with cells.held() as keep:
        cells._report = shares.append
        keep("a", lambda: None)
    assert shares == [1.0]


def test_what_a_sample_takes() -> None:
    for network, shape in ((wl.cntk_vanilla(3), (6, 5, 2)), (wl.ntk_dense(2), (4, 4, 1))):
        module = wl.finite.build(network, 7, 0, input_shape=shape, outputs=3, channels="last")
        work, trained, parameters = count_multiply_adds(network, 7, shape, 3)
        sizes = {name: p.numel() for name, p in module.named_parameters()}
        assert parameters == trained == sum(sizes.values())
        pixels = 1 if len(network.layers) == 5 and "Dense" in str(network.layers[0]) else 30
        last = sizes[list(sizes)[-1]]
        assert work == pixels * (parameters - last) + last
    with FlopCounterMode(display=False) as counter:
        wl.finite.build(TREE, 7, 0, outputs=3)(torch.ones(1, 9, 8, 2))
    work, trained, parameters = count_multiply_adds(TREE, 7, (9, 8, 2), 3)
    assert 2 * work == counter.get_total_flops()
    assert parameters - trained == 9 * 7 * 7
    work, trained, parameters = count_multiply_adds(wl.cntk_gap(3), 7, (6, 5, 2))
    assert trained == 9 * 7 * 7  # first and last layer are frozen
    assert parameters == trained + 9 * 2 * 7 + 7


# ---------------------------------------------------------------- gradient descent


def toy_training(path: Path | None = None, **options: Any) -> tuple[Any, History]:
    x, y = make_images(30)
    module = wl.finite.build(wl.cntk_gap(3), 4, 0, outputs=3, kappa=0.5, input_shape=(8, 8, 1))
    recipe = Recipe(20.0, batch=8, epochs=5, after=2, seed=3)
    return module, train_sgd(
        module, x[:20], y[:20], x[20:], y[20:], recipe, checkpoint=path, **options
    )


def weights(module: Any) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in module.parameters()]


BLOCK = Sum((), [ReLU(), Conv(3, b_std=0.1), LayerNorm(0.1), GELU(), Conv(3, trainable=False)])
TREE = Network([Conv(3, stride=2), BLOCK, AvgPool(2), Erf(), GlobalAvgPool(), Dense()])


@pytest.mark.parametrize("network", [wl.ntk_dense(1), TREE], ids=str)
def test_a_step_is_the_gradient_of_the_squared_loss(network: Network) -> None:
    x, y = make_images(6)
    x = x.reshape(6, -1) if network.is_dense else x
    options: Any = {"outputs": 3, "input_shape": x.shape[1:], "dtype": "float64"}
    module, twin = (wl.finite.build(network, 5, 1, **options) for _ in range(2))
    history = train_sgd(module, x, y, x, y, Recipe(0.1, batch=6, epochs=1))
    given = torch.tensor(x)
    labels = torch.tensor(np.eye(3)[y] - 1 / 3)
    loss = sum(0.5 * ((twin(given)[i] - labels[i]) ** 2).sum() for i in range(6)) / 6
    loss.backward()
    assert history.loss.tolist() == pytest.approx([float(loss.detach())])
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert (theirs.grad is None) == (not theirs.requires_grad)
        step = 0.0 if theirs.grad is None else 0.1 * theirs.grad
        expected = (theirs - step).detach()
        np.testing.assert_allclose(ours.detach(), expected, rtol=1e-12, atol=1e-15)
    right = (module(given).argmax(1).numpy() == y).mean()
    assert history.train.tolist() == history.test.tolist() == [right]


def test_every_image_is_seen_once_in_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    module = wl.finite.build(wl.ntk_dense(1), 2, 0, outputs=2, input_shape=(1,))
    module.register_forward_pre_hook(lambda _, given: seen.extend(given[0][:, 0].tolist()))
    x = np.arange(1.0, 8.0)[:, None]
    monkeypatch.setattr(sgd, "_accuracy", lambda *_: 0.5)
    history = train_sgd(module, x, [0, 1] * 3 + [0], x, [0] * 7, Recipe(1e-6, batch=3, epochs=2))
    seen = seen[1:]  # the pass in which a module gets its parameters
    assert sorted(seen[:7]) == sorted(seen[7:]) == x[:, 0].tolist()
    assert seen[:7] != seen[7:]
    assert history.full_at is None


def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, expected = toy_training()
    path = tmp_path / "c.npz"
    code = (
        "import os, sys, signal; sys.path.insert(0, sys.argv[1]); import torch\n"
        "torch.set_num_threads(1)\n"
        "from test_reproduce_finite import toy_training; from pathlib import Path\n"
        "die = lambda share: share > 0.5 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "toy_training(Path(sys.argv[2]), every=0.0, progress=die)\n"
    )
    words = [sys.executable, "-c", code, str(Path(__file__).parent), str(path)]
    done = subprocess.run(words, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    with np.load(path, allow_pickle=False) as held:
        assert (len(held["history"]), int(held["step"])) == (2, 2)  # within an epoch
    resumed, history = toy_training(path)
    for ours, theirs in zip(weights(resumed), weights(whole), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    for name in ("loss", "train", "test"):
        assert getattr(history, name).tobytes() == getattr(expected, name).tobytes()
    assert len(history.train) == 5
    assert sorted(os.listdir(tmp_path)) == ["c.npz"]


def test_a_full_disk_stops_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "c.npz"))

    monkeypatch.setattr(sgd, "write_atomically", full)
    with pytest.warns(RuntimeWarning, match="this checkpoint is not kept, the training goes on"):
        module, _ = toy_training(tmp_path / "c.npz", every=0.0)
    for ours, theirs in zip(weights(module), weights(toy_training()[0]), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_checkpoints_of_strangers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    toy_training(path, every=0.0)
    with np.load(path) as held:
        good = dict(held)
    np.savez(path, **(good | {"step": np.array(1)}))
    with pytest.raises(ValueError, match="it is damaged"):
        toy_training(path)
    np.savez(path, **(good | {"history": np.array([{}], dtype=object)}))
    with pytest.raises(ValueError, match="a pickle, which is never read"):
        toy_training(path)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="must be a checkpoint of a training, it is not"):
        toy_training(path)
    other = {name: value for name, value in good.items() if name != "seal"} | {"job": np.array("x")}
    np.savez(path, seal=np.array(sgd.seal(other)), **other)
    with pytest.raises(ValueError, match="is a checkpoint of another training"):
        toy_training(path)


def test_a_checkpoint_is_that_of_one_training(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    x, y = make_images(30)

    def train(x: Any = x, y: Any = y, seed: int = 0, change: Any = None, **options: Any) -> None:
        words: Any = {"kappa": 0.5, "input_shape": (8, 8, 1), "outputs": 3, **options}
        module = wl.finite.build(wl.cntk_gap(3), 4, seed, **words)
        if change is not None:
            with torch.no_grad():
                change(module)
        recipe = Recipe(20.0, batch=8, epochs=2, seed=3)
        train_sgd(module, x[:20], y[:20], x[20:], y[20:], recipe, checkpoint=path, every=0.0)

    def frozen(module: Any) -> Any:
        return next(p for p in module.parameters() if not p.requires_grad)

    train()
    before = path.read_bytes()
    train()  # the same one: nothing is left to do
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"x": x + (np.arange(30) == 0).reshape(-1, 1, 1, 1)},
        {"x": x + (np.arange(30) == 29).reshape(-1, 1, 1, 1)},
        {"y": np.where(np.arange(30) == 0, (y + 1) % 3, y)},
        {"y": np.where(np.arange(30) == 29, (y + 1) % 3, y)},
        {"dtype": "float64"},
        {"kappa": 0.25},
        {"zero_at_start": True},
        {"change": lambda module: frozen(module).mul_(2)},
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"of another training .*: build the module as it was"):
            train(**other)
    assert path.read_bytes() == before


def test_which_epochs_count() -> None:
    train = np.array([0.5, 1.0, 0.9, 1.0, 1.0])
    test = np.array([0.1, 0.2, 0.3, 0.5, 0.7])
    history = History(train, train, test, False, 2)
    assert history.full_at == 2
    assert history.accuracy == pytest.approx(0.6)
    assert history.averaged == 2
    assert History(train, train, test, True, 2).accuracy is None
    for after, averaged, accuracy in ((3, 3, 0.5), (4, 4, 0.425), (5, 4, 0.425), (10, 4, 0.425)):
        history = History(train, train, test, False, after)  # before the second none counts
        assert history.averaged == averaged
        assert history.accuracy == pytest.approx(accuracy)
    only = History(0.9 * train, train * np.array([1, 0, 1, 0, 1]), test, False, 10)
    assert (only.full_at, only.averaged, only.accuracy) == (5, 1, 0.7)
    never = History(train, 0.9 * train, test, False, 10)
    assert (never.averaged, never.accuracy) == (5, pytest.approx(0.36))
    _, found = toy_training()
    assert len(found.train) == 5
    x, y = make_images(12)
    module = wl.finite.build(wl.ntk_dense(1), 64, 0, outputs=3, input_shape=(8, 8, 1))
    done = train_sgd(module, x, y, x, y, Recipe(0.1, batch=4, epochs=100, after=3))
    assert done.full_at is not None
    assert len(done.train) == done.full_at + 3  # it stops there
    module = wl.finite.build(wl.ntk_dense(1), 64, 0, outputs=3, input_shape=(8, 8, 1))
    assert train_sgd(module, x, y, x, y, Recipe(1e6, batch=4, epochs=100)).diverged
    for words in ({"learning_rate": 0.0}, {"learning_rate": 1.0, "batch": 0}):
        with pytest.raises(ValueError, match="must be"):
            Recipe(**words)


# ---------------------------------------------------------------- table 1, CNN columns


CNN = ("--column", "cnn-gap", "--depths", 3, "--trials", 2, "--epochs", 3, "--batch", 10)
RATES = ("--learning-rate", 10, "--learning-rate", 1e30)


def test_table1_cnn_goes_on_and_chooses_a_rate(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.json"
    words = (data, *CNN, *RATES, "--channels", "4,6", "--exact")
    with monkeypatch.context() as patch:
        stop_at(patch, table1_cnn, "train_sgd", 4)
        stopped = call("table1-cnn", out, *words)
    assert stopped.exit_code == 130
    assert stopped.stderr.endswith("what is finished is kept, the same command goes on\n")
    assert not out.exists()
    assert call("table1-cnn", out, *words).exit_code == 0
    again = read(out)
    whole = call("table1-cnn", out, *words, "--store", tmp_path / "t", "--overwrite")
    assert whole.exit_code == 0, whole.output
    record = read(out)
    for one in (*record["exact"], *again["exact"]):
        assert one.pop("seconds") >= 0
    for key in ("rows", "exact", "asked", "errors", "notes"):
        assert record[key] == again[key]
    assert record["format"] == "widelimit.table1_cnn/1"
    assert [row["channels"] for row in record["rows"]] == [4, 6]
    for row in record["rows"]:
        assert row["learning_rate"] == 10
        assert [one["diverged"] for one in row["learning_rates"]] == [False, True]
        accuracies = [one["accuracy"] for one in row["trials"]]
        assert row["accuracy"] == pytest.approx(np.mean(accuracies))
        assert row["standard_error"] == pytest.approx(abs(np.subtract(*accuracies)) / 2)
        assert row["paper_percent"] is None
    # what a trial is: weights and orders of its own
    given = wl.load_dataset(str(data))
    mean, std = given.x_train.mean(), given.x_train.std()
    module = wl.finite.build(
        wl.cntk_gap(3), 6, (0, 1), outputs=3, kappa=0.05, input_shape=(8, 8, 1)
    )
    images = (
        (given.x_train - mean) / std,
        given.y_train,
        (given.x_test - mean) / std,
        given.y_test,
    )
    history = train_sgd(module, *images, Recipe(10.0, 10, 3, 10, 1))
    assert record["rows"][1]["trials"][1]["accuracy"] == history.accuracy
    k, k_test = (wl.kernel(wl.cntk_gap(3), a, images[0], dtype="float64") for a in images[::2])
    outputs = k_test @ np.linalg.solve(k, np.eye(3)[given.y_train] - 1 / 3)
    expected = (outputs.argmax(1) == given.y_test).mean()
    assert record["exact"][0]["accuracy"] == pytest.approx(expected)
    assert not list(Path(out.with_name("r-stores")).glob("*.npz"))
    table = to_markdown(record)
    assert table in whole.stdout
    assert table.count("| CNN-GAP | 3 |") == 2
    assert "| exact CNTK-GAP | 3 | - |" in table
    other = call("table1-cnn", out, *words, "--kappa", 0.1, "--overwrite")
    assert other.exit_code == 2
    assert "kappa 0.05 there and 0.1 here" in other.stderr


def test_how_a_rate_is_chosen() -> None:
    def found(full_at: int | None, loss: float, accuracy: float, diverged: bool = False) -> Any:
        return {
            "full_at": full_at, "loss": loss, "train_accuracy": accuracy, "diverged": diverged
        }  # fmt: skip

    order = [found(5, 0.3, 1), found(5, 0.4, 1), found(9, 0.1, 1), found(None, 0.1, 0.9)]
    order += [found(None, 0.0, 0.8), found(None, 0.0, 0.0, True)]
    ranks = [table1_cnn._rank(one) for one in order]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)


def test_that_few_epochs_are_averaged_is_said() -> None:
    half, whole = np.array([0.5] * 4), np.array([0.5, 1.0, 1.0, 1.0])
    trials = [
        table1_cnn._summary(History(half, train, half, False, 10))
        for train in (half, whole, whole[::-1])
    ]
    row = {"column": "cnn-v", "depth": 3, "channels": 1024, "trials": trials}
    (note,) = table1_cnn._few_epochs([row], 10)
    assert note.startswith("cnn-v, depth 3, 1,024 channels: accuracies of 2 of 3 trials are means ")
    assert "of 3, 4 epochs, from full training accuracy on, where it should be 10" in note
    for one in trials:
        del one["averaged"]  # as a part that was kept before
    assert table1_cnn._few_epochs([row], 10) == []


def test_all_rates_diverge(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    done = call("table1-cnn", out, data, *CNN, "--channels", 4, "--learning-rate", 1e30)
    assert done.exit_code == 0
    assert "| diverged |" in done.stdout
    (error,) = read(out)["errors"]
    assert "diverged with every learning rate: give smaller ones" in error
    assert error in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--column", "cnn-lap"), "a column must be one of cnn-v, cnn-gap, got 'cnn-lap'"),
        (("--learning-rate", 0), "a learning rate must be above 0, got 0.0"),
        (("--kappa", 0), "kappa must be above 0, got 0.0"),
        (("--device", "tpu"), "device must be auto, cpu or cuda, got 'tpu'"),
        (("--channels", "4,4"), "channels must be different ones, at least one, got (4, 4)"),
        (("--plot", "a.gif"), "a picture must be an .svg or .png file, got a.gif"),
    ],
)
def test_wrong_options_are_one_line(data: Path, words: Any, told: str) -> None:
    done = call("table1-cnn", data.with_name("r.json"), data, *words)
    assert done.exit_code == 2
    assert done.stderr == f"widelimit: {told}\n"


def test_the_papers_sizes_are_the_defaults() -> None:
    asked = AskedCNN()
    assert asked.channels == (1024,)
    assert asked.learning_rates == (0.1, 1.0, 10.0)
    assert (asked.kappa, asked.trials, asked.after) == (0.05, 3, 10)
    assert len(asked.cases()) == 10
    assert asked.recipe(1.0, 1) != asked.recipe(1.0, 2)


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        assert choose_device() == "cuda"
        return
    assert choose_device() == "cpu"
    with pytest.raises(ValueError, match="found none"):
        choose_device("cuda")


# ---------------------------------------------------------------- table 2


def test_table2_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "r.json"
    words = (data, "--depths", "3", "--channels", 6)
    with monkeypatch.context() as patch:
        stop_at(patch, table2, "empirical_ntk", 3)
        assert call("table2", out, *words, "--draws", 2).exit_code == 130
    assert call("table2", out, *words, "--draws", 1).exit_code == 0
    fewer = read(out)
    done = call("table2", out, *words, "--draws", 3, "--overwrite")
    assert done.exit_code == 0, done.output
    record = read(out)
    assert record["format"] == "widelimit.table2/1"
    for row, before in zip(record["rows"], fewer["rows"], strict=True):
        assert row["exact"] == before["exact"]
        assert row["random"][:1] == before["random"]
        accuracies = [one["accuracy"] for one in row["random"]]
        assert len(accuracies) == 3
        assert row["median"] == sorted(accuracies)[1]
        # other weights each time
        assert len({one["reciprocal_condition"] for one in row["random"]}) == 3
        assert row["paper_percent"] is None  # those images are others
    table = to_markdown(record)
    assert table in done.stdout
    assert "random features, median of 3" in table


def test_table2_is_regression_on_gradients(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert call("table2", out, data, "--depths", 3, "--channels", 6, "--draws", 2).exit_code == 0
    record = read(out)
    given = wl.load_dataset(str(data))
    train, test = given.y_train < 2, given.y_test < 2
    x, x_test = given.x_train[train], given.x_test[test]
    x, x_test = ((a - x.mean()) / x.std() for a in (x, x_test))
    assert (record["n_train"], record["n_test"]) == (len(x), len(x_test))
    sign = np.where(given.y_train[train] == 1, 1.0, -1.0)
    for row, make in zip(record["rows"], (wl.cntk_vanilla, wl.cntk_gap), strict=True):
        k, k_test = (wl.kernel(make(3), a, x, dtype="float64") for a in (x, x_test))
        right = ((k_test @ np.linalg.solve(k, sign) > 0) == (given.y_test[test] == 1)).mean()
        assert row["accuracy"] == pytest.approx(right)
        module = wl.finite.build(make(3), 6, (0, 1), input_shape=(8, 8, 1))
        features: list[np.ndarray] = []
        for image in np.concatenate([x, x_test]):
            module.zero_grad()
            module(torch.tensor(image[None], dtype=torch.float32))[0, 0].backward()
            trained = [p.grad.flatten() for p in module.parameters() if p.requires_grad]
            features.append(torch.cat(trained).double().numpy())
        phi = np.array(features)
        # the regression of least norm on the features themselves
        outputs = phi[len(x) :] @ np.linalg.lstsq(phi[: len(x)], sign, rcond=None)[0]
        clear = np.abs(outputs) > 1e-3
        right = ((outputs > 0) == (given.y_test[test] == 1))[clear].sum()
        accuracy = row["random"][1]["accuracy"] * len(x_test)
        assert abs(accuracy - right) <= (~clear).sum()
        assert clear.mean() > 0.9


# ---------------------------------------------------------------- the theorems


SMALL = {
    "theorem31": ("--widths", "4,8", "--seeds", 2, "--draws", 2, "--mean-width", 4),
    "theorem32": ("--widths", "8,16", "--seeds", 1, "--n-train", 4, "--n-test", 4),
    "weakly-trained": ("--widths", "4,8", "--seeds", 2, "--n-train", 4, "--n-test", 4),
}


@pytest.mark.parametrize("command", SMALL)
def test_theorems_go_on(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, words = tmp_path / "r.json", SMALL[command]
    with monkeypatch.context() as patch:
        stop_at(patch, finite_width, "build", 4 if command != "theorem32" else 2)
        stopped = call(command, out, *words)
    assert stopped.exit_code == 130
    assert len(list((tmp_path / "r-stores").glob("*.json"))) == 2  # the plan, and a part
    done = call(command, out, *words)
    assert done.exit_code == 0, done.output
    again = read(out)
    whole = call(command, out, *words, "--store", tmp_path / "t", "--overwrite")
    assert whole.exit_code == 0
    record = read(out)
    assert record["format"] == f"widelimit.{command.replace('-', '_')}/1"
    for key in record.keys() - {"environment", "seconds", "peak_memory"}:
        assert record[key] == again[key]
    assert to_markdown(record) in whole.stdout
    assert (tmp_path / "t" / PLAN).exists()


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("theorem31", ("--seeds", 1), "seeds must be 2 or more, got 1"),
        ("theorem31", ("--widths", "0,2"), "widths must ascend from 1 on, and be at least two"),
        ("theorem31", ("--widths", "4,2"), "widths must ascend from 1 on, and be at least two"),
        ("theorem32", ("--kappa", 0), "kappa above 0, got None and 0.0"),
        ("theorem32", ("--n-train", 3), "n_train and n_test must be even"),
        ("weakly-trained", ("--n-train", 3), "n_train and n_test must be even"),
    ],
)
def test_wrong_numbers_are_told_before_pytorch_is_loaded(
    command: str, words: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widelimit.experiments.theorems.choose_device", pytest.fail)
    done = call(command, tmp_path / "r.json", *words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert message in done.stderr


def test_a_record_of_something_else_has_no_table() -> None:
    with pytest.raises(ValueError, match=r"its format is 'widelimit\.table1/2'"):
        to_markdown({"format": "widelimit.table1/2"})


def test_pictures_are_the_same_each_time(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import matplotlib as mpl

    mpl.use("Agg")
    records: list[dict[str, Any]] = []
    out = tmp_path / "r.json"
    assert call("table2", out, data, "--depths", 3, "--channels", 2, "--draws", 1).exit_code == 0
    records.append(read(out))
    picture = tmp_path / "p.svg"
    words = ("--channels", "2,4", "--learning-rate", 1, "--exact", "--plot", picture)
    done = call("table1-cnn", out, data, *CNN, *words, "--store", tmp_path / "u", "--overwrite")
    assert done.stdout.endswith(f"picture: {picture}\n"), done.output
    records.append(read(out))
    again = call("table1-cnn", tmp_path / "n.json", data, *CNN, *words)
    assert again.exit_code == 2
    assert "p.svg: there is one already: give another path, or say --overwrite" in again.stderr
    places = [tmp_path / "1.svg", tmp_path / "2.svg"]
    for record in records:
        for place in places:
            wl.plot.draw_record(record, str(place))
        assert places[0].read_bytes() == places[1].read_bytes()
    assert picture.read_bytes() == places[0].read_bytes()
    with pytest.raises(ValueError, match=r"table2, got widelimit.myrtle: widelimit report"):
        wl.plot.draw_record({"format": "widelimit.myrtle/1"}, tmp_path / "m.svg")
    with pytest.raises(ValueError, match=r"must be an .svg or .png file, got m.pdf"):
        wl.plot.draw_record(records[0], "m.pdf")
    ax = wl.plot.random_features(records[0])
    assert ax.get_legend().get_texts()[-1].get_text() == "exact kernel"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["CNTK-V\n3", "CNTK-GAP\n3"]
    assert math.isclose(ax.lines[-1].get_ydata()[0], records[0]["rows"][1]["accuracy"])
    ax = wl.plot.cnn_accuracies(records[1])
    names = {text.get_text() for text in ax.get_legend().get_texts()}
    assert names == {"CNN-GAP, depth 3", "exact CNTK-GAP, depth 3"}
    from matplotlib import pyplot

    pyplot.close("all")
