"""Finite networks: the witness that the exact kernels are the limit of infinite width.

>>> from widelimit.finite import FiniteNetwork
>>> finite = FiniteNetwork.sample(network, (32, 32, 3), width=256)  # doctest: +SKIP
>>> finite.empirical_ntk(images)  # doctest: +SKIP
"""

from widelimit.finite.convergence import Estimate, WidthStudy, convergence
from widelimit.finite.network import FiniteNetwork, Parameters

__all__ = ["Estimate", "FiniteNetwork", "Parameters", "WidthStudy", "convergence"]
