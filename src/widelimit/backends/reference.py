"""The reference: float64 NumPy, to be read beside Section 4 and Section H of the paper.

One slice at a time, all pairs of a call at once. A slice of a coarse grid asks for the slices of
the fine grid that it reads, and nothing is kept for the next one: of 2 x 2 pools each makes the
grid before it cost 9/4 of what it would. Slow, and meant to be obviously right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import PROFILE_BYTES, Cancelled, Dtype, Entries, Pairs, Profile
from widelimit.backends.cut import lane_groups
from widelimit.dual import dual, variance_behind
from widelimit.lattice import Run
from widelimit.layers import Pointwise
from widelimit.program import Node, Pool, Program

__all__ = ["ReferenceBackend"]


@dataclass(frozen=True, eq=False)
class _Profile:
    images: FloatArray  # (n, h, w, c)
    identity: NDArray[np.int64]  # (n,)
    x: dict[int, FloatArray]  # nodes with an activation: X(p) = sqrt(Sigma_xx(p, p)), (n, h, w)

    def __len__(self) -> int:
        return len(self.images)


def window_sums(
    field: FloatArray, runs: tuple[Run, Run], strides: tuple[int, int], shape: tuple[int, int]
) -> FloatArray:
    """Sum entries of a fine slice, the last two axes, for those of a coarse one of this shape."""
    for axis, run, stride, n in zip((-2, -1), runs, strides, shape, strict=True):
        before = max(0, -run.first)
        after = max(0, run.first + (n - 1) * stride + run.length - field.shape[axis])
        pad = [(0, 0)] * field.ndim
        pad[axis] = before, after
        padded = np.moveaxis(np.pad(field, pad), axis, 0)[run.first + before :]
        stop = (n - 1) * stride + 1
        parts = (padded[a : a + stop : stride] for a in range(run.length))
        field = np.moveaxis(sum(parts, start=np.zeros(1)), 0, axis)
    return field


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
        return 8 * (h * w * c + sum(h * w for h, w in program.grids[1:]))

    def profile_room(self) -> int:
        """Return what is little beside a matrix in memory."""
        return PROFILE_BYTES

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of the fields of 16 x 16 pairs, about ten at a time."""
        h, w, c = program.shape
        return 8 * h * w * (10 * len(program.stages) + c) * 256

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Compute ``X`` of each node that has an activation, from pairs of an image with itself."""
        profile = _Profile(images, identity, {})
        every = np.arange(len(images))
        itself = _Pairs(program, profile, profile, every, every)
        for depth, stage in enumerate(program.stages):
            # Slice 0 of a stage needs X of its own nodes in order, and of all stages before it.
            itself.fields(depth, stage.levels, 0, 0, profile.x)
        return profile

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
        rows, columns = pairs.rows, pairs.columns
        if not pairs.pairwise:
            rows, columns = rows[:, None], columns[None, :]
        fields = _Pairs(program, left, right, rows, columns)
        result = np.zeros((len(program.taps), 2, *pairs.shape))
        for depth, stage in enumerate(program.stages):
            tapped = {tap.node for tap in program.taps if program.depths[tap.node] == depth}
            kept = [tapped.intersection((0, *nodes)) for nodes in stage.variants]
            for di, dj, variant in stage.slices.tolist():
                if cancel[0]:
                    raise Cancelled
                levels = tuple(sorted(kept[int(variant)]))
                if not levels:
                    continue
                sums = fields.weighted(depth, levels, di, dj)
                if (di, dj) != (0, 0):
                    # The two together, so that k(x, z) and k(z, x) agree to the last bit.
                    sums = sums + fields.weighted(depth, levels, -di, -dj)
                result += sums
        return result


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Slices of the pairs of some images.

    Parameters
    ----------
    program : Program
    left, right : _Profile
    rows, columns : ndarray of int64
        Samples of the pairs, of shapes that broadcast.
    """

    program: Program
    left: _Profile
    right: _Profile
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def weighted(self, depth: int, levels: tuple[int, ...], di: int, dj: int) -> FloatArray:
        """Return the weighted sums of one slice of some levels of a stage, for every tap."""
        program = self.program
        fields = self.fields(depth, levels, di, dj)
        shape = np.broadcast_shapes(self.rows.shape, self.columns.shape)
        result = np.zeros((len(program.taps), 2, *shape))
        for index, tap in enumerate(program.taps):
            h, w = program.grids[tap.node]
            if tap.node in fields and abs(di) < h and abs(dj) < w:
                by_row = tap.weights(h)[di + h - 1, : h - abs(di)]
                by_column = tap.weights(w)[dj + w - 1, : w - abs(dj)]
                for which, value in enumerate(fields[tap.node]):
                    if (tap.want_sigma, tap.want_theta)[which]:
                        weighted = np.einsum("...ij,i,j->...", value, by_row, by_column)
                        result[index, which] = weighted
        return result

    def fields(
        self,
        depth: int,
        levels: Sequence[int],
        di: int,
        dj: int,
        profile: dict[int, FloatArray] | None = None,
    ) -> dict[int, tuple[FloatArray, FloatArray]]:
        """Return K and Theta of some levels of a stage at the slice of displacement d.

        Parameters
        ----------
        depth : int
            Of the stage.
        levels : sequence of int
        di, dj : int
        profile : dict or None
            If given, the pairs are images with themselves, d is 0, and ``X`` of all nodes with an
            activation is put here.
        """
        order = self._order(depth, levels)
        last_read = {source: number for number in order for source in self._inside(number)}
        nodes = {number: self._node(number) for number in order}
        pools = {number: node for number, node in nodes.items() if isinstance(node, Pool)}
        found = self._pooled(depth, pools, di, dj)
        for number in order:
            node = nodes[number]
            if node is None:
                found[0] = self._input(di, dj)
            elif isinstance(node, Node):
                k, theta = self._weights(number, node, found[node.source], di, dj)
                if node.skip is not None:
                    k, theta = k + found[node.skip][0], theta + found[node.skip][1]
                if node.activation is not None and profile is not None:
                    profile[number] = np.sqrt(k)
                    k = variance_behind(node.activation, k)
                elif node.activation is not None:
                    k, theta = self._activated(number, node.activation, k, theta, di, dj)
                found[number] = k, theta
            for source in self._inside(number):
                if last_read[source] == number and source not in levels:
                    del found[source]
        return found

    def _node(self, number: int) -> Node | Pool | None:
        return None if number == 0 else self.program.nodes[number - 1]

    def _inside(self, number: int) -> tuple[int, ...]:
        """Return the levels of its own stage that a level reads."""
        node = self._node(number)
        if not isinstance(node, Node):
            return ()
        return (node.source,) if node.skip in (None, node.source) else (node.source, node.skip)

    def _order(self, depth: int, levels: Sequence[int]) -> list[int]:
        """Return these levels and all of the stage that they need, in order."""
        needed = set(levels)
        for number in range(max(levels, default=0), 0, -1):
            if number in needed:
                needed.update(self._inside(number))
        return sorted(needed)

    def _shape(self, number: int, di: int, dj: int) -> tuple[int, int]:
        """Return the shape of a slice."""
        h, w = self.program.grids[number]
        return h - abs(di), w - abs(dj)

    def _input(self, di: int, dj: int) -> tuple[FloatArray, FloatArray]:
        p, p_prime = _pixels(self.program.shape[:2], di, dj)
        x, z = self.left.images[self.rows], self.right.images[self.columns]
        k = self.program.input_scale * np.sum(x[..., *p, :] * z[..., *p_prime, :], axis=-1)
        return k, np.zeros_like(k)

    def _weights(
        self, number: int, node: Node, fields: tuple[FloatArray, FloatArray], di: int, dj: int
    ) -> tuple[FloatArray, FloatArray]:
        t, w_q = float(node.trainable), node.weight_variance / node.area
        runs = node.windows[0].run(di), node.windows[1].run(dj)
        shape = self._shape(number, di, dj)

        def box(field: FloatArray) -> FloatArray:
            return window_sums(field, runs, (1, 1), shape)

        k, theta = fields
        sigma = w_q * box(k) + node.bias_variance
        return sigma, w_q * box(theta + t * k) + t * node.bias_variance

    def _activated(
        self,
        number: int,
        activation: Pointwise,
        k: FloatArray,
        theta: FloatArray,
        di: int,
        dj: int,
    ) -> tuple[FloatArray, FloatArray]:
        p, p_prime = _pixels(self.program.grids[number], di, dj)
        x = self.left.x[number][self.rows][..., *p]
        z = self.right.x[number][self.columns][..., *p_prime]
        if di == dj == 0:  # lambda = 1 exactly
            same = self.left.identity[self.rows] == self.right.identity[self.columns]
            k = np.where(same[..., None, None], x * z, k)
        k, factor = dual(activation, k, x, z)
        return k, factor * theta

    def _pooled(
        self, depth: int, pools: dict[int, Pool], di: int, dj: int
    ) -> dict[int, tuple[FloatArray, FloatArray]]:
        """Return the fields of pools, from those slices of the stage before that they read."""
        readers: dict[tuple[int, int], list[tuple[int, Pool, tuple[Run, Run]]]] = {}
        for number, pool in pools.items():
            extents = self.program.grids[pool.source]
            down, across = (
                window.sources(d, extent, diagonal=pool.diagonal)
                for window, d, extent in zip(pool.windows, (di, dj), extents, strict=True)
            )
            for runs in product(down, across):
                d = runs[0].fine, runs[1].fine
                readers.setdefault(d, []).append((number, pool, runs))
        parts: dict[int, dict[tuple[int, int], FloatArray]] = {number: {} for number in pools}
        for d, reading in readers.items():
            needed = sorted({pool.source for _, pool, _ in reading})
            fields = self.fields(depth - 1, needed, *d)
            for number, pool, runs in reading:
                strides = pool.windows[0].stride, pool.windows[1].stride
                shape = self._shape(number, di, dj)
                both = [window_sums(field, runs, strides, shape) for field in fields[pool.source]]
                e = d[0] - strides[0] * di, d[1] - strides[1] * dj
                parts[number][e] = np.array(both)
        found: dict[int, tuple[FloatArray, FloatArray]] = {}
        for number, pool in pools.items():
            k, theta = pool.weight * _joined(parts[number])
            found[number] = k, theta
        return found


def _joined(parts: dict[tuple[int, int], FloatArray]) -> FloatArray:
    """Add parts in an order that is the same for e and -e, which exchange when x and z do."""
    together: dict[tuple[int, int], FloatArray] = {}
    for e, part in parts.items():
        place = max(e, (-e[0], -e[1]))
        together[place] = part + together[place] if place in together else part
    return sum((together[place] for place in sorted(together)), start=np.zeros(1))


def _pixels(
    grid: tuple[int, ...], di: int, dj: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the pixels p of the first image with p + d in the second, and those p + d."""
    h, w = grid
    p = np.s_[max(0, -di) : h - max(0, di), max(0, -dj) : w - max(0, dj)]
    p_prime = np.s_[max(0, di) : h + min(0, di), max(0, dj) : w + min(0, dj)]
    return p, p_prime
