"""How accuracy grows with the number of training images: kernels of infinite networks, baselines.

Class-balanced training sets of doubling size are drawn several times, each within the next larger
one. Every kernel is computed once for all images and then only sliced. Nothing is chosen by test
accuracy: kernels have no free parameter but the ridge, which is the smallest of `RIDGES` with
which the system is well-conditioned, and the baselines are tuned on their training images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from widelimit.architectures import cntk_gap
from widelimit.arrays import FloatArray
from widelimit.data.dataset import Dataset
from widelimit.experiments.design import DEPTH, Design, make_design, shrink_images
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.fitting import RIDGES, KernelBlocks, Results, fit_all
from widelimit.experiments.hardest import find_hardest, make_confusion
from widelimit.experiments.methods import METHODS, Method
from widelimit.experiments.record import ComputedKernel, Curve, Data, Point, Record
from widelimit.experiments.sets import Sets, take
from widelimit.machine import default_threads
from widelimit.matrices.kernel import kernel as compute_kernel
from widelimit.network import Network
from widelimit.program import compile_networks

__all__ = [
    "CURVE_STAGE",
    "METHODS",
    "RIDGES",
    "Design",
    "KernelFunction",
    "Record",
    "estimate_seconds",
    "make_design",
    "run",
]

CURVE_STAGE = "Learning curve"

_TRIAL_COST = 2e8  # element-layers of a trial that measures the speed: a tenth of a second
_TRIAL_IMAGES = 32
_TRIALS = 4  # of which the fastest counts, so that warming up does not


class KernelFunction(Protocol):
    """What the run needs of `widelimit.kernel`."""

    def __call__(
        self,
        net: Network,
        x1: FloatArray,
        x2: FloatArray | None,
        *,
        dtype: Any,
        threads: int | None,
        progress: Callable[[float], None],
    ) -> NDArray[Any]:
        """Return the kernel of x1 with x2, or with itself."""
        ...


def run(
    dataset: Dataset,
    design: Design,
    *,
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    command: Sequence[str] | None = None,
    kernel: KernelFunction | None = None,
) -> Record:
    """Compute the learning curves of all methods.

    Parameters
    ----------
    dataset : Dataset
        Pixels are used as they are, in [0, 1] and not centred.
    design : Design
        What `make_design` made of this data set.
    threads : int, optional
        Of the kernel and of the baselines. None: one for each processor.
    progress : callable, optional
        Is told, perhaps from another thread, a stage (the label of a method with a kernel, or
        `CURVE_STAGE`) and the finished share of it, 0 to 1.
    command : sequence of str, optional
        The command line for the record; by default that of this process.
    kernel : callable, optional
        Computes the kernels; by default `widelimit.kernel`.

    Returns
    -------
    Record
        The same for the same data, design and code, except for timings: neither threads nor the
        speed of the machine have a say.

    Raises
    ------
    ValueError
        If threads is less than 1.
    numpy.linalg.LinAlgError
        If a kernel is not positive definite even with the largest of `RIDGES`.
    MemoryError
        Before the work starts, if a kernel does not fit in memory.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    start = time.perf_counter()
    environment = describe_environment(command)
    report = progress or _ignore
    sets = Sets.of(dataset, design)

    blocks: dict[str, KernelBlocks] = {}
    kernels: list[ComputedKernel] = []
    seconds: dict[str, float] = {}
    for method in METHODS:
        if method.network is not None:
            block, entry = _compute(method, method.network, sets, design, threads, report, kernel)
            blocks[method.key] = block
            kernels.append(entry)
            seconds[method.label] = entry.seconds

    before = time.perf_counter()
    workers = default_threads() if threads is None else threads
    report(CURVE_STAGE, 0.0)
    results = fit_all(
        blocks, sets, design, workers=workers, progress=lambda share: report(CURVE_STAGE, share)
    )
    seconds[CURVE_STAGE] = time.perf_counter() - before
    best = [results["gap", i, len(design.sizes) - 1] for i in range(design.draws)]
    hardest = find_hardest(blocks["gap"], sets, design, best)
    seconds["All"] = time.perf_counter() - start

    _, h, w, c = sets.x_pool.shape
    return Record(
        data=Data(
            name=dataset.name,
            provenance=dataset.provenance,
            class_names=dataset.class_names,
            split="given" if dataset.split == "given" else "drawn",
            image_shape=(h, w, c),
            shrink=design.shrink,
            n_pool=design.pool.size,
            n_test=sets.draws[0].test.size,
            n_available=dataset.y_train.size + dataset.y_test.size,
        ),
        environment=environment,
        seed=design.seed,
        draws=design.draws,
        notes=design.notes,
        kernels=tuple(kernels),
        curves=tuple(_curve(method, sets, design, results) for method in METHODS),
        confusion=make_confusion(sets, best, design.n_classes),
        hardest=hardest,
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
        errors=_errors(results),
    )


