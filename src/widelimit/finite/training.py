"""Full-batch gradient descent on the squared loss, in the units of time of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from widelimit.arrays import FloatArray
from widelimit.finite.loaded import load_torch

__all__ = ["Trajectory", "descend"]

_FIRST, _GROWTH, _LARGEST = 0.02, 0.1, 0.7


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Outputs while a network was trained.

    Parameters
    ----------
    times : ndarray of float64, shape (m,)
    train, test : ndarray of float64, shapes (m, n) and (m, n_test)
    steps : int
    """

    times: FloatArray
    train: FloatArray
    test: FloatArray
    steps: int


def descend(
    module: Any,
    x: ArrayLike,
    y: ArrayLike,
    x_test: ArrayLike,
    times: Sequence[float],
    largest_eigenvalue: float,
) -> Trajectory:
    """Train a module of `build` by gradient descent on ``1/2 sum (f(x_i) - y_i)^2`` (Theorem 3.2).

    Gradient descent with a step ``dt / kappa^2`` moves outputs by ``-dt K (f - y)``, K being the
    tangent kernel without kappa: after steps whose dt sum to t, a network that is wide enough has
    the outputs ``k(x, X) K^-1 (I - exp(-t K)) y`` of an estimator with ``time=t``. Steps are small
    at first, ``0.02/lambda``, and grow with the time, to ``0.7/lambda``: a direction of large
    eigenvalue is followed closely while it is learned.

    Parameters
    ----------
    module : torch.nn.Module
        From `build`, with one output. Its parameters are changed.
    x, x_test : array_like of shape (n, ...) and (n_test, ...)
    y : array_like of shape (n,)
    times : sequence of float
        At which outputs are returned, ascending, above 0.
    largest_eigenvalue : float
        lambda, of the exact tangent kernel of x.

    Returns
    -------
    Trajectory

    Raises
    ------
    ValueError
        If times are not ascending, or outputs diverge.
    """
    torch = load_torch()
    wanted = np.asarray(times, np.float64)
    if not wanted.size or wanted[0] <= 0 or np.any(np.diff(wanted) <= 0):
        raise ValueError(f"times must ascend from above 0, got {list(times)}")
    some = next(module.parameters())
    options = {"dtype": some.dtype, "device": some.device}
    train, targets, test = (torch.tensor(np.asarray(a), **options) for a in (x, y, x_test))
    with torch.no_grad():
        module(train[:1])  # parameters that wait for the shape of the input
    trained = [p for p in module.parameters() if p.requires_grad]
    unit = 1.0 / largest_eigenvalue
    time, steps = 0.0, 0
    found: list[list[FloatArray]] = []
    while len(found) < len(wanted):
        end = float(wanted[len(found)])
        step = min(max(_GROWTH * time, _FIRST * unit), _LARGEST * unit)
        reached = time + step >= end * (1 - 1e-12)
        step = end - time if reached else step
        residual = module(train)[:, 0] - targets
        gradients = torch.autograd.grad(residual.square().sum() / 2, trained)
        with torch.no_grad():
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.sub_(gradient, alpha=step / module.kappa**2)
        time, steps = (end if reached else time + step), steps + 1
        if reached:
            with torch.no_grad():
                outputs: list[FloatArray] = [
                    module(a)[:, 0].double().cpu().numpy() for a in (train, test)
                ]
            if not all(np.isfinite(a).all() for a in outputs):
                raise ValueError(
                    f"outputs diverged by time {time:.3g}: the tangent kernel of this network has "
                    f"a larger eigenvalue than {largest_eigenvalue:.3g}; take a wider network"
                )
            found.append(outputs)
    return Trajectory(
        wanted, np.stack([f[0] for f in found]), np.stack([f[1] for f in found]), steps
    )
