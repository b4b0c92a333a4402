"""How far a network of PyTorch is from its limit of infinite width."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from widelimit.arrays import FloatArray
from widelimit.finite.building import read_layers
from widelimit.finite.loaded import load_torch
from widelimit.finite.tangent import tangent_by_layer
from widelimit.matrices import kernel
from widelimit.network import Network

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What `compare` found.

    Parameters
    ----------
    network : Network
        As `from_torch` reads it.
    width : int
        Channels or features of the narrowest hidden layer.
    empirical, exact : ndarray of float64, shape (n, n)
        Tangent kernels in the NTK parametrisation: of the module, and of infinite width.
    fresh : tuple of float
        Distances of copies of the module with fresh random parameters of the same scales.
    """

    network: Network
    width: int
    empirical: FloatArray
    exact: FloatArray
    fresh: tuple[float, ...]

    @property
    def distance(self) -> float:
        """``|empirical - exact|_F / |exact|_F``."""
        return _distance(self.empirical, self.exact)

    @property
    def expected(self) -> float:
        """Root mean square of `fresh`: what a random network of this width is off by."""
        return float(np.sqrt(np.mean(np.square(self.fresh))))

    @property
    def expected_error(self) -> float:
        """Standard error of `expected`, from the scatter of `fresh`."""
        squares = np.square(self.fresh)
        return float(squares.std(ddof=1) / np.sqrt(squares.size) / (2 * self.expected))

    def width_for(self, distance: float) -> int:
        """Return the width at which a random network is expected to be off by this distance.

        ``width (expected / distance)^2``: the distance falls like one over the root of the width
        (Theorem 3.1). Other hidden layers grow in proportion.

        Raises
        ------
        ValueError
            If distance is not above 0.
        """
        if not distance > 0:
            raise ValueError(f"distance must be above 0, as in 0.1 for 10 %, got {distance}")
        return math.ceil(self.width * (self.expected / distance) ** 2)

    def __str__(self) -> str:
        """In three lines, for readers."""
        return (
            f"{self.network}, width {self.width:,}\n"
            f"tangent kernel {self.distance:.1%} from its limit; random networks of this width: "
            f"{self.expected:.1%} ± {self.expected_error:.1%} ({len(self.fresh)} drawn)\n"
            f"predicted width for 10 %: {self.width_for(0.1):,}, for 1 %: {self.width_for(0.01):,}"
        )


def compare(
    module: Any,
    x: Any,
    *,
    draws: int = 16,
    seed: int = 0,
    memory: int | str | None = None,
) -> Comparison:
    """Compare the tangent kernel of a network of PyTorch with the exact one of infinite width.

    The module may have the usual parametrisation, of weights that are small: its kernel is taken in
    the NTK parametrisation, in which a weight is a standard normal number times ``w_std /
    sqrt(fan-in)``. (In the usual one the kernel has no limit: hidden layers add parts that grow
    with the width.) Of several outputs the mean is taken.

    Parameters
    ----------
    module : torch.nn.Sequential
        That `from_torch` reads; or from `build`.
    x : tensor or array_like of shape (n, c, h, w), (n, c, length) or (n, d)
        As the module takes it, a few samples: 10 to 50.
    draws : int
        At least 2: copies with fresh random parameters, whose distances predict widths.
    seed : int
        Of these.
    memory : int, str or None
        As for `empirical_ntk`.

    Returns
    -------
    Comparison
        ``print`` it. `Comparison.distance` is that of this module; a trained one may be farther
        from the limit of its present scales than `Comparison.expected`, that of random ones.

    Raises
    ------
    ImportError, TypeError, ValueError, MemoryError
        As `from_torch`, `empirical_ntk` and `widelimit.kernel`; and if the module has no hidden
        layer, which is what it would be compared by.

    Notes
    -----
    Takes ``draws + 1`` empirical kernels and one exact one, in float64.
    """
    torch = load_torch()
    if isinstance(draws, bool) or draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}")
    network, scales = read_layers(module)
    width = _width(module)
    kappa = getattr(module, "kappa", 1.0)
    # Before the exact kernel, which may take long: whether the module can be differentiated.
    empirical = _tangent(module, x, memory, scales)
    values = np.asarray(x.detach().cpu() if isinstance(x, torch.Tensor) else x, np.float64)
    channels: Any = getattr(module, "channels", "first")
    if channels == "first":  # of images, and of series
        values, channels = np.moveaxis(values, 1, -1), "last"
    if values.ndim == 3 and 2 not in network.input_ranks:  # filters of one step: series are images
        values = values[:, None]
    exact = kappa**2 * kernel(network, values, dtype="float64", channels=channels)
    distances = tuple(
        _distance(_tangent(_redrawn(torch, module, scales, (seed, i)), x, memory, scales), exact)
        for i in range(draws)
    )
    return Comparison(network, width, empirical, exact, distances)


def _tangent(module: Any, x: Any, memory: int | str | None, scales: dict[str, float]) -> FloatArray:
    return np.sum(list(tangent_by_layer(module, x, memory=memory, scales=scales).values()), axis=0)


def _distance(found: FloatArray, exact: FloatArray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _width(module: Any) -> int:
    """Return the smallest number of features or channels of a hidden layer."""
    weights = [p for name, p in module.named_parameters() if name.endswith("weight")][:-1]
    if not weights:
        raise ValueError("module must have a hidden layer, got none: its kernel is the exact one")
    return getattr(module, "width", None) or min(len(weight) for weight in weights)


def _redrawn(torch: Any, module: Any, scales: dict[str, float], seed: tuple[int, int]) -> Any:
    """Return a copy of the module with random parameters of the same standard deviations."""
    rng = np.random.default_rng(seed)
    fresh = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            drawn = scales[name] * rng.standard_normal(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(drawn))
    return fresh
