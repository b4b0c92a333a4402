"""The theorems with real networks on digits, as runs that go on where they were stopped.

theorem31: how the error of tangent kernels falls with the width, and the mean over many networks.
theorem32: wide networks trained by gradient descent, beside regression with the tangent kernel.
weakly_trained: networks of which the last layer alone is trained, beside the NNGP kernel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widelimit.architectures import cntk_gap, cntk_vanilla, ntk_dense
from widelimit.arrays import FloatArray
from widelimit.costs import LONG
from widelimit.display import duration
from widelimit.experiments.cells import Cells, Keep
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.finite_width import (
    Say,
    cell_name,
    compare_means,
    digits_pair,
    measure_decay,
    train_weakly,
    train_widths,
    training_times,
)
from widelimit.files import check_record
from widelimit.finite.costs import (
    choose_device,
    count_multiply_adds,
    estimate_gradients,
    on_threads,
    rate,
)
from widelimit.machine import peak_memory
from widelimit.network import Conv, Dense, Flatten, LocalAvgPool, Network, ReLU

__all__ = ["DECAYS", "MEANS", "Theorem", "theorem31", "theorem32", "weakly_trained"]

_CLASSES = (3, 8)
_DENSE_WIDTHS = tuple(2**i for i in range(4, 12))
# Of width 2,048 a convolution has 38 million weights.
_CONV_WIDTHS = _DENSE_WIDTHS[:6]
_DENSE_SEEDS, _CONV_SEEDS = (60, 60, 60, 60, 60, 60, 40, 20), (240,) * 6

DECAYS: dict[str, tuple[Network, int]] = {
    "dense, depth 1": (ntk_dense(1), 10),
    "dense, depth 3": (ntk_dense(3), 10),
    "CNTK-GAP, depth 4": (cntk_gap(4), 4),
    "CNTK-V, depth 3": (cntk_vanilla(3), 4),
}
"""Networks whose errors are measured over widths, and on how many images."""
MEANS = {
    "CNTK-V, depth 3": cntk_vanilla(3),
    "CNTK-GAP, depth 3": cntk_gap(3),
    "CNTK-LAP, depth 3": Network(
        [Conv(3), ReLU(), Conv(3), ReLU(), LocalAvgPool(1), Dense()], scaling="fan_in"
    ),
    "dense, depth 2": ntk_dense(2),
    "dense, depth 2, with biases": ntk_dense(2, b_std=0.5),
    "partly frozen": Network(
        [
            *(Conv(3, b_std=0.3, trainable=False), ReLU(), Conv(3, b_std=0.2), ReLU()),
            *(Flatten(), Dense(trainable=False)),
        ]
    ),
}
"""Networks of which the mean of many kernels is compared."""

Work = Callable[[Keep, Say], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Theorem:
    """A run that is ready: what can be checked before the work has been.

    Parameters
    ----------
    what : str
        What is done, for readers.
    work : callable
        Does it, and returns what the record has of its own.
    cells : Cells
    device : str
    threads : int or None
    seconds : float
        Estimate of what is not there yet.
    """

    what: str
    work: Work
    cells: Cells
    device: str
    threads: int | None
    seconds: float

    @property
    def is_long(self) -> bool:
        """Whether somebody should be asked before."""
        return self.seconds > LONG

    def lines(self) -> list[str]:
        """Say what the run takes."""
        where = "the card" if self.device == "cuda" else "the processor"
        return [
            f"{self.what}, on {where}: about {duration(self.seconds)}; kept in {self.cells.folder}"
        ]

    def run(
        self, say: Say, *, progress: bool = False, command: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Compute what is not there yet, and return the record.

        Parameters
        ----------
        say : callable
            Gets a sentence when something is known.
        progress : bool
            Whether to show how far it is, on standard error.
        command : sequence of str or None
            As for `describe_environment`.

        Raises
        ------
        OSError, ValueError, MemoryError
            As for `empirical_ntk` and `descend`.
        """
        environment = dataclasses.asdict(describe_environment(command))
        with self.cells.held(progress) as keep, on_threads(self.threads) as threads:
            found = self.work(keep, say)
        return {
            "format": f"widelimit.{self.cells.run.replace('-', '_')}/1",
            "environment": environment,
            "device": self.device,
            "threads": threads,
            **found,
            "seconds": round(self.cells.seconds, 3),
            "peak_memory": peak_memory(),
        }


