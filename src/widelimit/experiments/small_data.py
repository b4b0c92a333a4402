"""Small data: ten images to 1,280, class-balanced, as in Arora et al. 2020.

The learning curve of the demo, with the sizes of that paper and as many draws, and with its kernels
in stores, so that a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widelimit.architectures import cntk_gap
from widelimit.arrays import FloatArray
from widelimit.backends import BackendName
from widelimit.costs import Forecast, forecast
from widelimit.data.dataset import Dataset
from widelimit.data.load import load_dataset
from widelimit.experiments import learning_curve
from widelimit.experiments.design import DEPTH, Design, fixed_design
from widelimit.experiments.methods import METHODS
from widelimit.experiments.record import Record
from widelimit.files import check_record, own_folder
from widelimit.matrices import gram
from widelimit.matrices.progress import Progress
from widelimit.network import Network

__all__ = ["LARGEST", "SmallData"]

LARGEST = 1280
"""Images in the largest training set of the paper."""


@dataclass(frozen=True, eq=False)
class SmallData:
    """A run that is ready.

    Parameters
    ----------
    dataset : Dataset
    design : Design
    cost : Forecast
        Of CNTK-GAP, which is nearly all of it.
    store : Path
        A folder for the kernels.
    threads : int or None
    how : dict
        Of `gram`: backend, memory.
    """

    dataset: Dataset
    design: Design
    cost: Forecast
    store: Path
    threads: int | None
    how: dict[str, Any]

    @classmethod
    def prepare(
        cls,
        data: str,
        out: Path,
        store: Path | None = None,
        *,
        largest: int = LARGEST,
        n_test: int | None = None,
        draws: int = 20,
        seed: int = 0,
        overwrite: bool = False,
        reading: dict[str, Any] | None = None,
        backend: BackendName = "auto",
        threads: int | None = None,
        memory: int | str | None = None,
    ) -> SmallData:
        """Read the images, choose those that are used, and check what can be checked.

        Parameters
        ----------
        data, out, store, overwrite, reading, backend, threads, memory
            As for `Table1.prepare`.
        largest, n_test, draws, seed
            As for `fixed_design`.

        Raises
        ------
        OSError, ValueError
            As for `Table1.prepare` and `fixed_design`.
        """
        folder = out.with_name(f"{out.stem}-stores") if store is None else store
        check_record(out, folder, replace=overwrite)
        dataset = load_dataset(data, **(reading or {}))
        design = fixed_design(dataset, largest=largest, n_test=n_test, draws=draws, seed=seed)
        # Of a symmetric matrix as many inputs as make the pairs that there are.
        same = int(((8 * design.pairs + 1) ** 0.5 - 1) / 2)
        how: Any = {"backend": backend, "threads": threads}
        cost = forecast([cntk_gap(DEPTH)], dataset.image_shape, same, net=None, **how)
        if cost.is_long and largest // 4 >= dataset.n_classes:
            fewer = fixed_design(dataset, largest=largest // 4, n_test=n_test, draws=draws)
            seconds = cost.seconds * fewer.pairs / design.pairs
            cost.options.append((f"--largest {largest // 4}", seconds))
        how: Any = {"backend": backend, "memory": memory}
        return cls(dataset, design, cost, folder, threads, how)

    def run(
        self,
        *,
        progress: Callable[[str, float], None] | None = None,
        command: Sequence[str] | None = None,
    ) -> Record:
        """Compute the kernels that are not there yet, fit everything, and return the record.

        Parameters
        ----------
        progress, command
            As for `learning_curve.run`.

        Raises
        ------
        OSError, ValueError, MemoryError, numpy.linalg.LinAlgError
            As for `gram` and `learning_curve.run`.
        """
        networks = [method.network for method in METHODS if method.network is not None]
        names = {_name(net, symmetric=how) for net in networks for how in (False, True)}
        with own_folder(self.store, names, "a run of small data"):
            return learning_curve.run(
                self.dataset,
                self.design,
                threads=self.threads,
                progress=progress,
                command=command,
                kernel=self._kernel,
            )

    def _kernel(
        self,
        net: Network,
        x1: FloatArray,
        x2: FloatArray | None,
        *,
        dtype: Any,
        threads: int | None,
        progress: Callable[[float], None],
    ) -> NDArray[Any]:
        """Return a kernel that is in its store, or gets there."""

        def told(state: Progress) -> None:
            progress(state.share)

        place = self.store / _name(net, symmetric=x2 is None)
        matrix = gram(
            net,
            x1,
            x2,
            store=place,
            channels="last",
            dtype=dtype,
            threads=threads,
            progress=told,
            **self.how,
        )
        return np.asarray(matrix)


def _name(network: Network, *, symmetric: bool) -> str:
    return f"{network.fingerprint[:16]}-{'train' if symmetric else 'test'}.zarr"
