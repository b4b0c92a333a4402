"""General networks, as trees: the reference backend against the naive witness."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trees import fits, samples, trees

from widelimit.backends import get_backend
from widelimit.network import Network
from widelimit.testing.compare import compute

KINDS: Any = ("nngp", "ntk")
TOLERANCE = 1e-12


def check(network: Network, x: np.ndarray, z: np.ndarray, kinds: Any = KINDS) -> None:
    wanted = naive.kernels(network, x, z)
    values = compute(get_backend("reference"), [network], x, z, kinds=kinds)[0]
    for kind, value in zip(kinds, values, strict=True):
        scale = getattr(wanted, f"{kind}_scale")
        error = np.abs(value - getattr(wanted, kind)) / np.where(scale > 0, scale, 1.0)
        assert error.max() < TOLERANCE, f"{kind} of {network!r}: {error.max():.1e}"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(trees(), st.tuples(st.integers(3, 6), st.integers(3, 6)), st.integers(0, 99))
def test_random_trees_agree_with_the_naive_witness(
    network: Network, grid: tuple[int, int], seed: int
) -> None:
    assume(fits(network, (*grid, 2)))
    x, z = samples((*grid, 2), 3, seed), samples((*grid, 2), 2, seed + 1)
    z[0] = x[1]  # known to both sides
    check(network, x, z)