def estimate_seconds(
    dataset: Dataset,
    design: Design,
    threads: int | None = None,
    kernel: KernelFunction | None = None,
) -> float:
    """Estimate how long the CNTK-GAP kernel of a design takes here, from the time of a small part.

    Parameters
    ----------
    dataset, design
        As for `run`.
    threads, kernel
        As for `run`.

    Returns
    -------
    float
        Seconds, likely right within a factor of two.
    """
    function = compute_kernel if kernel is None else kernel
    network = cntk_gap(DEPTH)
    x = shrink_images(take(dataset, design.pool[:_TRIAL_IMAGES]), design.shrink)
    rows = int(_TRIAL_COST / (design.element_layers / design.pairs) / len(x))
    rows = min(max(rows, 1), len(x))
    times: list[float] = []
    for _ in range(_TRIALS):
        start = time.perf_counter()
        function(network, x[:rows], x, dtype=design.dtype, threads=threads, progress=_ignore)
        times.append(time.perf_counter() - start)
    return min(times) / (rows * len(x)) * design.pairs


def _ignore(*_: Any) -> None:
    pass


def _compute(
    method: Method,
    network: Network,
    sets: Sets,
    design: Design,
    threads: int | None,
    report: Callable[[str, float], None],
    kernel: KernelFunction | None,
) -> tuple[KernelBlocks, ComputedKernel]:
    function = compute_kernel if kernel is None else kernel
    dtype = design.dtype if method.key == "gap" else "float64"
    n, m = len(sets.x_pool), 0 if design.test is None else len(sets.x_test)
    own = n * (n + 1) // 2
    pairs = own + n * m
    start = time.perf_counter()

    def compute(x1: FloatArray, x2: FloatArray | None, done: int, part: int) -> NDArray[Any]:
        def told(fraction: float) -> None:
            report(method.label, (done + part * fraction) / pairs)

        return function(network, x1, x2, dtype=dtype, threads=threads, progress=told)

    report(method.label, 0.0)
    pool = compute(sets.x_pool, None, 0, own)
    test = pool if design.test is None else compute(sets.x_test, sets.x_pool, own, n * m)
    report(method.label, 1.0)
    ((program, _),) = compile_networks([network], sets.x_pool.shape[1:], ["ntk"])
    return KernelBlocks(pool, test), ComputedKernel(
        method=method.key,
        network=network.to_json(),
        dtype=dtype,
        pairs=pairs,
        element_layers=float(pairs) * program.element_layers,
        seconds=round(time.perf_counter() - start, 3),
    )


def _curve(method: Method, sets: Sets, design: Design, results: Results) -> Curve:
    points: list[Point] = []
    for j, size in enumerate(design.sizes):
        row = [results[method.key, i, j] for i in range(design.draws)]
        accuracies = [result.accuracy for result in row]
        distinct = {draw.train[j].tobytes() for draw in sets.draws}
        points.append(
            Point(
                size=size,
                accuracies=tuple(accuracies),
                mean=float(np.mean(accuracies)),
                std=float(np.std(accuracies, ddof=1)) if len(distinct) > 1 else None,
                settings=tuple(result.setting for result in row),
            )
        )
    return Curve(method.key, method.label, method.detail, tuple(points))


def _errors(results: Results) -> tuple[str, ...]:
    errors: list[str] = []
    for method in METHODS:
        mine = [result for (key, _, _), result in results.items() if key == method.key]
        if count := sum(result.unconverged for result in mine):
            errors.append(
                f"{method.label}: {count} fits stopped before they converged, some of those that "
                "cross-validation compares."
            )
        ridges = [result.setting.get("ridge", 0.0) for result in mine]
        if max(ridges) > 0:
            errors.append(
                f"{method.label}: {sum(r > 0 for r in ridges)} of {len(ridges)} systems were "
                f"ill-conditioned and got a relative ridge of up to {max(ridges):g}."
            )
    return tuple(errors)
