"""A kernel as a function of two sets of samples, for estimators that take one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.gaussian_process import kernels  # pyright: ignore[reportMissingTypeStubs]

from widelimit.arrays import FloatArray
from widelimit.backends import BackendName
from widelimit.backends.base import Dtype
from widelimit.estimators.samples import resolve_shape, split_shape
from widelimit.matrices.inputs import Channels, check_networks
from widelimit.matrices.kernel import kernel, kernel_diagonal
from widelimit.network import Network
from widelimit.program import Kind

__all__ = ["KernelMetric", "NetworkKernel"]

_Matrix: TypeAlias = NDArray[Any]
# scikit-learn has no types. Of its kernels pairwise_kernels asks for whole matrices, of any other
# callable for one pair at a time.
_Kernel: Any = cast("Any", kernels).Kernel


class NetworkKernel(_Kernel):
    """What `KernelMetric` and `NTK` share: the kernel of `network` as one of scikit-learn's."""

    image_shape: Sequence[int] | None
    kind: Kind
    dtype: Dtype
    backend: BackendName
    threads: int | None
    channels: Channels

    @property
    def network(self) -> Network:
        """The network whose kernel it is."""
        raise NotImplementedError

    def diag(self, X: Any) -> FloatArray:
        """Return the kernel of each sample with itself, (n,)."""
        return self._diagonal(self._samples(X))

    def is_stationary(self) -> bool:
        """Return False: it depends on more than differences of samples."""
        return False

    def _kernel(
        self, left: _Matrix, right: _Matrix | None, network: Network | None = None
    ) -> _Matrix:
        net = self.network if network is None else network
        return cast("Any", kernel)(net, left, right, channels="last", **self._how())

    def _diagonal(self, samples: _Matrix) -> _Matrix:
        return kernel_diagonal(self.network, samples, **self._how())

    def _how(self) -> dict[str, Any]:
        names = ("kind", "backend", "dtype", "threads")
        return {name: getattr(self, name) for name in names}

    def _pair(self, x1: Any, x2: Any) -> tuple[Any, Any, bool]:
        """Return both sides as rows or images, and whether each is one sample."""
        ranks = [np.ndim(x) for x in ([x1] if x2 is None else [x1, x2])]
        if 1 not in ranks:
            return x1, x2, False
        if ranks.count(1) < len(ranks):
            raise ValueError(
                f"both sides must be one sample (d,), or both rows (n, d), got {ranks[0]} and "
                f"{ranks[1]} axes: give x[None] for a matrix of one row"
            )
        # Callers pass the training samples twice.
        return np.asarray(x1)[None], None if x2 is None or x2 is x1 else np.asarray(x2)[None], True

    def _sides(self, x1: Any, x2: Any) -> tuple[_Matrix, _Matrix | None]:
        return self._samples(x1), None if x2 is None or x2 is x1 else self._samples(x2)

    def _samples(self, x: Any) -> _Matrix:
        network = self.network
        rows, found = split_shape(x, self.channels, network)
        rows = np.asarray(rows)
        shape = resolve_shape(self.image_shape, found, rows.shape[-1], self.channels, network)
        return rows if shape is None else rows.reshape(-1, *shape)


@dataclass
class KernelMetric(NetworkKernel):
    """The kernel of a network as a callable: ``SVC(kernel=KernelMetric("cntk-gap-11", ...))``.

    For whatever in scikit-learn takes a callable: `SVC`, `KernelRidge`, `KernelPCA`, `Nystroem`,
    `SpectralClustering` (as `affinity`). Rows give a matrix, a pair of rows (d,) a float. It is a
    kernel of ``sklearn.gaussian_process`` without hyperparameters, and so is called once for a
    matrix, not for each of its entries. `widelimit.NTK` has hyperparameters.

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

    @property
    def network(self) -> Network:
        """The network whose kernel it is."""
        (network,) = check_networks([self.net])
        return network

    def __call__(self, x1: Any, x2: Any = None, eval_gradient: bool = False) -> Any:
        """Return the kernel between rows or images, (n1, n2); a float between two rows (d,).

        Parameters
        ----------
        x1, x2 : array-like of shape (n, d), (n, h, w, c) or (d,)
            x2=None: x1.
        eval_gradient : bool
            Whether to return the derivatives by the hyperparameters, too, of which there are none.

        Raises
        ------
        TypeError, ValueError
            As for `widelimit.kernel`, or if rows do not fit image_shape.
        """
        x1, x2, single = self._pair(x1, x2)
        left, right = self._sides(x1, x2)
        k = self._normalised(self._kernel(left, right), left, right)
        if single:
            return float(k[0, 0])
        return (k, np.empty((*k.shape, 0))) if eval_gradient else k

    def diag(self, X: Any) -> FloatArray:
        """Return the kernel of each sample with itself, (n,)."""
        own = super().diag(X)
        return np.where(own > 0, 1.0, 0.0) if self.normalise else own

    def _normalised(self, k: _Matrix, left: _Matrix, right: _Matrix | None) -> _Matrix:
        if not self.normalise:
            return k
        if right is None:
            own1 = own2 = k.diagonal()
        else:
            own1, own2 = self._diagonal(left), self._diagonal(right)
        # A sample of zeros has the kernel 0 with all.
        scale1, scale2 = (np.where(own > 0, np.sqrt(own), 1.0) for own in (own1, own2))
        return k / scale1[:, None] / scale2
