"""Families of networks that are computed in one pass, each with the backend that does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from widelimit.backends import Backend, BackendName, choose, serving
from widelimit.backends.base import Dtype
from widelimit.network import Network
from widelimit.program import Kind, Program, compile_networks

__all__ = [
    "Family",
    "choose_backend",
    "find_families",
    "prepare",
    "profile_bytes",
    "scratch_bytes",
]


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
    """Return which backend computes a matrix, (n1, n2) or symmetric if n2 is None; see `choose`."""
    if name != "auto":
        return choose(name, 0)
    pairs = n1 * (n1 + 1) // 2 if n2 is None else n1 * n2
    programs = compile_networks(networks, shape, ("ntk",))
    return choose(name, pairs * sum(program.element_layers for program, _ in programs))


def find_families(
    networks: Sequence[Network], shape: Sequence[int], kinds: Sequence[Kind], backend: Backend
) -> list[Family]:
    """Compile networks; see `compile_networks`."""
    programs = compile_networks(networks, shape, kinds)
    return [Family(program, places, serving(program, backend)) for program, places in programs]


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
