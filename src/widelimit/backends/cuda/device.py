"""A card, as far as the backend needs one: memory, compiled kernels, launches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["Card", "Device", "Kernel", "Launch", "LostCard", "OutOfMemory"]

Array = Any  # memory of a device
Kernel = Any  # a compiled function of a device


class OutOfMemory(MemoryError):
    """The card has no room for an array."""


class LostCard(RuntimeError):
    """The card, or its driver, has failed: this process cannot use it any more."""


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of a card.

    Parameters
    ----------
    name : str
    target : str
        What code is compiled for: "sm_90".
    multiprocessors : int
    shared_bytes : int
        Shared memory that one block may have.
    memory : int
        Bytes in all.
    """

    name: str
    target: str
    multiprocessors: int
    shared_bytes: int
    memory: int


@dataclass(frozen=True, slots=True)
class Launch:
    """How often a kernel runs, and with how much shared memory."""

    blocks: int
    threads: int
    shared: int = 0


class Device(Protocol):
    """Memory, kernels and launches; those of one `turn` run in their order.

    Within a turn `OutOfMemory` and `LostCard` may be raised.
    """

    @property
    def card(self) -> Card:
        """Return what is known of the card."""
        ...

    def compile(self, source: str) -> bytes:
        """Compile a source to what `load` takes. Any thread may call; some may at a time."""
        ...

    def compiler(self) -> str:
        """Return the version of the compiler and its target: what `compile` depends on."""
        ...

    def load(self, path: Path, name: str, shared: int) -> Kernel:
        """Return a function of a file of compiled code, which may have so much shared memory."""
        ...

    def turn(self) -> AbstractContextManager[None]:
        """Wait for one of a few streams; what the block allocates and launches goes there."""
        ...

    def put(self, values: NDArray[Any]) -> Array:
        """Copy an array to the device."""
        ...

    def empty(self, n: int, dtype: str) -> Array:
        """Return memory for n numbers; what is in it is not known."""
        ...

    def launch(self, kernel: Kernel, launch: Launch, arguments: Sequence[Any]) -> None:
        """Start a kernel. Arguments are arrays of the device, or int."""
        ...

    def host_empty(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Return an array on this side that the device copies to at full speed."""
        ...

    def fetch(self, array: Array, outs: Sequence[NDArray[Any]]) -> None:
        """Copy parts of an array of the device, one after the other, after all of this turn."""
        ...

    def free_memory(self) -> int:
        """Return the bytes that can still be allocated."""
        ...
