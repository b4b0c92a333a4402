"""Table 2 of the paper: random features of networks of finite width, beside the exact kernels.

On CIFAR-2, the first two classes: kernel regression with the tangent kernel of a random network of
128 channels, that is on its gradient by its trained weights, of which only products are held; for
several draws of the network, and with the exact kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from widelimit.architectures import cntk_gap, cntk_vanilla
from widelimit.arrays import FloatArray
from widelimit.backends import BackendName
from widelimit.costs import LONG, estimate
from widelimit.data.dataset import Dataset
from widelimit.data.load import load_dataset
from widelimit.display import duration
from widelimit.experiments.cells import Cells, Keep
from widelimit.experiments.environment import describe_environment
from widelimit.experiments.paper import CIFAR2, is_cifar10
from widelimit.experiments.protocol import Draw, Protocol
from widelimit.experiments.table1 import Record, solve_and_test
from widelimit.files import check_record
from widelimit.finite.building import build
from widelimit.finite.costs import choose_device, estimate_gradients, on_threads, rate
from widelimit.finite.tangent import empirical_ntk
from widelimit.machine import peak_memory
from widelimit.matrices import gram
from widelimit.network import Network
from widelimit.solvers.checkpoint import seal

__all__ = ["Table2"]

FORMAT = "widelimit.table2/1"
READOUTS: dict[str, Callable[[int], Network]] = {"v": cntk_vanilla, "gap": cntk_gap}
_PAPER_SHAPE = (32, 32, 3)
_MOST_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Table2:
    """A run that is ready: what can be checked before the work has been.

    Parameters
    ----------
    dataset : Dataset
    protocol : Protocol
    images : Draw
    depths : tuple of int
    channels, draws : int
        Of the random networks, and how many of each.
    seed : int
    cells : Cells
    out : Path
    how : dict
        Of `gram`: backend, threads, memory.
    device : str
        Of the random networks.
    seconds : float
        Estimate of what is not there yet.
    """

    dataset: Dataset
    protocol: Protocol
    images: Draw
    depths: tuple[int, ...]
    channels: int
    draws: int
    seed: int
    cells: Cells
    out: Path
    how: dict[str, Any]
    device: str
    seconds: float

    @classmethod
    def prepare(
        cls,
        data: str,
        out: Path,
        store: Path | None = None,
        *,
        depths: Sequence[int] = (3, 4, 6),
        channels: int = 128,
        draws: int = 10,
        n_train: int | None = None,
        n_test: int | None = None,
        classes: int = 2,
        seed: int = 0,
        overwrite: bool = False,
        reading: dict[str, Any] | None = None,
        device: str = "auto",
        backend: BackendName = "auto",
        threads: int | None = None,
        memory: int | str | None = None,
    ) -> Table2:
        """Read the images, and check what can be checked.

        Parameters
        ----------
        data, out, store, overwrite, reading, backend, threads, memory
            As for `Table1.prepare`.
        depths : sequence of int
        channels : int
            Of the random networks.
        draws : int
            Random networks of each depth and readout.
        n_train, n_test : int or None
            The first images of these classes. None: all.
        classes : int
            The first ones: 2 is CIFAR-2.
        seed : int
            Of the networks.
        device : {"auto", "cpu", "cuda"}
            Of the random networks.

        Raises
        ------
        ImportError
            If PyTorch is not installed.
        OSError, ValueError
            As for `Table1.prepare`.
        """
        device = choose_device(device)
        if draws > _MOST_DRAWS:
            raise ValueError(f"draws must be at most {_MOST_DRAWS:,}, got {draws:,}")
        folder = out.with_name(f"{out.stem}-stores") if store is None else store
        check_record(out, folder, replace=overwrite)
        if not depths or len(set(depths)) < len(depths):
            raise ValueError(f"depths must be different ones, at least one, got {tuple(depths)}")
        dataset = load_dataset(data, **(reading or {}))
        protocol = Protocol(
            n_train or int((dataset.y_train < classes).sum()) or 1,
            n_test or int((dataset.y_test < classes).sum()) or 1,
            classes,
        )
        protocol.check(dataset)
        images = protocol.draw(dataset, 0)
        n = protocol.n_train + protocol.n_test
        how: Any = {"backend": backend, "threads": threads}
        with on_threads(threads):
            speed = rate(device)
        costs: dict[str, float] = {}
        networks = {r: [make(depth) for depth in depths] for r, make in READOUTS.items()}
        shape = dataset.image_shape
        for draw in range(draws):
            for i, depth in enumerate(depths):
                for readout in READOUTS:
                    costs[f"{readout}-{depth}-{draw}"] = estimate_gradients(
                        networks[readout][i], channels, shape, n, speed, device
                    )
        for readout in READOUTS:
            # The kernel is symmetric for training images; test images make it a little larger.
            costs[f"{readout}-exact"] = estimate(networks[readout], shape, n, **how).seconds
        asked = {
            "images": seal(
                {n: getattr(images, n) for n in ("x_train", "y_train", "x_test", "y_test")}
            ),
            "depths": list(depths),
            "channels": channels,
            "seed": seed,
        }
        # Those of more draws may be there: fewer are asked for now, or the rest of them.
        more = range(draws, _MOST_DRAWS)
        others = [f"{r}-{depth}-{i}.json" for r in READOUTS for depth in depths for i in more]
        others += [f"{readout}-{part}.zarr" for readout in READOUTS for part in ("train", "test")]
        cells = Cells(folder, "table2", asked, costs, others)
        how |= {"memory": memory}
        args: Any = (tuple(depths), channels, draws, seed, cells, out, how, device, cells.left)
        return cls(dataset, protocol, images, *args)

    @property
    def is_long(self) -> bool:
        """Whether somebody should be asked before."""
        return self.seconds > LONG

    def lines(self) -> list[str]:
        """Say what the run takes."""
        where = "the card" if self.device == "cuda" else "the processor"
        return [
            f"{2 * len(self.depths) * self.draws} random networks of {self.channels} channels on "
            f"{where}, and the exact kernels, for {self.protocol.n_train:,} + "
            f"{self.protocol.n_test:,} images: about {duration(self.seconds)}; kept in "
            f"{self.cells.folder}"
        ]

    def run(
        self,
        say: Callable[[str], None],
        *,
        progress: bool = False,
        command: Sequence[str] | None = None,
    ) -> Record:
        """Compute what is not there yet, and return the record.

        Parameters
        ----------
        say : callable
            Is told each row when it is known.
        progress : bool
            Whether to show how far it is, on standard error.
        command : sequence of str or None
            As for `describe_environment`.

        Raises
        ------
        OSError, ValueError, MemoryError
            As for `empirical_ntk`, `gram` and `solve`.
        """
        environment = dataclasses.asdict(describe_environment(command))
        found: dict[tuple[str, int], list[Record]] = {}
        rows: list[Record] = []
        with self.cells.held(progress) as keep, on_threads(self.how["threads"]) as threads:
            for draw in range(self.draws):
                for depth in self.depths:
                    for readout in READOUTS:
                        one = self._random(keep, readout, depth, draw)
                        found.setdefault((readout, depth), []).append(one)
            for readout in READOUTS:
                exact = keep(f"{readout}-exact", lambda readout=readout: self._exact(readout))
                for depth, one in zip(self.depths, exact, strict=True):
                    rows.append(self._row(readout, depth, one, found[readout, depth]))
                    say(told(rows[-1]))
        errors = [
            f"{row['readout']}, depth {row['depth']}: {one['message'] or one['status']}"
            for row in rows
            for one in (row["exact"], *row["random"])
            if one["status"] != "SOLVED"
        ]
        h, w, c = self.dataset.image_shape
        return {
            "format": FORMAT,
            "environment": environment,
            "data": {
                "name": self.dataset.name,
                "provenance": self.dataset.provenance,
                "image_shape": [h, w, c],
            },
            **dataclasses.asdict(self.protocol),
            "channels": self.channels,
            "seed": self.seed,
            "draws": self.draws,
            "device": self.device,
            "threads": threads,
            "rows": rows,
            "errors": errors,
            "seconds": round(self.cells.seconds, 3),
            "peak_memory": peak_memory(),
        }

    def _random(self, keep: Keep, readout: str, depth: int, draw: int) -> Record:
        """Return how one random network does."""
        network, images = READOUTS[readout](depth), self.images

        def compute() -> Record:
            both = np.concatenate([images.x_train, images.x_test])
            module = build(
                network,
                self.channels,
                (self.seed, draw),
                input_shape=both.shape[1:],
                channels="last",
                device=self.device,
            )
            matrix = empirical_ntk(module, both, memory=self.how["memory"])
            n = len(images.x_train)
            return self._judge(matrix[:n, :n], matrix[n:, :n])

        return keep(f"{readout}-{depth}-{draw}", compute)

    def _exact(self, readout: str) -> list[Record]:
        """Return how the exact kernels of all depths do."""
        networks = [READOUTS[readout](depth) for depth in self.depths]
        images = self.images

        def matrices(name: str, x1: FloatArray, x2: FloatArray | None) -> list[Any]:
            def told(state: Any) -> None:
                share = 0.5 * state.share + (0.0 if x2 is None else 0.5)
                self.cells.tell({f"{readout}-exact": share})

            place = self.cells.folder / f"{readout}-{name}.zarr"
            return gram(networks, x1, x2, store=place, channels="last", progress=told, **self.how)

        train = matrices("train", images.x_train, None)
        test = matrices("test", images.x_test, images.x_train)
        return [
            self._judge(np.asarray(k, np.float64), np.asarray(k_test, np.float64))
            for k, k_test in zip(train, test, strict=True)
        ]

    def _judge(self, train: FloatArray, test: FloatArray) -> Record:
        return solve_and_test(train, test, self.images.training, self.images.y_test)[0]

    def _row(self, readout: str, depth: int, exact: Record, random: list[Record]) -> Record:
        """Return what a depth comes to, next to the paper."""
        accuracies = [one["accuracy"] for one in random]
        figures = CIFAR2[readout] if self._is_papers else {}
        return {
            "readout": readout,
            "depth": depth,
            "network": READOUTS[readout](depth).to_json(),
            "accuracy": exact["accuracy"],
            "median": None if None in accuracies else median(accuracies),
            "paper_percent": figures.get(depth),
            "exact": exact,
            "random": random,
        }

    @property
    def _is_papers(self) -> bool:
        shape = self.dataset.image_shape
        return self.protocol.n_classes == 2 and is_cifar10(self.dataset) and shape == _PAPER_SHAPE


def told(row: Record) -> str:
    """Return a row as a sentence."""
    exact, mid = row["accuracy"], row["median"]
    text = "not solved" if exact is None else f"{exact:.2%}"
    beside = "not solved" if mid is None else f"{mid:.2%}"
    return (
        f"{row['readout']}, depth {row['depth']}: exact {text}, random features {beside} (median "
        f"of {len(row['random'])})"
    )
