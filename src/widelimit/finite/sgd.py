"""Plain stochastic gradient descent on the squared loss, as the paper trains its CNNs."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widelimit.arrays import FloatArray
from widelimit.files import said, write_atomically
from widelimit.finite.loaded import load_torch
from widelimit.reading import open_arrays, refusing
from widelimit.solvers import encode_labels
from widelimit.solvers.checkpoint import seal

__all__ = ["History", "Recipe", "train_sgd"]

_LOOK = 50  # steps: a card need not be waited for more often
_PASSED = 256  # samples that are tested together


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained: a fixed learning rate, nothing else.

    Parameters
    ----------
    learning_rate : float
        Above 0, of the loss ``1/2 sum_o (f_o(x) - y_o)^2``, mean over the batch.
    batch : int
        Samples a step; those of an epoch are in an order that is drawn, the last step has what is
        left.
    epochs : int
        At most.
    after : int
        Epochs after the first one that ends with every training sample right; then it stops.
    seed : int
        Of the orders.

    Raises
    ------
    ValueError
        If a number is outside its range.
    """

    learning_rate: float
    batch: int = 128
    epochs: int = 200
    after: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"a learning rate must be above 0, got {self.learning_rate}")
        for name, least in (("batch", 1), ("epochs", 1), ("after", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """How the training went.

    Parameters
    ----------
    loss : ndarray of float64, shape (epochs,)
        Mean of the loss over the steps of each epoch.
    train, test : ndarray of float64, shape (epochs,)
        Accuracies after each epoch.
    diverged : bool
        Whether the loss grew beyond all numbers: the epoch in which it did is not there.
    after : int
        As in the recipe.
    """

    loss: FloatArray
    train: FloatArray
    test: FloatArray
    diverged: bool
    after: int

    @property
    def full_at(self) -> int | None:
        """The first epoch, from 1, that ended with every training sample right."""
        full = np.flatnonzero(self.train == 1.0)
        return int(full[0]) + 1 if full.size else None

    @property
    def averaged(self) -> int:
        """How many epochs at the end `accuracy` is the mean of.

        `after`, or as many as there are: where every training sample was right once, only epochs
        from `full_at` on count.
        """
        return min(self.after, len(self.test) + 1 - (self.full_at or 1))

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy of the last `averaged` epochs, None if it diverged."""
        return None if self.diverged else float(self.test[-self.averaged :].mean())


def train_sgd(
    module: Any,
    x: ArrayLike,
    y: ArrayLike,
    x_test: ArrayLike,
    y_test: ArrayLike,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    every: float = 60.0,
    progress: Callable[[float], None] | None = None,
) -> History:
    """Train a module of `build` with labels ``1 - 1/k`` and ``-1/k`` (0.9 and -0.1).

    Parameters
    ----------
    module : torch.nn.Module
        From `build`, an output for each class. Its parameters are changed.
    x, x_test : array_like of shape (n, ...) and (n_test, ...)
    y, y_test : array_like of int, shapes (n,) and (n_test,)
        Classes, from 0.
    recipe : Recipe
    checkpoint : Path or None
        An ``.npz`` file with all that is needed to go on, written whole or not at all. One that is
        there is gone on with, by a module that is built as that one was: on the same device, with
        as many threads and the same versions, the parameters are in the end those of a training
        that was not stopped, bit for bit.
    every : float
        Seconds between two of them.
    progress : callable or None
        Is told the share of the epochs of the recipe.

    Returns
    -------
    History

    Raises
    ------
    OSError
        If the checkpoint cannot be read. One that cannot be written is a warning.
    ValueError
        If it is damaged, or that of another training: of other samples, labels or parameters at the
        start, or another recipe.
    """
    torch = load_torch()
    some = next(module.parameters())
    options = {"dtype": some.dtype, "device": some.device}
    train, test = (torch.tensor(np.asarray(a), **options) for a in (x, x_test))
    labels, labels_test = (torch.tensor(np.asarray(a), device=some.device) for a in (y, y_test))
    targets = torch.tensor(encode_labels(y, np.arange(int(module.outputs))), **options)
    with torch.no_grad():
        module(train[:1])  # parameters that wait for the shape of the input
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    job = f"{recipe} {module.extra_repr()}"
    if checkpoint is not None:  # what is not trained changes nothing, but decides all the same
        given = {"x": train, "y": labels, "x_test": test, "y_test": labels_test}
        start = {name: value.detach() for name, value in module.state_dict().items()}
        job += " " + seal({name: value.cpu().numpy() for name, value in (given | start).items()})
    state = _State(trained, checkpoint, job)
    told, steps = time.monotonic(), -(-len(train) // recipe.batch)
    diverged = False
    with _same_each_time(torch, some.device):
        while not diverged and not _is_done(state.history, recipe):
            order = np.random.default_rng([recipe.seed, len(state.history)]).permutation(len(train))
            rows = torch.tensor(order, device=some.device)
            total = torch.tensor(state.loss, dtype=torch.float64, device=some.device)
            while state.step < steps and not diverged:
                part = rows[state.step * recipe.batch : (state.step + 1) * recipe.batch]
                residual = module(train[part]) - targets[part]
                loss = residual.square().sum() / (2 * len(part))
                gradients = torch.autograd.grad(loss, list(trained.values()))
                with torch.no_grad():
                    for parameter, gradient in zip(trained.values(), gradients, strict=True):
                        parameter.sub_(gradient, alpha=recipe.learning_rate)
                total += loss.detach()
                state.step += 1
                if state.step % _LOOK == 0 or state.step == steps:
                    diverged = not np.isfinite(float(total))
                if time.monotonic() - told >= every and not diverged:
                    state.loss = float(total)
                    state.write()
                    told = time.monotonic()
                if progress is not None:
                    done = len(state.history) + state.step / steps
                    progress(done / recipe.epochs)
            if not diverged:
                found = [
                    _accuracy(torch, module, *s) for s in ((train, labels), (test, labels_test))
                ]
                state.history.append((float(total) / steps, *found))
                state.step, state.loss = 0, 0.0
    loss_of, train_of, test_of = np.array(state.history, np.float64).reshape(-1, 3).T
    return History(loss_of, train_of, test_of, diverged, recipe.after)


class _State:
    """All that a training depends on, but for what is given."""

    def __init__(self, trained: dict[str, Any], path: Path | None, job: str) -> None:
        self._trained, self._path, self._job = trained, path, job
        self.history: list[tuple[float, ...]] = []
        self.step, self.loss = 0, 0.0  # of the epoch that is not in the history yet
        if path is not None:
            self._read(path)

    def write(self) -> None:
        if self._path is None:
            return
        content: dict[str, NDArray[Any]] = {
            f"parameter.{name}": p.detach().cpu().numpy() for name, p in self._trained.items()
        }
        content["history"] = np.array(self.history, np.float64).reshape(-1, 3)
        content["step"], content["loss"] = np.array(self.step), np.array(self.loss)
        content["job"] = np.array(self._job)
        file = io.BytesIO()
        np.savez(file, seal=np.array(seal(content)), **content)  # pyright: ignore[reportArgumentType]
        try:
            write_atomically(self._path, file.getvalue())
        except OSError as error:  # the training is worth more
            warnings.warn(
                f"{said(error)}: this checkpoint is not kept, the training goes on",
                RuntimeWarning,
                stacklevel=3,
            )

    def _read(self, path: Path) -> None:
        torch = load_torch()
        content: dict[str, NDArray[Any]] = {}
        expected = f"{path} must be a checkpoint of a training, it is not"
        try:
            with refusing(expected, "delete it"), open_arrays(path) as held:
                for name in ("job", "history", "step", "loss", *self._names()):
                    content[name] = held[name].read()
                if str(held["seal"].read()) != seal(content):
                    raise ValueError("it is damaged")
        except FileNotFoundError:
            return
        if str(content["job"]) != self._job:
            raise ValueError(
                f"{path} is a checkpoint of another training (samples, labels, recipe, or the "
                "parameters that the module began with differ): build the module as it was then, "
                "or delete the file"
            )
        for name, parameter in zip(self._names(), self._trained.values(), strict=True):
            if content[name].shape != tuple(parameter.shape):
                raise ValueError(f"{path} is a checkpoint of another network: delete it")
            parameter.data.copy_(torch.from_numpy(content[name]))
        self.history = [tuple(row) for row in content["history"].tolist()]
        self.step, self.loss = int(content["step"]), float(content["loss"])

    def _names(self) -> list[str]:
        return [f"parameter.{name}" for name in self._trained]


def _is_done(history: list[tuple[float, ...]], recipe: Recipe) -> bool:
    full = [i for i, row in enumerate(history) if row[1] == 1.0]
    return len(history) >= recipe.epochs or (
        bool(full) and len(history) >= full[0] + 1 + recipe.after
    )


def _accuracy(torch: Any, module: Any, x: Any, labels: Any) -> float:
    right = 0
    with torch.no_grad():
        for start in range(0, len(x), _PASSED):
            part = slice(start, start + _PASSED)
            right += int((module(x[part]).argmax(1) == labels[part]).sum())
    return right / len(x)


def _same_each_time(torch: Any, device: Any) -> AbstractContextManager[Any]:
    """Keep convolutions of a card from algorithms that add in another order each time."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
