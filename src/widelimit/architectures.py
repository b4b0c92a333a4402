"""Networks of papers, and plain ones.

Those of Arora et al., *On Exact Computation with an Infinitely Wide Neural Net*, come with their
scales; `myrtle` is from Shankar et al., *Neural Kernels Without Tangents*, `resnet` from He et al.,
*Identity Mappings in Deep Residual Networks*, `wide_resnet` from Zagoruyko and Komodakis.

A `Network` divides a weight by sqrt(fan-in) where the paper multiplies by ``c/q^2`` after the
ReLU. The scales below move that factor, so that kernels have the paper's values, scale included:
``w_std = q`` turns ``w^2/q^2 box_q`` into the plain patch sum of Sigma_0, ``w_std = sqrt(2)``
carries the ``c = 2`` of the ReLU before it, and the last layer the ``c/q^2`` of K_L.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from numbers import Integral

from widelimit.network import (
    MAX_LAYERS,
    Activation,
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    Network,
    ReLU,
    Sum,
)

__all__ = [
    "EXAMPLES",
    "PRESETS",
    "cnn_1d",
    "cntk_gap",
    "cntk_vanilla",
    "myrtle",
    "named_network",
    "ntk_dense",
    "resnet",
    "wide_resnet",
]

_MAX_DEPTH = MAX_LAYERS // 2 - 1  # two layers for each, and two more
_RELU = ReLU()
_SQRT_C = 2**0.5  # c = 2 for the ReLU (its square differs from 2 by one rounding, 2e-16 relative)


def cntk_gap(depth: int = 11, filter_size: int = 3) -> Network:
    """CNTK-GAP: convolutions, global average pooling, first and last layer not trained.

    ``Theta_0 = 0``, ``Theta_L = K'_L * Theta_{L-1}``, value: mean over ``(p,p')`` (Section H).

    Parameters
    ----------
    depth : int
        Number of convolutions L plus one, 2 to 16,383. Table 1 has 3, 4, 6, 11 and 21.
    filter_size : int
        q, the side of the filters: odd.

    Returns
    -------
    Network
        ``depth - 1`` times ``Conv ReLU``, then ``GlobalAvgPool Dense``.

    Raises
    ------
    TypeError, ValueError
        If depth or filter_size is not an integer, or is outside its range.
    """
    convs = _convs(depth, filter_size, train_first=False)
    last = Dense(w_std=_SQRT_C / filter_size, trainable=False)
    return Network([*convs, GlobalAvgPool(), last], scaling="paper")


def cntk_vanilla(depth: int = 11, filter_size: int = 3) -> Network:
    """CNTK-V: convolutions and a dense layer on all pixels, every layer trained.

    ``Theta_0 = Sigma_0``, ``Theta_L = K'_L * Theta_{L-1} + K_L``, value: ``sum_p Theta_L(p,p)``
    (Section 4).

    Parameters
    ----------
    depth, filter_size : int
        As for `cntk_gap`.

    Returns
    -------
    Network
        ``depth - 1`` times ``Conv ReLU``, then ``Flatten Dense``.

    Raises
    ------
    TypeError, ValueError
        If depth or filter_size is not an integer, or is outside its range.
    """
    convs = _convs(depth, filter_size, train_first=True)
    return Network([*convs, Flatten(), Dense(w_std=_SQRT_C / filter_size)], scaling="paper")


def ntk_dense(depth: int = 3, b_std: float = 0.0) -> Network:
    """NTK of a fully connected network (Eq. 7-9), on vectors or flattened images.

    ``Sigma^(0) = Theta^(0) = x.z``, ``Theta^(h) = Theta^(h-1) * Sigma'^(h) + Sigma^(h)``, value:
    ``Theta^(L)``.

    Parameters
    ----------
    depth : int
        Number of hidden layers L, 1 to 16,383.
    b_std : float
        Standard deviation of the biases of all layers, 0 to 1e100. The paper has none, and its
        network is homogeneous, ``f(2 x) = 2 f(x)``: on few features biases are worth having.

    Returns
    -------
    Network
        ``depth`` times ``Dense ReLU``, then ``Dense``.

    Raises
    ------
    TypeError, ValueError
        If depth is not an integer, or depth or b_std is outside its range.
    """
    n_hidden = _depth(depth, 1, "hidden layers")
    hidden = [ReLU(), Dense(w_std=_SQRT_C, b_std=b_std)] * n_hidden
    return Network([Dense(w_std=1.0, b_std=b_std), *hidden], scaling="paper")


_MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}  # convolutions on each grid


def myrtle(depth: int = 5, activation: Activation = _RELU) -> Network:
    """Myrtle network of Shankar et al. 2020: convolutions on three grids, 2 x 2 pools between them.

    Parameters
    ----------
    depth : {5, 7, 10}
        Number of 3 x 3 convolutions plus one: 2, 1, 1 of them before, between and after the pools,
        or 2, 2, 2, or 3, 3, 3. Of images with 32 x 32 pixels the last grid has 8 x 8.
    activation : Activation
        After each convolution; the paper has `ReLU` and `Gaussian`.

    Returns
    -------
    Network
        Ends with ``GlobalAvgPool Dense``; all layers are trained.

    Raises
    ------
    TypeError, ValueError
        If depth is not one of the three.
    """
    if isinstance(depth, bool) or not isinstance(depth, Integral) or int(depth) not in _MYRTLE:
        raise ValueError(f"depth of a Myrtle network must be 5, 7 or 10, got {depth!r}")
    layers: list[Layer] = []
    for count in _MYRTLE[int(depth)]:
        if layers:
            layers.append(AvgPool(2))
        layers += [Conv(3), activation] * count
    return Network([*layers, GlobalAvgPool(), Dense(w_std=_SQRT_C)])


def resnet(depth: int = 20, activation: Activation = _RELU) -> Network:
    """Residual network with activations before weights, for small images (He et al. 2016).

    Parameters
    ----------
    depth : int
        6 n + 2 with n >= 1: a convolution, three groups of n blocks of two, a dense layer. The
        first block of the second and of the third group strides by 2.
    activation : Activation
        Before each convolution but the first, and before the readout.

    Returns
    -------
    Network
        A block is ``Sum((), [activation, Conv(3), activation, Conv(3)])``; where it strides, the
        shortcut is ``[activation, Conv(1, stride=2)]``. Ends with ``GlobalAvgPool Dense``.

    Raises
    ------
    TypeError, ValueError
        If depth is no such integer.
    """
    n = _blocks(depth, 2, "ResNet")
    rest = [0] * (n - 1)
    return _residual([[0, *rest], [2, *rest], [2, *rest]], activation)


def wide_resnet(depth: int = 16, activation: Activation = _RELU) -> Network:
    """Wide residual network (Zagoruyko and Komodakis 2016), infinitely wide.

    Parameters
    ----------
    depth : int
        6 n + 4 with n >= 1: 10, 16, 22, 28, ...
    activation : Activation
        As for `resnet`.

    Returns
    -------
    Network
        As `resnet`, but the first block of each of the three groups has a convolution of one pixel
        as its shortcut, since there the width changes.

    Raises
    ------
    TypeError, ValueError
        If depth is no such integer.
    """
    n = _blocks(depth, 4, "wide ResNet")
    rest = [0] * (n - 1)
    return _residual([[-1, *rest], [2, *rest], [2, *rest]], activation)


def _blocks(depth: object, offset: int, what: str) -> int:
    n, rest = divmod(_depth(depth, 6 + offset, "layers with weights") - offset, 6)
    if rest:
        near = 6 * n + offset
        raise ValueError(
            f"depth of a {what} must be 6 n + {offset}, got {depth}: use {near} or {near + 6}"
        )
    return n


def _residual(groups: Sequence[Sequence[int]], activation: Activation) -> Network:
    """Build blocks; their shortcut is the identity (0), a convolution (-1), or one that strides."""
    layers: list[Layer] = [Conv(3, w_std=1.0)]
    for kind in (kind for group in groups for kind in group):
        stride = max(1, kind)
        shortcut = [activation, Conv(1, stride=stride)] if kind in (-1, 2) else ()
        block = [activation, Conv(3, stride=stride), activation, Conv(3)]
        layers.append(Sum(shortcut, block))
    return Network([*layers, activation, GlobalAvgPool(), Dense(w_std=_SQRT_C)])


def cnn_1d(depth: int = 4, filter_size: int = 5, activation: Activation = _RELU) -> Network:
    """Convolutional network on series ``(n, length, channels)``.

    Parameters
    ----------
    depth : int
        Number of convolutions plus one, 2 to 16,383.
    filter_size : int
        Of a filter, in steps of the series: odd.
    activation : Activation
        After each convolution.

    Returns
    -------
    Network
        ``depth - 1`` times ``Conv((1, filter_size)) activation``, then ``GlobalAvgPool Dense``.

    Raises
    ------
    TypeError, ValueError
        If depth or filter_size is not an integer, or is outside its range.
    """
    n_conv = _depth(depth, 2, "convolutions plus one") - 1
    convs: list[Layer] = [Conv((1, filter_size)), activation]
    return Network([*(convs * n_conv), GlobalAvgPool(), Dense(w_std=_SQRT_C)])


_PRESETS: dict[str, Callable[..., Network]] = {
    "cntk-gap": cntk_gap,
    "cntk-vanilla": cntk_vanilla,
    "ntk-dense": ntk_dense,
    "myrtle": myrtle,
    "resnet": resnet,
    "wide-resnet": wide_resnet,
    "cnn-1d": cnn_1d,
}
_DEPTHS = {"myrtle": (5, 7, 10), "resnet": (8, 20), "wide-resnet": (10, 16), "cnn-1d": (4,)}
PRESETS = ", ".join(f"{name}-DEPTH" for name in _PRESETS)
"""How `named_network` wants presets to be written."""
EXAMPLES = tuple(
    f"{name}-{depth}" for name in _PRESETS for depth in _DEPTHS.get(name, (3, 4, 6, 11, 21))
)
"""Presets, of the depths of the papers' tables."""


