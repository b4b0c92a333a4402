"""The reference: float64 NumPy, to be read beside Section 4 and Section H of the paper.

One slice at a time, all pairs of a call at once. Slow, and meant to be obviously right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import PROFILE_BYTES, Cancelled, Dtype, Entries, Pairs, Profile
from widelimit.backends.cut import lane_groups
from widelimit.dual import relu_dual
from widelimit.program import Program

__all__ = ["ReferenceBackend"]


@dataclass(frozen=True, eq=False)
class _Profile:
    images: FloatArray  # (n, h, w, c)
    identity: NDArray[np.int64]  # (n,)
    x: tuple[FloatArray, ...]  # for each node: X(p) = sqrt(Sigma_xx(p, p)), shape (n, h, w)

    def __len__(self) -> int:
        return len(self.images)


def box(field: FloatArray, q: int) -> FloatArray:
    """Sum over the q x q window around each entry of the last two axes, zero outside."""
    r = q // 2
    h, w = field.shape[-2:]
    padded = np.pad(field, [(0, 0)] * (field.ndim - 2) + [(r, r), (r, r)])
    rows = sum((padded[..., a : a + h, :] for a in range(q)), start=np.zeros(1))
    return sum((rows[..., a : a + w] for a in range(q)), start=np.zeros(1))


class ReferenceBackend:
    """Slices in float64 NumPy; `dtype` is ignored."""

    name = "reference"

    def lanes(self, dtype: Dtype) -> int:
        """Return 16: any number does."""
        return 16

    def cut(self, program: Program, dtype: Dtype, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
        """Cut into lane groups; see `Backend.cut`."""
        return lane_groups(program, self.lanes(dtype), entries)

    def prepare(self, program: Program, dtype: Dtype) -> None:
        """Do nothing: no call waits."""

    def profile_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of one image and its profile."""
        h, w, c = program.shape
        return 8 * h * w * (c + len(program.nodes))

    def profile_room(self) -> int:
        """Return what is little beside a matrix in memory."""
        return PROFILE_BYTES

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of the fields of 16 x 16 pairs, about ten at a time."""
        h, w, c = program.shape
        return 8 * h * w * (10 + c) * 256

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Compute ``X`` of each node; ``kappa1(1) = 1`` makes a ReLU a factor of 1/2."""
        variances = [program.input_scale * np.sum(images * images, axis=-1)]
        x: list[FloatArray] = []
        for node in program.nodes:
            q = node.filter_size
            box_sum = box(variances[node.source], q)
            variance = node.weight_variance / q**2 * box_sum + node.bias_variance
            x.append(np.sqrt(variance))
            variances.append(variance / 2 if node.relu else variance)
        return _Profile(images, identity, tuple(x))

    def sums(
        self,
        program: Program,
        left: Profile,
        right: Profile,
        pairs: Pairs,
        cancel: NDArray[np.int32],
    ) -> FloatArray:
        """Sum every slice that has a weight; see `Backend.sums`."""
        assert isinstance(left, _Profile)
        assert isinstance(right, _Profile)
        result = np.zeros((len(program.taps), 2, *pairs.shape))
        for di, dj, variant in program.slices.tolist():
            if cancel[0]:
                raise Cancelled
            nodes = program.variants[int(variant)]
            sums = _slice(program, nodes, left, right, pairs, di, dj)
            if (di, dj) != (0, 0):
                # The two together, so that k(x, z) and k(z, x) agree to the last bit.
                sums = sums + _slice(program, nodes, left, right, pairs, -di, -dj)
            result += sums
        return result


def _slice(
    program: Program,
    nodes: tuple[int, ...],
    left: _Profile,
    right: _Profile,
    pairs: Pairs,
    di: int,
    dj: int,
) -> FloatArray:
    """Take the slice of displacement d through some nodes; return its weighted sums."""
    rows, columns = pairs.rows, pairs.columns
    if not pairs.pairwise:
        rows, columns = rows[:, None], columns[None, :]
    same = (left.identity[rows] == right.identity[columns])[..., None, None]
    h, w, _ = program.shape
    result = np.zeros((len(program.taps), 2, *pairs.shape))

    # p runs over the pixels of x for which p' = p + d lies inside z.
    p = np.s_[max(0, -di) : h - max(0, di), max(0, -dj) : w - max(0, dj)]
    p_prime = np.s_[max(0, di) : h + min(0, di), max(0, dj) : w + min(0, dj)]
    x, z = left.images[rows][..., *p, :], right.images[columns][..., *p_prime, :]
    k = program.input_scale * np.sum(x * z, axis=-1)
    fields = {0: (k, np.zeros_like(k))}
    last_read = {program.nodes[number - 1].source: number for number in nodes}
    for number in (0, *nodes):
        if number > 0:
            node = program.nodes[number - 1]
            q, t = node.filter_size, float(node.trainable)
            k, theta = fields[node.source]
            if last_read[node.source] == number:
                del fields[node.source]
            w_q = node.weight_variance / q**2
            sigma = w_q * box(k, q) + node.bias_variance
            theta = w_q * box(theta + t * k, q) + t * node.bias_variance
            k = sigma
            if node.relu:
                # Eq. 11, 12, 37-40 without c/q^2
                x_p = left.x[number - 1][rows][..., *p]
                z_p = right.x[number - 1][columns][..., *p_prime]
                xz = x_p * z_p
                if di == dj == 0:
                    sigma = np.where(same, xz, sigma)  # lambda = 1 exactly
                kappa1, kappa0 = relu_dual(sigma, xz)
                k, theta = kappa1 / 2, kappa0 * theta / 2
            fields[number] = k, theta
        for index, tap in enumerate(program.taps):
            if tap.node == number:
                by_row = tap.weights(h)[di + h - 1, : h - abs(di)]
                by_column = tap.weights(w)[dj + w - 1, : w - abs(dj)]
                for which, value in enumerate(fields[number]):
                    if (tap.want_sigma, tap.want_theta)[which]:
                        weighted = np.einsum("...ij,i,j->...", value, by_row, by_column)
                        result[index, which] = weighted
    return result
