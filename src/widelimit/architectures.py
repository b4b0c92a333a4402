"""The networks of Arora et al., *On Exact Computation with an Infinitely Wide Neural Net*.

A `Network` divides a weight by sqrt(fan-in) where the paper multiplies by ``c/q^2`` after the
ReLU. The scales below move that factor, so that kernels have the paper's values, scale included:
``w_std = q`` turns ``w^2/q^2 box_q`` into the plain patch sum of Sigma_0, ``w_std = sqrt(2)``
carries the ``c = 2`` of the ReLU before it, and the last layer the ``c/q^2`` of K_L.
"""

from __future__ import annotations

import difflib
import re
from numbers import Integral

from widelimit.network import (
    MAX_LAYERS,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    Network,
    ReLU,
)

__all__ = ["EXAMPLES", "PRESETS", "cntk_gap", "cntk_vanilla", "named_network", "ntk_dense"]

_MAX_DEPTH = MAX_LAYERS // 2 - 1  # two layers for each, and two more
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


_PRESETS = {"cntk-gap": cntk_gap, "cntk-vanilla": cntk_vanilla, "ntk-dense": ntk_dense}
PRESETS = ", ".join(f"{name}-DEPTH" for name in _PRESETS)
"""How `named_network` wants presets to be written."""
EXAMPLES = tuple(f"{name}-{depth}" for name in _PRESETS for depth in (3, 4, 6, 11, 21))
"""Presets of the depths of the paper's Table 1."""


def named_network(text: str) -> Network:
    """Return the network that a word or JSON describes.

    Parameters
    ----------
    text : str
        A preset and its depth, ``cntk-gap-11``, ``cntk-vanilla-11``, ``ntk-dense-3`` (also
        written ``cntk_gap:11``); or what `Network.to_json` wrote.

    Raises
    ------
    ValueError
        If it is neither, or the network is not valid.
    """
    if text.lstrip().startswith("{"):
        return Network.from_json(text)
    found = re.fullmatch(r"([a-z]+[-_][a-z]+)(?:[-:](.*))?", text, re.DOTALL)
    name = found[1].replace("_", "-") if found else ""
    if found is None or name not in _PRESETS:
        raise ValueError(
            f"network must be {PRESETS}, or the JSON of a network, got {text[:200]!r}"
            f"{_similar(text[:200])}"
        )
    if not re.fullmatch(r"[0-9]{1,9}", found[2] or ""):
        raise ValueError(f"{name} needs a depth, as in {name}-11, got {text[:200]!r}")
    return _PRESETS[name](depth=int(found[2]))


def _similar(text: str) -> str:
    """Return a question that names the preset which was meant, or nothing."""
    depth = re.search(r"[0-9]{1,5}$", text)
    names = [f"{name}-{depth[0] if depth else 11}" for name in _PRESETS]
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