def named_network(text: str) -> Network:
    """Return the network that a word or JSON describes.

    Parameters
    ----------
    text : str
        A preset and its depth, ``cntk-gap-11``, ``ntk-dense-3``, ``myrtle-5``, ``resnet-20``
        (also written ``cntk_gap:11``); or what `Network.to_json` wrote.

    Raises
    ------
    ValueError
        If it is neither, or the network is not valid.
    """
    if text.lstrip().startswith("{"):
        return Network.from_json(text)
    names = "|".join(re.escape(name).replace(r"\-", "[-_]") for name in _PRESETS)
    found = re.fullmatch(rf"({names})(?:[-:](.*))?", text, re.DOTALL)
    name = found[1].replace("_", "-") if found else ""
    if found is None:
        raise ValueError(
            f"network must be {PRESETS}, or the JSON of a network, got {text[:200]!r}"
            f"{_similar(text[:200])}"
        )
    if not re.fullmatch(r"[0-9]{1,9}", found[2] or ""):
        example = _DEPTHS.get(name, (11,))[0]
        raise ValueError(f"{name} needs a depth, as in {name}-{example}, got {text[:200]!r}")
    return _PRESETS[name](depth=int(found[2]))


def _similar(text: str) -> str:
    """Return a question that names the preset which was meant, or nothing."""
    depth = re.search(r"[0-9]{1,5}$", text)
    names = [f"{name}-{depth[0] if depth else _DEPTHS.get(name, (11,))[0]}" for name in _PRESETS]
    near = difflib.get_close_matches(text.lower(), names, n=1, cutoff=0.6)
    return f": did you mean {near[0]}?" if near else ""


def _convs(depth: int, filter_size: int, *, train_first: bool) -> list[Layer]:
    n_conv = _depth(depth, 2, "convolutions plus one") - 1
    first = Conv(filter_size, w_std=filter_size, trainable=train_first)
    other = Conv(filter_size, w_std=_SQRT_C)
    return [first, ReLU(), *([other, ReLU()] * (n_conv - 1))]


def _depth(depth: object, smallest: int, meaning: str) -> int:
    if isinstance(depth, bool) or not isinstance(depth, Integral):
        raise TypeError(f"depth must be an integer, got {depth!r} ({type(depth).__name__})")
    if not smallest <= int(depth) <= _MAX_DEPTH:
        raise ValueError(
            f"depth (number of {meaning}) must be from {smallest} to {_MAX_DEPTH:,}, got {depth}"
        )
    return int(depth)
