"""Gram matrices: in memory (`kernel`), and in stores that outlive a run (`gram`)."""

from widelimit.matrices.kernel import kernel
from widelimit.matrices.matrix import Gram, open_gram
from widelimit.matrices.run import gram

__all__ = ["Gram", "gram", "kernel", "open_gram"]
