"""The backend of NVIDIA cards: how a tile is cut into calls, and where they go."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from widelimit.arrays import FloatArray
from widelimit.backends.base import Cancelled, Dtype, Entries, Pairs, Profile
from widelimit.backends.cpu import instruction_sets, own_profiles, profile_arrays
from widelimit.backends.cuda.code_cache import compiled
from widelimit.backends.cuda.dense import CudaDense
from widelimit.backends.cuda.device import Device, OutOfMemory, Turns, put_all
from widelimit.backends.cuda.loaded import Loaded, LoadedStages, Resident
from widelimit.backends.cuda.plan import plan_kernels, plan_stages
from widelimit.backends.cuda.source import DRIFT, Layout
from widelimit.backends.cuda.stages import StagesLayout
from widelimit.backends.lowered import is_chain
from widelimit.display import share_alone, shown
from widelimit.machine import default_threads
from widelimit.program import Program

__all__ = ["CudaBackend", "CudaProfile"]

_CALL_COST = 1.5e11  # element-layers of one call: a fifth of a second on a large card
_MOST_PAIRS = 2**18  # of one call, whatever they cost
_CALL_BYTES = 2**28  # of sums of entries on the card, at most
_CALL_SHARE = 64  # and no more than this part of its memory
_GROUP = 128  # images of a group of pairs
_PROFILE_CHUNK = 32


@dataclass(frozen=True, eq=False)
class CudaProfile:
    """Profiles of a batch, on every card."""

    resident: tuple[Resident, ...]
    n: int
    dtype: Dtype

    def __len__(self) -> int:
        return self.n


def _layout(program: Program, dtype: Dtype) -> Layout | StagesLayout:
    """Return how a program lies on a card: a chain of layers, or stages of levels."""
    return (Layout if is_chain(program) else StagesLayout)(program, dtype)


class CudaBackend:
    """Slices on cards.

    Those of a chain with all rows in registers (``slices.cuh``), those of general networks with
    the last few rows of each level (``stages.cuh``).

    Parameters
    ----------
    *devices : Device
        Cards of one kind. A call goes to one that is free; no bit depends on which.
    """

    name = "cuda"

    def __init__(self, *devices: Device) -> None:
        self.devices = devices
        self.card = devices[0].card
        self.isa = self.card.target
        self.dense = CudaDense(devices)
        self._loaded: dict[tuple[Program, Dtype], tuple[Loaded | LoadedStages, ...]] = {}
        self._lock = threading.Lock()
        self._turns = Turns(devices)

    def lanes(self, dtype: Dtype) -> int:
        """Return the images of a group of pairs."""
        return _GROUP

    def _most_pairs(self, program: Program, dtype: Dtype) -> int:
        layout = _layout(program, dtype)
        by_cost = _CALL_COST / max(1, program.element_layers)
        room = min(_CALL_BYTES, self.card.memory // _CALL_SHARE)
        one = 8 * len(layout.fields)
        if isinstance(layout, Layout):
            entries = plan_kernels(layout, self.card).entries
            one = len(entries) * len(layout.fields) * np.dtype(dtype).itemsize
        by_memory = room / one
        return max(1, int(min(by_cost, by_memory, _MOST_PAIRS)))

    def cut(self, program: Program, dtype: Dtype, entries: Entries) -> Iterator[tuple[Pairs, bool]]:
        """Cut into squares, and triangles on the diagonal; see `Backend.cut`."""
        most = self._most_pairs(program, dtype)
        side = max(1, math.isqrt(most))
        side -= side % 4 if side > 4 else 0
        for start in range(entries.known, entries.n2, side):
            columns = np.arange(start, min(entries.n2, start + side))
            last = entries.n1
            if entries.part != "all":
                last = 0 if entries.part == "diagonal" else start
                i, j = np.triu_indices(len(columns))
                if entries.part == "diagonal":
                    i = j = np.arange(len(columns))
                for first in range(0, len(i), most):
                    part = slice(first, first + most)
                    yield Pairs(columns[i[part]], columns[j[part]], pairwise=True), False
            for first in range(0, last, side):
                yield Pairs(np.arange(first, min(last, first + side)), columns), False

    def prepare(self, program: Program, dtype: Dtype) -> None:
        """Compile and load the kernels of a program."""
        self.load(program, dtype)

    def profile_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of one image and its profile."""
        return np.dtype(dtype).itemsize * _layout(program, dtype).sample

    def profile_room(self) -> int:
        """Return half of the memory that is free on the card with the least."""
        return min(device.free_memory() for device in self.devices) // 2

    def scratch_bytes(self, program: Program, dtype: Dtype) -> int:
        """Return the bytes of the result of a call, on this side."""
        return 8 * len(program.taps) * 2 * self._most_pairs(program, dtype)

    def profile(
        self, program: Program, images: FloatArray, identity: NDArray[np.int64], dtype: Dtype
    ) -> Profile:
        """Compute profiles in float64 on the processor, and copy them to the card in `dtype`."""
        layout = _layout(program, dtype)
        n = len(images)
        samples = np.empty((n, layout.sample), dtype)
        scale, diagonal = np.empty(n), np.empty((n, len(program.taps), 2))
        plainest = [*instruction_sets()][-1]  # the same bits beside every card

        def make(start: int) -> None:
            part = slice(start, start + _PROFILE_CHUNK)
            if isinstance(layout, Layout):
                made = profile_arrays(program, images[part], dtype, DRIFT)
            else:
                made = own_profiles(plainest, program, images[part], dtype, start)
            samples[part] = layout.arrange(made.images, made.profiles, made.biases)
            scale[part], diagonal[part] = made.scale, made.diagonal

        with ThreadPoolExecutor(default_threads()) as pool:
            for _ in pool.map(make, range(0, n, _PROFILE_CHUNK)):
                pass
        wanted = np.stack([diagonal[:, f.tap, f.index] for f in layout.fields], axis=1)
        arrays = samples, identity, wanted, scale
        resident = tuple(Resident(*put_all(device, arrays)) for device in self.devices)
        return CudaProfile(resident, n, dtype)

    def sums(
        self,
        program: Program,
        left: Profile,
        right: Profile,
        pairs: Pairs,
        cancel: NDArray[np.int32],
    ) -> FloatArray:
        """Launch the kernels of a program, and copy their sums; see `Backend.sums`."""
        assert isinstance(left, CudaProfile)
        assert isinstance(right, CudaProfile)
        loaded = self.load(program, left.dtype)
        result = self.devices[0].host_empty((len(program.taps), 2, *pairs.shape), "float64")
        fields = [(field.tap, field.index) for field in loaded[0].layout.fields]
        for place in {*np.ndindex(result.shape[:2])} - {*fields}:
            result[place] = 0.0
        most = self._most_pairs(program, left.dtype)
        for part, place in _parts(pairs, most):
            if cancel[0]:
                raise Cancelled
            self._fill(loaded, left, right, part, [result[(*f, *place)] for f in fields])
        if cancel[0]:
            raise Cancelled
        return result

    def _fill(
        self,
        loaded: Sequence[Loaded | LoadedStages],
        left: CudaProfile,
        right: CudaProfile,
        pairs: Pairs,
        outs: Sequence[FloatArray],
    ) -> None:
        """Compute the sums of some pairs into arrays, one for each field.

        Where the card has no room for them all, in halves.
        """
        straight = all(out.flags.c_contiguous for out in outs)
        values = outs if straight else [np.empty(pairs.shape) for _ in outs]
        try:
            with self._turns.turn() as i:
                sums = loaded[i].start(left.resident[i], right.resident[i], pairs)
                self.devices[i].fetch(sums, values)
        except OutOfMemory as error:
            n = math.prod(pairs.shape)
            if n == 1:
                raise MemoryError(
                    f"{self.card.name} has no room for a single pair of images beside what "
                    "it holds: end other processes on it, or use backend='cpu'"
                ) from error
            for half, place in _parts(pairs, -(-n // 2)):
                self._fill(loaded, left, right, half, [out[place] for out in outs])
            return
        if not straight:
            for out, value in zip(outs, values, strict=True):
                out[...] = value

    def compile_all(
        self,
        programs: Sequence[tuple[Program, Dtype]],
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Compile what is missing for some programs, side by side.

        Parameters
        ----------
        programs : sequence of (Program, dtype)
        progress : callable or None
            Called with the share that is done, if anything is compiled.
        """
        sources: list[str] = []
        for program, dtype in programs:
            layout = _layout(program, dtype)
            chain = isinstance(layout, Layout)
            plan = plan_kernels(layout, self.card) if chain else plan_stages(layout, self.card)
            sources += plan.sources
        compiled(self.devices[0], list(dict.fromkeys(sources)), progress)

    def load(self, program: Program, dtype: Dtype) -> tuple[Loaded | LoadedStages, ...]:
        """Return the kernels of a program on each card, ready; any thread may call."""
        with self._lock:
            key = (program, dtype)
            if key not in self._loaded:
                layout = _layout(program, dtype)

                def code(sources: Sequence[str]) -> list[Path]:
                    with shown(sys.stderr.isatty(), "compiling for the card", share_alone) as told:
                        return compiled(self.devices[0], sources, told)

                if isinstance(layout, Layout):
                    kernels = plan_kernels(layout, self.card)
                    paths = code(kernels.sources)
                    made = [Loaded.on(each, layout, kernels, paths) for each in self.devices]
                else:
                    plan = plan_stages(layout, self.card)
                    paths = code(plan.sources)
                    made = [LoadedStages.on(each, layout, plan, paths) for each in self.devices]
                self._loaded[key] = tuple(made)
            return self._loaded[key]


def _parts(pairs: Pairs, most: int) -> Iterator[tuple[Pairs, tuple[slice, ...]]]:
    """Cut pairs into parts of at most so many, with their places in the result."""
    n_rows, n_columns = len(pairs.rows), len(pairs.columns)
    if pairs.pairwise:
        for start in range(0, n_rows, most):
            part = slice(start, start + most)
            yield Pairs(pairs.rows[part], pairs.columns[part], pairwise=True), (part,)
        return
    width = min(n_columns, most)
    height = max(1, most // width)
    for i in range(0, n_rows, height):
        for j in range(0, n_columns, width):
            down, across = slice(i, i + height), slice(j, j + width)
            yield Pairs(pairs.rows[down], pairs.columns[across]), (down, across)
