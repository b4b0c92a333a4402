"""The kernels of a program on one card, and what one call launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from widelimit.backends.base import Pairs
from widelimit.backends.cuda.device import Device, Launch, put_all
from widelimit.backends.cuda.plan import Kernels, StagesPlan
from widelimit.backends.cuda.source import Layout
from widelimit.backends.cuda.stages import StagesLayout

__all__ = ["Loaded", "LoadedStages", "Resident"]


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """Profiles of a batch, on one card."""

    samples: Any  # as Layout.arrange makes them
    identity: Any
    diagonal: Any  # (n, fields), of chains
    scale: Any


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """The kernels of a program and dtype on one card, and the tables that they read."""

    device: Device
    layout: Layout
    kernels: Kernels
    functions: tuple[Any, ...]
    finish: Any
    entries: Any
    variants: Any
    row_weights: Any
    column_weights: Any
    layers: Any
    factors: Any

    @classmethod
    def on(cls, device: Device, layout: Layout, kernels: Kernels, paths: Sequence[Path]) -> Loaded:
        """Load compiled kernels: the files of `kernels.sources`."""
        *rest, finish = paths
        with device.turn():
            functions = tuple(
                device.load(path, kernel.name, kernel.shared)
                for path, kernel in zip(rest, kernels.kernels, strict=True)
            )
            end = device.load(finish, "wl_finish", 0)
        tables = (
            kernels.entries,
            kernels.variants,
            *layout.weights(),
            np.array([field.layer for field in layout.fields], np.int32),
            layout.lowered.factors[[field.tap for field in layout.fields]],
        )
        return cls(device, layout, kernels, functions, end, *put_all(device, tables))

    def start(self, left: Resident, right: Resident, pairs: Pairs) -> Any:
        """Launch the kernels on some pairs, in this turn of the device.

        Returns
        -------
        array of the device, float64, (fields * pairs,)
            What `Device.fetch` copies.
        """
        device, kernels, dtype = self.device, self.kernels, self.layout.dtype
        rows, columns = (device.put(part.astype(np.int32)) for part in (pairs.rows, pairs.columns))
        n = math.prod(pairs.shape)
        n_fields = len(self.layout.fields)
        n_entries = len(kernels.entries)
        shape = (len(pairs.rows), 1 if pairs.pairwise else len(pairs.columns), int(pairs.pairwise))
        partial = device.empty(n_fields * n_entries * n, dtype)
        tables = (self.entries, self.variants, n_entries)
        weights = (self.row_weights, self.column_weights, partial)
        call = (left.samples, right.samples, rows, columns, *shape, *tables, *weights)
        for kernel, function in zip(kernels.kernels, self.functions, strict=True):
            blocks = kernel.blocks(*shape)
            if not blocks:
                continue
            memory = ()
            if kernel.most_blocks:
                blocks = min(blocks, kernel.most_blocks)
                memory = (device.empty(max(1, blocks * kernel.memory), dtype),)
            launch = Launch(blocks, 32 * kernel.warps, kernel.shared)
            device.launch(function, launch, (*call, *memory))
        out = device.empty(n_fields * n, "float64")
        identities = (left.identity, right.identity, left.diagonal, left.scale, right.scale)
        arguments = (partial, rows, columns, *shape, n_entries, self.entries, self.layers)
        finish = Launch(-(-n_fields * n // 256), 256)
        device.launch(self.finish, finish, (*arguments, self.factors, *identities, out))
        return out


@dataclass(frozen=True, slots=True, eq=False)
class LoadedStages:
    """The kernel of a general program and dtype on one card, and the tables that it reads."""

    device: Device
    layout: StagesLayout
    plan: StagesPlan
    function: Any
    rounds: Any
    tasks: Any
    joins: Any
    row_weights: Any
    column_weights: Any
    factors: Any

    @classmethod
    def on(
        cls, device: Device, layout: StagesLayout, plan: StagesPlan, paths: Sequence[Path]
    ) -> LoadedStages:
        """Load the compiled kernel."""
        (path,) = paths
        with device.turn():
            function = device.load(path, "wl_stages", plan.shared)
        rounds = plan.rounds
        joins = rounds.joins if len(rounds.joins) else np.zeros((1, 5), np.int32)
        taps = [field.tap for field in layout.fields]
        factors = layout.lowered.factors[taps]
        tables = (rounds.rounds, rounds.tasks, joins, *layout.weights(), factors)
        return cls(device, layout, plan, function, *put_all(device, tables))

    def start(self, left: Resident, right: Resident, pairs: Pairs) -> Any:
        """Launch the kernel on some pairs; see `Loaded.start`."""
        device, plan = self.device, self.plan
        rows, columns = (device.put(part.astype(np.int32)) for part in (pairs.rows, pairs.columns))
        n = math.prod(pairs.shape)
        shape = (len(pairs.rows), 1 if pairs.pairwise else len(pairs.columns), int(pairs.pairwise))
        blocks = min(n, plan.most_blocks) if plan.most_blocks else n
        memory = device.empty(max(1, blocks * plan.memory), self.layout.dtype)
        out = device.empty(len(self.layout.fields) * n, "float64")
        tables = (self.rounds, len(plan.rounds.rounds), self.tasks, self.joins)
        weights = (self.row_weights, self.column_weights, self.factors)
        identities = (left.identity, right.identity, left.scale, right.scale)
        samples = (left.samples, right.samples, rows, columns, *shape)
        arguments = (*samples, *tables, *weights, *identities, out, memory)
        device.launch(self.function, Launch(blocks, 32 * plan.warps, plan.shared), arguments)
        return out
