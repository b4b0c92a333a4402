"""Public test kit: a conformance suite for backends, injected faults, and the accuracy table.

A backend author writes a factory and inherits all tests; pytest collects the class, but nothing
here imports pytest::

    from widelimit.testing import BackendConformance

    class TestMyBackend(BackendConformance):
        def make_backend(self):
            return MyBackend()

`FaultyBackend` makes a backend wrong in a known way: the suite must fail, or it proves nothing.
"""

from widelimit.testing.accuracy import AccuracyRow, accuracy_table
from widelimit.testing.compare import assert_close, compute
from widelimit.testing.conformance import CHAINS, TREES, BackendConformance, Case
from widelimit.testing.exact import exact_kernel
from widelimit.testing.faults import Fault, FaultyBackend

__all__ = [
    "CHAINS",
    "TREES",
    "AccuracyRow",
    "BackendConformance",
    "Case",
    "Fault",
    "FaultyBackend",
    "accuracy_table",
    "assert_close",
    "compute",
    "exact_kernel",
]
