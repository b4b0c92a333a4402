"""Solvers of the kernel regression ``(k + ridge trace(k)/n I) a = y``.

The ridge is relative everywhere: it multiplies ``trace(k)/n``. `solve` is one call for every
method; each is a function with options of its own, too:

=====================  ===========================================================================
`solve_cholesky`       exact, in memory: up to ``8 n^2`` bytes
`solve_tiled`          exact, with a factor on disk: any n, ``n^3/3`` flops
`solve_refined`        a float32 factor, refined to float64: half the time, for condition < 1e7
`solve_conjugate`      an iteration over stored tiles, for ridges that are not small
`solve_spectral`       the end of training, or a time before, by eigenvectors
`Spectrum`             the eigendecomposition: every ridge, every training time, leave-one-out
`leave_one_out`        predictions of each sample from all others, for a grid of ridges
=====================  ===========================================================================

A `Solution` carries its `Factor`, which solves for other targets, and more.
"""

from widelimit.solvers.cholesky import CholeskyFactor, solve_cholesky
from widelimit.solvers.conjugate import Convergence, solve_conjugate
from widelimit.solvers.factor import TiledFactor
from widelimit.solvers.labels import encode_labels
from widelimit.solvers.leave_one_out import leave_one_out, leave_one_out_of_factor
from widelimit.solvers.matrix import Bordered
from widelimit.solvers.methods import restore_factor, solve
from widelimit.solvers.refined import solve_refined
from widelimit.solvers.solution import (
    Factor,
    LeaveOneOut,
    Method,
    Solution,
    Statistics,
    Status,
    Unavailable,
)
from widelimit.solvers.spectrum import SpectralFactor, Spectrum, solve_spectral
from widelimit.solvers.tiled import factorise, solve_tiled

__all__ = [
    "Bordered",
    "CholeskyFactor",
    "Convergence",
    "Factor",
    "LeaveOneOut",
    "Method",
    "Solution",
    "SpectralFactor",
    "Spectrum",
    "Statistics",
    "Status",
    "TiledFactor",
    "Unavailable",
    "encode_labels",
    "factorise",
    "leave_one_out",
    "leave_one_out_of_factor",
    "restore_factor",
    "solve",
    "solve_cholesky",
    "solve_conjugate",
    "solve_refined",
    "solve_spectral",
    "solve_tiled",
]
