"""A card, as far as the backend needs one: memory, compiled kernels, launches."""

from __future__ import annotations

import queue
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = [
    "CALLS",
    "Card",
    "Device",
    "Kernel",
    "Launch",
    "LostCard",
    "OutOfMemory",
    "Turns",
    "put_all",
]

CALLS = 3
"""Of a card at a time: one computes while another starts or is copied back."""

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
        """Wait for one of `CALLS` streams; what the block allocates and launches goes there."""
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

    def product(self, x: Array, z: Array) -> Array:
        """Return ``x @ z.T`` of two arrays of rows, which slices of `put` arrays are."""
        ...

    def fetch(self, array: Array, outs: Sequence[NDArray[Any]]) -> None:
        """Copy parts of an array of the device, one after the other, after all of this turn."""
        ...

    def free_memory(self) -> int:
        """Return the bytes that can still be allocated."""
        ...


class Turns:
    """Hands out cards, each to `CALLS` calls at a time."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for _ in range(CALLS):
            for index in range(len(devices)):
                self._free.put(index)

    @contextmanager
    def turn(self) -> Generator[int]:
        """Wait for a card that is free; the block is a turn of it."""
        index = self._free.get()
        try:
            with self._devices[index].turn():
                yield index
        finally:
            self._free.put(index)


def put_all(device: Device, arrays: Sequence[NDArray[Any]]) -> list[Array]:
    """Copy arrays to a device.

    Raises
    ------
    MemoryError
        If it has no room for them, with what to do.
    """
    try:
        with device.turn():
            return [device.put(values) for values in arrays]
    except OutOfMemory as error:
        size = sum(values.nbytes for values in arrays)
        raise MemoryError(
            f"{size / 2**20:.0f} MiB are needed on {device.card.name}, of which "
            f"{device.free_memory() / 2**20:.0f} MiB are free: compute fewer samples at a time (a "
            "store with a smaller tile), end other processes on it, or use backend='cpu'"
        ) from error
