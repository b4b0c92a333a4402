"""A network compiled for one input shape: what a backend executes, and what it costs.

Networks that share their first layers form a *family* and become one program: its nodes are the
layers of all of them, equal layers of equal inputs once. One pass over a slice serves every depth,
every readout, and both kernels (docs/mathematics.md, "Readouts").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.dual import dual, variance_behind
from widelimit.lattice import Boundary, Schedule, Window, schedule, strip_width
from widelimit.layers import (
    ABReLU,
    AvgPool,
    Conv,
    Cos,
    Dense,
    Flatten,
    Gaussian,
    GlobalAvgPool,
    Identity,
    Layer,
    LocalAvgPool,
    Pointwise,
    Polynomial,
    ReLU,
    Sum,
    walk,
)
from widelimit.network import Network

__all__ = [
    "Kind",
    "Node",
    "Pool",
    "Program",
    "Readout",
    "Stage",
    "Tap",
    "compile_family",
    "compile_networks",
]

_LARGEST_SIDE = 2**12  # a table of a readout takes 16 bytes times its square
_MOST_POOLED = 2**20  # pixels: four slices for each, and hours for each pair
_MOST_GATHERING = 2**16  # entries of coarse slices: 8 MiB of K and Theta in 16 lanes

Kind: TypeAlias = Literal["ntk", "nngp"]


_ONE = Window(1), Window(1)


@dataclass(frozen=True, slots=True)
class Node:
    """Weights, a skip that is added, and an activation: one fused step on slices of one grid.

    ``Sigma = weight_variance / (q q') box(K) + bias_variance``, and alike for Theta, for windows
    of q x q' pixels and stride 1; then the fields of `skip` are added, then the activation is
    applied. Any of them may be missing: windows of one pixel and the weight variance 1, None, None.
    Nodes are numbered from 1 in their order in the program; 0 is the covariance of the inputs.
    """

    source: int
    windows: tuple[Window, Window]
    weight_variance: float = 1.0
    bias_variance: float = 0.0
    trainable: bool = False
    skip: int | None = None
    activation: Pointwise | None = None
    signed: bool = True  # what the activation sees may be negative

    @property
    def area(self) -> int:
        """Pixels of the filter."""
        return self.windows[0].size * self.windows[1].size

    @property
    def filter_size(self) -> int | None:
        """Side of a square filter, with zeros around the image that keep its size; or None."""
        size = self.windows[0].size
        same = Window(size, 1, size // 2, size // 2)
        return size if size % 2 and self.windows == (same, same) else None


@dataclass(frozen=True, slots=True)
class Pool:
    """The way from one grid to the next: mean of a window, or the sum of a filter that strides.

    ``1/(m m')^2 sum (.)(p, p')`` over all pixels in the two windows of m x m' pixels; if
    `diagonal`, ``1/(m m') sum (.)(p, p')`` over pixels at the same place of the two. Pools are
    numbered among the nodes.
    """

    source: int
    windows: tuple[Window, Window]
    diagonal: bool

    @property
    def boundary(self) -> Boundary:
        """What it reads of slices."""
        return Boundary(*self.windows, self.diagonal)

    @property
    def weight(self) -> float:
        """What sums are multiplied with."""
        area = self.windows[0].size * self.windows[1].size
        return 1.0 / area if self.diagonal else 1.0 / area**2


@dataclass(frozen=True, slots=True)
class Tap:
    """Where and how fields are summed: those of `node`, over pixels and displacements."""

    node: int  # 0: the covariance of the inputs
    pooling: Flatten | GlobalAvgPool | LocalAvgPool
    want_sigma: bool
    want_theta: bool

    def weights(self, extent: int) -> FloatArray:
        """Weight of each entry of each slice along one axis: separable, even in the displacement.

        Parameters
        ----------
        extent : int
            Height or width of the image.

        Returns
        -------
        ndarray of shape (2 * extent - 1, extent)
            Row ``d + extent - 1`` belongs to displacement d, column i to entry i of the slice, i.e.
            to the pixels i and i + |d| of the two images. For local average pooling: the number of
            window centres inside the image that cover both (docs/mathematics.md, "Readouts").
        """
        d = np.abs(np.arange(1 - extent, extent))[:, None]
        i = np.arange(extent)[None, :]
        inside = i + d < extent
        match self.pooling:
            case GlobalAvgPool():
                count = np.ones((2 * extent - 1, extent))
            case Flatten():
                count = np.broadcast_to(d == 0, (2 * extent - 1, extent)).astype(float)
            case LocalAvgPool(half_width):
                first = np.maximum(0, i + d - half_width)
                last = np.minimum(extent - 1, i + half_width)
                count = np.maximum(0, last - first + 1).astype(float)
        return np.where(inside, count, 0.0)


@dataclass(frozen=True, slots=True)
class Readout:
    """From the sums of one tap to the kernels of one network."""

    tap: int
    scale: float  # what a plain sum is multiplied with to become the mean (or sum) over pixels
    head: tuple[Layer, ...]  # Dense layers, sums of them, and activations

    @property
    def needs_variance(self) -> bool:
        """Whether ``k(x, x)`` must be known to compute ``k(x, z)``: an activation follows."""
        return any(isinstance(layer, Pointwise) for layer in walk(self.head))

    def variances(self, variance: FloatArray) -> list[tuple[Pointwise, FloatArray]]:
        """Return the activations of the head, with the variances before each.

        Parameters
        ----------
        variance : ndarray of float64, shape (n,)
            Sums of the tap for ``k(x, x)``.
        """
        found: list[tuple[Pointwise, FloatArray]] = []
        _variance_behind(variance * self.scale, self.head, found)
        return found

    def apply(
        self,
        sigma: FloatArray,
        theta: FloatArray,
        variance1: FloatArray | None = None,
        variance2: FloatArray | None = None,
        same: NDArray[np.bool_] | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Run the head on the sums of a tap.

        Parameters
        ----------
        sigma, theta : ndarray of shape (n1, n2)
            Sums of the tap.
        variance1, variance2 : ndarray of shape (n1, 1) and (1, n2), or None
            Sums of the tap for ``k(x, x)`` and ``k(z, z)``; required if `needs_variance`.
        same : ndarray of bool of shape (n1, n2), or None
            Pairs of identical inputs: there lambda is 1 exactly, whatever the rounding.

        Returns
        -------
        nngp, ntk : ndarray of shape (n1, n2)
        """
        v1 = None if variance1 is None else variance1 * self.scale
        v2 = None if variance2 is None else variance2 * self.scale
        fields = _Fields(sigma * self.scale, theta * self.scale, v1, v2)
        fields = _through_head(fields, self.head, same)
        return fields.k, fields.theta


@dataclass(frozen=True, slots=True)
class _Fields:
    """Fields on one pixel, with the variances of both sides where an activation needs them."""

    k: FloatArray
    theta: FloatArray
    v1: FloatArray | None
    v2: FloatArray | None


def _through_head(
    fields: _Fields, layers: Sequence[Layer], same: NDArray[np.bool_] | None
) -> _Fields:
    k, th, v1, v2 = fields.k, fields.theta, fields.v1, fields.v2
    for layer in layers:
        match layer:
            case Dense(w_std, b_std, trainable):
                w, b, t = w_std**2, b_std**2, float(trainable)
                k, th = w * k + b, w * (th + t * k) + t * b
                v1 = None if v1 is None else w * v1 + b
                v2 = None if v2 is None else w * v2 + b
            case Identity():
                pass
            case Sum(branches):
                here = _Fields(k, th, v1, v2)
                first, *others = (_through_head(here, branch, same) for branch in branches)
                k, th, v1, v2 = first.k, first.theta, first.v1, first.v2
                for end in others:
                    k, th = k + end.k, th + end.theta
                    v1 = None if v1 is None or end.v1 is None else v1 + end.v1
                    v2 = None if v2 is None or end.v2 is None else v2 + end.v2
            case _ if isinstance(layer, Pointwise):
                if v1 is None or v2 is None:
                    raise ValueError("an activation in the head needs variance1 and variance2")
                x, z = np.sqrt(v1), np.sqrt(v2)
                k, factor = dual(layer, k if same is None else np.where(same, x * z, k), x, z)
                th = factor * th
                v1, v2 = variance_behind(layer, v1), variance_behind(layer, v2)
            case _:
                raise TypeError(f"the head of a network cannot hold {layer!r}")
    return _Fields(k, th, v1, v2)


def _variance_behind(
    v: FloatArray, layers: Sequence[Layer], found: list[tuple[Pointwise, FloatArray]]
) -> FloatArray:
    """Return the variance behind layers of a head; add those before activations to `found`."""
    for layer in layers:
        match layer:
            case Dense(w_std, b_std):
                v = w_std**2 * v + b_std**2
            case Sum(branches):
                ends = [_variance_behind(v, branch, found) for branch in branches]
                v = sum(ends[1:], start=ends[0])
            case _ if isinstance(layer, Pointwise):
                found.append((layer, v))
                v = variance_behind(layer, v)
            case _:
                pass
    return v


@dataclass(frozen=True, eq=False)
class Stage:
    """Nodes with the same number of pools before them, whose slices are swept together.

    Parameters
    ----------
    levels : tuple of int
        Numbers of its pools and nodes, in order, without the input.
    variants : tuple of tuple of int
        Which of the levels a slice goes through, in order: one entry for each kind of slice.
    slices : ndarray of int64, shape (n_slices, 3)
        di, dj, and which of the `variants`: slices that a readout or the next stage needs, of d and
        -d the one that is not negative, in order. What is read is symmetric in d.
    """

    levels: tuple[int, ...]
    variants: tuple[tuple[int, ...], ...]
    slices: IntArray


@dataclass(frozen=True)
class Program:
    """The nodes of a family of networks, and where each network leaves.

    A node or pool comes after its source. A dense network has none: its one tap is the inner
    product of its inputs.
    """

    networks: tuple[Network, ...]
    kinds: tuple[Kind, ...]
    shape: tuple[int, ...]  # (h, w, c), or (d,) for dense networks
    input_scale: float  # 1/C, or 1 with scaling="paper"
    nodes: tuple[Node | Pool, ...]
    taps: tuple[Tap, ...]
    readouts: tuple[Readout, ...]  # one for each network

    @property
    def is_dense(self) -> bool:
        """Whether the program is one inner product (a GEMM) and a head, without slices."""
        return len(self.shape) == 1

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the input, and of the output of each node."""
        return () if self.is_dense else _grids(self.shape, self.nodes)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """How many pools come before the input, and before the output of each node."""
        found = [0]
        for node in self.nodes:
            found.append(found[node.source] + isinstance(node, Pool))
        return tuple(found)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Nodes by the number of pools before them, with the slices that are needed of them."""
        if self.is_dense:
            return ()
        # Backwards: a tap says which displacements it weighs, and a node hands them to its source.
        # Rows and columns of a mask are displacements in ascending order, 0 in the middle.
        wanted: list[NDArray[np.bool_] | None] = [None] * (len(self.nodes) + 1)

        def want(number: int, mask: NDArray[np.bool_]) -> None:
            before = wanted[number]
            mask = _grown(mask, *self.grids[number])
            wanted[number] = mask if before is None or before is mask else before | mask

        for tap in self.taps:
            extents = self.grids[tap.node]
            rows, columns = (tap.weights(extent).max(axis=1) > 0 for extent in extents)
            want(tap.node, np.logical_and.outer(rows, columns))
        for number in range(len(self.nodes), 0, -1):
            mask, node = wanted[number], self.nodes[number - 1]
            assert mask is not None  # what no tap needs is no node
            if isinstance(node, Pool):
                extents = self.grids[node.source]
                down, across = (
                    window.spread(extent, diagonal=node.diagonal).astype(np.float32)
                    for window, extent in zip(node.windows, extents, strict=True)
                )
                want(node.source, down.T @ mask @ across > 0)
            else:
                want(node.source, mask)
                if node.skip is not None:
                    want(node.skip, mask)
        return tuple(self._stage(depth, wanted) for depth in range(max(self.depths) + 1))

    def _stage(self, depth: int, wanted: Sequence[NDArray[np.bool_] | None]) -> Stage:
        levels = [number for number, other in enumerate(self.depths) if other == depth]
        h, w = (max(self.grids[number][axis] for number in levels) for axis in (0, 1))
        masks: dict[int, NDArray[np.bool_]] = {}  # few: most nodes share one
        of: dict[int, int] = {}
        for number in levels:
            mask = wanted[number]
            if mask is not None:
                of[number] = id(mask)
                masks.setdefault(id(mask), _grown(mask, h, w))
        bits = np.array([mask[h - 1 :].ravel() for mask in masks.values()]).T
        rows, columns = np.divmod(np.arange(len(bits)), 2 * w - 1)
        columns -= w - 1
        needed = bits.any(axis=1) & ((rows > 0) | (columns >= 0))
        kinds, variant = np.unique(bits[needed], axis=0, return_inverse=True)
        found = [dict(zip(masks, kind, strict=True)) for kind in kinds.tolist()]
        variants = tuple(
            tuple(n for n, mask in of.items() if n > 0 and kind[mask]) for kind in found
        )
        slices = np.stack([rows[needed], columns[needed], variant.reshape(-1)], axis=1)
        return Stage(tuple(n for n in levels if n > 0), variants, slices)

    @cached_property
    def schedules(self) -> tuple[Schedule, ...]:
        """For each stage but the last: the order of its slices, and where those of the next gather.

        Where slices of the second stage would gather in more than `_MOST_GATHERING` entries, they
        are taken in strips, and slices of the first that two strips read go by for each. How wide
        strips are is a matter of the program alone, so that no bit depends on a machine.
        """
        found: list[Schedule] = []
        for depth, above in enumerate(self.stages[1:], start=1):
            pools = [n for n in above.levels if isinstance(self.nodes[n - 1], Pool)]
            boundaries: dict[Boundary, None] = {}
            for number in pools:
                node = self.nodes[number - 1]
                assert isinstance(node, Pool)
                boundaries[node.boundary] = None
            h, w = (max(self.grids[number][axis] for number in pools) for axis in (0, 1))
            fine = found[-1].coarse if found else self.stages[0].slices[:, :2]
            given = list(boundaries), above.slices[:, :2], (h, w), fine
            made = schedule(*given)
            width = strip_width(given[0], (h, w), made.size, _MOST_GATHERING)
            if depth == 1 and width is not None:
                made = schedule(*given, width)
            found.append(made)
        return tuple(found)

    @cached_property
    def element_layers(self) -> int:
        """Cost of one pair: entries of all slices, times the nodes each goes through.

        Slices that go by twice count twice (`schedules`).
        """
        return sum(map(self._cost, range(len(self.stages))))

    def _cost(self, depth: int) -> int:
        stage, total = self.stages[depth], 0
        di, dj, variant = stage.slices.T
        opposite = np.where((di == 0) & (dj == 0), 1, 2)
        if depth < len(self.schedules):
            key = np.array([2 * self.shape[1], 1])  # ascending in the slices of a stage
            passes = np.searchsorted(stage.slices[:, :2] @ key, self.schedules[depth].fine @ key)
            opposite *= np.bincount(passes)
        for number in stage.levels:
            if isinstance(self.nodes[number - 1], Node):
                h, w = self.grids[number]
                here = np.array([number in nodes for nodes in stage.variants])[variant]
                entries = (h - di) * (w - abs(dj)) * opposite
                total += int(entries[here].sum())
        return total

    def explain(self) -> str:
        """Say in words what will be computed, and at what cost."""
        lines = [f"input {'x'.join(map(str, self.shape))}, kernels {', '.join(self.kinds)}"]
        for network in self.networks:
            lines += [f"  {line}" for line in _drawn(network.layers)]
        if self.is_dense:
            lines.append("one matrix product in float64, then an element-wise recursion")
            return "\n".join(lines)
        h, w, c = self.shape
        sources = [self.nodes[node.source - 1] if node.source else None for node in self.nodes]
        names = list(map(_name, self.nodes, sources))
        wide = max(14, *(len(name) + 2 for name in names)) if names else 14
        title = f"{'step':>4}  {'layer':<{wide}}{'trained':<9}{'bias':<6}tangent kernel on entry"
        lines.append(title)
        theta = [False]  # after each node, the input first
        for number, node in enumerate(self.nodes, start=1):
            after = "" if node.source == number - 1 else f", of step {node.source}"
            trained, bias, own = "no", "no", theta[node.source]
            if isinstance(node, Node):
                trained = "yes" if node.trainable else "no"
                bias = "yes" if node.bias_variance else "no"
                own = own or (node.skip is not None and theta[node.skip])
            state = "own field" if own else "zero"
            if isinstance(node, Node) and node.skip is not None:
                after += f", plus step {node.skip}"
            if self.grids[number] != self.grids[node.source]:
                after += ", {} x {} pixels".format(*self.grids[number])
            if isinstance(node, Pool):
                after += _unread(node.windows, self.grids[node.source])
            lines.append(
                f"{number:>4}  {names[number - 1]:<{wide}}{trained:<9}{bias:<6}{state}{after}"
            )
            theta.append(own or (isinstance(node, Node) and node.trainable))
        for tap in self.taps:
            wanted = " and ".join(
                name for name, want in (("K", tap.want_sigma), ("Theta", tap.want_theta)) if want
            )
            lines.append(f"read out {wanted or 'nothing'} after step {tap.node}: {tap.pooling}")
        # Of d and -d one is listed.
        n_slices = sum(2 * len(stage.slices) - 1 for stage in self.stages)
        largest: dict[int, tuple[int, int]] = {}
        for depth, grid in zip(self.depths, self.grids, strict=True):
            h0, w0 = largest.get(depth, grid)
            largest[depth] = max(grid[0], h0), max(grid[1], w0)
        total = sum((2 * h - 1) * (2 * w - 1) for h, w in largest.values())
        convolved = [n for n, node in enumerate(self.nodes, start=1) if isinstance(node, Node)]
        all_pairs = sum(math.prod(self.grids[n]) ** 2 for n in convolved) or (h * w) ** 2
        lines.append(
            f"slices: {n_slices} of {total}; element-layers a pair: "
            f"{self.element_layers:,} ({self.element_layers / all_pairs:.2%} of all)"
        )
        if len(self.stages) > 1:
            for depth, (rows, columns) in enumerate(largest.values()):
                slices = self.stages[depth].slices
                again = len(self.schedules[0].fine) - len(slices) if depth == 0 else 0
                lines.append(
                    f"  {rows} x {columns} pixels: {2 * len(slices) - 1} slices, "
                    + (f"{2 * again} of them twice, " if again else "")
                    + f"{self._cost(depth):,} element-layers"
                )
        profile = sum(math.prod(self.grids[n]) for n in convolved)
        lines.append(
            f"profile of an image: {profile * 4 / 1024:.1f} KiB in float32, "
            f"image {h * w * c * 4 / 1024:.1f} KiB"
        )
        return "\n".join(lines)


def _unread(windows: tuple[Window, Window], grid: tuple[int, int]) -> str:
    """Say which pixels at the end windows leave out that leave none out in between."""
    left: list[str] = []
    for window, extent, noun in zip(windows, grid, ("row", "column"), strict=True):
        if window.stride <= window.size and (count := window.unread(extent)):
            left.append(f"last {noun}" if count == 1 else f"last {count} {noun}s")
    return f" ({' and '.join(left)} in no window)" if left else ""


def _grown(mask: NDArray[np.bool_], h: int, w: int) -> NDArray[np.bool_]:
    """Return a mask of displacements for a grid of h x w, which a window may have made smaller."""
    down, across = 2 * h - 1 - mask.shape[0], 2 * w - 1 - mask.shape[1]
    if not down and not across:
        return mask
    return np.pad(mask, [(down // 2, down // 2), (across // 2, across // 2)])


def _drawn(layers: Sequence[Layer]) -> list[str]:
    """Draw layers as a tree: one line up to a sum, and a branch of it below the other."""
    lines: list[str] = []
    line: list[str] = []
    for layer in layers:
        if not isinstance(layer, Sum):
            line.append(str(layer))
            continue
        lines += [" ".join(line)] if line else []
        line = []
        lines.append("Sum")
        for number, branch in enumerate(layer.branches, start=1):
            last = number == len(layer.branches)
            first, *others = _drawn(branch) or ["()"]
            lines.append(f"{'└─' if last else '├─'} {first}")
            lines += [f"{'   ' if last else '│  '}{other}" for other in others]
    return lines + ([" ".join(line)] if line else [])


def _name(node: Node | Pool, source: Node | Pool | None) -> str:
    """Return what a node does, for people."""
    size = _pair([window.size for window in node.windows])
    if isinstance(node, Pool):
        stride = _pair([window.stride for window in node.windows])
        return f"Conv({size}, stride={stride})" if node.diagonal else f"AvgPool({size})"
    parts: list[str] = []
    if isinstance(source, Pool) and source.diagonal:  # the filter has moved already
        parts.append("weights")
    elif node.windows != _ONE or node.trainable or node.weight_variance != 1 or node.bias_variance:
        parts.append(f"Conv({size})")
    if node.skip is not None:
        parts.append("Sum")
    if node.activation is not None:
        parts.append(str(node.activation))
    return " ".join(parts)


def _pair(sides: Sequence[int]) -> str:
    return str(sides[0] if sides[0] == sides[1] else tuple(sides))


def compile_networks(
    networks: Sequence[Network], shape: Sequence[int], kinds: Sequence[Kind]
) -> list[tuple[Program, tuple[int, ...]]]:
    """Group networks into families and compile each.

    Parameters
    ----------
    networks : sequence of Network
    shape : sequence of int
        ``(h, w, c)`` of an image, ``(length, c)`` of a series, or ``(d,)`` of a vector if every
        network is dense.
    kinds : sequence of {"ntk", "nngp"}
        The kernels that will be read.

    Returns
    -------
    list of (Program, positions)
        Each program with the positions of its networks in `networks`. A network joins the first
        family that has all of its nodes, or else the first with which it shares a quarter of its
        work. The latter only if both have pools or skips: a card computes plain networks at full
        speed if they do not branch.

    Raises
    ------
    ValueError
        If a network cannot take inputs of this shape, or images are too large.
    """
    for network in networks:
        network.output_shapes(shape)
        _check_size(network, shape)
    numbers: dict[_Input, dict[Node | Pool, int]] = {}
    own = [set(_lower(net, kinds, numbers.setdefault(_input(net), {}))[0]) for net in networks]
    families: list[tuple[_Input, _Family]] = []
    for index in sorted(range(len(networks)), key=lambda i: -len(own[i])):
        reads = _input(networks[index])
        new = _Family(tuple(numbers[reads]), own[index], [index])
        alike = [family for with_these, family in families if with_these == reads]
        joined = next((family for family in alike if new.nodes <= family.nodes), None)
        if joined is None:
            shared = (f for f in alike if f.shares_work(new, networks, shape, kinds))
            joined = next(shared, None)
        if joined is None:
            families.append((reads, new))
        else:
            joined.nodes |= new.nodes
            joined.members.append(index)
    return [
        (compile_family([networks[i] for i in family.members], shape, kinds), tuple(family.members))
        for _, family in families
    ]


_Input: TypeAlias = tuple[str, bool]


def _input(network: Network) -> _Input:
    """Return what decides about the covariance of the inputs: networks of a family share it."""
    return network.scaling, network.is_dense


@dataclass
class _Family:
    """Networks that one pass computes."""

    numbered: tuple[Node | Pool, ...]  # of all networks with these inputs, from 1
    nodes: set[int]
    members: list[int]

    @property
    def has_branches(self) -> bool:
        """Whether there are pools or skips."""
        nodes = [self.numbered[number - 1] for number in self.nodes]
        return any(isinstance(node, Pool) or node.skip is not None for node in nodes)

    def shares_work(
        self,
        new: _Family,
        networks: Sequence[Network],
        shape: Sequence[int],
        kinds: Sequence[Kind],
    ) -> bool:
        """Whether one pass with another network saves a quarter of what that takes alone."""
        if self.nodes.isdisjoint(new.nodes) or not (self.has_branches and new.has_branches):
            return False
        members = self.members, new.members, [*self.members, *new.members]
        programs = [compile_family([networks[i] for i in who], shape, kinds) for who in members]
        mine, its, together = programs
        saved = mine.element_layers + its.element_layers - together.element_layers
        return saved >= its.element_layers / 4


def _check_size(network: Network, shape: Sequence[int]) -> None:
    """Refuse images whose tables and lists of slices would not fit into memory."""
    if network.is_dense:
        return
    h, w = shape[:2] if len(shape) == 3 else (1, shape[0])
    pooled = not any(isinstance(layer, Flatten) for layer in network.layers)
    if max(h, w) > _LARGEST_SIDE or (pooled and h * w > _MOST_POOLED):
        raise ValueError(
            f"images must have at most {_LARGEST_SIDE:,} pixels a side, and {_MOST_POOLED:,} in "
            f"all for a network that pools, got {h} x {w}: make them smaller"
        )


def compile_family(
    networks: Sequence[Network], shape: Sequence[int], kinds: Sequence[Kind]
) -> Program:
    """Compile networks each of which shares layers with those before; see `compile_networks`."""
    shape = tuple(int(s) for s in shape)
    dense = networks[0].is_dense
    if dense:
        shape = (math.prod(shape),)
    elif len(shape) == 2:  # a series is an image of one row
        shape = (1, *shape)
    numbers: dict[Node | Pool, int] = {}
    seen: set[int] = set()
    exits: list[tuple[int, Flatten | GlobalAvgPool | LocalAvgPool, tuple[Layer, ...]]] = []
    for network in networks:
        own, last = _lower(network, kinds, numbers)
        apart = bool(own) and bool(seen) and seen.isdisjoint(own)
        if _input(network) != _input(networks[0]) or apart:
            raise ValueError(f"{network} shares no layer with {networks[0]}: not one family")
        seen |= set(own)
        exits.append((last, *_readout(network)))
    nodes = tuple(numbers)
    grids = () if dense else _grids(shape[:2], nodes)
    taps: list[Tap] = []
    readouts: list[Readout] = []
    for network, (last, pooling, head) in zip(networks, exits, strict=True):
        scale = 1.0 if dense else _pixel_scale(pooling, grids[last], network)
        if pooling == LocalAvgPool(0):
            pooling = Flatten()  # the same weights; one tap serves both
        tap = Tap(last, pooling, "nngp" in kinds or _reads_sigma(head), "ntk" in kinds)
        place = next(
            (i for i, t in enumerate(taps) if (t.node, t.pooling) == (tap.node, pooling)), None
        )
        if place is None:
            place = len(taps)
            taps.append(tap)
        elif tap.want_sigma:
            taps[place] = replace(taps[place], want_sigma=True)
        readouts.append(Readout(place, scale, head))
    input_scale = 1.0 if networks[0].scaling == "paper" else 1.0 / shape[-1]
    return Program(
        tuple(networks), tuple(kinds), shape, input_scale, nodes, tuple(taps), tuple(readouts)
    )


def _grids(shape: tuple[int, ...], nodes: Sequence[Node | Pool]) -> tuple[tuple[int, int], ...]:
    """Return height and width of the input, and of the output of each node."""
    found = [(shape[0], shape[1])]
    for node in nodes:
        (rows, columns), (h, w) = node.windows, found[node.source]
        found.append((rows.extent(h), columns.extent(w)))
    return tuple(found)


def _readout(network: Network) -> tuple[Flatten | GlobalAvgPool | LocalAvgPool, tuple[Layer, ...]]:
    """Return the readout of a network, and what comes after it; a dense network has one pixel."""
    for index, layer in enumerate(network.layers):
        if isinstance(layer, Flatten | GlobalAvgPool):
            return layer, tuple(network.layers[index + 1 :])
        if isinstance(layer, LocalAvgPool):  # Flatten follows
            return layer, tuple(network.layers[index + 2 :])
    return Flatten(), tuple(network.layers)


def _lower(
    network: Network, kinds: Sequence[Kind], numbers: dict[Node | Pool, int]
) -> tuple[tuple[int, ...], int]:
    """Return the nodes of a network, in order, and the one that is read out.

    Parameters
    ----------
    network : Network
    kinds : sequence of {"ntk", "nngp"}
        The NNGP kernel trains nothing: networks that differ in this alone share a pass.
    numbers : dict from Node or Pool to int
        Nodes that are there already; new ones are added. Equal layers of one source are one node.
    """
    lowering = _Lowering(numbers, "ntk" in kinds)
    readouts = Flatten, GlobalAvgPool, LocalAvgPool
    head = len(_readout(network)[1])
    body = network.layers[: len(network.layers) - head]
    body = [layer for layer in body if not isinstance(layer, readouts)]
    last = lowering.go_through(0, body)
    return tuple(lowering.found), last


class _Lowering:
    """From layers to nodes, each of which is there once."""

    def __init__(self, numbers: dict[Node | Pool, int], any_trained: bool) -> None:
        self._numbers = numbers
        self._any_trained = any_trained
        self._signed = {0: True}  # of the levels: whether K may be negative
        self._depth = {0: 0}  # pools before it
        self.found: dict[int, None] = {}

    def go_through(self, level: int, layers: Sequence[Layer]) -> int:
        """Add nodes for layers that follow a level; return the last."""
        left = [layer for layer in layers if not isinstance(layer, Identity)]
        while left:
            layer = left.pop(0)
            following = left[0] if left else None
            after: Pointwise | None = None
            if isinstance(layer, Conv | Sum) and isinstance(following, Pointwise):
                after = following  # one fused node
                left.pop(0)
            match layer:
                case Conv():
                    level = self._conv(level, layer, None, after)
                case AvgPool():
                    if layer.windows != _ONE:
                        level = self._pool(level, layer.windows, diagonal=False)
                case Sum():
                    level = self._sum(level, layer, after)
                case _:
                    assert isinstance(layer, Pointwise)
                    level = self._node(Node(level, _ONE), layer)
        return level

    def _node(self, node: Node, activation: Pointwise | None) -> int:
        signed = self._signed[node.source] or (node.skip is not None and self._signed[node.skip])
        if isinstance(activation, ABReLU) and (activation.a, activation.b) == (0.0, 1.0):
            activation = ReLU()
        made = replace(node, activation=activation, signed=signed)
        number = self._add(made, self._depth[node.source])
        self._signed[number] = signed and not _is_nonnegative(activation)
        if isinstance(activation, Polynomial) and min(activation.coefficients) < 0:
            self._signed[number] = True
        return number

    def _pool(self, level: int, windows: tuple[Window, Window], *, diagonal: bool) -> int:
        number = self._add(Pool(level, windows, diagonal), self._depth[level] + 1)
        self._signed[number] = self._signed[level]
        return number

    def _add(self, made: Node | Pool, depth: int) -> int:
        number = self._numbers.setdefault(made, len(self._numbers) + 1)
        self._depth[number] = depth
        self.found[number] = None
        return number

    def _conv(self, level: int, conv: Conv, skip: int | None, after: Pointwise | None) -> int:
        windows = conv.windows
        if any(window.stride > 1 for window in windows):
            level = self._pool(level, windows, diagonal=True)
            windows = _ONE
        if skip is not None:
            level, skip = self._at_one_depth(level, skip)
        trainable = conv.trainable and self._any_trained
        node = Node(level, windows, conv.w_std**2, conv.b_std**2, trainable, skip)
        return self._node(node, after)

    def _at_one_depth(self, one: int, other: int) -> tuple[int, int]:
        """Pass the field with fewer pools before it through pools that do nothing."""
        while self._depth[one] < self._depth[other]:
            one = self._pool(one, _ONE, diagonal=True)
        while self._depth[other] < self._depth[one]:
            other = self._pool(other, _ONE, diagonal=True)
        return one, other

    def _sum(self, level: int, layer: Sum, after: Pointwise | None) -> int:
        branches = [[x for x in branch if not isinstance(x, Identity)] for branch in layer.branches]
        # What ends with a convolution takes the others as its skip. Numbers of branches before it
        # come first.
        branches.sort(key=lambda branch: bool(branch) and isinstance(branch[-1], Conv))
        total = self.go_through(level, branches[0])
        for number, branch in enumerate(branches[1:], start=1):
            activation = after if number == len(branches) - 1 else None
            if branch and isinstance(branch[-1], Conv):
                before = self.go_through(level, branch[:-1])
                total = self._conv(before, branch[-1], total, activation)
            else:
                source, skip = self._at_one_depth(self.go_through(level, branch), total)
                total = self._node(Node(source, _ONE, skip=skip), activation)
        return total


def _is_nonnegative(activation: Pointwise | None) -> bool:
    """Whether K is nowhere negative behind an activation, whatever comes in."""
    match activation:
        case ReLU() | Cos() | Gaussian():
            return True
        case ABReLU(a, b):
            return a * b <= 0
        case _:
            return False


def _reads_sigma(head: Sequence[Layer]) -> bool:
    """Whether the tangent kernel needs K at the readout: trained, or an activation follows."""
    return any(
        isinstance(layer, Pointwise) or (isinstance(layer, Dense) and layer.trainable)
        for layer in walk(head)
    )


def _pixel_scale(
    pooling: Flatten | GlobalAvgPool | LocalAvgPool, grid: tuple[int, int], network: Network
) -> float:
    pixels = grid[0] * grid[1]
    flat = 1.0 if network.scaling == "paper" else 1.0 / pixels
    match pooling:
        case GlobalAvgPool():
            return 1.0 / pixels**2
        case Flatten():
            return flat
        case LocalAvgPool(half_width):
            return flat / (2 * half_width + 1) ** 4
