"""The jobs of faults.py: small things that are made in a folder, of some data or others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import widelimit as wl
from widelimit.matrices import computation
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import TileStore
from widelimit.solvers import TiledFactor, solve_conjugate, solve_tiled

N, TILE = 36, 16  # three tiles on a side, the last one narrow
NET = wl.ntk_dense(2)
KERNEL, FACTOR = "kernel.zarr", "factor.zarr"


@dataclass(frozen=True)
class Job:
    """Something small that is made in a folder; `variant` says of which data."""

    name: str
    # Begin, or go on, and return the bits of the result; verify, if there is such an option.
    run: Callable[[Path, int, bool], bytes]
    # Return the bits of what is there.
    read: Callable[[Path, int], bytes]
    verifies: bool = False
    tiles: str | None = None  # name of its store of tiles
    before: Callable[[Path], None] | None = None  # what is in the folder at first
    travels: bool = False


def samples(variant: int) -> np.ndarray:
    return np.random.default_rng(variant).normal(size=(N, 5))


def targets(variant: int) -> np.ndarray:
    return np.random.default_rng(variant + 10).normal(size=(N, 2))


_matrices: dict[int, np.ndarray] = {}


def matrix(variant: int) -> np.ndarray:
    if variant not in _matrices:
        _matrices[variant] = wl.kernel(NET, samples(variant), dtype="float64")
    return _matrices[variant]


def make_kernel(folder: Path, variant: int, verify: bool) -> bytes:
    k = wl.gram(NET, samples(variant), store=folder / KERNEL, tile=TILE, threads=1, verify=verify)
    return np.asarray(k).tobytes()


def read_kernel(folder: Path, variant: int) -> bytes:
    return np.asarray(wl.open_gram(folder / KERNEL)).tobytes()


class Workers(Executor):
    """Runs each task at once, as a process that has just begun would."""

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        self._before, self._number = before, 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        computation._kept = computation._Kept()
        computation._thread = computation._Thread()
        self._number += 1
        try:
            self._before(self._number - 1)
            future.set_result(fn(*args, **kwargs))
        except (Exception, CancelledError) as error:
            future.set_exception(error)
        return future


def make_on_workers(
    folder: Path, variant: int, verify: bool, executor: Executor | None = None
) -> bytes:
    k = wl.gram(
        NET,
        samples(variant),
        store=folder / KERNEL,
        tile=TILE,
        verify=verify,
        executor=Workers() if executor is None else executor,
    )
    return np.asarray(k).tobytes()


def make_factor(folder: Path, variant: int, verify: bool) -> bytes:
    solution = solve_tiled(
        matrix(variant),
        targets(variant),
        0.1,
        store=folder / FACTOR,
        tile=TILE,
        threads=1,
        verify=verify,
    )
    assert solution.factor is not None
    return solution.value.tobytes() + solution.factor.inverse_diagonal().tobytes()


def read_factor(folder: Path, variant: int) -> bytes:
    factor = TiledFactor(TileStore.open(open_objects(folder / FACTOR)), None, 1)
    return factor.solve(targets(variant)).tobytes() + factor.inverse_diagonal().tobytes()


def iterate(folder: Path, variant: int, verify: bool = False) -> bytes:
    solution = solve_conjugate(
        matrix(variant), targets(variant), 1e-3, tolerance=1e-10, checkpoint=folder / "checkpoint"
    )
    return solution.require().value.tobytes()


def fitted(variant: int) -> Any:
    if variant not in _models:
        model = wl.NTKRegressor(NET, ridge=0.1, standardise=False, threads=1)
        _models[variant] = model.fit(samples(variant), targets(variant))
    return _models[variant]


_models: dict[int, Any] = {}
EARLIER = 7  # variant of the model that is replaced


def save(folder: Path, variant: int, verify: bool = False) -> bytes:
    wl.save_model(fitted(variant), folder / "model", overwrite=True)
    return load(folder, variant)


def load(folder: Path, variant: int) -> bytes:
    return wl.load_model(folder / "model").predict(samples(3)).tobytes()


def fit(folder: Path, variant: int, verify: bool = False) -> bytes:
    model = wl.NTKRegressor(
        NET, ridge=0.1, standardise=False, threads=1, store=folder / "fits", memory="64GB"
    )
    return model.fit(samples(variant), targets(variant)).dual_coef_.tobytes()


JOBS = [
    Job("kernel", make_kernel, read_kernel, True, KERNEL),
    Job("kernel on workers", make_on_workers, read_kernel, True, KERNEL, travels=True),
    Job("factor", make_factor, read_factor, True, FACTOR),
    Job("checkpoint", iterate, iterate),
    Job("model", save, load, before=lambda folder: None),
    Job("model replaced", save, load, before=lambda folder: void(save(folder, EARLIER))),
    Job("fit", fit, fit),
]


def void(_: object) -> None:
    """Return nothing."""
