"""Finite networks: the limit made visible, and the witness that the exact kernels are the limit.

As modules of PyTorch (``pip install "widelimit[torch]"``), and in NumPy:

>>> import widelimit as wl
>>> module = wl.finite.build(wl.cntk_gap(4), width=256, seed=0)  # doctest: +SKIP
>>> wl.finite.empirical_ntk(module, images)  # doctest: +SKIP
>>> wl.finite.compare(my_module, images)  # doctest: +SKIP
"""

from widelimit.finite.building import build, from_torch
from widelimit.finite.comparison import Comparison, compare
from widelimit.finite.convergence import Estimate, WidthStudy, convergence
from widelimit.finite.network import FiniteNetwork
from widelimit.finite.parameters import Parameters
from widelimit.finite.tangent import empirical_nngp, empirical_ntk

__all__ = [
    "Comparison",
    "Estimate",
    "FiniteNetwork",
    "Parameters",
    "WidthStudy",
    "build",
    "compare",
    "convergence",
    "empirical_nngp",
    "empirical_ntk",
    "from_torch",
]
