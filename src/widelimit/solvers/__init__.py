"""Solvers of the kernel regression ``(k + ridge trace(k)/n I) a = y``.

The ridge is relative everywhere: it multiplies ``trace(k)/n``.
"""

from widelimit.solvers.cholesky import solve_cholesky
from widelimit.solvers.labels import encode_labels
from widelimit.solvers.solution import Solution, Statistics, Status

__all__ = ["Solution", "Statistics", "Status", "encode_labels", "solve_cholesky"]
