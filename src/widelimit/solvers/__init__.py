"""Solvers of the kernel regression ``(k + ridge trace(k)/n I) a = y``.

The ridge is relative everywhere: it multiplies ``trace(k)/n``.

=====================  ===========================================================================
`solve_cholesky`       exact, in memory: up to ``8 n^2`` bytes
`solve_tiled`          exact, with a factor on disk: any n, ``n^3/3`` flops
`solve_refined`        a float32 factor, refined to float64: half the time, for condition < 1e7
`solve_conjugate`      an iteration over stored tiles, for ridges that are not small
`Spectrum`             the eigendecomposition: every ridge, every training time, leave-one-out
`leave_one_out`        predictions of each sample from all others, for a grid of ridges
=====================  ===========================================================================
"""

from widelimit.solvers.cholesky import CholeskyFactor, factor_and_solve, solve_cholesky
from widelimit.solvers.conjugate import Convergence, solve_conjugate
from widelimit.solvers.factor import TiledFactor
from widelimit.solvers.labels import encode_labels
from widelimit.solvers.leave_one_out import LeaveOneOut, leave_one_out, leave_one_out_of_factor
from widelimit.solvers.refined import solve_refined
from widelimit.solvers.solution import Solution, Statistics, Status
from widelimit.solvers.spectrum import Spectrum
from widelimit.solvers.tiled import factorise, solve_tiled

__all__ = [
    "CholeskyFactor",
    "Convergence",
    "LeaveOneOut",
    "Solution",
    "Spectrum",
    "Statistics",
    "Status",
    "TiledFactor",
    "encode_labels",
    "factor_and_solve",
    "factorise",
    "leave_one_out",
    "leave_one_out_of_factor",
    "solve_cholesky",
    "solve_conjugate",
    "solve_refined",
    "solve_tiled",
]