def theorem31(
    out: Path,
    store: Path | None = None,
    *,
    widths: Sequence[int] | None = None,
    seeds: int | None = None,
    draws: int = 200,
    mean_width: int = 512,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> Theorem:
    """Prepare the errors over widths of `DECAYS`, and the means of `MEANS`.

    Parameters
    ----------
    out, store, overwrite, threads
        As for `Table1.prepare`.
    widths : sequence of int or None
        None: 16 to 2,048 for dense networks, to 512 for convolutions.
    seeds : int or None
        Networks of each width. None: 60, fewer of the widest, 240 with convolutions.
    draws, mean_width : int
        Networks whose mean is taken, and their width; as many have half of it.
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    OSError, ValueError
        As for `Table1.prepare`, and if a number is outside its range.
    """
    if draws < 2 or mean_width < 2:
        raise ValueError(f"draws and mean_width must be 2 or more, got {draws} and {mean_width}")
    if seeds is not None and seeds < 2:
        raise ValueError(f"seeds must be 2 or more, got {seeds}")
    if widths is not None and (len(widths) < 2 or list(widths) != sorted({0, *widths})[1:]):
        raise ValueError(f"widths must ascend from 1 on, and be at least two, got {tuple(widths)}")
    device = choose_device(device)  # PyTorch takes seconds to load
    x = digits_pair(_CLASSES, 10, 0)["x"]
    plans: dict[str, tuple[Network, FloatArray, tuple[int, ...], tuple[int, ...]]] = {}
    for name, (network, n) in DECAYS.items():
        dense = isinstance(network.layers[0], Dense)
        own = tuple(widths or (_DENSE_WIDTHS if dense else _CONV_WIDTHS))
        usual = _DENSE_SEEDS if dense else _CONV_SEEDS
        counts = usual if widths is None and seeds is None else (seeds or 60,) * len(own)
        plans[name] = network, x[:n], own, counts
    with on_threads(threads):
        speed = rate(device)
    costs: dict[str, float] = {}
    for name, (network, images, own, counts) in plans.items():
        for width, count in zip(own, counts, strict=True):
            one = estimate_gradients(network, width, images.shape[1:], len(images), speed, device)
            costs[cell_name(name, width)] = count * one
    of_means = x[[0, 1, -1]]
    for name, network in MEANS.items():
        for width in (mean_width // 2, mean_width):
            one = estimate_gradients(network, width, x.shape[1:], len(of_means), speed, device)
            costs[cell_name(f"mean {name}", width)] = draws * one

    def work(keep: Keep, say: Say) -> dict[str, Any]:
        how: Any = {"device": device, "say": say, "keep": keep}
        return {
            "decays": [
                dataclasses.asdict(measure_decay(name, *plan, **how))
                for name, plan in plans.items()
            ],
            "means": [
                dataclasses.asdict(compare_means(n, network, of_means, mean_width, draws, **how))
                for n, network in MEANS.items()
            ],
        }

    asked = {
        "decays": {name: [own, counts] for name, (_, _, own, counts) in plans.items()},
        "means": [mean_width, draws],
    }
    return _ready("theorem31", work, asked, costs, (out, store, overwrite), (device, threads))


def theorem32(
    out: Path,
    store: Path | None = None,
    *,
    widths: Sequence[int] | None = None,
    seeds: int | None = None,
    n_train: int = 20,
    n_test: int = 100,
    kappa: float = 0.1,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> Theorem:
    """Prepare the training of dense networks on images of two digits.

    Parameters
    ----------
    out, store, overwrite, threads, device
        As for `theorem31`.
    widths : sequence of int or None
        None: 64, 256, 1,024 and 4,096.
    seeds : int or None
        Networks of each width. None: 4, and one of 4,096.
    n_train, n_test : int
        Images, half of each digit.
    kappa : float
        Of the networks.

    Raises
    ------
    ImportError, OSError, ValueError
        As for `theorem31` and `digits_pair`.
    """
    own = tuple(widths or (64, 256, 1024, 4096))
    if min(own) < 1 or len(set(own)) < len(own):
        raise ValueError(f"widths must be different ones, 1 or more, got {own}")
    if (seeds is not None and seeds < 1) or not 0 < kappa < math.inf:
        raise ValueError(f"seeds must be 1 or more, kappa above 0, got {seeds} and {kappa}")
    data, network = digits_pair(_CLASSES, n_train, n_test), ntk_dense(2)
    device = choose_device(device)
    counts = tuple(seeds or (4 if width < 4096 else 1) for width in own)
    name = f"{_CLASSES[0]} and {_CLASSES[1]}, dense, depth 2"
    times, largest = training_times(network, data["x"])
    steps = times[-1] * largest / 0.7  # nearly all of them have the largest step
    with on_threads(threads):
        speed = rate(device)
    costs: dict[str, float] = {}
    for width, count in zip(own, counts, strict=True):
        # A step goes through the whole batch at once, and moves all parameters.
        work = count_multiply_adds(network, width, data["x"].shape[1:])[0]
        each = steps * (3e-4 + (4 * n_train + 20) * work / speed)
        costs |= {cell_name(name, width, seed): each for seed in range(count)}

    def work_on(keep: Keep, say: Say) -> dict[str, Any]:
        images = (data["x"], data["y"], data["x_test"], data["y_test"])
        how: Any = {"kappa": kappa, "device": device, "say": say, "keep": keep}
        return {
            "training": dataclasses.asdict(train_widths(name, network, *images, own, counts, **how))
        }

    asked = {"widths": own, "seeds": counts, "images": [n_train, n_test], "kappa": kappa}
    return _ready("theorem32", work_on, asked, costs, (out, store, overwrite), (device, threads))


def weakly_trained(
    out: Path,
    store: Path | None = None,
    *,
    widths: Sequence[int] | None = None,
    seeds: int = 5,
    n_train: int = 40,
    n_test: int = 200,
    overwrite: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> Theorem:
    """Prepare regression with random features, those of the last hidden layer, on two digits.

    Parameters
    ----------
    out, store, overwrite, threads, device
        As for `theorem31`.
    widths : sequence of int or None
        None: 16, 64, 256, and 1,024 for the dense network.
    seeds : int
        Networks of each width.
    n_train, n_test : int
        Images, half of each digit.

    Raises
    ------
    ImportError, OSError, ValueError
        As for `theorem31` and `digits_pair`.
    """
    if seeds < 1 or (widths is not None and min(widths) < 1):
        raise ValueError(f"seeds and widths must be 1 or more, got {seeds} and {widths}")
    data = digits_pair(_CLASSES, n_train, n_test)
    device = choose_device(device)
    plans = {
        "dense, depth 3": (ntk_dense(3), tuple(widths or (16, 64, 256, 1024))),
        "CNTK-GAP, depth 4": (cntk_gap(4), tuple(widths or (16, 64, 256))),
    }
    with on_threads(threads):
        speed = rate(device)
    costs = {
        cell_name(name, width): seeds
        * (n_train + n_test)
        * count_multiply_adds(network, width, data["x"].shape[1:])[0]
        / speed
        for name, (network, own) in plans.items()
        for width in own
    }

    def work(keep: Keep, say: Say) -> dict[str, Any]:
        images = (data["x"], data["y"], data["x_test"], data["y_test"])
        how: Any = {"device": device, "say": say, "keep": keep}
        return {
            "weakly_trained": [
                dataclasses.asdict(train_weakly(name, network, *images, own, seeds, **how))
                for name, (network, own) in plans.items()
            ]
        }

    asked = {
        "widths": [own for _, own in plans.values()],
        "seeds": seeds,
        "images": [n_train, n_test],
    }
    return _ready("weakly-trained", work, asked, costs, (out, store, overwrite), (device, threads))


_WHAT = {
    "theorem31": "random networks of growing width, and the means of many",
    "theorem32": "networks trained by gradient descent on the whole batch",
    "weakly-trained": "networks of which the last layer is trained",
}


def _ready(
    run: str,
    work: Work,
    asked: dict[str, Any],
    costs: dict[str, float],
    place: tuple[Path, Path | None, bool],
    where: tuple[str, int | None],
) -> Theorem:
    out, store, overwrite = place
    folder = out.with_name(f"{out.stem}-stores") if store is None else store
    check_record(out, folder, replace=overwrite)
    cells = Cells(folder, run, asked, costs)
    return Theorem(_WHAT[run], work, cells, *where, cells.left)
