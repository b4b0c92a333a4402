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
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray, IntArray
from widelimit.dual import relu_dual
from widelimit.network import (
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    LocalAvgPool,
    Network,
    ReLU,
)

__all__ = ["Kind", "Node", "Program", "Readout", "Tap", "compile_family", "compile_networks"]

_LARGEST_SIDE = 2**12  # a table of a readout takes 16 bytes times its square
_MOST_POOLED = 2**20  # pixels: four slices for each, and hours for each pair

Kind: TypeAlias = Literal["ntk", "nngp"]


@dataclass(frozen=True, slots=True)
class Node:
    """One convolution of the fields at `source` and, if `relu`, the activation after it.

    ``Sigma = weight_variance / q^2 * box_q(K) + bias_variance``, and alike for Theta. Nodes are
    numbered from 1 in their order in the program; 0 is the covariance of the inputs.
    """

    source: int
    filter_size: int
    weight_variance: float
    bias_variance: float
    trainable: bool
    relu: bool
    signed: bool  # sigma may be negative: no activation has come before


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
    head: tuple[Layer, ...]  # Dense, possibly (ReLU, Dense) pairs after it

    @property
    def needs_variance(self) -> bool:
        """Whether ``k(x, x)`` must be known to compute ``k(x, z)``: an activation follows."""
        return any(isinstance(layer, ReLU) for layer in self.head)

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
        k, th = sigma * self.scale, theta * self.scale
        v1 = None if variance1 is None else variance1 * self.scale
        v2 = None if variance2 is None else variance2 * self.scale
        for layer in self.head:
            match layer:
                case Dense(w_std, b_std, trainable):
                    w, b, t = w_std**2, b_std**2, float(trainable)
                    k, th = w * k + b, w * (th + t * k) + t * b
                    v1 = None if v1 is None else w * v1 + b
                    v2 = None if v2 is None else w * v2 + b
                case ReLU():
                    if v1 is None or v2 is None:
                        raise ValueError("an activation in the head needs variance1 and variance2")
                    xz = np.sqrt(v1) * np.sqrt(v2)
                    k, kappa0 = relu_dual(k if same is None else np.where(same, xz, k), xz)
                    # E[s(u) s(v)] = X Z kappa1 / 2, E[s'(u) s'(v)] = kappa0 / 2 (Eq. 37-40)
                    k, th, v1, v2 = k / 2, kappa0 * th / 2, v1 / 2, v2 / 2
                case _:
                    raise TypeError(f"the head of a network cannot hold {layer!r}")
        return k, th


