"""Gram matrices: in memory (`kernel`), and in stores that outlive a run (`gram`)."""

from widelimit.gram.kernel import kernel
from widelimit.gram.matrix import Gram, open_gram
from widelimit.gram.run import gram

__all__ = ["Gram", "gram", "kernel", "open_gram"]
