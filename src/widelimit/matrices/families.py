"""Families of networks that are computed in one pass, each with the backend that does it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from widelimit.backends import Backend, BackendName, choose, serving
from widelimit.backends.base import Dtype, Entries
from widelimit.backends.lowered import is_chain, missing
from widelimit.network import Network
from widelimit.program import Kind, Program, compile_networks

__all__ = [
    "Family",
    "calls",
    "choose_backend",
    "find_families",
    "prepare",
    "profile_bytes",
    "scratch_bytes",
]

_TEMPORARIES = 12  # numbers of a pair in the head of a network, about


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Some networks, their one program, and what executes it.

    Parameters
    ----------
    program : Program
    positions : tuple of int
        Of its networks among all that were asked for.
    backend : Backend
    """

    program: Program
    positions: tuple[int, ...]
    backend: Backend


def choose_backend(
    name: BackendName, networks: Sequence[Network], shape: Sequence[int], n1: int, n2: int | None
) -> BackendName:
    """Return which backend computes a matrix, (n1, n2) or symmetric if n2 is None; see `choose`.

    "auto" is a card for chains of convolutions and ReLU alone: what computes other networks there
    has not run on one yet.
    """
    if name != "auto":
        return choose(name, 0)
    pairs = n1 * (n1 + 1) // 2 if n2 is None else n1 * n2
    programs = [program for program, _ in compile_networks(networks, shape, ("ntk",))]
    if not all(map(is_chain, programs)):
        return "cpu"
    return choose(name, float(pairs * sum(program.element_layers for program in programs)))


def find_families(
    networks: Sequence[Network], shape: Sequence[int], kinds: Sequence[Kind], backend: Backend
) -> list[Family]:
    """Compile networks; see `compile_networks`. A card takes apart what it cannot join."""
    found: list[tuple[Program, tuple[int, ...]]] = []
    for program, places in compile_networks(networks, shape, kinds):
        if backend.name == "cuda" and len(places) > 1 and missing(program):
            alone = (compile_networks([networks[place]], shape, kinds) for place in places)
            found += [(made, (place,)) for place, [(made, _)] in zip(places, alone, strict=True)]
        else:
            found.append((program, places))
    return [Family(program, places, serving(program, backend)) for program, places in found]


def prepare(families: Sequence[Family], dtype: Dtype) -> None:
    """Make ready what first calls would wait for: before anything is shown of the work itself."""
    for family in families:
        family.backend.prepare(family.program, dtype)


def profile_bytes(families: Sequence[Family], dtype: Dtype) -> int:
    """Return the memory of the profiles of one sample, for all families."""
    return sum(family.backend.profile_bytes(family.program, dtype) for family in families)


def scratch_bytes(families: Sequence[Family], dtype: Dtype) -> int:
    """Return the work space of one thread."""
    return max(family.backend.scratch_bytes(family.program, dtype) for family in families)


def calls(families: Sequence[Family], dtype: Dtype, side: int, at_most: int) -> tuple[int, int]:
    """Return into how many calls a tile is cut, and the bytes of the values of one call.

    Parameters
    ----------
    families : sequence of Family
    dtype : {"float32", "float64"}
    side : int
        Of the tile.
    at_most : int
        Calls that are looked at.
    """
    count = values = 0
    for family in families:
        program, cut = family.program, family.backend.cut
        # On the diagonal they are fewest, elsewhere they have most pairs.
        count += sum(1 for _ in islice(cut(program, dtype, Entries(side, side, "upper")), at_most))
        whole = islice(cut(program, dtype, Entries(side, side)), at_most)
        pairs = max(math.prod(part.shape) for part, _ in whole)
        values = max(values, 8 * pairs * (2 * len(program.taps) + _TEMPORARIES))
    return min(count, at_most), values
