"""A kernel with hyperparameters, for Gaussian processes: the weights of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.gaussian_process import kernels  # pyright: ignore[reportMissingTypeStubs]

from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.estimators.metric import NetworkKernel
from widelimit.layers import Conv, Dense, Layer, mapped
from widelimit.matrices.inputs import Channels, check_networks
from widelimit.network import Network
from widelimit.program import Kind

__all__ = ["B_STD_BOUNDS", "NTK", "STEP", "W_STD_BOUNDS", "with_std"]

Bounds: TypeAlias = tuple[float, float] | Literal["fixed"]

W_STD_BOUNDS, B_STD_BOUNDS = (0.1, 10.0), (1e-3, 1e2)

STEP = 1e-4
"""Of the logarithm of a hyperparameter, in central differences: with p layers an entry is about
its p-th power, so that the relative error is p^2 h^2, 1e-6 for 10, or that of the kernel over h."""

_Hyperparameter: Any = cast("Any", kernels).Hyperparameter  # scikit-learn has no types


def with_std(net: Network, w_std: float, b_std: float) -> Network:
    """Return a network with other standard deviations, the same in all of its layers."""

    def other(layer: Layer) -> Layer:
        weights = isinstance(layer, Conv | Dense)
        return replace(layer, w_std=w_std, b_std=b_std) if weights else layer

    return replace(net, layers=mapped(net.layers, other))


class NTK(NetworkKernel):
    """The kernel of a network as one of scikit-learn's Gaussian processes, with hyperparameters.

    `GaussianProcessRegressor` finds those with the largest marginal likelihood, and sums, products
    and powers with other kernels, such as `WhiteKernel` for noise, are kernels, too. `KernelRidge`
    and others that take kernels take it as well.

    Parameters
    ----------
    net : Network or str
        Its layers, and its scaling: a `Network`, or a preset as for `NTKClassifier`. The standard
        deviations of its own layers are not used.
    w_std, b_std : float
        Standard deviations of weights, times sqrt(fan-in), and of biases, in all layers
        (`widelimit.Dense` has the equations). w_std is above all the scale of the kernel, b_std
        over w_std its shape.
    w_std_bounds, b_std_bounds : (lower, upper) or "fixed"
        Between which they are looked for. b_std=0, no biases, has to be "fixed".
    kind : {"ntk", "nngp"}
        "nngp": the prior of the network itself. "ntk": that of its tangent kernel.
    image_shape, dtype, backend, threads, channels
        As for `KernelMetric`. Derivatives want "float64".

    Notes
    -----
    Derivatives by the logarithms of hyperparameters are *numeric*: central differences of step
    1e-4, whose relative error is about 1e-6 for networks of 10 layers, and grows with the square of
    their number; between samples that nearly repeat it is larger, as that of the kernel is. For
    each hyperparameter that is not fixed two more kernels are computed.

    Inputs are taken as they are: standardise features before.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.gaussian_process import GaussianProcessRegressor
    >>> from sklearn.gaussian_process.kernels import WhiteKernel
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(80, 2))
    >>> y = np.sin(x[:, 0]) - x[:, 1] + 0.1 * rng.normal(size=80)
    >>> gp = GaussianProcessRegressor(NTK("ntk-dense-2") + WhiteKernel(1e-3)).fit(x[:40], y[:40])
    >>> gp.score(x[40:], y[40:]) > 0.9
    True
    """

    def __init__(
        self,
        net: Network | str = "ntk-dense-3",
        w_std: float = 2**0.5,
        b_std: float = 1.0,
        w_std_bounds: Bounds = W_STD_BOUNDS,
        b_std_bounds: Bounds = B_STD_BOUNDS,
        *,
        kind: Kind = "ntk",
        image_shape: Sequence[int] | None = None,
        dtype: Dtype = "float64",
        backend: BackendName = "auto",
        threads: int | None = None,
        channels: Channels = None,
    ) -> None:
        self.net = net
        self.w_std = w_std
        self.b_std = b_std
        self.w_std_bounds: Bounds = w_std_bounds
        self.b_std_bounds: Bounds = b_std_bounds
        self.kind: Kind = kind
        self.image_shape = image_shape
        self.dtype: Dtype = dtype
        self.backend: BackendName = backend
        self.threads = threads
        self.channels: Channels = channels

    @property
    def network(self) -> Network:
        """The network with these standard deviations."""
        (network,) = check_networks([self.net])
        return with_std(network, self.w_std, self.b_std)

    @property
    def hyperparameter_w_std(self) -> Any:
        """As scikit-learn has it."""
        return _Hyperparameter("w_std", "numeric", self.w_std_bounds)

    @property
    def hyperparameter_b_std(self) -> Any:
        """As scikit-learn has it."""
        if self.b_std == 0 and self.b_std_bounds != "fixed":
            raise ValueError(
                'b_std=0 has no logarithm to look for a better one from: give b_std_bounds="fixed" '
                "for a network without biases, or a b_std above 0"
            )
        return _Hyperparameter("b_std", "numeric", self.b_std_bounds)

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Return the kernel between rows or images, (n1, n2); a float between two rows (d,).

        Parameters
        ----------
        X, Y : array-like of shape (n, d), (n, h, w, c) or (d,)
            Y=None: X.
        eval_gradient : bool
            Whether to return the derivatives by the logarithms of the hyperparameters that are not
            fixed, too, (n, n, p), in the order of `theta`: b_std, then w_std. See Notes.

        Raises
        ------
        TypeError, ValueError
            As for `widelimit.kernel`, or if rows do not fit image_shape; or for derivatives with Y.
        """
        x, y, single = self._pair(X, Y)
        left, right = self._sides(x, y)
        k = self._kernel(left, right)
        if single:
            return float(k[0, 0])
        if not eval_gradient:
            return k
        if right is not None:
            raise ValueError("eval_gradient is for Y=None: leave Y out")
        return k, self._gradient(left)

    def _gradient(self, samples: NDArray[Any]) -> NDArray[Any]:
        theta: NDArray[np.float64] = self.theta
        gradient = np.empty((len(samples), len(samples), len(theta)))
        for index in range(len(theta)):
            step = np.zeros(len(theta))
            step[index] = STEP
            above, below = (
                self._kernel(samples, None, self.clone_with_theta(theta + sign * step).network)
                for sign in (1, -1)
            )
            gradient[..., index] = (above - below) / (2 * STEP)
        return gradient

    def __repr__(self) -> str:
        net = self.net if isinstance(self.net, str) else str(self.net)
        return f"NTK({net}, w_std={self.w_std:.3g}, b_std={self.b_std:.3g})"