@dataclass(frozen=True)
class Program:
    """The nodes of a family of networks, and where each network leaves.

    A node comes after its source. A dense network has none: its one tap is the inner product of
    its inputs.
    """

    networks: tuple[Network, ...]
    kinds: tuple[Kind, ...]
    shape: tuple[int, ...]  # (h, w, c), or (d,) for dense networks
    input_scale: float  # 1/C, or 1 with scaling="paper"
    nodes: tuple[Node, ...]
    taps: tuple[Tap, ...]
    readouts: tuple[Readout, ...]  # one for each network

    @property
    def is_dense(self) -> bool:
        """Whether the program is one inner product (a GEMM) and a head, without slices."""
        return len(self.shape) == 1

    @cached_property
    def variants(self) -> tuple[tuple[int, ...], ...]:
        """Nodes that a slice goes through, in order: one entry for each kind of slice."""
        return self._plan[0]

    @cached_property
    def slices(self) -> IntArray:
        """Slices that a readout weighs, of d and -d the one that is not negative, in order.

        Returns
        -------
        ndarray of int64, shape (n_slices, 3)
            di, dj, and which of the `variants`. Weights of readouts are even in d.
        """
        return self._plan[1]

    @cached_property
    def _plan(self) -> tuple[tuple[tuple[int, ...], ...], IntArray]:
        if self.is_dense:
            return (), np.zeros((0, 3), np.int64)
        h, w, _ = self.shape
        # Backwards: a tap says which displacements it weighs, and a node hands them to its source.
        wanted: list[NDArray[np.bool_] | None] = [None] * (len(self.nodes) + 1)

        def want(node: int, mask: NDArray[np.bool_]) -> None:
            before = wanted[node]
            wanted[node] = mask if before is None or before is mask else before | mask

        for tap in self.taps:
            rows, columns = (tap.weights(extent).max(axis=1) > 0 for extent in (h, w))
            want(tap.node, np.logical_and.outer(rows[h - 1 :], columns))
        for number in range(len(self.nodes), 0, -1):
            mask = wanted[number]
            assert mask is not None  # what no tap needs is no node
            want(self.nodes[number - 1].source, mask)
        masks = {id(mask): mask for mask in wanted if mask is not None}
        bits = np.array([mask.ravel() for mask in masks.values()]).T  # few: most nodes share one
        rows, columns = np.divmod(np.arange(len(bits)), 2 * w - 1)
        columns -= w - 1
        weighed = bits.any(axis=1) & ((rows > 0) | (columns >= 0))
        kinds, variant = np.unique(bits[weighed], axis=0, return_inverse=True)
        found = [dict(zip(masks, kind, strict=True)) for kind in kinds.tolist()]
        variants = tuple(
            tuple(n for n, mask in enumerate(wanted) if n > 0 and kind[id(mask)]) for kind in found
        )
        slices = np.stack([rows[weighed], columns[weighed], variant.reshape(-1)], axis=1)
        return variants, slices

    @cached_property
    def element_layers(self) -> int:
        """Cost of one pair: entries of all slices, times the nodes each goes through."""
        if self.is_dense:
            return 0
        h, w, _ = self.shape
        di, dj, variant = self.slices.T
        opposite = np.where((di == 0) & (dj == 0), 1, 2)
        entries = (h - di) * (w - abs(dj)) * opposite
        return int(entries @ np.array([len(nodes) for nodes in self.variants])[variant])

    def explain(self) -> str:
        """Say in words what will be computed, and at what cost."""
        lines = [f"input {'x'.join(map(str, self.shape))}, kernels {', '.join(self.kinds)}"]
        lines += [f"  {network}" for network in self.networks]
        if self.is_dense:
            lines.append("one matrix product in float64, then an element-wise recursion")
            return "\n".join(lines)
        h, w, c = self.shape
        lines.append(f"{'step':>4}  {'layer':<14}{'trained':<9}{'bias':<6}tangent kernel on entry")
        theta = [False]  # after each node, the input first
        for number, node in enumerate(self.nodes, start=1):
            name = f"Conv({node.filter_size})" + (" ReLU" if node.relu else "")
            state = "own field" if theta[node.source] else "zero"
            bias = "yes" if node.bias_variance else "no"
            trained = "yes" if node.trainable else "no"
            after = "" if node.source == number - 1 else f", of step {node.source}"
            lines.append(f"{number:>4}  {name:<14}{trained:<9}{bias:<6}{state}{after}")
            theta.append(theta[node.source] or node.trainable)
        for tap in self.taps:
            wanted = " and ".join(
                name for name, want in (("K", tap.want_sigma), ("Theta", tap.want_theta)) if want
            )
            lines.append(f"read out {wanted or 'nothing'} after step {tap.node}: {tap.pooling}")
        total = (2 * h - 1) * (2 * w - 1)
        n_slices = 2 * len(self.slices) - 1  # of d and -d one is listed
        gap = (h * w) ** 2 * max(1, len(self.nodes))
        lines.append(
            f"slices: {n_slices} of {total}; element-layers a pair: "
            f"{self.element_layers:,} ({self.element_layers / gap:.2%} of all)"
        )
        profile = len(self.nodes) * h * w
        lines.append(
            f"profile of an image: {profile * 4 / 1024:.1f} KiB in float32, "
            f"image {h * w * c * 4 / 1024:.1f} KiB"
        )
        return "\n".join(lines)


def compile_networks(
    networks: Sequence[Network], shape: Sequence[int], kinds: Sequence[Kind]
) -> list[tuple[Program, tuple[int, ...]]]:
    """Group networks into families and compile each.

    Parameters
    ----------
    networks : sequence of Network
    shape : sequence of int
        ``(h, w, c)`` of an image, or ``(d,)`` of a vector if every network is dense.
    kinds : sequence of {"ntk", "nngp"}
        The kernels that will be read.

    Returns
    -------
    list of (Program, positions)
        Each program with the positions of its networks in `networks`. A network joins the first
        family that has all of its nodes.

    Raises
    ------
    ValueError
        If a network cannot take inputs of this shape, or images are too large.
    """
    for network in networks:
        network.output_shapes(shape)
        _check_size(network, shape)
    numbers: dict[_Input, dict[Node, int]] = {}
    own = [set(_lower(net, kinds, numbers.setdefault(_input(net), {}))) for net in networks]
    families: list[tuple[_Input, set[int], list[int]]] = []
    for index in sorted(range(len(networks)), key=lambda i: -len(own[i])):
        reads = _input(networks[index])
        for theirs, nodes, family in families:
            if theirs == reads and own[index] <= nodes:
                family.append(index)
                break
        else:
            families.append((reads, own[index], [index]))
    return [
        (compile_family([networks[i] for i in family], shape, kinds), tuple(family))
        for _, _, family in families
    ]


