"""A kernel as a function of two sets of samples, for estimators that take a callable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.architectures import named_network
from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.estimators.samples import resolve_shape, split_shape
from widelimit.matrices.inputs import Channels
from widelimit.matrices.kernel import kernel, kernel_diagonal
from widelimit.network import Network
from widelimit.program import Kind

__all__ = ["KernelMetric"]


@dataclass(frozen=True)
class KernelMetric:
    """The kernel of a network as a callable: ``SVC(kernel=KernelMetric("cntk-gap-11", ...))``.

    Parameters
    ----------
    net : Network or str
        As for `NTKClassifier`.
    image_shape : (h, w, c) or (h, w) or None
        Shape of the image in a row. None: a row is a vector.
    kind : {"ntk", "nngp"}
    normalise : bool
        Whether to divide by ``sqrt(k(x, x) k(z, z))``: a support vector machine has a cost C that
        is absolute, and kernels differ in scale by orders of magnitude. With pooling, kernels of
        different images are nearly alike, and C has to be large, 100 or more.
    dtype, backend, threads, channels
        As for `widelimit.kernel`; channels="first" is for images, not for rows.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.svm import SVC
    >>> X, y = load_digits(return_X_y=True)
    >>> svc = SVC(kernel=KernelMetric("cntk-gap-4", (8, 8)), C=1000).fit(X[:200], y[:200])
    >>> svc.score(X[200:400], y[200:400]) > 0.9
    True
    """

    net: Network | str
    image_shape: Sequence[int] | None = None
    kind: Kind = "ntk"
    normalise: bool = True
    dtype: Dtype = "float64"
    backend: BackendName = "auto"
    threads: int | None = None
    channels: Channels = None

    def __call__(self, x1: Any, x2: Any = None) -> NDArray[Any]:
        """Return the kernel between rows or images, (n1, n2).

        Raises
        ------
        TypeError, ValueError
            As for `widelimit.kernel`, or if rows do not fit image_shape.
        """
        net = named_network(self.net) if isinstance(self.net, str) else self.net
        left = self._samples(x1)
        # Callers pass the training samples twice.
        right = None if x2 is None or x2 is x1 else self._samples(x2)
        options: Any = {
            "kind": self.kind,
            "backend": self.backend,
            "dtype": self.dtype,
            "threads": self.threads,
        }
        k = cast("NDArray[Any]", kernel(net, left, right, channels="last", **options))
        if not self.normalise:
            return k
        if right is None:
            own1 = own2 = k.diagonal()
        else:
            own1, own2 = (kernel_diagonal(net, x, **options) for x in (left, right))
        # A sample of zeros has the kernel 0 with all.
        scale1, scale2 = (np.where(own > 0, np.sqrt(own), 1.0) for own in (own1, own2))
        return k / scale1[:, None] / scale2

    def _samples(self, x: Any) -> NDArray[Any]:
        rows, found = split_shape(x, self.channels)
        rows = np.asarray(rows)
        shape = resolve_shape(self.image_shape, found, rows.shape[-1], self.channels)
        return rows if shape is None else rows.reshape(-1, *shape)