_Input: TypeAlias = tuple[str, bool]


def _input(network: Network) -> _Input:
    """Return what decides about the covariance of the inputs: networks of a family share it."""
    return network.scaling, network.is_dense


def _check_size(network: Network, shape: Sequence[int]) -> None:
    """Refuse images whose tables and lists of slices would not fit into memory."""
    if network.is_dense:
        return
    h, w = shape[:2]
    pooled = not any(isinstance(layer, Flatten) for layer in network.layers)
    if max(h, w) > _LARGEST_SIDE or (pooled and h * w > _MOST_POOLED):
        raise ValueError(
            f"images must have at most {_LARGEST_SIDE:,} pixels a side, and {_MOST_POOLED:,} in "
            f"all for a network that pools, got {h} x {w}: make them smaller"
        )


def compile_family(
    networks: Sequence[Network], shape: Sequence[int], kinds: Sequence[Kind]
) -> Program:
    """Compile networks that share layers with the first; see `compile_networks`."""
    shape = tuple(int(s) for s in shape)
    dense = networks[0].is_dense
    if dense:
        shape = (math.prod(shape),)
    numbers: dict[Node, int] = {}
    first = _lower(networks[0], kinds, numbers)
    taps: list[Tap] = []
    readouts: list[Readout] = []
    for network in networks:
        own = _lower(network, kinds, numbers)
        if _input(network) != _input(networks[0]) or own[:1] not in ((), first[:1]):
            raise ValueError(f"{network} does not begin like {networks[0]}: not one family")
        layers = network.layers
        position = next((i for i, x in enumerate(layers) if not isinstance(x, Conv | ReLU)), 0)
        pooling: Flatten | GlobalAvgPool | LocalAvgPool = Flatten()
        start = 0
        if not isinstance(layers[position], Dense):
            pooling = cast("Flatten | GlobalAvgPool | LocalAvgPool", layers[position])
            start = position + (2 if isinstance(pooling, LocalAvgPool) else 1)
        head = tuple(layers[start:])
        if pooling == LocalAvgPool(0):
            pooling = Flatten()  # the same weights; one tap serves both
        tap = Tap(
            own[-1] if own else 0, pooling, "nngp" in kinds or _reads_sigma(head), "ntk" in kinds
        )
        place = next(
            (i for i, t in enumerate(taps) if (t.node, t.pooling) == (tap.node, pooling)), None
        )
        if place is None:
            place = len(taps)
            taps.append(tap)
        elif tap.want_sigma:
            taps[place] = replace(taps[place], want_sigma=True)
        scale = 1.0 if dense else _pixel_scale(pooling, shape, network)
        readouts.append(Readout(place, scale, head))
    fan_in = shape[-1]
    input_scale = 1.0 if networks[0].scaling == "paper" else 1.0 / fan_in
    return Program(
        tuple(networks),
        tuple(kinds),
        shape,
        input_scale,
        tuple(numbers),
        tuple(taps),
        tuple(readouts),
    )


def _lower(network: Network, kinds: Sequence[Kind], numbers: dict[Node, int]) -> tuple[int, ...]:
    """Return the nodes of a network, in order.

    Parameters
    ----------
    network : Network
    kinds : sequence of {"ntk", "nngp"}
        The NNGP kernel trains nothing: networks that differ in this alone share a pass.
    numbers : dict from Node to int
        Nodes that are there already; new ones are added. Equal layers of one source are one node.
    """
    any_trained = "ntk" in kinds
    layers = network.layers
    found: list[int] = []
    signed, source = True, 0
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, Conv):
            relu = isinstance(following, ReLU)
            weight, bias = layer.w_std**2, layer.b_std**2
            trainable = layer.trainable and any_trained
            node = Node(source, layer.filter_size, weight, bias, trainable, relu, signed)
            source = numbers.setdefault(node, len(numbers) + 1)
            found.append(source)
            signed = signed and not relu
    return tuple(found)


def _reads_sigma(head: Sequence[Layer]) -> bool:
    """Whether the tangent kernel needs K at the readout: trained, or an activation follows."""
    return any(
        isinstance(layer, ReLU) or (isinstance(layer, Dense) and layer.trainable) for layer in head
    )


def _pixel_scale(
    pooling: Flatten | GlobalAvgPool | LocalAvgPool, shape: tuple[int, ...], network: Network
) -> float:
    pixels = shape[0] * shape[1]
    flat = 1.0 if network.scaling == "paper" else 1.0 / pixels
    match pooling:
        case GlobalAvgPool():
            return 1.0 / pixels**2
        case Flatten():
            return flat
        case LocalAvgPool(half_width):
            return flat / (2 * half_width + 1) ** 4
